"""JSON as rows are written in it: one value a line, a list, or values one behind the other, also spread over lines.

What Python's reader takes and nobody else does is refused, with a reason: a name twice in one object, NaN and Infinity, numbers
past the range of a float, brackets nested without end. A list is read in windows; no more than one row and one block are in memory.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import IO, Any

from steps.lib import lines
from steps.lib.lines import START, Mark, Unreadable

MAX_DEPTH = 100
"""Brackets inside brackets that a row may have."""


class Refused(ValueError):
    """JSON that is not taken: a reason code, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused("duplicate_key", f"name {twice!r:.60} stands twice in one object")
    return found


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Refused("number", f"number {digits:.40} is past the range of a float")
    return value


def _constant(name: str) -> Any:
    raise Refused("number", f"{name} is no number of JSON; write null")


_scan: Any = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant).scan_once  # type: ignore[attr-defined]


def value_of(text: str) -> Any:
    """The value of a text without white space around it, or ``Unreadable``. A byte order mark before it, which files that were put
    together have in the middle, is no part of it."""
    try:
        value, end = _scan(text, 0)
        if end != len(text):
            return Unreadable("json", _described(text, json.JSONDecodeError("Extra data", text, end)), text)
    except StopIteration as stop:
        if text.startswith("\ufeff"):
            return value_of(text[1:])
        return Unreadable("json", _described(text, json.JSONDecodeError("Expecting value", text, stop.value)), text)
    except (ValueError, RecursionError) as error:
        return _unreadable(text, error)
    return value if _flat(text, value) else _too_deep(text)


def _unreadable(text: str, error: Exception) -> Unreadable:
    if isinstance(error, Refused):
        return Unreadable(error.reason, str(error), text)
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return Unreadable("number", f"a whole number has too many digits ({error!s:.60})", text)
    return _too_deep(text) if isinstance(error, RecursionError) else Unreadable("json", _described(text, error), text)


def _too_deep(text: str) -> Unreadable:
    return Unreadable("too_deep", f"brackets are nested more than {MAX_DEPTH} deep", text)


