"""Texts that say nearly the same as an earlier one: ROUGE-L against all of them, exact, with few comparisons.

Source: Lin, "ROUGE" (ACL 2004), section 3.1 (ROUGE-L with beta 1), with the threshold of Self-Instruct (arXiv 2212.10560,
section 2.2, "Filtering and Postprocessing": 0.7 to any earlier instruction). A common subsequence is never longer than the
tokens that two texts share, and an inverted index counts those for all earlier texts at once; only those that share enough
are compared.
Deviations:
  1. Tokens are those of ``shingles``: a run of letters or digits, or one CJK character. Self-Instruct splits at spaces and
     throws Chinese away.
  2. No stemming: there is none for Chinese, and the two languages are to be measured alike.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from steps.lib.shingles import tokens

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Near:
    """The earlier text that is most like a new one."""

    name: str
    score: float
    """ROUGE-L, 0 to 1."""


def rouge_l(one: str, other: str) -> float:
    """ROUGE-L of two texts, 0 to 1: twice their longest common subsequence over the sum of their lengths, in tokens."""
    return _rouge(tokens(one), tokens(other))


class NearIndex:
    """Texts so far, by their tokens, 4 bytes each in two places; the texts themselves are not kept.

    Args:
        threshold: ROUGE-L from which a text counts as near, above 0.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._texts: list[array[int]] = []
        self._lengths = array("I")
        self._holders: dict[tuple[int, int], array[int]] = {}
        """Token and which copy of it in its text -> texts that hold it."""
        self._bare: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, text: str) -> None:
        """Take a text in."""
        words = array("I", [self._numbers.setdefault(token, len(self._numbers)) for token in tokens(text)])
        number = len(self._names)
        self._names.append(name)
        self._texts.append(words)
        self._lengths.append(len(words))
        if not words:
            self._bare.setdefault(text.strip(), number)
        for token in _numbered(words):
            self._holders.setdefault(token, array("I")).append(number)

    def nearest(self, text: str) -> Near | None:
        """The most alike of the texts that reach the threshold; of equals the earliest. None: there is none.

        A text without a letter or a digit is near to an equal one only.
        """
        import numpy as np

        words = [self._numbers.get(token, -1) for token in tokens(text)]
        if not words:
            found = self._bare.get(text.strip())
            return None if found is None else Near(self._names[found], 1.0)
        holders = [self._holders[token] for token in _numbered(words) if token in self._holders]
        if not holders:
            return None
        shared = np.bincount(np.concatenate([np.frombuffer(one, np.uint32) for one in holders]), minlength=len(self))
        least = self._threshold * (np.frombuffer(self._lengths, np.uint32) + len(words)) / 2
        best: tuple[float, int] | None = None
        for number in np.flatnonzero(shared >= least - 1e-9).tolist():
            score = _rouge(words, self._texts[number])
            if score >= self._threshold and (best is None or score > best[0]):
                best = score, number
        return None if best is None else Near(self._names[best[1]], best[0])


def _numbered(words: Iterable[T]) -> Iterator[tuple[T, int]]:
    copies: Counter[T] = Counter()
    for word in words:
        copies[word] += 1
        yield word, copies[word]


def _rouge(one: Sequence[T], other: Sequence[T]) -> float:
    return 2 * _common(one, other) / (len(one) + len(other)) if one and other else 0.0


def _common(one: Sequence[T], other: Sequence[T]) -> int:
    """Length of the longest common subsequence, by bit vectors (Hyyrö, IWOCA 2004)."""
    places: dict[T, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(one)) - 1
    rows = full
    for token in other:
        hit = rows & places.get(token, 0)
        rows = (rows + hit) | (rows - hit)
        rows &= full
    return len(one) - rows.bit_count()
