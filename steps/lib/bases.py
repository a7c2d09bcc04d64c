"""The bases that a registry's adapters stand on, kept beside its versions, each once.

::

  <root>/<name>/bases/<12 hex of the base's digest>/model/...      the files that are the model's identity
  <root>/<name>/bases/<12 hex of the base's digest>/manifest.json  its whole digest, and size and sha256 of each file

A base that is a commit of a hub's repository is not copied: the version's manifest names id and commit, and the digest tells
whether what comes from there is still that. So a version is whole when the store it came from is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.durable import fsync, write
from steps.lib.errors import ArtifactError
from steps.lib.model_files import IDENTITY, model_digest
from steps.lib.registry_files import MANIFEST, inspect, listed
from steps.lib.tickets import abandoned, mark

BASES, MODEL, PARTIAL = "bases", "model", ".partial"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Base:
    """The whole weights that an adapter fits."""

    folder: Path
    """Where they lie now."""
    digest: str
    """``model_digest`` of that folder."""
    id: str = ""
    """Repository on the hub; empty for a folder."""
    revision: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether a commit of a hub's repository has these bytes for ever, so that no copy is needed."""
        in_cache = self.folder.parent.name == "snapshots" and self.folder.name == self.revision
        return bool(self.id and self.revision and COMMIT.fullmatch(self.revision) and in_cache)

    def facts(self) -> dict[str, Any]:
        """What a version's manifest says of it."""
        where = {"id": self.id, "revision": self.revision} if self.pinned else {"stored": self.digest[:12]}
        return {"digest": self.digest, **where}


def keep(home: Path, base: Base) -> Path | None:
    """Copy a base into the registry, unless it is there, or pinned on the hub.

    Args:
        home: folder of the model in the registry.
        base: what to keep.

    Returns:
        Its folder; None for a pinned one.

    Raises:
        ArtifactError: a file of it may not come in, it is not the base it is said to be, or another one has its place.
    """
    if base.pinned:
        return None
    target = home / BASES / base.digest[:12]
    if _is_there(target, base.digest):
        os.utime(target)  # it is used anew: what collects looks at this
        return target
    files = inspect(base.folder, IDENTITY, links=True)  # its bytes are proved by the digest below
    (home / BASES).mkdir(parents=True, exist_ok=True)
    for left in abandoned(home / BASES, f".*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    draft = home / BASES / f".{mark()}{PARTIAL}"
    listing = copy(files, base.folder, draft / MODEL)
    if (found := model_digest(draft / MODEL)) != base.digest:
        shutil.rmtree(draft, ignore_errors=True)
        raise ArtifactError(
            f"base {base.folder} is another one: got digest {found[:12]}, because it changed since the adapter was trained on "
            f"{base.digest[:12]}; put that base back, or train the adapter again"
        )
    write(draft / MANIFEST, json.dumps({"digest": base.digest, "files": listing}, indent=1, sort_keys=True))
    fsync(draft)
    try:
        os.rename(draft, target)
    except OSError:  # another process was faster, with the same bytes
        shutil.rmtree(draft, ignore_errors=True)
        if not _is_there(target, base.digest):
            raise
    fsync(target.parent)
    return target


def copy(files: list[Path], folder: Path, target: Path) -> list[dict[str, Any]]:
    """Copy files to the same relative paths, flushed to the disk.

    Returns:
        Path, size and sha256 of each, read from the copies.
    """
    listing = []
    for path in files:
        relative = path.relative_to(folder).as_posix()
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)
        fsync(target / relative)
        size = (target / relative).stat().st_size
        listing.append({"path": relative, "size": size, "sha256": sha256(target / relative)})
    names = {Path(str(entry["path"])).parent for entry in listing}
    for place in {target / folder for name in names for folder in (name, *name.parents)}:
        fsync(place)
    return listing


def damage(home: Path, digest: str) -> list[str]:
    """What is wrong with a kept base, every byte read; empty when nothing is."""
    folder = home / BASES / digest[:12]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{BASES}/{digest[:12]} (missing, or without its {MANIFEST})"]
    if manifest["digest"] != digest:
        return [f"{BASES}/{digest[:12]} (another base)"]
    wrong = differing(folder / MODEL, manifest["files"])
    if not wrong and model_digest(folder / MODEL) != digest:
        wrong = [MANIFEST]
    return [f"{BASES}/{digest[:12]}/{name}" for name in wrong]


def differing(folder: Path, listing: list[dict[str, Any]], besides: frozenset[str] = frozenset()) -> list[str]:
    """Files that are missing, foreign, or have other bytes than a listing says; every byte is read.

    Args:
        folder: where the files are.
        listing: path, size and sha256 of each.
        besides: files that may be there without being listed.
    """
    there = set(listed(folder)) - besides
    wrong = sorted(there ^ {entry["path"] for entry in listing})
    for entry in listing:
        path = folder / entry["path"]
        if entry["path"] in there and (path.is_symlink() or sha256(path) != entry["sha256"]):
            wrong.append(entry["path"])
    return wrong


def beside(version: Path) -> Path | None:
    """The model folder of the base that a registered version stands on; None where it is kept nowhere near, or none is needed."""
    digest = str(of_version(version).get("digest", ""))
    kept = version.resolve().parent.parent / BASES / digest[:12]
    return kept / MODEL if digest and _is_there(kept, digest) else None


def of_version(version: Path) -> dict[str, Any]:
    """What the manifest of a version says of its base: digest, and id with revision, or where it is stored; else empty."""
    try:
        manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(manifest.get("base") or {}) if "facts" in manifest else {}


def sha256(path: Path) -> str:
    """sha256 of a file, its bytes read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_there(folder: Path, digest: str) -> bool:
    """Whether a base is kept in a folder.

    Raises:
        ArtifactError: another one has its place, by an accident of 12 hex digits or by a hand.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["digest"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError):
        found = "a manifest that does not parse"
    if found != digest:
        raise ArtifactError(
            f"base {folder} is another one: got {found[:64]}, because somebody changed it; restore the folder from a copy"
        )
    return True
