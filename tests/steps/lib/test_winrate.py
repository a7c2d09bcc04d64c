"""Win rates: against closed forms, simulated judges that like length, and data without a finite likelihood."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from steps.lib.errors import DataError
from steps.lib.winrate import LengthControlled, lc_win_rate, win_rate


def simulated(
    seed: int, *, better: float = 0.0, likes: float = 1.5, longer: float = 60.0, n: int = 200
) -> tuple[list[float], list[float], list[int]]:
    """Wins, differences of length and clusters of five: P(win) = sigmoid(better + likes tanh(dlen / 100))."""
    draw = random.Random(seed)
    dlen = [draw.gauss(longer, 100) for _ in range(n)]
    chance = [1 / (1 + math.exp(-(better + likes * math.tanh(d / 100)))) for d in dlen]
    return [float(draw.random() < p) for p in chance], dlen, [i // 5 for i in range(n)]


def test_without_length_it_is_the_win_rate() -> None:
    """Jeffreys' prior on a rate: (k + 1/2) / (n + 1)."""
    found = lc_win_rate([1.0] * 30 + [0.5] * 10 + [0.0] * 10, [0.0] * 50)
    assert found.interval.value == pytest.approx((35 + 0.5) / 51, abs=1e-6) and found.phi == 0
    assert found.interval.low < 0.7 < found.interval.high and not found.extrapolated


