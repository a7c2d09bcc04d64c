"""Rate, cost and end of a run, on a clock that stands still until it is moved."""

from __future__ import annotations

import pytest

from steps.lib.gauge import FIRST, LONGEST, WINDOW, Gauge, count, duration, money


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def answered(gauge: Gauge, number: int, clock: Clock, seconds: float, cost: float = 0.01, failed: bool = False) -> None:
    for _ in range(number):
        clock.now += seconds / number
        gauge.outcome(failed=failed, tokens_in=100, tokens_out=20, cost=cost)


def test_a_steady_run() -> None:
    gauge = Gauge(1000, clock := Clock())
    gauge.found(400)
    answered(gauge, 100, clock, 50.0)
    shown = gauge.reading()
    assert (shown.done, shown.total, shown.held, shown.failed) == (500, 1000, 400, 0)
    assert shown.rate == pytest.approx(2.0, rel=0.05) and shown.eta == pytest.approx(250, rel=0.05)
    assert shown.cost == pytest.approx(1.0) and shown.to_come == pytest.approx(5.0)
    assert (shown.tokens_in, shown.tokens_out) == (10_000, 2_000)
    assert str(shown) == "500/1,000 (400 from the ledger), 2 requests/s, tokens 10k in 2k out, 1.00 USD so far, 5.00 USD to come, 4 min 10 s left"


def test_answers_of_the_ledger_say_nothing_about_rate_and_cost() -> None:
    gauge = Gauge(100, clock := Clock())
    gauge.found(60)
    clock.now += 30
    shown = gauge.reading()
    assert shown.rate == 0 and shown.eta is None and shown.to_come is None
    assert str(shown) == "60/100 (60 from the ledger), 0 requests/s, tokens 0 in 0 out"


def test_the_rate_is_that_of_late() -> None:
    """An hour of ten a second, then a teacher that slowed down to one a second: the end is where the slow one gets."""
    gauge = Gauge(100_000, clock := Clock())
    answered(gauge, 36_000, clock, 3600.0)
    answered(gauge, 300, clock, 300.0)
    assert gauge.reading().rate == pytest.approx(1.0, rel=0.05)
    clock.now += 3 * WINDOW
    assert gauge.reading().rate < 0.3, "silence counts"


def test_the_memory_of_the_rate_is_bounded() -> None:
    gauge = Gauge(None, clock := Clock())
    answered(gauge, 50_000, clock, 5_000.0)
    assert len(gauge._recent) <= 64


def test_failures_cost_and_count() -> None:
    gauge = Gauge(10, clock := Clock())
    answered(gauge, 2, clock, 2.0, cost=0.5, failed=True)
    answered(gauge, 8, clock, 8.0)
    shown = gauge.reading()
    assert (shown.done, shown.failed, shown.to_come, shown.eta) == (10, 2, 0.0, 0.0)
    assert shown.cost == pytest.approx(1.08) and "2 failed" in str(shown) and "left" not in str(shown)


def test_without_a_total_there_is_no_end_until_one_is_known() -> None:
    gauge = Gauge(None, clock := Clock())
    answered(gauge, 5, clock, 5.0)
    assert gauge.reading().eta is None and str(gauge.reading()).startswith("5, 1 requests/s")
    gauge.total = 10
    assert gauge.reading().eta == pytest.approx(5.0)
    gauge.total = 3
    assert gauge.reading().eta == 0.0, "more came than was thought: never below nothing"


def test_lines_come_soon_and_then_seldom() -> None:
    gauge = Gauge(10, clock := Clock())
    due = []
    for _ in range(7200):
        clock.now += 1.0
        if gauge.due():
            due.append(clock.now - 1000.0)
    assert due[:5] == [FIRST, 15.0, 35.0, 75.0, 155.0]
    gaps = [later - earlier for earlier, later in zip(due, due[1:], strict=False)]
    assert gaps == sorted(gaps) and max(gaps) == LONGEST and len(due) < 35


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3599.7, "1 h"), (11_400, "3 h 10 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert [count(n) for n in (0, 950, 12_345, 4_560_000, 2_000_000_000)] == ["0", "950", "12.3k", "4.56M", "2G"]
    assert [money(usd) for usd in (0, 0.00123, 0.1, 1234.5)] == ["0.00 USD", "0.0012 USD", "0.10 USD", "1,234.50 USD"]
