"""An evaluation with held-out bad cases and judges, which are real servers on loopback that answer by a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judges import FENCED, configured, says
from minimal import BASE, EVALUATE, TinyChain, close, made
from openai_server import Act, serve
from pydantic import ValidationError

from steps.evaluate import EvaluateConfig
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError
from steps.lib.figures import read_items
from steps.lib.report import read
from steps.lib.rows import BadCase, Message

pytestmark = pytest.mark.tiny


def case(name: str, severity: str, expected: dict[str, Any]) -> BadCase:
    ask = [Message(role="user", content=f"Is {len(name)} fine?")]
    facts = {"lang": "en", "cluster": name, "split": "holdout", "prompt": ask, "severity": severity}
    return BadCase.model_validate(
        {"id": name, "correction": '{"ok": "yes"}', "expected": json.dumps(expected), **facts}
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """As the step badcases leaves them."""
    rows = [
        case("one", "critical", {"must": ["ok"]}),
        case("three", "minor", {"must": ["^no such answer$"]}),
        case("judged", "minor", {"rubric": "Says yes or no."}),
    ]
    folder = tmp_path_factory.mktemp("cases") / "badcases" / "made"
    return close(folder, {"holdout": (rows, BadCase)}, "badcases")


@pytest.fixture(scope="module")
def inputs(chain: TinyChain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The chain beside a base that learnt nothing: the chain's own says what its policy says, and equal answers are no question."""
    train = BASE.train.model_copy(update={"max_updates": 4})
    raw = made(tmp_path_factory.mktemp("raw"), "base", BASE.model_copy(update={"train": train}), corpus=chain.data)
    return {"base": raw, "sft": chain.sft, "dpo": chain.dpo, "heldout": chain.data}


def both(choose: Callable[[str, str], str]) -> Callable[[int, dict[str, Any]], Act]:
    """A server that judges pairs by ``choose``, and gives five points to a single answer with JSON, else one."""

    def decide(number: int, body: dict[str, Any]) -> Act:
        if '"score"' not in json.dumps(body["messages"]).replace("\\", ""):
            return says(choose)(number, body)
        texts = [text for _, text in FENCED.findall(body["messages"][-1]["content"])]
        return Act(text=json.dumps({"score": 5 if any("ok" in text for text in texts[1:2]) else 1}))

    return decide


def longer(first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def configure(server: Any, **more: Any) -> EvaluateConfig:
    teacher = configured(server).teacher.model_dump()
    judges = {
        "rubric": {"teacher": teacher},
        "pairwise": {"judge": {"teacher": teacher}, "planted": 0, "compare": [{"new": "dpo", "old": "base"}]},
    }
    return EvaluateConfig.model_validate({**EVALUATE.model_dump(), **judges, **more})


def test_bad_cases_and_win_rates_stand_in_the_report(
    inputs: dict[str, Artifact], cases: Artifact, tmp_path: Path
) -> None:
    with serve(both(longer)) as server:
        found = made(tmp_path, "evaluate", configure(server), **inputs, badcases=cases)
        asked = len(server.bodies)
        other = made(tmp_path, "evaluate", configure(server, title="Again"), **inputs, badcases=cases)
        assert asked and len(server.bodies) == asked, "another evaluation asks for no verdict again"
    items = read_items(found.path / "items.parquet")
    solved = {(item.model, item.item_id): item.scores for item in items if item.suite == "cases"}
    assert {name for _, name in solved} == {"one", "three", "judged"}
    assert all(scores["passed"] == 0.0 for (_, name), scores in solved.items() if name == "three")
    assert all("check:judge" in scores for (_, name), scores in solved.items() if name == "judged")
    shown = read(found.path)
    assert {one.id: one.detail for one in shown.cases} == {
        "one": "/ok/",
        "three": "/^no such answer$/",
        "judged": "a judge agrees",
    }
    assert [one.state for one in shown.cases if one.id == "three"] == ["known_fail"]
    [judging] = shown.judging
    assert (judging.model, judging.against, judging.judge) == ("dpo", "base", "m") and judging.win_rate
    rows = [item for item in items if item.suite == "pairwise"]
    assert all(item.model_digest and item.suite_digest and item.scorer_version for item in rows)
    assert {item.model for item in rows} == {"dpo"} and all(
        json.loads(item.judge)["against"] == "base" for item in rows
    )
    assert judging.win_rate.value == pytest.approx(sum(item.scores["win"] or 0 for item in rows) / len(rows))
    by_name = {(one.name, one.model): one for one in shown.figures}
    assert by_name["win_rate", "dpo"].interval == judging.win_rate
    assert by_name["cases_passed", "base"].interval.n == 3 and shown.costs and shown.speeds
    assert (found.path / "record" / "judge.sqlite").is_file() and read(other.path).title == "Again"
    page = (found.path / "report.html").read_text()
    assert "no such answer" in page and re.search(r"[Ww]in rate", page)


def test_without_a_judge_its_cases_are_left_out_and_counted(
    inputs: dict[str, Artifact], cases: Artifact, tmp_path: Path
) -> None:
    found = made(tmp_path, "evaluate", EVALUATE, **inputs, badcases=cases)
    shown = read(found.path)
    assert {one.id for one in shown.cases} == {"one", "three"} and not shown.judging
    assert any(note.startswith("1 bad cases are left out") for note in shown.notes)


def test_of_several_draws_all_must_pass(inputs: dict[str, Artifact], cases: Artifact, tmp_path: Path) -> None:
    words = {**EVALUATE.model_dump(), "case_repeats": 3}
    with pytest.raises(ValidationError, match="case_repeats is 3 at case_temperature 0"):
        EvaluateConfig.model_validate(words)
    config = EvaluateConfig.model_validate({**words, "case_temperature": 1.5})
    found = made(tmp_path, "evaluate", config, **inputs, badcases=cases)
    rows = [item.scores for item in read_items(found.path / "items.parquet") if item.suite == "cases"]
    rates = {round(3 * (scores["pass_rate"] or 0)) for scores in rows}
    assert rates <= {0, 1, 2, 3} and all((scores["passed"] == 1) == (scores["pass_rate"] == 1) for scores in rows)
    drawn = [scores["pass_rate"] for scores in rows]
    greedy = made(tmp_path, "evaluate", EVALUATE, **inputs, badcases=cases)
    assert drawn != [
        item.scores["pass_rate"] for item in read_items(greedy.path / "items.parquet") if item.suite == "cases"
    ]


def test_a_judge_that_goes_by_the_place_is_not_believed(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with serve(both(lambda first, second: "A")) as server:
        found = made(tmp_path, "evaluate", configure(server), **inputs)
    shown = read(found.path)
    assert shown.judging[0].problems and any("contradicts itself" in told for told in shown.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "none"}, r"evaluate.pairwise.suite is 'none': .* suites with answers are prompts here"),
        ({"compare": [{"new": "dpo", "old": "rl"}]}, r"pairwise.compare names rl: got models base, sft, dpo only"),
    ],
)
def test_what_cannot_be_compared_is_told_before_a_model_runs(
    inputs: dict[str, Artifact], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with serve(both(longer)) as server:
        config = configure(server)
        assert config.pairwise
        wrong = {**config.model_dump(), "pairwise": {**config.pairwise.model_dump(), **change}}
        with pytest.raises(ConfigError, match=message):
            made(tmp_path, "evaluate", EvaluateConfig.model_validate(wrong), **inputs)
        assert not server.bodies and not list(tmp_path.rglob("batches.sqlite"))
