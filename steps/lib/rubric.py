"""One answer before a judge: a score from 1 to 5 by a rubric, with a reference answer where there is one.

For what no rule can check, such as a bad case whose expectation is an answer. The answer stands between fences that it cannot
know, without anything that looks like a score; a reply that is not exactly in the asked form is missing, never a guess.

Source: Zheng et al. 2023, arXiv 2306.05685, sections 3.1 (single answer grading) and 3.4 (reference-guided).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steps.lib.asking import Request, Requests, Tally
from steps.lib.config import Neutral, Section
from steps.lib.hearing import Hearing, Progress, closing_object, reply_schema
from steps.lib.teacher import identities
from steps.lib.teacher_config import Teacher
from steps.lib.told import Told

BEST = 5


class RubricPrompt(Told):
    """What a judge of single answers is told (configs/prompts/rubric.yaml); its template may name prompt, answer, reference,
    rubric and fence."""

    variables = frozenset({"prompt", "answer", "reference", "rubric", "fence"})
    field = "score"

    def messages(self, asked: Answered) -> list[dict[str, str]]:
        """The turns of one question."""
        texts = (asked.answer, asked.reference, asked.rubric)
        return self.turns(asked.prompt, texts, answer=asked.answer, reference=asked.reference, rubric=asked.rubric)


class RubricConfig(Section):
    """A judge of single answers."""

    teacher: Teacher
    """The model that judges. It should not be the one that wrote the answers."""
    prompt_file: Annotated[Path, Neutral] = Path("configs/prompts/rubric.yaml")
    """What it is told; the content is in the key."""
    min_score: int = Field(4, ge=2, le=BEST)
    """Points (1 to 5) from which an answer passes."""


@dataclass(frozen=True)
class Answered:
    """One answer to be judged."""

    key: str
    """The caller's, unique."""
    prompt: str
    answer: str
    reference: str = ""
    """An answer that is right; "" without one."""
    rubric: str = ""
    """What to look at; "": the prompt file's own words."""


@dataclass(frozen=True)
class Grade:
    """What a judge said of one answer."""

    status: Literal["graded", "unparsed", "failed"]
    score: int | None = None
    """Points, 1 to 5; None without a verdict."""
    passed: bool | None = None
    """Whether the score is at least ``min_score``; None without a verdict."""
    reply: str = ""
    """What the judge wrote, or why it wrote nothing."""
    request: str = ""
    """Key in the judge's request ledger; "" for an empty answer, which gets 1 unasked."""

    def evidence(self, config: RubricConfig) -> dict[str, Any]:
        """For the item's ``judge`` field."""
        return {
            "judge_id": config.teacher.name,
            "judge_prompt_digest": RubricPrompt.read(config.prompt_file).digest(),
            "status": self.status,
            "score": self.score,
            "min_score": config.min_score,
            "request": self.request,
            "reply": self.reply,
        }


def rubric(
    config: RubricConfig,
    items: Sequence[Answered],
    ledger: Path,
    *,
    seed: int,
    log: logging.Logger,
    progress: Progress | None = None,
    earlier: Sequence[Path] = (),
    tally: Tally | None = None,
) -> dict[str, Grade]:
    """Grade answers.

    Args:
        config: judge and prompt file.
        items: answers; an empty one gets 1, unasked.
        ledger: SQLite file; it goes on where a killed run stopped. Judges of pairs may share it.
        seed: seed of the run.
        log: for counts and warnings.
        progress: the context's progress bar.
        earlier: ledgers of other runs, which are read only.
        tally: filled with requests, tokens and cost.

    Raises:
        TeacherError: the judge cannot answer at all.
        Resumable: a signal came, or its budget is spent; grades so far are in the ledger.
    """
    prompts = RubricPrompt.read(config.prompt_file)
    requests: dict[str, Request] = {}

    def make(asked: Requests) -> list[Request]:
        for item in items:
            if item.answer.strip():
                turns = prompts.messages(item)
                requests[item.key] = asked.make(turns, prompt=turns[-1]["content"], source=item.key)
        return list(requests.values())

    hearing = Hearing(config.teacher, ledger, seed, log, tuple(earlier))
    schema = reply_schema("score", range(1, BEST + 1))
    heard = hearing.ask(make, schema, Tally() if tally is None else tally, progress)
    grades: dict[str, Grade] = {}
    for item in items:
        if item.key not in requests:
            grades[item.key] = Grade("graded", 1, False, "an empty answer")
            continue
        request = requests[item.key]
        text, reason = heard.of(request)
        score = parse_score(text) if text is not None else None
        if score is None:
            grades[item.key] = Grade(
                "failed" if text is None else "unparsed", reply=text or reason, request=request.key
            )
        else:
            grades[item.key] = Grade("graded", score, score >= config.min_score, text or "", request.key)
    return grades


def rubric_externals(config: RubricConfig) -> dict[str, str]:
    """Content digests of what the judge reads from outside the store: model or rules, and the prompt file."""
    return {
        **identities([config.teacher]),
        f"rubric prompt of {config.teacher.name}": RubricPrompt.read(config.prompt_file).digest(),
    }


def parse_score(text: str) -> int | None:
    """1 to 5: ``{"score": 4}`` as the whole reply or its last line. Anything else is None."""
    score = (closing_object(text, frozenset({"score", "reason"})) or {}).get("score")
    return score if type(score) is int and 1 <= score <= BEST else None
