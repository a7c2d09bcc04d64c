"""Win rates of pairwise judging: the raw one, and the one that length is taken out of.

Letters: n items, G clusters, D draws.

Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475, section 3; alpaca_eval's glm_winrate.py, formula
``length_controlled_minimal``. Deviations:
1. The fit is Firth's (1993, Biometrika 80:27-38, Jeffreys prior): finite where wins and losses are separable, where maximum
   likelihood runs away (Heinze and Schemper 2002, Statistics in Medicine 21:2409-2419).
2. The interval is a cluster bootstrap of the whole fit, scales included, with expanded percentiles; alpaca_eval's standard error is
   that of predictions.
3. Lengths are scaled within a language: 100 characters are a sentence of English and a paragraph of Chinese.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from steps.lib import stats
from steps.lib.errors import DataError
from steps.lib.stats import Interval
from steps.lib.stats_bootstrap import SEED

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

DRAWS = 2000
FEW = 20
"""Items of a language under which it is scaled with the others."""
_ROUNDS = 60
_STEP = 5.0
"""Longest step of a round, on the logit scale (as in logistf)."""
_CLOSE = 1e-7


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate and its fit."""

    interval: Interval
    theta: float
    """Log-odds of a win at equal length."""
    phi: float
    """What length adds to the log-odds: at one standard deviation longer, 0.76 of it."""
    extrapolated: bool
    """Whether no item, or every item, has a longer first answer: nothing was seen on one side of equal length."""


