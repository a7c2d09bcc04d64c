"""A judge of bad cases: for what a case expects and no program can tell, points by its rubric and its reference answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from steps.lib.asking import Tally
from steps.lib.case_choice import expected_of, last_turn
from steps.lib.digests import digest_text
from steps.lib.hearing import Progress
from steps.lib.rows import BadCase
from steps.lib.rubric import Answered, RubricConfig, rubric, rubric_externals
from steps.lib.suite_cases import Grader


def grader(
    config: RubricConfig,
    ledger: Path,
    *,
    seed: int,
    log: logging.Logger,
    progress: Progress | None = None,
    earlier: Sequence[Path] = (),
    tally: Tally | None = None,
) -> Grader:
    """The judge of a run's bad cases; an answer passes from ``min_score`` on.

    Args and errors are those of ``rubric.rubric``. A case without a reference is held against its correction.
    """

    def ask(cases: Sequence[BadCase], answers: Sequence[str]) -> list[float | None]:
        asked = [_question(number, *both) for number, both in enumerate(zip(cases, answers, strict=True))]
        grades = rubric(config, asked, ledger, seed=seed, log=log, progress=progress, earlier=earlier, tally=tally)
        passed = [grades[one.key].passed for one in asked]
        return [None if one is None else float(one) for one in passed]

    facts = {"min_score": config.min_score, **rubric_externals(config)}
    return Grader(digest=digest_text(json.dumps(facts, sort_keys=True)), ask=ask)


def _question(number: int, case: BadCase, answer: str) -> Answered:
    expected = expected_of(case)
    return Answered(
        key=f"{case.id}-{number}",
        prompt=last_turn(case),
        answer=answer,
        reference=expected.reference or case.correction,
        rubric=expected.rubric,
    )
