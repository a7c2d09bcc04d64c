"""What is held out or a benchmark, as far as other rows are searched for it: copies by hashes of their units, near-copies and
contamination shard by shard, in workers.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from steps.lib.benchmarks import contaminated_rows
from steps.lib.dedup import against
from steps.lib.digests import digest_text
from steps.lib.facts import asked_units, folded
from steps.lib.overlap import Decontaminate, Guard, Item
from steps.lib.row_tables import BLOCK, Rows
from steps.lib.rows import Row
from steps.lib.signatures import Sketch, sketch

if TYPE_CHECKING:
    from steps.lib.row_tables import Places


@dataclass
class Guarded:
    """What is held out, as far as it is looked for."""

    ids: list[str]
    texts: list[str]
    rows: int
    """How many of them are held-out rows, of which no copy may stay. Benchmark texts behind them guard against near-copies only: a
    label such as "A" is no row."""

    @classmethod
    def of(cls, some: Iterable[tuple[Rows, Places]], items: Sequence[Item] = ()) -> Guarded:
        """The given rows, in their order, and texts of benchmarks."""
        ids: list[str] = []
        texts: list[str] = []
        for rows, places in some:
            ids += [rows.id(place) for place in places.tolist()]
            texts += rows.texts(places, "asked")
        return cls([*ids, *(item.id for item in items)], [*texts, *(item.text for item in items)], len(texts))

    @functools.cached_property
    def digest(self) -> str:
        """Of the texts, in their order."""
        return digest_text(json.dumps(self.texts))

    def write(self, folder: Path) -> Path:
        """The file from which workers read the texts."""
        return handed(folder, "guarded", json.dumps(self.texts).encode())

    def copies(self, rows: Rows, places: Places) -> dict[int, tuple[int, float]]:
        """Rows of which a unit is the same, as far as letters and digits go -> the first held-out row with it, and 1."""
        import numpy as np

        first = {
            mark: number
            for number, text in reversed(list(enumerate(self.texts[: self.rows])))
            if (mark := folded(text))
        }
        if not first or not len(places):
            return {}
        owner = np.repeat(np.arange(len(rows)), rows.facts["units_of_row"])
        among = np.zeros(len(rows), np.bool_)
        among[places] = True
        marks = np.fromiter(first, np.uint64, len(first))
        hits: dict[int, tuple[int, float]] = {}
        for unit in np.flatnonzero(np.isin(rows.facts["units"], marks) & among[owner]).tolist():
            hits.setdefault(int(owner[unit]), (first[int(rows.facts["units"][unit])], 1.0))
        return hits


def near_held(
    file: Path, kind: type[Row], own: Places, guarded: Path, threshold: float
) -> list[tuple[int, int, float]]:
    """Rows of a shard that are near-copies of a held-out one: (row, held-out row most like its first unit that is, Jaccard)."""
    import pyarrow.parquet as pq

    rows = Rows("", kind, file.parent)
    table = pq.read_table(file)
    places = [
        (place, unit)
        for place, row in zip(own.tolist(), rows.objects(table, own), strict=True)
        for unit in asked_units(row)
    ]
    units, (texts, signed) = [unit for _, unit in places], _guarded_texts(guarded)
    found = against(sketch(units), partial(_of, units), signed, partial(_of, texts), threshold)
    nearest: dict[int, tuple[int, float]] = {}
    for one, other, score in zip(found.left.tolist(), found.right.tolist(), found.jaccard.tolist(), strict=True):
        if score > nearest.get(one, (0, 0.0))[1]:
            nearest[one] = (other, score)
    hits: dict[int, tuple[int, float]] = {}
    for number, hit in sorted(nearest.items()):
        hits.setdefault(places[number][0], hit)
    return [(place, other, score) for place, (other, score) in sorted(hits.items())]


def _of(texts: Sequence[str], numbers: Places) -> list[str]:
    return [texts[number] for number in numbers.tolist()]


@functools.lru_cache(1)
def _guarded_texts(path: Path) -> tuple[list[str], Sketch]:
    texts: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return texts, sketch(texts)


def contaminated_in(
    file: Path, kind: type[Row], own: Places, guard_file: Path, config: Decontaminate
) -> list[tuple[int, str]]:
    """Rows of a shard that hold too much of a guarded text, each with what was seen."""
    import pyarrow.parquet as pq

    rows, guarding = Rows("", kind, file.parent), _guard(guard_file)
    found: list[tuple[int, str]] = []
    objects, places = rows.objects(pq.read_table(file), own), iter(own.tolist())
    while block := list(itertools.islice(objects, BLOCK)):
        for place, finding in zip(
            itertools.islice(places, len(block)), contaminated_rows(block, guarding, config), strict=True
        ):
            if finding:
                found.append((place, finding[1]))
    return found


@functools.lru_cache(1)
def _guard(path: Path) -> Guard:
    guarding: Guard = pickle.loads(path.read_bytes())
    return guarding


def handed(folder: Path, what: str, content: bytes) -> Path:
    """A file for workers, named by the digest of its content. Always written: one that lies there may be torn, or another's."""
    path = folder / f"{what}-{hashlib.sha256(content).hexdigest()[:20]}"
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    draft.replace(path)
    return path
