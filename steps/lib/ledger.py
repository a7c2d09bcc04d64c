"""The ledger of requests to models, by content: a killed step asks again only for what it had not received."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from steps.lib.database import Database, seal_of
from steps.lib.earlier import opened


@dataclass(frozen=True)
class Reply:
    """One answered request, as it came, before any parsing."""

    text: str
    finish_reason: str = "stop"
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    """US dollars, by the teacher's price table."""
    thought: str = ""
    """What a reasoning model thought, where its endpoint keeps it apart from the answer."""


@dataclass(frozen=True)
class Spent:
    """What a teacher has used already, by the ledger."""

    usd: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Used:
    """What the answers of one teacher have used, by the ledger."""

    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cost: float = 0.0


class RequestLedger(Database):
    """Requests and their answers in one SQLite file in the step's partial folder.

    A row is committed after every answer, before parsing, so that a better parser bills nothing and a killed run continues.
    Status: ``ok``, ``truncated`` (an answer that was cut off at its length limit), or ``failed`` with a reason; failed rows are
    asked again by the next run, and only those. Tokens and cost of failures that were billed stay on the row of the request.

    Args:
        path: the file.
        log: for warnings.
        earlier: ledgers of other runs, which are read only. An answer that one of them holds is copied (with 0 attempts and no
        cost: it was paid for there).
    """

    def __init__(self, path: Path, log: logging.Logger | None = None, earlier: Iterable[Path] = ()) -> None:
        super().__init__(path, _TABLE, log)
        self._paths = [other for other in earlier if other.resolve() != path.resolve()]
        self._others: list[tuple[Path, sqlite3.Connection]] | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, other in self._others or ():
            other.close()
        super().__exit__(kind, error, trace)

    @staticmethod
    def key(**content: Any) -> str:
        """Key of a request: the digest of everything that can change the answer, and of nothing else."""
        return content_key(content)

    @staticmethod
    def look_into(path: Path) -> sqlite3.Connection | None:
        """A ledger to be read only; None where there is none, or another version wrote it."""
        return opened(path, _TABLE) if path.is_file() else None

    def get(self, key: str) -> Reply | None:
        """The answer on record, or None when it is still to be asked for."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str], *, earlier: bool = True) -> dict[str, Reply]:
        """Key -> answer, of those on record.

        Args:
            keys: of requests.
            earlier: whether ledgers of other runs are asked, too.
        """
        found = self._read(self._db, keys)
        if earlier and self._paths and (missing := [key for key in dict.fromkeys(keys) if key not in found]):
            found |= self._adopt(missing)
        return {key: reply for key, (reply, *_) in found.items()}

    def put(self, key: str, reply: Reply, *, attempts: int = 1, **about: str) -> None:
        """Record an answer. Half a surrogate pair in it, which no file can hold, becomes U+FFFD.

        Args:
            key: of the request.
            reply: the answer as it came.
            attempts: of this run.
            about: teacher, stage, prompt_file (digest) and source (id of the row).
        """
        self._write(key, "", attempts, reply, about)

    def fail(self, key: str, reason: str, *, attempts: int = 1, used: Reply | None = None, **about: str) -> None:
        """Record that no answer came, and why; ``used``: tokens and cost that were billed all the same."""
        self._write(key, reason or "failed", attempts, used or Reply(""), about)

    def failures(self) -> dict[str, str]:
        """Key -> reason of every request on record without an answer."""
        return {str(k): str(why) for k, why in self.execute("SELECT key, reason FROM requests WHERE status='failed'")}

    def spent(self, teacher: str) -> Spent:
        """What a teacher was paid for in this ledger, failures included."""
        [[usd, tokens]] = self.execute(
            "SELECT coalesce(sum(cost), 0), coalesce(sum((tokens_in + tokens_out) * (attempts > 0)), 0) FROM requests "
            "WHERE teacher=?",
            (teacher,),
        )
        return Spent(float(usd), int(tokens))

    def used(self) -> dict[str, Used]:
        """Teacher -> tokens and seconds of its answers, and all that it cost."""
        rows = self.execute(
            "SELECT teacher, sum(tokens_in * (status<>'failed')), sum(tokens_out * (status<>'failed')), "
            "sum(seconds), sum(cost) FROM requests GROUP BY teacher"
        )
        return {str(teacher): Used(*values) for teacher, *values in rows}

    def mark(self) -> int:
        """A number that grows with every row that is written."""
        return int(self.execute("SELECT coalesce(max(rowid), 0) FROM requests")[0][0])

    def intact(self) -> bool:
        """Whether all answers on record are as they were written."""
        statement = f"SELECT key, seal, {_REPLY} FROM requests WHERE status<>'failed'"
        return all(self.sound(key, seal, values) for key, seal, *values in self.rows(statement))

    def __len__(self) -> int:
        return int(self.execute("SELECT count(*) FROM requests WHERE status<>'failed'")[0][0])

    def _read(
        self, db: sqlite3.Connection, keys: Sequence[str], path: Path | None = None
    ) -> dict[str, tuple[Reply, dict[str, str]]]:
        found: dict[str, tuple[Reply, dict[str, str]]] = {}
        for start in range(0, len(keys), _KEYS):
            some = keys[start : start + _KEYS]
            marks = ",".join("?" * len(some))
            statement = (
                f"SELECT key, seal, {_REPLY}, {_ABOUT} FROM requests WHERE status<>'failed' AND key IN ({marks})"
            )
            rows = self.execute(statement, some) if db is self._db else db.execute(statement, some).fetchall()
            for key, seal, *values in rows:
                if self.sound(key, seal, values[:_SEALED], path):
                    about = dict(zip(("teacher", "stage", "prompt_file", "source"), values[_SEALED:], strict=True))
                    found[key] = Reply(*values[:_SEALED]), about
        return found

    def _adopt(self, keys: Sequence[str]) -> dict[str, tuple[Reply, dict[str, str]]]:
        """Answers that other runs' ledgers hold, copied into this one."""
        if self._others is None:
            self._others = [(path, db) for path in self._paths if (db := opened(path, _TABLE)) is not None]
        found: dict[str, tuple[Reply, dict[str, str]]] = {}
        for path, other in self._others:
            missing = [key for key in keys if key not in found]
            with contextlib.suppress(sqlite3.Error):  # a ledger that cannot be read holds nothing
                found |= self._read(other, missing, path)
        if not found:
            return {}
        with self.together():
            for key, (reply, about) in found.items():
                self._write(key, "", 0, dataclasses.replace(reply, cost=0.0), about)
        return self._read(self._db, list(found))

    def _write(self, key: str, reason: str, attempts: int, reply: Reply, about: Mapping[str, str]) -> None:
        text, thought = _whole(reply.text), _whole(reply.thought)
        status = "failed" if reason else "truncated" if reply.finish_reason == "length" else "ok"
        tokens_in, tokens_out, cost = reply.tokens_in, reply.tokens_out, float(reply.cost)
        statement = _INSERT
        while True:
            values = (
                text,
                reply.finish_reason,
                reply.model,
                tokens_in,
                tokens_out,
                float(reply.seconds),
                cost,
                thought,
            )
            names = (
                about.get("teacher", ""),
                about.get("stage", ""),
                about.get("prompt_file", ""),
                about.get("source", ""),
            )
            row = (key, status, reason, attempts, *values, *names, seal_of(key, values))
            if self.execute(statement, row):
                return
            # It failed before: what it has used goes on counting.
            [[tried, *used]] = self.execute(
                "SELECT attempts, tokens_in, tokens_out, cost FROM requests WHERE key=?", (key,)
            )
            attempts, tokens_in, tokens_out, cost = (
                attempts + tried,
                tokens_in + used[0],
                tokens_out + used[1],
                cost + used[2],
            )
            statement = _REPLACE