def _flat(text: str, value: Any) -> bool:
    """Whether a value is nested no deeper than ``MAX_DEPTH``."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return True
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for one in level
            if isinstance(one, (dict, list))
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return True
    return not any(isinstance(one, (dict, list)) for one in level)


_COMMENT = re.compile(r"\s*(//|/\*|#)")


def _described(text: str, error: Exception) -> str:
    """What is wrong with a text that is no JSON, and the likely cause."""
    assert isinstance(error, json.JSONDecodeError)
    at, said = error.pos, f"not JSON ({error.msg} at character {error.pos + 1})"
    if "\0" in text:
        return f"{said}; it holds NUL bytes"
    if _COMMENT.match(text, at):
        return f"{said}; JSON has no comments"
    if text[at : at + 1] == "'" or text[:2] in ("{'", "['"):
        return f"{said}; strings stand in double quotes, not in single ones"
    if text[at : at + 1] in ("}", "]") and text[:at].rstrip().endswith(",") or "trailing comma" in error.msg:
        return f"{said}; a comma stands before the closing bracket"
    if error.msg == "Extra data":
        return f"{said}; one line holds one value"
    if "control character" in error.msg:
        return f"{said}; line ends and tabs inside a string are written \\n and \\t"
    return f"{said}; perhaps cut off"


_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
_WORD = re.compile(r"[^\s,\]}]+")
_BLANK = re.compile(r"[ \t\r\n]*")
_ESCAPED = re.compile("[\udc80-\udcff]")


class Broken(Exception):
    """JSON in which no row can be told from the next: where, and what was seen."""


class Window:
    """A part of a text, and values in it.

    Args:
        file: stands at the offset of ``at``.
        at: where to begin.
    """

    def __init__(self, file: IO[bytes], at: Mark = START) -> None:
        self._file, self._text, self._at, self._base = file, "", 0, at.offset
        self._line, self._counted = at.line, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._ended = self._bad = False
        while self._fill() and not self._text:
            pass
        if not at.offset and self._text.startswith("\ufeff"):
            self._at = 1

    @property
    def line(self) -> int:
        """Line of the next character."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    @property
    def offset(self) -> int:
        """Bytes before the next character."""
        return self._base + len(self._text[: self._at].encode("utf-8", "surrogateescape"))

    def peek(self) -> str:
        """The next character that is no white space, which is where the window then stands; "" at the end."""
        while True:
            found = _BLANK.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def take(self) -> None:
        """Go behind the next character."""
        self._at += 1

    def value(self) -> Any:
        """The next value, or ``Unreadable``; the window then stands behind it.

        Raises:
            Broken: it has no end within ``MAX_ROW``.
        """
        while True:
            error: Exception | None = None
            try:
                value, end = _scan(self._text, self._at)
            except (ValueError, RecursionError) as caught:
                error, end = caught, -1
            except StopIteration as stop:
                error, end = json.JSONDecodeError("Expecting value", self._text, stop.value), -1
            whole = end if end >= 0 else self._end()
            if 0 <= whole < len(self._text) or self._ended:
                break
            if len(self._text) - self._at > lines.MAX_ROW:
                raise Broken(f"the row that begins in line {self.line} has no end within {lines.MAX_ROW:,} bytes")
            self._fill()
        begin, self._at = self._at, whole if whole >= 0 else len(self._text)
        if error is None and not self._bad:
            if self._text.count("[", begin, self._at) + self._text.count("{", begin, self._at) <= MAX_DEPTH:
                return value
            return value if _flat(self._text[begin : self._at], value) else _too_deep(self._text[begin : self._at])
        text = self._text[begin : self._at]
        if _ESCAPED.search(text):
            return lines.text_of(text.encode("utf-8", "surrogateescape"))
        if error is None:
            return value if _flat(text, value) else _too_deep(text)
        found = value_of(text)
        return found if isinstance(found, Unreadable) else _unreadable(text, error)

    def _end(self) -> int:
        """Where the value that begins here ends, by its brackets and quotes alone; -1: not in this window."""
        if self._text[self._at : self._at + 1] not in ("{", "[", '"'):
            word = _WORD.match(self._text, self._at)
            return word.end() if word else self._at + 1
        depth = 0
        for token in _TOKEN.finditer(self._text, self._at):
            mark = token[0]
            if mark == '"':
                return -1
            depth += (mark in "[{") - (mark in "]}") if len(mark) == 1 else 0
            if depth <= 0:
                return token.end()
        return -1

    def _fill(self) -> bool:
        """Read on; False at the end."""
        if self._ended:
            return False
        self._line, self._base, self._text = self.line, self.offset, self._text[self._at :]
        self._at = self._counted = 0
        block = self._file.read(max(lines.BLOCK, 2 * len(self._text)))
        self._ended = not block
        new = self._decoder.decode(block, final=not block)
        self._text += new
        if not new.isascii() and not self._bad:
            self._bad = bool(_ESCAPED.search(new))
        return not self._ended


def list_rows(window: Window, row: int = 0) -> Iterator[tuple[int, Any]]:
    """The values of a list, numbered from 1. The window stands at its "[" or, where ``row`` values were read, behind
    the last of them.

    Raises:
        Broken: a row without an end, no comma between two values, or no "]" behind the last.
    """
    if not row:
        window.take()
        if window.peek() == "]":
            window.take()
            return
    elif not _more(window, row):
        return
    while True:
        if window.peek() in ("", "]", ","):
            cause = "the list has no end; perhaps it is cut off" if not window.peek() else "a comma too many"
            raise Broken(f"{cause} (behind row {row}, line {window.line})")
        line, row = window.line, row + 1
        found = window.value()
        if isinstance(found, Unreadable) and not window.peek():
            raise Broken(f"row {row}, which begins in line {line}, has no end; perhaps the file is cut off")
        yield row, found
        if not _more(window, row):
            return


def _more(window: Window, row: int) -> bool:
    """Whether another value comes behind one; the window goes behind the comma or the "]"."""
    after = window.peek()
    if after not in (",", "]"):
        cause = f"{after!r} where a comma or ] is needed" if after else "no ] at the end; perhaps it is cut off"
        raise Broken(f"{cause} (behind row {row}, line {window.line})")
    window.take()
    return after == ","


def values(window: Window) -> Iterator[tuple[int, Any]]:
    """Values one behind the other, numbered from 1."""
    row = 0
    while window.peek():
        row += 1
        yield row, window.value()
