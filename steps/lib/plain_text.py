"""Plain text as documents: a line each, lines up to a blank one, or the whole file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.lib import lines
from steps.lib.lines import Mark, Record, Unreadable


def documents_of(path: Path, documents: str, at: Mark) -> Iterator[tuple[Record, Any]]:
    """Documents of a text file: a line each, or lines up to a blank one."""
    with lines.unpacked(path, at.offset) as file:
        kept: list[bytes] = []
        row, size, start = at.row, 0, at.line
        where = Mark()

        def here() -> Mark:
            return where

        for number, offset, data in itertools.chain(lines.lines(file, at, old_mac=True), ((0, 0, b""),)):
            blank = not data.strip() or not data.decode("utf-8", "replace").strip()
            if number and not blank:
                start = start if kept else number
                size = size + len(data) if kept else len(data)
                if size <= lines.MAX_ROW or not kept:
                    kept.append(data)
            if kept and (blank or documents == "line"):
                row += 1
                where = Mark(row, number + (documents == "line"), offset + (len(data) if documents == "line" else 0))
                yield (start, _document(kept, size)), here
                kept = []


def _document(kept: list[bytes], size: int) -> Any:
    if size > lines.MAX_ROW:
        return lines.too_big("document", kept[0][: 4 * lines.KEPT].decode("utf-8", "backslashreplace"))
    text = lines.text_of(b"\n".join(line.rstrip(b"\r\n") for line in kept))
    if isinstance(text, str) and "\0" in text:
        return Unreadable("nul", "the document holds NUL bytes", text)
    return {"text": text} if isinstance(text, str) else text


def one_document(path: Path) -> Iterator[Record]:
    """A file that is one document."""
    with lines.unpacked(path) as file:
        read = file.read(lines.MAX_ROW + 1)
    data = read.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if data.strip():
        yield 1, _document([data], len(read))