_REPLY = "text, finish_reason, model, tokens_in, tokens_out, seconds, cost, thought"
"""The fields of ``Reply``, in its order; these are sealed."""
_ABOUT = "teacher, stage, prompt_file, source"
_SEALED = 8
_KEYS = 500
_TABLE = (
    "CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, "
    "attempts INTEGER NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL, "
    "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, cost REAL NOT NULL, seconds REAL NOT NULL, "
    "thought TEXT NOT NULL, teacher TEXT NOT NULL, stage TEXT NOT NULL, prompt_file TEXT NOT NULL, "
    "source TEXT NOT NULL, seal TEXT NOT NULL)"
)
_INSERT = (
    f"INSERT INTO requests (key, status, reason, attempts, {_REPLY}, {_ABOUT}, seal) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO NOTHING RETURNING 1"
)
_REPLACE = _INSERT.replace("INSERT INTO", "REPLACE INTO").replace(" ON CONFLICT(key) DO NOTHING", "")


def _whole(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def content_key(content: Mapping[str, Any]) -> str:
    """Digest of plain JSON, whatever the order of its fields: 32 hex digits."""
    return text_key(canonical(content))


def canonical(content: Any) -> str:
    """Plain JSON as the one text that keys are made of."""
    return _ENCODER.encode(content)


def text_key(text: str) -> str:
    """Digest of canonical JSON: 32 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