def win_rate(
    wins: Sequence[float], clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Interval:
    """Mean of wins (n,), each 1, 0.5 or 0; cluster bootstrap. Never 0.5 +- 0.

    Where every item is a half, the share of decided items is at most Wilson's bound for none of G, and each moves the rate by at
    most a half. A single cluster has the interval 0 to 1.

    Raises:
        DataError: no items, or a win that is none of 1, 0.5 and 0.
    """
    _check(wins)
    groups = _numbers(clusters, len(wins))
    num_clusters = max(groups) + 1
    if num_clusters == 1:
        return _unknown(sum(wins) / len(wins), len(wins), confidence)
    found = stats.mean_interval(wins, groups, confidence=confidence)
    if set(wins) != {0.5}:
        return found
    half = 0.5 * stats.wilson(0, num_clusters, confidence=confidence).high
    return found.model_copy(update={"low": 0.5 - half, "high": 0.5 + half, "method": "Wilson over undecided clusters"})


def lc_win_rate(
    wins: Sequence[float],
    dlen: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    scales: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> LengthControlled:
    """sigmoid(theta) of P(win) = sigmoid(theta + phi tanh(dlen / sd(dlen))).

    Args:
        wins: 1, 0.5 or 0 of each item (n,).
        dlen: length of the first answer less that of the second, in any unit (n,).
        clusters: what is drawn as a whole (n,); None: each item is its own.
        scales: items with the same value share a standard deviation of dlen, such as languages (n,); None: all do.
        confidence: share, two-sided.
        draws: bootstrap draws.

    Raises:
        DataError: no items, lengths differ, or a value is not finite.
    """
    import numpy as np

    _check(wins)
    y, length = np.asarray(wins, dtype=np.float64), np.asarray(dlen, dtype=np.float64)
    if length.shape != y.shape or not np.isfinite(length).all():
        raise DataError(
            f"dlen of a win rate is wrong: got {length.size} values for {y.size} items, of them "
            f"{int((~np.isfinite(length)).sum())} not finite, because each item has two answers with a length; "
            "give the difference of both for each item"
        )
    groups = np.array(_numbers(clusters, len(y)), dtype=np.int64)
    languages = _scales(scales, len(y))
    theta, phi = _fit(y, length, languages, np.ones((1, len(y))))
    value = float(_sigmoid(theta)[0])
    longer, shorter = bool((length > 0).any()), bool((length < 0).any())
    extrapolated = longer != shorter and not bool((length == 0).any())
    num_clusters = int(groups.max()) + 1
    if num_clusters == 1:
        interval = _unknown(value, len(y), confidence)
    elif len(set(wins)) == 1:  # every draw would be the same
        same = win_rate(wins, clusters, confidence=confidence)
        interval = same.model_copy(update={"method": f"length-controlled, every item ended alike: {same.method}"})
    else:
        drawn = _sigmoid(_drawn(y, length, languages, groups, num_clusters, draws))
        tail = _tail(num_clusters, confidence)
        low, high = np.quantile(drawn, [tail, 1 - tail])
        interval = Interval(
            value=value,
            low=min(float(low), value),
            high=max(float(high), value),
            n=len(y),
            method=f"length-controlled, Firth's logistic fit, cluster bootstrap of the fit, {draws} draws",
            confidence=confidence,
            clusters=num_clusters,
        )
    return LengthControlled(interval, float(theta[0]), float(phi[0]), extrapolated)


def _drawn(y: Floats, length: Floats, languages: Numbers, groups: Numbers, num_clusters: int, draws: int) -> Floats:
    """theta of every draw of clusters (D,)."""
    import numpy as np

    random = np.random.Generator(np.random.PCG64(SEED))
    block = max(1, 400_000 // max(len(y), num_clusters))
    found = []
    for start in range(0, draws, block):
        some = min(block, draws - start)
        picks = random.integers(0, num_clusters, size=(some, num_clusters))
        picks += num_clusters * np.arange(some)[:, None]
        counts = np.bincount(picks.ravel(), minlength=some * num_clusters).reshape(some, num_clusters)  # (D, G)
        found.append(_fit(y, length, languages, counts[:, groups].astype(np.float64))[0])
    return np.concatenate(found)


def _fit(y: Floats, length: Floats, languages: Numbers, counts: Floats) -> tuple[Floats, Floats]:
    """theta and phi (D,) of items that are taken ``counts`` (D, n) times, by iteratively reweighted least squares."""
    import numpy as np

    x = _scaled(length, languages, counts)  # (D, n)
    theta, phi = np.zeros(len(counts)), np.zeros(len(counts))
    going = np.arange(len(counts))
    for _ in range(_ROUNDS):
        at, times = x[going], counts[going]
        chance = _sigmoid(theta[going, None] + phi[going, None] * at)
        spread = np.maximum(chance * (1 - chance), 1e-12)
        weight = spread * times
        total = weight.sum(axis=1)
        middle = (weight * at).sum(axis=1) / total
        off = at - middle[:, None]
        across = (weight * off**2).sum(axis=1) + 1e-9  # where all lengths are equal, phi stays 0
        lever = spread * (1 / total[:, None] + off**2 / across[:, None])
        rest = times * (y - chance + lever * (0.5 - chance))
        step_phi = (rest * off).sum(axis=1) / across
        step_theta = rest.sum(axis=1) / total - middle * step_phi
        longest = np.maximum(np.abs(step_phi), np.abs(step_theta))
        short = np.minimum(1.0, _STEP / np.maximum(longest, _CLOSE))
        theta[going] += short * step_theta
        phi[going] += short * step_phi
        going = going[longest > _CLOSE]
        if not len(going):
            break
    return theta, phi


def _scaled(length: Floats, languages: Numbers, counts: Floats) -> Floats:
    """tanh(dlen / sd) of each draw (D, n); at a standard deviation of 0 the sign of dlen."""
    import numpy as np

    x = np.zeros(counts.shape)
    for language in np.unique(languages):
        own = languages == language
        times, here = counts[:, own], length[own]
        number = np.maximum(times.sum(axis=1), 1.0)
        mean = (times * here).sum(axis=1) / number
        square = (times * (here - mean[:, None]) ** 2).sum(axis=1)
        deviation = np.sqrt(square / np.maximum(number - 1, 1.0))[:, None]
        known = deviation > 1e-9
        x[:, own] = np.where(known, np.tanh(here / np.where(known, deviation, 1.0)), np.sign(here))
    return x


def _tail(num_clusters: int, confidence: float) -> float:
    """Share of draws outside the interval on each side: the expanded percentile, since draws of few clusters vary too little.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", The American Statistician 69:371-386, section 3.6,
    arXiv 1411.5279; the quantile of t by Abramowitz and Stegun 26.7.5.
    """
    normal, free = NormalDist(), num_clusters - 1
    z = normal.inv_cdf(0.5 + confidence / 2)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-math.sqrt(num_clusters / free) * t)


def _scales(scales: Sequence[Hashable] | None, n: int) -> Numbers:
    """Number of the scale of each item (n,); small ones are one."""
    import numpy as np

    numbers = np.array(_numbers(scales if scales is not None else [0] * n, n), dtype=np.int64)
    sizes = np.bincount(numbers)
    return np.where(sizes[numbers] < FEW, -1, numbers)


def _sigmoid(value: Floats) -> Floats:
    import numpy as np

    return np.asarray(1 / (1 + np.exp(-np.clip(value, -40, 40))), dtype=np.float64)


def _numbers(names: Sequence[Hashable] | None, n: int) -> list[int]:
    if names is None:
        return list(range(n))
    if len(names) != n:
        raise DataError(
            f"clusters or scales differ in length from the wins: got {len(names)} and {n}; give one an item"
        )
    known: dict[Hashable, int] = {}
    return [known.setdefault(name, len(known)) for name in names]


def _check(wins: Sequence[float]) -> None:
    if not wins or (odd := [win for win in wins if win not in (0, 0.5, 1)]):
        raise DataError(
            f"wins of a win rate are wrong: got {odd[0] if wins else 'none'}, because an item is won (1), lost (0) or neither "
            "(0.5); leave items without a verdict out, and count them"
        )


def _unknown(value: float, n: int, confidence: float) -> Interval:
    return Interval(
        value=value, low=0.0, high=1.0, n=n, method="one cluster: no interval", confidence=confidence, clusters=1
    )
