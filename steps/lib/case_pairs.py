"""Preference pairs of cases: rejected is the answer that a named production model gave, chosen a correction that somebody
stands for.

A thumb down alone blesses no other answer: without a correction there is no pair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from steps.lib.case_choice import expected_of, last_turn
from steps.lib.case_events import Author
from steps.lib.case_grams import folded
from steps.lib.quality import Finding
from steps.lib.rows import BadCase, Message, Pair
from steps.lib.rules import Task

SOURCE = "badcases"


def pairs_of(
    cases: Sequence[BadCase], task: Task | None, authors: Sequence[Author], models: Sequence[str]
) -> tuple[list[Pair], dict[str, Finding]]:
    """Pairs of cases of the training side, and why the others give none.

    Args:
        cases: in their order.
        task: for expectations that name its rules.
        authors: whose corrections count.
        models: names or version digests whose answers may be rejected; empty: any that is named.
    """
    pairs: list[Pair] = []
    others: dict[str, Finding] = {}
    for case in cases:
        if finding := _unpaired(case, task, authors, models):
            others[case.id] = finding
        else:
            pairs.append(_pair(case))
    return pairs, others


def _unpaired(case: BadCase, task: Task | None, authors: Sequence[Author], models: Sequence[str]) -> Finding | None:
    if not case.correction.strip():
        return "no_correction", "nobody gave a better answer"
    if case.correction_by not in authors:
        return "author", f"corrections of {case.correction_by} are not among `badcases.corrections`"
    if case.correction_by == "teacher":
        expected = expected_of(case)
        if not case.verified or not expected.by_program:
            return (
                "unverified",
                "a teacher's answer counts when a person verified it and the case's own rules hold for it",
            )
        assert all(expected.check(last_turn(case), case.correction, task).values())  # case_choice sets the others aside
    if not case.response.strip():
        return "no_response", "no event says what the model answered"
    if not case.model and not case.model_digest:
        return "no_model", "no event says which model answered"
    if models and not {case.model, case.model_digest} & set(models):
        return "other_model", f"{case.model or case.model_digest} is not among `badcases.models`"
    if folded(case.response) == folded(case.correction):
        return "identical", "answer and correction are the same but for spaces and signs"
    return None


def _pair(case: BadCase) -> Pair:
    evidence = {
        "case": case.id,
        "cluster": case.cluster,
        "correction_by": case.correction_by,
        "verified": case.verified,
        "model": case.model,
        "model_digest": case.model_digest,
        "severity": case.severity,
        "tags": case.tags,
    }
    return Pair(
        id=f"{SOURCE}-{case.id}",
        lang=case.lang,
        source=SOURCE,
        prompt=case.prompt,
        chosen=[Message(role="assistant", content=case.correction)],
        rejected=[Message(role="assistant", content=case.response)],
        margin=1.0,
        evidence=json.dumps(evidence, ensure_ascii=False, sort_keys=True),
    )
