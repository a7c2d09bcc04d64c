"""Intervals for figures, and paired comparisons of two models on the same items.

Items that belong together (one prompt, one document) share a cluster; the bootstrap draws whole clusters. The draws
have a fixed seed: the same items give the same interval. Every interval is two-sided; the bound of a one-sided test at
level c is the bound of the two-sided interval at 2c - 1.

Source: Miller, Adding Error Bars to Evals, arXiv 2411.00640 (clusters, pairs, power); Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13 (percentile interval). Each function names its own formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from steps.lib.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

DRAWS = 4000
SEED = 20_241_101
SMALL = 200
"""Under so many items a difference of independent 0/1 scores takes Newcombe's interval."""


class Interval(BaseModel):
    """A figure and how far it may be off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float
    n: int
    """Items behind the figure."""
    method: str
    confidence: float = 0.95
    """Share of repetitions in which the interval covers the truth."""
    clusters: int = 0
    """Independent groups of items; 0 when the method knows none."""

    def negated(self) -> Interval:
        """The interval of minus the figure: for figures where lower is better."""
        return self.model_copy(update={"value": -self.value, "low": -self.high, "high": -self.low})


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a rate. Never 0 +- 0: none of 60 is 0 to 6 %.

    Source: Wilson 1927; Brown, Cai, DasGupta 2001, equation 4.

    Raises:
        DataError: ``n`` is not positive, or ``successes`` is outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise DataError(
            f"a rate needs 0 <= successes <= n and n > 0: got {successes} of {n}, because a suite is "
            "empty; leave the figure out or give the suite items"
        )
    z = _z(confidence)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(value=rate, low=low, high=high, n=n, method="Wilson", confidence=confidence, clusters=n)


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Interval:
    """Mean of ``values`` (n,) by cluster bootstrap; a rate of independent 0/1 scores takes Wilson's interval.

    A clustered rate of 0 or 1 takes Wilson's with clusters for items: the bootstrap of a constant has no width.

    Raises:
        DataError: no values, a value that is not finite, or not one cluster a value.
    """
    scores = _floats("values", values)
    groups = _groups(clusters, len(scores))
    if _binary(scores) and _singletons(groups):
        return wilson(int(scores.sum()), len(scores), confidence=confidence)
    if _binary(scores) and _constant(scores):
        clusters_in = int(groups.max()) + 1
        rate = wilson(clusters_in * int(scores[0]), clusters_in, confidence=confidence)
        return rate.model_copy(update={"n": len(scores), "method": "Wilson over clusters"})
    return _bootstrap([scores, scores * 0 + 1], groups, lambda sums: sums[0] / sums[1], confidence)


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Interval:
    """Mean of a - b over the same items (n,), item by item.

    Cluster bootstrap; 0/1 scores of fewer than 200 independent items take Newcombe's interval, since the bootstrap of a
    few discordant items is too narrow. The same over clusters where both models have a rate of 0 or 1.

    Raises:
        DataError: the two differ in length, are empty, or hold a value that is not finite.
    """
    import numpy as np

    first, second = _floats("a", a), _floats("b", b)
    _same_length(first, second)
    groups = _groups(clusters, len(first))
    if _binary(first) and _binary(second) and _singletons(groups) and len(first) < SMALL:
        return _newcombe(first, second, confidence)
    if _binary(first) and _binary(second) and _constant(first) and _constant(second):
        one_each = np.unique(groups, return_index=True)[1]
        apart = _newcombe(first[one_each], second[one_each], confidence)
        return apart.model_copy(update={"n": len(first), "method": "paired, Newcombe over clusters"})
    difference = first - second
    return _bootstrap([difference, difference * 0 + 1], groups, lambda sums: sums[0] / sums[1], confidence)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> Interval:
    """sum(numerators) / sum(denominators), such as bits per byte; bootstrap by document (n,).

    Raises:
        DataError: the two differ in length, are empty, not finite, or a denominator is not positive.
    """
    top, bottom = _floats("numerators", numerators), _positive("denominators", denominators)
    _same_length(top, bottom)
    return _bootstrap([top, bottom], _groups(clusters, len(top)), lambda sums: sums[0] / sums[1], confidence)


def paired_ratio_change(
    num_a: Sequence[float],
    den_a: Sequence[float],
    num_b: Sequence[float],
    den_b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Change of a ratio of sums from b to a in percent, 100 (A / B - 1), over the same documents (n,).

    Raises:
        DataError: as ``ratio_interval``, or the ratio of b is zero.
    """
    parts = [_floats("num_a", num_a), _positive("den_a", den_a), _positive("num_b", num_b), _positive("den_b", den_b)]
    for part in parts[1:]:
        _same_length(parts[0], part)
    return _bootstrap(
        parts,
        _groups(clusters, len(parts[0])),
        lambda sums: 100 * ((sums[0] / sums[1]) / (sums[2] / sums[3]) - 1),
        confidence,
    )


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean: sqrt(sum over clusters of (sum of v - mean)^2) / n.

    Source: arXiv 2411.00640, equation 4 (without clusters the ordinary one, divisor n).
    """
    import numpy as np

    scores = _floats("values", values)
    groups = _groups(clusters, len(scores))
    sums = np.bincount(groups, weights=scores - scores.mean())
    return float(np.sqrt((sums**2).sum()) / len(scores))


def mcnemar_midp(a_only: int, b_only: int) -> float:
    """Two-sided mid-p value of McNemar's test, from the items that exactly one of the two got right.

    Source: Fagerland, Lydersen, Laake 2013, BMC Medical Research Methodology 13:91, equation 5.
    """
    n, k = a_only + b_only, min(a_only, b_only)
    if n == 0:
        return 1.0
    terms = [math.comb(n, i) for i in range(k + 1)]
    return min(1.0, float((2 * sum(terms) - terms[-1]) / 2**n))


def minimal_detectable_effect(n: int, spread: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """Smallest true paired difference that a two-sided test finds with ``power``: (z_c + z_power) spread / sqrt(n).

    Args:
        n: items.
        spread: standard deviation of the paired differences; sqrt(d) for 0/1 scores of which a share d is discordant.
            With clusters: ``clustered_error(...) * sqrt(n)``.
        confidence: share, two-sided.
        power: share.

    Source: arXiv 2411.00640, section 5.
    """
    return (_z(confidence) + NormalDist().inv_cdf(power)) * spread / math.sqrt(n)


def _newcombe(a: Floats, b: Floats, confidence: float) -> Interval:
    """Interval of the difference of two paired rates.

    Source: Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10 (square and add, continuity-corrected phi).
    """
    n = len(a)
    both, a_only = int((a * b).sum()), int((a * (1 - b)).sum())
    b_only = int((b * (1 - a)).sum())
    neither = n - both - a_only - b_only
    of_a, of_b = (wilson(both + only, n, confidence=confidence) for only in (a_only, b_only))
    product = (both + a_only) * (b_only + neither) * (both + b_only) * (a_only + neither)
    excess = both * neither - a_only * b_only
    if excess > 0:
        excess = max(excess - n / 2, 0)  # type: ignore[assignment]
    phi = excess / math.sqrt(product) if product else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    value = (a_only - b_only) / n
    low = value - reach(of_a.value - of_a.low, of_b.high - of_b.value)
    high = value + reach(of_a.high - of_a.value, of_b.value - of_b.low)
    return Interval(
        value=value,
        low=max(-1.0, low),
        high=min(1.0, high),
        n=n,
        method="paired, Newcombe",
        confidence=confidence,
        clusters=n,
    )


def _bootstrap(
    parts: Sequence[Floats],
    groups: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    figure: Callable[[Floats], Floats],
    confidence: float,
) -> Interval:
    """Percentile interval of a figure that is a function of sums over items.

    Letters: K parts, G clusters, D draws of a block.
    """
    import numpy as np

    totals = np.stack([np.bincount(groups, weights=part) for part in parts])  # (K, G)
    num_clusters = totals.shape[1]
    random = np.random.Generator(np.random.PCG64(SEED))
    block = max(1, 2_000_000 // num_clusters)
    drawn = []
    for start in range(0, DRAWS, block):
        picks = random.integers(0, num_clusters, size=(min(block, DRAWS - start), num_clusters))  # (D, G)
        drawn.append(figure(totals[:, picks].sum(axis=2)))  # (D,)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    value = float(figure(totals.sum(axis=1)))
    # Percentiles of equal draws can miss the value by a rounding error; the value lies inside.
    return Interval(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=len(groups),
        method=f"cluster bootstrap, {DRAWS} draws",
        confidence=confidence,
        clusters=num_clusters,
    )


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _floats(name: str, values: Sequence[float]) -> Floats:
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(
            f"{name} of a figure: got shape {array.shape}, because a suite is empty; "
            "leave the figure out or give the suite items"
        )
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(
            f"{name}[{where}] of a figure is not finite: got {array[where]}, because the item was not "
            "scored; score the item again, a figure over fewer items is another figure"
        )
    return array


def _positive(name: str, values: Sequence[float]) -> Floats:
    array = _floats(name, values)
    if not (array > 0).all():
        raise DataError(
            f"{name} of a ratio must be positive: got {array.min()}, because a document is empty; drop the document"
        )
    return array


def _same_length(a: Floats, b: Floats) -> None:
    if len(a) != len(b):
        raise DataError(
            f"paired scores differ in length: got {len(a)} and {len(b)}, because the models were not "
            "scored on the same items; score both on the same suite"
        )


def _groups(clusters: Sequence[Hashable] | None, n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Cluster numbers (n,) from 0, in order of first appearance."""
    import numpy as np

    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise DataError(
            f"clusters differ in length from the scores: got {len(clusters)} and {n}; give one cluster an item"
        )
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def _binary(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _constant(values: Floats) -> bool:
    return bool((values == values[0]).all())


def _singletons(groups: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bool:
    return int(groups.max()) + 1 == len(groups)
