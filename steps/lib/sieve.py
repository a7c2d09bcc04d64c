"""Passes over all rows that keep, drop with a reason, or set aside; every drop is counted and kept whole.

A pass works on the facts of rows (``facts``), with texts only of those that have to be compared. It gives findings, which a step
can keep and go on from. What is done to each row alone stands in ``shards``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.lib.clusters import Pairs, labels_of, losers
from steps.lib.config import key_view
from steps.lib.dedup import candidates, verified
from steps.lib.errors import DataError
from steps.lib.facts import LANGS
from steps.lib.findings import evidence, likenesses
from steps.lib.guarded import Guarded, contaminated_in, handed, near_held
from steps.lib.mixing import Mix, mixed
from steps.lib.overlap import Decontaminate, Item, guard
from steps.lib.row_files import LaidTexts
from steps.lib.row_ledger import RowLedger
from steps.lib.row_tables import Found, Rows, merged
from steps.lib.semantic import Semantic, semantic_pairs
from steps.lib.splits import BETWEEN, HELD, TRAIN, Links, Record, Stratum, joined, linked, marks, sides, table
from steps.lib.work_ledger import Recall
from steps.lib.workers import Task, Workers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from steps.lib.row_tables import Places

BETWEEN_SIDES = "it is like rows of both sides, which stay where they were"


@dataclass(frozen=True)
class Split:
    """What was held out of a kind."""

    record: Record
    strata: list[Stratum]


@dataclass
class Sieve:
    """Runs the passes for a step, and holds what they counted."""

    recall: Recall
    """Keeps finished passes."""
    workers: Workers
    folder: Path
    """For what workers read."""
    about: Mapping[str, Any]
    """Facts that belong to the content of every unit of work."""
    ledger: RowLedger = field(default_factory=RowLedger)
    drops: int = 0
    """Drops so far: their order is that of dropped.parquet."""

    def counts(self, kind: str) -> str:
        """ "516 rows in, 9 dropped: identity 6, ...", for messages."""
        reasons = self.ledger.reasons.get(kind, Counter())
        ranked = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
        listed = ", ".join(f"{reason} {count}" for reason, count in ranked)
        total = sum(reasons.values())
        return f"{self.ledger.rows_in[kind]} rows in, {total} dropped" + (f": {listed}" if listed else "")

    def add(self, kind: str, summary: Mapping[str, Any]) -> None:
        """Count what a shard took and dropped."""
        self.ledger.took(kind, summary["rows"])
        for reason, count in summary["dropped"].items():
            self.ledger.took(kind, count)
            self.ledger.drop(kind, reason, count)

    def sift(self, rows: Rows, *findings: Found) -> None:
        """Drop rows with a finding: those of the first findings first."""
        for found in findings:
            found = found.among(rows.alive)
            rows.alive[found.places] = False
            rows.held[found.places] = False
            self.drops += 1
            if not len(found.places):
                continue
            rows.found.append((self.drops, found))
            counts = Counter(found.reasons) if len(found.reasons) > 1 else {found.reasons[0]: len(found.places)}
            for reason, count in counts.items():
                self.ledger.drop(rows.name, reason, count)

    def near_copies(self, rows: Rows, places: Places, threshold: float | None) -> None:
        """Keep one row of each cluster of near-copies among ``places``; without a threshold, all."""
        if threshold is None:
            return
        content = {"pass": "near_copies", "kind": rows.name, "threshold": threshold, "rows": rows.digest(places)}
        gone = self.recall(content, lambda: self._losers(rows, places, self._near(rows, places, "whole", threshold)))
        self.sift(rows, likenesses("near_duplicate", "jaccard", rows, places, gone))

    def semantic_copies(self, rows: Rows, places: Places, config: Semantic, model: Mapping[str, str]) -> None:
        """Keep one row of each cluster of rows among ``places`` that say the same in other words."""
        content = {
            "pass": "semantic_copies",
            "kind": rows.name,
            "semantic": key_view(config),
            "model": dict(model),
            "rows": rows.digest(places),
        }

        def compute() -> list[list[Any]]:
            return self._losers(rows, places, semantic_pairs(rows.texts(places, "whole"), config))

        self.sift(rows, likenesses("semantic_duplicate", "cosine", rows, places, self.recall(content, compute)))

    def split(self, rows: Rows, share: float, threshold: float, earlier: Record | None) -> Split:
        """Mark the rows to hold out; see ``splits``. New rows that join old ones of both sides are dropped."""
        import numpy as np

        places = rows.kept()
        content = {
            "pass": "split",
            "kind": rows.name,
            "share": share,
            "threshold": threshold,
            "rows": rows.digest(places),
            "earlier": earlier.digest() if earlier else None,
        }

        def compute() -> list[list[int]]:
            pairs = self._near(rows, places, "asked", threshold)
            side, groups = apart(rows, places, (pairs.left, pairs.right), share, earlier)
            return [np.flatnonzero(side == HELD).tolist(), np.flatnonzero(side == BETWEEN).tolist(), groups.tolist()]

        held, between, groups = (np.array(own, np.int64) for own in self.recall(content, compute))
        side = np.full(len(places), TRAIN, np.int8)
        side[held], side[between] = HELD, BETWEEN
        rows.held[places[held]] = True
        self.sift(rows, Found(places[between], ["near_heldout"], lambda number: BETWEEN_SIDES))
        strata, names = strata_of(rows, places)
        return Split(Record.of(marks(rows.facts["asked"][places]), side, earlier), table(side, groups, strata, names))

    def decontaminate(self, kinds: Iterable[Rows], items: Sequence[Item], config: Decontaminate) -> None:
        """Drop rows that hold too much of a guarded text."""
        import numpy as np

        if not items:
            return
        guarding = guard(items, config)
        path = handed(self.folder, "guard", pickle.dumps(guarding, pickle.HIGHEST_PROTOCOL))
        for rows in kinds:
            parts = list(rows.by_shard(rows.kept()))
            tasks = [self._contaminated(rows, number, own, path, guarding.digest, config) for number, own in parts]
            places: list[int] = []
            details: list[str] = []
            for (number, _), found in zip(parts, self.workers.each(tasks), strict=True):
                places += [int(rows.offsets[number]) + place for place, _ in found]
                details += [detail for _, detail in found]
            self.sift(rows, Found(np.array(places, np.int64), ["contaminated"], details.__getitem__))

    def mix(self, rows: Rows, mix: Mix) -> None:
        """Keep of each source as many rows as it is to give."""
        places = rows.kept()
        sources, names = rows.sources(places)
        try:
            left = places[~mixed(sources, names, marks(rows.facts["asked"][places]), mix)]
        except DataError as error:
            raise DataError(f"clean.mix.{rows.name}: {error}") from None
        self.sift(rows, Found(left, ["mix_surplus"], lambda number: "its source gives enough without it"))

    def _near(self, rows: Rows, places: Places, unit: str, threshold: float) -> Pairs:
        """Pairs of near-copies among some rows, by their place in ``places``. Texts of candidates alone are read, once."""
        import numpy as np

        own = rows.sketch(unit).take(places)
        proposed = candidates(own, threshold)
        needed = np.unique(np.concatenate(proposed))
        with LaidTexts(self.folder / "texts.arrow", rows.text_batches(places[needed], unit)) as texts:
            return verified(proposed, own, lambda numbers: texts.take(np.searchsorted(needed, numbers)), threshold)

    def _losers(self, rows: Rows, places: Places, pairs: Pairs) -> list[list[Any]]:
        """(row, the row that stays, the row it was verified against, how alike they are) of each that goes."""
        found = losers(len(places), pairs, rows.facts["score"][places])
        columns = (found.rows, found.kept, found.linked, found.jaccard)
        return [list(one) for one in zip(*(column.tolist() for column in columns), strict=True)]

    def _contaminated(
        self, rows: Rows, number: int, own: Places, path: Path, digest: str, config: Decontaminate
    ) -> Task:
        shard = rows.shards[number]
        file = f"{shard['name']}.parquet"
        content = {
            **self.about,
            "pass": "contaminated",
            "shard": shard["files"][file],
            "rows": hashlib.sha256(own.tobytes()).hexdigest(),
            "limits": key_view(config),
            "guard": digest,
        }
        arguments = (rows.folder / file, rows.row, own, path, config)
        return Task(f"benchmarks in {shard['name']}", content, contaminated_in, lambda: arguments, len(own))

    def guard(self, kinds: Iterable[Rows], guarded: Guarded, threshold: float | None) -> None:
        """Drop rows that are a copy (case, spaces and punctuation aside) or a near-copy of a held-out row."""
        path = guarded.write(self.folder) if threshold is not None and guarded.texts else None
        for rows in kinds:
            self.sift(rows, self._guarded(rows, guarded, path, threshold))

    def _guarded(self, rows: Rows, guarded: Guarded, path: Path | None, threshold: float | None) -> Found:
        import numpy as np

        places = rows.kept()
        hits = guarded.copies(rows, places)
        same = frozenset(hits)
        if threshold is not None and path:
            rest = places[~np.isin(places, np.fromiter(hits, np.int64, len(hits)))]
            parts = list(rows.by_shard(rest))
            tasks = [self._near_held(rows, number, own, path, guarded, threshold) for number, own in parts]
            for (number, _), found in zip(parts, self.workers.each(tasks), strict=True):
                start = int(rows.offsets[number])
                hits |= {start + place: (other, score) for place, other, score in found}
        order = sorted(hits)
        return Found(
            np.array(order, np.int64),
            merged("heldout_copy" if place in same else "near_heldout" for place in order),
            lambda number: evidence(
                heldout_id=guarded.ids[hits[order[number]][0]], jaccard=round(hits[order[number]][1], 4)
            ),
        )

    def _near_held(self, rows: Rows, number: int, own: Places, path: Path, guarded: Guarded, threshold: float) -> Task:
        shard = rows.shards[number]
        file = f"{shard['name']}.parquet"
        content = {
            **self.about,
            "pass": "guarded",
            "shard": shard["files"][file],
            "rows": hashlib.sha256(own.tobytes()).hexdigest(),
            "threshold": threshold,
            "heldout": guarded.digest,
        }
        arguments = (rows.folder / file, rows.row, own, path, threshold)
        return Task(f"held-out copies in {shard['name']}", content, near_held, lambda: arguments, len(own))


def apart(
    rows: Rows, places: Places, near: Links, share: float, earlier: Record | None
) -> tuple[NDArray[np.int8], Places]:
    """Side and group of each of ``places``. A group: near-copies, rows with the same user turns, and what hangs together by these.

    Args:
        near: near-copies among ``places``, by what is asked.
        share: fraction of the groups to hold out.
        earlier: sides that rows had.
    """
    last = rows.facts["first_unit"][places] + rows.facts["units_of_row"][places] - 1  # all user turns together
    digests = marks(rows.facts["asked"][places])
    links = joined(near, linked(digests), linked(rows.facts["units"][last]))
    groups = labels_of(len(places), *links)
    return sides(digests, groups, share, strata_of(rows, places)[0], earlier), groups


def strata_of(rows: Rows, places: Places) -> tuple[Places, list[str]]:
    """Number of each row's source and language, and their names, such as "wiki zh"."""
    sources, names = rows.sources(places)
    return sources * len(LANGS) + rows.facts["lang"][places], [f"{name} {lang}" for name in names for lang in LANGS]
