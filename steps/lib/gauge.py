"""How far the asking is: done and total, rate, tokens, cost so far and to come, and when it ends. No clock but the one given."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from steps.lib.amounts import count, duration, money
from steps.lib.asking import Tally

WINDOW = 120.0
"""Seconds that the rate looks back: a teacher that slows down shows within two minutes, and one slow answer does not."""
FIRST, LONGEST = 5.0, 300.0
"""Seconds to the first line of the log, and the longest time between two; in between the time doubles."""


@dataclass(frozen=True)
class Reading:
    """What the gauge shows at one moment."""

    done: int
    """Requests with an outcome, those of earlier runs included."""
    total: int | None
    """None: not known yet."""
    held: int
    """Of ``done``: found in the ledger."""
    failed: int
    rate: float
    """Requests a second, of this run, lately."""
    tokens_in: int
    tokens_out: int
    """Of this run."""
    cost: float
    """US dollars of this run."""
    to_come: float | None
    """US dollars that the rest will cost, if it costs what the answers so far did; None: not known."""
    eta: float | None
    """Seconds to the end at the rate of late; None: not known."""

    def __str__(self) -> str:
        parts = [f"{self.done:,}/{self.total:,}" if self.total is not None else f"{self.done:,}"]
        if self.held:
            parts[0] += f" ({self.held:,} from the ledger)"
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join([*parts, self.brief()])

    def brief(self) -> str:
        """Without the counts, which a progress bar shows itself."""
        parts = [f"{self.rate:.3g} requests/s", f"tokens {count(self.tokens_in)} in {count(self.tokens_out)} out"]
        if self.cost or self.to_come:
            parts.append(
                f"{money(self.cost)} so far" + ("" if self.to_come is None else f", {money(self.to_come)} to come")
            )
        if self.eta is not None and self.done != self.total:
            parts.append(f"{duration(self.eta)} left")
        return ", ".join(parts)


class Gauge:
    """Looks at the tallies of the teachers now and then.

    Args:
        total: requests there will be; None while nobody knows. It may be set later.
        clock: seconds, from any start; it never goes back.
    """

    def __init__(self, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self._clock = clock
        self._start = clock()
        self._held = self._asked = self._failed = 0
        self._tokens_in = self._tokens_out = 0
        self._cost = 0.0
        self._recent: deque[tuple[float, int]] = deque([(self._start, 0)])
        self._wait = FIRST
        self._next = self._start + FIRST

    def look(self, tallies: Iterable[Tally]) -> None:
        """Take the counts over. To be called often: the rate is made of what was seen and when."""
        tallies = list(tallies)
        self._held = sum(tally.from_ledger for tally in tallies)
        self._failed = sum(tally.failed.total() for tally in tallies)
        self._asked = self._failed + sum(tally.answered for tally in tallies)
        self._tokens_in = sum(tally.tokens_in for tally in tallies)
        self._tokens_out = sum(tally.tokens_out for tally in tallies)
        self._cost = sum(tally.cost for tally in tallies)
        now = self._clock()
        if now - self._recent[-1][0] >= WINDOW / 60:
            self._recent.append((now, self._asked))
            while len(self._recent) > 2 and now - self._recent[1][0] >= WINDOW:
                self._recent.popleft()

    def reading(self) -> Reading:
        """What to show now."""
        since, before = self._recent[0]
        seconds = self._clock() - since
        rate = (self._asked - before) / seconds if seconds > 0 else 0.0
        done = self._held + self._asked
        left = None if self.total is None else max(0, self.total - done)
        return Reading(
            done=done,
            total=self.total,
            held=self._held,
            failed=self._failed,
            rate=rate,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            cost=self._cost,
            to_come=None if left is None or not self._asked else left * self._cost / self._asked,
            eta=0.0 if left == 0 else None if left is None or not rate else left / rate,
        )

    def due(self) -> bool:
        """Whether it is time for a line in the log: after 5 s, then after twice as long each time, at most every 5 minutes."""
        now = self._clock()
        if now < self._next:
            return False
        self._wait = min(2 * self._wait, LONGEST)
        self._next = now + self._wait
        return True
