"""Texts that say nearly the same as an earlier one: ROUGE-L against all of them, in one pass, exact, without comparing all.

Source: Lin, "ROUGE" (ACL 2004), section 3.1 (ROUGE-L with beta 1), with the threshold of Self-Instruct (arXiv 2212.10560,
section 2.2, "Filtering and Postprocessing": 0.7 to any earlier instruction). The index is the prefix filter of set joins
(Chaudhuri, Ganti, Kaushik, ICDE 2006): two texts as near as that share one of their rarest tokens.
Deviations:
  1. Tokens are those of ``dedup``: a run of letters or digits, or one CJK character. Self-Instruct splits at spaces and
     throws Chinese away.
  2. No stemming: there is none for Chinese, and the two languages are to be measured alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steps.lib.dedup import tokens


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
    """Texts so far, by their rarest tokens.

    Args:
        threshold: ROUGE-L from which a text counts as near, above 0.
        common: texts from which the frequency of tokens is taken; the more alike to what comes, the faster. It decides no
        result.
    """

    def __init__(self, threshold: float, common: Iterable[str] = ()) -> None:
        self._threshold = threshold
        counts = Counter(token for text in common for token in tokens(text))
        self._rank = {token: (count, token) for token, count in counts.items()}
        self._names: list[str] = []
        self._texts: list[tuple[str, ...]] = []
        self._postings: dict[tuple[str, int], list[int]] = {}
        self._bare: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, text: str) -> None:
        """Take a text in."""
        words = tuple(tokens(text))
        number = len(self._names)
        self._names.append(name)
        self._texts.append(words)
        if not words:
            self._bare.setdefault(text.strip(), number)
        for token in self._prefix(words):
            self._postings.setdefault(token, []).append(number)

    def nearest(self, text: str) -> Near | None:
        """The most alike of the texts that reach the threshold; of equals the earliest. None: there is none.

        A text without a letter or a digit is near to an equal one only.
        """
        words = tuple(tokens(text))
        if not words:
            found = self._bare.get(text.strip())
            return None if found is None else Near(self._names[found], 1.0)
        seen: set[int] = set()
        bag = Counter(words)
        best: tuple[float, int] | None = None
        for token in self._prefix(words):
            for number in self._postings.get(token, ()):
                if number in seen:
                    continue
                seen.add(number)
                other = self._texts[number]
                least = self._threshold * (len(words) + len(other)) / 2
                if min(len(words), len(other)) < least or (bag & Counter(other)).total() < least - 1e-9:
                    continue
                score = _rouge(words, other)
                if score >= self._threshold and (best is None or (score, -number) > (best[0], -best[1])):
                    best = score, number
        return None if best is None else Near(self._names[best[1]], best[0])

    def _prefix(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """The rarest tokens, one of which any near text has among its own rarest; the n-th copy of a token is one of its own.

        A text of n tokens at ROUGE-L t has at least t n / (2 - t) of them in common with the other one.
        """
        copies: Counter[str] = Counter()
        numbered: list[tuple[str, int]] = []
        for word in words:
            copies[word] += 1
            numbered.append((word, copies[word]))
        shared = math.ceil(self._threshold * len(words) / (2 - self._threshold) - 1e-9)
        numbered.sort(key=lambda one: (self._rank.get(one[0], (0, one[0])), one[1]))
        return numbered[: len(words) - shared + 1]


def _rouge(one: Sequence[str], other: Sequence[str]) -> float:
    return 2 * _common(one, other) / (len(one) + len(other)) if one and other else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit vectors (Hyyrö, IWOCA 2004)."""
    places: dict[str, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(one)) - 1
    rows = full
    for token in other:
        hit = rows & places.get(token, 0)
        rows = (rows + hit) | (rows - hit)
        rows &= full
    return len(one) - rows.bit_count()
