"""Teachers' corrections of bad cases: only what keeps the rules and convinces a judge in both orders becomes a pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judges import FENCED
from minimal import context
from openai_server import Act, Server, serve

from steps import badcases, correct
from steps.badcases import BadcasesConfig
from steps.correct import CorrectConfig
from steps.lib.rows import Dropped, Pair, Thumb, read_parquet
from steps.lib.step import Metrics

WISHES = {
    "good": "how long may the steam iron stay on the board",
    "place": "我的扫地机昨天掉进鱼缸里了还能救吗",
    "worse": "which bulb goes into a fridge of nineteen ninety",
    "broken": "阳台洗衣机冬天结冰要紧吗",
    "same": "does your desk open on a Sunday in May",
    "held": "烤箱门的密封条在哪里买",
}
"""Name of a case -> its request. What the teacher and the judge do with each is in ``decide``."""


def event(name: str, wish: str) -> dict[str, Any]:
    return {
        "case_id": name, "event_id": f"{name}-a", "ts": "2026-09-01T00:00:00Z", "comment": "too short",
        "request": {"messages": [{"role": "user", "content": wish}]}, "response": {"text": f"No idea about {name}."},
        "signal": {"kind": "thumb", "value": -1}, "model": {"name": "aftersales", "version_digest": "v1"},
        "expected": {"must": ["minutes"]},
    }  # fmt: skip


def decide(number: int, body: dict[str, Any]) -> Act:
    """The teacher's request shows two fenced texts or more, the judge's three: prompt and two answers."""
    said = body["messages"][-1]["content"]
    name = next(name for name, wish in WISHES.items() if wish in said)
    if "verdict" not in said:
        return Act({"broken": "Ask somebody.", "same": f"No idea about {name}."}.get(name, f"Ten minutes, for {name}."))
    first, second = [text for _, text in FENCED.findall(said)][1:3]
    better = "A" if "minutes" in first else "B"
    choice = {"place": "A", "worse": "B" if better == "A" else "A"}.get(name, better)
    assert second
    return Act(json.dumps({"verdict": choice}))


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(decide) as one:
        yield one


def cases(tmp: Path, *names: str) -> Path:
    """An artifact of the step badcases: all on the training side but ``held``."""
    path = tmp / "events.jsonl"
    path.write_text("".join(json.dumps(event(n, WISHES[n]), ensure_ascii=False) + "\n" for n in names))
    out = tmp / "cases"
    config = {"sources": [{"name": "s", "path": str(path)}], "holdout": 0}
    badcases.run(BadcasesConfig.model_validate(config), out=out, context=context(out))
    return out


def corrected(server: Server, tmp: Path, folder: Path, **more: Any) -> tuple[Metrics, list[Pair], dict[str, Dropped]]:
    teacher = {"kind": "http", "name": "teacher", "endpoint": "test", "base_url": server.url, "model": "big", "backoff_seconds": 0.01}  # fmt: skip
    judge = {"teacher": {**teacher, "name": "judge", "model": "other", "temperature": 0}}
    out = tmp / f"out{len(list(tmp.glob('out*')))}"
    config = CorrectConfig.model_validate({"teachers": [teacher], "judge": judge, **more})
    metrics = correct.run(config, badcases=folder, out=out, context=context(out))
    dropped = {row.id: row for row in read_parquet(out / "dropped.parquet", Dropped)}
    return metrics, read_parquet(out / "pairs.parquet", Pair), dropped


def test_only_what_passes_rules_and_both_orders_becomes_a_pair(server: Server, tmp_path: Path) -> None:
    names = [name for name in WISHES if name != "held"]
    folder = cases(tmp_path, *names)
    assert len(read_parquet(folder / "thumbs.parquet", Thumb)) == 5
    metrics, pairs, dropped = corrected(server, tmp_path, folder)
    assert [pair.id for pair in pairs] == ["badcases-good"]
    assert (pairs[0].chosen[0].content, pairs[0].rejected[0].content) == (
        "Ten minutes, for good.",
        "No idea about good.",
    )
    evidence = json.loads(pairs[0].evidence)
    assert (
        evidence["case"] == "good"
        and evidence["correction_by"] == "teacher"
        and evidence["judge"]["status"] == "second"
    )
    reasons = {name: row.reason for name, row in dropped.items()}
    assert reasons == {"place": "judge", "worse": "judge", "broken": "rules", "same": "unchanged"}
    assert "inconsistent" in dropped["place"].detail and "breaks must" in dropped["broken"].detail
    assert metrics.values["corrected"] == 1 and metrics.rows.rows_in["bare cases"] == 5


def test_a_case_that_a_person_corrected_is_not_asked_about(server: Server, tmp_path: Path) -> None:
    row = {**event("good", WISHES["good"]), "correction": {"text": "Five minutes.", "author_kind": "human_user"}}
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(row) + "\n")
    config = BadcasesConfig.model_validate({"sources": [{"name": "s", "path": str(path)}], "holdout": 0})
    badcases.run(config, out=tmp_path / "cases", context=context(tmp_path / "cases"))
    metrics, pairs, dropped = corrected(server, tmp_path, tmp_path / "cases")
    assert not pairs and not dropped and metrics.values["cases"] == 0 and not server.bodies


def test_held_out_cases_are_shown_to_no_teacher(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(event("held", WISHES["held"]), ensure_ascii=False) + "\n")
    config = BadcasesConfig.model_validate({"sources": [{"name": "s", "path": str(path)}], "holdout": 100})
    badcases.run(config, out=tmp_path / "cases", context=context(tmp_path / "cases"))
    _, pairs, dropped = corrected(server, tmp_path, tmp_path / "cases")
    assert not pairs and not dropped and not server.bodies


def test_without_an_expectation_the_rules_of_the_task_hold(server: Server, tmp_path: Path) -> None:
    row = {**event("good", WISHES["good"]), "expected": None}
    (tmp_path / "events.jsonl").write_text(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n")
    config = BadcasesConfig.model_validate(
        {"sources": [{"name": "s", "path": str(tmp_path / "events.jsonl")}], "holdout": 0}
    )
    badcases.run(config, out=tmp_path / "cases", context=context(tmp_path / "cases"))
    assert [pair.id for pair in corrected(server, tmp_path, tmp_path / "cases")[1]] == ["badcases-good"]
    _, pairs, dropped = corrected(server, tmp_path, tmp_path / "cases", task="data/seed/task/task.yaml")
    assert not pairs and "json_schema" in dropped["good"].detail, "no JSON, as the task wants"
    assert not read_parquet(tmp_path / "cases" / "pairs.parquet", Pair)
