"""All rows of a kind over its shards: their facts in memory, the rows themselves on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.lib.facts import asked, facts_of, hash_of, whole
from steps.lib.rows import Row, Text
from steps.lib.shards import DETAIL
from steps.lib.signatures import Sketch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Places = NDArray[np.int64]
    """Numbers of rows in a table, ascending."""

UNITS: dict[str, Callable[[Row], str]] = {"whole": whole, "asked": asked}
BLOCK = 2_000
"""Rows that are objects at a time."""


@dataclass
class Found:
    """Rows that a pass does not keep."""

    places: Places
    reasons: Sequence[str]
    """One for each of ``places``, or one for all."""
    detail: Callable[[int], str] | None
    """What was seen, for the n-th of ``places``; None: the row's shard knows."""

    def among(self, alive: NDArray[np.bool_]) -> Found:
        """Only those of the rows that are alive."""
        import numpy as np

        stays = np.flatnonzero(alive[self.places])
        if len(stays) == len(self.places):
            return self
        numbers = stays.tolist()
        detail = self.detail
        return Found(
            self.places[stays],
            self.reasons if len(self.reasons) == 1 else [self.reasons[number] for number in numbers],
            (lambda number: detail(numbers[number])) if detail else None,
        )

    def reason(self, number: int) -> str:
        """Of the n-th of ``places``."""
        return self.reasons[0] if len(self.reasons) == 1 else self.reasons[number]


