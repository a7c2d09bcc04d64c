"""What a run shows in Prefect: tables and pictures of what a step wrote, without a server."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import example_report
import pytest

from flows import present
from flows.engine import Outcome
from steps.lib import report, verdict_page
from steps.lib.artifact import Artifact


def artifact(folder: Path, step: str) -> Artifact:
    folder.mkdir(exist_ok=True)
    manifest = {
        "key": f"{step}/{'1a' * 10}",
        "seconds": 1.5,
        "host": "h",
        "metrics": {"loss": 0.5},
        "rows": {"in": {}, "out": {}, "dropped": {}},
    }
    return Artifact(folder, manifest)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    found = artifact(tmp_path_factory.mktemp("evaluate"), "evaluate")
    report.write(example_report.report(example_report.items(30)), found.path)
    return found


@pytest.fixture
def promoted(evaluated: Artifact, tmp_path: Path) -> Artifact:
    found = artifact(tmp_path / "promote", "promote")
    verdict = example_report.verdict("reject")
    (found.path / "verdict.json").write_text(verdict.model_dump_json())
    verdict_page.write(verdict, report.read(evaluated.path), found.path)
    return found


def image(address: str) -> ElementTree.Element:
    kind, _, data = address.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(data))


def test_the_figures_are_a_table(evaluated: Artifact) -> None:
    rows = present.figures(evaluated)
    assert len(rows) == 6 and {tuple(row) for row in rows} == {("figure", *example_report.CHAIN, "n", "better")}
    rule = next(row for row in rows if row["figure"] == "Rule score 规则得分")
    assert rule["dpo"].endswith(" %)") and " to " in rule["dpo"] and "\u00a0" not in rule["dpo"] and rule["n"] == 30
    assert next(row for row in rows if "implicit" in row["figure"])["base"] == ""


def test_the_gate_is_a_table(promoted: Artifact) -> None:
    rows = present.gate(promoted)
    assert rows[0] == {"check": "verdict", "result": "reject", "reason": "dpo against champion 1a2b3c4d5e6f"}
    assert [row["check"] for row in rows[1:3]] == ["rule_score (primary)", "general_bits_per_byte (guard)"]
    assert [row["result"] for row in rows[1:3]] == ["fail", "pass"] and rows[3]["reason"] == "a sentence of its own"


def test_training_and_evaluation_have_a_picture(evaluated: Artifact, tmp_path: Path) -> None:
    assert "Domain text" in (image(present.picture(evaluated)).get("aria-label") or "")
    trained = artifact(tmp_path / "sft", "sft")
    assert present.picture(trained) == "", "nothing was logged"
    (trained.path / "record").mkdir()
    lines = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    (trained.path / "record" / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert image(present.picture(trained)).get("aria-label") == "sft: loss 损失"


def test_what_was_not_written_is_not_shown(tmp_path: Path) -> None:
    empty = artifact(tmp_path / "evaluate", "evaluate")
    assert (present.figures(empty), present.gate(empty), present.picture(empty)) == ([], [], "")
    (empty.path / "verdict.json").write_text("{}")
    assert present.gate(empty) == []


def test_the_page_of_promote_stands_for_that_of_evaluate(evaluated: Artifact, promoted: Artifact) -> None:
    both = [Outcome("evaluate", evaluated, True, 0.1), Outcome("promote", promoted, False, 2.0)]
    text = present.table(both)
    assert text.count("## All figures") == 1 and "## Rejected" in text and "| promote | built | 2.0 |" in text
    alone = present.table(both[:1])
    assert "## All figures" in alone and "## Rejected" not in alone
