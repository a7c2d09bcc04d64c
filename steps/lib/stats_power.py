"""What so many items can show: effects that are found, items that are needed, levels when more than one thing is tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

POWER = 0.8
"""Share of repetitions in which a true effect is found."""


def minimal_detectable_effect(n: int, spread: float, *, confidence: float = 0.95, power: float = POWER) -> float:
    """Smallest true paired difference that a two-sided test finds with ``power``: (z_c + z_power) spread / sqrt(n).

    Args:
        n: items.
        spread: standard deviation of the paired differences; sqrt(d) for 0/1 scores of which a share d is discordant.
            With clusters: ``stats.clustered_error(...) * sqrt(n)``.
        confidence: share, two-sided; a one-sided test at c has 2c - 1.
        power: share.

    Source: arXiv 2411.00640, section 5.
    """
    return _reach(confidence, power) * spread / math.sqrt(n)


def needed_items(effect: float, spread: float, *, confidence: float = 0.95, power: float = POWER) -> int | None:
    """Items for which ``effect`` is the minimal detectable one; None where no number is enough (no effect).

    For non-inferiority the effect is the margin and the true difference 0: 6.18 d / margin^2 at one-sided 95 % and power 80 %.
    ``spread`` and ``confidence`` are as in ``minimal_detectable_effect``.
    """
    if effect <= 0:
        return None
    return max(2, math.ceil((_reach(confidence, power) * spread / effect) ** 2))


def holm(num: int, alpha: float, rejects: Callable[[int, float], bool]) -> list[float]:
    """Level at which each of several hypotheses is tested, so that a true one is rejected with at most ``alpha`` in all.

    The least likely one meets alpha / num; each rejection leaves more to the others. Those not rejected stay at the last level.

    Args:
        num: hypotheses.
        alpha: share.
        rejects: whether a hypothesis is rejected at a level; what is rejected at one level is so at every higher one.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    levels, left = [alpha / num] * num, set(range(num))
    while left:
        for place in left:
            levels[place] = alpha / len(left)
        gone = {place for place in left if rejects(place, levels[place])}
        if not gone:
            break
        left -= gone
    return levels


def _reach(confidence: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(0.5 + confidence / 2) + normal.inv_cdf(power)
