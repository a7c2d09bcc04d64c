"""What clean holds rows to beyond its first filters, from the configuration to the files: personal data, benchmarks, records of
splits, mixes, semantic copies, lengths in tokens, toxic words, repairs.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_clean import candidate, plain, put, run, source, story, track, why, work_in

from steps import clean
from steps.clean import CleanConfig
from steps.lib import tiny
from steps.lib.config import key_view
from steps.lib.errors import DataError
from steps.lib.rows import Text, read_parquet
from steps.lib.splits import read_records
from steps.lib.step import Context

PHONE, MAIL = "13912345678", "li.ming@corp.cn"
ZH = "星期一的水深是十七英尺，星期二比星期一多了七英尺，星期三是星期二的三分之二，请问星期三的水深是多少英尺？请写出步骤。"


def held(tmp_path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"domain": [source(tmp_path, "held", rows or [{"id": "h", "text": story(90)}])]}


def everything_written(out: Path) -> bytes:
    """All bytes of the files, Parquet uncompressed."""
    import pyarrow.parquet as pq

    found = b"".join(path.read_bytes() for path in out.iterdir() if path.suffix != ".parquet" and path.is_file())
    tables = [str(pq.read_table(path).to_pylist()) for path in out.glob("*.parquet")]
    return found + "".join(tables).encode()


def test_personal_data_is_in_no_file(tmp_path: Path) -> None:
    """Of rows that are kept, held out, dropped by a filter, dropped as copies, and not readable."""
    documents = [
        {"id": "kept", "text": f"{story(1)} Call {PHONE} or write to {MAIL}, or call {PHONE} again."},
        {"id": "copy", "text": f"{story(1)} Call 13812345679 or write to {MAIL}, or call 13812345679 again."},
        {"id": "short", "text": f"Call {PHONE}!"},
        {"id": "bad", "text": 5, "phone": PHONE},
        f'{{"text": "cut off {MAIL}',
    ]
    found, metrics = run(
        tmp_path,
        {"domain": [source(tmp_path, "d", documents)],
         "heldout": held(tmp_path, {"id": "h", "text": f"{story(90)} {MAIL}"})},
        [candidate(1, f"Your number is {PHONE}. {story(4, 10)}", prompt=f"我的电话是{PHONE}。 {story(3, 10)}")],
    )  # fmt: skip
    assert found["corpus"][0].text.endswith("Call <PHONE_1> or write to <EMAIL_1>, or call <PHONE_1> again.")
    assert [turn.content[:24] for turn in found["chats"][0].messages] == [
        "我的电话是<PHONE_1>。 " + story(3, 10)[:8],
        "Your number is <PHONE_1>",
    ]
    assert found["heldout_domain"][0].text.endswith("<EMAIL_1>")
    assert why(found) == {"short": "too_short", "d-4": "wrong_type", "d-5": "json", "copy": "duplicate"}
    assert metrics.values["redacted/phone"] == 7 and metrics.values["redacted/email"] == 3
    written = everything_written(tmp_path / "out0")
    assert b"PHONE_1" in written and not any(one.encode() in written for one in (PHONE, MAIL, "13812345679"))


def test_a_type_may_drop_its_rows_and_dropped_rows_may_stay_raw(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": f"{story(1)} {PHONE}"}, {"id": "b", "text": f"{story(2)} {MAIL}"}]
    config = {"domain": [source(tmp_path, "d", rows)], "heldout": held(tmp_path)}
    found, _ = run(tmp_path, {**config, "personal": {"phone": "drop", "email": "keep"}})
    [dropped] = found["dropped"]
    assert (dropped.id, dropped.reason) == ("a", "personal:phone") and PHONE not in dropped.row + dropped.detail
    assert found["corpus"][0].text.endswith(MAIL)
    raw, _ = run(tmp_path, {"domain": [source(tmp_path, "r", [*rows, f"{{{PHONE}"])], "personal": {"keep_raw": True}})
    assert PHONE in raw["dropped"][0].row


def test_what_holds_a_benchmark_is_dropped_with_its_name(tmp_path: Path) -> None:
    quiz = put(tmp_path / "quiz.jsonl", [{"q": ZH, "a": "二十四"}, {"q": story(50), "a": "A"}])
    documents = [{"id": "zh", "text": f"前言。{ZH}后记也不短，说的是别的事情。" + "".join(map(chr, range(0x5000, 0x50f0)))}, {"id": "en", "text": f"{story(1)} {story(50)} {story(2)}"},
                 {"id": "fine", "text": story(7)}]  # fmt: skip
    config = {
        "domain": [source(tmp_path, "d", documents)],
        "decontaminate": {"benchmarks": [{"name": "quiz", "path": quiz}]},
    }
    answers = [candidate(1, "二十四英尺，因为三分之二。", prompt=ZH, lang="zh"), candidate(2, "A")]
    found, metrics = run(tmp_path, config, answers)
    assert why(found) == {"zh": "contaminated", "en": "contaminated", "c1": "near_heldout"}
    details = {row.id: json.loads(row.detail) for row in found["dropped"]}
    assert (
        details["zh"]["guard_id"] == "quiz:1/q"
        and details["en"]["guard_id"] == "quiz:2/q"
        and details["en"]["share"] == 1
    )
    assert details["c1"]["heldout_id"] == "quiz:1/q" and [row.id for row in found["chats"]] == ["c2"]
    assert metrics.rows.dump()["in"] == {"domain": 3, "candidates": 2, "chats": 2}, "the guard is no data"
    one = clean.externals(CleanConfig.model_validate(config))
    put(quiz, [{"q": ZH, "a": "二十五"}])
    assert one != clean.externals(CleanConfig.model_validate(config)), "its content is in the key"
    loose, _ = run(tmp_path, {**config, "decontaminate": None}, answers)
    assert {row.id for row in loose["corpus"]} == {"zh", "en", "fine"}


def test_a_guard_that_is_missing_stops_before_anything_is_read(tmp_path: Path) -> None:
    bad = put(tmp_path / "bad.jsonl", ['{"q": "x"', {"q": ZH}])
    config = {
        "domain": [{"name": "d", "path": put(tmp_path / "d.jsonl", [])}],
        "decontaminate": {"benchmarks": [{"name": "quiz", "path": bad}]},
    }
    with pytest.raises(DataError, match=r"(?s)d.jsonl is empty.*benchmark quiz .*is not readable whole: got line 1"):
        run(tmp_path, config)
    gone = {"benchmarks": [{"name": "gone", "path": tmp_path / "gone.jsonl"}]}
    with pytest.raises(DataError, match="gone.jsonl"):
        clean.externals(CleanConfig.model_validate({"decontaminate": gone}))


def test_a_folder_used_again_with_other_limits_has_no_old_guard(tmp_path: Path) -> None:
    """What 13-grams are boilerplate decides the table that workers read, not the benchmark alone."""
    quiz = put(tmp_path / "quiz.jsonl", [{"q": f"{story(50)} {story(number)}"} for number in range(51, 55)])
    documents = [{"id": "shared", "text": f"{story(50)} {story(1)}"}, {"id": "fine", "text": story(7)}]
    config: dict[str, Any] = {"domain": [source(tmp_path, "d", documents)], "near_heldout": None}
    kept = []
    for boilerplate in (1, 10, 1):
        guard = {"benchmarks": [{"name": "quiz", "path": quiz}], "boilerplate": boilerplate}
        work_in(tmp_path / "out", {**config, "decontaminate": guard})
        kept.append([row.id for row in read_parquet(tmp_path / "out" / "corpus.parquet", Text)])
    assert kept == [["shared", "fine"], ["fine"], ["shared", "fine"]]


def test_a_copy_does_not_give_way_to_a_row_that_a_filter_drops(tmp_path: Path) -> None:
    """Copies differ by white space and case, which filters may see."""
    lines = story(1).replace(" ", "\n")
    rows = [
        {"id": "lines", "text": lines},
        {"id": "prose", "text": story(1)},
        {"id": "again", "text": story(1).upper()},
    ]
    short = {"filters": {"short_lines": 0.5}}
    found, _ = run(tmp_path, {"domain": [source(tmp_path, "d", rows)], **short})
    assert [row.id for row in found["corpus"]] == ["prose"]
    assert [json.loads(row.detail) for row in found["dropped"]] == [{"kept_id": "prose"}] * 2
    found, _ = run(
        tmp_path,
        {
            "domain": [source(tmp_path, "e", [rows[0], {"id": "too", "text": lines.upper()}, {"text": story(2)}])],
            **short,
        },
    )
    assert why(found) == {"too": "duplicate", "lines": "short_lines"}, "of copies that all fail the first tells why"


def test_with_a_record_no_old_row_changes_sides(tmp_path: Path) -> None:
    first = [{"id": f"t{number}", "text": story(number)} for number in range(40)]
    config: dict[str, Any] = {"domain": [source(tmp_path, "d", first)], "heldout": {"share": 0.3}}
    found, _ = run(tmp_path, config)
    sides = {row.text: name for name in ("corpus", "heldout_domain") for row in found[name]}
    assert Counter(sides.values()).keys() == {"corpus", "heldout_domain"}
    record = tmp_path / "out0" / "splits.parquet"
    assert len(read_records(record)["domain"].digests) == 40
    joins = [f"{row['text']} {story(200)[:30]}" for row in first[::3]]  # near to an old row
    more = [
        *first,
        *({"id": f"n{number}", "text": text} for number, text in enumerate([*joins, *map(story, range(100, 140))])),
    ]
    config["domain"] = [source(tmp_path, "d", more)]
    config["near_duplicate"] = {"corpus": None}
    again, _ = run(tmp_path, {**config, "heldout": {"share": 0.3, "record": record}})
    now = {row.text: name for name in ("corpus", "heldout_domain") for row in again[name]}
    assert {text: now[text] for text in sides} == sides
    assert any(text not in sides and name == "heldout_domain" for text, name in now.items())
    other = {"general": [source(tmp_path, "g", [{"text": story(number)} for number in range(300, 310)])]}
    run(tmp_path, {**other, "heldout": {"share": 0.3, "record": record}})
    kinds = set(read_records(tmp_path / "out2" / "splits.parquet"))
    assert kinds == {"domain", "general"}, "what is not split now stays on record"
    keys = [
        key_view(CleanConfig.model_validate({**config, "heldout": {"share": 0.3, "record": path}}))
        for path in (record, None)
    ]
    told = clean.externals(CleanConfig.model_validate({**config, "heldout": {"share": 0.3, "record": record}}))
    assert keys[0] == keys[1] and "heldout_record" in told, "by content, not by path"
    with pytest.raises(ValidationError, match="is of no use with share 0"):
        CleanConfig.model_validate({"heldout": {"record": record}})


def test_a_mix_gives_exact_shares_and_says_what_it_left(tmp_path: Path) -> None:
    sources = [source(tmp_path, name, [{"text": story(start + number)} for number in range(count)])
               for name, start, count in (("wiki", 0, 30), ("c4", 100, 20))]  # fmt: skip
    config: dict[str, Any] = {"general": sources, "mix": {"general": {"weights": {"wiki": 1, "c4": 3}, "rows": 20}}}
    found, metrics = run(tmp_path, config)
    assert Counter(row.source for row in found["general"]) == {"wiki": 5, "c4": 15}
    assert metrics.rows.dump()["dropped"] == {"general": {"mix_surplus": 30}}
    with pytest.raises(DataError, match="clean.mix.general: source c4 has too few rows for the mix: got 20"):
        run(tmp_path, {**config, "mix": {"general": {"weights": {"wiki": 1, "c4": 3}, "rows": 40}}})
    wrong = {"general": {"weights": {"wiki": 1, "c5": 3}}, "chats": {"weights": {"candidates": 1}}}
    with pytest.raises(DataError) as caught:
        run(tmp_path, {**config, "mix": wrong, "domain": [source(tmp_path, "void", [])]})
    for said in ("void.jsonl is empty", "general: mix has no weight for source c4", "to c5: got sources wiki, c4",
                 "clean.mix.chats: mix gives a weight to candidates: got sources none"):  # fmt: skip
        assert said in str(caught.value), "all at once, and before anything is cleaned"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    tiny.build_tokenizer([ZH, story(1), story(2)], tiny.TinyConfig(vocab_size=400)).save_pretrained(folder)
    return folder


def test_lengths_are_counted_in_tokens_of_the_student(tmp_path: Path, tokenizer: Path) -> None:
    rows = [
        {"id": "long", "text": story(1) + story(4) + story(5)},
        {"id": "fits", "text": story(2)},
        {"id": "mark", "text": f"{story(3)} <|im_end|> x"},
    ]
    config = {
        "domain": [source(tmp_path, "d", rows)],
        "filters": {"special_tokens": False},
        "student": {"tokenizer": str(tokenizer), "text_max_tokens": 700},
    }
    found, _ = run(tmp_path, config)
    assert why(found) == {"long": "too_many_tokens"}
    marked, _ = run(tmp_path, {**config, "filters": {}})
    assert why(marked) == {"long": "too_many_tokens", "mark": "special_token"}
    assert clean.externals(CleanConfig.model_validate(config))["student"]


def test_rows_that_say_the_same_in_other_words(tmp_path: Path, tokenizer: Path) -> None:
    """A model that reads only the first tokens takes texts with one beginning for the same; nothing else in clean does."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path / "encoder"
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    BertModel(
        BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                   max_position_embeddings=2048, initializer_range=0.5)
    ).save_pretrained(folder)  # fmt: skip
    words.save_pretrained(folder)
    rows = [
        {"id": "a", "text": story(1)},
        {"id": "b", "text": story(2)},
        {"id": "c", "text": story(1).replace(" ", "-", 3)},
    ]
    base = {"domain": [source(tmp_path, "d", rows)], "near_duplicate": {"corpus": None}}
    found, _ = run(tmp_path, {**base, "semantic": {"model": str(folder), "threshold": 0.2}})
    assert [row.id for row in found["corpus"]] == ["a"] and set(why(found).values()) == {"semantic_duplicate"}
    details = [json.loads(row.detail) for row in found["dropped"]]
    assert all(one["kept_id"] == "a" and one["cosine"] >= 0.2 for one in details)
    thumbs = [
        {"id": str(number), "prompt": "Is it?", "completion": story(number), "label": number % 2 == 0}
        for number in range(4)
    ]
    judged = {"thumbs": [source(tmp_path, "t", thumbs)], "semantic": {"model": str(folder), "threshold": 0.2}}
    apart, _ = run(tmp_path, judged)
    assert why(apart) == {"2": "semantic_duplicate", "3": "semantic_duplicate"}, "one of each verdict stays"
    strict, _ = run(tmp_path, {**base, "semantic": {"model": str(folder), "threshold": 1.0}})
    assert len(strict["corpus"]) == 3
    assert "semantic" in clean.externals(CleanConfig.model_validate({"semantic": {"model": str(folder)}}))


