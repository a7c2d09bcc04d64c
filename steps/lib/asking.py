"""Asking models: requests, clients, and the loop that writes every answer down before anybody reads it.

A client (HTTP, local, scripted) answers requests in any order. ``ask`` sends only what the ledger does not hold,
records each outcome the moment it arrives, and can be killed at any time: the next run asks for what is missing, and
for failures again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from steps.lib.errors import TeacherError
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.runtime import Stop

WATCH_SECONDS = 0.1


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
    seconds: float = 0.0
    """Seconds of model time, summed over requests (in parallel they exceed the clock)."""
    models: set[str] = field(default_factory=set)
    """Model names as answered."""

    def count(self, outcome: Outcome) -> None:
        """Add one outcome."""
        self.attempts += outcome.attempts
        if outcome.reply is None:
            self.failed[outcome.reason.partition(":")[0]] += 1
            return
        self.answered += 1
        self.tokens_in += outcome.reply.tokens_in
        self.tokens_out += outcome.reply.tokens_out
        self.seconds += outcome.reply.seconds
        self.models |= {outcome.reply.model} if outcome.reply.model else set()


def make_request(
    client: Client,
    turns: Sequence[dict[str, str]],
    *,
    prompt: str,
    seed: int,
    sample: int,
    source: str = "",
    schema: dict[str, Any] | None = None,
) -> Request:
    """A request with its key. The seed sent to the model comes from the run's seed, the turns and the sample index."""
    schema = schema if client.sends_schema() else None
    own_seed = _number(seed, list(turns), sample) % 2**31
    key = RequestLedger.key(
        **client.identity(),
        messages=list(turns),
        seed=own_seed,
        sample=sample,
        schema=f"{_number(schema):x}" if schema else "",
    )
    return Request(key, tuple(turns), prompt, own_seed, sample, source, schema)


def draw(*content: Any) -> float:
    """A number in [0, 1) that depends on the content only: not on the process, the order or the machine."""
    return _number(*content) / 2**64


def ask(
    work: Mapping[str, tuple[Client, Sequence[Request]]],
    ledger: RequestLedger,
    stop: Stop,
    log: logging.Logger,
    tallies: dict[str, Tally],
) -> Iterator[Request]:
    """Ask for all that the ledger does not hold; yields each request after its outcome was recorded.

    Args:
        work: name -> client and its requests. Clients over a network work side by side, those in this process one by
        one. ledger: answers are written here before they are yielded.
        stop: a signal ends the asking; what is in flight gets a short grace.
        log: for warnings; never sees an answer or a key.
        tallies: filled, by name.

    Raises:
        TeacherError: a teacher could not go on; the others finished first.
        Resumable: ``stop`` was set.
    """
    loop = asyncio.new_event_loop()
    arrivals: asyncio.Queue[Request | None] = asyncio.Queue()
    boss = loop.create_task(_all(work, ledger, stop, arrivals, tallies))
    try:
        while (request := loop.run_until_complete(arrivals.get())) is not None:
            yield request
        loop.run_until_complete(boss)
        stop.check()
    finally:
        boss.cancel()
        with contextlib.suppress(asyncio.CancelledError, TeacherError):
            loop.run_until_complete(boss)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    for name, tally in tallies.items():
        if len(tally.models) > 1:
            log.warning(
                "teacher %s answered as %d models: %s; one endpoint should serve one model",
                name,
                len(tally.models),
                ", ".join(sorted(tally.models)),
            )


async def _all(
    work: Mapping[str, tuple[Client, Sequence[Request]]],
    ledger: RequestLedger,
    stop: Stop,
    arrivals: asyncio.Queue[Request | None],
    tallies: dict[str, Tally],
) -> None:
    async def run(name: str) -> None:
        client, requests = work[name]
        unique = list({request.key: request for request in requests}.values())
        missing = frozenset(request.key for request in unique if ledger.get(request.key) is None)
        tally = tallies.setdefault(name, Tally())
        tally.requests += len(unique)
        tally.from_ledger += len(unique) - len(missing)

        def report(request: Request, outcome: Outcome) -> None:
            if outcome.reply is None:
                ledger.fail(request.key, outcome.reason, attempts=outcome.attempts, source=request.source)
            else:
                ledger.put(request.key, outcome.reply, attempts=outcome.attempts, source=request.source)
            tally.count(outcome)
            arrivals.put_nowait(request)

        if missing:
            await client.answer(unique, missing, report, stopped)

    async def one_by_one(names: list[str]) -> None:
        for name in names:
            await run(name)

    try:
        async with _watch(stop) as stopped:
            chains = [one_by_one([name for name, (client, _) in work.items() if client.alone])]
            chains += [run(name) for name, (client, _) in work.items() if not client.alone]
            errors = [error for error in await asyncio.gather(*chains, return_exceptions=True) if error is not None]
    finally:
        arrivals.put_nowait(None)
    for error in errors:
        if not isinstance(error, TeacherError):
            raise error
    if errors:
        raise TeacherError("\n".join(str(error) for error in errors))


@contextlib.asynccontextmanager
async def _watch(stop: Stop) -> AsyncIterator[asyncio.Event]:
    """An event that follows the flag: a signal handler may set a flag, but cannot wake a sleeping task."""
    event = asyncio.Event()

    async def follow() -> None:
        while not stop:
            await asyncio.sleep(WATCH_SECONDS)
        event.set()

    watcher = asyncio.create_task(follow())
    try:
        yield event
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


def _number(*content: Any) -> int:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
