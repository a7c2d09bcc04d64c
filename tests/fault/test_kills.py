"""A process can be killed at any moment, anywhere in the line; the next run finishes with the same bytes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from fault.kills import campaign, draw
from fault.oracle import Micro
from minimal import line_steps

from flows.line import steps_of

KILLS = int(os.environ.get("PREFLINE_KILLS", "6"))
"""All 200 are run by benchmarks/faults.py."""
SEED = int(os.environ.get("PREFLINE_KILLS_SEED", "9"))

EACH = (*(1,) * 5, 2)
"""Kills of a trial, in turn. Most of the time is for starting processes; what each training step does of its own is in its own file."""


def test_kills_are_spread_evenly_and_drawn_again_from_their_seed() -> None:
    steps = line_steps()
    trials = draw(SEED, steps)
    drawn = [next(trials) for _ in range(400)]
    again = draw(SEED, steps)
    assert [next(again) for _ in range(400)] == drawn
    kills = [(trial.step, kill) for trial in drawn for kill in trial.kills]
    for counted, least in (
        (Counter(step for step, _ in kills), len(kills) / len(steps) * 0.8),
        (Counter((kill.signal, kill.target) for _, kill in kills), len(kills) / 6 * 0.95),
    ):
        assert min(counted.values()) >= least, counted
    assert Counter(kill.trigger == "time" for _, kill in kills)[True] == pytest.approx(len(kills) / 2, abs=2)


def test_a_killed_line_goes_on_to_the_same_bytes(micro: Micro, tmp_path: Path) -> None:
    results = campaign(micro, tmp_path, SEED, KILLS, each=EACH)
    problems = [f"{result.trial}: {problem}" for result in results for problem in result.problems]
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)
    blows = [blow for result in results for blow in result.blows]
    assert (
        len(blows) >= KILLS and len({blow.step for blow in blows}) >= min(KILLS, len(steps_of(micro.line.config()))) - 1
    )
