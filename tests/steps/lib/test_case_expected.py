"""What a case expects is checked as it says, within a bound of time, and nothing from outside is followed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steps.lib.case_expected import Expected, searched
from steps.lib.errors import DataError
from steps.lib.rules import Task

TASK = Task.read(Path(__file__).parents[3] / "data" / "seed" / "task" / "task.yaml")


def holds(expected: dict[str, Any], answer: str, prompt: str = "Is K1 there?") -> bool:
    return all(Expected.model_validate(expected).check(prompt, answer, TASK).values())


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        ({"rules": [{"kind": "says", "text": "不能"}]}, "这里不能退。", "可以退。"),
        ({"rules": [{"kind": "says_not", "text": "Refund"}]}, "No.", "a REFUND is due"),
        ({"rules": [{"kind": "is", "text": "42"}]}, " 42\n", "It is 42"),
        ({"rules": [{"kind": "chars", "least": 2, "most": 5}]}, "四个字符", "这里有六个字"),
        ({"rules": [{"kind": "language", "lang": "zh"}]}, "请发来订单号。", "Please send the order number."),
        ({"rules": [{"kind": "refuses"}]}, "抱歉，这个我不能回答。", "好的，密码是一二三。"),
        ({"rules": [{"kind": "refuses_not"}]}, "Hold the key.", "I'm sorry, I can't help with that."),
        ({"rules": [{"kind": "task"}]}, '{"intent": "usage", "order_number": null, "reply": "No salt."}', "No salt."),
        ({"must": [r"\bK1\b"]}, "K1 is there", "K11 is there"),
        ({"must_not": ["马上.{0,4}退款"]}, "核实后再说", "马上给您退款"),
        ({"schema": {"type": "object", "required": ["a"], "properties": {"a": {"pattern": "^x+$"}}}}, '{"a": "xx"}', '{"a": "xy"}'),
        ({"schema": {"type": "string", "format": "date"}}, '"2026-01-31"', '"2026-02-31"'),
        ({"schema": {"type": "object"}}, '{"a": 1}', '{"a": 1, "a": 2}'),
        ({"schema": {"type": "number"}}, "1.5", "NaN"),
    ],
)  # fmt: skip
def test_each_check_tells_good_from_bad(expected: dict[str, Any], good: str, bad: str) -> None:
    assert holds(expected, good) and not holds(expected, bad)


def test_a_pattern_that_goes_back_and_forth_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.lib.case_expected.PATTERN_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(DataError, match="took too long"):
        searched(r"(a|aa)+$(?<=b)", "a" * 60 + "c")
    assert time.monotonic() - start < 5


def test_so_is_one_inside_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.lib.case_expected.PATTERN_SECONDS", 0.1)
    expected = Expected.model_validate({"schema": {"type": "string", "pattern": r"(a|aa)+$(?<=b)"}})
    with pytest.raises(DataError, match="took too long"):
        expected.check("", '"' + "a" * 60 + 'c"')


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ({"must": ["(unclosed"]}, "not a regular expression"),
        ({"must": ["a" * 1001]}, "at most 1000"),
        ({"schema": {"$ref": "https://example.com/schema.json"}}, "outside of it"),
        ({"schema": {"patternProperties": {"a+": {}}}}, "patternProperties"),
        ({"schema": {"type": "nothing"}}, "not a JSON Schema"),
        ({"rules": [{"kind": "code", "text": "import os"}]}, "does not match any of the expected tags"),
        ({"musst": ["a"]}, "Extra inputs"),
    ],
)
def test_what_is_no_expectation_is_refused(expected: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Expected.model_validate(expected)


def test_the_rules_of_a_task_need_one() -> None:
    with pytest.raises(DataError, match="no task file"):
        Expected.model_validate({"rules": [{"kind": "task"}]}).check("p", "a")


def test_nothing_expected_is_told_by_nobody_and_a_reference_by_a_judge() -> None:
    nothing, reference = Expected(), Expected(reference="Monday")
    assert (nothing.by_program, nothing.by_judge, nothing.dumped()) == (False, False, "{}")
    assert (reference.by_program, reference.by_judge) == (False, True)
    full = Expected.model_validate({"schema": {"type": "string"}, "must": ["a"], "rules": [{"kind": "refuses"}]})
    assert Expected.model_validate_json(full.dumped()) == full
