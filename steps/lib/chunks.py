"""Documents in pieces that a teacher can read: cut by its tokens, at paragraphs and sentences, Chinese and English.

Pieces lie in the document by character offsets; together they cover it, and neighbours may share sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Count = Callable[[str], int]
"""Tokens of a text."""

_ENDS = re.compile(r"[。！？!?；;…]+[”’」』）)\"']*\s*|\.[”’」』）)\"']*(?:\s+|$)|\n\s*")
_MARKS = re.compile(r"[，,、：:\s]+")


@dataclass(frozen=True)
class Chunk:
    """One piece of a document."""

    text: str
    """The piece without white space at its ends."""
    start: int
    """Characters of the document before the piece."""
    end: int
    """Characters of the document up to its end."""
    tokens: int
    fresh: int
    """Tokens of it that no earlier piece has."""


def chunks(text: str, count: Count, most: int, overlap: int = 0) -> Iterator[Chunk]:
    """Cut a document.

    Args:
        text: the document.
        count: tokens of a text.
        most: tokens a piece may have, at least 1. Sentences are packed up to it, and a longer one is cut at commas, then
        anywhere.
        overlap: tokens of whole sentences, at most, that a piece repeats from the end of the one before it; less than
        ``most``.

    Yields:
        Pieces in order. Every character that is not white space lies in at least one.
    """
    spans = _spans(text, count, most)
    first, known = 0, 0
    while first < len(spans):
        last = _reach(text, spans, first, count, most)
        start, end = _tight(text, spans[first][0], spans[last - 1][1])
        piece = text[start:end]
        fresh = text[max(start, known) : end].strip()
        yield Chunk(piece, start, end, count(piece), count(fresh) if len(fresh) < len(piece) else count(piece))
        known = end
        if last == len(spans):
            return
        again = last
        while again - 1 > first and count(text[spans[again - 1][0] : end]) <= overlap:
            again -= 1
        # A repeated sentence must leave room for the next new one, or nothing would move.
        while again < last and count(text[spans[again][0] : spans[last][1]].strip()) > most:
            again += 1
        first = again


def _reach(text: str, spans: list[tuple[int, int]], first: int, count: Count, most: int) -> int:
    """End (exclusive) of the longest run of spans from ``first`` that fits: doubling, then halving, so long texts cost little."""

    def fits(end: int) -> bool:
        return count(text[spans[first][0] : spans[end - 1][1]].strip()) <= most

    low, step = first + 1, 1
    while low + step <= len(spans) and fits(low + step):
        low, step = low + step, step * 2
    while step:
        if low + step <= len(spans) and fits(low + step):
            low += step
        step //= 2
    return low


def _spans(text: str, count: Count, most: int) -> list[tuple[int, int]]:
    """Sentences; those over ``most`` in parts."""
    found: list[tuple[int, int]] = []
    for start, end in _sentences(text):
        found += _parts(text, start, end, count, most)
    return found


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Sentences with the white space after them. A full stop ends one only before white space: 3.14 and example.com do not."""
    begin = 0
    for match in _ENDS.finditer(text):
        stop = match.end()
        if text[begin:stop].strip():
            yield begin, stop
            begin = stop
    if text[begin:].strip():
        yield begin, len(text)


def _parts(text: str, start: int, end: int, count: Count, most: int) -> list[tuple[int, int]]:
    """A sentence that is too long, cut near its middle until every part fits: at a comma or a space, else anywhere."""
    if count(text[start:end].strip()) <= most or end - start < 2:
        return [(start, end)]
    middle = (start + end) // 2
    cuts = [start + found.end() for found in _MARKS.finditer(text[start:end]) if 0 < found.end() < end - start]
    cut = min(cuts, key=lambda place: (abs(place - middle), place), default=middle)
    if not start + (end - start) // 4 <= cut <= end - (end - start) // 4:
        cut = middle
    return [*_parts(text, start, cut, count, most), *_parts(text, cut, end, count, most)]


def _tight(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
