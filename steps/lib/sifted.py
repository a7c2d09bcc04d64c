"""What the sieve left, written: shards are read again in their order, and each row goes to one file, whole, in row groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from steps.lib.errors import DataError
from steps.lib.facts import hash_of
from steps.lib.row_files import RowFile
from steps.lib.row_tables import Found, Rows
from steps.lib.rows import Dropped, Row, to_table
from steps.lib.shards import DETAIL, set_aside

if TYPE_CHECKING:
    from steps.lib.row_tables import Places

EXAMPLES = 10
"""Dropped rows of each reason that a report shows."""


@dataclass
class Written:
    """What became of the rows of a source."""

    kind: str
    """As the step counts it."""
    source: str
    rows_in: int = 0
    kept: int = 0
    held: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def by_source(rows: Rows) -> Iterator[Written]:
    """Counts of each source of a kind; each adds up.

    Raises:
        DataError: one does not.
    """
    import numpy as np

    sources: dict[tuple[str, str], Written] = {}
    own: list[Written] = []
    for counted, shard in zip(rows.counted, rows.shards, strict=True):
        entry = sources.setdefault((counted, shard["source"]), Written(counted, shard["source"]))
        entry.rows_in += shard["rows"] + sum(shard["dropped"].values())
        entry.dropped.update(shard["dropped"])
        own.append(entry)
    for number, entry in enumerate(own):
        part = slice(*rows.offsets[number : number + 2].tolist())
        entry.held += int(np.count_nonzero(rows.held[part]))
        entry.kept += int(np.count_nonzero(rows.alive[part])) - int(np.count_nonzero(rows.held[part]))
    for _, found in rows.found:
        bounds = np.searchsorted(found.places, rows.offsets).tolist()
        for entry, low, high in zip(own, bounds[:-1], bounds[1:], strict=True):
            if len(found.reasons) == 1:
                entry.dropped[found.reasons[0]] += high - low
            else:
                entry.dropped.update(found.reasons[low:high])
    for entry in sources.values():
        entry.dropped = +entry.dropped
        if entry.rows_in != entry.kept + entry.held + sum(entry.dropped.values()):
            raise DataError(
                f"rows of source {entry.source} do not add up: got {entry.rows_in} in, {entry.kept} kept, {entry.held} held out "
                f"and {sum(entry.dropped.values())} dropped, because a row vanished without a reason; report this as a defect of "
                "prefline"
            )
        yield entry


def write_rows(
    rows: Rows,
    kept: tuple[Path, type[Row]],
    held: tuple[Path, type[Row], Callable[[Any], Row] | None] | None,
    dropped: DroppedFile,
    step: str,
) -> None:
    """Write the rows of a kind.

    Args:
        rows: with all that the sieve found.
        kept: the file of rows that are neither dropped nor held out.
        held: the file of rows that are held out, and what is made of each; None: no row is.
        dropped: gets the others.
        step: name of the step, for dropped rows.
    """
    import numpy as np

    _unique(rows)
    with ExitStack() as stack:
        main = stack.enter_context(RowFile(*kept))
        aside = stack.enter_context(RowFile(*held[:2])) if held else None
        for number in range(len(rows.shards)):
            start, stop = rows.offsets[number : number + 2].tolist()
            table, chars = rows.table(number), rows.facts["chars"][start:stop]
            alive, out = rows.alive[start:stop], rows.held[start:stop]
            stays = np.flatnonzero(alive & ~out)
            main.add(table.take(stays).drop_columns([DETAIL]), chars[stays])
            if aside and held and len(goes := np.flatnonzero(out)):
                make = held[2]
                some = table.take(goes).drop_columns([DETAIL])
                if make:
                    some = to_table([make(row) for row in rows.objects(table, goes)], held[1])
                aside.add(some, chars[goes])
            for order, found in rows.found:
                low, high = np.searchsorted(found.places, [start, stop]).tolist()
                if low < high:
                    dropped.add(order, list(_dropped(rows, table, found, low, high, start, step)))


def _dropped(rows: Rows, table: Any, found: Found, low: int, high: int, start: int, step: str) -> Iterator[Dropped]:
    own: Places = found.places[low:high] - start
    details = (
        table[DETAIL].take(own).to_pylist() if found.detail is None else [found.detail(n) for n in range(low, high)]
    )
    for number, row in enumerate(rows.objects(table, own)):
        yield set_aside(step, row, found.reason(low + number), details[number])


def _unique(rows: Rows) -> None:
    """No id stands twice among rows that are kept.

    Raises:
        DataError: one does.
    """
    import numpy as np

    kept = rows.kept()
    hashes = rows.facts["id"][kept].copy()
    for place, name in rows.renamed.items():
        hashes[np.searchsorted(kept, place) : np.searchsorted(kept, place, "right")] = hash_of(name)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    seen: dict[str, int] = {}
    for number in np.flatnonzero(np.bincount(inverse)[inverse] > 1).tolist() if len(kept) else ():
        name = rows.id(kept[number])
        if name in seen:
            raise DataError(
                f"row id {name!r} stands twice, because two sources use the same ids; give each source its own name"
            )
        seen[name] = number


class DroppedFile:
    """dropped.parquet: first what could not be taken, in the order of the sources; then what passes dropped, in their order.

    Args:
        folder: for what waits for its place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._files, self._stack = folder, dict[int, Any](), ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self._schema = to_table([], Dropped).schema

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, order: int, rows: Sequence[Dropped]) -> None:
        """Take rows that pass number ``order`` dropped."""
        import pyarrow as pa

        if order not in self._files:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            path = str(self._folder / f"{order}.arrow")
            self._files[order] = self._stack.enter_context(pa.ipc.new_stream(path, self._schema, options=options))
        self._files[order].write_table(to_table(rows, Dropped))

    def write(self, path: Path, unread: Sequence[Path]) -> dict[str, list[Dropped]]:
        """Write the file; the first ``EXAMPLES`` of each reason.

        Args:
            path: of dropped.parquet.
            unread: files of rows that could not be taken, in their order.
        """
        import pyarrow.compute as pc

        self._stack.close()
        examples: dict[str, list[Dropped]] = {}
        with RowFile(path, Dropped) as file:
            for table in self._tables(unread):
                file.add(table, pc.binary_length(table["row"]).to_numpy())
                _take_examples(table, examples)
        return examples

    def _tables(self, unread: Sequence[Path]) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in unread:
            yield pq.read_table(path)
        for order in sorted(self._files):
            with pa.ipc.open_stream(str(self._folder / f"{order}.arrow")) as stream:
                for batch in stream:
                    yield pa.Table.from_batches([batch])


def _take_examples(table: Any, examples: dict[str, list[Dropped]]) -> None:
    places: list[tuple[int, str]] = []
    for place, reason in enumerate(table["reason"].to_pylist()):
        own = examples.setdefault(reason, [])
        wanted = sum(table_reason == reason for _, table_reason in places)
        if len(own) + wanted < EXAMPLES:
            places.append((place, reason))
    for place, reason in places:
        examples[reason].append(Dropped.model_validate(table.slice(place, 1).to_pylist()[0]))


def shares(rows_in: int, reasons: Mapping[str, int], most: float) -> dict[str, float]:
    """Reason -> share of the rows, where it is more than ``most``."""
    found = {reason: count / rows_in for reason, count in reasons.items() if rows_in}
    return {reason: share for reason, share in sorted(found.items(), key=lambda one: (-one[1], one[0])) if share > most}
