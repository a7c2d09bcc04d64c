"""Rate, cost and end of a run, on a clock that stands still until it is moved."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from steps.lib.amounts import count, duration, money
from steps.lib.asking import Outcome, Tally
from steps.lib.gauge import FIRST, LONGEST, WINDOW, Gauge, Reading
from steps.lib.ledger import Reply


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Asked:
    """A gauge over two teachers who are asked in turn."""

    total: int | None
    clock: Clock = field(default_factory=Clock)
    tallies: tuple[Tally, Tally] = field(default_factory=lambda: (Tally(), Tally()))

    def __post_init__(self) -> None:
        self.gauge = Gauge(self.total, self.clock)

    def answer(self, number: int, seconds: float, cost: float = 0.01, failed: bool = False) -> None:
        for place in range(number):
            self.clock.now += seconds / number
            reply = None if failed else Reply("x", tokens_in=100, tokens_out=20, cost=cost)
            self.tallies[place % 2].count(
                Outcome(reply, "timeout: none" if failed else "", cost=cost if failed else 0.0)
            )
            self.gauge.look(self.tallies)

    def found(self, number: int) -> None:
        self.tallies[0].from_ledger += number
        self.gauge.look(self.tallies)

    @property
    def shown(self) -> Reading:
        return self.gauge.reading()


def test_a_steady_run() -> None:
    run = Asked(1000)
    run.found(400)
    run.answer(100, 50.0)
    shown = run.shown
    assert (shown.done, shown.total, shown.held, shown.failed) == (500, 1000, 400, 0)
    assert shown.rate == pytest.approx(2.0, rel=0.05) and shown.eta == pytest.approx(250, rel=0.05)
    assert shown.cost == pytest.approx(1.0) and shown.to_come == pytest.approx(5.0)
    assert (shown.tokens_in, shown.tokens_out) == (10_000, 2_000)
    assert (
        str(shown)
        == "500/1,000 (400 from the ledger), 2 requests/s, tokens 10k in 2k out, 1.00 USD so far, 5.00 USD to come, 4 min 10 s left"
    )


def test_answers_of_the_ledger_say_nothing_about_rate_and_cost() -> None:
    run = Asked(100)
    run.found(60)
    run.clock.now += 30
    shown = run.shown
    assert shown.rate == 0 and shown.eta is None and shown.to_come is None
    assert str(shown) == "60/100 (60 from the ledger), 0 requests/s, tokens 0 in 0 out"


def test_the_rate_is_that_of_late() -> None:
    """An hour of ten a second, then a teacher that slowed down to one a second: the end is where the slow one gets."""
    run = Asked(100_000)
    run.answer(36_000, 3600.0)
    run.answer(300, 300.0)
    assert run.shown.rate == pytest.approx(1.0, rel=0.05)
    run.clock.now += 3 * WINDOW
    assert run.shown.rate < 0.3, "silence counts"


def test_the_memory_of_the_rate_is_bounded() -> None:
    run = Asked(None)
    run.answer(50_000, 5_000.0)
    assert len(run.gauge._recent) <= 64


def test_failures_cost_and_count() -> None:
    run = Asked(10)
    run.answer(2, 2.0, cost=0.5, failed=True)
    run.answer(8, 8.0)
    shown = run.shown
    assert (shown.done, shown.failed, shown.to_come, shown.eta) == (10, 2, 0.0, 0.0)
    assert shown.cost == pytest.approx(1.08) and "2 failed" in str(shown) and "left" not in str(shown)


def test_without_a_total_there_is_no_end_until_one_is_known() -> None:
    run = Asked(None)
    run.answer(5, 5.0)
    assert run.shown.eta is None and str(run.shown).startswith("5, 1 requests/s")
    run.gauge.total = 10
    assert run.shown.eta == pytest.approx(5.0)
    run.gauge.total = 3
    assert run.shown.eta == 0.0, "more came than was thought: never below nothing"


def test_lines_come_soon_and_then_seldom() -> None:
    run = Asked(10)
    due = []
    for _ in range(7200):
        run.clock.now += 1.0
        if run.gauge.due():
            due.append(run.clock.now - 1000.0)
    assert due[:5] == [FIRST, 15.0, 35.0, 75.0, 155.0]
    gaps = [later - earlier for earlier, later in zip(due, due[1:], strict=False)]
    assert gaps == sorted(gaps) and max(gaps) == LONGEST and len(due) < 35


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3599.7, "1 h"),
        (11_400, "3 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert [count(n) for n in (0, 950, 12_345, 4_560_000, 2_000_000_000)] == ["0", "950", "12.3k", "4.56M", "2G"]
    assert [money(usd) for usd in (0, 0.00123, 0.1, 1234.5)] == ["0.00 USD", "0.0012 USD", "0.10 USD", "1,234.50 USD"]
