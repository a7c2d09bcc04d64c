"""A client at work: the jobs that wait for it, and its outcomes, which are committed to the ledger before anybody reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from steps.lib.asking import Batching, Client, Outcome, Request, Single, Tally
from steps.lib.errors import PreflineError
from steps.lib.ledger import Reply, RequestLedger

P = TypeVar("P")
NOT_ASKED = "not_asked"


@dataclass(eq=False, slots=True)
class Job(Generic[P]):
    """One answer that is wanted, and what became of it."""

    payload: P
    teacher: str
    request: Request | None
    """The request that is open, or was last; None: nothing is to be asked, the job is done."""
    reply: Reply | None = None
    reason: str = ""
    """Why there is no reply."""
    asked: bool = False
    """Whether this run asked, in place of the ledger."""
    done: bool = False
    waiter: asyncio.Future[None] | None = None

    def settle(self, settle: Settle[P], reply: Reply | None, reason: str = "") -> bool:
        """Take what became of the request. True: there is a new one."""
        self.reply, self.reason = reply, reason
        follow = settle(self)
        if follow is None:
            self._finish()
            return False
        self.request = follow
        return True

    def leave(self) -> None:
        """The teacher is gone: it was not asked, and stays pending in the ledger."""
        self.reply, self.reason = None, NOT_ASKED
        self._finish()

    def _finish(self) -> None:
        """Nothing is open any more."""
        self.done = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


Settle = Callable[[Job[P]], Request | None]
"""Reads a job's reply; gives the request to follow it up with (a repair), or None when the job is done."""


@dataclass(slots=True)
class Window:
    """Consecutive jobs of a batching client, with what the ledger held."""

    jobs: list[Job[Any]]
    settle: Settle[Any]


class Desk:
    """One client at work, from its first missing request to the end."""

    def __init__(self, name: str, client: Client, tally: Tally) -> None:
        self.name, self.client, self.tally = name, client, tally
        self.single = isinstance(client, Single)
        self.window = client.window if isinstance(client, Batching) else 1
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.flying: dict[str, list[tuple[Job[Any], Settle[Any]]]] = {}
        """Key -> jobs that wait for this request: it is sent once."""
        self.error: PreflineError | None = None
        """Why this client cannot go on."""
        self.task: asyncio.Task[None] | None = None


class Recorder:
    """Writes outcomes into the ledger; those that arrive in the same turn of the loop in one transaction.

    Args:
        ledger: of the requests.
        loop: the one that asks.
        broken: told when the ledger cannot be written.
    """

    def __init__(
        self, ledger: RequestLedger, loop: asyncio.AbstractEventLoop, broken: Callable[[Exception], None]
    ) -> None:
        self._ledger, self._loop, self._broken = ledger, loop, broken
        self._arrived: list[tuple[Desk, Request, Outcome]] = []
        self._committed: asyncio.Future[None] | None = None

    def write(self, desk: Desk, request: Request, outcome: Outcome) -> None:
        """Write one outcome now."""
        about = {
            "teacher": desk.name,
            "stage": request.stage,
            "prompt_file": request.prompt_file,
            "source": request.source,
        }
        if outcome.reply is None:
            used = Reply("", tokens_in=outcome.tokens_in, tokens_out=outcome.tokens_out, cost=outcome.cost)
            self._ledger.fail(request.key, outcome.reason, attempts=outcome.attempts, used=used, **about)
        else:
            self._ledger.put(request.key, outcome.reply, attempts=outcome.attempts, **about)

    async def written(self, desk: Desk, request: Request, outcome: Outcome) -> None:
        """Wait until an outcome is committed."""
        self._arrived.append((desk, request, outcome))
        if self._committed is None:
            self._committed = self._loop.create_future()
            self._loop.call_soon(self._commit)
        await asyncio.shield(self._committed)

    def _commit(self) -> None:
        arrived, committed = self._arrived, self._committed
        self._arrived, self._committed = [], None
        assert committed is not None
        try:
            try:
                with self._ledger.together():
                    for one in arrived:
                        self.write(*one)
            except OSError:  # a full disk may have room for some
                for one in arrived:
                    self.write(*one)
        except Exception as error:
            committed.set_exception(error)
            committed.exception()  # seen: those who wait may be gone
            self._broken(error)
        else:
            for desk, _, outcome in arrived:
                desk.tally.count(outcome)
            committed.set_result(None)
