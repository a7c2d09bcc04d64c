"""Rows on their way into training: what is trained on, what is dropped or cut, and what stops the step; each counted and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from steps.lib.errors import DataError
from steps.lib.rows import Dropped, Row, write_parquet
from steps.lib.shards import set_aside
from steps.lib.step import Metrics
from steps.lib.training import TooLong, need_rows

if TYPE_CHECKING:
    from steps.lib.preflight import Findings

R = TypeVar("R", bound=Row)
T = TypeVar("T")
UNUSABLE = "unusable"
"""Reason of rows that stop the step; they are in ``dropped.parquet`` of its work folder, too."""


class Limits(Protocol):
    """How long a row may be, and what becomes of a longer one."""

    @property
    def max_length(self) -> int: ...
    @property
    def too_long(self) -> TooLong: ...


class Intake(Generic[R]):
    """Takes the rows of one kind, and says in the end what became of them."""

    def __init__(self, step: str, kind: str, settings: Limits, found: Findings) -> None:
        """Begin.

        Args:
            step: name of the step.
            kind: what the rows are called, in the plural.
            settings: say how long a row may be, and what becomes of longer ones.
            found: gets what is wrong with rows.
        """
        self._step, self._kind, self._settings, self._found = step, kind, settings, found
        self._dropped: list[Dropped] = []
        self._cut: list[Dropped] = []
        self._long: list[tuple[int, str]] = []
        self._taken = 0

    def encoded(self, row: R, encode: Callable[[], T]) -> T | None:
        """What ``encode`` makes of a row; None when the row itself is wrong, which is noted. A template's fault goes on."""
        self._taken += 1
        try:
            return encode()
        except DataError as error:
            self._found.row(self._kind, row.id, str(error))
            self.drop(row, UNUSABLE, str(error))
            return None

    def fits(self, row: R, length: int) -> bool:
        """Whether so many tokens may be trained on as they are. Else the row is noted, and kept back unless it is to be cut."""
        if length <= self._settings.max_length:
            return True
        self._long.append((length, row.id))
        if not self.cuts:
            self.drop(row, "too_long", self._limit(length))
        return False

    def room(self, row: R, prompt: int, length: int) -> int | None:
        """Tokens that an answer may have; None when the row is kept back, which is noted.

        Args:
            row: the row.
            prompt: tokens of its prompt.
            length: tokens of its prompt with its longest answer.
        """
        left = self._settings.max_length - prompt
        if not self.fits(row, length) and not self.cuts:
            return None
        if left < 1:
            self.drop_long(row, length)
            return None
        return left

    @property
    def cuts(self) -> bool:
        """Whether rows that are too long are cut."""
        return self._settings.too_long == "truncate"

    def drop(self, row: R, reason: str, detail: str) -> None:
        """Keep a row back, whole."""
        self._dropped.append(set_aside(self._step, row, reason, detail))

    def drop_long(self, row: R, length: int) -> None:
        """Keep a row back of which cutting leaves nothing to learn."""
        self.drop(row, "too_long", self._limit(length) + ", nothing to learn before it")

    def cut(self, row: R, length: int, left: int) -> None:
        """Where only some of a row's tokens are trained on, note it; the whole row is kept beside."""
        if left < length:
            self._cut.append(set_aside(self._step, row, "truncated", f"{self._limit(length)}, trained on {left}"))

    def close(self, out: Path, trained: int, became: str = "trained") -> Metrics:
        """Write what was kept back (``dropped.parquet``; ``truncated.parquet`` where rows are cut), and count it all.

        Args:
            out: folder of the step.
            trained: rows that are trained on, cut ones included.
            became: what they are called from here on.
        """
        metrics = Metrics()
        reasons = Counter(row.reason for row in self._dropped)
        write_parquet(out / "dropped.parquet", self._dropped, Dropped)
        metrics.rows.took(self._kind, self._taken)
        metrics.rows.gave(became, trained - len(self._cut))
        if self.cuts:
            write_parquet(out / "truncated.parquet", self._cut, Dropped)
            metrics.rows.gave("truncated", len(self._cut))
        for reason, count in reasons.items():
            metrics.rows.drop(self._kind, reason, count)
        metrics.rows.balance({self._kind: [became, "truncated"] if self.cuts else [became]})
        self._say_long(reasons["too_long"])
        for reason in sorted(reasons.keys() - {"too_long", UNUSABLE}):
            rows = [row for row in self._dropped if row.reason == reason]
            self._found.warn(
                f"{len(rows)} of {self._taken} {self._kind} are dropped as {reason}: got {rows[0].detail} in the first, because "
                f"nothing can be learnt from them ({ids_of([row.id for row in rows])}); look at dropped.parquet"
            )
        if not reasons.keys() & {UNUSABLE}:
            try:
                need_rows(range(trained), self._kind, reasons)
            except DataError as error:
                self._found.error(str(error), DataError)
        return metrics

    def _limit(self, length: int) -> str:
        return f"{length} tokens, limit {self._settings.max_length}"

    def _say_long(self, dropped: int) -> None:
        if not self._long:
            return
        longest, name = max(self._long)
        limit = self._settings.max_length
        fact = (
            f"{len(self._long)} of {self._taken} {self._kind} are longer than max_length: got up to {longest} tokens ({name}), "
            f"because max_length is {limit}"
        )
        if self._settings.too_long == "error":
            self._found.error(
                f"{fact} and too_long is error; raise max_length to {longest}, or set too_long to drop or truncate",
                DataError,
            )
            return
        became = [(len(self._cut), "cut (truncated.parquet)"), (dropped, "dropped (dropped.parquet)")]
        listed = ", ".join(f"{count} are {what}" for count, what in became if count)
        also = f"{listed}: " if listed else ""
        self._found.warn(f"{fact}; {also}raise max_length to {longest} to train on them whole")


def ids_of(names: Sequence[str], most: int = 5) -> str:
    """Ids of rows for a message: the first ones, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
