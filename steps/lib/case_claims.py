"""Runs that use the events of a store: each event belongs to one claim of one run, and what became of a case is written once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from steps.lib.case_states import MEASURED, MOVES, Outcome, State, Taken, taken_of
from steps.lib.case_store_reading import CaseStoreReader
from steps.lib.errors import DataError

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK = 0x707265666C696E65
"""Number of PostgreSQL's advisory lock under which events get their numbers."""


class CaseClaims(CaseStoreReader):
    """Claims, states, and the transaction in which they are written."""

    def take(self, name: str = "retrain", upto: int | None = None) -> Taken | None:
        """Claim the events after the last claim, for one run; an open claim, which a run left that died, is given again.

        Whoever calls it must know that no other run of the loop is going (``flows.retraining`` holds a lock).

        Args:
            name: of the loop; its runs are numbered: ``retrain-0001``.
            upto: the last number that a new claim may have; None: the newest.

        Returns:
            None where no event came since.
        """
        import sqlalchemy as sa

        claims, events = self._tables["claims"], self._tables["events"]
        with self._writing() as db:
            opened = db.execute(sa.select(claims).where(~claims.c.done)).mappings().first()
            if opened is not None:
                return taken_of(opened)
            number = int(db.scalar(sa.select(sa.func.count()).select_from(claims)) or 0) + 1
            first = int(db.scalar(sa.select(sa.func.max(claims.c.last))) or 0)
            newest = int(db.scalar(sa.select(sa.func.max(events.c.seq))) or 0)
            last = newest if upto is None else min(newest, upto)
            if last <= first:
                return None
            taken = Taken(f"{name}-{number:04d}", first, last)
            db.execute(claims.insert().values(run=taken.run, first=first, last=last, done=False))
            return taken

    def done(self, run: str, outcomes: Mapping[str, Outcome], *, version: str, promoted: bool) -> dict[str, str]:
        """Close a claim: write down what became of each case; where the version serves now, move fixed and regressed ones.

        All of it or nothing; a claim that is closed stays as it is.

        Args:
            run: of the claim.
            outcomes: id of a case -> what became of it.
            version: of the model that was measured.
            promoted: whether it is the champion now.

        Returns:
            Cases that moved, with their new state.
        """
        import sqlalchemy as sa

        claims, cases, told = (self._tables[name] for name in ("claims", "cases", "outcomes"))
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        moved: dict[str, str] = {}
        with self._writing() as db:
            if not db.execute(
                claims.update().where(sa.and_(claims.c.run == run, ~claims.c.done)).values(done=True)
            ).rowcount:
                return {}
            rows = [
                {
                    "case_id": name,
                    "run": run,
                    "outcome": one.outcome,
                    "detail": one.detail,
                    "version": version,
                    "ts": moment,
                }
                for name, one in outcomes.items()
            ]
            if rows:
                db.execute(told.insert(), rows)
            if not promoted:
                return {}
            states = {str(name): str(state) for name, state in db.execute(sa.select(cases.c.case_id, cases.c.state))}
            for name, one in outcomes.items():
                if one.outcome in MEASURED and name in states and one.outcome in MOVES[states[name]]:  # type: ignore[index]
                    self._move(db, name, one.outcome, f"measured in {run} with {version}", "retrain")  # type: ignore[arg-type]
                    moved[name] = one.outcome
        return moved

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

    def _move(self, db: Connection, case_id: str, state: State, reason: str, by: str) -> bool:
        """Whether it was in another state before."""
        import sqlalchemy as sa

        cases, moves = self._tables["cases"], self._tables["moves"]
        before = db.scalar(sa.select(cases.c.state).where(cases.c.case_id == case_id))
        if before is None:
            raise DataError(f"case {case_id!r} is not in the store: got no such id; look with prefline badcases list")
        if before == state:
            return False
        if state not in MOVES[before] and not reason.startswith("deleted: "):
            raise DataError(
                f"case {case_id!r} cannot become {state}: got a case that is {before}, because after that come "
                f"{', '.join(MOVES[before])}; choose one of these"
            )
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        db.execute(cases.update().where(cases.c.case_id == case_id).values(state=state))
        db.execute(moves.insert().values(case_id=case_id, before=before, after=state, reason=reason, by=by, ts=moment))
        return True
