import gzip
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steps.lib import formats
from steps.lib.config import key_view
from steps.lib.errors import ArtifactError, DataError
from steps.lib.opened import open_source, open_sources
from steps.lib.rows import Chat, Pair, Prompt, Row, Text, Thumb, write_parquet
from steps.lib.sources import Rejected, Source, digest

REAL = Path(__file__).parents[4] / "shared" / "data" / "real"
ALPACA = {"instruction": "翻译", "input": "你好", "output": "hello"}


def put(path: Path, rows: Sequence[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read(path: Path, kind: type[Row], **more: Any) -> list[Any]:
    return list(open_source(Source(name="s", path=path, **more), kind))


def rejected(path: Path, kind: type[Row], **more: Any) -> list[tuple[int, str, str]]:
    return [(row.line, row.field, row.reason) for row in read(path, kind, **more) if isinstance(row, Rejected)]


def shape(row: Chat) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in row.messages]


@pytest.mark.parametrize(
    ("record", "layout", "turns"),
    [
        (ALPACA, "alpaca", [("user", "翻译\n你好"), ("assistant", "hello")]),
        (
            {**ALPACA, "system": "S", "history": [["a", "b"]]}, "alpaca",
            [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "翻译\n你好"), ("assistant", "hello")],
        ),
        (
            {"conversations": [
                {"from": "system", "value": "S"}, {"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"},
                {"from": "observation", "value": "42"}, {"from": "gpt", "value": "a"}]}, "sharegpt",
            [("system", "S"), ("user", "q"), ("assistant", "f()"), ("user", "42"), ("assistant", "a")],
        ),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages",
         [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", [("user", "q"), ("assistant", "a")]),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
         "prompt_completion", [("user", "q"), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_chats_of_every_layout(
    tmp_path: Path, record: dict[str, Any], layout: str, turns: list[tuple[str, str]]
) -> None:
    opened = open_source(Source(name="s", path=put(tmp_path / "a.jsonl", [record])), Chat)
    assert opened.layout == layout and f"layout {layout} (detected)" in str(opened)
    (row,) = opened
    assert isinstance(row, Chat) and shape(row) == turns and row.id == "s-1" and row.source == "s"


Q, A, B = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": [Q], "chosen": [A], "rejected": [B]}, "preference"),
        ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]}, "preference"),
        ({"chosen": [Q, A], "rejected": [Q, B]}, "preference"),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
          "rejected": {"from": "gpt", "value": "b"}}, "sharegpt_preference"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "hh"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "alpaca_preference"),
        ({"input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
          "preferred_output": [{"role": "assistant", "content": "a"}],
          "non_preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}, "openai_preference"),
    ],
)  # fmt: skip
def test_pairs_of_every_layout(tmp_path: Path, record: dict[str, Any], layout: str) -> None:
    opened = open_source(Source(name="s", path=put(tmp_path / "a.json", [{**record, "note": "n"}])), Pair)
    (row,) = opened
    assert opened.layout == layout and isinstance(row, Pair)
    assert [turn.model_dump() for turn in (*row.prompt, *row.chosen, *row.rejected)] == [Q, A, B]
    assert json.loads(row.evidence) == {"note": "n"}


def test_a_layout_that_could_be_another_is_said(tmp_path: Path) -> None:
    both = {"messages": [Q, A], "prompt": "p", "completion": "c"}
    path = put(tmp_path / "a.jsonl", [both])
    opened = open_source(Source(name="s", path=path), Chat)
    assert str(opened).endswith(
        "layout prompt_completion (detected, though its columns fit messages too: set `layout` to have that)"
    )
    chosen = open_source(Source(name="s", path=path, layout="messages"), Chat)
    assert str(chosen).endswith("layout messages (as configured)") and shape(*chosen) == [
        ("user", "q"),
        ("assistant", "a"),
    ]
    plain = put(tmp_path / "b.jsonl", [{"instruction": "q", "chosen": "a", "rejected": "b"}])
    assert "though" not in str(open_source(Source(name="s", path=plain), Pair))


def test_a_preference_with_tools_is_refused(tmp_path: Path) -> None:
    row = {
        "input": {"messages": [Q], "tools": [{"type": "function"}]},
        "preferred_output": [A],
        "non_preferred_output": [B],
    }
    assert rejected(put(tmp_path / "a.jsonl", [row]), Pair) == [(1, "input.tools", "tools")]


