"""How alike two texts are, by their characters: Chinese has no blanks to split at.

Texts are folded first: case, blanks and punctuation tell no two answers apart. JSON is compared by its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from steps.lib.rules import parse_strict

SIZE = 4
"""Characters of a shingle: most of a word of English, two words of Chinese."""
_JOINTS = re.compile(r"[\W_]+")
_ASCII_JOINTS = bytes(code for code in range(128) if not chr(code).isalnum())


def folded(text: str) -> str:
    """The text in small letters, without blanks and punctuation; without blanks alone where nothing else is in it."""
    small = text.casefold()
    bare = small.encode().translate(None, _ASCII_JOINTS).decode() if small.isascii() else _JOINTS.sub("", small)
    return bare or "".join(text.split())


def shingles(text: str, size: int = SIZE) -> frozenset[str]:
    """Pieces of ``size`` characters of a folded text; a shorter text is its own piece."""
    return frozenset([text[place : place + size] for place in range(max(1, len(text) - size + 1))])


@lru_cache(maxsize=4096)
def known_shingles(text: str, size: int = SIZE) -> frozenset[str]:
    """``shingles`` of a text that comes again: examples, and the instructions of a prompt file."""
    return shingles(text, size)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared share of two sets: 1 when they are equal."""
    if not one or not other:
        return float(one == other)
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def as_json(text: str) -> Any:
    """The object or list that the text is; None when it is no JSON, or a bare value."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return parse_strict(text)
    except ValueError:
        return None


def said(text: str) -> str:
    """What an answer says in words: the text, or the strings of its JSON that are more than a label (labels are one word of Latin
    letters, or numbers)."""
    value = as_json(text)
    if value is None:
        return text
    return "\n".join(leaf for _, leaf in _leaves(value) if isinstance(leaf, str) and not _LABEL.fullmatch(leaf))


@dataclass(frozen=True)
class Form:
    """A text made ready to be compared with many."""

    text: str
    words: frozenset[str]
    """Shingles of the folded text."""
    places: dict[str, Any] | None
    """Place -> value or shingles of a string, of the JSON that the text is; None: it is no JSON."""

    @classmethod
    def of(cls, text: str) -> Form:
        """The form of a text."""
        value = as_json(text)
        words = shingles(folded(text))
        if value is None:
            return cls(text, words, None)
        places = {place: shingles(folded(leaf)) if isinstance(leaf, str) else leaf for place, leaf in _leaves(value)}
        return cls(text, words, places)


def similarity(one: Form, other: Form) -> float:
    """How alike two answers are, 0 to 1.

    Text: Jaccard over character shingles. JSON: 1 when the values are equal; else the mean over all places of either, where
    strings count by their shingles, other values by being equal, and a place that one of the two lacks counts 0.
    """
    if one.text == other.text:
        return 1.0
    if one.places is None or other.places is None:
        return jaccard(one.words, other.words)
    places = one.places.keys() | other.places.keys()
    return sum(_equal(one.places.get(place, _LACKS), other.places.get(place, _LACKS)) for place in places) / len(places)


_LACKS = object()
_LABEL = re.compile(r"[A-Za-z0-9_.:-]*")


def _equal(one: Any, other: Any) -> float:
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return jaccard(one, other)
    return float(type(one) is type(other) and one == other)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no other, with its place."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{place}/{name}")
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}/{number}")
    else:
        yield place, value