def test_content_rules_and_toxic_words(tmp_path: Path) -> None:
    documents = [
        {"id": "rude", "text": f"{story(1)} You asshole."},
        {"id": "tags", "text": "<div><p>" + story(2).replace(" ", "</p>. <p>", 12) + "</p></div>"},
    ]
    answers = [
        candidate(1, story(1, 12) + "!"),
        candidate(2, '```json\n{"a": 1,\n```', prompt="Give me JSON only, please."),
    ]
    config = {
        "domain": [source(tmp_path, "d", [*documents, {"id": "fine", "text": story(3)}])],
        "toxicity": {"words": 0},
    }
    found, _ = run(tmp_path, config, [*answers, candidate(3, story(8, 10))])
    reasons = why(found)
    assert reasons["rude"] == "toxic_words" and reasons["tags"] == "markup"
    assert reasons["c1"] in ("echo", "near_echo") and reasons["c2"] == "bad_json"
    off = {"content": {"markup": None, "near_echo": False, "bad_json": False}, "filters": {"echo": False}}
    found, _ = run(tmp_path, {**config, "toxicity": {}, **off}, answers)
    assert why(found) == {}


def test_repairs_are_counted(tmp_path: Path) -> None:
    broken = f"{story(1)} It’s a café.".encode().decode("cp1252")
    found, metrics = run(
        tmp_path, {"domain": [source(tmp_path, "d", [{"text": broken}, {"text": f"a\u200b{story(2)}\u202e"}])]}
    )
    assert found["corpus"][0].text.endswith("It’s a café.")
    told = {name: value for name, value in metrics.values.items() if name.startswith("repaired/")}
    assert told == {"repaired/bidi": 1, "repaired/mojibake": 1, "repaired/zero_width": 1}
    page = (tmp_path / "out0" / "report.html").read_text(encoding="utf-8")
    assert "repaired/mojibake" in page