def test_a_text_file_can_be_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("# 标题\r\n\r\none\rtwo\n".encode())
    (row,) = read(path, Text, documents="file")
    assert row.text == "# 标题\n\none\ntwo"
    source = open_source(Source(name="s", path=path, documents="file"), Text)
    assert list(source.behind(0)) == [row] and list(source.behind(1)) == []


def test_what_is_behind_some_rows_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places of some rows are remembered; what is read from one is what stands there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(formats, "STRIDE", 100)
    rows = [{"text": f"行 {number}"} for number in range(210)]
    put(tmp_path / "a.jsonl", [{"id": "bad"} if number % 70 == 5 else row for number, row in enumerate(rows)])
    put(tmp_path / "b.json", rows)
    (tmp_path / "c.json").write_text(json.dumps({"n": 1, "rows": rows}, indent=1))
    (tmp_path / "d.csv").write_text("text\n" + "".join(f'"行\n{number}"\n' for number in range(210)))
    (tmp_path / "e.txt").write_text("".join(f"行 {number}\n\n" for number in range(210)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet", row_group_size=90)
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "h.json").write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    for path in sorted(tmp_path.iterdir()):
        for documents in ("line", "blank_line") if path.suffix == ".txt" else ("line",):
            opened = open_source(Source(name="s", path=path, documents=documents), Text)
            whole = list(opened)
            assert len(whole) == 210, path.name
            for start in (0, 1, 99, 100, 179, 209, 210, 360):
                assert list(opened.behind(start)) == whole[start:], (path.name, start)
    folder = open_source(Source(name="s", path=tmp_path, files="[bch].json"), Text)
    rows = list(folder)
    assert len(rows) == 630 and list(folder.behind(200)) == rows[200:]


def test_what_is_behind_some_rows_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train.parquet", [Text(id=f"t{n}", text=f"text {n}") for n in range(5)], Text)
    opened = open_source(Source(name="s", hub=str(tmp_path / "set")), Text)
    assert len(list(opened)) == 5 and list(opened.behind(3)) == list(opened)[3:]


def test_an_opened_source_can_be_pickled(tmp_path: Path) -> None:
    opened = open_source(Source(name="s", path=put(tmp_path / "a.json", [ALPACA] * 3)), Chat)
    assert list(pickle.loads(pickle.dumps(opened)).behind(1)) == list(opened)[1:]


def test_prompts_keep_the_other_columns_as_labels(tmp_path: Path) -> None:
    rows = [{"id": "p1", "lang": "zh", "prompt": "退货", "intent": "refund", "order_number": None}]
    (row,) = open_source(Source(name="s", path=put(tmp_path / "p.jsonl", rows)), Prompt)
    assert (
        isinstance(row, Prompt)
        and row.id == "p1"
        and json.loads(row.facts) == {"intent": "refund", "order_number": None}
    )
    path = put(tmp_path / "q.jsonl", [{"question": "How many?", "answer": "4"}])
    (row,) = read(path, Prompt, columns={"prompt": "question"})
    assert row.prompt == "How many?" and json.loads(row.facts) == {"answer": "4"}
    (row,) = read(put(tmp_path / "a.json", [ALPACA]), Prompt)
    assert row.prompt == "翻译\n你好" and json.loads(row.facts) == {"reference": "hello"}


def test_texts_of_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.txt").write_text("one\n\ntwo\nlines\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text('text,n\n"one, quoted\nover lines",1\ntwo,2\n', encoding="utf-8-sig")
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    put(tmp_path / "lines.json", ['{"text": "one"}', '{"text": "two"}']).write_text(
        '{"text": "one"}\n{"text": "two"}\n'
    )
    assert [row.text for row in read(tmp_path / "a.txt", Text)] == ["one", "two", "lines"]
    assert [row.text for row in read(tmp_path / "a.txt", Text, documents="blank_line")] == ["one", "two\nlines"]
    assert [row.text for row in read(tmp_path / "a.csv", Text)] == ["one, quoted\nover lines", "two"]
    assert [row.text for row in read(tmp_path / "a.parquet", Text)] == ["one", "two"]
    assert [row.id for row in read(tmp_path / "lines.json", Text)] == ["s-1", "s-2"]


def test_our_own_rows_read_back_the_same(tmp_path: Path) -> None:
    pair = Pair(id="p", lang="zh", source="s", prompt=[Q], chosen=[A], rejected=[B], margin=0.5, evidence='{"a": 1}')  # type: ignore[list-item]
    prompt = Prompt(id="q", lang="en", source="s", prompt="x", facts='{"b": 2}')
    write_parquet(tmp_path / "pairs.parquet", [pair], Pair)
    write_parquet(tmp_path / "prompts.parquet", [prompt], Prompt)
    assert list(open_source(Source(name="s", path=tmp_path / "pairs.parquet"), Pair)) == [pair]
    assert list(open_source(Source(name="s", path=tmp_path / "prompts.parquet"), Prompt)) == [prompt]


def test_a_bad_row_is_handed_on_whole_with_line_field_and_reason(tmp_path: Path) -> None:
    good = {"messages": [Q, A]}
    rows = [
        good,
        '{"messages": [{"role": "user", "content": "cut o',
        {"messages": [Q]},
        {"messages": [{"role": "user", "content": 3}, A]},
        {"messages": [Q, {"role": "wizard", "content": "a"}]},
        {"messages": [A, Q]},
        {"messages": [Q, Q, A]},
        {"messages": [Q, {"role": "assistant", "content": " "}]},
        {"other": 1},
        [1, 2],
        '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "a"}]}',
        {**good, "label": False},
        {**good, "id": "x"},
        {**good, "id": "x"},
    ]
    path = put(tmp_path / "bad.jsonl", rows)
    found = [row for row in read(path, Chat) if isinstance(row, Rejected)]
    assert [(row.line, row.field, row.reason) for row in found] == [
        (2, "", "json"), (3, "messages", "no_assistant_turn"), (4, "messages[0]", "wrong_type"),
        (5, "messages[1]", "unknown_role"), (6, "messages", "last_turn"), (7, "messages", "role_order"),
        (8, "messages[1]", "empty"), (9, "messages", "missing_field"), (10, "", "not_object"), (11, "messages", "bad_unicode"),
        (12, "label", "label_false"), (14, "id", "duplicate_id"),
    ]  # fmt: skip
    assert json.loads(found[0].row) == rows[1] and json.loads(found[1].row) == rows[2]
    dropped = found[0].dropped("clean")
    assert dropped.detail.startswith("bad.jsonl:2: not JSON") and str(tmp_path) not in dropped.model_dump_json()
    for one in found:
        one.dropped("clean").model_dump_json().encode()


def test_pairs_that_are_none(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a"}, {"chosen": [Q, A], "rejected": [{"role": "user", "content": "z"}, B]},
        {"prompt": "q", "chosen": [A], "rejected": [Q, B, Q, B]}, {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]  # fmt: skip
    assert [reason for _, _, reason in rejected(put(tmp_path / "a.jsonl", rows), Pair)] == [
        "missing_field", "missing_field", "role_order",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        ({"prompt": "q", "completion": "a", "label": False}, "prompt_completion"),  # TRL, standard
        ({"prompt": [Q], "completion": [A], "label": 0}, "prompt_completion"),  # TRL, conversational
        ({"instruction": "q", "input": "", "output": "a", "kto_tag": False}, "alpaca"),  # LLaMA-Factory
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": "false"}, "sharegpt"),
        ({"messages": [Q, A], "label": "false"}, "messages"),
        ({"messages": [Q, A], "kto_tag": False}, "messages"),
    ],
)  # fmt: skip
def test_thumbs_of_every_layout(tmp_path: Path, record: dict[str, Any], layout: str) -> None:
    verdict = next(name for name in ("label", "kto_tag") if name in record)
    up = {**record, "note": "n", verdict: {"False": True, "0": 1, "false": "true"}[str(record[verdict])]}
    opened = open_source(Source(name="s", path=put(tmp_path / "a.json", [record, up])), Thumb)
    down, liked = opened
    assert opened.layout == layout and isinstance(down, Thumb) and isinstance(liked, Thumb)
    assert [turn.model_dump() for turn in (*down.prompt, *down.completion)] == [Q, A] and len(down.completion) == 1
    assert (down.label, liked.label) == (False, True) and json.loads(liked.evidence) == {"note": "n"}
    assert (down.id, liked.lang) == ("s-1", "en")


def test_thumbs_with_a_system_turn_several_turns_and_our_own_file(tmp_path: Path) -> None:
    record = {"messages": [Q, A, Q, B], "system": "S", "label": True}
    (row,) = read(put(tmp_path / "a.jsonl", [record]), Thumb)
    assert [turn.role for turn in row.prompt] == ["system", "user", "assistant", "user"] and row.completion[
        0
    ].content == "b"
    (long,) = read(put(tmp_path / "b.jsonl", [{"prompt": [Q], "completion": [A, Q, B], "label": True}]), Thumb)
    assert [turn.role for turn in long.completion] == ["assistant", "user", "assistant"]
    own = long.model_copy(update={"id": "t", "evidence": '{"a": 1}', "label": False})
    write_parquet(tmp_path / "thumbs.parquet", [own], Thumb)
    assert read(tmp_path / "thumbs.parquet", Thumb) == [own]


def test_thumbs_that_are_none(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": "up"}, {"prompt": "q", "completion": "a", "label": None},
        {"prompt": "q", "completion": "a", "label": 0.5}, {"prompt": [Q, A], "completion": [Q, A], "label": True},
        {"prompt": [Q], "completion": [Q], "label": True}, {"prompt": "q", "completion": "a", "label": 2},
    ]  # fmt: skip
    assert rejected(put(tmp_path / "a.jsonl", rows), Thumb) == [
        (1, "label", "wrong_type"), (2, "label", "missing_field"), (3, "label", "wrong_type"),
        (4, "completion", "role_order"), (5, "completion", "no_assistant_turn"), (6, "label", "wrong_type"),
    ]  # fmt: skip
    with pytest.raises(
        DataError,
        match=r"gives no Thumb rows: got columns prompt, completion; .*\(prompt, completion, label or kto_tag\)",
    ):
        open_source(Source(name="s", path=put(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "a"}])), Thumb)


