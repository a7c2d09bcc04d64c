"""What runs have used, and what a person pinned: so that collecting (``steps.lib.collect``) knows what to leave alone.

``.runs/<UTC time>-<id>.json`` below a store's root is one walk over the line: who walks, whether it ended, and the key of each step
as the walk came to it. ``.pins/<step>-<hash20>`` is one pin with its reason. Nothing else is decided by these files: a store
without them gives the same artifacts.
"""

from __future__ import annotations

import calendar
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from steps.lib.place import Place
from steps.lib.tickets import Ticket

RUNS, PINS = ".runs", ".pins"
KEPT = 300
"""Records that are kept; older ones are deleted when a walk begins."""
RECENT = 7 * 24 * 3600.0
"""Seconds after its last sign in which a walk on another machine, which did not end, counts as going on."""
LOG = logging.getLogger("prefline.runs")


@dataclass(frozen=True)
class Record:
    """One walk over the line."""

    id: str
    """UTC time of its start and a random part; also the order of the records."""
    name: str
    """Name of the run, for people."""
    updated: str
    """UTC time of the last sign."""
    steps: dict[str, str]
    """Step -> key, as far as the walk came."""
    walker: Ticket
    """Host and process that walk."""
    ended: str | None = None
    """``done``, or the class of the error that ended it; None: it goes on, or it died."""

    def live(self, now: float | None = None) -> bool:
        """Whether it may go on: it did not end, and its process runs here, or it is elsewhere and gave a sign lately."""
        if self.ended is not None:
            return False
        alive = self.walker.alive()
        return alive if alive is not None else (time.time() if now is None else now) - seconds(self.updated) < RECENT

    def __str__(self) -> str:
        return f"{self.name} of {self.id[:4]}-{self.id[4:6]}-{self.id[6:8]} {self.id[9:11]}:{self.id[11:13]}"


@dataclass
class Recorder:
    """Keeps the record of one walk. A store that cannot be written keeps none, and the walk goes on."""

    place: Place
    name: str
    id: str
    walker: Ticket = field(default_factory=Ticket.new)
    steps: dict[str, str] = field(default_factory=dict)
    writable: bool = True

    def reached(self, step: str, key: str) -> None:
        """The walk needs this key now. Called before the store is asked for it, so that it is not collected in between."""
        if self.steps.get(step) != key:
            self.steps[step] = key
            self._write(None)

    def end(self, how: str = "done") -> None:
        """The walk is over; ``how`` is ``done`` or the class of the error."""
        self._write(how)

    def _write(self, ended: str | None) -> None:
        if not self.writable:
            return
        record = {
            "name": self.name,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "steps": self.steps,
            "walker": asdict(self.walker),
            "ended": ended,
        }
        try:
            self.place.write(f"{RUNS}/{self.id}.json", json.dumps(record, ensure_ascii=False, indent=1).encode())
        except OSError as error:
            self.writable = False
            LOG.debug("the store keeps no record of this run: %s", error)


def begin(place: Place, name: str) -> Recorder:
    """Begin the record of a walk, and delete records beyond the newest ``KEPT``."""
    stamp = time.strftime(f"%Y%m%dT%H%M%S.{time.time_ns() // 1000 % 10**6:06d}Z", time.gmtime())
    recorder = Recorder(place, name, f"{stamp}-{os.urandom(4).hex()}")
    recorder._write(None)
    if recorder.writable:
        _tidy(place)
    return recorder


def records(place: Place) -> list[Record]:
    """The records that can be read, the newest first."""
    found = (_read(place, name) for name in reversed(_names(place)))
    return [record for record in found if record is not None]


def going(place: Place, ended: set[str]) -> list[Record]:
    """Records of walks that did not end (they go on, or died). Those named in ``ended`` are not read again, and it grows."""
    names = [name for name in _names(place) if name not in ended]
    found = {name: _read(place, name) for name in names}
    ended.update(name for name, record in found.items() if record is None or record.ended is not None)
    return [record for name, record in found.items() if record and name not in ended]


def last(found: Iterable[Record], count: int) -> list[Record]:
    """The newest ``count`` walks that differ: one that came to no other key than newer ones did is not counted."""
    kept: list[Record] = []
    seen: set[str] = set()
    for record in found:
        keys = set(record.steps.values())
        if len(kept) < count and not keys <= seen:
            kept.append(record)
            seen |= keys
    return kept


def pin(place: Place, key: str, reason: str) -> None:
    """Keep an artifact, and what it was made of, whatever runs do. A second pin replaces the reason."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    place.write(_pin(key), json.dumps({"reason": reason, "since": since}, ensure_ascii=False).encode())


def unpin(place: Place, key: str) -> None:
    """Take a pin away; a missing one is fine."""
    place.delete(_pin(key))


def pins(place: Place) -> dict[str, str]:
    """Key -> reason of every pin. One that cannot be read pins, too."""
    found: dict[str, str] = {}
    for name in place.names(PINS):
        step, _, digest = name.rpartition("-")
        try:
            reason = str(json.loads(place.read(f"{PINS}/{name}") or b"{}").get("reason", ""))
        except (ValueError, AttributeError):
            reason = ""
        found[f"{step}/{digest}"] = reason
    return found


def seconds(stamp: str) -> float:
    """Seconds since the epoch of a UTC time such as 2026-11-23T08:00:00Z; 0 when it is none."""
    try:
        return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return 0.0


def _pin(key: str) -> str:
    return f"{PINS}/{key.replace('/', '-')}"


def _names(place: Place) -> list[str]:
    return [name for name in place.names(RUNS) if name.endswith(".json")]


def _read(place: Place, name: str) -> Record | None:
    data = place.read(f"{RUNS}/{name}")
    try:
        content: dict[str, Any] = json.loads(data or b"")
        steps = {str(step): str(key) for step, key in content["steps"].items()}
        walker = Ticket(**content["walker"])
        return Record(name.removesuffix(".json"), content["name"], content["updated"], steps, walker, content["ended"])
    except (ValueError, TypeError, KeyError, AttributeError):
        if data is not None:
            LOG.warning("record %s of a run cannot be read, and counts for nothing", name)
        return None


def _tidy(place: Place) -> None:
    try:
        for name in _names(place)[:-KEPT]:
            record = _read(place, name)
            if record is None or not record.live():
                place.delete(f"{RUNS}/{name}")
    except OSError as error:
        LOG.debug("old records of runs stay: %s", error)
