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


def test_no_item_differs_is_no_certainty() -> None:
    """30 clusters of two shares, none differs: as sure as none of 30; bits, which have no bound, are equal."""
    scores, pairs = [0.2, 0.8] * 30, [index // 2 for index in range(60)]
    same = stats.paired_difference(scores, scores, pairs)
    assert (same.value, same.low, same.high) == (0, -stats.wilson(0, 30).high, stats.wilson(0, 30).high)
    bits = stats.paired_difference([7.0, 9.0] * 30, [7.0, 9.0] * 30, pairs)
    assert (bits.low, bits.high) == (0, 0)


def test_few_clusters_widen_as_student_does() -> None:
    """Eight clusters: the interval is Student's, 2.365 errors with seven degrees of freedom, times sqrt(8 / 7)."""
    values = np.random.default_rng(7).normal(size=8)
    interval = stats.mean_interval(values.tolist())
    half = 2.365 * np.sqrt(8 / 7) * stats.clustered_error(values.tolist())
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.12)


def test_few_clusters_cover_what_they_promise() -> None:
    """Ten clusters of five: plain percentiles cover 89.5 % (of 1,500), these 94.1 %."""
    random, hits = np.random.default_rng(8), 0
    for _ in range(600):
        level = np.repeat(random.normal(size=10), 5) + random.normal(size=50)
        interval = stats.mean_interval(level.tolist(), [i // 5 for i in range(50)])
        hits += interval.low <= 0 <= interval.high
    assert 0.92 <= hits / 600 <= 0.985


def test_unpaired_is_the_published_example() -> None:
    """Newcombe 1998 (unpaired), table II (a): 56 of 70 less 48 of 80 is 0.2000, 0.0524 to 0.3339 by method 10."""
    interval = stats.unpaired_difference([1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32)
    assert interval.value == pytest.approx(0.2)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.0524, 0.3339)
    assert interval.n == 150


def test_unpaired_knows_clusters() -> None:
    random = np.random.default_rng(9)
    a, b = np.repeat(random.normal(size=30), 4), np.repeat(random.normal(size=30), 4)
    names = [i // 4 for i in range(120)]
    clustered = stats.unpaired_difference(a.tolist(), b.tolist(), (names, names))
    naive = stats.unpaired_difference(a.tolist(), b.tolist())
    assert clustered.high - clustered.low > 1.7 * (naive.high - naive.low)


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
    code = "import sys, steps.lib.stats, steps.lib.stats_exact, steps.lib.stats_power; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
