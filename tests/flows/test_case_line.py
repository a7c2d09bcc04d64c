"""Bad cases through the whole line: what is held out is in no training artifact, and personal data is in no file at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault.micro import in_this_process, walk
from minimal import Line

from steps.lib.facts import fold
from steps.lib.report import read
from steps.lib.rows import BadCase, Pair, Prompt, Text, read_parquet

pytestmark = pytest.mark.tiny

SECRETS = (
    "13912345678",
    "ann.lee@bluecorp.cn",
    "11010519491231002X",
    "sk-proj-Zq4T8vXn2LbR7mKd9WyH3cJf6PsA1eGu",
    "user-raw-77",
)
WISHES = (
    "the oven door does not close since the fitter was here", "我家的洗碗机每次都漏水", "please cancel my standing order of filters",
    "空调外机夜里响得像拖拉机", "which lamp fits a kettle of nineteen centimetres", "发票抬头写错了公司名字", "the parcel went to a neighbour who moved away",
    "冰箱第三层结冰拉不开", "can I pay half now and half at Easter", "电饭锅内胆刮花想换新", "your app logs me out whenever I turn the phone",
    "退货地址到底在哪个仓库",
)  # fmt: skip


def event(number: int, wish: str) -> dict[str, Any]:
    """A bad answer with personal data at every place where a person may write."""
    words = f"{wish}; {', '.join(SECRETS[:4])}"
    return {
        "schema_version": "badcase.v1", "case_id": f"case-{number:03}", "event_id": f"event-{number:03}", "ts": f"2026-09-{number + 1:02}T08:00:00+00:00",
        "source": "desk", "user_id": SECRETS[4], "model": {"name": "aftersales", "version_digest": "v0001"},
        "request": {"messages": [{"role": "user", "content": words}]}, "response": {"text": f"No idea about {words}"},
        "signal": {"kind": "thumb", "annotator_kind": "human_user", "value": -1}, "comment": words, "severity": "critical" if number % 3 else "minor",
        "expected": {"must": ["intent"], "reference": words}, "consent": True, "licence": "Apache-2.0", "status": "accepted",
        "correction": {"text": json.dumps({"intent": "other", "order_number": None, "reply": words}, ensure_ascii=False), "author_kind": "human_expert"},
    }  # fmt: skip


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file as text, packed ones unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield path, json.dumps(pq.read_table(path).to_pylist(), ensure_ascii=False, default=str)
        elif path.suffix == ".zst":
            with pa.CompressedInputStream(str(path), "zstd") as file:
                yield path, file.read().decode()
        elif path.is_file():
            yield path, path.read_bytes().decode("utf-8", errors="replace")


def test_what_is_held_out_is_trained_on_nowhere_and_nobody_is_named(
    minimal_line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFLINE_USER_KEY", "a key of thirty-two characters!!")
    line = minimal_line.copy(tmp_path / "line")
    source = tmp_path / "events.jsonl"
    source.write_text("".join(json.dumps(event(n, wish), ensure_ascii=False) + "\n" for n, wish in enumerate(WISHES)))
    section = {"sources": [{"name": "desk", "path": str(source)}], "holdout": 40, "max_per_user": None}
    words = [
        f"badcases={json.dumps(section)}",
        "pairs.sources=[{kind: policy}, {kind: teacher}, {kind: imported}, {kind: badcases}]",
    ]
    words += ["pairs.lint.max_separable=null", "pairs.lint.max_longer_share=null", "pairs.lint.max_length_ratio=null"]
    with in_this_process():
        cases = walk(line, *words)["badcases"].artifact.path
        held = read_parquet(cases / "holdout.parquet", BadCase)
        train = read_parquet(cases / "train.parquet", BadCase)
        assert len(held) > 2 and len(train) > 2 and all("<PHONE_1>" in case.prompt[0].content for case in held)
        # The same requests come by another way, too: as pairs of somebody and as documents.
        for name, rows in {
            "pairs-train": [json.dumps({"id": f"copy-{case.id}", "prompt": case.prompt[0].content, "chosen": "Yes, of course.", "rejected": "No."}, ensure_ascii=False) for case in held],
            "domain-train": [json.dumps({"id": f"text-{case.id}", "text": f"Heard today: {case.prompt[0].content}. So it goes."}, ensure_ascii=False) for case in held],
        }.items():  # fmt: skip
            with (line.folder / f"{name}.jsonl").open("a") as file:
                file.writelines(row + "\n" for row in rows)
        found = walk(line, *words)
    data = found["clean"].artifact
    dropped = data.manifest["rows"]["dropped"]
    assert sum(dropped["pairs"].values()) == sum(dropped["domain"].values()) == len(held), dropped
    marks = [fold(case.prompt[0].content) for case in held]
    made_of = {"generate", "clean", "pairs", "reference", "dpo", "sft", "pretrain"}
    for step in made_of:
        for path, text in texts(found[step].artifact.path):
            if path.name != "dropped.parquet" and "record" not in path.parts:
                assert not [mark for mark in marks if mark in fold(text)], path
    assert any(pair.source == "badcases" for pair in read_parquet(found["pairs"].artifact.path / "pairs.parquet", Pair))
    assert read_parquet(data.path / "heldout_prompts.parquet", Prompt) and read_parquet(
        data.path / "corpus.parquet", Text
    )
    assert {one.id for one in read(found["evaluate"].artifact.path).cases} <= {case.id for case in held}
    seen = [*texts(line.folder / "store"), *texts(line.folder / "registry"), (Path("log"), caplog.text)]
    named = {(path.name, secret) for path, text in seen for secret in SECRETS if secret in text}
    assert not named, "in no artifact, ledger, card, report or line of the log"
    assert len(seen) > 80 and any(path.name == "README.md" for path, _ in seen)
