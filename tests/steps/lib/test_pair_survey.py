"""The pairs as a whole: what tells the sides apart is found where it is planted, and not where there is nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from minimal import turn

from steps.lib.pair_lint import PairLimits, said
from steps.lib.pair_survey import Survey, separable, survey
from steps.lib.rows import Pair

WORDS = [
    "kettle",
    "order",
    "refund",
    "parcel",
    "blue",
    "repair",
    "window",
    "morning",
    "green",
    "letter",
    "engine",
    "garden",
    "silver",
    "planet",
]
OFF = dict.fromkeys(("max_format_only", "max_longer_share", "max_length_ratio", "max_separable"))


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words)).capitalize() + "."


def pairs(count: int, chosen: Any, rejected: Any, seed: int = 0) -> list[Pair]:
    draw = random.Random(seed)
    return [
        Pair(
            id=f"p{n}",
            prompt=[turn("user", f"Question {n}?")],
            chosen=[turn("assistant", chosen(draw, n))],
            rejected=[turn("assistant", rejected(draw, n))],
        )
        for n in range(count)
    ]


def plain(draw: random.Random, n: int) -> str:
    return text(draw, draw.randint(5, 15))


def looked(rows: list[Pair], **limits: Any) -> Survey:
    lengths = {row.id: (len(said(row.chosen)), len(said(row.rejected))) for row in rows}
    return survey(rows, lengths, PairLimits.model_validate(limits))


@pytest.mark.parametrize("seed", range(5))
def test_random_answers_have_nothing_that_tells_the_sides_apart(seed: int) -> None:
    found = looked(pairs(200, plain, plain, seed))
    assert found.problems == [] and float(found.figures["lint/separable_share"]) < 0.3


def test_one_side_longer_throughout_fails_and_a_few_such_pairs_prove_nothing() -> None:
    rows = pairs(100, lambda draw, n: text(draw, 15 if n % 25 else 5), lambda draw, n: text(draw, 10))
    found = looked(rows, max_length_ratio=None, max_longer_share=0.85)
    [told] = found.problems
    assert (
        "length tells the sides of pairs apart: got 96 of 100 pairs with the same side longer (surely over 90.2%"
        in told
    )
    assert "chosen answers are longer throughout" in told and found.figures["lint/longer_share"] == 0.96
    assert looked(rows[1:21], max_length_ratio=None, max_longer_share=0.85).problems == []
    turned = [row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in rows]
    assert "chosen answers are shorter throughout" in looked(turned, max_longer_share=0.85).problems[0]
    assert looked(rows, **OFF).problems == []


def test_a_ratio_of_lengths_fails_by_itself() -> None:
    rows = pairs(60, lambda draw, n: text(draw, 24), lambda draw, n: text(draw, 8))
    [told] = looked(rows, max_longer_share=None).problems
    assert "a mean ratio of" in told and "where pairs.lint.max_length_ratio allows 2" in told
    assert looked(rows, max_longer_share=None, max_length_ratio=4.0).problems == []


def test_a_share_of_pairs_that_differ_by_format_alone_fails() -> None:
    rows = pairs(10, plain, plain)
    for n in range(3):
        upper = said(rows[n].chosen).upper()
        rows[n] = rows[n].model_copy(update={"rejected": [turn("assistant", upper)]})
    [told] = looked(rows).problems
    assert (
        "pairs differ by format only: got 3 of 10 (30.0%, where pairs.lint.max_format_only allows 20.0%; the first: p0, p1, p2)"
        in told
    )
    assert looked(rows, max_format_only=0.3).problems == []


def greeting(draw: random.Random, n: int) -> str:
    return f"Sure, here you are. {plain(draw, n)}"


def mixed(draw: random.Random, n: int) -> str:
    """Three different faults of form, each in a third of the answers."""
    return (f"Sure, {plain(draw, n)}", f"- {plain(draw, n)}\n- {plain(draw, n)}", plain(draw, n)[:-1])[n % 3]


@pytest.mark.parametrize(
    ("bad", "by"), [(greeting, "'Sure,'"), (mixed, "final sign chosen")], ids=["phrase", "three-marks"]
)
def test_sides_that_surface_marks_tell_apart_fail_with_the_marks_named(bad: Any, by: str) -> None:
    rows = pairs(120, plain, bad)
    found = looked(rows, max_longer_share=None, max_length_ratio=None)
    [told] = found.problems
    assert (
        "pairs are trivially separable: got 1" in told and by in told and by in str(found.figures["lint/separable_by"])
    )
    assert looked(rows, **OFF).problems == []
    half = [*rows[:60], *[row.model_copy(update={"id": f"x{row.id}"}) for row in pairs(60, plain, plain, 1)]]
    assert looked(half).problems == [], "half of the pairs is not nearly all"


def test_a_mark_that_goes_either_way_separates_nothing() -> None:
    """Half of the greetings are chosen, half rejected; and marks of single pairs are not learnt by heart."""
    rows = pairs(
        200, lambda d, n: (greeting if n % 2 else plain)(d, n), lambda d, n: (plain if n % 2 else greeting)(d, n)
    )
    right, rules = separable(rows)
    assert right < 120 and not any("Sure" in mark for mark, _ in rules)
    assert separable(pairs(1, plain, greeting))[0] == 0 and survey([], {}, PairLimits()).figures == {}


def test_answers_that_differ_in_what_they_say_are_not_trivial() -> None:
    yes = pairs(
        100,
        lambda d, n: f'{{"intent": "{d.choice(WORDS)}", "number": {n}}}',
        lambda d, n: f'{{"intent": "{d.choice(WORDS)}", "number": {n}}}',
    )
    assert looked(yes).problems == []
