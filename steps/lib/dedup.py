"""Near-copies: 5-token shingles, MinHash bands for candidates, exact Jaccard for the verdict; Chinese and English.

Source: DATA.md 3.1, steps 1 to 8, measured there (precision 1.0; all 9,709 pairs with J >= .7 among 100,000 documents).
Deviations:
  1. Each text is lowered alone, so a lower() that changes a length needs no second path.
  2. The random table of characters is the splitmix64 mix of the code point: nothing is drawn, nothing is seeded.
  3. ``near_to`` (texts against guarded ones) takes 64 bands x 2 rows and every candidate of a bucket, not the next 8:
     a miss there is held-out text in the training set. P(candidate) at J .3 is .998.

Letters in shape comments: N texts, T tokens, H shingles, C characters of a block.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

WIDTH = 5
"""Tokens a shingle. A text with fewer has none, and is compared by exact content only."""
ROWS = 128
"""Hashes of a signature."""
REACH = 8
"""Candidates of one bucket are paired up to this distance (DATA.md 3.1: the distance of 1 misses 7 % of clusters)."""
SLACK = 0.15
"""Estimated similarity may be this much below the threshold: 3.7 standard deviations of 128 hashes."""

_BLOCK = 200
_P = 0x9E3779B97F4A7C15
_Q = 0xC2B2AE3D27D4EB4F
_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x3040, 0x30FF), (0xAC00, 0xD7AF), (0x20000, 0x2FA1F),
)  # fmt: skip
_WORDS = ((0x0000, 0x303F), (0xFF00, 0xFFEE))


@dataclass(frozen=True)
class Shingles:
    """Shingle hashes of N texts, one after another."""

    flat: Hashes
    """(H,) all hashes; a hash may stand twice in a text."""
    offsets: NDArray[np.int64]
    """(N + 1,) text i has flat[offsets[i] : offsets[i + 1]]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def unique(self, text: int) -> Hashes:
        """The set of hashes of one text, sorted."""
        import numpy as np

        return np.unique(self.flat[self.offsets[text] : self.offsets[text + 1]])


def tokens(text: str) -> list[str]:
    """Tokens of a text in plain Python: what ``shingles`` hashes. Runs of letters and digits; single CJK characters."""
    table, words, run = _classes(), [], ""
    for letter in text.lower():
        kind = table[ord(letter)]
        if kind != 1 and run:
            words.append(run)
            run = ""
        if kind == 2:
            words.append(letter)
        elif kind == 1:
            run += letter
    return [*words, run] if run else words


