"""Near-copies among rows, and of guarded rows: signatures propose, exact Jaccard of the shingle sets decides; Chinese and English.

Source: DATA.md 3.1, steps 6 and 7. A caller with many rows makes their ``Sketch`` by shard (signatures.py), joins those, and
gives ``texts_of``, which reads the texts of candidates again: no shingles are kept, and what is held is the sketch (260 bytes a
row) and one band (16 bytes a row).
Deviations, each measured (docs/duplicates.md):
  1. Buckets are found in one sort of key and row number in one integer, band by band, and candidates are compared at once.
  2. Exact sets are cut again from the texts, some thousand at a time, and compared by sorting, 62 pairs at a time.
  3. Below .7 a band has 3 rows, below .6 two, not 4: P(candidate) at .6 is .9999 and at .5 practically 1, not .988 and .873.
  4. ``against`` (rows against guarded ones) takes 64 bands x 2 rows and every candidate of a bucket, not the next ones only:
     a miss there is held-out text in the training set. P(candidate) at J .3 is .998.

Letters in shape comments: N rows, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from steps.lib.clusters import Pairs, labels_of
from steps.lib.shingles import blocks, mix
from steps.lib.signatures import BINS, Sketch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from steps.lib.shingles import Hashes, Ints

TextsOf = Callable[["Ints"], Sequence[str]]
"""Row numbers, ascending and each once -> their texts in that order."""

REACH = 8
"""Rows of a large bucket are paired up to this distance (DATA.md 3.1: the distance of 1 misses 7 % of clusters)."""
SMALL = 64
"""Rows of a bucket up to which all are paired."""
ENOUGH = 16
"""Candidates of a row, estimated at the threshold or more, after which it takes no more from large buckets."""
DEVIATIONS = 4.5
"""Standard deviations of a signature's estimate that it may lie below the threshold: .18 at .7, .2 at .5."""
CHUNK = 1 << 22
"""Shingles that are held at a time while pairs are verified: 32 MB, and their texts."""

_PAIRS = 62
"""Pairs that are compared in one sort; six bits stand before the hash."""
_HASH = (1 << 58) - 1


def among(rows: Sketch, texts_of: TextsOf, threshold: float) -> Pairs:
    """Pairs of near-copies among rows.

    Args:
        rows: N sketches.
        texts_of: reads the texts of some rows.
        threshold: smallest exact Jaccard similarity of the shingle sets, above 0.

    Returns:
        Pairs with left < right, sorted.
    """
    return verified(candidates(rows, threshold), rows, texts_of, threshold)


def candidates(rows: Sketch, threshold: float) -> tuple[Ints, Ints]:
    """Pairs that may be near-copies, left < right, sorted: the rows whose texts ``among`` reads.

    A caller whose texts lie in many files can lay those of these rows together in one pass before it calls ``verified``.
    """
    import numpy as np

    full = np.flatnonzero(rows.counts)  # rows with shingles: an empty signature would match all others
    signed = rows.signature if len(full) == len(rows) else rows.signature[full]
    hopeful = np.zeros(0, np.int64)
    taken = np.zeros(len(full), np.int64)  # candidates of each row
    least = _least(threshold)
    for keys in _bands(signed, 4 if threshold >= 0.7 else 3 if threshold >= 0.6 else 2):
        fresh, sure = [hopeful], [hopeful[:0]]
        for left, right, crowded in _neighbours(keys):
            codes = left * len(full) + right
            known = _within(hopeful, codes)
            known |= crowded & (taken[left] >= ENOUGH) & (taken[right] >= ENOUGH)
            codes, left, right = codes[~known], left[~known], right[~known]
            agree = _agreement(signed, signed, left, right)
            fresh.append(codes[agree >= least])
            sure.append(codes[agree >= threshold])
        for side in np.divmod(np.concatenate(sure), len(full)):
            taken += np.bincount(side, minlength=len(full))
        hopeful = _sorted(fresh)
    left, right = np.divmod(hopeful, max(1, len(full)))
    return full[left], full[right]


