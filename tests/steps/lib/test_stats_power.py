"""Effects and items against the table of the design, and Holm's procedure against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steps.lib.stats_power import holm, minimal_detectable_effect, needed_items


@pytest.mark.parametrize(
    ("n", "shares"),
    [(100, (6.3, 8.9, 12.5, 15.3)), (541, (2.7, 3.8, 5.4, 6.6)), (1319, (1.7, 2.4, 3.4, 4.2))],
)
def test_minimal_detectable_effect_is_the_design_table(n: int, shares: tuple[float, ...]) -> None:
    """Paired 0/1 scores, percentage points, two-sided 5 %, power 80 %, for 5, 10, 20 and 30 % discordant items."""
    found = [100 * minimal_detectable_effect(n, math.sqrt(d)) for d in (0.05, 0.1, 0.2, 0.3)]
    assert found == pytest.approx(shares, abs=0.051)


@pytest.mark.parametrize(
    ("margin", "counts"), [(0.05, (124, 248, 495)), (0.03, (344, 687, 1374)), (0.02, (773, 1546, 3092))]
)
def test_items_for_non_inferiority_are_the_design_table(margin: float, counts: tuple[int, ...]) -> None:
    """6.18 d / margin^2: one-sided 5 %, power 80 %, true difference 0."""
    for share, count in zip((0.05, 0.1, 0.2), counts, strict=True):
        found = needed_items(margin, math.sqrt(share), confidence=0.9)
        assert found is not None and abs(found - count) <= 1


def test_needed_items_detect_what_they_should() -> None:
    count = needed_items(0.06, 0.4)
    assert count is not None and minimal_detectable_effect(count, 0.4) <= 0.06 < minimal_detectable_effect(
        count - 1, 0.4
    )
    assert needed_items(0.0, 0.4) is None and needed_items(-0.1, 0.4) is None


def passing(p_values: list[float], alpha: float) -> list[bool]:
    levels = holm(len(p_values), alpha, lambda place, level: p_values[place] <= level)
    return [p <= level for p, level in zip(p_values, levels, strict=True)]


def test_holm_steps_down() -> None:
    """Holm 1979: .01 and .02 pass at .05 / 3 and .05 / 2; with .04 the last meets .05; a gap stops all after it."""
    assert passing([0.04, 0.01, 0.02], 0.05) == [True, True, True]
    assert passing([0.04, 0.01, 0.03], 0.05) == [False, True, False]
    assert passing([0.02, 0.02, 0.02], 0.05) == [False, False, False]
    assert passing([0.05], 0.05) == [True]


def test_holm_keeps_the_level_over_all() -> None:
    """Four true hypotheses: at least one is rejected in at most 5 %; one at a time it would be 19 %."""
    p_values = np.random.default_rng(0).random((1000, 4))
    wrong = np.mean([any(passing(row.tolist(), 0.05)) for row in p_values])
    assert wrong <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5
    assert np.mean((p_values <= 0.05).any(axis=1)) > 0.15
