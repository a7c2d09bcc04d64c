"""Collection of what nothing needs any more: which artifacts and leftovers of a store may go, and deleting them.

``steps.lib.references`` says what stays. Deleting takes the key's lock and looks once more, so that a run that starts meanwhile and
a collection do not meet.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steps.lib import runs
from steps.lib.artifact import MANIFEST
from steps.lib.errors import ArtifactError, Resumable
from steps.lib.locks import hold, holder
from steps.lib.partials import written
from steps.lib.references import YOUNG, Content, age, lock_keys, references, who
from steps.lib.remote import RemoteStore
from steps.lib.stopping import Stop
from steps.lib.store import BROKEN, LOG, Store, lock_of
from steps.lib.tickets import Ticket

WAIT = 3.0
"""Seconds that a lock is waited for."""
LEFTOVER = re.compile(r"\.([^.]+)\.(trash-.*|resume|fetch-.*)")
"""Folders that a crash leaves beside artifacts and that nothing reads again."""
FREE = "no alias, pin or recent run refers to it"


@dataclass(frozen=True)
class Item:
    """One thing in a store, and whether it may go."""

    kind: Literal["artifact", "partial", "leftover", "lock", "broken"]
    name: str
    """Key of an artifact or partial folder; of the others the path below the store's folder."""
    size: int
    """Bytes."""
    age: float
    """Seconds since it was finished or last written."""
    goes: bool
    reason: str
    """Why it stays, or why it may go."""


class Busy(Exception):
    """Somebody else holds the lock."""


def survey(
    store: Store, registries: Iterable[Path] = (), *, keep_runs: int = 5, broken: bool = False, now: float | None = None
) -> list[Item]:
    """Everything in a store, with the verdict. Nothing is changed.

    Args:
        store: the store.
        registries: folders of registries, besides those that its promote artifacts name.
        keep_runs: newest runs (of those that differ) whose artifacts stay.
        broken: what was set aside may go, too.
        now: seconds since the epoch.

    Raises:
        ArtifactError: a registry is damaged, so that nobody can tell what it refers to.
    """
    now = time.time() if now is None else now
    content = Content.of(store)
    needed = references(store, registries, keep_runs=keep_runs, now=now, content=content)
    items = []
    for key, manifest in content.whole.items():
        total = sum(int(facts["size"]) for facts in manifest["files"].values())
        items.append(Item("artifact", key, total, age(store, key, manifest, now), *_verdict(needed.get(key))))
    for key, manifest in content.damaged.items():
        why = needed.get(key, "damaged: prefline verify sets it aside")
        items.append(Item("artifact", key, size(store.folder(key)), age(store, key, manifest, now), False, why))
    items += _partials(store, needed, now)
    items += _leftovers(store, now)
    items += _locks(store, {item.name for item in items} | needed.keys(), now)
    items += _broken(store, broken, now)
    return items


def collect(
    store: Store, items: Sequence[Item], registries: Iterable[Path] = (), *, keep_runs: int = 5, wait: float = WAIT
) -> Iterator[Item]:
    """Delete what may go, what was made from others first. Gives each item as it ended: ``goes`` says whether it is gone.

    Args:
        store: the store.
        items: of a survey.
        registries: as for the survey.
        keep_runs: as for the survey.
        wait: seconds that a key's lock is waited for.
    """
    registries, ended, seen = list(registries), set[str](), None
    needed: dict[str, str] = {}
    content = Content.of(store)
    for item in _in_order(content, [item for item in items if item.goes]):
        why: str | None = None
        try:
            if item.kind in ("artifact", "partial"):
                with alone(store, item.name, wait):
                    now = _signs(store, ended)
                    if now != seen:  # a run began or came further, or somebody pinned something
                        found = references(store, registries, keep_runs=keep_runs, ours=item.name)
                        seen, needed = now, {**needed, **found}
                    why = needed.get(item.name) or _young(store, item)
                    if why is None:
                        _delete(store, item)
                if why is None:
                    forget_lock(store, item.name)
            elif item.kind == "lock":
                why = forget_lock(store, item.name.partition("/")[2].replace("-", "/", 1))
            else:
                _delete(store, item)
        except Busy as error:
            why = str(error)
        except (OSError, ArtifactError) as error:
            why = f"cannot be deleted: {error}"
        if why is not None and item.kind == "artifact":
            needed |= dict.fromkeys(content.inputs(item.name), f"behind {item.name}: {why}")
        yield item if why is None else replace(item, goes=False, reason=why)