def test_a_batch_or_a_process_more_changes_no_byte(tmp_path: Path) -> None:
    """Every rule is on; shards of three sizes, one process and two."""
    quiz = put(tmp_path / "quiz.jsonl", [{"q": story(5)}])
    rows = [
        {"id": f"t{n}", "text": f"{story(n)} {PHONE if n % 3 else MAIL} {story(5) if n == 7 else ''}"}
        for n in range(24)
    ]
    rows[11]["text"] = rows[10]["text"] + " And more."
    config = {
        "domain": [source(tmp_path, "d", rows)], "heldout": {"share": 0.2}, "toxicity": {"words": 1.0},
        "decontaminate": {"benchmarks": [{"name": "quiz", "path": quiz}]}, "mix": {"domain": {"weights": {"d": 1}, "rows": 10}},
    }  # fmt: skip
    seen = []
    for number, (size, workers) in enumerate(((1000, 1), (5, 1), (7, 2))):
        out = tmp_path / f"o{number}"
        (out / "resume").mkdir(parents=True)
        context = Context(log=logging.getLogger("clean"), seed=0, resume=out / "resume", progress=plain, track=track)
        clean.run(
            CleanConfig.model_validate({**config, "shard_rows": size, "workers": workers}), out=out, context=context
        )
        seen.append({path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()})
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) >= 10


