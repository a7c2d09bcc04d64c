"""The history of a training run: one entry an update, in ``record/history.jsonl``; and fewer entries for people to look at.

An entry has ``step`` (the update), ``loss`` and what else the trainer measures, all of them numbers. A resumed run has the same
entries as one that was never stopped, so everything here needs the entries alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
STATES = ("step", "epoch", "learning_rate", "num_tokens")
"""Fields that say where a run stands; all others are measured in each update, and have a mean."""


def write(path: Path, history: Sequence[Entry]) -> None:
    """Write a line for each entry: step and loss first, the rest by name, so the bytes depend on the values only."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for entry in history:
            ordered = {"step": entry["step"], "loss": entry["loss"], **dict(sorted(entry.items()))}
            file.write(json.dumps(ordered) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def merged(entries: Sequence[Entry]) -> dict[str, Any]:
    """One entry for several updates: means of what is measured, and of the states the last value."""
    last = entries[-1]
    found: dict[str, Any] = dict(last)
    for name, value in last.items():
        if name not in STATES and isinstance(value, (int, float)):
            values = [float(entry[name]) for entry in entries if entry.get(name) is not None]
            found[name] = math.fsum(values) / len(values)
    return found


def due(history: Sequence[Entry], every: int, end: int) -> dict[str, Any] | None:
    """What to show when the newest entry has come: the mean of all updates since the last time; None when it is not time.

    Shown are the first update, each update that ``every`` divides, and the last one.

    Args:
        history: the entries so far.
        every: updates between two times.
        end: the last update of the run.
    """
    update = int(history[-1]["step"])
    if update not in (1, end) and update % every:
        return None
    shown = 0 if update == 1 else max(1, (update - 1) // every * every)
    return merged([entry for entry in history[-every:] if entry["step"] > shown])


def last_loss(history: Sequence[Entry]) -> float:
    """Mean loss of the last tenth of the updates (of one at least): a single update's loss is mostly noise."""
    tail = history[-math.ceil(len(history) / 10) :]
    return math.fsum(float(entry["loss"]) for entry in tail) / len(tail)


def thin(history: Sequence[Entry], points: int = 200) -> list[dict[str, Any]]:
    """At most ``points`` entries for a curve: the first update as it was, and means of equal stretches of the rest."""
    if len(history) <= points:
        return [dict(entry) for entry in history]
    rest, parts = history[1:], points - 1
    bounds = [len(rest) * part // parts for part in range(parts + 1)]
    return [dict(history[0]), *(merged(rest[low:high]) for low, high in zip(bounds, bounds[1:], strict=False))]