def test_what_comes_behind_any_row_is_what_came_behind_it_before(tmp_path: Path) -> None:
    """Ids of rows that were skipped still count as taken, and so does the limit."""
    path = tmp_path / "rows.jsonl"
    texts = [
        '{"id": "a", "prompt": "one"}',
        "no JSON",
        '{"id": "b", "prompt": "two"}',
        '{"id": "a", "prompt": "again"}',
    ]
    path.write_text("\n".join([*texts, "", '{"prompt": "last"}', *texts]) + "\n", encoding="utf-8")
    for limit in (None, 1, 4, 6, 8, 9, 20):
        opened = open_source(Source(name="s", path=path, limit=limit), Prompt)
        whole = list(opened)
        ids = [row.id if isinstance(row, Prompt) else None for row in whole]
        reasons = {one.reason for one in whole if isinstance(one, Rejected)}
        assert reasons >= ({"limit"} if limit == 1 else {"json", "duplicate_id"})
        for skip in range(len(whole) + 2):
            taken = [one for one in ids[:skip] if one is not None]
            assert list(opened.behind(skip, taken)) == whole[skip:], (limit, skip)


def test_the_limit_counts_what_it_leaves(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(10)]), Text, limit=3)
    assert len(found) == 4
    assert (found[3].reason, found[3].count, found[3].line) == ("limit", 7, 4)