def test_held_out_rows_are_held_to_no_rule(tmp_path: Path) -> None:
    rows = [{"id": "h1", "text": "short"}, {"id": "h2", "text": "#…" * 50}]
    found, _ = run(
        tmp_path, {"domain": [source(tmp_path, "d", [{"text": story(1)}])], "heldout": held(tmp_path, *rows)}
    )
    assert found["heldout_domain"] == [
        Text(id="h1", lang="en", source="held", text="short"),
        Text(id="h2", source="held", text="#…" * 50),
    ]


def test_fields_that_change_with_others_are_in_the_key(tmp_path: Path, tokenizer: Path) -> None:
    """Those that tests/flows/test_key_fields.py cannot change alone."""
    (tmp_path / "many").mkdir()
    put(tmp_path / "many" / "a.jsonl", [{"text": story(1)}])
    put(tmp_path / "many" / "b.jsonl", [{"text": story(2)}])
    (tmp_path / "cells.csv").write_text("text;more,more still\nx;y,z\n", encoding="utf-8")
    folder, cells = (
        {"name": "d", "path": tmp_path / "many"},
        {"name": "d", "path": tmp_path / "cells.csv", "columns": {"text": "text"}},
    )
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"domain": [folder]}, {"domain": [{**folder, "files": "a*"}]}),
        ({"domain": [{**cells, "delimiter": ";"}]}, {"domain": [{**cells, "delimiter": ","}]}),
        ({}, {"mix": {"domain": {"weights": {"d": 1}}}}),
        ({"mix": {"domain": {"weights": {"d": 1}}}}, {"mix": {"domain": {"weights": {"d": 1}, "rows": 3}}}),
        ({}, {"student": {"tokenizer": str(tokenizer)}}),
        *(
            ({"student": {"tokenizer": str(tokenizer)}}, {"student": {"tokenizer": str(tokenizer), f"{kind}_{side}_tokens": 9}})
            for kind in ("text", "chat") for side in ("min", "max")
        ),
    ]  # fmt: skip
    for before, after in changes:
        one, other = (
            (key_view(config), clean.externals(config)) for config in map(CleanConfig.model_validate, (before, after))
        )
        assert one != other, after
