"""A judge: which of two answers is better, asked in both orders.

A judge prefers places, lengths and whatever an answer tells it to prefer. So each pair is asked twice with the
answers swapped, and only a verdict that follows the answer counts; the answers stand between fences that they cannot
know, stripped of anything that looks like a verdict; and a verdict that is not exactly in the asked form is missing,
never a guess.

Source: Zheng et al., "Judging LLM-as-a-Judge", arXiv 2306.05685, section 3.4 (positions swapped; tie when they differ).
Deviation: a verdict that changes with the order is ``inconsistent``, apart from a real ``tie``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from steps.lib.asking import Request, Requests, Tally
from steps.lib.config import Neutral, Section
from steps.lib.hearing import Heard, Hearing, Progress, closing_forms, closing_object, reply_schema
from steps.lib.teacher import identities
from steps.lib.teacher_config import Teacher
from steps.lib.told import Told

Status = Literal["first", "second", "tie", "inconsistent", "unparsed", "failed"]
_FORWARD: dict[str, Status] = {"A": "first", "B": "second", "tie": "tie"}
_BACKWARD: dict[str, Status] = {"A": "second", "B": "first", "tie": "tie"}


class JudgePrompt(Told):
    """What a judge of pairs is told (configs/prompts/judge.yaml); its template may name prompt, first, second and fence."""

    variables = frozenset({"prompt", "first", "second", "fence"})

    def messages(self, prompt: str, first: str, second: str) -> list[dict[str, str]]:
        """The turns for one order of one pair; both orders have one fence."""
        return self.turns(prompt, sorted((first, second)), first=first, second=second)


class JudgeConfig(Section):
    """A judge: a teacher's client with a judge's prompt."""

    teacher: Teacher
    """The model that judges. It should not be the one that wrote the answers."""
    prompt_file: Annotated[Path, Neutral] = Path("configs/prompts/judge.yaml")
    """What it is told; the content is in the key."""


@dataclass(frozen=True)
class Verdict:
    """What a judge said of a pair, over both orders."""

    status: Status
    """first, second or tie when both orders agree; inconsistent, unparsed or failed otherwise."""
    said: tuple[str, str] = ("", "")
    """Verdict in the order given and in the swapped order: A, B, tie, "unparsed" or the reason of a failure."""
    requests: tuple[str, ...] = ()
    """Keys in the judge's request ledger."""
    replies: tuple[str, ...] = ()
    """What it wrote in each order, reason and verdict; "" where no answer came."""

    @property
    def score(self) -> float | None:
        """1 when the first answer won, 0 when the second did, 0.5 for a tie, None when there is no verdict."""
        return {"first": 1.0, "second": 0.0, "tie": 0.5}.get(self.status)


class Judge:
    """Compares answers, each pair in both orders, with its own request ledger.

    Args:
        config: model and prompt file.
        ledger: SQLite file; it goes on where a killed run stopped.
        seed: seed of the run.
        log: for counts and warnings.
        earlier: ledgers of other runs (``earlier.ledgers_beside``), which are read only.
    """

    def __init__(
        self, config: JudgeConfig, ledger: Path, *, seed: int, log: logging.Logger, earlier: Sequence[Path] = ()
    ) -> None:
        self._prompts = JudgePrompt.read(config.prompt_file)
        self._hearing = Hearing(config.teacher, ledger, seed, log, tuple(earlier))
        self.tally = Tally()
        """Requests, tokens and seconds so far."""

    @property
    def prompt_digest(self) -> str:
        """Of what it is told."""
        return self._prompts.digest()

    def compare(
        self, items: Sequence[tuple[str, str, str, str]], progress: Progress | None = None
    ) -> dict[str, Verdict]:
        """Judge pairs.

        Args:
            items: (key, prompt, first answer, second answer); keys are the caller's and unique. Equal answers are a
            tie, unasked. progress: the context's progress bar.

        Raises:
            TeacherError: the judge cannot answer at all.
            Resumable: a signal came, or its budget is spent; verdicts so far are in the ledger.
        """
        both: dict[str, tuple[Request, Request]] = {}

        def make(asked: Requests) -> list[Request]:
            for key, prompt, a, b in items:
                if a.strip() != b.strip():
                    both[key] = (self._request(asked, key, prompt, a, b), self._request(asked, key, prompt, b, a))
            return [request for orders in both.values() for request in orders]

        heard = self._hearing.ask(make, reply_schema("verdict", list(_FORWARD)), self.tally, progress)
        verdicts = {key: _verdict(heard, orders) for key, orders in both.items()}
        return {key: verdicts.get(key, Verdict("tie", ("tie", "tie"))) for key, *_ in items}

    def _request(self, asked: Requests, key: str, prompt: str, first: str, second: str) -> Request:
        turns = self._prompts.messages(prompt, first, second)
        return asked.make(turns, prompt=turns[-1]["content"], source=key)


def judge_externals(config: JudgeConfig) -> dict[str, str]:
    """Content digests of what a judge reads from outside the store: model or rules, and the prompt file."""
    return {
        **identities([config.teacher]),
        f"judge prompt of {config.teacher.name}": JudgePrompt.read(config.prompt_file).digest(),
    }


def parse_verdict(text: str) -> str | None:
    """A, B or tie: ``{"verdict": "A"}`` or ``[[A]]`` as the whole reply or its last line. Anything else is None."""
    for form in closing_forms(text):
        if (mark := re.fullmatch(r"\[\[(A|B|tie)\]\]", form)) is not None:
            return mark.group(1)
    value = (closing_object(text, frozenset({"verdict", "reason"})) or {}).get("verdict")
    return value if isinstance(value, str) and value in _FORWARD else None


def _verdict(heard: Heard, orders: tuple[Request, Request]) -> Verdict:
    said: list[str] = []
    statuses: list[Status] = []
    texts: list[str] = []
    for request, meaning in zip(orders, (_FORWARD, _BACKWARD), strict=True):
        text, reason = heard.of(request)
        texts.append(text or "")
        if text is None:
            said.append(reason)
            statuses.append("failed")
            continue
        verdict = parse_verdict(text)
        said.append(verdict or "unparsed")
        statuses.append(meaning[verdict] if verdict else "unparsed")
    status: Status = next(
        (bad for bad in ("failed", "unparsed") if bad in statuses),
        statuses[0] if statuses[0] == statuses[1] else "inconsistent",
    )
    return Verdict(status, (said[0], said[1]), tuple(request.key for request in orders), tuple(texts))
