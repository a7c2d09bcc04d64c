"""The store of bad cases: an append-only log of ``badcase.v1`` events in a database, with a state for each case.

An event is checked, free of personal data, and its user hashed before it is written; the same event sent twice is written once.
Events are numbered in the order in which they were committed, so whoever remembers the last number that it saw (a watermark) has
seen all before it. SQLite and PostgreSQL; a batch is written whole or not at all.

Source: EVALUATION.md section 7; states are those of the issue tracker of a model, not of a person's ticket.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.lib.case_events import Event
from steps.lib.case_reading import CaseSource, Read
from steps.lib.case_states import MOVES, State, folded
from steps.lib.case_store_reading import CaseStoreReader
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.personal_records import redact_json
from steps.lib.rows import Dropped

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK = 0x707265666C696E65
"""Number of PostgreSQL's advisory lock under which events get their numbers."""


@dataclass(frozen=True)
class Ingested:
    """What became of a batch."""

    new: int
    same: int
    """Events that were there already."""
    quarantined: list[Dropped] = field(default_factory=list)
    """Records that cannot be taken, without users and personal data."""


@dataclass(frozen=True)
class Taken:
    """Events that one run works on: after ``first``, up to ``last``."""

    run: str
    first: int
    last: int
    done: bool = False


class CaseStore(CaseStoreReader):
    """A store that is written, too; ``CaseStoreReader`` says how it is opened."""

    def ingest(self, records: Iterable[Any], *, source: str, now: datetime | None = None) -> Ingested:
        """Take records of ``badcase.v1``; all that are sound are written in one transaction.

        Args:
            records: one JSON value each.
            source: name of where they come from.
            now: moment of arrival.

        Raises:
            ConfigError: a record has a user, and no key is set to hash it.
        """
        return self._write(self._reader.records(CaseSource(name=source, path=Path(source)), records), source, now)

    def bring(self, source: CaseSource, *, now: datetime | None = None) -> Ingested:
        """Take a file of feedback, or a folder of such files, in any format that the step badcases reads.

        Raises:
            DataError: the file is missing, or is none of records.
            ConfigError: a record has a user, and no key is set to hash it.
        """
        return self._write(self._reader.read([source]), source.name, now)

    def _write(self, read: Read, source: str, now: datetime | None) -> Ingested:
        """Write all sound events in one transaction."""
        moment = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        rows: dict[str, dict[str, Any]] = {}
        aside = list(read.quarantined)
        same = 0
        for _, event in read.events:
            row = self._row(event, moment)
            if event.event_id in rows:
                if rows[event.event_id]["digest"] == row["digest"]:
                    same += 1
                else:
                    aside.append(_conflict(row, source))
            else:
                rows[event.event_id] = row
        with self._writing() as db:
            known = self._known(db, list(rows))
            fresh = [row for name, row in rows.items() if name not in known]
            aside += [_conflict(rows[name], source) for name, digest in known.items() if rows[name]["digest"] != digest]
            same += sum(rows[name]["digest"] == digest for name, digest in known.items())
            if fresh:
                db.execute(self._tables["events"].insert(), fresh)
                self._fold(db, fresh)
        return Ingested(len(fresh), same, aside)

    def set_state(self, case_id: str, state: State, *, reason: str, by: str) -> None:
        """Move a case to another state.

        Raises:
            DataError: no such case, no reason, or a move that makes no sense.
        """
        if not reason.strip():
            raise DataError(f"case {case_id!r} is not moved: got no reason, because the log must say why; give one")
        with self._writing() as db:
            self._move(db, case_id, state, reason, by)

    def delete(self, case_id: str, *, reason: str, by: str) -> None:
        """Delete a case: the texts of its events go, a tombstone stays, and it is flagged until the next training.

        Raises:
            DataError: no such case, or no reason.
        """
        case, events, _ = self.show(case_id)
        if not reason.strip():
            raise DataError(f"case {case_id!r} is not deleted: got no reason, because the log must say why; give one")
        table, cases = self._tables["events"], self._tables["cases"]
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self._writing() as db:
            for event in events:
                bare = {name: event[name] for name in ("schema_version", "case_id", "event_id", "ts") if name in event}
                body = json.dumps({**bare, "deleted": True}, sort_keys=True)
                db.execute(
                    table.update()
                    .where(table.c.event_id == event["event_id"])
                    .values(body=body, digest=digest_text(body))
                )
            tombstone = Event(case_id=case_id, event_id=f"{case_id}:deleted", ts=moment, source="store", deleted=True)
            if not self._known(db, [tombstone.event_id]):
                db.execute(table.insert(), [self._row(tombstone, moment)])
            db.execute(cases.update().where(cases.c.case_id == case_id).values(flagged=True))
            if case.state != "rejected":
                self._move(db, case_id, "rejected", f"deleted: {reason}", by)

    def take(self, run: str, upto: int | None = None) -> Taken:
        """Claim the events after the last finished or running claim, for one run; the same run gets the same again.

        Args:
            run: a name that a repeated run has again.
            upto: the last number that it may have; None: the newest.

        Raises:
            DataError: another run has claimed events and is not done.
        """
        import sqlalchemy as sa

        claims, events = self._tables["claims"], self._tables["events"]
        with self._writing() as db:
            own = db.execute(sa.select(claims).where(claims.c.run == run)).mappings().first()
            if own is not None:
                return Taken(run, own["first"], own["last"], bool(own["done"]))
            busy = db.scalar(sa.select(claims.c.run).where(~claims.c.done))
            if busy is not None:
                raise DataError(
                    f"run {run} cannot take cases: got an open claim of run {busy}, because two runs would train on the same "
                    "cases; repeat that run, or release it (prefline badcases release)"
                )
            first = int(db.scalar(sa.select(sa.func.max(claims.c.last))) or 0)
            newest = int(db.scalar(sa.select(sa.func.max(events.c.seq))) or 0)
            last = max(first, min(newest, newest if upto is None else upto))
            db.execute(claims.insert().values(run=run, first=first, last=last, done=False))
            return Taken(run, first, last)

    def done(self, run: str) -> None:
        """Close a claim: its events are used."""
        claims = self._tables["claims"]
        with self._writing() as db:
            db.execute(claims.update().where(claims.c.run == run).values(done=True))

    def release(self, run: str) -> None:
        """Give an open claim back: its events are for the next run."""
        import sqlalchemy as sa

        claims = self._tables["claims"]
        with self._writing() as db:
            db.execute(claims.delete().where(sa.and_(claims.c.run == run, ~claims.c.done)))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that no other writer is beside, so that numbers follow the order of commits."""
        import sqlalchemy as sa

        with self._engine.begin() as db:
            if self._engine.dialect.name == "postgresql":
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield db

    def _row(self, event: Event, moment: str) -> dict[str, Any]:
        """An event as it is written: without personal data, in one form."""
        values = event.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        clean = redact_json(values, self._personal) | {"schema_version": "badcase.v1"}
        clean |= {name: values[name] for name in ("case_id", "event_id", "ts")}
        body = json.dumps(clean, ensure_ascii=False, sort_keys=True)
        return {
            "event_id": event.event_id,
            "case_id": event.case_id,
            "ts": event.ts,
            "ingest_ts": moment,
            "source": event.source,
            "severity": event.severity or "",
            "state": event.status or "",
            "tags": json.dumps(sorted(event.tags)),
            "digest": digest_text(body),
            "body": body,
        }

    def _fold(self, db: Connection, rows: list[dict[str, Any]]) -> None:
        """Bring the cases of new events up to date."""
        import sqlalchemy as sa

        table, events = self._tables["cases"], self._tables["events"]
        by_case: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_case.setdefault(row["case_id"], []).append(row)
        ids = list(by_case)
        numbers: dict[str, int] = {}
        there: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            query = sa.select(events.c.case_id, sa.func.max(events.c.seq)).where(events.c.case_id.in_(part))
            numbers |= {str(name): number for name, number in db.execute(query.group_by(events.c.case_id))}
            there |= {
                one["case_id"]: one for one in db.execute(sa.select(table).where(table.c.case_id.in_(part))).mappings()
            }
        fresh: list[dict[str, Any]] = []
        for name, own in by_case.items():
            facts = folded(there.get(name), own) | {"last_seq": numbers[name]}
            if name in there:
                db.execute(table.update().where(table.c.case_id == name).values(**facts))
            else:
                fresh.append({"case_id": name, "flagged": False, **facts})
        if fresh:
            db.execute(table.insert(), fresh)

    def _move(self, db: Connection, case_id: str, state: State, reason: str, by: str) -> None:
        import sqlalchemy as sa

        cases, moves = self._tables["cases"], self._tables["moves"]
        before = db.scalar(sa.select(cases.c.state).where(cases.c.case_id == case_id))
        if before is None:
            raise DataError(f"case {case_id!r} is not in the store: got no such id; look with prefline badcases list")
        if before == state:
            return
        if state not in MOVES[before] and not reason.startswith("deleted: "):
            raise DataError(
                f"case {case_id!r} cannot become {state}: got a case that is {before}, because after that come "
                f"{', '.join(MOVES[before])}; choose one of these"
            )
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        db.execute(cases.update().where(cases.c.case_id == case_id).values(state=state))
        db.execute(moves.insert().values(case_id=case_id, before=before, after=state, reason=reason, by=by, ts=moment))


def _conflict(row: Mapping[str, Any], source: str) -> Dropped:
    detail = f"event {row['event_id']} came before, and said something else"
    return Dropped(
        id=row["event_id"], source=source, step="badcases", reason="event_conflict", detail=detail, row=row["body"]
    )
