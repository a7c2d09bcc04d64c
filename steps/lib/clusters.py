"""Clusters of near-copies, and which row of each stays.

The rule: of a cluster the row with the best score stays, of equal ones the earliest. (DATA.md 3.1 step 8 lets the number of
neighbours decide; a caller's score is used, since the caller knows what a good row is, and the number of copies does not.)
A cluster is what hangs together by pairs: two of its rows need not be near-copies of each other, only joined by a chain of them.
So each dropped row also names the row it was verified against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from steps.lib.shingles import Ints


@dataclass(frozen=True)
class Pairs:
    """Verified near-copies, P pairs. Among rows of one kind ``left < right``; against others ``right`` counts those."""

    left: Ints
    right: Ints
    jaccard: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class Losers:
    """Rows that go, by number, each with the row that stays and the row it was verified against."""

    rows: Ints
    kept: Ints
    linked: Ints
    """The kept row where that is a near-copy itself, else the nearest one; of equals the earliest."""
    jaccard: NDArray[np.float64]
    """Exact similarity to ``linked``."""


def labels_of(number: int, left: Ints, right: Ints) -> Ints:
    """(number,) label of each row: the smallest row of its cluster.

    Roots are hooked under smaller ones and paths are halved until nothing moves: some passes of numpy for any number of rows.
    Source: FastSV (Zhang, Azad, Hu, SIAM PP 2020).
    """
    import numpy as np

    labels = np.arange(number)
    left, right = np.asarray(left, np.int64), np.asarray(right, np.int64)
    while len(left):
        low = np.minimum(labels[left], labels[right])
        np.minimum.at(labels, labels[left], low)
        np.minimum.at(labels, labels[right], low)
        while True:
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels = further
        apart = labels[left] != labels[right]
        left, right = left[apart], right[apart]
    return labels


def kept_of(labels: Ints, scores: Sequence[float] | NDArray[np.float64] | None = None) -> Ints:
    """(N,) the row of each row's cluster that stays: the best score, then the earliest. No score is worse than any."""
    import numpy as np

    if scores is None:
        return labels
    worth = np.asarray(scores, np.float64)
    order = np.lexsort((np.arange(len(labels)), -np.where(np.isnan(worth), -np.inf, worth), labels))
    ranked = labels[order]
    first = np.append(True, ranked[1:] != ranked[:-1]) if len(ranked) else np.zeros(0, np.bool_)
    best = np.zeros(len(labels), np.int64)
    best[ranked[first]] = order[first]
    return best[labels]


def losers(number: int, pairs: Pairs, scores: Sequence[float] | NDArray[np.float64] | None = None) -> Losers:
    """All rows but one of each cluster; ``scores`` as in ``kept_of``."""
    import numpy as np

    kept = kept_of(labels_of(number, pairs.left, pairs.right), scores)
    one = np.concatenate((pairs.left, pairs.right))
    other = np.concatenate((pairs.right, pairs.left))
    near = np.concatenate((pairs.jaccard, pairs.jaccard))
    goes = one != kept[one]
    one, other, near = one[goes], other[goes], near[goes]
    order = np.lexsort((other, -near, other != kept[one], one))
    one, other, near = one[order], other[order], near[order]
    first = np.append(True, one[1:] != one[:-1]) if len(one) else np.zeros(0, np.bool_)
    return Losers(one[first], kept[one[first]], other[first], near[first])
