"""How far the answers to one prompt agree: where teachers differ, a prompt says most.

Answers to a prompt stand one behind the other in the stream, so one group is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from steps.lib.likeness import Form, similarity

T = TypeVar("T")
SAME = 1.0 - 1e-9


@dataclass
class Agreement:
    """Sums over all pairs of answers to the same prompt."""

    within: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sum of similarities of pairs by one teacher, and their number."""
    across: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """The same of pairs by two teachers."""
    prompts: int = 0
    """Prompts with two answers or more."""
    same: int = 0
    """Prompts all of whose answers are equal."""

    def compare(self, answers: Sequence[str], teachers: Sequence[str]) -> list[float | None]:
        """Mean similarity of each answer to the others; None for a single one."""
        if len(answers) < 2:
            return [None] * len(answers)
        forms = [Form.of(answer) for answer in answers]
        found = [[1.0] * len(forms) for _ in forms]
        for one in range(len(forms)):
            for other in range(one):
                value = similarity(forms[one], forms[other])
                found[one][other] = found[other][one] = value
                side = self.within if teachers[one] == teachers[other] else self.across
                side[0] += value
                side[1] += 1
        self.prompts += 1
        self.same += all(value >= SAME for line in found for value in line)
        return [round((math.fsum(line) - 1.0) / (len(line) - 1), 4) for line in found]

    def add(self, other: Agreement) -> None:
        """Add what was compared elsewhere."""
        for own, more in ((self.within, other.within), (self.across, other.across)):
            own[:] = [one + two for one, two in zip(own, more, strict=True)]
        self.prompts += other.prompts
        self.same += other.same

    def metrics(self) -> dict[str, float | int | str]:
        """Means within and across teachers, and prompts with answers that are all equal; nothing without a pair."""
        found: dict[str, float | int | str] = {}
        for name, (total, pairs) in (("within", self.within), ("across", self.across)):
            if pairs:
                found[f"agreement/{name}_teachers"] = round(total / pairs, 4)
        if self.prompts:
            found["agreement/prompts_compared"] = self.prompts
            found["agreement/prompts_all_same"] = self.same
        return found


def groups(stream: Iterable[T], prompt: Callable[[T], Any]) -> Iterator[list[T]]:
    """Neighbours of the stream with the same prompt."""
    for _, group in groupby(stream, key=prompt):
        yield list(group)


def all_same(values: Sequence[float | None]) -> bool:
    """Whether these agreements say that all answers (two or more) are equal."""
    return len(values) > 1 and all(value is not None and value >= SAME for value in values)