def against(rows: Sketch, texts_of: TextsOf, guard: Sketch, guard_texts_of: TextsOf, threshold: float) -> Pairs:
    """Pairs of a row (left) and a guarded row (right) that are near-copies, sorted."""
    import numpy as np

    full, posts = np.flatnonzero(rows.counts), np.flatnonzero(guard.counts)
    if not len(full) or not len(posts):
        return _none()
    signed, kept = rows.signature[full], guard.signature[posts]
    hopeful = np.zeros(0, np.int64)
    for keys, marks in zip(_bands(signed, 2), _bands(kept, 2), strict=True):
        order = np.argsort(marks, kind="stable")
        marks = marks[order]
        first, last = np.searchsorted(marks, keys, "left"), np.searchsorted(marks, keys, "right")
        hit = np.flatnonzero(last > first)
        for part in _parts((last - first)[hit]):
            row = hit[part]
            hits = last[row] - first[row]
            left = np.repeat(row, hits)
            right = order[np.arange(len(left)) - np.repeat(np.cumsum(hits) - hits, hits) + np.repeat(first[row], hits)]
            codes = left * len(posts) + right
            codes = codes[~_within(hopeful, codes)]
            left, right = np.divmod(codes, len(posts))
            hopeful = _sorted([hopeful, codes[_agreement(signed, kept, left, right) >= _least(threshold)]])
    left, right = np.divmod(hopeful, len(posts))
    return verified((full[left], posts[right]), rows, texts_of, threshold, guard, guard_texts_of)


def _none() -> Pairs:
    import numpy as np

    return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def _bands(signed: NDArray[np.uint16], width: int) -> Iterator[Hashes]:
    """(N,) bucket keys of each band of ``width`` hashes of a signature, spread over 64 bits."""
    import numpy as np

    for low in range(0, BINS - width + 1, width):
        keys = signed[:, low].astype(np.uint64)
        for place in range(1, width):
            keys <<= np.uint64(16)
            keys |= signed[:, low + place]
        yield mix(keys + np.uint64(1))


def _neighbours(keys: Hashes) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
    """Pairs of rows of a bucket, by distance, and whether it is a large one: all of a small one, else those up to ``REACH`` apart.

    The row's number takes the low bits of its key, so one sort brings buckets together, each in the order of its rows. Keys that
    differ in those bits only share a bucket by chance, and the signatures tell them apart.
    """
    import numpy as np

    bits = np.uint64(max(1, int(len(keys) - 1).bit_length()))
    keys = (keys >> bits << bits) | np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    rows = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    keys >>= bits
    # What stands alone goes first: most rows are in no bucket.
    same = keys[1:] == keys[:-1]
    shared = np.flatnonzero(np.append(same, False) | np.append(False, same))
    keys, rows = keys[shared], rows[shared]
    if not len(keys):
        return
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(first, len(keys)))
    sizes = np.repeat(sizes, sizes)  # of each row's bucket
    at = np.arange(len(keys))
    for distance in range(1, SMALL):
        if distance == REACH + 1:
            at = at[sizes[at] <= SMALL]
        at = at[at < len(keys) - distance]
        at = at[keys[at] == keys[at + distance]]
        if not len(at):
            break
        yield rows[at], rows[at + distance], sizes[at] > SMALL


def _within(ranked: Ints, values: Ints) -> NDArray[np.bool_]:
    """Which values are in a sorted array."""
    import numpy as np

    if not len(ranked):
        return np.zeros(len(values), np.bool_)
    found: NDArray[np.bool_] = ranked[np.minimum(np.searchsorted(ranked, values), len(ranked) - 1)] == values
    return found


def _sorted(parts: Sequence[Ints]) -> Ints:
    """All values, sorted, each once. (``np.unique`` is 20 times as slow: it hashes.)"""
    import numpy as np

    values = np.concatenate(parts)
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _parts(sizes: Ints, most: int = 1 << 20) -> Iterator[slice]:
    """Runs of places whose sizes add up to about ``most``; one that is larger is a run of its own."""
    import numpy as np

    run = np.cumsum(sizes) // most
    edges = [0, *(np.flatnonzero(run[1:] != run[:-1]) + 1).tolist(), len(sizes)]
    for low, high in pairwise(edges):
        if low < high:
            yield slice(low, high)


def _least(threshold: float) -> float:
    """Smallest estimate of a pair that may reach the threshold; it strays like 128 draws, also where bins are borrowed."""
    return float(threshold - DEVIATIONS * (threshold * (1 - threshold) / BINS) ** 0.5)


def _agreement(one: Any, other: Any, left: Ints, right: Ints) -> NDArray[np.float64]:
    """(P,) share of equal hashes of each candidate, an estimate of Jaccard; in blocks, to bound memory."""
    import numpy as np

    equal = np.zeros(len(left))
    for low in range(0, len(left), 16384):
        part = slice(low, low + 16384)
        equal[part] = np.count_nonzero(one[left[part]] == other[right[part]], axis=1)
    return equal / BINS


