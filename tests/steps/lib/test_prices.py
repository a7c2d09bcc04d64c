"""Prices, and a budget that is never passed whatever requests use."""

import asyncio
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib.errors import BudgetSpent, ConfigError
from steps.lib.ledger import Spent
from steps.lib.prices import Budget, Price, Usage, likely_tokens, most_tokens, price_of


def test_prices_come_from_the_teacher_or_the_table(tmp_path: Path) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("models:\n  m: {input: 1, output: 3, seen: 2026-01-02}\n")
    assert price_of("m", None, table) is not None
    assert price_of("n", None, table) is None and price_of("m", None, tmp_path / "none.yaml") is None
    own = Price(input=2, output=4)
    assert price_of("m", own, table) is own
    assert own.of(1_000_000, 500_000) == 4 and own.of(1_000_000, 500_000, batch=True) == 2
    table.write_text("models:\n  m: {input: -1, output: 3}\n")
    with pytest.raises(ConfigError, match=r"models\.m\.input.*\n.*models\.m\.seen"):
        price_of("m", None, table)


@settings(max_examples=150, deadline=None)
@given(
    st.floats(0.0001, 0.05),
    st.integers(100, 20_000) | st.none(),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1)), max_size=60),
    st.integers(1, 12),
    st.integers(0, 2000),
)
def test_a_budget_is_never_passed_under_concurrency(
    usd: float, tokens: int | None, asked: list[tuple[int, int, float, float]], workers: int, before: int
) -> None:
    price = Price(input=3, output=11)
    spent = Spent(price.of(before, 0), before)
    paid = Usage(before, 0, spent.usd)
    refused: list[Usage] = []

    async def go() -> None:
        nonlocal paid
        budget, rng, todo = Budget("t", usd, tokens, spent), random.Random(1), iter(asked)

        async def work() -> None:
            nonlocal paid
            for most_in, most_out, share_in, share_out in todo:
                most = Usage(most_in, most_out, price.of(most_in, most_out))
                try:
                    number = await budget.reserve(most)
                except BudgetSpent:
                    refused.append(most)
                    return
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                used_in, used_out = int(most_in * share_in), int(most_out * share_out)
                used = Usage(used_in, used_out, price.of(used_in, used_out))
                paid += used
                assert before == paid.tokens or paid.cost <= usd + 1e-9
                assert before == paid.tokens or tokens is None or paid.tokens <= tokens
                budget.settle(number, used)

        await asyncio.gather(*(work() for _ in range(workers)))
        assert budget.used.tokens == paid.tokens and budget.used.cost == pytest.approx(paid.cost)
        assert budget.spent is bool(refused)
        if refused:  # the one that ended it would have fitted under no order of what was in flight
            assert any(
                paid.cost + one.cost > usd - 1e-9 or (tokens is not None and paid.tokens + one.tokens > tokens)
                for one in refused
            )

    asyncio.run(go())


def test_what_does_not_fit_waits_for_what_is_in_flight() -> None:
    async def go() -> None:
        budget = Budget("t", None, 100, Spent())
        first = await budget.reserve(Usage(80, 0))
        second = asyncio.ensure_future(budget.reserve(Usage(60, 0)))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, Usage(30, 0))
        budget.settle(await second, Usage(60, 0))
        with pytest.raises(BudgetSpent) as caught:
            await budget.reserve(Usage(11, 0))
        assert str(caught.value) == (
            "budget of teacher t is spent: got 90 of 100 tokens used, because the next request may take up to 11 tokens; raise "
            "budget_tokens and run the same command again: answers received so far are kept and not paid for again"
        )
        with pytest.raises(BudgetSpent):
            await budget.reserve(Usage(1, 0))

    asyncio.run(go())


@given(st.text())
def test_no_text_has_more_tokens_than_the_bound(text: str) -> None:
    """A tokenizer on bytes without any merge is the worst there is; a real one never makes more."""
    payload = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode(
        "utf-8", "replace"
    )
    assert most_tokens(payload) > len(text.encode("utf-8", "replace"))
    assert 0 < likely_tokens(payload) <= most_tokens(payload)
