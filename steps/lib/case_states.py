"""The state of a bad case in the store, and what lists show of a case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["new", "triaged", "accepted", "rejected", "quarantined", "fixed", "regressed"]
MOVES: dict[State, tuple[State, ...]] = {
    "new": ("triaged", "accepted", "rejected", "quarantined"),
    "triaged": ("accepted", "rejected", "quarantined"),
    "accepted": ("rejected", "quarantined", "fixed"),
    "rejected": ("triaged",),
    "quarantined": ("triaged", "rejected"),
    "fixed": ("regressed", "accepted"),
    "regressed": ("fixed", "rejected", "quarantined"),
}
"""State -> states that may follow it."""


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
