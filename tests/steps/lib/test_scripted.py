"""The scripted teacher: each flaw breaks its own rule only, rates are as written, answers depend on the arguments only."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from steps.lib.errors import ConfigError, TeacherError
from steps.lib.rules import Task
from steps.lib.scripted import FLAWS, Flaw, ScriptedTeacher, Style

SEED = Path(__file__).resolve().parents[3] / "data" / "seed"
PATH = SEED / "task" / "teacher.yaml"
TASK = Task.read(SEED / "task" / "task.yaml")
TEACHER = ScriptedTeacher(PATH)
RULE = {
    "preamble": "no_preamble",
    "no_ask": "asks_order_number",
    "refund_promise": "no_refund_promise",
}
PROMPTS = [
    json.loads(line)["prompt"]
    for line in (SEED / "task" / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines()
]


def broken(prompt: str, text: str) -> set[str]:
    return {name for name, kept in TASK.check(prompt, text).items() if kept is False}


def test_a_flawless_answer_keeps_every_rule() -> None:
    for prompt, sample in itertools.product(PROMPTS, range(6)):
        text = TEACHER.compose(prompt, (), seed=0, sample=sample)
        assert not broken(prompt, text), (prompt, text)
        assert json.loads(text)["intent"] == TEACHER.intent(prompt)


def test_every_flaw_breaks_its_own_rule_only() -> None:
    count = dict.fromkeys(FLAWS, 0)
    for prompt, sample in itertools.product(PROMPTS, range(3)):
        for flaw in TEACHER.applicable(prompt):
            text = TEACHER.compose(prompt, (flaw,), seed=0, sample=sample)
            count[flaw] += 1
            if flaw == "format":
                assert "json_schema" in broken(prompt, text), (prompt, text)
            else:
                assert broken(prompt, text) == {RULE[flaw]}, (prompt, text)
    assert min(count.values()) > 300


def test_flaws_combine_and_each_breaks_its_rule() -> None:
    manners: list[Flaw] = ["preamble", "no_ask", "refund_promise"]
    for prompt in PROMPTS:
        fit = [flaw for flaw in manners if flaw in TEACHER.applicable(prompt)]
        assert broken(prompt, TEACHER.compose(prompt, fit, seed=0, sample=0)) == {RULE[flaw] for flaw in fit}


def test_every_reply_of_the_file_is_short_and_flawless() -> None:
    """All of them, not only those drawn above: 10-28 zh characters or 6-16 words, with the sentence that asks."""
    values: dict[str, Any] = YAML(typ="safe").load(PATH.read_text(encoding="utf-8"))
    for intent in values["intents"]:
        for key in ("replies", "within_policy_replies"):
            for lang, cell in intent.get(key, {}).items():
                replies = [r.replace("{order_number}", "K48213") for r in cell["with_order"]]
                if not intent["needs_order_number"]:
                    replies = cell["without_order"]
                else:
                    assert 4 <= len(cell["without_order"]) <= 6
                    gap = "" if lang == "zh" else " "
                    pairs = itertools.product(cell["without_order"], values["ask"][lang])
                    replies += [gap.join(pair) for pair in pairs]
                    assert not [r for r in cell["without_order"] if "{" in r]
                for reply in replies:
                    size = len(reply.replace("K48213", "K")) if lang == "zh" else len(reply.split())
                    assert (10 <= size <= 28) if lang == "zh" else (6 <= size <= 16), reply


def test_flaws_occur_at_their_rates() -> None:
    values: dict[str, Any] = YAML(typ="safe").load(PATH.read_text(encoding="utf-8"))
    drawn = {flaw: [0, 0] for flaw in FLAWS}
    for prompt, sample in itertools.product(PROMPTS, range(4)):
        flaws = TEACHER.flaws(prompt, seed=3, sample=sample)
        for flaw in TEACHER.applicable(prompt):
            drawn[flaw][0] += flaw in flaws
            drawn[flaw][1] += 1
    for flaw, (hits, total) in drawn.items():
        rate = values["flaws"][flaw]["rate"]
        assert abs(hits / total - rate) < 4 * (rate * (1 - rate) / total) ** 0.5, flaw  # four standard errors


def test_flaws_are_drawn_independently() -> None:
    both = [
        TEACHER.flaws(prompt, seed=0, sample=sample)
        for prompt, sample in itertools.product(PROMPTS, range(4))
        if {"preamble", "no_ask"} <= set(TEACHER.applicable(prompt))
    ]
    share = sum({"preamble", "no_ask"} <= flaws for flaws in both) / len(both)
    assert abs(share - 0.25) < 0.06


def test_an_answer_depends_on_its_arguments_only() -> None:
    prompt = PROMPTS[0]
    first = TEACHER.answer(prompt, seed=1, sample=0)
    TEACHER.answer(PROMPTS[1], seed=1, sample=0)
    assert TEACHER.answer(prompt, seed=1, sample=0) == first == ScriptedTeacher(PATH).answer(prompt, seed=1, sample=0)
    assert len({TEACHER.answer(prompt, seed=1, sample=i) for i in range(20)}) > 4
    assert len({TEACHER.answer(prompt, seed=i, sample=0) for i in range(20)}) > 4


def test_answer_is_compose_with_the_drawn_flaws() -> None:
    for prompt in PROMPTS[:50]:
        flaws = TEACHER.flaws(prompt, seed=5, sample=2)
        assert TEACHER.answer(prompt, seed=5, sample=2) == TEACHER.compose(prompt, flaws, seed=5, sample=2)


def test_every_style_of_broken_format_occurs() -> None:
    texts = [TEACHER.compose(prompt, ("format",), seed=0, sample=0) for prompt in PROMPTS[:200]]
    marks = ("以下是", "Here is", "```json", ",}", "{'intent'")
    assert all(any(mark in text for text in texts) for mark in marks)
    assert any("order_number" not in text for text in texts)
    assert len(get_args(Style)) == 5


@pytest.mark.parametrize("prompt", ["The sky is blue today.", "今天天气不错。", ""])
def test_a_prompt_without_intent_is_refused_by_name(prompt: str) -> None:
    with pytest.raises(TeacherError) as caught:
        TEACHER.answer(prompt, seed=0, sample=0)
    assert repr(prompt) in str(caught.value) and str(PATH) in str(caught.value)


def test_a_flaw_that_does_not_apply_is_refused() -> None:
    with pytest.raises(TeacherError, match="no_ask"):
        TEACHER.compose("怎么清洗电水壶的壶盖？", ("no_ask",), seed=0, sample=0)


def test_the_name_comes_from_the_file() -> None:
    assert TEACHER.name == "scripted-aftersales"


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("rate: 0.45", "rate: 1.5", ["flaws.refund_promise.rate", "1.5"]),
        ("intent: refund", "intent: refunds", ["'refunds' is none of"]),
        ("text_before", "text_after", ["flaws.format.styles.0", "text_after"]),
        ("needs_order_number: false", "needs_order_number: true", ["intents.5", "empty list"]),
        ("name: usage", "name: repair", ["hold a name twice"]),
        ("zh: '发票'", "zh: '(发票'", ["intents.0.patterns.zh", "not a regular expression"]),
        ("ask:", "asks:", ["asks", "Extra inputs"]),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    text = PATH.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "teacher.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        ScriptedTeacher(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)