def test_placeholders_are_filled_or_refused(tmp_path: Path) -> None:
    rows = [{**ALPACA, "output": "I am {{name}} by {{ author }}."}, ALPACA]
    path = put(tmp_path / "a.json", rows)
    assert rejected(path, Chat) == [(1, "output", "placeholder")]
    filled = read(path, Chat, placeholders={"name": "Deer", "author": "us"})
    assert filled[0].messages[-1].content == "I am Deer by us."


def test_ids_and_languages(tmp_path: Path) -> None:
    rows = [{"text": "hello there", "id": 7}, {"text": "你好", "id": "a"}, {"text": "hello", "lang": "zh"}]
    path = put(tmp_path / "a.jsonl", rows)
    assert [(row.id, row.lang) for row in read(path, Text)] == [("s-7", "en"), ("a", "zh"), ("s-3", "zh")]
    assert {row.lang for row in read(path, Text, lang="en")} == {"en"}


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    good = Source(name="good", path=put(tmp_path / "good.jsonl", [{"text": "fine"}]))
    asked = [(Source(name="gone", path=tmp_path / "gone.jsonl"), Text), (good, Chat), (good, Text)]
    asked.append((Source(name="names", path=good.path, columns={"text": "body"}), Text))
    asked.append((Source(name="forced", path=good.path, layout="hh"), Text))
    with pytest.raises(DataError) as caught:
        open_sources(asked)
    message = str(caught.value)
    assert message.startswith("4 problems") and "gone.jsonl is missing" in message and "gives no Chat rows" in message
    assert "has no column body" in message and "layout hh" in message


