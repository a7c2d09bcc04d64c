"""Ledgers: rows in and out of a step by reason; requests to models, and finished units of work, by content.

A step that loses a row without a reason fails here. A killed step asks again only for what it had not received, and computes
again only what it had not finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib.database import Database, seal_of
from steps.lib.errors import DataError
from steps.lib.runtime import Stop


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
    cost: float = 0.0
    """US dollars, by the teacher's price table."""


@dataclass(frozen=True)
class Spent:
    """What a teacher has used already, by the ledger."""

    usd: float = 0.0
    tokens: int = 0


class RequestLedger(Database):
    """Requests and their answers in one SQLite file in the step's partial folder.

    A row is written after every answer, before parsing, so that a better parser bills nothing and a killed run continues.
    Status: ``ok``, or ``failed`` with a reason; failed rows are asked again by the next run, and only those.
    """

    def __init__(self, path: Path, log: logging.Logger | None = None) -> None:
        super().__init__(
            path,
            "CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, "
            "attempts INTEGER NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL, "
            "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, seconds REAL NOT NULL, source TEXT NOT NULL, "
            "seal TEXT NOT NULL)",
            log,
        )

    @staticmethod
    def key(**content: Any) -> str:
        """Key of a request: the digest of everything that can change the answer, and of nothing else."""
        return content_key(content)

    def get(self, key: str) -> Reply | None:
        """The answer on record, or None when it is still to be asked for."""
        found = self.execute(
            "SELECT seal, text, finish_reason, model, tokens_in, tokens_out, seconds FROM requests "
            "WHERE key=? AND status='ok'",
            (key,),
        )
        return next((Reply(*values) for seal, *values in found if self.sound(key, seal, values)), None)

    def put(self, key: str, reply: Reply, *, attempts: int = 1, source: str = "") -> None:
        """Record an answer. Half a surrogate pair in it, which no file can hold, becomes U+FFFD."""
        text = reply.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        whole = dataclasses.replace(reply, text=text, seconds=float(reply.seconds))
        self._write(key, "ok", "", attempts, whole, source)

    def fail(self, key: str, reason: str, *, attempts: int = 1, source: str = "") -> None:
        """Record that no answer came, and why."""
        self._write(key, "failed", reason, attempts, Reply(""), source)

    def failures(self) -> dict[str, str]:
        """Key -> reason of every request on record without an answer."""
        return {str(k): str(why) for k, why in self.execute("SELECT key, reason FROM requests WHERE status='failed'")}

    def __len__(self) -> int:
        return int(self.execute("SELECT count(*) FROM requests WHERE status='ok'")[0][0])

    def _write(self, key: str, status: str, reason: str, attempts: int, reply: Reply, source: str) -> None:
        values = dataclasses.astuple(reply)
        self.execute(
            "INSERT INTO requests VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET status=excluded.status, "
            "reason=excluded.reason, attempts=requests.attempts+excluded.attempts, text=excluded.text, "
            "finish_reason=excluded.finish_reason, model=excluded.model, tokens_in=excluded.tokens_in, "
            "tokens_out=excluded.tokens_out, seconds=excluded.seconds, source=excluded.source, seal=excluded.seal",
            (key, status, reason, attempts, *values, source, seal_of(key, values)),
        )


Recall = Callable[[Mapping[str, Any], Callable[[], Any]], Any]
"""``recall(content, compute)``: what ``compute`` gave for this content, now or in a run that was stopped; as JSON has it."""


class WorkLedger(Database):
    """Finished units of work (a batch of a model, a shard of rows, a pass over all) by the digest of what decides them.

    Args:
        path: the file.
        stop: looked at before each unit that is not there yet.
        log: for warnings.
    """

    def __init__(self, path: Path, stop: Stop, log: logging.Logger | None = None) -> None:
        super().__init__(
            path,
            "CREATE TABLE IF NOT EXISTS units (key TEXT PRIMARY KEY, value BLOB NOT NULL, seal TEXT NOT NULL)",
            log,
        )
        self._stop = stop
        self.computed = 0
        """Units that this run computed."""
        self.kept = 0
        """Units that an earlier run had finished."""

    def recall(self, content: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The unit of this content: from the ledger, or computed and written down at once.

        Both ways it has been through JSON, so a continued run sees what an uninterrupted one does, bit by bit (a float's
        repr gives the same float back).

        Args:
            content: everything that decides the unit, as JSON types.
            compute: makes it, as JSON types.

        Raises:
            Resumable: a signal came, and the unit is still to be computed.
        """
        key = content_key(content)
        for value, seal in self.execute("SELECT value, seal FROM units WHERE key=?", (key,)):
            if self.sound(key, seal, [value]):
                self.kept += 1
                return json.loads(value)
        self._stop.check()
        value = json.dumps(compute(), ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.execute("INSERT OR REPLACE INTO units VALUES (?,?,?)", (key, value, seal_of(key, [value])))
        self.computed += 1
        return json.loads(value)

    def about(self, **facts: Any) -> Recall:
        """``recall`` with facts that belong to the content of every unit."""
        return lambda content, compute: self.recall({**facts, **content}, compute)


def content_key(content: Mapping[str, Any]) -> str:
    """Digest of plain JSON, whatever the order of its fields: 32 hex digits."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