@dataclass(frozen=True)
class _Sets:
    """Exact shingle sets of some texts, one after another."""

    flat: Hashes
    """Hashes, of each text sorted and each once."""
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Sets:
        import numpy as np

        flats, low = [np.zeros(0, np.uint64)], 0
        starts, sizes = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
        for block in blocks(texts):
            number = len(block.texts)
            keys = block.windows >> np.uint64(6)
            keys |= np.repeat(np.arange(number, dtype=np.uint64) << np.uint64(58), np.diff(block.firsts))
            keys[block.beyond] = np.iinfo(np.uint64).max  # behind all texts
            keys.sort()
            keys = keys[: len(keys) - len(block.beyond)]
            keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
            ends = np.searchsorted(keys, np.arange(1, number + 1, dtype=np.uint64) << np.uint64(58))
            begins = np.append(0, ends[:-1])
            starts[block.texts], sizes[block.texts] = low + begins, ends - begins
            keys &= np.uint64(_HASH)
            flats.append(keys)
            low += len(keys)
        return cls(np.concatenate(flats), starts, sizes)

    def members(self, texts: Ints) -> Hashes:
        """Hashes of some texts, each text's number among them in the upper six bits."""
        import numpy as np

        sizes = self.sizes[texts]
        shift = np.repeat(self.starts[texts] - (np.cumsum(sizes) - sizes), sizes)
        shift += np.arange(len(shift))
        hashes = self.flat.take(shift)
        hashes |= np.repeat(np.arange(len(texts), dtype=np.uint64) << np.uint64(58), sizes)
        return hashes


def verified(
    proposed: tuple[Ints, Ints],
    rows: Sketch,
    texts_of: TextsOf,
    threshold: float,
    guard: Sketch | None = None,
    guard_texts_of: TextsOf | None = None,
) -> Pairs:
    """The proposed pairs whose exact Jaccard reaches the threshold, sorted. A cluster is taken at once: a text is cut once or so.

    With a guard, the right side of a pair is a guarded row.
    """
    import numpy as np

    left, right = proposed
    if not len(left):
        return _none()
    # One line of numbers for both sides; guarded rows stand behind the rows.
    behind = 0 if guard is None else len(rows)
    nodes = _sorted([left, right + behind])
    one, other = np.searchsorted(nodes, left), np.searchsorted(nodes, right + behind)
    order = np.lexsort((one, labels_of(len(nodes), one, other)[one]))
    one, other = one[order], other[order]
    counts = rows.counts if guard is None else np.concatenate((rows.counts, guard.counts))
    weights = counts[nodes].astype(np.int64)
    score = np.zeros(len(one))
    for part in _parts(weights[one] + weights[other], CHUNK):
        needed = _sorted([one[part], other[part]])
        asked = nodes[needed]
        border = len(asked) if guard is None else int(np.searchsorted(asked, behind))
        texts = list(texts_of(asked[:border])) if border else []
        if guard_texts_of is not None and border < len(asked):
            texts += guard_texts_of(asked[border:] - behind)
        sets = _Sets.of(texts)
        score[part] = _jaccard(sets, np.searchsorted(needed, one[part]), np.searchsorted(needed, other[part]))
    good = np.flatnonzero(score >= threshold)
    good = good[np.lexsort((other[good], one[good]))]
    return Pairs(nodes[one[good]], nodes[other[good]] - behind, score[good])


def _jaccard(sets: _Sets, one: Ints, other: Ints) -> NDArray[np.float64]:
    """(P,) exact Jaccard: the hashes of both sides of a pair are sorted together, and the shared ones stand twice."""
    import numpy as np

    shared = np.zeros(len(one), np.int64)
    for low in range(0, len(one), _PAIRS):
        both = np.concatenate((sets.members(one[low : low + _PAIRS]), sets.members(other[low : low + _PAIRS])))
        both.sort()
        twice = both[1:][both[1:] == both[:-1]] >> np.uint64(58)
        count = min(_PAIRS, len(one) - low)
        shared[low : low + count] = np.bincount(twice.astype(np.int64), minlength=count)
    similarity: NDArray[np.float64] = shared / (sets.sizes[one] + sets.sizes[other] - shared)
    return similarity
