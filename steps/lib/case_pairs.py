"""Preference pairs of cases: rejected is the answer that a named production model gave, chosen a correction that somebody
stands for.

A thumb down alone blesses no other answer: without a correction there is no pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steps.lib.case_choice import expected_of, last_turn, prompt_of
from steps.lib.case_events import Author
from steps.lib.case_grams import folded
from steps.lib.quality import Finding
from steps.lib.rows import BadCase, Message, Pair, Thumb
from steps.lib.rules import Task

SOURCE = "badcases"


def pairs_of(
    cases: Sequence[BadCase], task: Task | None, authors: Sequence[Author], models: Sequence[str]
) -> tuple[list[Pair], dict[str, Finding]]:
    """Pairs of cases of the training side, and why the others give none.

    Args:
        cases: in their order.
        task: for expectations that name its rules, and its system line.
        authors: whose corrections count.
        models: names or version digests whose answers may be rejected; empty: any that is named.
    """
    pairs: list[Pair] = []
    others: dict[str, Finding] = {}
    for case in cases:
        if finding := _unpaired(case, task, authors, models):
            others[case.id] = finding
        else:
            pairs.append(pair_of(case, task))
    return pairs, others


def thumbs_of(cases: Sequence[BadCase], unpaired: Mapping[str, Finding], task: Task | None) -> list[Thumb]:
    """Bad answers of the training side that no correction stands beside: a verdict each, for KTO and for a teacher to correct.

    Args:
        cases: of the training side.
        unpaired: why cases give no pair.
        task: its system line goes before a case that has none.
    """
    bare = {"no_correction", "author", "unverified"}
    return [
        Thumb(
            id=f"{SOURCE}-{case.id}",
            lang=case.lang,
            source=SOURCE,
            prompt=prompt_of(case, task),
            completion=[Message(role="assistant", content=case.response)],
            label=False,
            evidence=json.dumps({"case": case.id, "comment": case.comment}, ensure_ascii=False, sort_keys=True),
        )
        for case in cases
        if case.response.strip() and case.id in unpaired and unpaired[case.id][0] in bare
    ]


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


def pair_of(case: BadCase, task: Task | None, **more: Any) -> Pair:
    """Its correction against the recorded answer; ``more`` goes into the evidence."""
    evidence = {
        "case": case.id,
        "cluster": case.cluster,
        "correction_by": case.correction_by,
        "verified": case.verified,
        "model": case.model,
        "model_digest": case.model_digest,
        "severity": case.severity,
        "tags": case.tags,
        **more,
    }
    return Pair(
        id=f"{SOURCE}-{case.id}",
        lang=case.lang,
        source=SOURCE,
        prompt=prompt_of(case, task),
        chosen=[Message(role="assistant", content=case.correction)],
        rejected=[Message(role="assistant", content=case.response)],
        margin=1.0,
        evidence=json.dumps(evidence, ensure_ascii=False, sort_keys=True),
    )
