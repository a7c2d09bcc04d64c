"""Shards of rows: some thousand rows of a source are read, repaired and judged, each alone, and lie as files in the resume folder.

A shard is ``NAME.parquet`` (the rows as they would be kept), ``NAME.npz`` (their facts) and ``NAME-dropped.parquet`` (rows that
could not be taken). Its summary, which goes into the work ledger, names the digests of these files; a shard whose files are not
the ones that were written is made again. The rows that come out, and their order, are the same for every size of a shard.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from steps.lib.facts import facts_of, texts_of
from steps.lib.quality import Finding
from steps.lib.rows import Dropped, Row, to_table, write_parquet
from steps.lib.sources import Rejected
from steps.lib.standards import Standards
from steps.lib.work_ledger import WorkLedger
from steps.lib.workers import Known, Task

R = TypeVar("R", bound=Row)
T = TypeVar("T")
DETAIL = "#detail"
"""Column of a shard's rows beside their own: what the filter saw that the row fails."""


@dataclass
class Shard(Generic[R]):
    """What became of some rows of a source."""

    rows: list[R] = field(default_factory=list)
    findings: list[Finding | None] = field(default_factory=list)
    """For each of the rows, the filter it fails."""
    dropped: list[tuple[Dropped, int]] = field(default_factory=list)
    """What could not be taken, and how many rows each stands for."""
    gone: list[str] = field(default_factory=list)
    """Ids of rows that were read, of which nothing was left."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Repair of characters -> rows with it."""
    redacted: Counter[str] = field(default_factory=Counter)
    """Type of personal data -> how many were replaced."""

    def keep(self, row: R, finding: Finding | None) -> None:
        """Take a row."""
        self.rows.append(row)
        self.findings.append(finding)

    def write(self, folder: Path, name: str, kind: type[R]) -> dict[str, Any]:
        """Write the files of the shard, each whole or not there; its summary."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        reasons = list(dict.fromkeys(finding[0] for finding in self.findings if finding))
        numbers = [1 + reasons.index(finding[0]) if finding else 0 for finding in self.findings]
        details = pa.array([finding[1] if finding else None for finding in self.findings], pa.string())
        table = to_table(self.rows, kind).append_column(DETAIL, details)
        facts = facts_of(self.rows, numbers)
        counts = Counter[str]()
        for row, count in self.dropped:
            counts[row.reason] += count
        own: dict[str, Callable[[Path], None]] = {
            ".parquet": lambda path: pq.write_table(table, path, compression="zstd"),
            ".npz": lambda path: _save(path, facts),
        }
        if self.dropped:
            own["-dropped.parquet"] = lambda path: write_parquet(path, [row for row, _ in self.dropped], Dropped)
        for ending, write in own.items():
            draft = folder / f"{name}{ending}.draft"
            write(draft)
            os.replace(draft, folder / f"{name}{ending}")
        return {
            "name": name,
            "rows": len(self.rows),
            "reasons": reasons,
            "dropped": counts,
            "gone": self.gone,
            "repaired": self.repaired,
            "redacted": self.redacted,
            "files": {f"{name}{ending}": _digest(folder / f"{name}{ending}") for ending in own},
        }


def _save(path: Path, facts: Mapping[str, Any]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **facts)


def whole_files(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether the files of a shard are those that were written."""
    try:
        return all(_digest(folder / name) == digest for name, digest in summary["files"].items())
    except FileNotFoundError:
        return False


def _digest(path: Path) -> str:
    """sha256 of a file's bytes. (``digests.digest_file`` waits until a young file has aged, to remember it; these are not asked for
    twice.)"""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shards(
    name: str,
    facts: Mapping[str, Any],
    size: int,
    rows: Callable[[int, list[str]], Iterable[Any]],
    look: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
    folder: Path,
    ledger: WorkLedger,
) -> Iterator[Task | Known]:
    """A source in shards of ``size`` rows, as tasks in their order; finished ones are known.

    Args:
        name: of the source, for files and messages.
        facts: content of the source, how it is read, and all else that ``look`` depends on.
        size: rows of a shard.
        rows: opens the source behind so many rows, which had these ids; not called while finished shards are there.
        look: ``look(rows as pickled list, folder, name, *arguments)`` writes a shard and gives its summary.
        arguments: what ``look`` gets besides.
        folder: where the shards lie.
        ledger: knows finished shards.
    """
    reader: Iterator[Any] | None = None
    place, before = 0, list[Mapping[str, Any]]()
    for number in itertools.count():
        start, own = number * size, f"{name}-{number:05}"
        content = {**facts, "name": name, "from": start, "to": start + size}
        if found := ledger.known(content, lambda summary: whole_files(folder, summary)):
            yield Known(found[0])
            if found[0]["last"]:
                return
            if reader is None:
                before.append(found[0])
            continue
        if reader is None:
            reader, place = iter(rows(start, _ids(folder, before))), start
        taken = list(itertools.islice(reader, start - place, start - place + size))
        place = start + len(taken)
        last = len(taken) < size
        packed = pickle.dumps(taken, pickle.HIGHEST_PROTOCOL)
        amount = len(taken)
        del taken
        yield Task(own, content, look, _given(packed, folder, own, last, *arguments), amount)
        if last:
            return


def _given(*arguments: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: arguments


def _ids(folder: Path, summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of all rows that finished shards had."""
    import pyarrow.parquet as pq

    ids: list[str] = []
    for summary in summaries:
        ids += pq.read_table(folder / f"{summary['name']}.parquet", columns=["id"])["id"].to_pylist()
        ids += summary["gone"]
    return ids


def look(
    packed: bytes, folder: Path, name: str, last: bool, kind: type[R], step: str, standards: Standards
) -> dict[str, Any]:
    """Repair and judge rows of a source, and write them as a shard.

    Args:
        packed: pickled list of rows, and of what could not be read.
        folder: for the files.
        name: of the shard.
        last: whether nothing comes behind it.
        kind: type of the rows.
        step: name of the step, for dropped rows.
        standards: what each row is held to.
    """
    return {"last": last, **taken(pickle.loads(packed), step, standards).write(folder, name, kind)}


def taken(rows: Iterable[R | Rejected], step: str, standards: Standards) -> Shard[R]:
    """Rows of a source, each repaired and judged; what could not be read, and what is empty then, is dropped."""
    shard = Shard[R]()
    read: list[R] = []
    for row in rows:
        if isinstance(row, Rejected):
            shard.dropped.append((standards.kept_back(row.dropped(step)), row.count))
        else:
            read.append(row)
    seen = standards.look(read)
    for before, row, finding in zip(read, seen.rows, seen.findings, strict=True):
        if all(texts_of(row)):
            shard.keep(row, finding)
        else:
            detail = "nothing is left but white space and control characters"
            shard.dropped.append((standards.kept_back(set_aside(step, before, "empty", detail)), 1))
            shard.gone.append(row.id)
    shard.repaired, shard.redacted = seen.repaired, seen.redacted
    return shard


def set_aside(step: str, row: Row, reason: str, detail: str) -> Dropped:
    """A row that is kept back, whole, with the reason."""
    return Dropped(
        id=row.id,
        lang=row.lang,
        source=row.source,
        step=step,
        reason=reason,
        detail=detail,
        row=row.model_dump_json(),
    )
