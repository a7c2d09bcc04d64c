import hashlib
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cuts
import pytest
from pydantic import ValidationError

from steps import clean
from steps.clean import CleanConfig
from steps.lib.artifact import Artifact, seal
from steps.lib.config import key_view
from steps.lib.dedup import against
from steps.lib.digests import digest_file
from steps.lib.errors import ConfigError, DataError, Resumable
from steps.lib.facts import fold
from steps.lib.rows import Candidate, Chat, Dropped, Pair, Prompt, Text, Thumb, read_parquet, write_parquet
from steps.lib.signatures import sketch
from steps.lib.step import Context, Metrics
from steps.lib.work_ledger import WorkLedger

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
SEED = ROOT / "data" / "seed"
REAL = ROOT.parent / "shared" / "data" / "real"
FILES: dict[str, type[Any]] = {
    "corpus": Text, "general": Text, "chats": Chat, "pairs": Pair, "heldout_domain": Text, "heldout_general": Text,
    "heldout_prompts": Prompt, "heldout_pairs": Pair, "dropped": Dropped,
}  # fmt: skip


def plain(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    return iter(items)


def track(values: Mapping[str, float], step: int | None = None) -> None: ...


def run(
    tmp: Path, config: dict[str, Any], candidates: Sequence[Candidate] | None = None
) -> tuple[dict[str, list[Any]], Metrics]:
    """Run the step in a new folder; give back every file it wrote."""
    out = tmp / f"out{len(list(tmp.glob('out*')))}"
    (out / "resume").mkdir(parents=True)
    folder = None
    if candidates is not None:
        folder = tmp / "generated"
        folder.mkdir(exist_ok=True)
        write_parquet(folder / "candidates.parquet", candidates, Candidate)
    context = Context(log=logging.getLogger("clean"), seed=0, resume=out / "resume", progress=plain, track=track)
    metrics = clean.run(CleanConfig.model_validate(config), candidates=folder, out=out, context=context)
    return {name: read_parquet(out / f"{name}.parquet", kind) for name, kind in FILES.items()}, metrics


def near(trained: Sequence[str], guarded: Sequence[str]) -> bool:
    """Whether one is a near-copy of another."""
    return bool(
        len(
            against(
                sketch(trained),
                lambda rows: [trained[row] for row in rows],
                sketch(guarded),
                lambda rows: [guarded[row] for row in rows],
                0.5,
            )
        )
    )


def put(path: Path, rows: Sequence[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def source(tmp: Path, name: str, rows: Sequence[Any]) -> dict[str, Any]:
    return {"name": name, "path": put(tmp / f"{name}.jsonl", rows)}


def why(rows: Mapping[str, list[Any]]) -> dict[str, str]:
    return {row.id: row.reason for row in rows["dropped"]}


def story(number: int, words: int = 40) -> str:
    """A text of made-up words that shares nothing with the story of another number."""
    return " ".join(hashlib.sha256(f"{number} {word}".encode()).hexdigest()[:7] for word in range(words)) + "."


def changed(text: str, words: int = 1) -> str:
    """The text with its last words replaced."""
    parts = text.split()
    return " ".join([*parts[:-words], *("other." for _ in range(words))])


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def test_documents_are_repaired_filtered_and_told_apart(tmp_path: Path) -> None:
    rows = [
        {"id": "good", "text": "\u200b" + story(1) + "\r\nNext\u00a0line."},
        {"id": "again", "text": story(1) + "\nNext line."},
        {"id": "near", "text": story(1) + "\nNext line. More."},
        {"id": "short", "text": "Hi."},
        {"id": "held", "text": story(2)},
        {"id": "near-held", "text": changed(story(3), 5)},
        '{"text": "cut o',
        {"id": "nothing", "text": "\u200b\u200b"},
    ]
    held = source(tmp_path, "held", [{"id": "h2", "text": story(2).upper()}, {"id": "h3", "text": story(3)}])
    found, metrics = run(tmp_path, {"domain": [source(tmp_path, "docs", rows)], "heldout": {"domain": [held]}})
    assert [row.text for row in found["corpus"]] == [story(1) + "\nNext line."]
    assert why(found) == {
        "docs-7": "json", "nothing": "empty", "again": "duplicate", "short": "too_short", "held": "heldout_copy",
        "near-held": "near_heldout", "near": "near_duplicate",
    }  # fmt: skip
    details = {row.id: row.detail for row in found["dropped"]}
    near = json.loads(details["near"])
    assert (near["kept_id"], near["linked_id"]) == ("good", "good") and 0.9 < near["jaccard"] < 1
    assert json.loads(details["again"]) == {"kept_id": "good"}
    assert json.loads(details["near-held"])["heldout_id"] == "h3"
    assert json.loads(next(row.row for row in found["dropped"] if row.id == "near-held"))["text"] == rows[5]["text"]  # type: ignore[index]
    assert metrics.rows.dump()["in"] == {"domain": 8, "heldout_domain": 2}
    assert sum(metrics.rows.reasons["domain"].values()) == 7 == len(found["dropped"])


def test_a_cluster_keeps_its_first_row_and_says_what_each_was_verified_against(tmp_path: Path) -> None:
    base, other = story(1).split(), story(2).split()
    versions = [[*other[:4], *base[4:]], [*base[:-4], *other[-4:]], base]
    rows = [{"id": name, "text": " ".join(text)} for name, text in zip("abc", versions, strict=True)]
    found, _ = run(tmp_path, {"domain": [source(tmp_path, "s", rows)]})
    assert [row.id for row in found["corpus"]] == ["a"]  # a and b are not near each other, both are near c
    details = {row.id: json.loads(row.detail) for row in found["dropped"]}
    assert {name: (one["kept_id"], one["linked_id"]) for name, one in details.items()} == {
        "b": ("a", "c"),
        "c": ("a", "a"),
    }


def test_of_pairs_that_are_near_copies_the_one_with_the_largest_margin_stays(tmp_path: Path) -> None:
    told = [story(number) for number in range(3)]
    rows = [{"id": f"{number}-{margin}", "prompt": text, "chosen": story(number + 10) + " end" * (margin > 1),
             "rejected": story(number + 20), "margin": margin} for number, text in enumerate(told) for margin in (1, 2, 1.5)]  # fmt: skip
    found, _ = run(tmp_path, {"pairs": [source(tmp_path, "p", rows)]})
    assert [row.id for row in found["pairs"]] == ["0-2", "1-2", "2-2"]


def candidate(number: int, answer: str, *flags: str, prompt: str | None = None, lang: Any = "en") -> Candidate:
    return Candidate(id=f"c{number}", lang=lang, source="prompts", teacher="t", prompt=prompt or story(number, 12),
                     answer=answer, flags=list(flags))  # fmt: skip


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text("""
name: tiny
student_system: {zh: 用JSON回答。, en: Answer in JSON.}
schema: {type: object, required: [reply], properties: {reply: {type: string}}}
rules:
  - {name: json_schema, kind: schema}
  - {name: no_thanks, kind: must_not_match, field: reply, pattern: thanks}
""")
    return path


def test_candidates_that_keep_the_rules_become_chats(tmp_path: Path, task: Path) -> None:
    answers = [
        candidate(1, '{"reply": "yes"}'),
        candidate(2, '{"reply": "好"}', lang="zh", prompt="请问怎么退货？"),
        candidate(3, '{"reply": "cut'),
        candidate(4, '{"reply": "yes"}', "repaired", "truncated"),
        candidate(5, '{"reply": "yes"}', "repaired"),
        candidate(6, " "),
        candidate(7, '{"reply": "many thanks"}'),
    ]
    found, metrics = run(tmp_path, {"task": task}, answers)
    assert [row.id for row in found["chats"]] == ["c1", "c2", "c5", "c7"]
    assert [turn.content for turn in found["chats"][1].messages] == [
        "用JSON回答。",
        "请问怎么退货？",
        '{"reply": "好"}',
    ]
    assert why(found) == {"c3": "rule:json_schema", "c4": "truncated", "c6": "empty"}
    assert metrics.rows.dump()["in"] == {"candidates": 7, "chats": 4}
    assert (tmp_path / "out0" / "task.yaml").read_bytes() == task.read_bytes()
    stricter, _ = run(tmp_path, {"task": task, "check_rules": ["no_thanks"], "allowed_flags": []}, answers)
    assert why(stricter)["c7"] == "rule:no_thanks" and why(stricter)["c5"] == "repaired"


def test_where_a_candidate_came_from_changes_nothing_behind_clean(tmp_path: Path, task: Path) -> None:
    """An edit to a prompt file that changes no message gives the same answers with another digest in their provenance: clean runs
    again, and what it hands on is the same."""
    bytes_ = []
    for digest in ("a" * 64, "b" * 64):
        made = [
            candidate(number, '{"reply": "yes"}', *flags).model_copy(
                update={"provenance": json.dumps({"prompt_file": digest})}
            )
            for number, flags in enumerate(((), ("truncated",), ("repaired",)))
        ]
        run(tmp_path, {"task": task}, made)
        out = tmp_path / f"out{len(bytes_)}"
        bytes_.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    differ = {name for name in bytes_[0] if bytes_[0][name] != bytes_[1][name]}
    assert differ == {"dropped.parquet"} <= set(clean.RECORDS), "a record, which is in no digest"


def test_an_unknown_rule_is_refused_with_those_there_are(tmp_path: Path, task: Path) -> None:
    with pytest.raises(ConfigError, match="no_thank: got no such rule in .*it has json_schema, no_thanks"):
        run(tmp_path, {"task": task, "check_rules": ["no_thank"]}, [candidate(1, "{}")])


def test_without_a_task_a_candidate_has_no_system_turn(tmp_path: Path) -> None:
    found, _ = run(tmp_path, {}, [candidate(1, "fine")])
    assert [turn.role for turn in found["chats"][0].messages] == ["user", "assistant"]


def test_answers_to_one_prompt_are_counted(tmp_path: Path) -> None:
    answers = [candidate(number, story(number), prompt="Where is it?") for number in range(5)]
    found, _ = run(tmp_path, {"answers_per_prompt": 2}, answers)
    assert [row.id for row in found["chats"]] == ["c0", "c1"]
    assert Counter(why(found).values()) == {"answers_per_prompt": 3}
    assert len(run(tmp_path, {"answers_per_prompt": None}, answers)[0]["chats"]) == 5


def test_chats_that_differ_by_an_order_number_both_stay(tmp_path: Path) -> None:
    asks = [chat(f"你好，我的订单{number}买的电水壶底部漏水，能不能退货？", f"请放心，订单{number}会在两天内处理，我们会发短信给您。")
            for number in ("A12345", "B54321")]  # fmt: skip
    assert len(run(tmp_path, {"chats": [source(tmp_path, "s", asks)]})[0]["chats"]) == 2
    tight = {"chats": [source(tmp_path, "s", asks)], "near_duplicate": {"chats": 0.5}}
    assert len(run(tmp_path, tight)[0]["chats"]) == 1


def test_no_held_out_prompt_is_in_any_turn_of_a_chat_or_pair(tmp_path: Path) -> None:
    held = source(tmp_path, "held", [{"id": "h", "prompt": "怎么退货？"}, {"id": "long", "prompt": story(5, 20)}])
    turns = [{"role": role, "content": text} for role, text in
             (("user", "Hello"), ("assistant", "Hi!"), ("user", "怎么 退货"), ("assistant", "请发订单号。"))]  # fmt: skip
    config = {
        "chats": [source(tmp_path, "chats", [{"id": "turn", "messages": turns}, chat("Hello", "Hi there!", id="ok"),
                                             chat(changed(story(5, 20)), "Well.", id="near")])],
        "pairs": [source(tmp_path, "pairs", [pair("怎么退货", "好", "不好"), pair("Hello", "Hi!", "What?"), pair("Hello", "x", "x")])],
        "heldout": {"prompts": [held]},
    }  # fmt: skip
    found, _ = run(tmp_path, config)
    assert [row.id for row in found["chats"]] == ["ok"] and [row.id for row in found["pairs"]] == ["pairs-2"]
    assert why(found) == {
        "turn": "heldout_copy",
        "near": "near_heldout",
        "pairs-1": "heldout_copy",
        "pairs-3": "equal_pair",
    }


def share_config(tmp_path: Path, numbers: Iterable[int]) -> dict[str, Any]:
    chats = [chat(story(number, 15), story(100 + number)) for number in numbers]
    docs = [{"text": text, "id": f"{number}{tail}"} for number in numbers
            for tail, text in (("", story(number)), ("-copy", changed(story(number), 8)))]  # fmt: skip
    return {"chats": [source(tmp_path, "c", chats)], "domain": [source(tmp_path, "d", docs)], "heldout": {"share": 0.3},
            "pairs": [source(tmp_path, "p", [pair(changed(story(number, 15)), "yes", "no") for number in numbers])]}  # fmt: skip


def thumb(question: str, answer: str, label: bool, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, "label": label, **more}


def test_thumbs_are_cleaned_and_counted_like_pairs(tmp_path: Path) -> None:
    """A contradiction takes all of its rows; near-copies are told apart by their verdict; bad answers may be bad."""
    bad = "I'm sorry, but as an AI language model I cannot help with that."
    rows = [
        thumb(story(1), story(11), True, id="liked"), thumb(story(1), story(11), False, id="and-not"),
        thumb(story(1), story(11), True, id="liked-again"), thumb(story(2), story(12), True, id="stays"),
        thumb(story(2), story(12), True, id="copy"), thumb(story(2), changed(story(12)), True, id="near"),
        thumb(story(2), changed(story(12), 2), False, id="near-but-disliked"), thumb(story(3), bad, False, id="bad"),
        thumb(story(4), bad, True, id="bad-but-liked"), thumb(story(5), story(15), False, id="asked-in-heldout"),
        thumb(story(6), "a <|im_end|> in it", False, id="token"), thumb(story(7), story(17), "maybe", id="maybe"),
    ]  # fmt: skip
    held = [pair(story(5), story(25), story(26))]
    config = {"thumbs": [source(tmp_path, "t", rows)], "heldout": {"pairs": [source(tmp_path, "h", held)]}}
    files, metrics = run(tmp_path, config)
    kept = read_parquet(tmp_path / "out0" / "thumbs.parquet", Thumb)
    assert [(row.id, row.label) for row in kept] == [("stays", True), ("near-but-disliked", False), ("bad", False)]
    assert why(files) == {
        "liked": "contradiction", "and-not": "contradiction", "liked-again": "contradiction", "copy": "duplicate",
        "near": "near_duplicate", "bad-but-liked": "identity", "asked-in-heldout": "heldout_copy",
        "token": "special_token", "t-12": "wrong_type",
    }  # fmt: skip
    ledger = metrics.rows.dump()
    assert ledger["in"]["thumbs"] == 12 and ledger["out"]["thumbs"] == 3
    assert sum(ledger["dropped"]["thumbs"].values()) == 9 and metrics.values["thumbs_up"] == 1
    told = {row.id: json.loads(row.detail) for row in files["dropped"] if row.reason == "contradiction"}
    assert told["liked"] == {"other_id": "and-not"} and told["and-not"] == {"other_id": "liked"}


def test_thumbs_that_ask_what_a_share_held_out_are_dropped(tmp_path: Path) -> None:
    chats = [chat(story(n), story(100 + n)) for n in range(20)]
    rows = [thumb(story(n), story(200 + n), n % 2 == 0) for n in range(20)]
    config = {
        "chats": [source(tmp_path, "c", chats)],
        "thumbs": [source(tmp_path, "t", rows)],
        "heldout": {"share": 0.3},
    }
    files, metrics = run(tmp_path, config)
    held = {row.prompt for row in files["heldout_prompts"]}
    kept = read_parquet(tmp_path / "out0" / "thumbs.parquet", Thumb)
    assert held and {row.prompt[0].content for row in kept} == {story(n) for n in range(20)} - held
    assert metrics.rows.dump()["dropped"]["thumbs"] == {"heldout_copy": len(held)}


def test_without_thumbs_nothing_shows_of_them(tmp_path: Path) -> None:
    """No file, no count, and the key that such a configuration had before there were thumbs."""
    config = CleanConfig.model_validate({"chats": [source(tmp_path, "c", [chat(story(1), story(2))])]})
    view = json.dumps(key_view(config))
    assert "thumbs" not in view
    _, metrics = run(tmp_path, config.model_dump())
    assert not (tmp_path / "out0" / "thumbs.parquet").exists()
    assert "thumbs" not in json.dumps([metrics.values, metrics.rows.dump()])
    words = [{"thumbs": [source(tmp_path, "t", [])]}, {"near_duplicate": {"thumbs": 0.8}}, {"min_rows": {"thumbs": 2}}]
    for changed_config in words:
        other = CleanConfig.model_validate({**config.model_dump(), **changed_config})
        assert "thumbs" in json.dumps(key_view(other), default=str)
    with pytest.raises(DataError, match="thumbs has too few rows after cleaning: got 0, at least 2 are needed"):
        run(tmp_path, {**config.model_dump(), "min_rows": {"thumbs": 2}})


def test_a_share_is_split_off_by_group_and_never_trained_on(tmp_path: Path) -> None:
    found, _ = run(tmp_path, share_config(tmp_path, range(60)))
    assert 10 <= len(found["heldout_prompts"]) <= 26 and 20 <= len(found["heldout_domain"]) <= 52
    sides = [{row.id.removesuffix("-copy") for row in found[name]} for name in ("corpus", "heldout_domain")]
    assert not sides[0] & sides[1] and len(found["corpus"]) == 2 * len(sides[0])  # copies at .6 share a side
    facts = json.loads(found["heldout_prompts"][0].facts)
    assert set(facts) == {"reference"}
    guarded = [row.prompt for row in found["heldout_prompts"]] + [
        row.prompt[0].content for row in found["heldout_pairs"]
    ]
    trained = [row.messages[0].content for row in found["chats"]] + [row.prompt[0].content for row in found["pairs"]]
    assert not {fold(text) for text in guarded} & {fold(text) for text in trained}
    assert not near(trained, guarded)
    assert "near_heldout" in why(found).values()  # a pair whose like was held out as a chat, or the other way round


def test_added_rows_leave_the_others_on_their_side(tmp_path: Path) -> None:
    few, _ = run(tmp_path, share_config(tmp_path, range(30)))
    more, _ = run(tmp_path, share_config(tmp_path, [*range(30, 60), *range(30)]))
    assert {row.text for row in few["heldout_domain"]} <= {row.text for row in more["heldout_domain"]}
    assert {row.text for row in few["corpus"]} <= {row.text for row in more["corpus"]}


def test_a_small_share_of_few_groups_still_holds_one_out(tmp_path: Path) -> None:
    docs = source(tmp_path, "d", [{"text": story(number)} for number in range(3)])
    found, _ = run(tmp_path, {"domain": [docs], "heldout": {"share": 0.0001}})
    assert (len(found["corpus"]), len(found["heldout_domain"])) == (2, 1)
    found, _ = run(tmp_path, {"domain": [docs]})
    assert (len(found["corpus"]), len(found["heldout_domain"])) == (3, 0)


def test_two_sources_with_the_same_ids_both_keep_their_rows(tmp_path: Path) -> None:
    docs = [source(tmp_path, name, [{"id": "x", "text": story(number)}]) for number, name in enumerate("ab")]
    found, _ = run(tmp_path, {"domain": docs})
    assert [row.id for row in found["corpus"]] == ["x", "b-x"]
    taken = source(tmp_path, "first", [{"id": name, "text": story(5 + len(name))} for name in ("x", "b-x")])
    found, _ = run(tmp_path, {"domain": [taken, docs[1]]})
    assert [row.id for row in found["corpus"]] == ["x", "b-x", "b-b-x"], "its new name may be taken, too"
    with pytest.raises(ValidationError, match="source names a stand twice"):
        CleanConfig.model_validate({"domain": docs[:1], "heldout": {"domain": docs[:1]}})


def test_empty_after_cleaning_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    config = {"domain": [source(tmp_path, "d", [{"text": "Hi."}, {"text": "Hi."}])],
              "chats": [source(tmp_path, "c", [{"messages": [{"role": "user", "content": "no answer"}]}])]}  # fmt: skip
    with pytest.raises(DataError) as caught:
        run(tmp_path, config)
    message = str(caught.value)
    assert "corpus has too few rows after cleaning: got 0, at least 1 are needed" in message
    assert "2 rows in, 2 dropped: duplicate 1, too_short 1" in message and "no_assistant_turn 1" in message
    config = {"domain": [source(tmp_path, "e", [{"text": story(1)}])], "min_rows": {"corpus": 2}}
    with pytest.raises(DataError, match="got 1, at least 2"):
        run(tmp_path, config)


def test_a_held_out_source_without_a_row_fails_closed(tmp_path: Path) -> None:
    held = source(tmp_path, "h", [{"text": "\u200b"}])
    config = {"domain": [source(tmp_path, "d", [{"text": story(1)}])], "heldout": {"domain": [held]}}
    with pytest.raises(DataError, match=r"heldout_domain has no row left: got 1 rows in, 1 dropped: empty 1"):
        run(tmp_path, config)
    held["path"] = tmp_path / "gone.jsonl"
    with pytest.raises(DataError, match=r"gone\.jsonl is missing"):
        run(tmp_path, config)
    with pytest.raises(DataError, match=r"gone\.jsonl is missing"):
        clean.externals(CleanConfig.model_validate(config))


def test_the_same_rows_from_another_folder_give_the_same_bytes_and_key(tmp_path: Path) -> None:
    seen = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        config = share_config(tmp_path / name, range(12))
        config["domain"].append(source(tmp_path / name, "bad", ['{"text', {"text": "Hi."}]))
        run(tmp_path / name, config)
        parsed = CleanConfig.model_validate(config)
        files = sorted((tmp_path / name / "out0").glob("*.parquet"))
        seen.append(
            (
                key_view(parsed),
                clean.externals(parsed),
                [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
            )
        )
    assert seen[0] == seen[1] and len(seen[0][2]) == len(FILES) + 1, "splits.parquet"


def seed_source(name: str, file: str) -> dict[str, Any]:
    return {"name": name, "path": SEED / file}


@pytest.mark.skipif(not (SEED / "pairs" / "heldout.jsonl").exists(), reason="data/seed is not there")
def test_the_seed_set_is_clean_and_its_held_out_part_is_apart(tmp_path: Path) -> None:
    lines = (SEED / "task" / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    answers = [candidate(number, '{"intent": "usage", "order_number": null, "reply": "%s"}' % ("好" if row["lang"] == "zh" else "Yes"),
                         prompt=row["prompt"], lang=row["lang"]) for number, row in enumerate(prompts)]  # fmt: skip
    found, metrics = run(tmp_path, {
        "task": SEED / "task" / "task.yaml",
        "domain": [seed_source("domain", "domain/train.jsonl")],
        "general": [seed_source("general", "general/train.jsonl")],
        "pairs": [seed_source("pairs", "pairs/train.jsonl")],
        "heldout": {
            "domain": [seed_source("domain-heldout", "domain/heldout.jsonl")],
            "general": [seed_source("general-heldout", "general/heldout.jsonl")],
            "prompts": [seed_source("prompts-heldout", "task/prompts_heldout.jsonl")],
            "pairs": [seed_source("pairs-heldout", "pairs/heldout.jsonl")],
        },
    }, answers)  # fmt: skip
    counted = metrics.rows.dump()
    assert all(counted["out"][name] == len(found[name]) for name in FILES if name != "dropped")
    for kind, name in (("domain", "corpus"), ("general", "general"), ("candidates", "chats"), ("pairs", "pairs")):
        assert len(found[name]) >= 0.95 * counted["in"][kind]
    guarded = [row.text for name in ("heldout_domain", "heldout_general") for row in found[name]]
    guarded += [row.prompt for row in found["heldout_prompts"]]
    trained = [row.text for name in ("corpus", "general") for row in found[name]]
    trained += [row.messages[1].content for row in found["chats"]] + [row.prompt[-1].content for row in found["pairs"]]
    assert not {fold(text) for text in guarded} & {fold(text) for text in trained}
    assert not near(trained, guarded)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_real_data_is_counted_in_and_out(tmp_path: Path) -> None:
    found, metrics = run(tmp_path, {
        "chats": [{"name": f"alpaca-{lang}", "path": REAL / f"alpaca_{lang}_demo.json"} for lang in ("en", "zh")],
        "pairs": [{"name": f"dpo-{lang}", "path": REAL / f"dpo_{lang}_demo.json"} for lang in ("en", "zh")],
        "domain": [{"name": "wiki", "path": REAL / "wiki_demo.txt"}],
        "general": [{"name": "c4", "path": REAL / "c4_demo.jsonl"}],
        "heldout": {"share": 0.1},
    })  # fmt: skip
    counted = metrics.rows.dump()
    assert counted["in"] == {"chats": 1011, "pairs": 306, "domain": 10, "general": 168}
    outs = {"chats": ("chats", "heldout_prompts"), "pairs": ("pairs", "heldout_pairs"), "domain": ("corpus", "heldout_domain"),
            "general": ("general", "heldout_general")}  # fmt: skip
    for kind, names in outs.items():
        dropped = counted["dropped"].get(kind, {})
        assert counted["in"][kind] == sum(len(found[name]) for name in names) + sum(dropped.values())
        assert sum(dropped.values()) <= 0.07 * counted["in"][kind]
        assert all(found[name] for name in names)
    assert len(found["dropped"]) == sum(sum(reasons.values()) for reasons in counted["dropped"].values())
    assert counted["dropped"]["chats"]["identity"] >= 10


# --- shards and resuming ---------------------------------------------------------------------------------------------


def mixed(tmp_path: Path) -> dict[str, Any]:
    """Every kind of row, good and bad, from candidates, several sources and a share."""
    config = share_config(tmp_path, range(14))
    bad = [
        '{"text',
        {"id": "1", "text": "Hi."},
        {"id": "1", "text": story(900)},
        {"text": "\u200b"},
        {"id": "0", "text": story(1)},
    ]
    config["domain"] += [
        source(tmp_path, "bad", bad),
        {**source(tmp_path, "cut", [{"text": story(n)} for n in range(50, 60)]), "limit": 7},
    ]
    config["general"] = [source(tmp_path, "plain", [{"text": story(n)} for n in range(200, 209)])]
    config["heldout"] = {"share": 0.3, "general": [source(tmp_path, "held", [{"text": story(203).upper()}])]}
    return config  # fmt: skip


def answers() -> list[Candidate]:
    good = [candidate(number, json.dumps({"reply": story(300 + number, 6)})) for number in range(5)]
    return [
        *good,
        candidate(7, '{"reply": "cut'),
        candidate(8, "{}", "truncated"),
        good[0].model_copy(update={"id": "d"}),
    ]


def work_in(out: Path, config: dict[str, Any], folder: Path | None = None) -> tuple[dict[str, bytes], Metrics]:
    """Run the step in ``out``, with what is kept there already; every file it wrote, and its metrics."""
    (out / ".resume").mkdir(parents=True, exist_ok=True)
    context = Context(log=logging.getLogger("clean"), seed=0, resume=out / ".resume", progress=plain, track=track)
    metrics = clean.run(CleanConfig.model_validate(config), candidates=folder, out=out, context=context)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}, metrics


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    folder = tmp_path / "generated"
    folder.mkdir()
    write_parquet(folder / "candidates.parquet", answers(), Candidate)
    return folder


def test_the_size_of_a_shard_changes_no_byte(tmp_path: Path, task: Path, generated: Path) -> None:
    config = {**mixed(tmp_path), "task": task}
    files, metrics = work_in(tmp_path / "whole", config, generated)
    assert len(files) == len(FILES) + 3 and len({row.reason for row in _dropped(tmp_path / "whole")}) >= 8
    for size in (1, 2, 3, 7, 14, 1000):
        again, more = work_in(tmp_path / f"by-{size}", {**config, "shard_rows": size}, generated)
        assert again == files and more.rows.dump() == metrics.rows.dump()
        differ = {name for name, value in more.values.items() if value != metrics.values[name]}
        assert differ <= {"units"} and (size > 14 or differ)
    assert key_view(CleanConfig.model_validate({"shard_rows": 3})) == key_view(CleanConfig())


def test_other_processes_give_the_same_bytes(tmp_path: Path, task: Path, generated: Path) -> None:
    """And a folder in which some shards were lost or damaged: these are made again, and nothing else."""
    config = {**mixed(tmp_path), "task": task, "shard_rows": 7}
    files, metrics = work_in(tmp_path / "one", {**config, "workers": 1}, generated)
    again, more = work_in(tmp_path / "two", {**config, "workers": 2}, generated)
    assert again == files and more.rows.dump() == metrics.rows.dump() and more.values == metrics.values
    shards = tmp_path / "one" / ".resume" / "shards"
    (shards / "domain-d-00001.npz").unlink()
    damaged = shards / "general-plain-00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    repaired, last = work_in(tmp_path / "one", {**config, "workers": 1}, generated)
    assert repaired == files and last.values["units_from_ledger"] == int(metrics.values["units"]) - 2


def test_a_reason_that_takes_too_much_is_a_warning_or_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "Hi."}] * 4 + [{"text": story(number)} for number in range(6)]
    config = {"domain": [source(tmp_path, "d", rows)]}
    _, metrics = run(tmp_path, config)
    assert metrics.values["warnings"] == 0
    _, metrics = run(tmp_path, {**config, "warn_share": 0.2})
    warning = "duplicate dropped 30.0% of domain: 3 of 10 rows"
    assert metrics.values["warnings"] == 1 and warning in caplog.text and warning in page(tmp_path, 1)
    run(tmp_path, {**config, "max_dropped_share": 0.4})
    with pytest.raises(
        DataError, match=r"too many rows of domain were dropped: got 40.0%, where .* allows 39.0%, because of 10 rows"
    ):
        run(tmp_path, {**config, "max_dropped_share": 0.39})


def page(tmp_path: Path, number: int) -> str:
    return (tmp_path / f"out{number}" / "report.html").read_text(encoding="utf-8")


def test_the_report_counts_every_row_and_cannot_be_written_into(tmp_path: Path) -> None:
    rows = [{"id": "<b>x", "text": "<script>1</script>"}, {"text": "短"}] + [{"text": story(n)} for n in range(8)]
    chats = [chat(story(n), story(100 + n)) for n in range(12)] + [
        chat("怎么退货？", "作为一个人工智能语言模型，我不知道。" + "长" * 300)
    ]
    config = {
        "domain": [source(tmp_path, "d", [*rows, '{"text'])],
        "chats": [source(tmp_path, "c", chats)],
        "heldout": {"share": 0.2},
    }
    found, metrics = run(tmp_path, config)
    html, out = page(tmp_path, 0), metrics.rows.rows_out
    assert "<script" not in html and "&lt;script&gt;1&lt;/script&gt;" in html and "&lt;b&gt;x" in html
    line = html.split("<td>domain</td><td>d</td>")[1].split("</tr>")[0]
    kept, held, dropped = out["corpus"], out["heldout_domain"], len(found["dropped"]) - 1
    assert dropped == 3
    assert [f'<td class="n">{n}</td>' in line for n in (11, kept, held, dropped)] == [True] * 4
    assert (
        "too_short" in html and "d.jsonl:11" in html and "作为一个人工智能语言模型" in html and "长" * 250 not in html
    )
    assert not [word for word in ("http:", "https:", "src=", "url(", "<link") if word in html], "it asks for nothing"


def _dropped(out: Path) -> list[Dropped]:
    return read_parquet(out / "dropped.parquet", Dropped)


def test_stopped_after_some_units_it_computes_only_the_others(
    tmp_path: Path, task: Path, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**mixed(tmp_path), "task": task, "shard_rows": 5}
    files, metrics = work_in(tmp_path / "whole", config, generated)
    total = int(metrics.values["units"])
    assert total > 25 and metrics.values["units_from_ledger"] == 0
    real = WorkLedger.recall

    def stopping(self: WorkLedger, content: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        if self.computed == limit:
            raise Resumable("stopped")
        return real(self, content, compute)

    for limit in range(0, total, 11):
        with monkeypatch.context() as patch, pytest.raises(Resumable):
            patch.setattr(WorkLedger, "recall", stopping)
            work_in(tmp_path / str(limit), config, generated)
        again, more = work_in(tmp_path / str(limit), config, generated)
        assert again == files and more.values == {**metrics.values, "units_from_ledger": limit}


def test_a_signal_while_the_last_file_is_closed_stops_it(
    tmp_path: Path, task: Path, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last unit and the end of the block that listens for signals."""
    config = {**mixed(tmp_path), "task": task}
    real = WorkLedger.__exit__

    def told(self: WorkLedger, *error: Any) -> None:
        real(self, *error)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Resumable, match="stopped by SIGTERM"):
        patch.setattr(WorkLedger, "__exit__", told)
        work_in(tmp_path / "cut", config, generated)
    assert work_in(tmp_path / "cut", config, generated)[0] == work_in(tmp_path / "whole", config, generated)[0]


@pytest.mark.parametrize("change", ["filters", "source", "suffix", "lang", "task", "rules", "guard", "near", "share"])
def test_nothing_stale_is_taken_from_a_folder_that_was_used_for_something_else(
    tmp_path: Path, task: Path, generated: Path, change: str
) -> None:
    config = {**mixed(tmp_path), "task": task, "shard_rows": 5}
    before, _ = work_in(tmp_path / "out", config, generated)
    if change == "filters":
        config["filters"] = {"text_min_chars": 1, "word_ratio": None}
    elif change == "source":
        config["domain"][0] = source(tmp_path, "d", [{"text": story(number)} for number in range(700, 720)])
    elif change == "suffix":
        config["general"][0]["path"] = (tmp_path / "plain.jsonl").rename(tmp_path / "plain.txt")
    elif change == "lang":
        config["general"][0]["lang"] = "other"
    elif change == "task":
        task.write_text(task.read_text().replace("Answer in JSON.", "JSON only."))
    elif change == "rules":
        config["check_rules"] = []
    elif change == "guard":
        config["near_heldout"] = None
    elif change == "near":
        config["near_duplicate"] = {"corpus": 0.2}
    else:
        config["heldout"]["share"] = 0.6
    after, _ = work_in(tmp_path / "out", config, generated)
    fresh, _ = work_in(tmp_path / "fresh", config, generated)
    assert after == fresh != before


def test_the_ending_of_a_file_is_in_the_key(tmp_path: Path) -> None:
    """The same bytes are other rows in .txt than in .jsonl; another folder or name changes nothing."""
    rows = source(tmp_path, "rows", [{"text": story(1)}])
    keys = []
    for name in ("rows.jsonl", "other.jsonl", "rows.txt"):
        (tmp_path / name).write_bytes((tmp_path / "rows.jsonl").read_bytes())
        keys.append(clean.externals(CleanConfig.model_validate({"domain": [{**rows, "path": tmp_path / name}]})))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.fault
@pytest.mark.parametrize(("kills", "terms"), [(5, 1), pytest.param(60, 30, marks=pytest.mark.long)])
def test_cut_off_anywhere_it_goes_on_to_the_same_bytes(
    tmp_path: Path, task: Path, generated: Path, kills: int, terms: int
) -> None:
    config = {**mixed(tmp_path), "task": task, "shard_rows": 5}
    (tmp_path / "clean.json").write_text(CleanConfig.model_validate(config).model_dump_json())
    Artifact.read(made_artifact(generated))
    jobs: list[cuts.Job] = []
    for number, (cut, by) in enumerate([(None, ""), *cuts.spread(kills, terms)]):
        out = tmp_path / str(number) / "clean" / "x"
        words = ["--config", str(tmp_path / "clean.json"), "--candidates", str(generated), "--out", str(out)]
        jobs.append(cuts.Job(str(out.parents[1]), words, str(out), cut, by))
    outcomes = cuts.run("clean", jobs, "pandas", "numpy")
    assert [outcome for outcome in outcomes if outcome.code] == []
    undisturbed, *others = [Artifact.read(Path(job.out)) for job in jobs]
    total, done = undisturbed.manifest["metrics"]["units"], []
    for job, found, artifact in zip(jobs[1:], outcomes[1:], others, strict=True):
        assert found.ended in ((-signal.SIGKILL,) if job.signal == "SIGKILL" else (75, 0)), found
        assert artifact.digest == undisturbed.digest
        for name, facts in undisturbed.manifest["files"].items():
            assert name.startswith("record/") or artifact.manifest["files"][name]["sha256"] == facts["sha256"], name
        done.append(found.held.get("work", 0))
        if found.ended and done[-1]:
            metrics = artifact.manifest["metrics"]
            assert metrics["units"] == total and metrics["units_from_ledger"] == done[-1], "computed = total - done"
    assert done[0] == 0 and len(set(done)) > kills // 2, "the cuts lie in different units"


def made_artifact(folder: Path) -> Path:
    """Close a folder as an artifact of ``generate``."""
    files = {path.name: {"size": path.stat().st_size, "sha256": digest_file(path)} for path in folder.iterdir()}
    manifest = {
        "key": "generate/x",
        "step": "generate",
        "digest": "g",
        "inputs": {},
        "files": files,
        "rows": {"in": {}},
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": seal(manifest)}))
    return folder
