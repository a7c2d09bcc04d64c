"""What became of the answers of a stage: asked, answered, in the asked form, kept, a teacher, with the reasons of what was lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

Counts = dict[str, dict[str, int]]
"""Teacher -> what -> how many, as plain JSON."""


@dataclass
class Funnel:
    """Counts of one stage, taken answer by answer in the order of its items."""

    teachers: dict[str, Counter[str]] = field(default_factory=dict)
    """Teacher -> asked, answered, parsed, kept, repairs, failed:REASON, dropped:FLAG and flag:FLAG; "" is what was lost before
    a teacher was asked."""
    last: str = ""
    """The last failure, in full."""

    @property
    def asked(self) -> int:
        """Answers that were wanted."""
        return self._total("asked")

    @property
    def answered(self) -> int:
        """Answers that came."""
        return self._total("answered")

    @property
    def parsed(self) -> int:
        """Answers in the asked form."""
        return self._total("parsed")

    @property
    def kept(self) -> int:
        """Answers that no flag kept back."""
        return self._total("kept")

    @property
    def repairs(self) -> int:
        """Requests that asked again for an answer in the asked form."""
        return self._total("repairs")

    @property
    def failed(self) -> Counter[tuple[str, str]]:
        """(Teacher, reason) -> answers that did not come, or prompts that did not fit (of the teacher "")."""
        return Counter(
            {
                (teacher, what.removeprefix("failed:")): count
                for teacher, counts in self.teachers.items()
                for what, count in counts.items()
                if what.startswith("failed:")
            }
        )

    @property
    def dropped(self) -> Counter[str]:
        """Flag -> answers that it kept back."""
        return self._by("dropped:")

    @property
    def flags(self) -> Counter[str]:
        """Flag -> answers that have it, dropped or not."""
        return self._by("flag:")

    def count(self, teacher: str, *what: str, by: int = 1) -> None:
        """Count one answer."""
        own = self.teachers.setdefault(teacher, Counter())
        for one in what:
            own[one] += by

    def since(self, before: Counts) -> Counts:
        """What was counted since ``plain`` gave ``before``."""
        return {
            teacher: {
                what: more for what, count in counts.items() if (more := count - before.get(teacher, {}).get(what, 0))
            }
            for teacher, counts in self.plain().items()
        }

    def plain(self) -> Counts:
        """All counts."""
        return {teacher: dict(counts) for teacher, counts in self.teachers.items()}

    def add(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add what was counted elsewhere."""
        for teacher, more in counts.items():
            self.teachers.setdefault(teacher, Counter()).update(more)

    def measures(self, stage: str) -> dict[str, int]:
        """Metrics of the stage, and of each teacher in it."""
        values = {f"{stage}/{what}": self._total(what) for what in ("asked", "answered", "parsed", "kept", "repairs")}
        values |= {f"{stage}/flags/{flag}": count for flag, count in sorted(self.flags.items())}
        return values | {
            f"funnel/{stage}/{teacher}/{what}": count
            for teacher, counts in self.teachers.items()
            for what, count in counts.items()
            if count and what != "repairs" and not what.startswith("flag:")
        }

    def _total(self, what: str) -> int:
        return sum(counts[what] for counts in self.teachers.values())

    def _by(self, prefix: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for counts in self.teachers.values():
            found.update(
                {what.removeprefix(prefix): count for what, count in counts.items() if what.startswith(prefix)}
            )
        return found
