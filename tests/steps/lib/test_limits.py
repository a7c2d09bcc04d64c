"""Rates against a clock that the test turns, the gate against the rule written out, the breaker step by step."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib.limits import Breaker, Bucket, Gate, Rates

T = TypeVar("T")


class Clock:
    """Time that only the test moves, with a sleep that moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_a_bucket_holds_one_second_and_fills_at_its_rate() -> None:
    clock = Clock()
    bucket = Bucket(600, clock)
    assert bucket.wait(10) == 0
    bucket.take(10)
    assert bucket.wait(1) == pytest.approx(0.1) and bucket.wait(5) == pytest.approx(0.5)
    clock.now += 0.5
    assert bucket.wait(5) == 0 and bucket.wait(6) == pytest.approx(0.1)
    clock.now += 1000
    assert bucket.wait(10) == 0 and bucket.wait(11) == 0, "more than the bucket holds goes when it is full"
    bucket.take(40)
    assert bucket.wait(1) == pytest.approx(3.1), "and leaves a debt"
    bucket.take(-35)
    assert bucket.wait(5) == 0, "what was not used is given back"


def test_one_a_minute_is_one_a_minute() -> None:
    clock = Clock()
    rates = Rates(1, None, clock, clock.sleep)

    async def three() -> list[float]:
        times = []
        for _ in range(3):
            await rates.acquire(0)
            times.append(clock.now)
        return times

    first, *others = run(three())
    assert [one - first for one in others] == pytest.approx([60, 120])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(200, 100_000),
    st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1), st.floats(0, 3)), min_size=5, max_size=80),
)
def test_no_minute_sees_more_than_its_limits(requests: int, tokens: int, asked: list[tuple[int, float, float]]) -> None:
    """In any window of 60 s: requests <= the limit + one second's share; tokens used <= that + one request."""
    clock = Clock()
    rates = Rates(requests, tokens, clock, clock.sleep)
    sent: list[tuple[float, int]] = []

    async def go() -> None:
        for reserved, share, pause in asked:
            clock.now += pause
            await rates.acquire(reserved)
            used = int(reserved * share)
            rates.settle(reserved, used)
            sent.append((clock.now, used))

    run(go())
    for start, _ in sent:
        window = [used for time, used in sent if start <= time < start + 60 - 1e-6]
        assert len(window) <= requests + max(1, requests / 60) + 1e-6
        assert sum(window) <= tokens + max(1, tokens / 60) + 200 + 1e-6


def test_a_hold_ends_with_the_rates_own_pace_and_not_with_a_burst() -> None:
    clock = Clock()
    rates = Rates(600, None, clock, clock.sleep)
    rates.hold(5)
    rates.hold(2)
    assert not rates.free(0)

    async def go() -> list[float]:
        times = []
        for _ in range(30):
            await rates.acquire(0)
            times.append(clock.now - 100)
        return times

    times = run(go())
    assert times[:10] == pytest.approx([5] * 10) and times[29] == pytest.approx(7)
    assert rates.free(0) is False
    clock.now += 1
    assert rates.free(0) is True


def test_who_comes_first_goes_first() -> None:
    clock = Clock()
    rates = Rates(None, 600, clock, clock.sleep)
    order: list[int] = []

    async def one(number: int, amount: int) -> None:
        await rates.acquire(amount)
        order.append(number)

    async def all_() -> None:
        await asyncio.gather(*(one(number, 500 if number == 1 else 1) for number in range(5)))

    run(all_())
    assert order == [0, 1, 2, 3, 4], "a large request is not starved by small ones"


