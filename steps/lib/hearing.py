"""Hearing a judge: questions go to one teacher through a ledger of their own, and strict replies come back.

What a judge was asked once is never asked, or paid for, again: by content, in this run, in a run that was stopped, and in the runs
whose ledgers are named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.asking import Request, Requests, Tally
from steps.lib.exchange import ask
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.rules import parse_strict
from steps.lib.stopping import stop_signals
from steps.lib.teacher import open_client
from steps.lib.teacher_config import AnyTeacher

Progress = Callable[[Iterable[Request], str, int | None], Iterator[Request]]
"""The context's progress bar."""


@dataclass(frozen=True)
class Heard:
    """What came of some questions."""

    replies: dict[str, Reply]
    """Key of a request -> the answer."""
    failures: dict[str, str]
    """Key of a request -> why no answer came."""

    def of(self, request: Request) -> tuple[str | None, str]:
        """The text of a reply, or None with the reason."""
        reply = self.replies.get(request.key)
        return (reply.text, "") if reply else (None, self.failures.get(request.key, "not asked"))


@dataclass(frozen=True)
class Hearing:
    """One judge and its ledger.

    Args:
        teacher: the model that judges.
        ledger: SQLite file; it goes on where a killed run stopped.
        seed: seed of the run.
        log: for counts and warnings.
        earlier: ledgers of other runs, which are read only.
    """

    teacher: AnyTeacher
    ledger: Path
    seed: int
    log: logging.Logger
    earlier: Sequence[Path] = ()

    def ask(
        self,
        make: Callable[[Requests], Sequence[Request]],
        schema: dict[str, Any],
        tally: Tally,
        progress: Progress | None = None,
    ) -> Heard:
        """Ask for all that no ledger holds.

        Args:
            make: the questions.
            schema: JSON Schema of a reply, for a judge that can be held to one (``structured_output``).
            tally: filled.
            progress: shows how far it is.

        Raises:
            TeacherError: the judge cannot answer at all.
            Resumable: a signal came, or its budget is spent; what was received is in the ledger.
        """
        name = self.teacher.name
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        with stop_signals() as stop, RequestLedger(self.ledger, self.log, self.earlier) as ledger:
            client = open_client(self.teacher, self.seed, ledger.spent(name), folder=self.ledger.parent, log=self.log)
            requests = make(Requests(client, self.seed, schema))
            arrivals = ask({name: (client, requests)}, ledger, stop, self.log, {name: tally})
            for _ in progress(arrivals, "judging", len(requests)) if progress else arrivals:
                pass
            heard = Heard(ledger.get_many([request.key for request in requests]), ledger.failures())
        stop.check()
        return heard


def closing_forms(text: str) -> list[str]:
    """Where a verdict may stand: the whole reply, or its last line."""
    whole = text.strip()
    return list(dict.fromkeys((whole, whole.splitlines()[-1].strip()))) if whole else []


def closing_object(text: str, fields: frozenset[str]) -> dict[str, Any] | None:
    """The JSON object that is the whole reply or its last line, where it has no other fields than these; else None."""
    for form in closing_forms(text):
        try:
            value = parse_strict(form)
        except ValueError:
            continue
        if isinstance(value, dict) and set(value) <= fields:
            return value
    return None


def reply_schema(field: str, values: Sequence[Any]) -> dict[str, Any]:
    """JSON Schema of a reply: a reason, then one of the values. The reason comes first, so that the verdict follows from it."""
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, field: {"enum": list(values)}},
        "required": ["reason", field],
        "additionalProperties": False,
    }
