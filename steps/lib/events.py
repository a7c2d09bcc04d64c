"""An append-only log of events in a folder, safe for several processes, and what follows from it.

An event is claimed by an exclusive create: ``os.link`` of a finished file fails when the number is taken, and nobody
ever sees half an event. Each event carries the sha256 of the one before, so a changed or missing event is noticed.
Local disks only: an object store needs a conditional put in place of the link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steps.lib.durable import fsync, write
from steps.lib.errors import ArtifactError
from steps.lib.tickets import abandoned, mark

START = "0" * 64
"""Hash that the first event names."""
DRAFT = ".tmp"
CHAMPION, CHALLENGER = "champion", "challenger"


class Event(BaseModel):
    """One thing that happened; never changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    seq: int
    ts: str
    actor: str
    action: Literal["register", "promote", "rollback", "point", "retire"]
    """point: an alias other than the champion's was set, or (to nothing) taken away; retire: a version's weights may go."""
    alias: str = ""
    before: str | None = Field(None, alias="from")
    """Version that the alias left; None when it was not set."""
    after: str = Field(alias="to")
    """Version registered or retired, or the one that the alias came to."""
    reason: str = ""
    manifest_sha256: str = ""
    identity: str = ""
    """Digest of what a registered version is, without what its records tell of times and hosts."""
    verdict_digest: str = ""
    prev_sha256: str


@dataclass(frozen=True)
class History:
    """Events of one model, checked, and what follows from them."""

    events: tuple[Event, ...]
    tip: str
    """sha256 of the last event's file."""

    def aliases(self) -> dict[str, str]:
        """Alias -> version. One that becomes champion is challenger no more."""
        found: dict[str, str] = {}
        for event in self.events:
            if event.alias:
                found[event.alias] = event.after
            if event.alias == CHAMPION and found.get(CHALLENGER) == event.after:
                del found[CHALLENGER]
        return {alias: version for alias, version in found.items() if version}

    def registered(self) -> dict[str, str]:
        """Version -> sha256 of its manifest, oldest first; retired ones, too."""
        return {event.after: event.manifest_sha256 for event in self.events if event.action == "register"}

    def retired(self) -> set[str]:
        """Versions whose weights are gone, or may go at any moment."""
        return {event.after for event in self.events if event.action == "retire"}

    def identities(self) -> dict[str, str]:
        """Identity -> newest version with its weights that has it."""
        gone = self.retired()
        live = (event for event in self.events if event.action == "register" and event.after not in gone)
        return {event.identity: event.after for event in live if event.identity}

    def reigns(self, alias: str = "champion") -> list[str]:
        """Versions that an alias was at, each once, the last one first."""
        moves = [event.after for event in reversed(self.events) if event.alias == alias and event.after]
        return list(dict.fromkeys(moves))

    def replaced(self, version: str | None, alias: str = "champion") -> str | None:
        """The version that ``version`` replaced when it was last promoted; None when there was none."""
        for event in reversed(self.events):
            if event.action == "promote" and event.alias == alias and event.after == version:
                return event.before
        return None

    def rolled_back(self, alias: str = "champion") -> set[str]:
        """Versions whose last move was a rollback away from them."""
        gone: set[str] = set()
        for event in self.events:
            if event.alias == alias:
                gone.discard(event.after)
                if event.action == "rollback" and event.before:
                    gone.add(event.before)
        return gone


class EventLog:
    """A folder of events.

    Args:
        folder: made by the first append.
        actor: who is recorded.
    """

    def __init__(self, folder: Path, actor: str) -> None:
        self.folder, self.actor = folder, actor

    def read(self) -> History:
        """Read the events and check their chain.

        Raises:
            ArtifactError: a number is missing, an event does not parse, or a hash does not fit.
        """
        tip = START
        events: list[Event] = []
        listed = len(list(self.folder.glob("[0-9]*.json")))  # others may add more while we read; none may be missing
        while True:
            path = self.folder / f"{len(events) + 1:06d}.json"
            try:
                content = path.read_bytes()
                event = Event.model_validate_json(content)
                follows = (event.seq, event.prev_sha256) == (len(events) + 1, tip)
                problem = "" if follows else "an event that does not follow the one before"
            except FileNotFoundError:
                if len(events) >= listed:
                    return History(tuple(events), tip)
                problem = "a gap in the numbers"
            except ValidationError as error:
                problem = f"an event that does not parse ({error.errors()[0]['msg']})"
            if problem:
                raise ArtifactError(
                    f"event log {path} is broken: got {problem}, because somebody changed or removed "
                    "an event; restore the folder from a copy"
                )
            events.append(event)
            tip = hashlib.sha256(content).hexdigest()

    def append(self, claim: Callable[[History], dict[str, Any] | None]) -> Event:
        """Claim the next event; when another process was faster, look again. A claim of None changes nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in abandoned(self.folder, f".*{DRAFT}"):
            left.unlink(missing_ok=True)
        while True:
            history = self.read()
            body = claim(history)
            if body is None:
                return history.events[-1]
            event = Event(
                seq=len(history.events) + 1,
                ts=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                actor=self.actor,
                prev_sha256=history.tip,
                **body,
            )
            draft = self.folder / f".{mark()}{DRAFT}"
            write(draft, event.model_dump_json(by_alias=True, indent=1) + "\n")
            try:
                os.link(draft, self.folder / f"{event.seq:06d}.json")
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                raise ArtifactError(
                    f"registry {self.folder} cannot be written safely: got {error.strerror}, because its file system has no hard "
                    "links, which claim an event; put the registry on a local disk"
                ) from None
            finally:
                draft.unlink()
            fsync(self.folder)
            return event
