"""The cluster bootstrap: whole clusters are drawn, with a fixed seed, and the tails fit few clusters.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval); Hesterberg, What Teachers
Should Know About the Bootstrap, arXiv 1411.5279, section 5.3 (expanded percentiles: with G clusters the plain ones are too narrow
by sqrt((G - 1) / G) and by the normal quantile in place of Student's).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steps.lib.stats_inputs import Floats, Groups

DRAWS = 4000
SEED = 20_241_101
BLOCK = 2_000_000
"""Numbers of a block of draws."""
KEPT = 250
"""Clusters up to which the draws are kept for the next figure (8 MB)."""
NORMAL_FROM = 1000
"""Degrees of freedom from which Student's quantile is the normal one to three digits."""


def percentiles(
    parts: Sequence[Floats], groups: Groups, figure: Callable[[Floats], Floats], confidence: float
) -> tuple[float, float, float]:
    """Value, low and high of a figure that is a function of sums over items.

    Args:
        parts: K numbers an item, each (n,).
        groups: cluster of each item (n,).
        figure: from sums (K,) or (K, D) to the figure () or (D,).
        confidence: share, two-sided.

    Letters: K parts, G clusters, D draws of a block.
    """
    import numpy as np

    totals = np.stack([np.bincount(groups, weights=part) for part in parts])  # (K, G)
    num_clusters = totals.shape[1]
    blocks = (_kept(num_clusters),) if num_clusters <= KEPT else _blocks(num_clusters)
    drawn = [figure(totals @ counts.T) for counts in blocks]  # each (D,)
    tail = _expanded((1 - confidence) / 2, num_clusters)
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    value = float(figure(totals.sum(axis=1)))
    # Percentiles of equal draws can miss the value by a rounding error; the value lies inside.
    return value, min(float(low), value), max(float(high), value)


def _blocks(num_clusters: int) -> Iterator[Floats]:
    """How often each draw has each cluster (D, G), a block of draws at a time."""
    import numpy as np

    random = np.random.Generator(np.random.PCG64(SEED))
    block = max(1, BLOCK // num_clusters)
    for start in range(0, DRAWS, block):
        rows = min(block, DRAWS - start)
        picks = random.integers(0, num_clusters, size=(rows, num_clusters)) + num_clusters * np.arange(rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=rows * num_clusters)
        yield counts.reshape(rows, num_clusters).astype(np.float64)


@functools.lru_cache(maxsize=4)
def _kept(num_clusters: int) -> Floats:
    """The one block of few clusters: the seed is fixed, so all figures over as many clusters have the same draws."""
    (counts,) = _blocks(num_clusters)
    return counts


def _expanded(tail: float, num_clusters: int) -> float:
    """The share to cut off at each side so that the interval covers as Student's would."""
    if num_clusters < 2:
        return 0.0
    stretch = math.sqrt(num_clusters / (num_clusters - 1))
    return NormalDist().cdf(-stretch * student(1 - tail, num_clusters - 1))


@functools.cache
def student(share: float, degrees: int) -> float:
    """Quantile of Student's distribution, for a share above one half."""
    if degrees >= NORMAL_FROM:
        return NormalDist().inv_cdf(share)
    low, high = 0.0, 1.0
    while _within(high, degrees) < 2 * share - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 2 * share - 1 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| < t). Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
