"""Asking models: requests, what becomes of them, and what a client can do; ``exchange`` is the loop that asks.

A client is asked one request at a time, many at once (``Single``), or a window of requests at a time (``Batching``). Only
what the ledger does not hold is sent, each outcome is recorded the moment it arrives, and asking can be killed at any
time: the next run asks for what is missing, and for failures again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from steps.lib.ledger import Reply, canonical, text_key


@dataclass(frozen=True)
class Request:
    """One question to one model. ``key`` is made of all that can change the answer, and of nothing else."""

    key: str
    messages: tuple[dict[str, str], ...]
    prompt: str
    """The bare prompt, without system text, template and examples."""
    seed: int
    sample: int
    source: str = ""
    """Id of the row it is asked for."""
    schema: dict[str, Any] | None = None
    """JSON Schema for the answer, for teachers that can be held to one."""
    stage: str = ""
    """Stage of a recipe that asks."""
    prompt_file: str = ""
    """Digest of the prompt file it was rendered from."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a reply, or the reason why none came (a code, then optionally ": detail")."""

    reply: Reply | None
    reason: str = ""
    attempts: int = 1
    cost: float = 0.0
    """US dollars that a request without a reply was billed; a reply has its own."""
    tokens_in: int = 0
    tokens_out: int = 0


OnOutcome = Callable[[Request, Outcome], None]


class Client(Protocol):
    """One way to reach one model. Each is a ``Single`` or a ``Batching``."""

    name: str
    alone: bool
    """Computes in this process: two such clients never run at the same time."""

    def identity(self) -> dict[str, Any]:
        """The client's part of a request key: model, endpoint alias, sampling, max_tokens, chat template."""
        ...

    def sends_schema(self) -> bool:
        """Whether the schema of a request reaches the model (and so belongs into the key)."""
        ...


@runtime_checkable
class Single(Client, Protocol):
    """A model over a network: asked one request at a time, many at once."""

    concurrency: int
    """Requests in flight at a time."""
    grace_seconds: float
    """Seconds that requests in flight get to finish after a stop."""

    async def __aenter__(self) -> Self:
        """Open the transport, in the loop that asks."""
        ...

    async def __aexit__(self, *error: object) -> None:
        """Close the transport."""
        ...

    async def ask(self, request: Request, stop: asyncio.Event) -> Outcome | None:
        """All attempts of one request; None when it was stopped before an answer.

        Raises:
            TeacherError: the teacher cannot go on at all.
            BudgetSpent: the next request may pass its budget.
        """
        ...


@runtime_checkable
class Batching(Client, Protocol):
    """A model in this process, or a file of requests: asked a window at a time."""

    window: int
    """Consecutive requests of this client that are handed over together."""

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Answer the requests whose key is in ``missing``, in any order, and ``report`` each at once.

        Args:
            requests: all requests of the window, so that batches do not depend on where a run was killed.
            missing: keys still to be asked for.
            report: records an outcome.
            stop: when set, nothing new is sent.

        Raises:
            TeacherError: the model cannot answer at all; what was reported stays.
        """
        ...


@dataclass
class Tally:
    """What one client did in one run."""

    requests: int = 0
    from_ledger: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by reason code."""
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    """US dollars, failures included."""
    seconds: float = 0.0
    """Seconds of model time, summed over requests (in parallel they exceed the clock)."""
    models: set[str] = field(default_factory=set)
    """Model names as answered."""

    def count(self, outcome: Outcome) -> None:
        """Add one outcome."""
        self.attempts += outcome.attempts
        if outcome.reply is None:
            self.failed[outcome.reason.partition(":")[0]] += 1
            self.cost += outcome.cost
            return
        self.answered += 1
        self.tokens_in += outcome.reply.tokens_in
        self.tokens_out += outcome.reply.tokens_out
        self.seconds += outcome.reply.seconds
        self.cost += outcome.reply.cost
        self.models |= {outcome.reply.model} if outcome.reply.model else set()


class Requests:
    """Makes requests to one client; what they have in common is worked out once.

    A key is ``RequestLedger.key(**identity, messages=..., seed=..., sample=..., schema=...)``.

    Args:
        client: who will be asked.
        seed: seed of the run.
        schema: JSON Schema of the answers; it counts where the client sends it.
        stage: for the ledger.
        prompt_file: digest, for the ledger.
    """

    def __init__(
        self, client: Client, seed: int, schema: dict[str, Any] | None = None, stage: str = "", prompt_file: str = ""
    ) -> None:
        self._schema = schema if client.sends_schema() else None
        self._seed, self._stage, self._prompt_file = seed, stage, prompt_file
        marks = {name: f"\0{name}" for name in ("messages", "sample", "seed")}
        text = canonical({**client.identity(), **marks, "schema": f"{_number(self._schema):x}" if self._schema else ""})
        self._parts: list[str] = []
        for mark in marks.values():  # sorted by name, as canonical JSON has them
            part, _, text = text.partition(canonical(mark))
            self._parts.append(part)
        self._parts.append(text)

    def make(self, turns: Sequence[dict[str, str]], *, prompt: str, sample: int = 0, source: str = "") -> Request:
        """A request with its key. The seed sent to the model comes from the run's seed, the turns and the sample."""
        said = canonical(turns)
        seed = _hashed(f"[{self._seed},{said},{sample}]") % 2**31
        one, two, three, four = self._parts
        key = text_key(f"{one}{said}{two}{sample}{three}{seed}{four}")
        return Request(key, tuple(turns), prompt, seed, sample, source, self._schema, self._stage, self._prompt_file)


def draw(*content: Any) -> float:
    """A number in [0, 1) that depends on the content only: not on the process, the order or the machine."""
    return _number(*content) / 2**64


def _number(*content: Any) -> int:
    return _hashed(canonical(content))


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
