"""Intervals against closed forms and simulations."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from steps.lib import stats
from steps.lib.errors import DataError


def test_wilson_is_the_textbook_value() -> None:
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611."""
    interval = stats.wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    none = stats.wilson(0, 20)
    assert none.low == 0 and round(none.high, 4) == 0.1611
    assert stats.wilson(20, 20).high == 1


def test_wilson_refuses_an_empty_suite() -> None:
    with pytest.raises(DataError, match="0 of 0"):
        stats.wilson(0, 0)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = stats.mean_interval(values.tolist())
    half = 1.96 * stats.clustered_error(values.tolist())
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_rates_take_wilson_and_clustered_rates_do_not() -> None:
    scores = [1.0] * 30
    assert stats.mean_interval(scores) == stats.wilson(30, 30)
    clustered = stats.mean_interval([1.0, 0.0] * 20, [index // 4 for index in range(40)])
    assert "bootstrap" in clustered.method and clustered.clusters == 10


def test_a_clustered_rate_without_failures_is_not_certain() -> None:
    """20 clusters of two, all right: no surer than 20 items."""
    pairs = [index // 2 for index in range(40)]
    rate = stats.mean_interval([1.0] * 40, pairs)
    assert (rate.low, rate.high, rate.n) == (stats.wilson(20, 20).low, 1.0, 40)
    gain = stats.paired_difference([1.0] * 40, [0.0] * 40, pairs)
    assert gain.value == 1 and 0.6 < gain.low < 0.9 and gain.n == 40


def test_clusters_widen_the_interval() -> None:
    """Five copies of each value tell no more than one."""
    values = np.random.default_rng(1).normal(size=60)
    copied = np.repeat(values, 5).tolist()
    alone = stats.mean_interval(values.tolist())
    clustered = stats.mean_interval(copied, [index // 5 for index in range(300)])
    naive = stats.mean_interval(copied)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert naive.high - naive.low < 0.6 * (clustered.high - clustered.low)


def test_coverage_is_near_its_name() -> None:
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        level = np.repeat(random.normal(size=60), 3)
        interval = stats.mean_interval((level + random.normal(size=180)).tolist(), [i // 3 for i in range(180)])
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_a_against_a_contains_zero() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        skill = random.beta(2, 2, size=120)
        a, b = ((random.random(120) < skill).astype(float).tolist() for _ in range(2))
        interval = stats.paired_difference(a, b)
        hits += interval.low <= 0 <= interval.high
    assert 0.92 <= hits / 300 <= 1.0


def test_pairs_are_narrower_than_two_means() -> None:
    """Items of different difficulty cancel out when paired."""
    random = np.random.default_rng(4)
    hard = random.normal(scale=5, size=200)
    a, b = (hard + 0.3 + 0.1 * random.normal(size=200)), hard + 0.1 * random.normal(size=200)
    interval = stats.paired_difference(a.tolist(), b.tolist())
    assert interval.low > 0.25 and interval.high < 0.35


def test_newcombe_matches_the_published_example() -> None:
    """Newcombe 1998 (paired), table II example (a): 36, 12, 2, 0 of 50 gives 0.2 and 0.0569 to 0.3404 by method 10."""
    a = [1.0] * 48 + [0.0] * 2
    b = [1.0] * 36 + [0.0] * 12 + [1.0] * 2
    interval = stats.paired_difference(a, b)
    assert interval.value == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.0569, abs=2e-3)
    assert interval.high == pytest.approx(0.3404, abs=2e-3)


def test_equal_perfect_scores_are_not_certain() -> None:
    interval = stats.paired_difference([1.0] * 60, [1.0] * 60)
    assert interval.value == 0 and interval.low < -0.04 and interval.high > 0.04


def test_ratio_is_sum_over_sum() -> None:
    interval = stats.ratio_interval([10.0, 30.0, 5.0], [10.0, 10.0, 5.0])
    assert interval.value == pytest.approx(45 / 25)
    assert interval.low <= interval.value <= interval.high


def test_a_constant_change_has_no_width() -> None:
    """Every document 20 % down: the change is -20 % with certainty, whatever the documents' spread."""
    random = np.random.default_rng(5)
    old, size = random.uniform(1, 9, 50), random.uniform(1, 9, 50)
    change = stats.paired_ratio_change((0.8 * old).tolist(), size.tolist(), old.tolist(), size.tolist())
    assert change.value == pytest.approx(-20) and change.high - change.low < 1e-9


def test_mcnemar_midp() -> None:
    """3 against 12: exact two-sided 0.03516, less the point probability 0.01389."""
    assert stats.mcnemar_midp(3, 12) == pytest.approx(0.0352 - 0.0139, abs=1e-4)
    assert stats.mcnemar_midp(12, 3) == stats.mcnemar_midp(3, 12)
    assert stats.mcnemar_midp(0, 0) == 1.0
    assert stats.mcnemar_midp(7, 7) == 1.0


def test_minimal_detectable_effect_is_the_design_table() -> None:
    """EVALUATION.md section 5: n=200, d=.10 is 6.3 points; n=541, d=.20 is 5.4."""
    assert round(100 * stats.minimal_detectable_effect(200, math.sqrt(0.10)), 1) == 6.3
    assert round(100 * stats.minimal_detectable_effect(541, math.sqrt(0.20)), 1) == 5.4


def test_same_items_same_interval() -> None:
    values = np.random.default_rng(6).normal(size=50).tolist()
    assert stats.mean_interval(values) == stats.mean_interval(values)


def test_values_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"values\[1\]"):
        stats.mean_interval([1.0, math.nan])
    with pytest.raises(DataError, match="differ in length"):
        stats.paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(DataError, match="one cluster an item"):
        stats.mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(DataError, match="must be positive"):
        stats.ratio_interval([1.0], [0.0])


def test_import_is_light() -> None:
    code = "import sys, steps.lib.stats; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
