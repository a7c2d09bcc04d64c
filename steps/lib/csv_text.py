"""CSV and TSV: a header, then a row a record; the comma, or what else is between the cells, is given or found.

A record that cannot be taken is kept as it stands there. A quote that is closed in the wrong place, or never, would swallow the
lines behind it: its line alone is set aside, and reading goes on with the next.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.lib import lines
from steps.lib.errors import DataError
from steps.lib.lines import START, Mark, Unreadable

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
"""What is looked for between cells."""
LOOKED_AT = 20
"""Lines by which it is found."""

Line = tuple[int, int, bytes]


class Csv:
    """Reads a file. Between two records, ``here`` is the place of the next.

    Args:
        path: the file.
        delimiter: what is between cells; None looks.

    Raises:
        DataError: no header, or a delimiter that cannot be told.
    """

    def __init__(self, path: Path, delimiter: str | None = None) -> None:
        csv.field_size_limit(2**31 - 1)
        self.path = path
        with lines.unpacked(path) as file:
            head = [line for line, _ in zip(lines.lines(file, old_mac=True), range(LOOKED_AT), strict=False)]
        self.delimiter = delimiter or self._found([data for _, _, data in head])
        self._waiting, self._used = deque[Line](), list[Line]()
        self._source: Iterator[Line] = iter(head)
        first = next(self._records(), None)
        read = lines.text_of(b"".join(data for _, _, data in self._used))
        if isinstance(read, Unreadable):
            raise DataError(f"file {path} has a header that cannot be read: got {read.detail}; save it as UTF-8")
        self.header = first if isinstance(first, list) else []
        if not all(name.strip() for name in self.header) or len(set(self.header)) != len(self.header) or not first:
            shown = ", ".join(self.header) if isinstance(first, list) else str(first)
            raise DataError(
                f"file {path} has no header: got {shown!r:.120} as its first line, because "
                "that line must name each column once; add it"
            )
        self._begin = Mark(0, *self._behind(START))
        self.here = self._begin

    def read(self, at: Mark = START) -> Iterator[tuple[int, Any]]:
        """(Line in which it begins, record or ``Unreadable``) of each record from a mark on."""
        at = at if at.offset else self._begin
        row = at.row
        with lines.unpacked(self.path, at.offset) as file:
            self._waiting.clear()
            self._source = lines.lines(file, at, old_mac=True)
            for cells in self._records():
                used = self._used
                if isinstance(cells, Unreadable):
                    self._waiting.extendleft(reversed(used[1:]))
                    del used[1:]
                if cells == [] or all(not data.strip() for _, _, data in used):
                    continue
                row += 1
                self.here = Mark(row, *self._behind(self.here))
                yield used[0][0], self._record(cells, used)

    def _record(self, cells: list[str] | Unreadable, used: list[Line]) -> Any:
        raw = b"".join(data for _, _, data in used)
        if isinstance(cells, Unreadable):
            text = raw.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
            return Unreadable(cells.reason, cells.detail, cells.raw or text)
        if any(len(data) > lines.MAX_ROW for _, _, data in used):
            return lines.text_of(max((data for _, _, data in used), key=len))
        read = lines.text_of(raw)
        if isinstance(read, Unreadable):
            return read
        text = read.rstrip("\r\n")
        if "\0" in text:
            return Unreadable("nul", "the row holds NUL bytes", text)
        if cells == self.header:
            return Unreadable("csv", "the header stands here again; two files were put together", text)
        if len(cells) != len(self.header):
            span = f", in lines {used[0][0]} to {used[-1][0]}" if len(used) > 1 else ""
            return Unreadable("csv", f"{len(cells)} cells, where the header names {len(self.header)}{span}", text)
        return dict(zip(self.header, cells, strict=True))

    def _records(self) -> Iterator[list[str] | Unreadable]:
        """Cells of each record; its lines are in ``_used``."""
        while True:
            self._used = []
            reader = csv.reader(self._feed(), strict=True, delimiter=self.delimiter)
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                said = "a quote is opened, and never closed"
                if "unexpected end" not in str(error):
                    where = f" in line {self._used[-1][0]}" if len(self._used) > 1 else ""
                    said = f"not CSV ({error}{where}); a quote inside a cell must be doubled"
                yield Unreadable("csv", said, "")

    def _feed(self) -> Iterator[str]:
        """Lines as csv wants them, noted as used."""
        size = 0
        while True:
            line = self._waiting.popleft() if self._waiting else next(self._source, None)
            if line is None:
                return
            self._used.append(line)
            size += len(line[2])
            if size > lines.MAX_ROW and len(self._used) > 1:
                raise csv.Error("field larger than a row may be")
            yield line[2].decode("utf-8", "replace")

    def _behind(self, before: Mark) -> tuple[int, int]:
        """Line and offset behind the last record."""
        if not self._used:
            return before.line, before.offset
        number, offset, data = self._used[-1]
        return number + 1, offset + len(data)

    def _found(self, head: list[bytes]) -> str:
        """What stands between the cells: it cuts the header into several, and the lines below it into as many."""
        if lines.endings(self.path)[0] == ".tsv":
            return "\t"
        texts = [data.decode("utf-8", "replace") for data in head]
        wide: dict[str, float] = {}
        for mark in DELIMITERS:
            reader = csv.reader(iter(texts), delimiter=mark)
            widths = [len(cells) for cells in reader if cells]
            if widths and widths[0] > 1:
                wide[mark] = sum(width == widths[0] for width in widths) / len(widths)
        best = [mark for mark, share in wide.items() if share == max(wide.values())]
        if len(best) > 1:
            raise DataError(
                f"file {self.path} can be read in {len(best)} ways: got {' and '.join(DELIMITERS[mark] for mark in best)} in its "
                "first line, and both cut the lines below it alike; set `delimiter` of the source"
            )
        return best[0] if best else ","
