"""The store: a folder of artifacts by key, ``<root>/<step>/<hash20>/``.

A look-up proves every byte: manifest and sizes by a look, digests by the memo of ``steps.lib.digests``, which reads only files
that are new to it or were written since. What is damaged is moved to ``broken/`` with the reason, never deleted and never used.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steps.lib.artifact import MANIFEST, Artifact, damage, examine, parse, unlisted
from steps.lib.errors import ArtifactError
from steps.lib.place import FolderPlace, Place

BROKEN = "broken"
LOCKS = ".locks"
LOG = logging.getLogger("prefline.store")


@dataclass(frozen=True)
class Store:
    """A folder of artifacts. ``steps.lib.remote`` has the same over an object store."""

    root: Path

    @property
    def cache(self) -> Path:
        """Where copies of a remote store lie; a folder needs none."""
        return self.root

    @property
    def name(self) -> str:
        """What a person calls it: its folder or URL."""
        return str(self.root)

    @property
    def place(self) -> Place:
        """Where its small shared files lie: locks, records of runs, pins."""
        return FolderPlace(self.root)

    def folder(self, key: str) -> Path:
        """Where the artifact of ``key`` lies on this machine, whether it exists or not."""
        return self.root / key

    def partial(self, key: str) -> Path:
        """Where the artifact of ``key`` is made."""
        return work_folder(self.folder(key))

    def look(self, key: str) -> Artifact | str | None:
        """What lies at a key: a whole artifact with every byte proved, what is wrong with it, or nothing. Nothing is changed."""
        folder = self.folder(key)
        return examine(folder, key=key, deep=True) if os.path.lexists(folder) else None

    def prove(self, key: str) -> str | None:
        """What is wrong with an artifact after reading all of its bytes, whatever is remembered of them; None when nothing is."""
        return damage(self.folder(key), key=key, deep=True, fresh=True)

    def find(self, key: str) -> Artifact | None:
        """Look an artifact up. A damaged one is set aside under ``broken/`` with the reason, and counts as missing.

        Files in its folder that the manifest does not list are set aside alone: they are no part of it.
        """
        found = self.look(key)
        if isinstance(found, str):
            self.set_aside(key, found)
        if not isinstance(found, Artifact):
            return None
        for name in unlisted(found):
            self._set_file_aside(found, name)
        if (left := resume_beside(found.path)).exists():  # killed right after the last rename of publishing
            shutil.rmtree(left, ignore_errors=True)
        return found

    def fetch(self, artifact: Artifact, *, alone: bool = False) -> Artifact:
        """The artifact with its bytes, and (unless ``alone``) those of its ancestors, on this machine: here they are already."""
        return artifact

    def keep(self, artifact: Artifact, *, replace: bool = False) -> None:
        """Take a published artifact into the store for good, with ``replace`` in place of another result of the same key.

        Here it is already.
        """

    def keys(self, step: str | None = None) -> Iterator[str]:
        """Keys of what looks like an artifact (nothing is checked), in order."""
        for manifest in sorted(self.root.glob(f"{step or '*'}/*/{MANIFEST}")):
            folder = manifest.parent
            if folder.parent.name != BROKEN and not folder.name.startswith("."):
                yield f"{folder.parent.name}/{folder.name}"

    def artifacts(self, step: str | None = None) -> Iterator[Artifact]:
        """Every artifact that is whole at a cheap look, in the order of its key."""
        for key in self.keys(step):
            found = examine(self.folder(key), key=key)
            if isinstance(found, Artifact):
                yield found

    def manifests(self, step: str | None = None) -> Iterator[Artifact]:
        """Every artifact whose manifest is whole, for comparing: of the files nothing is looked at, for there may be thousands."""
        for key in self.keys(step):
            try:
                manifest = parse((self.folder(key) / MANIFEST).read_bytes(), key)
            except OSError:
                continue
            if isinstance(manifest, dict):
                yield Artifact(self.folder(key), manifest)

    def set_aside(self, key: str, reason: str) -> Path:
        """Move an artifact to ``broken/``, write the reason beside it, and warn. Nothing is deleted.

        Raises:
            ArtifactError: the store cannot be written.
        """
        target = self._broken(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(target.name + ".reason.txt").write_text(reason + "\n", encoding="utf-8")
            os.replace(self.folder(key), target)
        except FileNotFoundError:
            return target  # another process was quicker
        except OSError as error:
            raise self._unwritable(key, reason, error) from None
        LOG.warning("artifact %s is set aside in %s: %s; it is built again when it is needed", key, target, reason)
        return target

    def remove(self, key: str) -> None:
        """Delete an artifact; a crash in between leaves none that is half."""
        folder = self.folder(key)
        trash = folder.with_name(f".{folder.name}.trash-{os.getpid()}-{time.time_ns()}")
        os.replace(folder, trash)
        shutil.rmtree(trash)

    def _set_file_aside(self, artifact: Artifact, name: str) -> None:
        target = self._broken(artifact.key)
        try:
            (target / name).parent.mkdir(parents=True)
            os.replace(artifact.path / name, target / name)
            target.with_name(target.name + ".reason.txt").write_text(f"{name} is not listed in the manifest\n")
        except OSError as error:
            LOG.warning(
                "file %s of artifact %s is not listed in its manifest, and stays: %s", name, artifact.key, error
            )
            return
        LOG.warning("file %s of artifact %s is not listed in its manifest: set aside in %s", name, artifact.key, target)

    def _broken(self, key: str) -> Path:
        stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{time.time_ns() % 10**9:09d}"
        return self.root / BROKEN / f"{key.replace('/', '-')}-{stamp}"

    def _unwritable(self, key: str, reason: str, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"artifact {key} is damaged and cannot be set aside: got {error.strerror or error}, because {reason}, and the "
            f"store {self.name} cannot be written; make it writable, or name another store (store=FOLDER)"
        )


def work_folder(target: Path) -> Path:
    """The sibling folder in which an artifact is made."""
    return target.parent / f".{target.name}.partial"


def resume_beside(target: Path) -> Path:
    """Where publishing puts what resuming needed, until the artifact is there."""
    return target.parent / f".{target.name}.resume"


def lock_of(key: str) -> str:
    """Name of a key's lock at the store's place."""
    return f"{LOCKS}/{key.replace('/', '-', 1)}"
