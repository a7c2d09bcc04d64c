"""Mixes of sources: exact counts, no silent repeats, the same rows in every order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from steps.lib import splits
from steps.lib.errors import DataError
from steps.lib.mixing import Mix, mixed, quotas


def marks(names: Sequence[str]) -> np.ndarray:
    """Content digests of rows with these texts."""
    digests = b"".join(hashlib.sha256(name.encode()).digest() for name in names)
    return splits.marks(np.frombuffer(digests, np.uint8).reshape(-1, 32))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 50), st.sampled_from([0, 0.1, 0.25, 1, 3])), min_size=1, max_size=6))
def test_the_largest_mix_has_each_share_to_a_row_and_takes_the_scarcest_source_whole(
    rows: list[tuple[int, float]],
) -> None:
    weights = {str(number): weight for number, (_, weight) in enumerate(rows)} | {"one": 1}
    available = {str(number): count for number, (count, _) in enumerate(rows)} | {"one": 25}
    counts = quotas(available, Mix(weights=weights))
    total, whole = sum(counts.values()), sum(weights.values())
    for name, count in counts.items():
        assert count <= available[name] and abs(count - total * weights[name] / whole) < 1
    assert quotas(available, Mix(weights=weights, rows=total)) == counts
    assert any((total + 1) * weights[name] / whole > available[name] for name in weights)


def test_counts_are_exact_and_rows_are_chosen_by_content() -> None:
    names = ["wiki", "c4"]
    texts = [f"text {number}" for number in range(1300)]
    sources = np.array([0] * 1000 + [1] * 300)
    mix = Mix(weights={"wiki": 3, "c4": 1}, rows=1000)
    chosen = mixed(sources, names, marks(texts), mix)
    assert np.bincount(sources, chosen).tolist() == [750, 250]
    order = np.random.default_rng(2).permutation(1300)
    again = mixed(sources[order], names, marks([texts[one] for one in order]), mix)
    assert np.array_equal(again, chosen[order])
    more = mixed(sources, names, marks(texts), mix.model_copy(update={"rows": 1100}))
    assert not (chosen & ~more).any(), "a larger mix holds the smaller one"


def test_the_scarce_source_decides_and_none_is_repeated() -> None:
    names, sources = ["big", "small", "none"], np.array([0] * 90 + [1] * 20)
    digests = marks([str(number) for number in range(110)])
    weights = {"big": 0.5, "small": 0.5, "none": 0}
    chosen = mixed(sources, names, digests, Mix(weights=weights))
    assert np.bincount(sources, chosen).tolist() == [20, 20]
    with pytest.raises(DataError, match=r"source small has too few rows for the mix: got 20 .* 50 are needed"):
        mixed(sources, names, digests, Mix(weights=weights, rows=100))


def test_a_source_that_lost_all_its_rows_stops_the_mix() -> None:
    for mix in (Mix(weights={"wiki": 1, "c4": 1}), Mix(weights={"wiki": 1, "c4": 1}, rows=4)):
        with pytest.raises(DataError, match="source c4 has too few rows for the mix: got 0 after cleaning"):
            quotas({"wiki": 5, "c4": 0}, mix)


def test_every_source_has_a_weight_and_every_weight_a_source() -> None:
    with pytest.raises(DataError) as caught:
        quotas({"wiki": 5, "c4": 5}, Mix(weights={"wiki": 1, "c5": 1}))
    assert "no weight for source c4" in str(caught.value) and "gives a weight to c5" in str(caught.value)
    with pytest.raises(ValidationError, match="nothing but 0"):
        Mix(weights={"wiki": 0})
    with pytest.raises(ValidationError, match="wiki: -1"):
        Mix(weights={"wiki": -1, "c4": 2})
