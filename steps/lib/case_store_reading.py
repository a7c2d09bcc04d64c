"""Reading the store of bad cases: its log, its cases, its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from steps.lib import case_tables
from steps.lib.case_reading import Reader, key_of
from steps.lib.case_states import State, StoredCase, Taken, case_of, taken_of
from steps.lib.errors import DataError
from steps.lib.personal import Personal

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

USER_KEY = "PREFLINE_USER_KEY"
"""Environment variable with the key that hashes user ids."""


class CaseStoreReader:
    """A store; a context manager.

    Args:
        engine: of SQLAlchemy; ``open`` makes one.
        personal: what becomes of personal data.
        key: hashes user ids; empty: events with a user are refused.
    """

    def __init__(self, engine: Engine, personal: Personal, key: bytes) -> None:
        self._engine = engine
        self._tables = case_tables.tables()
        self._reader = Reader(personal, key, USER_KEY, max_chars=200_000)
        self._personal = personal
        self._tables["events"].metadata.create_all(engine)

    @classmethod
    def open(cls, url: str, personal: Personal | None = None) -> Self:
        """Open a store, and make its tables where there are none.

        Args:
            url: as ``case_tables.connect`` takes it.
            personal: what becomes of personal data; None: the defaults.

        Raises:
            ConfigError: no database answers at the address, or its driver is not installed.
        """
        return cls(case_tables.connect(url), personal or Personal(), key_of(USER_KEY))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def head(self) -> int:
        """Number of the newest event; 0 where there is none."""
        import sqlalchemy as sa

        with self._engine.connect() as db:
            return int(db.scalar(sa.select(sa.func.max(self._tables["events"].c.seq))) or 0)

    def events(self, after: int = 0, upto: int | None = None) -> Iterator[dict[str, Any]]:
        """Events in the order of their numbers, as ``badcase.v1``.

        Args:
            after: a number; those up to it are left out.
            upto: the last number; None: all.
        """
        import sqlalchemy as sa

        table = self._tables["events"]
        query = sa.select(table.c.body).where(table.c.seq > after).order_by(table.c.seq)
        with self._engine.connect() as db:
            for (body,) in db.execute(query if upto is None else query.where(table.c.seq <= upto)):
                yield dict(json.loads(body))

    def export(self, path: Path, upto: int | None = None) -> int:
        """Write the log up to a number as JSONL, what the step badcases reads; the same number gives the same bytes.

        Returns:
            Events.
        """
        count = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for event in self.events(upto=upto):
                file.write(json.dumps(event, ensure_ascii=False, sort_keys=True) + "\n")
                count += 1
        return count

    def cases(
        self, state: State | None = None, severity: str | None = None, limit: int | None = None
    ) -> list[StoredCase]:
        """Cases, the newest first."""
        import sqlalchemy as sa

        table = self._tables["cases"]
        query = sa.select(table).order_by(table.c.last_seq.desc())
        for column, value in ((table.c.state, state), (table.c.severity, severity)):
            query = query if value is None else query.where(column == value)
        with self._engine.connect() as db:
            return [case_of(row) for row in db.execute(query if limit is None else query.limit(limit)).mappings()]

    def show(self, case_id: str) -> tuple[StoredCase, list[dict[str, Any]], list[dict[str, Any]]]:
        """A case, its events, and the moves of its state.

        Raises:
            DataError: there is no such case.
        """
        import sqlalchemy as sa

        cases, events, moves = (self._tables[name] for name in ("cases", "events", "moves"))
        with self._engine.connect() as db:
            row = db.execute(sa.select(cases).where(cases.c.case_id == case_id)).mappings().first()
            if row is None:
                raise DataError(
                    f"case {case_id!r} is not in the store: got no such id; look with prefline badcases list"
                )
            bodies = db.scalars(sa.select(events.c.body).where(events.c.case_id == case_id).order_by(events.c.seq))
            moved = db.execute(sa.select(moves).where(moves.c.case_id == case_id).order_by(moves.c.id)).mappings()
            return case_of(row), [json.loads(body) for body in bodies], [dict(one) for one in moved]

    def claims(self) -> list[Taken]:
        """Claims of runs, the first one first."""
        import sqlalchemy as sa

        table = self._tables["claims"]
        with self._engine.connect() as db:
            return [taken_of(row) for row in db.execute(sa.select(table).order_by(table.c.last)).mappings()]

    def claimed(self, taken: Taken) -> list[str]:
        """Cases that a claim has events of, by id."""
        import sqlalchemy as sa

        table = self._tables["events"]
        query = sa.select(table.c.case_id).distinct().where(table.c.seq > taken.first, table.c.seq <= taken.last)
        with self._engine.connect() as db:
            return [str(name) for name in db.scalars(query.order_by(table.c.case_id))]

    def outcomes(self, *, run: str | None = None, case_id: str | None = None) -> list[dict[str, str]]:
        """What became of cases in runs: of one run, of one case, or of all; ordered by run and case."""
        import sqlalchemy as sa

        table = self._tables["outcomes"]
        query = sa.select(table).order_by(table.c.run, table.c.case_id)
        for column, value in ((table.c.run, run), (table.c.case_id, case_id)):
            query = query if value is None else query.where(column == value)
        with self._engine.connect() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def stats(self) -> dict[str, int]:
        """State -> cases; and how many events and flagged cases there are."""
        import sqlalchemy as sa

        cases, events = self._tables["cases"], self._tables["events"]
        with self._engine.connect() as db:
            found = dict.fromkeys(get_args(State), 0)
            for state, count in db.execute(sa.select(cases.c.state, sa.func.count()).group_by(cases.c.state)):
                found[state] = count
            flagged = db.scalar(sa.select(sa.func.count()).where(cases.c.flagged))
            return {
                **found,
                "events": db.scalar(sa.select(sa.func.count()).select_from(events)) or 0,
                "flagged": flagged or 0,
            }

    def _known(self, db: Connection, ids: list[str]) -> dict[str, str]:
        """Ids that are there -> digest."""
        import sqlalchemy as sa

        table, found = self._tables["events"], dict[str, str]()
        for start in range(0, len(ids), 500):
            query = sa.select(table.c.event_id, table.c.digest).where(table.c.event_id.in_(ids[start : start + 500]))
            found |= {str(name): digest for name, digest in db.execute(query)}
        return found
