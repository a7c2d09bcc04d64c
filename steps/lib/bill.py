"""An estimate as people read it: a line a stage and teacher, and the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steps.lib.amounts import count, duration, money


@dataclass(frozen=True)
class Line:
    """One stage and teacher. Tokens, money and time are of what is still to be asked."""

    stage: str
    teacher: str
    requests: int
    held: int
    """Of ``requests``: answered on record."""
    tokens_in: int
    tokens_out: int
    most_in: int
    most_out: int
    cost: float | None
    """US dollars expected; None: nobody knows the price."""
    most_cost: float | None
    seconds: float | None
    """Expected; None: not known before some answers are on record."""
    basis: str
    """What the expected answers rest on."""
    alone: bool = False
    """Whether the teacher computes in this process, where nothing else runs beside it."""

    @property
    def missing(self) -> int:
        """Requests still to be asked."""
        return self.requests - self.held


@dataclass(frozen=True)
class Estimate:
    """All lines, and what a person must know of them."""

    lines: tuple[Line, ...]
    budgets: tuple[str, ...] = ()
    """For each budget: whether it is enough."""
    notes: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Requests in all, those on record included."""
        return sum(line.requests for line in self.lines)

    @property
    def cost(self) -> tuple[float, float] | None:
        """US dollars expected and at most; None where a line does not know its price."""
        costs = [
            (line.cost, line.most_cost) for line in self.lines if line.cost is not None and line.most_cost is not None
        ]
        if len(costs) < len(self.lines):
            return None
        return math.fsum(cost for cost, _ in costs), math.fsum(most for _, most in costs)

    @property
    def seconds(self) -> float | None:
        """Time of the whole: teachers over a network side by side, those in this process one after the other, beside them."""
        times: dict[str, float] = {}
        for line in self.lines:
            if line.seconds is None:
                return None
            place = "" if line.alone else line.teacher
            times[place] = times.get(place, 0.0) + line.seconds
        return max(times.values(), default=0.0)

    def summary(self) -> str:
        """The whole in one line."""
        missing = sum(line.missing for line in self.lines)
        tokens_in, tokens_out = sum(line.tokens_in for line in self.lines), sum(line.tokens_out for line in self.lines)
        price = "price not known of all" if self.cost is None else cost_of(*self.cost)
        tokens = f"tokens {count(tokens_in)} in {count(tokens_out)} out"
        return f"in all {missing:,} requests, {tokens}, {price}, {time_of(self.seconds)}"

    def words(self) -> list[str]:
        """As lines of a log."""
        said = [
            f"{line.stage} by {line.teacher}: {line.missing:,} requests"
            + (f" ({line.held:,} of {line.requests:,} are on record)" if line.held else "")
            + f", tokens {count(line.tokens_in)} in {count(line.tokens_out)} out"
            f" (at most {count(line.most_in)} in {count(line.most_out)} out), {cost_of(line.cost, line.most_cost)}, "
            f"{time_of(line.seconds)}"
            for line in self.lines
        ]
        return [*said, *([self.summary()] if len(said) > 1 else []), *self.budgets, *self.notes]


def cost_of(cost: float | None, most: float | None) -> str:
    """Money in words."""
    if cost is None or most is None:
        return "price unknown"
    return f"{money(cost)} (at most {money(most)})" if most else "free"


def time_of(seconds: float | None) -> str:
    """Time in words."""
    return "time unknown" if seconds is None else f"about {duration(seconds)}"