def shingles(texts: Sequence[str]) -> Shingles:
    """Shingle hashes of every text."""
    import numpy as np

    flats: list[Hashes] = []
    counts: list[NDArray[np.int64]] = []
    for start in range(0, len(texts), _BLOCK):
        hashes, count = _block([text.lower() for text in texts[start : start + _BLOCK]])
        flats.append(hashes)
        counts.append(count)
    offsets = np.zeros(len(texts) + 1, np.int64)
    if texts:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    return Shingles(np.concatenate(flats) if flats else np.zeros(0, np.uint64), offsets)


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of near-copies.

    Args:
        texts: N texts.
        threshold: smallest exact Jaccard similarity of the shingle sets, above 0.

    Returns:
        (i, j, jaccard) with i < j, sorted.
    """
    import numpy as np

    cut = shingles(texts)
    full = np.flatnonzero(np.diff(cut.offsets))
    signed = _sign(cut, full)  # (F, 128), F texts with shingles
    found: list[Any] = []
    for keys in _bands(signed, 32):
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for distance in range(1, REACH + 1):
            same = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not len(same):
                break
            one, other = order[same], order[same + distance]
            found.append(np.minimum(one, other) * len(full) + np.maximum(one, other))
    if not found:
        return []
    left, right = np.divmod(np.unique(np.concatenate(found)), len(full))
    agree = _agreeing(signed, signed, left, right)
    return list(_verified(cut, cut, full[left], full[right], agree, threshold))


def clusters(number: int, pairs: Sequence[tuple[int, int, float]]) -> list[int]:
    """Label of each of ``number`` texts: the smallest member of its cluster (union-find over the pairs)."""
    parent = list(range(number))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other, _ in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(node) for node in range(number)]


def near_to(texts: Sequence[str], guarded: Sequence[str], threshold: float) -> dict[int, tuple[int, float]]:
    """Texts that are near-copies of a guarded text.

    Returns:
        text -> (the guarded text most like it, exact Jaccard).
    """
    import numpy as np

    cut, guard = shingles(texts), shingles(guarded)
    full, posts = np.flatnonzero(np.diff(cut.offsets)), np.flatnonzero(np.diff(guard.offsets))
    if not len(full) or not len(posts):
        return {}
    signed, kept = _sign(cut, full), _sign(guard, posts)
    codes: NDArray[Any] = np.zeros(0, np.int64)
    for keys, marks in zip(_bands(signed, 64), _bands(kept, 64), strict=True):
        order = np.argsort(marks, kind="stable")
        marks = marks[order]
        first, last = np.searchsorted(marks, keys, "left"), np.searchsorted(marks, keys, "right")
        hits = last - first  # (F,) guarded texts in the same bucket
        text = np.repeat(np.arange(len(full)), hits)
        place = np.arange(len(text)) - np.repeat(np.cumsum(hits) - hits, hits) + np.repeat(first, hits)
        codes = np.union1d(codes, text * len(posts) + order[place])
    left, right = np.divmod(codes, len(posts))
    nearest: dict[int, tuple[int, float]] = {}
    agree = _agreeing(signed, kept, left, right)
    for one, other, score in _verified(cut, guard, full[left], posts[right], agree, threshold):
        if score > nearest.get(one, (0, 0.0))[1]:
            nearest[one] = (other, score)
    return nearest


@functools.cache
def _classes() -> Any:
    """(0x110000,) class of each code point: 2 a token of its own (CJK), 1 part of a run (letters, numbers), 0 a gap."""
    import numpy as np

    table = np.zeros(0x110000, np.uint8)
    for low, high in _WORDS:
        table[low : high + 1] = [unicodedata.category(chr(code))[0] in "LN" for code in range(low, high + 1)]
    for low, high in _CJK:
        table[low : high + 1] = 2
    return table


@functools.cache
def _letters() -> Any:
    """(0x110000,) a random odd number for each code point."""
    import numpy as np

    return _mix(np.arange(1, 0x110001, dtype=np.uint64)) | np.uint64(1)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _block(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Shingle hashes of some lowered texts, and how many each text has."""
    import numpy as np

    codes = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)  # (C,)
    kind = _classes()[codes]
    gap = np.zeros(1, np.uint8)
    starts = np.flatnonzero((kind == 2) | ((kind == 1) & (np.concatenate((gap, kind[:-1])) != 1)))  # (T,)
    ends = np.flatnonzero((kind == 2) | ((kind == 1) & (np.concatenate((kind[1:], gap)) != 1))) + 1
    powers, inverse = np.full(len(codes) + 1, _P, np.uint64), np.full(len(codes) + 1, pow(_P, -1, 2**64), np.uint64)
    powers[0] = inverse[0] = 1
    powers, inverse = np.multiply.accumulate(powers), np.multiply.accumulate(inverse)
    prefix = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(_letters()[codes] * powers[:-1], out=prefix[1:])
    token = _mix((prefix[ends] - prefix[starts]) * inverse[starts])  # (T,)
    firsts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    owner = np.searchsorted(firsts, starts, "right") - 1  # (T,) text of each token
    if len(token) < WIDTH:
        return np.zeros(0, np.uint64), np.zeros(len(texts), np.int64)
    last = len(token) - WIDTH + 1
    total = np.zeros(last, np.uint64)
    for place in range(WIDTH):
        total += token[place : place + last] * np.uint64(pow(_Q, place, 2**64))
    whole = owner[:last] == owner[WIDTH - 1 :]
    return _mix(total[whole]), np.bincount(owner[:last][whole], minlength=len(texts)).astype(np.int64)


def _sign(cut: Shingles, full: NDArray[Any]) -> NDArray[np.uint32]:
    """(F, 128) MinHash signatures of the texts ``full``, all of which have shingles (an empty one would match all)."""
    import numpy as np
    import rensa

    if not len(full):
        return np.zeros((0, ROWS), np.uint32)
    # Texts without shingles take no room in flat, so the offsets of the others are enough.
    offsets = np.append(cut.offsets[full], cut.offsets[-1])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(cut.flat, offsets.astype(np.uint64), ROWS, 42)
    return np.array(matrix.to_rows(), np.uint32)


def _bands(signed: NDArray[np.uint32], number: int) -> Iterator[Hashes]:
    """(F,) bucket keys of each band: sums of the band's hashes times odd multipliers."""
    import numpy as np

    width = ROWS // number
    odd = _mix(np.arange(1, width + 1, dtype=np.uint64)) | np.uint64(1)
    for low, high in pairwise(range(0, ROWS + 1, width)):
        yield _mix((signed[:, low:high].astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64))


def _agreeing(one: NDArray[Any], other: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Share of equal hashes of each candidate, an estimate of Jaccard; in blocks, to bound memory."""
    import numpy as np

    blocks = [np.zeros(0)]
    for low in range(0, len(left), 65536):
        part = slice(low, low + 65536)
        blocks.append((one[left[part]] == other[right[part]]).mean(axis=1))
    return np.concatenate(blocks)


def _verified(
    cut: Shingles, guard: Shingles, left: NDArray[Any], right: NDArray[Any], agree: NDArray[Any], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Candidates whose exact Jaccard reaches the threshold."""
    import numpy as np

    sets: dict[tuple[bool, int], Hashes] = {}
    hopeful = np.flatnonzero(agree >= threshold - SLACK)
    for one, other in zip(left[hopeful].tolist(), right[hopeful].tolist(), strict=True):
        for key, owner in (((False, one), cut), ((cut is not guard, other), guard)):
            if key not in sets:
                sets[key] = owner.unique(key[1])
        mine, theirs = sets[False, one], sets[cut is not guard, other]
        shared = len(np.intersect1d(mine, theirs, assume_unique=True))
        score = shared / (len(mine) + len(theirs) - shared)
        if score >= threshold:
            yield one, other, score
