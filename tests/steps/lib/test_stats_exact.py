"""Tests for few items, against closed forms, enumeration and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from steps.lib.stats_exact import mcnemar, sign_flip


def test_mcnemar_midp() -> None:
    """3 against 12: exact two-sided 0.03516, less the point probability 0.01389."""
    assert mcnemar(3, 12) == pytest.approx(0.0352 - 0.0139, abs=1e-4)
    assert mcnemar(12, 3) == mcnemar(3, 12)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(7, 7) == 1.0


def test_mcnemar_exact() -> None:
    """Fagerland 2013, table 4 (airway data): 1 against 7 is 0.0703 exact and 0.0391 mid-p."""
    assert mcnemar(1, 7, midp=False) == pytest.approx(0.0703, abs=1e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0391, abs=1e-4)


def test_one_side_asks_for_the_better_one() -> None:
    assert mcnemar(7, 1, one_sided=True) == pytest.approx(0.0391 / 2, abs=1e-4)
    assert mcnemar(1, 7, one_sided=True) > 0.97
    assert mcnemar(5, 0, midp=False, one_sided=True) == 1 / 32


def test_sign_flip_of_single_items_is_mcnemar() -> None:
    for a_only, b_only in ((7, 1), (3, 4), (5, 0), (9, 3)):
        sums = [1.0] * a_only + [-1.0] * b_only + [0.0] * 20
        assert sign_flip(sums) == pytest.approx(mcnemar(a_only, b_only, midp=False, one_sided=True))


def test_sign_flip_counts_every_exchange() -> None:
    sums = np.random.default_rng(0).normal(0.4, 1, size=9)
    higher = [sum(s * v for s, v in zip(signs, sums, strict=True)) for signs in itertools.product((1, -1), repeat=9)]
    assert sign_flip(sums.tolist()) == pytest.approx(np.mean(np.array(higher) >= sums.sum() - 1e-12))


def test_drawn_exchanges_agree_with_the_binomial() -> None:
    """40 clusters, 26 for: the exact one-sided value is 0.0403."""
    exact = mcnemar(26, 14, midp=False, one_sided=True)
    assert sign_flip([1.0] * 26 + [-1.0] * 14) == pytest.approx(exact, abs=0.006)


def test_nothing_differs_and_one_cluster_differs() -> None:
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([3.0]) == 0.5
    assert sign_flip([0.1] * 3 + [-0.1] * 3) == pytest.approx(mcnemar(3, 3, midp=False, one_sided=True))


def test_sign_flip_keeps_its_level_under_shuffled_labels() -> None:
    """Real-looking clusters whose labels are shuffled: at most the level, give or take the simulation's error."""
    random, hits = np.random.default_rng(1), 0
    sums = random.gamma(1.0, size=15) - 0.3
    for _ in range(400):
        hits += sign_flip((sums * random.choice((-1, 1), size=15)).tolist()) <= 0.05
    assert hits / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
