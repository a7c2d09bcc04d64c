"""Tests of a paired difference that hold for few items: McNemar's, and its kin for clusters and for scores between 0 and 1.

All p-values are of the same question: how often would two equal models differ so much, or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from steps.lib.stats_bootstrap import SEED
from steps.lib.stats_inputs import floats

LISTED = 12
"""Up to so many clusters that differ, every one of the 2^k exchanges is looked at."""
EXCHANGES = 9999
"""Exchanges drawn where there are more."""


def mcnemar(a_only: int, b_only: int, *, midp: bool = True, one_sided: bool = False) -> float:
    """McNemar's p-value from the items that exactly one of the two got right.

    Args:
        a_only: items that only a got right.
        b_only: items that only b got right.
        midp: half of the point probability only; False: the exact test, which never rejects too often.
        one_sided: that a is better, in place of that they differ.

    Source: Fagerland, Lydersen, Laake 2013, BMC Medical Research Methodology 13:91, equations 3 and 5.
    """
    n = a_only + b_only
    if n == 0:
        return 1.0
    k = b_only if one_sided else min(a_only, b_only)
    terms = [math.comb(n, i) for i in range(k + 1)]
    tail = sum(terms) - (terms[-1] / 2 if midp else 0)
    return min(1.0, float(tail / 2**n if one_sided else 2 * tail / 2**n))


def sign_flip(sums: Sequence[float]) -> float:
    """One-sided p-value that the differences are above zero, from their sums by cluster (G,): whole clusters change sides.

    Two equal models could have changed places in any cluster. Where every cluster is one 0/1 item this is McNemar's exact test.

    Source: Edgington and Onghena, Randomization Tests, 4th edition, 2007, chapter 4; drawn exchanges count the observed one too
    (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39).
    """
    import numpy as np

    found = floats("differences", sums)
    apart = found[found != 0]
    if not len(apart):
        return 1.0
    # Exchanges that tie with what was seen must count in spite of rounding.
    seen = float(apart.sum()) - 1e-9 * float(np.abs(apart).sum())
    if len(apart) <= LISTED:
        flips = (np.arange(2 ** len(apart))[:, None] >> np.arange(len(apart))) & 1  # (2^k, k)
        return float(((1 - 2 * flips) @ apart >= seen).mean())
    random = np.random.Generator(np.random.PCG64(SEED))
    block = max(1, 2_000_000 // len(apart))
    as_high = 0
    for start in range(0, EXCHANGES, block):
        rows = min(block, EXCHANGES - start)
        packed = np.frombuffer(random.bytes(rows * len(apart)), dtype=np.uint8).reshape(rows, len(apart))
        kept = (packed & 1).astype(np.float64)  # (D, k)
        as_high += int((2 * (kept @ apart) - apart.sum() >= seen).sum())
    return (as_high + 1) / (EXCHANGES + 1)