def test_the_fit_agrees_with_a_penalised_likelihood_that_is_searched() -> None:
    """The oracle maximises log likelihood + log det(information) / 2 over a grid that closes in."""
    wins, dlen, _ = simulated(1, n=40)
    y, x = np.array(wins), np.tanh(np.array(dlen) / np.std(dlen, ddof=1))

    def worth(theta: float, phi: float) -> float:
        p = 1 / (1 + np.exp(-(theta + phi * x)))
        w = p * (1 - p)
        det = w.sum() * (w * x * x).sum() - (w * x).sum() ** 2
        return float((y * np.log(p) + (1 - y) * np.log(1 - p)).sum() + 0.5 * np.log(det))

    theta, phi, step = 0.0, 0.0, 1.0
    while step > 1e-6:
        moves = [(theta + a * step, phi + b * step) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        best = max(moves, key=lambda place: worth(*place))
        theta, phi, step = (*best, step if best != (theta, phi) else step / 2)
    found = lc_win_rate(wins, dlen, draws=50)
    assert (found.theta, found.phi) == (pytest.approx(theta, abs=1e-4), pytest.approx(phi, abs=1e-4))


def shares(runs: Sequence[tuple[list[float], list[float], list[int]]]) -> tuple[float, float, float]:
    """Mean length-controlled rate; shares of runs whose raw and whose controlled lower bound is over a half."""
    raw = [win_rate(wins, clusters) for wins, _, clusters in runs]
    controlled = [lc_win_rate(wins, dlen, clusters, draws=300).interval for wins, dlen, clusters in runs]
    count = len(runs)
    return (
        sum(one.value for one in controlled) / count,
        sum(one.low > 0.5 for one in raw) / count,
        sum(one.low > 0.5 for one in controlled) / count,
    )


def test_a_judge_that_likes_length_is_corrected() -> None:
    """Equal models, a longer challenger: the raw bound promotes most of the time, the controlled one seldom."""
    value, raw, controlled = shares([simulated(seed, longer=90) for seed in range(40)])
    assert abs(value - 0.5) < 0.02 and raw > 0.7 and controlled <= 0.1


def test_a_better_but_shorter_answer_is_seen() -> None:
    value, raw, controlled = shares([simulated(seed, better=0.8, longer=-60) for seed in range(40)])
    assert abs(value - 1 / (1 + math.exp(-0.8))) < 0.03 and raw < 0.3 and controlled > 0.8


def test_the_interval_covers_the_truth() -> None:
    runs = [simulated(seed, better=0.4, longer=30) for seed in range(100)]
    truth = 1 / (1 + math.exp(-0.4))
    covered = [(i := lc_win_rate(*run, draws=300).interval).low <= truth <= i.high for run in runs]
    assert 88 <= sum(covered) <= 100


@pytest.mark.parametrize("longer", [0.0, 40.0])
def test_separable_data_have_a_finite_fit(longer: float) -> None:
    """The longer answer always wins: maximum likelihood has no end."""
    draw = random.Random(7)
    dlen = [draw.gauss(longer, 100) for _ in range(200)]
    found = lc_win_rate([float(d > 0) for d in dlen], dlen)
    assert found.interval.low <= 0.5 <= found.interval.high and abs(found.interval.value - 0.5) < 0.2
    assert 5 < found.phi < 200 and math.isfinite(found.theta)


@pytest.mark.parametrize("win", [0.0, 0.5, 1.0])
def test_where_every_item_ends_alike_the_interval_still_has_a_width(win: float) -> None:
    found = lc_win_rate([win] * 30, [float(i - 15) for i in range(30)])
    for interval in (found.interval, win_rate([win] * 30)):
        assert interval.value == win and 0.05 < interval.high - interval.low < 0.3
        assert interval.low <= win <= interval.high


def test_one_cluster_says_nothing() -> None:
    for interval in (win_rate([1.0, 0.0], ["a", "a"]), lc_win_rate([1.0, 0.0], [1, 2], ["a", "a"]).interval):
        assert (interval.low, interval.high, interval.clusters) == (0.0, 1.0, 1)


def test_lengths_on_one_side_only_are_an_extrapolation() -> None:
    wins, dlen, _ = simulated(3)
    assert not lc_win_rate(wins, dlen, draws=20).extrapolated
    assert lc_win_rate(wins, [abs(d) + 1 for d in dlen], draws=20).extrapolated
    assert lc_win_rate(wins, [5.0] * 200, draws=20).extrapolated


def test_languages_have_scales_of_their_own() -> None:
    """The same data in two languages, one of them a tenth as long: with own scales, as if both were of one."""
    wins, dlen, _ = simulated(5)
    both, lengths = wins + wins, [*dlen, *(d / 10 for d in dlen)]
    names = ["en"] * 200 + ["zh"] * 200

    def fit(scales: list[str] | None) -> LengthControlled:
        return lc_win_rate(both, lengths, scales=scales, draws=20)

    one = lc_win_rate(wins + wins, dlen + dlen, draws=20)
    assert fit(names).theta == pytest.approx(one.theta, abs=0.01)
    assert fit(None).theta > one.theta + 0.1, "with one scale, the short language keeps what length gave it"
    few = ["en"] * 200 + ["zh"] * 195 + ["other"] * 5
    assert math.isfinite(fit(few).phi)


def test_the_same_items_give_the_same_interval() -> None:
    assert lc_win_rate(*simulated(2)) == lc_win_rate(*simulated(2))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(DataError, match="got none"):
        win_rate([])
    with pytest.raises(DataError, match=r"got 0\.3"):
        win_rate([0.3])
    with pytest.raises(DataError, match="of them 1 not finite"):
        lc_win_rate([1.0], [math.nan])
    with pytest.raises(DataError, match="got 2 values for 1 items"):
        lc_win_rate([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="got 2 and 1"):
        win_rate([1.0], ["a", "b"])


def test_who_is_called_new_makes_no_difference() -> None:
    wins, dlen, clusters = simulated(4, better=0.5)
    one = lc_win_rate(wins, dlen, clusters).interval
    other = lc_win_rate([1 - win for win in wins], [-d for d in dlen], clusters).interval
    assert (one.value, one.low, one.high) == pytest.approx((1 - other.value, 1 - other.high, 1 - other.low), abs=1e-6)


def test_copies_of_an_item_are_no_evidence() -> None:
    """Every item four times: known as one cluster they add nothing, taken for new items they halve the width."""
    wins, dlen, _ = simulated(6, n=80)
    ids = list(range(80))
    one, known, taken = (
        lc_win_rate(wins * times, dlen * times, clusters).interval
        for times, clusters in ((1, ids), (4, ids * 4), (4, None))
    )
    width = one.high - one.low
    assert known.high - known.low == pytest.approx(width, rel=0.15)
    assert taken.high - taken.low == pytest.approx(width / 2, rel=0.15)
