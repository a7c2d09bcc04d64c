"""Held-out cases as a suite: real answers of the tiny model are checked, errors are rows, and states follow from two models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from minimal import TASK

from steps.lib import tiny
from steps.lib.errors import DataError
from steps.lib.figures import Item, compare, measure
from steps.lib.rows import BadCase, Message, write_parquet
from steps.lib.rules import Task
from steps.lib.suite_cases import FILE, Grader, SuiteCases, case_states
from steps.lib.suites import Limits, Scored, Suite

ODD = [
    Message(role="user", content="a"),
    Message(role="assistant", content="b<|im_end|>c"),
    Message(role="user", content="d"),
]


def case(name: str, expected: dict[str, Any], **values: Any) -> BadCase:
    facts = {"lang": "en", "cluster": name, "split": "holdout", "prompt": [Message(role="user", content="Is 3 fine?")]}
    return BadCase.model_validate({"id": name, **facts, "expected": json.dumps(expected), **values})


def made_task(tmp_path: Any) -> Task:
    (tmp_path / "task.yaml").write_text(TASK)
    return Task.read(tmp_path / "task.yaml")


@pytest.fixture(scope="module")
def model() -> Scored:
    """A model of random weights: it says what nobody expects, as real code."""
    import torch

    shape = tiny.TinyConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    tokenizer = tiny.build_tokenizer(["Is 3 fine?"], shape)
    torch.manual_seed(0)
    return Scored("base", tiny.build_model(tokenizer, shape).eval(), tokenizer, Limits(8, 64, 4), 0)


@pytest.mark.tiny
def test_answers_of_a_model_are_checked(model: Scored, tmp_path: Any) -> None:
    task = made_task(tmp_path)
    rows = [
        case("short", {"rules": [{"kind": "chars", "most": 500}]}, severity="critical", tags=["style"]),
        case("never", {"must": ["this is never said by a model of two layers"]}),
        case("odd", {"must": ["yes"]}, prompt=ODD),
        case("task", {"rules": [{"kind": "task"}]}),
    ]
    write_parquet(tmp_path / FILE, rows, BadCase)
    suite: Suite = SuiteCases.read(tmp_path, task=task)
    items = {item.item_id: item for item in suite.score(model)}
    assert len(items) == len(suite) == 4 and suite.name == "cases"
    assert items["short"].scores == {"passed": 1.0, "pass_rate": 1.0, "passed_critical": 1.0, "check:rule:0:chars": 1.0}
    assert items["short"].slices == ["critical", "style"] and items["short"].output and items["short"].n_out > 0
    assert items["never"].scores["passed"] == 0.0 and "passed_critical" not in items["never"].scores
    assert "ends a turn" in items["odd"].error, "one case that cannot be asked is a row, not the end"
    (unchecked,) = SuiteCases((rows[3],)).score(model)
    assert "no task file" in unchecked.error and unchecked.output, "nor is one that cannot be checked"
    figure = measure(list(items.values()), suite.measures[0], "base")
    assert figure.interval.value == pytest.approx(1 / 4), "what was not scored counts as failed"


@pytest.mark.tiny
def test_a_judge_is_asked_for_what_a_program_cannot_tell(model: Scored) -> None:
    rows = (
        case("reference", {"reference": "yes"}),
        case("both", {"rules": [{"kind": "chars", "most": 500}], "rubric": "is it kind?"}),
        case("program", {"rules": [{"kind": "chars", "most": 500}]}),
    )
    without = SuiteCases(rows)
    assert (len(without), without.unjudged) == (2, 1)
    asked: list[str] = []

    def ask(cases: Any, answers: Any) -> list[float | None]:
        asked.extend(one.id for one in cases)
        return [0.2 if one.id == "both" else None for one in cases]

    judged = SuiteCases(rows, grader=Grader("j1", ask))
    items = {item.item_id: item for item in judged.score(model)}
    assert asked == ["reference", "both"] and judged.unjudged == 0
    assert "no verdict" in items["reference"].error
    assert items["both"].scores["passed"] == 0.0 and items["both"].scores["check:judge"] == 0.0
    assert items["program"].scores["passed"] == 1.0
    assert len({without.digest(), judged.digest(), SuiteCases(rows, grader=Grader("j2", ask)).digest()}) == 3


@pytest.mark.tiny
def test_answers_that_disagree_are_flaky(model: Scored) -> None:
    rows = tuple(
        case(str(n), {"must": ["[a-m]{2}"]}, prompt=[Message(role="user", content=f"Is {n} fine?")]) for n in range(6)
    )
    suite = SuiteCases(rows, repeats=6, temperature=1.0)
    items = suite.score(model)
    assert any(0 < (item.scores["pass_rate"] or 0) < 1 for item in items)
    assert items == suite.score(model), "the draws are fixed by the seed"
    copies = [item.model_copy(update={"model": "champion"}) for item in items]
    states = {state.item_id: state.state for state in case_states([*items, *copies], "base", "champion")}
    assert "flaky" in states.values()
    with pytest.raises(DataError, match="temperature 0"):
        SuiteCases(rows, repeats=2)


def test_the_digest_holds_all_that_decides_the_scores() -> None:
    row = case("a", {"must": ["x"]})
    changed: list[dict[str, Any]] = [
        {"expected": '{"must": ["y"]}'}, {"cluster": "b"}, {"severity": "critical"}, {"tags": ["style"]},
        {"prompt": [Message(role="user", content="Is 4 fine?")]}, {"lang": "zh"},
    ]  # fmt: skip
    digests = {SuiteCases((row.model_copy(update=change),)).digest() for change in changed}
    assert len(digests | {SuiteCases((row,)).digest()}) == len(changed) + 1
    assert SuiteCases((row.model_copy(update={"comment": "c", "user": "ab"}),)).digest() == SuiteCases((row,)).digest()


def test_a_suite_without_cases_has_no_figures() -> None:
    assert SuiteCases(()).measures == [] and len(SuiteCases(())) == 0
    assert [one.name for one in SuiteCases((case("a", {"must": ["x"]}),)).measures] == ["cases_passed"]
    assert len(SuiteCases((case("a", {"must": ["x"]}, severity="critical"),)).measures) == 2


def item(model: str, name: str, rate: float | None, error: str = "", severity: str = "minor") -> Item:
    scores = {} if rate is None else {"passed": float(rate == 1), "pass_rate": rate}
    return Item(
        model=model, suite="cases", item_id=name, cluster_id=name, slices=[severity], scores=scores, error=error
    )


@pytest.mark.parametrize(
    ("new", "old", "state"),
    [(0.0, 0.0, "known_fail"), (1.0, 0.0, "fixed"), (0.0, 1.0, "regressed"), (1.0, 1.0, "still_pass"), (0.5, 1.0, "flaky"), (1.0, 0.5, "flaky"), (None, 1.0, "error")],
)  # fmt: skip
def test_states(new: float | None, old: float, state: str) -> None:
    items = [
        item("new", "a", new, "" if new is not None else "it raised", "critical"),
        item("old", "a", old, severity="critical"),
    ]
    (found,) = case_states(items, "new", "old")
    assert found.state == state and found.vetoes == (state == "regressed")


def test_a_regression_that_is_not_critical_counts_in_the_rate_alone() -> None:
    items = [item("new", "a", 0.0), item("old", "a", 1.0), item("new", "b", 1.0), item("old", "b", 0.0)]
    assert not any(state.vetoes for state in case_states(items, "new", "old"))
    what = SuiteCases((case("a", {"must": ["x"]}),)).measures[0]
    assert compare(items, what, "new", "old").interval.value == 0.0


def test_cases_of_one_model_only_are_an_error() -> None:
    with pytest.raises(DataError, match="not paired"):
        case_states([item("new", "a", 1.0)], "new", "old")
