"""A judge: which of two answers is better, asked in both orders.

A judge prefers places, lengths and whatever an answer tells it to prefer. So each pair is asked twice with the
answers swapped, and only a verdict that follows the answer counts; the answers stand between fences that they cannot
know, stripped of anything that looks like a verdict; and a verdict that is not exactly in the asked form is missing,
never a guess.

Source: Zheng et al., "Judging LLM-as-a-Judge", arXiv 2306.05685, section 3.4 (positions swapped; tie when they differ).
Deviation: a verdict that changes with the order is ``inconsistent``, apart from a real ``tie``.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from pydantic import PrivateAttr, model_validator

from steps.lib.asking import Request, Requests, Tally
from steps.lib.config import Neutral, Section
from steps.lib.exchange import ask
from steps.lib.fences import disarm, fence_of
from steps.lib.ledger import RequestLedger
from steps.lib.prompt_parts import ByLanguage, compile_template
from steps.lib.rows import messages
from steps.lib.rules import Language, language_of, parse_strict, read_values
from steps.lib.runtime import stop_signals
from steps.lib.teacher import identities, open_client
from steps.lib.teacher_config import Teacher

Status = Literal["first", "second", "tie", "inconsistent", "unparsed", "failed"]
VARIABLES = frozenset({"prompt", "first", "second", "fence"})
_FORWARD: dict[str, Status] = {"A": "first", "B": "second", "tie": "tie"}
_BACKWARD: dict[str, Status] = {"A": "second", "B": "first", "tie": "tie"}


class JudgePrompt(Section):
    """What a judge is told (configs/prompts/judge.yaml)."""

    system: ByLanguage
    """System text."""
    user: ByLanguage
    """Template with the variables prompt, first, second and fence (a mark that no answer can know)."""

    _templates: dict[Language, jinja2.Template] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _compile(self) -> JudgePrompt:
        self._templates = {lang: compile_template(self.user.of(lang), VARIABLES) for lang in ("zh", "en")}
        return self

    @classmethod
    def read(cls, path: Path) -> JudgePrompt:
        """Read and check a judge's prompt file.

        Raises:
            ConfigError: naming the file and every wrong field.
        """
        return read_values(cls, path)

    def digest(self) -> str:
        """Digest of the content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def messages(self, prompt: str, first: str, second: str) -> list[dict[str, str]]:
        """The turns for one order of one pair."""
        lang = language_of(prompt)
        fence = fence_of(prompt, *sorted((first, second)))
        text = self._templates[lang].render(
            prompt=disarm(prompt), first=disarm(first), second=disarm(second), fence=fence
        )
        return messages(("system", self.system.of(lang)), ("user", text))


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
    """

    def __init__(self, config: JudgeConfig, ledger: Path, *, seed: int, log: logging.Logger) -> None:
        self._prompts = JudgePrompt.read(config.prompt_file)
        self._config = config
        self._ledger = ledger
        self._seed = seed
        self._log = log
        self.tally = Tally()
        """Requests, tokens and seconds so far."""

    def compare(
        self,
        items: Sequence[tuple[str, str, str, str]],
        progress: Callable[[Iterable[Request], str, int | None], Iterator[Request]] | None = None,
    ) -> dict[str, Verdict]:
        """Judge pairs.

        Args:
            items: (key, prompt, first answer, second answer); keys are the caller's and unique. Equal answers are a
            tie, unasked. progress: the context's progress bar.

        Raises:
            TeacherError: the judge cannot answer at all.
            Resumable: a signal came, or its budget is spent; verdicts so far are in the ledger.
        """
        name = self._config.teacher.name
        with stop_signals() as stop, RequestLedger(self._ledger, self._log) as ledger:
            client = open_client(
                self._config.teacher, self._seed, ledger.spent(name), folder=self._ledger.parent, log=self._log
            )
            asked = Requests(client, self._seed)
            both = {
                key: (self._request(asked, key, prompt, a, b), self._request(asked, key, prompt, b, a))
                for key, prompt, a, b in items
                if a.strip() != b.strip()
            }
            requests = [request for orders in both.values() for request in orders]
            arrivals = ask({name: (client, requests)}, ledger, stop, self._log, {name: self.tally})
            for _ in progress(arrivals, "judging", len(requests)) if progress else arrivals:
                pass
            failures = ledger.failures()
            verdicts = {key: _verdict(ledger, failures, orders) for key, orders in both.items()}
        stop.check()
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
    whole = text.strip()
    for form in (whole, whole.splitlines()[-1].strip()) if whole else ():
        if (mark := re.fullmatch(r"\[\[(A|B|tie)\]\]", form)) is not None:
            return mark.group(1)
        try:
            value: Any = parse_strict(form)
        except ValueError:
            continue
        if (
            isinstance(value, dict)
            and set(value) <= {"verdict", "reason"}
            and value.get("verdict") in ("A", "B", "tie")
        ):
            return str(value["verdict"])
    return None


def _verdict(ledger: RequestLedger, failures: dict[str, str], orders: tuple[Request, Request]) -> Verdict:
    said: list[str] = []
    statuses: list[Status] = []
    for request, meaning in zip(orders, (_FORWARD, _BACKWARD), strict=True):
        reply = ledger.get(request.key)
        if reply is None:
            said.append(failures.get(request.key, "not asked"))
            statuses.append("failed")
            continue
        verdict = parse_verdict(reply.text)
        said.append(verdict or "unparsed")
        statuses.append(meaning[verdict] if verdict else "unparsed")
    status: Status = next(
        (bad for bad in ("failed", "unparsed") if bad in statuses),
        statuses[0] if statuses[0] == statuses[1] else "inconsistent",
    )
    return Verdict(status, (said[0], said[1]), tuple(request.key for request in orders))
