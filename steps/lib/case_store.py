"""The store of bad cases: an append-only log of ``badcase.v1`` events in a database, with a state for each case.

An event is checked, free of personal data, and its user hashed before it is written; the same event sent twice is written once.
Events are numbered in the order in which they were committed, so whoever remembers the last number that it saw (a watermark) has
seen all before it. SQLite and PostgreSQL; a batch is written whole or not at all.

Source: EVALUATION.md section 7; states are those of the issue tracker of a model, not of a person's ticket.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.lib.case_claims import CaseClaims
from steps.lib.case_events import Event
from steps.lib.case_reading import CaseSource, Read
from steps.lib.case_states import MEASURED, State, folded
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.personal_records import redact_json
from steps.lib.rows import Dropped

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class Ingested:
    """What became of a batch."""

    new: int
    same: int
    """Events that were there already."""
    quarantined: list[Dropped] = field(default_factory=list)
    """Records that cannot be taken, without users and personal data."""


class CaseStore(CaseClaims):
    """A store that is written, too; ``CaseStoreReader`` says how it is opened, ``CaseClaims`` has its runs."""

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
        """Move a case to another state by somebody's word, which is an event, so that the next run heeds it.

        Raises:
            DataError: no such case, no reason, or a move that makes no sense.
        """
        if not reason.strip():
            raise DataError(f"case {case_id!r} is not moved: got no reason, because the log must say why; give one")
        import sqlalchemy as sa

        table, moves = self._tables["events"], self._tables["moves"]
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self._writing() as db:
            if not self._move(db, case_id, state, reason, by) or state in MEASURED:
                return
            count = db.scalar(sa.select(sa.func.count()).where(moves.c.case_id == case_id))
            said = Event.model_validate(
                {
                    "case_id": case_id,
                    "event_id": f"{case_id}:{state}:{count}",
                    "ts": moment,
                    "source": "triage",
                    "status": state,
                }
            )
            row = self._row(said, moment)
            db.execute(table.insert(), [row])
            self._fold(db, [row])

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


def _conflict(row: Mapping[str, Any], source: str) -> Dropped:
    detail = f"event {row['event_id']} came before, and said something else"
    return Dropped(
        id=row["event_id"], source=source, step="badcases", reason="event_conflict", detail=detail, row=row["body"]
    )
