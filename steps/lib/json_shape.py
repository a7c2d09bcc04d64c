"""How the rows stand in a JSON file: a value a line, one list, a list inside an object, or values one behind the other."""

from __future__ import annotations

import functools
import itertools
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from steps.lib import json_text, lines
from steps.lib.errors import DataError
from steps.lib.json_text import Broken, Window
from steps.lib.lines import START, Mark, Unreadable

SNIFFED = 20
"""Lines of a .json file that begins with an object and is none, in which rows are looked for."""


@dataclass(frozen=True)
class Shape:
    """How the rows stand in a JSON file."""

    kind: Literal["lines", "list", "wrapped", "values"]
    """A value a line; one list; one list inside one object; values one behind the other."""
    begin: Mark = START
    """Where the list begins."""


ROW_NAMES = frozenset((
    "messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction", "output", "text", "history",
    "preferred_output", "non_preferred_output",
))  # fmt: skip
"""Names by which an object is a row, and not something around a list of rows."""


def shape_of(path: Path) -> Shape:
    """How the rows stand in a JSON file, whatever its name: .json and .jsonl are taken for each other.

    Raises:
        DataError: it begins as an object and is neither a row nor something around one list of rows.
    """
    return _shape(path, lines.stamp(path))


@functools.lru_cache(maxsize=256)
def _shape(path: Path, stamp: tuple[int, int, int]) -> Shape:
    with lines.unpacked(path) as file:
        first = Window(file).peek()
    if first != "{":
        return Shape("list" if first == "[" else "lines")
    with lines.unpacked(path) as file:
        head = [is_object for is_object, _ in zip(_objects_alone(file), range(2), strict=False)]
    if len(head) > 1 and head[0]:
        return Shape("lines")
    try:
        with lines.unpacked(path) as file:
            return _object(path, Window(file))
    except Broken as broken:
        if lines.endings(path)[0] != ".json":
            return Shape("lines")
        with lines.unpacked(path) as file:
            if any(itertools.islice(_objects_alone(file), 1, SNIFFED)):
                return Shape("lines")
        raise DataError(
            f"file {path} is not JSON: got {broken}; repair it, or name it .jsonl if each line is a row"
        ) from None


def _objects_alone(file: IO[bytes]) -> Iterator[bool]:
    """Whether each line that is not blank is an object: one that is refused as a row (a name twice, NaN) is an object, too."""
    for _, _, data in lines.lines(file):
        if line := data.strip():
            try:
                yield len(data) <= lines.MAX_ROW and isinstance(json.loads(line.decode("utf-8", "replace")), dict)
            except (ValueError, RecursionError):
                yield False


def _object(path: Path, window: Window) -> Shape:
    """What the object is with which a file begins. Of a list inside it one row at a time is read."""
    window.peek()
    window.take()
    lists: list[tuple[str, Mark]] = []
    names: list[str] = []
    while window.peek() not in ("}", ""):
        name = window.value()
        if not isinstance(name, str) or window.peek() != ":":
            raise Broken(f"no name and colon inside the object with which it begins (line {window.line})")
        window.take()
        names.append(name)
        if window.peek() == "[":
            place = Mark(0, window.line, window.offset)
            if _objects(window):
                lists.append((name, place))
        elif isinstance(window.value(), Unreadable):
            raise Broken(f"value of {name!r:.40} is not JSON (line {window.line})")
        if window.peek() == ",":
            window.take()
            if window.peek() == "}":
                raise Broken(f"a comma before the closing bracket (line {window.line})")
        elif window.peek() != "}":
            raise Broken(
                f"no comma and no }} behind the value of {name!r:.40} (line {window.line}); perhaps it is cut off"
            )
    window.take()
    if window.peek() or set(names) & ROW_NAMES or not lists:
        return Shape("values")
    if len(lists) > 1:
        raise DataError(
            f"file {path} has several lists of rows: got {', '.join(name for name, _ in lists)}; write the one that is wanted to a "
            "file of its own"
        )
    return Shape("wrapped", lists[0][1])


def _objects(window: Window) -> bool:
    """Go behind a list: whether its first value is an object."""
    rows = json_text.list_rows(window)
    _, first = next(rows, (0, None))
    deque(rows, maxlen=0)
    return isinstance(first, dict)
