"""The state of a bad case in the store, and what lists show of a case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["new", "triaged", "accepted", "rejected", "quarantined", "fixed", "regressed"]
MOVES: dict[State, tuple[State, ...]] = {
    "new": ("triaged", "accepted", "rejected", "quarantined", "fixed"),
    "triaged": ("accepted", "rejected", "quarantined", "fixed"),
    "accepted": ("rejected", "quarantined", "fixed"),
    "rejected": ("triaged",),
    "quarantined": ("triaged", "rejected"),
    "fixed": ("regressed", "accepted"),
    "regressed": ("fixed", "rejected", "quarantined"),
}
"""State -> states that may follow it."""
MEASURED = ("fixed", "regressed")
"""States that say nothing of whether a case may be used: they are no events."""
Told = Literal["fixed", "regressed", "still_failing", "still_passes", "flaky", "not_measured", "trained_on", "unused"]
"""What became of a case in a run. Held-out ones: fixed, regressed, still_failing, still_passes, flaky, not_measured (nobody could
check it). trained_on: its correction or its verdict. unused: the detail says why."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case in a run."""

    outcome: Told
    detail: str = ""


@dataclass(frozen=True)
class StoredCase:
    """A case as lists show it."""

    case_id: str
    state: State
    severity: str
    tags: tuple[str, ...]
    source: str
    first_seen: str
    last_seen: str
    events: int
    flagged: bool
    """A case was deleted that a model may have been trained on."""


def folded(before: Mapping[str, Any] | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a list shows of a case after some more events."""
    tags = set(json.loads(before["tags"])) if before else set()
    facts: dict[str, Any] = dict(
        before or {"state": "new", "severity": "minor", "events": 0, "source": rows[0]["source"]}
    )
    facts.setdefault("first_seen", rows[0]["ts"])
    facts.setdefault("last_seen", rows[0]["ts"])
    for row in rows:
        tags |= set(json.loads(row["tags"]))
        facts["severity"] = row["severity"] or facts["severity"]
        if row["state"] and facts["state"] in ("new", "triaged"):
            facts["state"] = row["state"]
        facts["first_seen"] = min(facts["first_seen"], row["ts"])
        facts["last_seen"] = max(facts["last_seen"], row["ts"])
        facts["events"] += 1
    kept = ("state", "severity", "events", "source", "first_seen", "last_seen")
    return {**{name: facts[name] for name in kept}, "tags": json.dumps(sorted(tags))}


def case_of(row: Any) -> StoredCase:
    names = ("case_id", "state", "severity", "source", "first_seen", "last_seen", "events")
    return StoredCase(
        **{name: row[name] for name in names}, tags=tuple(json.loads(row["tags"])), flagged=bool(row["flagged"])
    )


@dataclass(frozen=True)
class Taken:
    """Events that one run works on: after ``first``, up to ``last``."""

    run: str
    first: int
    last: int
    done: bool = False


def taken_of(row: Any) -> Taken:
    return Taken(row["run"], row["first"], row["last"], bool(row["done"]))
