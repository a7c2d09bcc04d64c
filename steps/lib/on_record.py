"""What request ledgers hold before a run asks: which answers, how long they were, and what was paid. Nothing is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from steps.lib.ledger import RequestLedger, Spent


@dataclass(frozen=True)
class Answered:
    """The answers on record of one stage and teacher."""

    number: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class OnRecord:
    """What the ledger of a stopped run holds, and which answers lie in those of other runs."""

    answered: Mapping[tuple[str, str], Answered] = field(default_factory=dict)
    """(stage, teacher) -> answers of the run's own ledger."""
    spent: Mapping[str, Spent] = field(default_factory=dict)
    """Teacher -> what it was paid for in the run's own ledger, failures included."""
    paths: tuple[Path, ...] = ()
    """Ledgers in which answers are looked for."""

    @property
    def total(self) -> int:
        """Answers of all stages and teachers in the run's own ledger."""
        return sum(one.number for one in self.answered.values())

    def of(self, stage: str, teacher: str) -> Answered:
        """Answers of the run's own ledger."""
        return self.answered.get((stage, teacher), Answered())

    @classmethod
    def read(cls, path: Path | None, earlier: Iterable[Path] = ()) -> OnRecord:
        """Read a ledger. One that another version wrote, or that cannot be read, holds nothing.

        Args:
            path: of the run's own ledger.
            earlier: of ledgers of other runs, whose answers are taken over.
        """
        paths = ((path,) if path else ()) + tuple(earlier)
        if path is None or (db := RequestLedger.look_into(path)) is None:
            return cls(paths=paths)
        try:
            with closing(db):
                answers = db.execute(
                    "SELECT stage, teacher, count(*), sum(tokens_in), sum(tokens_out), sum(seconds) FROM requests "
                    "WHERE status<>'failed' GROUP BY stage, teacher"
                ).fetchall()
                spent = db.execute(
                    "SELECT teacher, sum(cost), sum((tokens_in + tokens_out) * (attempts > 0)) FROM requests GROUP BY teacher"
                ).fetchall()
        except sqlite3.Error:
            return cls(paths=paths)
        return cls(
            {(stage, teacher): Answered(*values) for stage, teacher, *values in answers},
            {teacher: Spent(usd, tokens) for teacher, usd, tokens in spent},
            paths,
        )

    def held(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of the keys whose answer lies in one of the ledgers."""
        found: set[str] = set()
        for path in self.paths:
            if (db := RequestLedger.look_into(path)) is None:
                continue
            try:
                with closing(db):
                    for start in range(0, len(keys), 500):
                        some = keys[start : start + 500]
                        rows = db.execute(
                            f"SELECT key FROM requests WHERE status<>'failed' AND key IN ({','.join('?' * len(some))})",
                            some,
                        )
                        found.update(key for (key,) in rows)
            except sqlite3.Error:  # what cannot be read is asked again
                continue
        return frozenset(found)
