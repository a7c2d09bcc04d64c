"""What holds requests to one endpoint back: how many at a time, how many a minute, and a breaker for one that is gone.

Nothing here knows HTTP. Every part takes its clock from outside, so that tests need not wait.

Sources: D. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989 (add one,
halve); M. Nygard, "Release It!", 2007, chapter 5 (circuit breaker with a half-open state); M. Brooker, "Exponential Backoff and
Jitter", AWS Architecture Blog, 2015 ("full jitter").
Deviation: as in TCP, one bad moment halves once; what was sent before the last halving does not halve again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]
LONGEST_WAIT = 600.0
"""Seconds: the longest pause of an open breaker before its next probe."""
LONGEST_BACKOFF = 60.0
"""Seconds: the longest wait of a request before its next attempt."""


def backoff(first: float, attempt: int) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 1): any time up to ``first``, twice as long after each."""
    return random.uniform(0, min(LONGEST_BACKOFF, first * 2 ** min(attempt - 1, 16)))


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or wake when the run stops."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)


class Bucket:
    """A token bucket that holds one second's worth (at least one): what is taken in any time t is at most that + rate x t.

    Something larger than the bucket goes when the bucket is full, and leaves a debt; so does usage above what was reserved.

    Args:
        per_minute: the rate.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._size = max(1.0, self._rate)
        self._level = self._size
        self._clock = clock
        self._time = clock()

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` may be taken; 0: now."""
        self._fill()
        short = min(amount, self._size) - self._level
        return 0.0 if short <= 1e-9 else short / self._rate

    def take(self, amount: float) -> None:
        """Take, whether it is there or not. A negative amount gives back what was reserved and not used."""
        self._fill()
        self._level = min(self._size, self._level - amount)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._time) * self._rate)
        self._time = now


class Rates:
    """When the next request may go: after a wait that the endpoint asked for, and within requests and tokens a minute.

    Who comes first goes first, so a large request is not starved by small ones.

    Args:
        requests_per_minute, tokens_per_minute: the limits; None: none.
        clock, sleep: time, and waiting for it.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._clock, self._sleep = clock, sleep
        self._held = 0.0
        """When the endpoint wants to hear again."""
        self._turn = asyncio.Lock()

    def hold(self, seconds: float) -> None:
        """Let nothing go for so long."""
        self._held = max(self._held, self._clock() + seconds)

    def free(self, tokens: int) -> bool:
        """Whether a request that may use so many tokens need not wait."""
        return not self._turn.locked() and self._wait(tokens) <= 0

    async def acquire(self, tokens: int) -> None:
        """Wait until a request that may use so many tokens may be sent, and take them."""
        async with self._turn:
            while (seconds := self._wait(tokens)) > 0:
                await self._sleep(min(seconds, 1.0))  # what others give back meanwhile may shorten it
            if self._requests:
                self._requests.take(1)
            if self._tokens:
                self._tokens.take(tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Say what a request really used."""
        if self._tokens:
            self._tokens.take(used - reserved)

    def _wait(self, tokens: int) -> float:
        held = self._held - self._clock() if self._held else 0.0
        one = self._requests.wait(1) if self._requests else 0.0
        return max(held, one, self._tokens.wait(tokens) if self._tokens else 0.0)


@dataclass
class Gate:
    """How many requests may be in flight: starts at ``most``, halves under pressure, grows by one a clean window.

    A window is as many good answers in a row as there may be requests in flight.
    """

    most: int
    limit: int = 0
    """Requests that may be in flight now: from 1 to ``most``."""
    in_flight: int = 0
    _clean: int = 0
    _round: int = 0
    """Halvings so far."""
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limit = self.limit or self.most

    @property
    def full(self) -> bool:
        """Whether the next one waits."""
        return self.in_flight >= self.limit

    async def enter(self) -> int:
        """Wait for a place; the number of the round is handed back to ``leave``."""
        while self.full:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._wake()  # it had been called, and goes: the next one's turn
                raise
            finally:
                if place in self._waiting:
                    self._waiting.remove(place)
        self.in_flight += 1
        return self._round

    def leave(self, round_: int, *, pressed: bool, clean: bool) -> None:
        """Give the place back.

        Args:
            round_: what ``enter`` gave.
            pressed: it met a 429 or a timeout. clean: it was answered.
        """
        self.in_flight -= 1
        if pressed:
            self._clean = 0
            if round_ == self._round:
                self.limit = max(1, self.limit // 2)
                self._round += 1
        elif clean and self.limit < self.most:
            self._clean += 1
            if self._clean >= self.limit:
                self.limit, self._clean = self.limit + 1, 0
        self._wake()

    def _wake(self) -> None:
        free = self.limit - self.in_flight
        while free > 0 and self._waiting:
            place = self._waiting.pop(0)
            if not place.done():
                place.set_result(None)
                free -= 1


class Breaker:
    """Opens after ``after`` requests in a row without any answer, then lets single probes through.

    Between probes it waits ``pause`` seconds, twice as long after each one that failed, ``LONGEST_WAIT`` at most. After ``probes``
    failed probes nobody is there.

    Args:
        after, pause, probes: as above.
        clock: seconds, never going back.
    """

    def __init__(self, after: int, pause: float, probes: int, clock: Clock = time.monotonic) -> None:
        self._after, self._pause, self._probes = after, pause, probes
        self._clock = clock
        self._changed = asyncio.Event()
        self._next = 0.0
        self._probing = False
        self.open = False
        self.silent = 0
        """Requests in a row without any answer."""
        self.failed_probes = 0

    @property
    def dead(self) -> bool:
        """Whether all probes failed."""
        return self.failed_probes >= self._probes

    async def enter(self) -> bool:
        """Wait until something may be sent. True: it is the probe, and ``heard`` or ``unheard`` must follow (or ``abandon``)."""
        while self.open and not self.dead:
            if self._probing:
                await self._change(None)
            elif (wait := self._next - self._clock()) > 0:
                await self._change(wait)
            else:
                self._probing = True
                return True
        return False

    def heard(self) -> None:
        """Somebody is there: an answer came, or a refusal of this one request."""
        self.silent = self.failed_probes = 0
        if self.open:
            self.open = self._probing = False
            self._tell()

    def unheard(self, *, probe: bool, whole: bool = True) -> None:
        """No answer came.

        Args:
            probe: ``enter`` gave True for it.
            whole: a request was given up, not only one of its attempts.
        """
        if probe and self.open:
            self.failed_probes += 1
            self._probing = False
            self._next = self._clock() + min(LONGEST_WAIT, self._pause * 2**self.failed_probes)
            self._tell()
        elif whole:
            self.silent += 1
            if self.silent >= self._after and not self.open:
                self.open = True
                self._next = self._clock() + self._pause

    def abandon(self) -> None:
        """The probe was stopped before it could say anything."""
        self._probing = False
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