@contextmanager
def alone(store: Store, key: str, wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of a key for the length of the block.

    Raises:
        Busy: somebody else holds it.
        ArtifactError: the store cannot be written.
    """
    held = holder(store.place, lock_of(key))
    if held:
        raise Busy(f"its lock is held by {who(held)}")
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(store.place, lock_of(key), log=LOG, stop=_Patience(wait)))
        except Resumable:
            raise Busy("its lock is held by another process") from None
        yield


def forget_lock(store: Store, key: str) -> str | None:
    """Delete the tickets of a key that is gone, unless somebody holds them by now: then it says who."""
    name = lock_of(key)
    if held := holder(store.place, name):
        return f"held by {who(held)}"
    for ticket in store.place.names(name):
        store.place.delete(f"{name}/{ticket}")
    if not isinstance(store, RemoteStore):
        with suppress(OSError):
            (store.root / name).rmdir()
    return None


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    total = 0
    for one in [path, *path.rglob("*")]:
        with suppress(OSError):
            total += one.stat().st_size if one.is_file() else 0
    return total


class _Patience(Stop):
    """Ends a wait after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise Resumable("waited long enough")


def _verdict(why: str | None) -> tuple[bool, str]:
    return (False, why) if why else (True, FREE)


def _partials(store: Store, needed: Mapping[str, str], now: float) -> Iterator[Item]:
    for folder in sorted(store.root.glob("*/.*.partial")):
        key = f"{folder.parent.name}/{folder.name[1 : -len('.partial')]}"
        old = now - written(folder)
        why = needed.get(key) or ("younger than an hour" if old < YOUNG else None)
        yield Item("partial", key, size(folder), old, *_verdict(why))


def _leftovers(store: Store, now: float) -> Iterator[Item]:
    for folder in sorted(store.root.glob("*/.*")):
        match = LEFTOVER.fullmatch(folder.name)
        if match is None:
            continue
        held = holder(store.place, lock_of(f"{folder.parent.name}/{match[1]}"))
        old = now - written(folder)
        why = f"its lock is held by {who(held)}" if held else "younger than an hour" if old < YOUNG else ""
        name = folder.relative_to(store.root).as_posix()
        yield Item("leftover", name, size(folder), old, not why, why or "left by a process that ended early")


def _locks(store: Store, known: set[str], now: float) -> Iterator[Item]:
    """Locks of keys of which nothing is there any more."""
    for key in lock_keys(store):
        if key in known:
            continue
        tickets = [one for one in store.place.names(lock_of(key)) if one.isdigit()]
        newest = Ticket.parse(store.place.read(f"{lock_of(key)}/{max(tickets, key=int)}")) if tickets else None
        old = now - runs.seconds(newest.since if newest else "")
        why = "younger than an hour" if old < YOUNG else ""
        yield Item("lock", lock_of(key), 0, old, not why, why or "nothing of its key is there any more")


def _broken(store: Store, may_go: bool, now: float) -> Iterator[Item]:
    if isinstance(store, RemoteStore):
        found = store.remote.below(BROKEN)
        for name in sorted({path.split("/")[1] for path in found if path.count("/") > 1}):
            total = sum(count for path, count in found.items() if path.startswith(f"{BROKEN}/{name}/"))
            yield Item("broken", f"{BROKEN}/{name}", total, 0.0, may_go, "set aside at the URL; --broken deletes it")
    for path in sorted((store.root / BROKEN).glob("*")):
        if path.name.endswith(".reason.txt"):
            continue
        reason = path.with_name(path.name + ".reason.txt")
        said = reason.read_text(encoding="utf-8").strip() if reason.exists() else "set aside"
        old = now - max(written(reason), path.stat().st_ctime)  # a rename keeps the time of writing
        stays = "; younger than an hour" if old < YOUNG else "" if may_go else "; --broken deletes it"
        yield Item("broken", f"{BROKEN}/{path.name}", size(path), old, not stays, said + stays)


def _in_order(content: Content, items: Sequence[Item]) -> list[Item]:
    """What was made from others before what it was made from: a crash in between leaves whole lines of ancestors."""
    going = {item.name: item for item in items if item.kind == "artifact"}
    users: dict[str, set[str]] = {key: set() for key in going}
    for key in going:
        for above in content.inputs(key):
            if above in going:
                users[above].add(key)
    ordered: list[Item] = []
    while users:
        free = {key for key, by in users.items() if not by} or set(users)
        ordered += [going[key] for key in users if key in free]
        users = {key: by - free for key, by in users.items() if key not in free}
    return [*(item for item in items if item.kind != "artifact"), *ordered]


def _signs(store: Store, ended: set[str]) -> tuple[Any, ...]:
    """What changes when a run begins or comes further, or somebody pins or unpins. ``ended``: records not to be read again."""
    going = [(record.id, tuple(record.steps.values())) for record in runs.going(store.place, ended)]
    return tuple(store.place.names(runs.RUNS)), tuple(going), tuple(store.place.names(runs.PINS))


def _young(store: Store, item: Item) -> str | None:
    """Built or written again since the survey, by a process that keeps no record."""
    path = store.partial(item.name) if item.kind == "partial" else store.folder(item.name) / MANIFEST
    return "younger than an hour" if time.time() - written(path) < min(YOUNG, item.age) else None


def _delete(store: Store, item: Item) -> None:
    if item.kind == "artifact":
        store.remove(item.name)
        return
    path = store.partial(item.name) if item.kind == "partial" else store.root / item.name
    reason = path.with_name(path.name + ".reason.txt")
    if item.kind == "broken" and isinstance(store, RemoteStore):
        for name in [*store.remote.below(item.name), f"{item.name}.reason.txt"]:
            store.place.delete(name)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    if item.kind == "broken":
        reason.unlink(missing_ok=True)
