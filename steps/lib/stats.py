"""Intervals for figures, and paired comparisons of two models on the same items.

Items that belong together (one prompt, one document) share a cluster; the bootstrap draws whole clusters. The draws
have a fixed seed: the same items give the same interval. Every interval is two-sided; the bound of a one-sided test at
level c is the bound of the two-sided interval at 2c - 1.

Source: Miller, Adding Error Bars to Evals, arXiv 2411.00640 (clusters, pairs, power). Each function names its own formula.
Beside it: ``stats_bootstrap`` (the draws), ``stats_exact`` (tests for few items), ``stats_power`` (items needed, Holm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from steps.lib.errors import DataError
from steps.lib.stats_bootstrap import DRAWS, percentiles
from steps.lib.stats_inputs import binary, bounded, constant, floats, groups, positive, same_length, singletons

if TYPE_CHECKING:
    from steps.lib.stats_inputs import Floats, Groups

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
    scores = floats("values", values)
    numbers = groups(clusters, len(scores))
    if binary(scores) and singletons(numbers):
        return wilson(int(scores.sum()), len(scores), confidence=confidence)
    if binary(scores) and constant(scores):
        clusters_in = int(numbers.max()) + 1
        rate = wilson(clusters_in * int(scores[0]), clusters_in, confidence=confidence)
        return rate.model_copy(update={"n": len(scores), "method": "Wilson over clusters"})
    return _bootstrap([scores, scores * 0 + 1], numbers, lambda sums: sums[0] / sums[1], confidence)


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Interval:
    """Mean of a - b over the same items (n,), item by item.

    Cluster bootstrap; 0/1 scores of fewer than 200 independent items take Newcombe's interval, since the bootstrap of a
    few discordant items is too narrow. So does every cluster as one item where both models have a rate of 0 or 1. Where no
    score between 0 and 1 differs, the difference is as sure as a rate of none in so many clusters, never 0 +- 0.

    Raises:
        DataError: the two differ in length, are empty, or hold a value that is not finite.
    """
    import numpy as np

    first, second = floats("a", a), floats("b", b)
    same_length(first, second)
    numbers = groups(clusters, len(first))
    shares = bounded(first) and bounded(second)
    if binary(first) and binary(second) and singletons(numbers) and len(first) < SMALL:
        return _newcombe(first, second, confidence)
    if binary(first) and binary(second) and constant(first) and constant(second):
        one_each = np.unique(numbers, return_index=True)[1]
        apart = _newcombe(first[one_each], second[one_each], confidence)
        return apart.model_copy(update={"n": len(first), "method": "paired, Newcombe over clusters"})
    difference = first - second
    if shares and not difference.any():
        none = wilson(0, int(numbers.max()) + 1, confidence=confidence)
        method = "no item differs, Wilson over clusters"
        return none.model_copy(update={"low": -none.high, "n": len(first), "method": method})
    return _bootstrap([difference, difference * 0 + 1], numbers, lambda sums: sums[0] / sums[1], confidence)


def unpaired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
    *,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a (n,) minus mean of b (m,) on different items; square and add of the two intervals.

    For models that were never asked the same: paired, 1 - r as many items show the same (r: the correlation of the two).

    Source: Newcombe 1998, Statistics in Medicine 17:873-890, method 10; Zou and Donner 2008, Statistics in Medicine
    27:1693-1702, for means.

    Raises:
        DataError: one of them is empty, holds a value that is not finite, or has not one cluster a value.
    """
    one, other = (
        mean_interval(values, names, confidence=confidence) for values, names in zip((a, b), clusters, strict=True)
    )
    value = one.value - other.value
    return Interval(
        value=value,
        low=value - math.hypot(one.value - one.low, other.high - other.value),
        high=value + math.hypot(one.high - one.value, other.value - other.low),
        n=one.n + other.n,
        method=f"unpaired, {one.method}",
        confidence=confidence,
        clusters=one.clusters + other.clusters,
    )


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
    top, bottom = floats("numerators", numerators), positive("denominators", denominators)
    same_length(top, bottom)
    return _bootstrap([top, bottom], groups(clusters, len(top)), lambda sums: sums[0] / sums[1], confidence)


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
    parts = [floats("num_a", num_a), positive("den_a", den_a), positive("num_b", num_b), positive("den_b", den_b)]
    for part in parts[1:]:
        same_length(parts[0], part)
    return _bootstrap(
        parts,
        groups(clusters, len(parts[0])),
        lambda sums: 100 * ((sums[0] / sums[1]) / (sums[2] / sums[3]) - 1),
        confidence,
    )


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean: sqrt(sum over clusters of (sum of v - mean)^2) / n.

    Source: arXiv 2411.00640, equation 4 (without clusters the ordinary one, divisor n).
    """
    import numpy as np

    scores = floats("values", values)
    numbers = groups(clusters, len(scores))
    sums = np.bincount(numbers, weights=scores - scores.mean())
    return float(np.sqrt((sums**2).sum()) / len(scores))


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
    parts: Sequence[Floats], numbers: Groups, figure: Callable[[Floats], Floats], confidence: float
) -> Interval:
    value, low, high = percentiles(parts, numbers, figure, confidence)
    return Interval(
        value=value,
        low=low,
        high=high,
        n=len(numbers),
        method=f"cluster bootstrap, {DRAWS} draws",
        confidence=confidence,
        clusters=int(numbers.max()) + 1,
    )


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
