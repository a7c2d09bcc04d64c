"""File formats: JSON, JSONL, CSV, Parquet and plain text as records with their line. All are streamed, from any row on.

A file that is no file of rows is a ``DataError``; a row that cannot be read is ``Unreadable``, and the next one follows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steps.lib import json_text, lines
from steps.lib.csv_text import Csv
from steps.lib.errors import DataError
from steps.lib.json_shape import Shape, shape_of
from steps.lib.json_text import Broken, Window
from steps.lib.lines import START, Mark, Record
from steps.lib.plain_text import documents_of, one_document
from steps.lib.tables import count_rows, table_rows

JSON = (".json", ".jsonl", ".ndjson")
CSV = (".csv", ".tsv")
PLAIN = (".txt", ".md")
SUFFIXES = (*JSON, *CSV, ".parquet", *PLAIN)
STRIDE = 1000
"""Rows between two places that are remembered."""

Documents = Literal["line", "blank_line", "file"]


@dataclass(frozen=True)
class Way:
    """How a file is read, as far as it can be said."""

    documents: Documents = "line"
    """What ends a document of a plain text file."""
    delimiter: str | None = None
    """What stands between the cells of a CSV file; None looks."""


@dataclass(frozen=True)
class Survey:
    """What one pass over a file tells: small, and the same in every process."""

    rows: int
    """Records, unreadable ones among them."""
    marks: tuple[Mark, ...] = (START,)
    """Places of every ``STRIDE``-th record."""

    def mark(self, row: int) -> Mark:
        """The last place before a record that is remembered."""
        return self.marks[min(row // STRIDE, len(self.marks) - 1)]


def records(path: Path, way: Way, start: int = 0) -> Iterator[Record]:
    """Records of a file in its order, behind the first ``start``; the suffix names the format.

    Cost of ``start``: none in Parquet but the rows before it in its row group; elsewhere one pass over the file, which a
    process does once (``survey``), and at most ``STRIDE`` rows. In a packed file all before it is unpacked.

    Raises:
        DataError: the file is no file of rows.
    """
    suffix, _ = lines.endings(path)
    if suffix == ".parquet":
        return table_rows(path, start)
    if suffix in PLAIN and way.documents == "file":
        return itertools.islice(one_document(path), start, None)
    at = survey(path, way).mark(start) if start else START
    return itertools.islice((record for record, _ in _walk(path, way, at)), start - at.row, None)


def survey(path: Path, way: Way) -> Survey:
    """How many records a file has, and where they are. Remembered as long as the file is the same.

    Cost: Parquet, the footer; JSONL, a pass that only looks for line ends; all others, a pass that reads every record.
    """
    suffix, _ = lines.endings(path)
    if suffix == ".parquet":
        return Survey(count_rows(path))
    return _survey(path, way, lines.stamp(path))


@functools.lru_cache(maxsize=256)
def _survey(path: Path, way: Way, stamp: tuple[int, int, int]) -> Survey:
    suffix, _ = lines.endings(path)
    if suffix in PLAIN and way.documents == "file":
        return Survey(sum(1 for _ in one_document(path)))
    marks, rows = [], 0
    if suffix in JSON and shape_of(path).kind == "lines":
        with lines.unpacked(path) as file:
            for number, offset, data in lines.lines(file):
                if data.strip():
                    if rows % STRIDE == 0:
                        marks.append(Mark(rows, number, offset) if rows else START)
                    rows += 1
        return Survey(rows, tuple(marks) or (START,))
    last = START
    for _, here in _walk(path, way, START):
        if rows % STRIDE == 0:
            marks.append(last)
        rows += 1
        last = here() if rows % STRIDE == 0 else last
    return Survey(rows, tuple(marks) or (START,))


def _walk(path: Path, way: Way, at: Mark) -> Iterator[tuple[Record, Any]]:
    """Records from a mark on, each with a function that gives the mark behind it."""
    suffix, _ = lines.endings(path)
    if suffix in CSV:
        table = Csv(path, way.delimiter)
        return ((record, lambda: table.here) for record in table.read(at))
    if suffix in PLAIN:
        return documents_of(path, way.documents, at)
    shape = shape_of(path)
    return _jsonl(path, at) if shape.kind == "lines" else _json(path, shape, at)


def _jsonl(path: Path, at: Mark) -> Iterator[tuple[Record, Any]]:
    with lines.unpacked(path, at.offset) as file:
        value_of, limit = json_text.value_of, lines.MAX_ROW
        for number, _, data in lines.lines(file, at):
            if line := data.strip():
                try:
                    if len(data) <= limit:
                        yield (number, value_of(line.decode())), None
                        continue
                except UnicodeDecodeError:
                    pass
                yield (number, lines.text_of(data)), None


def _json(path: Path, shape: Shape, at: Mark) -> Iterator[tuple[Record, Any]]:
    """Rows of a list, or values one behind the other."""
    begin = at if at.offset else shape.begin
    with lines.unpacked(path, begin.offset) as file:
        window = Window(file, begin)
        window.peek()
        row = at.row
        try:
            found = json_text.values(window) if shape.kind == "values" else json_text.list_rows(window, at.row)
            for _, value in found:
                row += 1
                done = row
                yield (row, value), lambda: Mark(done, window.line, window.offset)  # noqa: B023
            if shape.kind == "list" and window.peek():
                raise Broken(f"more behind the end of the list (line {window.line})")
        except Broken as broken:
            raise DataError(
                f"file {path} is not JSON: got {broken}; repair it, or name it .jsonl if each line is a row"
            ) from None
