"""SQLite files in a step's partial folder, which a kill, a power cut or a full disk may meet at any moment."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steps.lib.errors import ArtifactError


class Database:
    """A SQLite file of finished things, one transaction each: whole after kill -9 at any moment.

    WAL with ``synchronous=NORMAL`` survives a kill; a power cut may take the last seconds. A file that is damaged is renamed to
    ``damaged-...`` with a warning, and a row whose bytes changed counts as missing: what it held is done again.

    Args:
        path: the file; its folder exists.
        table: the statement that creates its one table.
        log: for warnings.

    Raises:
        OSError: the disk is full, broken or read-only (here and in every method); SQLite's own errors do not say which.
    """

    def __init__(self, path: Path, table: str, log: logging.Logger | None) -> None:
        self._path, self._table = path, table
        self._log = log or logging.getLogger("prefline")
        self._db = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def save(self, target: Path) -> None:
        """Write all rows as one plain file, whole or not at all. (The working file keeps new rows in others beside it.)"""
        draft = self._path.with_name(f"{self._path.name}.copy")
        draft.unlink(missing_ok=True)  # of a run that was killed here
        self.execute("VACUUM INTO ?", (str(draft),))
        os.replace(draft, target)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and give back all its rows."""
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement, as they are read: for more of them than memory should hold."""
        try:
            yield from self._db.execute(statement)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for all that is written in the block: all of it, or where an error ends it, nothing."""
        self.execute("BEGIN")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self.execute("ROLLBACK")
            raise

    def sound(self, key: str, seal: str, values: Sequence[Any], path: Path | None = None) -> bool:
        """Whether a row (of this file, or of another one) is as it was written."""
        if seal == seal_of(key, values):
            return True
        self._log.warning(
            "row %s of %s has other bytes than were written: it counts as missing", key, path or self._path
        )
        return False

    def _open(self) -> sqlite3.Connection:
        while True:
            db, problem = None, ""
            try:
                db = sqlite3.connect(self._path, isolation_level=None)
                db.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
                problem = self._problem(db)
            except sqlite3.Error as error:
                problem = str(error)
                if _code(error) not in _DAMAGE:
                    raise self._explained(error) from error
            finally:
                if db and problem:
                    db.close()
            if not problem:
                assert db
                return db
            self._set_aside(problem)

    def _problem(self, db: sqlite3.Connection) -> str:
        """What is wrong with the file; empty when nothing is."""
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(self._table)
        [[busy, _, _]] = db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [[pages]], [[size]] = db.execute("PRAGMA page_count"), db.execute("PRAGMA page_size")
        if not busy and pages * size > self._path.stat().st_size:
            return "the file was cut off"
        [[written]] = db.execute("SELECT sql FROM sqlite_master WHERE type='table'")
        if written != self._table.replace("IF NOT EXISTS ", ""):
            return "another version of prefline wrote it"
        [[found]] = db.execute("PRAGMA quick_check(1)")
        return "" if found == "ok" else str(found)

    def _set_aside(self, problem: str) -> None:
        """Rename the file; first its companions, which SQLite would take for those of the new one."""
        numbers = itertools.count(1)
        target = next(
            path for n in numbers if not (path := self._path.with_name(f"damaged-{self._path.name}-{n}")).exists()
        )
        for part in ("-wal", "-shm", ""):
            piece = self._path.with_name(self._path.name + part)
            if piece.exists():
                os.replace(piece, target.with_name(target.name + part))
        self._log.warning(
            "ledger %s is damaged (%s): set aside as %s; what it held is done again", self._path, problem, target.name
        )

    def _explained(self, error: sqlite3.Error) -> Exception:
        """The system's error behind SQLite's, or the error as it is."""
        code = _code(error)
        if code in _DAMAGE:
            return ArtifactError(
                f"ledger {self._path} is damaged: got {error}, because its bytes changed while it was open; run again: it "
                "is set aside, and what it held is done again"
            )
        if code not in _STORAGE:
            return error
        number = _STORAGE[code]
        if number == errno.EIO:  # SQLite says so of a spent quota, too; the system says which it is
            probe = self._path.with_name(f"{self._path.name}.probe")
            try:
                with probe.open("wb") as file:
                    file.write(bytes(1 << 20))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as real:
                number = real.errno or number
            finally:
                probe.unlink(missing_ok=True)
        return OSError(number, os.strerror(number), str(self._path))


def seal_of(key: str, values: Sequence[Any]) -> str:
    """Digest of a row: SQLite itself does not notice a byte that changed on the disk."""
    parts = [value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass") for value in values]
    return hashlib.sha256(b"".join([key.encode(), *parts])).hexdigest()[:16]


_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_STORAGE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}
"""SQLite's result code -> the system's."""


def _code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
