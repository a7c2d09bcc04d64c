"""Which cases are used: one of copies, those that say what they expect, not too many of one place, none that is too near to the
other side.

Each case that goes has one reason; docs/badcases.md lists them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from steps.lib.badcases_config import BadcasesConfig
from steps.lib.case_clusters import HOLDOUT, TRAIN, Nearness, asked, copies
from steps.lib.case_events import SEVERITIES
from steps.lib.case_expected import Expected
from steps.lib.case_grams import folded
from steps.lib.clusters import Pairs
from steps.lib.errors import DataError
from steps.lib.quality import Finding
from steps.lib.rows import BadCase, Message
from steps.lib.rules import Task


def expected_of(case: BadCase) -> Expected:
    """What a case expects."""
    return Expected.model_validate_json(case.expected)


def last_turn(case: BadCase) -> str:
    """The last user turn."""
    return case.prompt[-1].content


def prompt_of(case: BadCase, task: Task | None) -> list[Message]:
    """Its turns as a model is asked them, in training and in the suite: the task's system line before a case that has none."""
    if task is None or any(turn.role == "system" for turn in case.prompt):
        return case.prompt
    line = task.student_system["zh" if case.lang == "zh" else "en"]
    return [Message(role="system", content=line), *case.prompt]


def chosen(
    cases: Sequence[BadCase],
    findings: Mapping[str, Finding],
    near: Nearness,
    task: Task | None,
    config: BadcasesConfig,
) -> tuple[list[BadCase], dict[str, Finding]]:
    """The cases with their copies counted, and all reasons by id.

    Args:
        cases: with cluster and side, in their order.
        findings: why some are of no use already.
        near: which requests are alike, from ``config.guard`` on.
        task: for expectations that name its rules.
        config: of the step.
    """
    found = dict(findings)
    usable = [case.id not in found for case in cases]
    result = list(cases)
    for number, (kept, linked, score) in _copies(cases, usable, near, config.duplicate).items():
        same = {"kept_id": cases[kept].id, "linked_id": cases[linked].id, "jaccard": round(score, 4)}
        found[cases[number].id] = "near_duplicate", json.dumps(same, ensure_ascii=False)
        result[kept] = result[kept].model_copy(update={"copies": result[kept].copies + 1})
    held = _near_held(cases, near)
    for number, case in enumerate(cases):
        if case.id in found:
            continue
        if case.split == TRAIN and number in held:
            other, score = held[number]
            found[case.id] = "near_holdout", json.dumps({"guard_id": cases[other].id, "jaccard": round(score, 4)})
        elif finding := _unfit(case, task):
            found[case.id] = finding
    found |= _surplus([case for case in cases if case.id not in found], config)
    return result, found


def _copies(
    cases: Sequence[BadCase], usable: Sequence[bool], near: Nearness, threshold: float
) -> dict[int, tuple[int, int, float]]:
    """Copies among the cases that can be used."""
    import numpy as np

    pairs, able = near.at_least(threshold), np.array(usable, np.bool_)
    both = able[pairs.left] & able[pairs.right] if len(pairs) else np.zeros(0, np.bool_)
    some = Pairs(pairs.left[both], pairs.right[both], pairs.jaccard[both])
    return copies(cases, some, [_worth(case) for case in cases])


def _worth(case: BadCase) -> float:
    """Which of two copies says more: what it expects, who corrected it, how bad it is."""
    by_program = expected_of(case).by_program
    trusted = case.correction_by == "human_expert" or case.verified
    return 8 * by_program + 4 * trusted + 2 * bool(case.correction) + (2 - SEVERITIES.index(case.severity)) / 2


def _near_held(cases: Sequence[BadCase], near: Nearness) -> dict[int, tuple[int, float]]:
    """Number of a case -> the case of the held-out side that is most like it; whether that one can be used or not."""
    best: dict[int, tuple[int, float]] = {}
    pairs = near.pairs
    for one, other, score in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.jaccard.tolist(), strict=True):
        for case, guard in ((one, other), (other, one)):
            if cases[guard].split == HOLDOUT and score > best.get(case, (0, 0.0))[1]:
                best[case] = guard, score
    return best


def _unfit(case: BadCase, task: Task | None) -> Finding | None:
    """Why a case cannot be measured with, or its correction not be believed."""
    expected = expected_of(case)
    if case.split == HOLDOUT:
        if case.contaminated:
            return "contaminated", "it was trained on, or is near to what was, before its cluster was held out"
        if not expected.by_program and not expected.by_judge and not case.correction:
            return "no_expectation", "neither a program nor a judge could tell whether an answer is good"
    if not expected.by_program:
        return None
    try:
        if case.response and all(expected.check(last_turn(case), case.response, task).values()):
            return "expectation_holds", "the answer that was bad keeps all that the case expects"
        if case.correction:
            kept = expected.check(last_turn(case), case.correction, task)
            if broken := [name for name, value in kept.items() if not value]:
                return "correction_fails", f"the correction breaks {', '.join(broken)}"
    except DataError as error:
        return "unchecked", str(error)
    return None


def _surplus(cases: Sequence[BadCase], config: BadcasesConfig) -> dict[str, Finding]:
    """Cases past a limit of their user, tenant or cluster; the first ones stay."""
    limits = (
        ("user", config.max_per_user),
        ("tenant", config.max_per_tenant),
        ("cluster", config.max_per_cluster),
    )
    taken: Counter[tuple[str, str]] = Counter()
    found: dict[str, Finding] = {}
    for case in cases:
        own = [((name, str(getattr(case, name))), most) for name, most in limits if most and getattr(case, name)]
        full = next(((name, most) for (name, value), most in own if taken[name, value] >= most), None)
        if full:
            found[case.id] = f"cap_{full[0]}", f"its {full[0]} has {full[1]} cases already"
        else:
            taken.update(place for place, _ in own)
    return found


def guard_texts(case: BadCase, common: Collection[str] = ()) -> list[str]:
    """What of a held-out case may stand in no training row: each user turn, all of them together, and the good answers to them.

    Args:
        case: of the held-out side.
        common: ``common_answers``; a good answer among them tells nothing of this case.
    """
    turns = [turn.content for turn in case.prompt if turn.role == "user"]
    good = [text for text in good_answers(case) if folded(text) not in common]
    return [text for text in [*turns, *([asked(case)] if len(turns) > 1 else []), *good] if text.strip()]


def good_answers(case: BadCase) -> list[str]:
    """Its correction and its reference, as far as there are any."""
    return [text for text in (case.correction, expected_of(case).reference) if text.strip()]


def common_answers(cases: Iterable[BadCase]) -> frozenset[str]:
    """Good answers to cases of the training side, folded: a stock reply that held-out cases have too gives nothing away."""
    return frozenset(folded(text) for case in cases if case.split == TRAIN for text in good_answers(case))
