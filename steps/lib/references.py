"""What in a store is needed, and by what: the question that comes before collecting (``steps.lib.collect``).

Needed is what an alias of a registry names, and what a rollback would go back to; what is pinned, locked, used by a run that goes
on or by one of the last runs; what is younger than an hour; and all that those were made from. In doubt a thing is needed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib import runs
from steps.lib.artifact import MANIFEST
from steps.lib.locks import Holder, holder
from steps.lib.partials import written
from steps.lib.registry import Registry
from steps.lib.remote import RemoteStore
from steps.lib.store import BROKEN, LOCKS, Store, lock_of

YOUNG = 3600.0
"""Seconds in which everything is needed: a run may have just begun."""


@dataclass(frozen=True)
class Content:
    """Manifests of a store's artifacts."""

    whole: dict[str, dict[str, Any]]
    """Those that are whole at a cheap look."""
    damaged: dict[str, dict[str, Any]]
    """Others, as far as they can be read; empty where nothing can."""

    @classmethod
    def of(cls, store: Store) -> Content:
        """Read all of them."""
        whole = {artifact.key: artifact.manifest for artifact in store.artifacts()}
        damaged: dict[str, dict[str, Any]] = {}
        for key in store.keys(step=None):
            if key not in whole:
                try:
                    found = json.loads(store.place.read(f"{key}/{MANIFEST}") or b"")
                except (ValueError, OSError):
                    found = None
                damaged[key] = found if isinstance(found, dict) else {}
        return cls(whole, {**damaged, **{key: {} for key in without_manifest(store)}})

    def inputs(self, key: str) -> list[str]:
        """Keys of what an artifact was made from; none when that is not known."""
        try:
            manifest = self.whole.get(key) or self.damaged.get(key) or {}
            return [str(entry["key"]) for entry in manifest["inputs"].values()]
        except (KeyError, TypeError, AttributeError):
            return []


def references(
    store: Store,
    registries: Iterable[Path] = (),
    *,
    keep_runs: int = 5,
    now: float | None = None,
    content: Content | None = None,
    ours: str | None = None,
) -> dict[str, str]:
    """Key -> why it is needed. Keys of which only a partial folder is there are among them.

    Args:
        store: the store.
        registries: folders of registries, besides those that the store's promote artifacts name.
        keep_runs: newest runs (of those that differ) whose artifacts are needed.
        now: seconds since the epoch.
        content: of the store, where it was read already.
        ours: key whose lock the caller holds.

    Raises:
        ArtifactError: a registry is damaged, so that nobody can tell what it refers to.
    """
    now = time.time() if now is None else now
    content = content or Content.of(store)
    needed: dict[str, str] = {}
    for key, why in _direct(store, content, list(registries), keep_runs, now, ours):
        needed.setdefault(key, why)
    waiting = list(needed)
    while waiting:
        key = waiting.pop(0)
        why = needed[key] if needed[key].startswith("behind ") else f"behind {key}: {needed[key]}"
        for above in content.inputs(key):
            if above not in needed:
                needed[above] = why
                waiting.append(above)
    return needed


def without_manifest(store: Store) -> list[str]:
    """Keys at which a folder without a manifest lies; the next look-up sets it aside. (At a URL that is an unfinished upload.)"""
    if isinstance(store, RemoteStore):
        return []
    folders = [folder for folder in sorted(store.root.glob("[!.]*/*")) if re.fullmatch(r"[0-9a-f]{20}", folder.name)]
    kept = [folder for folder in folders if folder.parent.name != BROKEN and not (folder / MANIFEST).exists()]
    return [folder.relative_to(store.root).as_posix() for folder in kept]


def lock_keys(store: Store) -> list[str]:
    """Keys of all locks that there are, held or free."""
    if isinstance(store, RemoteStore):
        names = [name for name, kind in store.remote.entries(LOCKS) if kind == "directory"]
    else:
        names = sorted(path.name for path in (store.root / LOCKS).glob("*") if path.is_dir())
    return [name.replace("-", "/", 1) for name in names if "-" in name]


def who(found: Holder) -> str:
    """A lock's holder in words."""
    return f"process {found.pid} on {found.host} since {found.since}"


def age(store: Store, key: str, manifest: Mapping[str, Any], now: float) -> float:
    """Seconds since an artifact was finished: by its manifest or by its file's time, whichever is later."""
    return now - max(runs.seconds(str(manifest.get("finished", ""))), written(store.folder(key) / MANIFEST))


def _direct(
    store: Store, content: Content, registries: list[Path], keep_runs: int, now: float, ours: str | None
) -> Iterator[tuple[str, str]]:
    """Keys that something refers to, and what; the strongest reason first."""
    yield from _registered(content, registries)
    for key, reason in runs.pins(store.place).items():
        yield key, f"pinned{f': {reason}' if reason else ''}"
    locks = [key for key in lock_keys(store) if key != ours]
    held = {key: found for key in locks if (found := holder(store.place, lock_of(key)))}
    for key, found in held.items():
        yield key, f"its lock is held by {who(found)}"
    known = runs.records(store.place)
    for record in known:
        keys = record.steps.values()
        if record.live(now) or not held.keys().isdisjoint(keys):
            yield from ((key, f"run {record} goes on") for key in keys)
    for record in runs.last(known, keep_runs):
        yield from ((key, f"run {record}, one of the last {keep_runs}") for key in record.steps.values())
    for key, manifest in (*content.whole.items(), *content.damaged.items()):
        if age(store, key, manifest, now) < YOUNG:
            yield key, "younger than an hour"


def _registered(content: Content, registries: list[Path]) -> Iterator[tuple[str, str]]:
    """Artifacts behind aliases, and behind the versions that rollbacks would go back to."""
    places = {path.resolve() for path in registries}
    promoted = {key: manifest for key, manifest in content.whole.items() if manifest.get("step") == "promote"}
    for key, manifest in promoted.items():
        named = manifest.get("config", {}).get("registry")
        places |= {Path(named).resolve()} if named else set()
        if named and not Path(named).is_dir() and manifest.get("metrics", {}).get("verdict") == "promote":
            yield key, f"promoted in registry {named}, which is not at hand here"
    wanted = {digest: why for place in sorted(places) for digest, why in _wanted(place)}
    for key, manifest in content.whole.items():
        if manifest["digest"] in wanted:
            yield key, wanted[manifest["digest"]]
    for key, manifest in promoted.items():
        inputs = [entry["digest"] for entry in manifest["inputs"].values()]
        if inputs and all(digest in wanted for digest in inputs):
            yield key, wanted[inputs[0]]


def _wanted(place: Path) -> Iterator[tuple[str, str]]:
    """Output digests that a registry's aliases and rollbacks name, and by what; the strongest reason last."""
    registry = Registry(place)
    for name in sorted(path.parent.name for path in place.glob("*/events")):
        history = registry.history(name)
        named: list[tuple[str, str]] = []
        for alias, version in history.aliases().items():
            before = history.replaced(version, alias)
            named += [(before, f"a rollback of {name} goes back to it")] if before else []
            named += [(version, f"{alias} of {name}")]
        for version, why in named:
            facts = registry.resolve(name, version).facts
            yield from ((str(facts[fact]), why) for fact in ("report", "policy") if fact in facts)