@dataclass
class Rows:
    """The rows of a kind.

    Args:
        name: of the kind.
        row: type of the rows.
        folder: where the shards lie.
    """

    name: str
    row: type[Any]
    folder: Path
    shards: list[Mapping[str, Any]] = field(default_factory=list)
    """Summaries of the shards, in order."""
    counted: list[str] = field(default_factory=list)
    """For each shard, the name under which the step counts its rows."""
    offsets: Places = field(init=False)
    """(S + 1,) rows before each shard."""
    facts: dict[str, Any] = field(init=False, default_factory=dict)
    alive: NDArray[np.bool_] = field(init=False)
    """Rows that no pass dropped."""
    held: NDArray[np.bool_] = field(init=False)
    """Rows that are alive and held out."""
    found: list[tuple[int, Found]] = field(default_factory=list)
    """What was dropped: number of the drop among all of the step, and the rows."""
    renamed: dict[int, str] = field(default_factory=dict)
    """Rows whose id another row of the kind had already."""

    def add(self, counted: str, summary: Mapping[str, Any]) -> None:
        """Take a shard behind the others."""
        self.counted.append(counted)
        self.shards.append(summary)

    def close(self) -> None:
        """Read the facts; all shards are there."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.offsets = np.cumsum([0, *(shard["rows"] for shard in self.shards)], dtype=np.int64)
        parts = {name: [values] for name, values in facts_of([], []).items()}
        same = {"asked_signature": "whole_signature", "asked_shingles": "whole_shingles"} if self.row is Text else {}
        for name in same:
            del parts[name]
        ids = []
        reasons = [""]
        for shard in self.shards:
            ids.append(
                pq.read_table(self.folder / f"{shard['name']}.parquet", columns=["id"])["id"].cast(pa.large_string())
            )
            with np.load(self.folder / f"{shard['name']}.npz") as facts:
                own = dict(facts)
            numbers = [0, *(_number(reasons, reason) for reason in shard["reasons"])]
            own["finding"] = np.array(numbers, np.int16)[own["finding"]]
            for name in parts:
                parts[name].append(own[name])
        self.reasons = reasons
        while parts:
            name, values = parts.popitem()
            self.facts[name] = np.concatenate(values)
        self.facts |= {name: self.facts[other] for name, other in same.items()}
        self.facts["first_unit"] = np.cumsum(self.facts["units_of_row"], dtype=np.int64) - self.facts["units_of_row"]
        self._ids = (
            pa.chunked_array(ids, pa.large_string()).combine_chunks() if ids else pa.array([], pa.large_string())
        )
        self.alive, self.held = np.ones(len(self), np.bool_), np.zeros(len(self), np.bool_)
        self._rename()

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def id(self, place: int) -> str:
        """Id of a row, which no other row of the kind has."""
        return self.renamed.get(int(place)) or str(self._ids[int(place)])

    def kept(self) -> Places:
        """Rows that are neither dropped nor held out."""
        import numpy as np

        return np.flatnonzero(self.alive & ~self.held)

    def digest(self, places: Places) -> str:
        """Of some rows, with their ids and sources."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard['source']}\x00{shard['files'][shard['name'] + '.parquet']}\x01".encode())
        digest.update(repr(sorted(self.renamed.items())).encode())
        digest.update(places.tobytes())
        return digest.hexdigest()

    def sketch(self, unit: str) -> Sketch:
        """Near-copy signatures of all rows: "whole" or "asked"."""
        return Sketch(self.facts[f"{unit}_signature"], self.facts[f"{unit}_shingles"])

    def sources(self, places: Places) -> tuple[Places, list[str]]:
        """Number of each row's source, and the sources' names."""
        import numpy as np

        names = list(dict.fromkeys(shard["source"] for shard in self.shards))
        own = np.array([names.index(shard["source"]) for shard in self.shards], np.int64)
        return own[np.searchsorted(self.offsets, places, "right") - 1], names

    def by_shard(self, places: Places) -> Iterator[tuple[int, Places]]:
        """Number of a shard, and the rows of it among ``places``, counted from its start; shards without any are left out."""
        import numpy as np

        bounds = np.searchsorted(places, self.offsets)
        for number, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if low < high:
                yield number, places[low:high] - self.offsets[number]

    def table(self, number: int) -> Any:
        """The rows of a shard as an Arrow table, with ``DETAIL``, and with ids that no other row has."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / f"{self.shards[number]['name']}.parquet")
        start, stop = self.offsets[number : number + 2].tolist()
        low, high = self._renamed.searchsorted([start, stop])
        if own := self._renamed[low:high].tolist():
            ids = table["id"].to_pylist()
            for place in own:
                ids[place - start] = self.renamed[place]
            table = table.set_column(0, "id", pa.array(ids, pa.string()))
        return table

    def objects(self, table: Any, places: Places) -> Iterator[Any]:
        """Some rows of a shard's table."""
        for start in range(0, len(places), BLOCK):
            for record in table.take(places[start : start + BLOCK]).to_pylist():
                record.pop(DETAIL, None)
                yield self.row.model_validate(record)

    def all_objects(self, places: Places) -> Iterator[Any]:
        """Some rows."""
        for number, own in self.by_shard(places):
            yield from self.objects(self.table(number), own)

    def texts(self, places: Places, unit: str) -> list[str]:
        """What rows are compared by: "whole" or "asked"."""
        return [text for batch in self.text_batches(places, unit) for text in batch]

    def text_batches(self, places: Places, unit: str) -> Iterator[list[str]]:
        """``texts``, a shard at a time."""
        import pyarrow.parquet as pq

        for number, own in self.by_shard(places):
            path = self.folder / f"{self.shards[number]['name']}.parquet"
            if self.row is Text:
                yield pq.read_table(path, columns=["text"])["text"].take(own).to_pylist()
            else:
                yield list(map(UNITS[unit], self.objects(pq.read_table(path), own)))

    def _rename(self) -> None:
        """Where two sources use the same id, the later row gets its source's name before it."""
        import numpy as np
        import pyarrow.parquet as pq

        hashes = self.facts["id"]
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        at_risk = np.flatnonzero(counts[inverse] > 1)
        while True:
            sources: dict[int, str] = {}
            for number, own in self.by_shard(at_risk):
                names = pq.read_table(self.folder / f"{self.shards[number]['name']}.parquet", columns=["source"])[
                    "source"
                ].take(own)
                sources |= zip((own + self.offsets[number]).tolist(), names.to_pylist(), strict=True)
            seen: set[str] = set()
            renamed: dict[int, str] = {}
            for place in at_risk.tolist():
                name = str(self._ids[place])
                while name in seen:
                    name = renamed[place] = f"{sources[place]}-{name}"
                seen.add(name)
            more = np.array([hash_of(name) for name in renamed.values()], np.uint64)
            wider = np.union1d(at_risk, np.flatnonzero(np.isin(hashes, more)))
            if len(wider) == len(at_risk):
                self.renamed, self._renamed = renamed, np.fromiter(renamed, np.int64)
                return
            at_risk = wider


def merged(reasons: Iterable[str]) -> list[str]:
    """One reason where all are the same."""
    every = list(reasons)
    return every[:1] if len(set(every)) == 1 else every


def _number(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)
