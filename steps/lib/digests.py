"""sha256 of texts, files and folders. A file's digest is remembered: the same unchanged file is never read twice.

The memo lies in the user's cache folder. An entry counts while device, inode, size, mtime and ctime are the same: ctime changes
with every write and cannot be set by a program. A file so young that a second write could leave the same time stamps is hashed a
moment later (as git treats "racily clean" entries, git's Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steps.lib.errors import DataError

YOUNG = 50_000_000
"""Nanoseconds in which two writes can have the same time stamp; kernels count in ticks of 1 to 10 ms."""
COARSE = 2_000_000_000
"""The same on file systems that store whole seconds."""
PARALLEL_BYTES = 64 << 20
"""Bytes of a set of files from which they are read by several threads."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, size in bytes, mtime and ctime in nanoseconds."""


def digest_text(text: str) -> str:
    """sha256 of the text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path, *, fresh: bool = False) -> str:
    """sha256 of a file's bytes, in hex.

    Args:
        fresh: read the bytes even where the digest is remembered (a disk may change them without a write).

    Raises:
        DataError: there is no such file, or it is a folder.
    """
    try:
        before = _signature(os.stat(path))
        memo = _memo(os.getpid())
        if not fresh and (known := memo.get(before)):
            return known
        age = time.time_ns() - max(before[3:])
        if 0 <= age < YOUNG:
            time.sleep((YOUNG - age) / 1e9)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = _signature(os.fstat(file.fileno()))
    except FileNotFoundError:
        raise DataError(
            f"file {path} is missing: got no such file, because the configuration names it; "
            "correct the path (relative ones start at the working directory)"
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"file {path} is a folder: got a folder, because the configuration names a file; name one file"
        ) from None
    coarse = not any(stamp % 1_000_000_000 for stamp in after[3:])
    if before == after and not (coarse and abs(time.time_ns() - max(after[3:])) < COARSE):
        memo.put(after, digest)
    return digest


def digest_files(paths: Sequence[Path], *, fresh: bool = False) -> list[str]:
    """``digest_file`` of each, with several threads where there is much to read (hashing frees the interpreter)."""
    read = functools.partial(digest_file, fresh=fresh)
    threads = min(len(paths), len(os.sched_getaffinity(0)))
    if threads < 2 or sum(path.stat().st_size for path in paths if path.exists()) < PARALLEL_BYTES:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, paths))


def digest_folder(folder: Path, patterns: Iterable[str] = ("**/*",)) -> str:
    """Digest of names (relative) and bytes of the files that match."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    names = [path.relative_to(folder).as_posix() for path in paths]
    return digest_text(json.dumps(list(zip(names, digest_files(paths), strict=True))))


class Memo:
    """Signature -> digest, in an SQLite file; in memory where the file cannot be written."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._known: dict[Signature, str] = {}
        self._db = self._open(path) if path else None

    def get(self, signature: Signature) -> str | None:
        """The digest of a file that looks like this, or None."""
        with self._lock:
            if signature not in self._known and self._db:
                try:
                    row = self._db.execute(
                        "SELECT digest FROM files WHERE device=? AND inode=? AND size=? AND mtime=? AND ctime=?",
                        signature,
                    ).fetchone()
                except sqlite3.Error:
                    self._db = row = None
                if row:
                    self._known[signature] = str(row[0])
            return self._known.get(signature)

    def put(self, signature: Signature, digest: str) -> None:
        """Remember a digest."""
        with self._lock:
            self._known[signature] = digest
            if self._db:
                try:
                    self._db.execute("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?)", (*signature, digest))
                except sqlite3.Error:  # full, locked for long, or damaged: remembering is not worth a failure
                    self._db = None

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection | None:
        for _ in range(2):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS files (device INTEGER, inode INTEGER, size INTEGER, mtime INTEGER, "
                    "ctime INTEGER, digest TEXT NOT NULL, PRIMARY KEY (device, inode))"
                )
                return db
            except sqlite3.OperationalError:
                return None
            except sqlite3.DatabaseError:  # not a database any more: it holds nothing that cannot be hashed again
                for part in ("", "-wal", "-shm"):
                    path.with_name(path.name + part).unlink(missing_ok=True)
            except OSError:
                return None
        return None


@functools.lru_cache(maxsize=1)
def _memo(process: int) -> Memo:
    """The memo of this process (a connection must not cross a fork)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Memo(Path(home) / "prefline" / "digests.sqlite")


def _signature(facts: os.stat_result) -> Signature:
    signed = [number - (1 << 64) if number >= 1 << 63 else number for number in (facts.st_dev, facts.st_ino)]
    return signed[0], signed[1], facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
