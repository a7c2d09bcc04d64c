"""Clusters of cases, and the side of each cluster: decided once, kept for ever.

A case joins what it is near to; one that is near to nothing is a new cluster, whose name is its first case. The side of a new
cluster is a keyed hash of that name, so it hangs on no other case; the side of a known one is what the record says. When a new case
joins two clusters and one of them is held out, all of it is held out from then on. What of it had been trained on, and what is
near to that, is contaminated: it is neither trained on nor measured with.

Source: EVALUATION.md section 7, steps 4 and 5.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steps.lib.case_grams import pairs_of
from steps.lib.clusters import Pairs, labels_of, losers
from steps.lib.rows import BadCase

HOLDOUT, TRAIN = "holdout", "train"


@dataclass(frozen=True)
class Known:
    """What the record says of a case."""

    cluster: str
    split: str
    contaminated: bool


@dataclass(frozen=True)
class Place:
    """Where a case stands."""

    cluster: str
    split: str
    contaminated: bool


def side_of(salt: str, root: str, percent: int) -> str:
    """The side of a new cluster.

    Args:
        salt: of the project; it stays the same.
        root: id of the cluster's first case.
        percent: of the clusters to hold out.
    """
    number = int.from_bytes(hmac.new(salt.encode(), root.encode(), hashlib.sha256).digest()[:8], "big")
    return HOLDOUT if number % 100 < percent else TRAIN


def asked(case: BadCase) -> str:
    """What of a case is compared: the user turns."""
    return "\n".join(turn.content for turn in case.prompt if turn.role == "user")


@dataclass(frozen=True)
class Nearness:
    """Which cases are alike, by number."""

    pairs: Pairs

    @classmethod
    def of(cls, cases: Sequence[BadCase], threshold: float) -> Nearness:
        """Pairs of cases whose requests reach a Jaccard similarity of ``threshold``. Deleted cases are near to none."""
        import numpy as np

        found = list(pairs_of([asked(case) for case in cases], threshold))
        left, right, score = zip(*found, strict=True) if found else ((), (), ())
        return cls(Pairs(np.array(left, np.int64), np.array(right, np.int64), np.array(score, np.float64)))

    def at_least(self, threshold: float) -> Pairs:
        """Those that reach a higher similarity."""
        some = self.pairs.jaccard >= threshold
        return Pairs(self.pairs.left[some], self.pairs.right[some], self.pairs.jaccard[some])


def placed(
    cases: Sequence[BadCase], near: Pairs, record: Mapping[str, Known], *, salt: str, percent: int
) -> list[Place]:
    """The cluster and side of each case.

    Args:
        cases: N cases: those of the record first, in its order; then new ones in the order in which they came.
        near: pairs of them that belong together.
        record: case id -> what was decided.
        salt: of the project.
        percent: of new clusters to hold out.
    """
    import numpy as np

    first: dict[str, int] = {}
    links: list[tuple[int, int]] = []
    for number, case in enumerate(cases):  # what was one cluster stays one, whatever became of its texts
        if known := record.get(case.id):
            links.append((first.setdefault(known.cluster, number), number))
    kept, more = zip(*links, strict=True) if links else ((), ())
    labels = labels_of(
        len(cases),
        np.concatenate((np.array(kept, np.int64), near.left)),
        np.concatenate((np.array(more, np.int64), near.right)),
    ).tolist()
    members: dict[int, list[int]] = defaultdict(list)
    for number, label in enumerate(labels):
        members[label].append(number)
    places: dict[int, Place] = {}
    trained = {number for number, case in enumerate(cases) if (known := record.get(case.id)) and known.split == TRAIN}
    touching = {
        one for pair in zip(near.left.tolist(), near.right.tolist(), strict=True) if trained & set(pair) for one in pair
    }
    for own in members.values():
        decided = [known for number in own if (known := record.get(cases[number].id))]
        root = decided[0].cluster if decided else cases[own[0]].id
        splits = {known.split for known in decided}
        split = HOLDOUT if HOLDOUT in splits else TRAIN if splits else side_of(salt, root, percent)
        for number in own:
            known = record.get(cases[number].id)
            before = bool(known and known.contaminated)
            exposed = split == HOLDOUT and (number in trained or number in touching)
            places[number] = Place(root, split, before or exposed)
    return [places[number] for number in range(len(cases))]


def copies(cases: Sequence[BadCase], near: Pairs, worth: Sequence[float]) -> dict[int, tuple[int, int, float]]:
    """Cases that another one stands for: number -> (the one that stays, the one it was compared with, similarity).

    Args:
        cases: N cases.
        near: pairs that say the same.
        worth: (N,) of near-copies the one with most stays, of equals the earliest.
    """
    gone = losers(len(cases), near, worth)
    columns = (gone.rows, gone.kept, gone.linked, gone.jaccard)
    return {
        row: (kept, linked, score) for row, kept, linked, score in zip(*(one.tolist() for one in columns), strict=True)
    }
