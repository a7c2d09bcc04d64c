"""Finished parts of a step's rows, so that a run that goes on does not read, judge and render again what it wrote already.

A part is a stretch of the sources' rows with all that became of them. It belongs to one configuration, content and code (``work``),
and to the request ledger beside it, which is looked through once before any part is believed. What does not fit, or was damaged, is
done again from the ledger, which costs time and no request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.database import Database, seal_of
from steps.lib.ledger import RequestLedger


@dataclass(frozen=True)
class Finished:
    """A part on record."""

    facts: dict[str, Any]
    """Plain JSON: what was read and counted."""
    content: list[bytes]

    def tables(self) -> list[Any]:
        """Arrow tables of the rows that were made."""
        return [_read(one) for one in self.content]


class FinishedParts(Database):
    """Parts in one SQLite file, by the place where they start.

    Args:
        path: the file.
        work: digest of all that decides the rows. Parts of other work are thrown away, with a warning.
        ledger: of the requests behind the rows. Where it lost some, no part is believed.
        log: for warnings.
    """

    def __init__(self, path: Path, work: str, ledger: RequestLedger, log: logging.Logger) -> None:
        super().__init__(path, _TABLE, log)
        self._work, self._ledger = work, ledger
        if problem := self._strange():
            log.warning("finished parts %s are not used, because %s: their rows are made again", path, problem)
            self.execute("DELETE FROM parts")

    def __len__(self) -> int:
        return int(self.execute("SELECT count(*) FROM parts")[0][0])

    def get(self, start: int) -> Finished | None:
        """The part that starts at a row, or None when it is still to be made."""
        for *values, seal in self.execute(f"SELECT {_SEALED}, seal FROM parts WHERE start=?", (start,)):
            if self.sound(str(start), seal, values):
                _, _, facts, *content = values
                return Finished(json.loads(facts), content)
        return None

    def put(self, start: int, facts: dict[str, Any], tables: Sequence[Any]) -> None:
        """Write down a part whose requests are all in the ledger."""
        plain = json.dumps(facts, ensure_ascii=False, allow_nan=False)
        values = [self._work, self._ledger.mark(), plain, *map(_written, tables)]
        self.execute(
            f"INSERT OR REPLACE INTO parts (start, {_SEALED}, seal) VALUES (?,?,?,?,?,?,?)",
            (start, *values, seal_of(str(start), values)),
        )

    def _strange(self) -> str:
        """Why the parts cannot be believed; empty when they can, or there is none."""
        [[works, work, mark]] = self.execute("SELECT count(DISTINCT work), min(work), max(mark) FROM parts")
        if not works:
            return ""
        if works > 1 or work != self._work:
            return "they are of another configuration, content or code"
        if self._ledger.mark() < mark or not self._ledger.intact():
            return "the request ledger lost some of their answers"
        return ""


_SEALED = "work, mark, facts, candidates, dropped"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS parts (start INTEGER PRIMARY KEY, work TEXT NOT NULL, mark INTEGER NOT NULL, "
    "facts TEXT NOT NULL, candidates BLOB NOT NULL, dropped BLOB NOT NULL, seal TEXT NOT NULL)"
)


def _written(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _read(content: bytes) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()
