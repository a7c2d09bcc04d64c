"""Which versions and bases of a registry are needed, and by what; what is not may go. Evidence never goes: only weights do.

A version that is retired keeps its manifest, lineage, card and evaluation, and its events; nobody can load it any more.
"""

from __future__ import annotations

import calendar
import contextlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from steps.lib.bases import BASES, PARTIAL
from steps.lib.events import CHAMPION, History
from steps.lib.registry_files import listed
from steps.lib.registry_versions import VERSIONS, WEIGHTS
from steps.lib.tickets import abandoned, mark

YOUNG = 3600.0
"""Seconds in which a version is needed: somebody may have just registered it and be about to use it."""
UNSEEN = 3600.0
"""Seconds in which a base and a folder without an event are needed: their event may be about to come."""


@dataclass(frozen=True)
class Kept:
    """A version or a base, and whether it stays."""

    kind: str
    """version, base, or rest: what a crash left without an event."""
    name: str
    size: int
    """Bytes that go, or that stay."""
    goes: bool
    reason: str


def needed(history: History, keep: int, now: float) -> dict[str, str]:
    """Versions that stay, and why; the strongest reason counts.

    Args:
        history: events of the model.
        keep: champions that stay, the last ones, the one that is champion now among them.
        now: seconds since 1970.
    """
    found: dict[str, str] = {}
    for event in history.events:
        if event.action == "register" and now - calendar.timegm(time.strptime(event.ts, "%Y-%m-%dT%H:%M:%SZ")) < YOUNG:
            found[event.after] = "younger than an hour"
    for number, version in enumerate(history.reigns(CHAMPION)[:keep]):
        found[version] = f"champion number {number + 1} from the last one"
    for alias, version in history.aliases().items():
        before = history.replaced(version, alias)
        if before:
            found[before] = f"a rollback of {alias} goes back to it"
    for alias, version in history.aliases().items():
        found[version] = f"alias {alias}"
    return found


def strip(folder: Path) -> None:
    """Delete the weights of a retired version; what a kill left of them, too."""
    for part in WEIGHTS:
        _delete(folder / part, folder.parent)


def unused_bases(home: Path, used: Iterable[str], now: float) -> list[Kept]:
    """The bases of a registry: which of them no version stands on.

    Args:
        home: folder of the model in the registry.
        used: digests of the bases that versions with weights stand on.
        now: seconds since 1970.
    """
    names = {digest[:12] for digest in used}
    found = []
    for folder in sorted((home / BASES).glob("[0-9a-f]*")):
        reason = "no version stands on it"
        young = now - folder.stat().st_mtime < UNSEEN
        if folder.name in names or young:
            reason = "a version stands on it" if folder.name in names else "younger than an hour"
        goes = folder.name not in names and not young
        found.append(Kept("base", folder.name, size_of(folder), goes, reason))
    return found


def rests(home: Path, registered: Iterable[str], now: float) -> list[Kept]:
    """Folders of versions that have no event, and so are none."""
    known = set(registered)
    found = []
    for folder in sorted((home / VERSIONS).glob("v*")):
        if folder.name not in known:
            goes = now - folder.stat().st_mtime >= UNSEEN
            reason = "left by a crash before its event" if goes else "younger than an hour"
            found.append(Kept("rest", folder.name, size_of(folder), goes, reason))
    return found


def delete(home: Path, gone: Iterable[Kept]) -> None:
    """Delete bases and rests that may go."""
    for one in gone:
        folder = home / (BASES if one.kind == "base" else VERSIONS)
        _delete(folder / one.name, folder)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum((folder / name).lstat().st_size for name in listed(folder))


def _delete(folder: Path, beside: Path) -> None:
    """Take a folder away at once, then delete it; a kill in between leaves what the next writer sweeps."""
    for left in abandoned(beside, f".*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    away = beside / f".{mark()}{PARTIAL}"
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        folder.rename(away)
        shutil.rmtree(away)