def test_the_gate_halves_once_a_round_and_grows_by_one_a_clean_window() -> None:
    async def go() -> None:
        gate = Gate(16)
        held = [await gate.enter() for _ in range(16)]
        for number in held[:3]:
            gate.leave(number, pressed=True, clean=False)
        assert gate.limit == 8, "three 429 of one moment halve once"
        for number in held[3:]:
            gate.leave(number, pressed=False, clean=False)
        for step, limit in ((7, 8), (1, 9), (8, 9), (1, 10)):
            for _ in range(step):
                gate.leave(await gate.enter(), pressed=False, clean=True)
            assert gate.limit == limit
        for _ in range(10):
            gate.leave(await gate.enter(), pressed=True, clean=False)
        assert gate.limit == 1, "never under one"
        for _ in range(500):
            gate.leave(await gate.enter(), pressed=False, clean=True)
        assert gate.limit == 16, "never over what was set"

    run(go())


def test_the_gate_never_lets_more_in_than_its_limit_and_loses_no_place() -> None:
    async def go() -> None:
        gate, rng, inside = Gate(6), random.Random(3), 0

        async def one() -> None:
            nonlocal inside
            number = await gate.enter()
            inside += 1
            assert inside <= 6
            try:
                await asyncio.sleep(rng.random() * 0.002)
            finally:
                inside -= 1
                gate.leave(number, pressed=rng.random() < 0.2, clean=rng.random() < 0.8)

        tasks = [asyncio.ensure_future(one()) for _ in range(300)]
        await asyncio.sleep(0.02)
        for task in rng.sample(tasks, 100):
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert gate.in_flight == 0 == inside
        await asyncio.wait_for(gate.enter(), 1)

    run(go())


def test_the_breaker_opens_sends_one_probe_at_a_time_and_gives_up() -> None:
    async def go() -> None:
        clock = Clock()
        breaker = Breaker(3, 10, 2, clock)
        for _ in range(2):
            breaker.unheard(probe=False)
        breaker.heard()
        for _ in range(2):
            breaker.unheard(probe=False)
        breaker.unheard(probe=False, whole=False)
        assert not breaker.open and not await breaker.enter(), "three in a row, whole requests only"
        breaker.unheard(probe=False)
        assert breaker.open
        waiting = [asyncio.ensure_future(breaker.enter()) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert not any(one.done() for one in waiting), "ten seconds are not over"
        clock.now += 10
        probe = asyncio.ensure_future(breaker.enter())
        await asyncio.sleep(0.01)
        assert probe.done() and probe.result()
        assert not any(one.done() for one in waiting), "one probe alone"
        breaker.unheard(probe=True)
        clock.now += 10
        again = asyncio.ensure_future(breaker.enter())
        await asyncio.sleep(0.01)
        assert not again.done(), "the second pause is twice as long"
        again.cancel()
        clock.now += 10
        last = asyncio.ensure_future(breaker.enter())
        await asyncio.sleep(0.01)
        assert last.result()
        breaker.unheard(probe=True)
        assert await asyncio.gather(*waiting) == [False] * 4 and breaker.dead

    run(go())


def test_a_probe_that_fails_after_another_was_heard_is_no_failed_probe() -> None:
    async def go() -> None:
        clock = Clock()
        breaker = Breaker(1, 5, 2, clock)
        breaker.unheard(probe=False)
        clock.now += 5
        assert await breaker.enter()
        breaker.heard()  # an answer to what was sent before it opened
        breaker.unheard(probe=True, whole=False)
        assert not breaker.open and breaker.failed_probes == 0
        breaker.unheard(probe=False)
        clock.now += 5
        assert await breaker.enter()
        breaker.unheard(probe=True)
        assert not breaker.dead, "two probes, as configured"

    run(go())


def test_a_probe_that_is_heard_closes_the_breaker_for_all() -> None:
    async def go() -> None:
        clock = Clock()
        breaker = Breaker(1, 5, 3, clock)
        breaker.unheard(probe=False)
        waiting = [asyncio.ensure_future(breaker.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        clock.now += 5
        assert await breaker.enter()
        breaker.abandon()  # stopped before it could say anything: the next one's turn
        assert await breaker.enter()
        breaker.heard()
        assert await asyncio.gather(*waiting) == [False] * 3
        assert not breaker.open and breaker.silent == 0

    run(go())
