"""Likeness of texts, and how far answers to one prompt agree."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib.agreement import Agreement, all_same, groups
from steps.lib.likeness import Form, as_json, folded, said, shingles, similarity


def alike(one: str, other: str) -> float:
    return similarity(Form.of(one), Form.of(other))


def oracle(one: str, other: str) -> float:
    """Jaccard over character 4-grams, in five lines."""
    a, b = (
        {text[n : n + 4] for n in range(max(1, len(text) - 3))}
        for text in ("".join(c for c in t.casefold() if c.isalnum()) or "".join(t.split()) for t in (one, other))
    )
    return len(a & b) / len(a | b)


@given(st.text("ab c,。茶水A_", max_size=30), st.text("ab c,。茶水A_", max_size=30))
@settings(max_examples=300, deadline=None)
def test_text_is_compared_by_its_characters(one: str, other: str) -> None:
    assert alike(one, other) == pytest.approx(1.0 if one == other else oracle(one, other))
    assert alike(one, other) == alike(other, one)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ("Green tea.", "green  TEA", 1.0),
        ("绿茶，很好。", "绿茶很好", 1.0),
        ("yes", "no", 0.0),
        ('{"a": 1, "b": null}', '{ "b": null, "a": 1 }', 1.0),
        ('{"a": 1}', '{"a": 1.0}', 0.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"intent": "refund", "order": null}', '{"intent": "repair", "order": null}', 0.5),
        ('{"a": "x"}', '{"b": "x"}', 0.0),
        ('{"a": [1, 2, 3]}', '{"a": [1, 2]}', 2 / 3),
        ("{}", "[]", 0.0),
        ("{}", "{}", 1.0),
        ("...", "!!!", 0.0),
        ("?", " ?", 1.0),
    ],
)  # fmt: skip
def test_values(one: str, other: str, value: float) -> None:
    assert alike(one, other) == pytest.approx(value)


def test_folding_keeps_every_script_apart_from_blanks_and_marks() -> None:
    assert folded("Ab_c  D-1。２") == "abcd1２" and folded("— …") == "—…" and folded("a\tb") == "ab"
    for text in ("Plain, with 3 marks!", "x_y", "~"):
        assert folded(text) == folded(text + "\u200b").replace("\u200b", ""), "the way for ASCII is the way for all"
    assert shingles("ab") == {"ab"} and shingles("abcde") == {"abcd", "bcde"}


def test_the_words_of_json_are_its_sentences() -> None:
    answer = json.dumps({"intent": "refund", "order_number": "A12345", "notes": ["see page 3", "茶"], "n": 4})
    assert said(answer) == "see page 3\n茶"
    assert said("refund") == "refund" and said('{"a": ') == '{"a": ' and as_json("3") is None


def test_agreement_is_the_mean_over_the_others() -> None:
    texts, teachers = (
        ["white tea is mild", "white tea is strong", "ask the landlord", "white tea is mild"],
        ["a", "a", "b", "b"],
    )
    agreement = Agreement()
    found = agreement.compare(texts, teachers)
    assert found == [
        pytest.approx(
            sum(oracle(text, other) if text != other else 1.0 for m, other in enumerate(texts) if m != n) / 3, abs=1e-4
        )
        for n, text in enumerate(texts)
    ]
    pairs = [(oracle(texts[a], texts[b]), teachers[a] == teachers[b]) for a, b in combinations(range(4), 2)]
    within, across = ([value for value, same in pairs if same is side] for side in (True, False))
    assert agreement.metrics() == {
        "agreement/within_teachers": pytest.approx(sum(within) / len(within), abs=1e-4),
        "agreement/across_teachers": pytest.approx(sum(across) / len(across), abs=1e-4),
        "agreement/prompts_compared": 1,
        "agreement/prompts_all_same": 0,
    }


def test_a_single_answer_agrees_with_nobody() -> None:
    agreement = Agreement()
    assert agreement.compare(["x"], ["a"]) == [None] and agreement.compare([], []) == [] and agreement.metrics() == {}


def test_all_answers_equal() -> None:
    agreement = Agreement()
    assert all_same(agreement.compare(["Yes.", "yes", "YES!"], ["a", "a", "b"])) and agreement.same == 1
    assert not all_same(agreement.compare(["yes", "yes", "no"], ["a", "a", "b"])) and agreement.same == 1
    assert not all_same([None]) and not all_same([])


def test_groups_are_neighbours_and_are_taken_one_at_a_time() -> None:
    taken: list[Any] = []

    def stream() -> Any:
        for pair in (("p", 1), ("p", 2), ("q", 1), ("p", 3)):
            taken.append(pair)
            yield pair

    found = groups(stream(), lambda pair: pair[0])
    assert next(found) == [("p", 1), ("p", 2)] and len(taken) == 3, "one behind the group, no more"
    assert list(found) == [[("q", 1)], [("p", 3)]]
