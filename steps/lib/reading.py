"""The rows of generate's sources, read once as they are asked for, and cut into parts that are finished one by one.

Where a part ends depends on the rows alone: behind ``PART`` prompts, and never between two prompts of the same words, whose answers
are compared. A part that an earlier run finished is not read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from steps.lib.finished import FinishedParts
from steps.lib.opened import Opened
from steps.lib.row_ledger import RowLedger
from steps.lib.rows import Dropped, Prompt, Row
from steps.lib.sources import Rejected

T = TypeVar("T")
PART = 500
"""Answers that a part has at least, unless the sources end."""


@dataclass
class Part:
    """A stretch of rows."""

    start: int
    """Number of its first row, over all sources."""
    finished: bool = False
    """Whether an earlier run wrote down what became of it."""
    prompts: int = 0
    """Prompts so far."""
    closed: bool = False
    """Whether no prompt will be added."""
    stretches: list[list[Any]] = field(default_factory=list)
    """Number of a source, rows read of it, and their ids; no ids and no rows below where no later run asks for them."""
    rejected: list[tuple[str, int, str]] = field(default_factory=list)
    """Rows that could not be read: reason, how many it stands for, and the row for dropped.parquet as JSON."""

    def facts(self) -> dict[str, Any]:
        """What a later run must know of its rows to go on behind them."""
        return {"prompts": self.prompts, "stretches": self.stretches, "rejected": self.rejected}

    def of(self, results: Iterator[T], samples: int) -> Iterator[T]:
        """The results of its prompts, of a stream in which those of all parts stand one behind the other."""
        used = 0
        while not (self.closed and used == self.prompts * samples):
            yield next(results)
            used += 1


class Reading:
    """Prompts of all sources. Iterating gives the rows that are to be worked on; ``parts`` says what they belong to.

    Args:
        sources: which were looked at.
        rows: counts them.
        path: where rows that could not be read wait for their turn.
        samples: answers to a prompt.
        finished: parts that need not be read again; None: all rows are one part.
    """

    def __init__(
        self,
        sources: Sequence[Opened[Any]],
        rows: RowLedger,
        path: Path,
        samples: int,
        finished: FinishedParts | None,
    ) -> None:
        self._sources, self._rows, self._path, self._finished = sources, rows, path, finished
        self._size = max(1, PART // samples)
        self._cursors = [iter(source) for source in sources]
        self._source = 0
        self._place = 0
        """Rows read so far."""
        self._parts: deque[Part] = deque()
        self._part: Part | None = None
        """The one that is open."""
        self._next: Row | None = None
        """The row to be handed out next: a part is closed when its last row is, since the one behind it is known."""
        self._last = ""
        self._ended = False
        self.count = 0
        """Prompts so far."""
        path.write_bytes(b"")

    def __iter__(self) -> Iterator[Row]:
        self._look()
        while (row := self._next) is not None:
            self._next = None
            self._look()
            yield row
        self._rows.balance({"prompts": ["asked prompts"]})

    def parts(self) -> Iterator[Part]:
        """The parts in order, finished ones among them. Each is to be worked on before the next one is asked for."""
        self._look()
        while self._parts:
            yield self._parts.popleft()
            self._look()

    def all(self) -> Iterator[Row | Rejected]:
        """Rows of all sources, uncounted, whatever is finished."""
        for source in self._sources:
            for row in source:
                yield row if isinstance(row, Rejected) else self._named(row)

    def rejected(self) -> Iterator[Dropped]:
        """Rows that could not be read, when all were."""
        with self._path.open(encoding="utf-8") as file:
            yield from (Dropped.model_validate_json(line) for line in file)

    def _look(self) -> None:
        """Read up to the next prompt, or to the end."""
        while self._next is None and not self._ended:
            full = self._part is None or (self._finished is not None and self._part.prompts >= self._size)
            if full and self._finished is not None and (found := self._finished.get(self._place)):
                self._skip(found.facts)
                continue
            start, row = self._place, self._read()
            if row is None:
                self._begin(None)
                self._ended = True
                return
            words = row.prompt if isinstance(row, Prompt) else None
            if self._part is None or (full and words is not None and words != self._last):
                self._begin(Part(start))
            self._take(row)
            self._last = self._last if words is None else words

    def _read(self) -> Row | Rejected | None:
        while self._source < len(self._cursors):
            for row in self._cursors[self._source]:
                self._place += 1
                return row
            self._source += 1
        return None

    def _begin(self, part: Part | None) -> None:
        """Close the part that is open, and open another one; None: the sources ended."""
        if self._part is not None:
            self._part.closed = True
        self._part = part
        if part is not None:
            self._parts.append(part)

    def _take(self, row: Row | Rejected) -> None:
        """Make a row one of the open part."""
        part = self._part
        assert part is not None
        if not part.stretches or part.stretches[-1][0] != self._source:
            part.stretches.append([self._source, 0, []])
        stretch = part.stretches[-1]
        stretch[1] += 1
        if isinstance(row, Rejected):
            rejected = (row.reason, row.count, row.dropped("generate").model_dump_json())
            if self._finished is not None:
                part.rejected.append(rejected)
            self._reject(*rejected)
            return
        if self._finished is not None:
            stretch[2].append(row.id)
        part.prompts += 1
        self._prompts(1)
        self._next = self._named(row)

    def _skip(self, facts: Mapping[str, Any]) -> None:
        """Go behind a part that is finished."""
        self._begin(Part(self._place, finished=True))
        self._begin(None)
        for number, count, ids in facts["stretches"]:
            self._source = number
            self._cursors[number].skip(count, ids)
            self._place += count
        self._prompts(facts["prompts"])
        for reason, count, line in facts["rejected"]:
            self._reject(reason, count, line)

    def _prompts(self, count: int) -> None:
        self._rows.took("prompts", count)
        self._rows.gave("asked prompts", count)
        self.count += count

    def _reject(self, reason: str, count: int, line: str) -> None:
        self._rows.took("prompts", count)
        self._rows.drop("prompts", reason, count)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _named(self, row: Row) -> Row:
        """Two sources may use the same ids; the source's name tells them apart."""
        return row if len(self._sources) == 1 else row.model_copy(update={"id": f"{row.source}/{row.id}"})
