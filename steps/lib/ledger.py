"""Two ledgers: rows in and out of a step by reason, and requests to models by content.

A step that loses a row without a reason fails here; a killed step asks again only for what it had not received.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steps.lib.errors import DataError


@dataclass
class RowLedger:
    """Rows in and out of a step. ``balance`` proves that nothing vanished.

    Rows are counted a kind ("prompts", "chats", ...): ``took`` what came in, ``gave`` what went out under another or the same
    name, ``dropped`` what stayed behind, by reason.
    """

    rows_in: Counter[str] = field(default_factory=Counter)
    rows_out: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def took(self, kind: str, count: int = 1) -> None:
        """Count rows that came in."""
        self.rows_in[kind] += count

    def gave(self, kind: str, count: int = 1) -> None:
        """Count rows that went out."""
        self.rows_out[kind] += count

    def drop(self, kind: str, reason: str, count: int = 1) -> None:
        """Count rows that came in as ``kind`` and were not passed on."""
        self.reasons.setdefault(kind, Counter())[reason] += count

    def balance(self, flows: Mapping[str, Iterable[str]]) -> None:
        """Check that for each kind in: in = out + dropped.

        Args:
            flows: kind in -> kinds out that its rows became (one row in is one row out, or one drop).

        Raises:
            DataError: the sums differ; the step has a defect and must not publish.
        """
        for kind, outs in flows.items():
            out = sum(self.rows_out[name] for name in outs)
            lost = sum(self.reasons.get(kind, Counter()).values())
            if self.rows_in[kind] != out + lost:
                raise DataError(
                    f"row ledger of {kind} does not balance: got {self.rows_in[kind]} in, {out} out and {lost} dropped, "
                    "because a row vanished without a reason; report this as a defect of prefline"
                )

    def dump(self) -> dict[str, Any]:
        """The ledger as plain JSON."""
        return {
            "in": dict(sorted(self.rows_in.items())),
            "out": dict(sorted(self.rows_out.items())),
            "dropped": {kind: dict(sorted(reasons.items())) for kind, reasons in sorted(self.reasons.items())},
        }


@dataclass(frozen=True)
class Reply:
    """One answered request, as it came, before any parsing."""

    text: str
    finish_reason: str = "stop"
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


class RequestLedger:
    """Requests and their answers in one SQLite file in the step's partial folder.

    A row is written after every answer, before parsing, so that a better parser bills nothing and a killed run continues.
    Status: ``ok``, or ``failed`` with a reason; failed rows are asked again by the next run, and only those.
    WAL with ``synchronous=NORMAL`` survives kill -9 of the process.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, "
            "attempts INTEGER NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL, "
            "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, seconds REAL NOT NULL, source TEXT NOT NULL)"
        )

    @staticmethod
    def key(**content: Any) -> str:
        """Key of a request: the digest of everything that can change the answer, and of nothing else."""
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def get(self, key: str) -> Reply | None:
        """The answer on record, or None when it is still to be asked for."""
        row = self._db.execute(
            "SELECT text, finish_reason, model, tokens_in, tokens_out, seconds FROM requests WHERE key=? AND status='ok'",
            (key,),
        ).fetchone()
        return Reply(*row) if row else None

    def put(self, key: str, reply: Reply, *, attempts: int = 1, source: str = "") -> None:
        """Record an answer."""
        self._write(key, "ok", "", attempts, reply, source)

    def fail(self, key: str, reason: str, *, attempts: int = 1, source: str = "") -> None:
        """Record that no answer came, and why."""
        self._write(key, "failed", reason, attempts, Reply(""), source)

    def failures(self) -> dict[str, str]:
        """Key -> reason of every request on record without an answer."""
        return dict(self._db.execute("SELECT key, reason FROM requests WHERE status='failed'").fetchall())

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM requests WHERE status='ok'").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def _write(self, key: str, status: str, reason: str, attempts: int, reply: Reply, source: str) -> None:
        self._db.execute(
            "INSERT INTO requests VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET status=excluded.status, "
            "reason=excluded.reason, attempts=requests.attempts+excluded.attempts, text=excluded.text, "
            "finish_reason=excluded.finish_reason, model=excluded.model, tokens_in=excluded.tokens_in, "
            "tokens_out=excluded.tokens_out, seconds=excluded.seconds, source=excluded.source",
            (
                key,
                status,
                reason,
                attempts,
                reply.text,
                reply.finish_reason,
                reply.model,
                reply.tokens_in,
                reply.tokens_out,
                reply.seconds,
                source,
            ),
        )
