"""A teacher behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, Ollama, ``transformers serve``, a vendor).

| what came                              | what we do                                                              |
|----------------------------------------|-------------------------------------------------------------------------|
| 408, 409, 429, 5xx, no connection      | again, after full jitter; ``Retry-After`` holds the whole endpoint       |
| 429, no answer in time                 | half as many requests at a time, then one more a clean window            |
| half a JSON body, no choices, no text  | again; then recorded as failed, with the reason                          |
| 400, 422 and other 4xx                 | recorded as failed at once                                               |
| 401, 403, 404, a spent quota           | the teacher stops, once, with a TeacherError                             |
| many requests in a row without answer  | nothing but single probes; when those fail, too, the teacher stops       |
| the next request could pass the budget | nothing new is sent; BudgetSpent                                         |
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from steps.lib.asking import Outcome, Request
from steps.lib.calls import Calls
from steps.lib.errors import BudgetSpent, TeacherError
from steps.lib.ledger import Reply, Spent
from steps.lib.limits import Breaker, Gate, Rates, backoff, pause
from steps.lib.prices import Budget, Usage
from steps.lib.teacher_config import HttpTeacher
from steps.lib.wire import Again, Refused, Wire, lost

T = TypeVar("T")
PATH = "/chat/completions"
LONG_SECONDS = 60.0
"""Seconds: a longer wait that the endpoint asks for is told."""


@dataclass(frozen=True)
class _Pass:
    """What an attempt holds while it is in flight."""

    probe: bool
    round: int
    tokens: int
    reserved: int


class HttpClient:
    """Answers requests over HTTP, one a call, as many calls at once as ``concurrency`` says. Opened in the loop that asks.

    Args:
        config: the endpoint.
        spent: what this teacher used in earlier runs.
        log: for warnings; never sees an answer or a key.

    Raises:
        TeacherError: the key is not there.
        ConfigError: a budget in US dollars without a known price.
    """

    alone = False

    def __init__(self, config: HttpTeacher, spent: Spent | None = None, log: logging.Logger | None = None) -> None:
        self.name = config.name
        self.concurrency = config.concurrency
        self.grace_seconds = config.grace_seconds
        self._config = config
        self._log = log or logging.getLogger("prefline")
        self._wire = Wire(config, self._log)
        self.counts = self._wire.counts
        """Answers by what is worth knowing of them: other_model, cost_estimated."""
        self.budget = Budget(config.name, config.budget_usd, config.budget_tokens, spent or Spent())
        self._fresh()

    def _fresh(self) -> None:
        config = self._config
        self._gate = Gate(config.concurrency)
        self._rates = Rates(config.requests_per_minute, config.tokens_per_minute)
        self._breaker = Breaker(config.give_up_after, config.probe_seconds, config.probes)
        self._dead: TeacherError | None = None
        self._last = ""

    def identity(self) -> dict[str, Any]:
        """Model, endpoint class and sampling; neither address nor key."""
        return self._wire.identity()

    def sends_schema(self) -> bool:
        """Whether answers are held to the schema by the endpoint."""
        return self._config.structured_output is not False

    async def __aenter__(self) -> Self:
        self._fresh()
        self._calls = await Calls(self._wire, self._config.base_url, self._config.timeout_seconds).__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._calls.__aexit__(*error)

    async def ask(self, request: Request, stop: asyncio.Event) -> Outcome | None:
        """All attempts of one request; None when the run stops before they are used up.

        Raises:
            TeacherError: the teacher cannot go on.
            BudgetSpent: this request could pass the budget.
        """
        payload, billed, reason, attempt = self._wire.payload(request), Usage(), "", 0
        while True:
            try:
                held = await self._admitted(payload, stop)
            except (TeacherError, BudgetSpent):
                if not billed:
                    raise
                held = None  # what was paid for is written down; the next request will say it
            if held is None:
                return lost(reason, billed, attempt) if billed else None
            attempt += 1
            try:
                reply, usage = await self._send(payload, held)
            except Again as error:
                billed, reason = billed + error.usage, str(error)
                if self._silence(held, error, attempt):
                    return lost(reason, billed, attempt)
                await pause(backoff(self._config.backoff_seconds, attempt), stop)
            except Refused as error:
                self._breaker.heard()
                return lost(str(error), billed + error.usage, attempt)
            except TeacherError as error:
                self._dead = self._dead or error
                self._breaker.heard()  # those that wait learn of it
            else:
                self._breaker.heard()
                if billed:  # an attempt before
                    whole = billed + usage
                    reply = dataclasses.replace(
                        reply, cost=whole.cost, tokens_in=whole.tokens_in, tokens_out=whole.tokens_out
                    )
                return Outcome(reply, attempts=attempt)

    def _silence(self, held: _Pass, error: Again, attempt: int) -> bool:
        """Take note of an attempt without an answer. Whether the request is given up: not while only probes are sent."""
        if error.after is not None:
            self._rates.hold(error.after)
            if error.after > LONG_SECONDS:
                self._log.warning("teacher %s: its endpoint wants nothing for %.0f seconds", self.name, error.after)
        last = attempt >= self._config.attempts
        if str(error).startswith("empty"):
            self._breaker.heard()
            return last
        self._last = str(error)
        given_up = last and not self._breaker.open
        self._breaker.unheard(probe=held.probe, whole=given_up)
        return given_up

    async def _admitted(self, payload: bytes, stop: asyncio.Event) -> _Pass | None:
        """Everything that an attempt needs before it is sent; None when the run stops first."""
        if stop.is_set():
            return None
        most = self._wire.most(payload)
        tokens = most.tokens_in // 3 + most.tokens_out
        free = not (self._breaker.open or self._gate.full) and self.budget.fits(most) and self._rates.free(tokens)
        admission = self._admit(most, tokens)
        return await (admission if free else _unless(stop, admission))

    async def _admit(self, most: Usage, tokens: int) -> _Pass:
        while True:
            probe = await self._breaker.enter()
            try:
                if self._dead or self._breaker.dead:
                    raise self._dead or self._nobody()
                held = await self._places(probe, most, tokens)
            except BaseException:
                if probe:
                    self._breaker.abandon()
                raise
            if (self._breaker.open and not probe) or self._dead:  # since then
                self._leave(held, Usage())
            else:
                return held

    async def _places(self, probe: bool, most: Usage, tokens: int) -> _Pass:
        """A place among those in flight, money, and last, right before it is sent, its turn."""
        number, reserved = await self._gate.enter(), None
        try:
            reserved = await self.budget.reserve(most)
            await self._rates.acquire(tokens)
        except BaseException:
            if reserved is not None:
                self.budget.settle(reserved, Usage())
            self._gate.leave(number, pressed=False, clean=False)
            raise
        return _Pass(probe, number, tokens, reserved)

    def _leave(self, held: _Pass, used: Usage, *, pressed: bool = False, clean: bool = False) -> None:
        """Give back what an attempt held, less what it used."""
        self._gate.leave(held.round, pressed=pressed, clean=clean)
        self._rates.settle(held.tokens, used.tokens)
        self.budget.settle(held.reserved, used)

    async def _send(self, payload: bytes, held: _Pass) -> tuple[Reply, Usage]:
        """One attempt. What it held is given back, with what it used."""
        started, used, pressed, clean = time.perf_counter(), Usage(), False, False
        unknown = partial(self._wire.unknown, payload)
        try:
            text = await self._calls.text("POST", PATH, data=payload, most=unknown)
            reply, used = self._wire.read(text, payload, time.perf_counter() - started)
            clean = True
            return reply, used
        except (Again, Refused) as error:
            used, pressed = error.usage, isinstance(error, Again) and error.pressed
            raise
        except asyncio.CancelledError:
            if not (used := unknown()):
                raise
            # It may be billed, and a budget holds over runs: so it is written down, in place of going without a word.
            raise Refused("stopped: no answer in the grace of a stop", used) from None
        finally:
            self._leave(held, used, pressed=pressed, clean=clean)

    def _nobody(self) -> TeacherError:
        config, breaker = self._config, self._breaker
        return TeacherError(
            f"teacher {self.name} does not answer: got {breaker.silent} requests in a row without an answer and then "
            f"{breaker.failed_probes} failed probes (last: {self._last}), endpoint {config.endpoint} ({config.base_url}); start or "
            "repair it, then run again: answers received so far are kept"
        )


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives, or None when the run stops first; then it is cancelled."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
