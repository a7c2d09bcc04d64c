"""Rows that go by their facts alone: copies, contradictions, answers too many, what a filter of their shard found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.row_tables import Found, Rows, merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steps.lib.row_tables import Places


def failing(rows: Rows) -> Found:
    """Rows that a filter of their own shard does not keep."""
    import numpy as np

    places = np.flatnonzero(rows.facts["finding"])
    return Found(places, merged(rows.reasons[number] for number in rows.facts["finding"][places].tolist()), None)


def first_alike(contents: NDArray[Any]) -> Places:
    """For each row of (N, bytes), the first row that is equal to it."""
    import numpy as np

    if not len(contents):
        return np.zeros(0, np.int64)
    keys = np.ascontiguousarray(contents).view(np.uint64)
    order = np.lexsort(keys.T)  # stable: equal ones stay in their order
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))
    first = np.empty(len(keys), np.int64)
    first[order] = np.repeat(order[starts], np.diff(np.append(starts, len(keys))))
    return first


def copies(rows: Rows) -> Found:
    """All rows of one content but one: the first that no filter drops (a copy may differ in case), or the first."""
    import numpy as np

    group = first_alike(rows.facts["content"])
    passing = np.flatnonzero(rows.facts["finding"] == 0)
    stays = np.full(len(group), len(group), np.int64)
    np.minimum.at(stays, group[passing], passing)
    stays = np.where(stays < len(group), stays, np.arange(len(group)))[group]
    places = np.flatnonzero(stays != np.arange(len(group)))
    return Found(places, ["duplicate"], lambda number: evidence(kept_id=rows.id(stays[places[number]])))


def contradictions(rows: Rows) -> Found:
    """Answers that got thumbs up and thumbs down: all of them, since nothing says which verdict is right."""
    import numpy as np

    group, label = first_alike(rows.facts["content"]), rows.facts["label"]
    firsts = np.full((2, len(rows)), len(rows), np.int64)
    for up in (0, 1):
        own = np.flatnonzero(label == up)
        np.minimum.at(firsts[up], group[own], own)
    others = firsts[1 - label.astype(np.int64), group]
    places = np.flatnonzero(others < len(rows))
    return Found(places, ["contradiction"], lambda number: evidence(other_id=rows.id(others[places[number]])))


def likenesses(reason: str, measure: str, rows: Rows, places: Places, linked: Sequence[Sequence[Any]]) -> Found:
    """Rows that go of clusters of rows that are alike.

    Args:
        reason: of the drop.
        measure: what the likeness is called.
        rows: of a kind.
        places: those that were compared.
        linked: numbers in ``places`` of the row that goes, the one that stays and the one it was compared with, and how alike
            these are.
    """
    import numpy as np

    def detail(number: int) -> str:
        _, stays, other, score = linked[number]
        return evidence(kept_id=rows.id(places[stays]), linked_id=rows.id(places[other]), **{measure: round(score, 4)})

    return Found(places[np.array([one[0] for one in linked], np.int64)], [reason], detail)


def surplus(rows: Rows, most: int) -> Found:
    """Answers to a prompt after the first ``most``."""
    import numpy as np

    places = rows.kept()
    if not len(places):
        return Found(places, ["answers_per_prompt"], None)
    group = first_alike(rows.facts["asked"][places])
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(group[order]) != 0))
    count = np.empty(len(places), np.int64)
    count[order] = np.arange(len(places)) - np.repeat(starts, np.diff(np.append(starts, len(places)))) + 1
    over = np.flatnonzero(count > most)
    return Found(
        places[over],
        ["answers_per_prompt"],
        lambda number: f"answer {count[over[number]]} to this prompt, at most {most}",
    )


def unaskable(rows: Rows) -> Found:
    """Held-out chats that evaluation cannot ask: of many user turns, or with the prompt of an earlier one."""
    import numpy as np

    held = np.flatnonzero(rows.held)
    users = rows.facts["users"][held]
    single = held[users == 1]
    first = single[first_alike(rows.facts["asked"][single])]
    again = first != single
    twice, kept = single[again], first[again]
    several = held[users != 1]
    places = np.union1d(several, twice)
    kept_by = dict(zip(twice.tolist(), kept.tolist(), strict=True))

    def detail(number: int) -> str:
        place = int(places[number])
        if place in kept_by:
            return evidence(kept_id=rows.id(kept_by[place]))
        return f"{rows.facts['users'][place]} user turns; a held-out prompt has one"

    reasons = merged("heldout_duplicate" if place in kept_by else "heldout_many_turns" for place in places.tolist())
    return Found(places, reasons, detail)


def evidence(**facts: Any) -> str:
    """The detail of a drop: what was seen, as JSON."""
    return json.dumps(facts, ensure_ascii=False)
