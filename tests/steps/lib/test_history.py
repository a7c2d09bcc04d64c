"""The history of every update, and what people see of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.lib import history


def run(updates: int) -> list[dict[str, Any]]:
    draw = random.Random(updates)
    return [
        {"step": n, "loss": draw.random(), "grad_norm": draw.random(), "learning_rate": n / 10, "num_tokens": 7.0 * n}
        for n in range(1, updates + 1)
    ]


def test_the_file_depends_on_the_values_only(tmp_path: Path) -> None:
    """A checkpoint gives its entries back with their fields in another order."""
    entries = run(3)
    history.write(tmp_path / "record" / "one.jsonl", entries)
    history.write(tmp_path / "record" / "two.jsonl", [dict(sorted(entry.items(), reverse=True)) for entry in entries])
    assert (tmp_path / "record" / "one.jsonl").read_bytes() == (tmp_path / "record" / "two.jsonl").read_bytes()
    assert history.read(tmp_path / "record" / "one.jsonl") == entries
    assert (tmp_path / "record" / "one.jsonl").read_text().startswith('{"step": 1, "loss": 0.')


@given(st.integers(1, 60), st.integers(1, 25))
def test_every_update_is_shown_once_in_a_mean(updates: int, every: int) -> None:
    entries = run(updates)
    seen = [(n, history.due(entries[:n], every, updates)) for n in range(1, updates + 1)]
    shown = [(n, entry) for n, entry in seen if entry]
    assert [n for n, _ in shown] == sorted({1, updates, *range(every, updates + 1, every)})
    low = 0
    for n, entry in shown:
        part = entries[low:n]
        assert entry["loss"] == pytest.approx(sum(one["loss"] for one in part) / len(part), rel=1e-12)
        assert (entry["step"], entry["learning_rate"], entry["num_tokens"]) == (n, n / 10, 7.0 * n)
        low = n
    assert low == updates


@given(st.integers(1, 900), st.integers(2, 250))
def test_a_thin_curve_has_few_points_and_the_same_run(updates: int, points: int) -> None:
    entries = run(updates)
    thin = history.thin(entries, points)
    assert len(thin) == min(updates, points) and thin[0] == entries[0] and thin[-1]["step"] == updates
    steps = [entry["step"] for entry in thin]
    assert steps == sorted(set(steps))
    parts = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    total = sum(entry["loss"] * part for entry, part in zip(thin, parts, strict=True))
    assert total == pytest.approx(sum(entry["loss"] for entry in entries), rel=1e-9), "no update is left out"
    assert len(parts) < 3 or max(parts[1:]) - min(parts[1:]) <= 1, "equal stretches"


def test_a_short_curve_stays_as_it_is() -> None:
    assert history.thin(run(200)) == run(200) and len(history.thin(run(201))) == 200


def test_fields_that_are_missing_or_no_numbers_do_no_harm() -> None:
    merged = history.merged([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 4.0, "eval_loss": 1.0, "note": "x"}])
    assert merged == {"step": 2, "loss": 3.0, "eval_loss": 1.0, "note": "x"}


@pytest.mark.parametrize(("updates", "last"), [(1, 1), (6, 1), (10, 1), (11, 2), (80, 8)])
def test_the_last_loss_is_of_a_tenth_of_the_updates(updates: int, last: int) -> None:
    entries = run(updates)
    assert history.last_loss(entries) == pytest.approx(sum(one["loss"] for one in entries[-last:]) / last, rel=1e-12)