def test_the_key_holds_the_content_and_not_the_place(tmp_path: Path) -> None:
    here, there = put(tmp_path / "a.jsonl", [{"text": "x"}]), put(tmp_path / "b.jsonl", [{"text": "x"}])
    one, other = Source(name="s", path=here), Source(name="s", path=there)
    assert key_view(one) == key_view(other) and digest(one) == digest(other)
    put(there, [{"text": "y"}])
    assert digest(one) != digest(other)
    with pytest.raises(DataError, match="is missing"):
        digest(Source(name="s", path=tmp_path / "gone.jsonl"))
    assert digest(Source(name="s", hub="a/b", revision="0" * 40)) == "a/b@" + "0" * 40


def test_a_source_is_a_file_or_a_hub_id() -> None:
    for wrong in ({}, {"path": "a", "hub": "b"}, {"path": "a", "name": "no spaces"}, {"path": "a", "limit": 0}):
        with pytest.raises(ValidationError):
            Source.model_validate({"name": "s", **wrong})


def test_a_full_folder_for_temporary_files_is_said_so(tmp_path: Path) -> None:
    rows = [{"id": f"{'x' * 500}{number}", "text": "a text"} for number in range(100)]
    cursor = iter(open_source(Source(name="s", path=put(tmp_path / "p.jsonl", rows)), Text))
    cursor._ids.execute("PRAGMA max_page_count=3")
    with pytest.raises(ArtifactError, match="ids of source s cannot be remembered.*full.*TMPDIR"):
        list(cursor)


def test_a_hub_data_set_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [Text(id=f"t{n}", text=f"text {n}") for n in range(3)], Text)
    source = Source(name="s", hub=str(folder), limit=2)
    found = list(open_source(source, Text))
    assert [row.id for row in found if isinstance(row, Text)] == ["t0", "t1"]
    assert isinstance(found[-1], Rejected) and found[-1].count == 1
    before = digest(source)
    write_parquet(folder / "train.parquet", [Text(id="other", text="text")], Text)
    assert digest(source) != before
    with pytest.raises(DataError, match="cannot be loaded"):
        list(open_source(Source(name="s", hub=str(folder), split="nowhere"), Text))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
@pytest.mark.parametrize(
    ("file", "kind", "layout", "rows", "reasons"),
    [
        ("alpaca_en_demo.json", Chat, "alpaca", 495, {}),
        ("alpaca_zh_demo.json", Chat, "alpaca", 516, {}),
        ("dpo_en_demo.json", Pair, "sharegpt_preference", 159, {}),
        ("dpo_zh_demo.json", Pair, "sharegpt_preference", 147, {}),
        ("kto_en_demo.json", Chat, "messages", 136, {"label_false": 64}),
        ("identity.json", Chat, "alpaca", 45, {"placeholder": 43}),
        ("c4_demo.jsonl", Text, "text", 168, {}),
        ("wiki_demo.txt", Text, "text", 10, {}),
    ],
)
def test_real_files(file: str, kind: type[Row], layout: str, rows: int, reasons: dict[str, int]) -> None:
    opened = open_source(Source(name="s", path=REAL / file), kind)
    found = list(opened)
    seen = [row.reason for row in found if isinstance(row, Rejected)]
    assert (opened.layout, len(found)) == (layout, rows)
    assert {reason: seen.count(reason) for reason in seen} == reasons
