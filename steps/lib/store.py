"""Artifacts: folders that are whole or not there.

``<root>/<step>/<hash20>/`` holds the step's files and ``manifest.json``, which is written last. Work happens in the sibling
``.<hash20>.partial``, which survives a crash; publishing is fsync and one rename. No manifest, no artifact.

The *output digest* is over the content files: it leaves out the step's records (logs, pages) and the one field of an adapter's
configuration that names a path, so it does not depend on where the store lies, who ran the step, or when.

A look-up proves every byte: manifest and sizes by a look, digests by the memo of ``steps.lib.digests``, which reads only files
that are new to it or were written since. What is damaged is moved to ``broken/`` with the reason, never deleted and never used.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.digests import digest_files, digest_text
from steps.lib.errors import ArtifactError, DataError
from steps.lib.place import FolderPlace, Place

MANIFEST = "manifest.json"
RECORDS = ("record/*",)
"""Records of every step."""
IGNORED = (".DS_Store", "Thumbs.db", ".nfs*")
"""Files that an operating system leaves in any folder."""
BROKEN = "broken"
LOG = logging.getLogger("prefline.store")


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """``<step>/<hash20>``."""
        return str(self.manifest["key"])

    @property
    def digest(self) -> str:
        """Digest of the content files: what keys downstream are made of."""
        return str(self.manifest["digest"])

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(int(facts["size"]) for facts in self.manifest["files"].values())

    @classmethod
    def read(cls, path: Path, *, deep: bool = False) -> Artifact:
        """Read and check: the manifest is whole, and every file it lists has its size (with ``deep`` also its digest).

        Raises:
            ArtifactError: the folder is no artifact, or is damaged.
        """
        problem = damage(path, deep=deep)
        if problem:
            raise ArtifactError(f"{path} is not a whole artifact: got {problem}; rebuild it, or give the right folder")
        return cls(path, json.loads((path / MANIFEST).read_text(encoding="utf-8")))


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

    def find(self, key: str) -> Artifact | None:
        """Look an artifact up. A damaged one is set aside under ``broken/`` with the reason, and counts as missing.

        Files in its folder that the manifest does not list are set aside alone: they are no part of it.
        """
        folder = self.folder(key)
        if not os.path.lexists(folder):
            return None
        problem = damage(folder, key=key, deep=True)
        if problem:
            self.set_aside(key, problem)
            return None
        artifact = Artifact(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        for name in unlisted(artifact):
            self._set_file_aside(artifact, name)
        if (left := _resume_beside(folder)).exists():  # killed right after the last rename of publishing
            shutil.rmtree(left, ignore_errors=True)
        return artifact

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
            if damage(self.folder(key), key=key) is None:
                yield Artifact.read(self.folder(key))

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


def damage(folder: Path, *, key: str | None = None, deep: bool = False, fresh: bool = False) -> str | None:
    """What is wrong with an artifact's folder; None when nothing is.

    Args:
        folder: the artifact.
        key: what it must be; a whole artifact at a wrong place is foreign.
        deep: prove the files' digests, too (remembered ones count where the file was not written since).
        fresh: with ``deep``, read every byte whatever is remembered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(facts["size"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
        if "seal" not in manifest:
            return f"a {MANIFEST} without its seal, as older versions wrote it"
        if manifest["seal"] != seal(manifest):
            return f"a {MANIFEST} that was changed after it was written"
        if key is not None and manifest["key"] != key:
            return f"the artifact {manifest['key']} at the place of {key}"
    except (FileNotFoundError, NotADirectoryError):
        return f"no {MANIFEST}"
    except OSError as error:
        return f"a {MANIFEST} that cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"a {MANIFEST} that does not parse ({error!r:.100})"
    for name, (size, _) in files.items():
        try:
            found = (folder / name).stat()
        except OSError as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            return (
                f"no file {name}, which the manifest lists"
                if missing
                else f"{name} that cannot be read ({error.strerror})"
            )
        if not (folder / name).is_file():
            return f"{name} that is no file"
        if found.st_size != size:
            return f"{name} of {found.st_size} bytes, where the manifest says {size}"
    if not deep:
        return None
    try:
        digests = digest_files([folder / name for name in files], fresh=fresh)
    except (OSError, DataError) as error:
        return f"a file that cannot be read ({error})"
    for (name, (_, expected)), digest in zip(files.items(), digests, strict=True):
        if digest != expected:
            return f"{name} with other bytes (sha256 {digest[:12]}, where the manifest says {expected[:12]})"
    return None


def unlisted(artifact: Artifact) -> list[str]:
    """Files in an artifact's folder that its manifest does not list."""
    listed = artifact.manifest["files"].keys() | {MANIFEST}
    return [name for name in _names(artifact.path) if name not in listed]


def seal(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest's own content, so that a changed manifest shows."""
    rest = {name: value for name, value in manifest.items() if name != "seal"}
    return digest_text(json.dumps(rest, sort_keys=True, ensure_ascii=False))


def work_folder(target: Path) -> Path:
    """The sibling folder in which an artifact is made."""
    return target.parent / f".{target.name}.partial"


def _resume_beside(target: Path) -> Path:
    """Where publishing puts what resuming needed, until the artifact is there."""
    return target.parent / f".{target.name}.resume"


def clear(work: Path) -> None:
    """Empty a work folder that a crash left, but for what resuming needs (``.resume``) and the record of earlier attempts.

    What a step had written is written again; a file that only the crashed attempt knew would otherwise be published.
    """
    for path in work.iterdir() if work.exists() else ():
        if path.name not in (".resume", "record"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def publish(work: Path, target: Path, facts: Mapping[str, Any], *, records: Sequence[str] = ()) -> Artifact:
    """Turn a work folder into an artifact: digests, fsync, manifest last, one rename.

    Args:
        work: folder with the finished files; its ``.resume`` is deleted, but not before everything else is safe.
        target: final folder; an artifact that is there is set aside.
        facts: what else the manifest says.
        records: globs of files that do not count in the output digest.
    """
    if (work / "record").is_dir() and not any((work / "record").iterdir()):
        (work / "record").rmdir()
    names = [
        name for name in _names(work) if name not in (MANIFEST, MANIFEST + ".tmp") and not name.startswith(".resume/")
    ]
    for name in names:
        _fsync(work / name)
    files: dict[str, dict[str, Any]] = {}
    content: list[tuple[str, str]] = []
    for name, digest in zip(names, digest_files([work / name for name in names]), strict=True):
        files[name] = {"size": (work / name).stat().st_size, "sha256": digest}
        if not any(fnmatch.fnmatch(name, pattern) for pattern in (*RECORDS, *records)):
            content.append((name, _content_digest(work / name, digest)))
    manifest = {**facts, "digest": digest_text(json.dumps(content)), "files": files}
    manifest = json.loads(json.dumps(manifest, ensure_ascii=False))  # as it will be read
    manifest["seal"] = seal(manifest)
    draft = work / (MANIFEST + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, work / MANIFEST)
    return finish(work, target, manifest)


def finish(work: Path, target: Path, manifest: dict[str, Any]) -> Artifact:
    """The last moves of publishing; a work folder that already has its whole manifest needs nothing else."""
    resume = _resume_beside(target)
    if (work / ".resume").exists():
        shutil.rmtree(resume, ignore_errors=True)
        os.replace(work / ".resume", resume)
    if target.exists():  # in a store, or in a folder that somebody named by hand
        in_store = target.parent.name == manifest.get("step")
        root, key = (target.parent.parent, manifest["key"]) if in_store else (target.parent, target.name)
        Store(root).set_aside(key, "built again on request")
    os.replace(work, target)
    _fsync(target.parent)
    shutil.rmtree(resume, ignore_errors=True)
    return Artifact(target, manifest)


def lineage(folder: Path) -> list[dict[str, Any]]:
    """Manifests of an artifact and of everything it was made from, itself first, each once.

    Ancestors are found beside it in the same store; one that is not there is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    waiting = [folder]
    while waiting:
        path = waiting.pop(0)
        if not (path / MANIFEST).exists():
            continue
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["key"] in found:
            continue
        found[manifest["key"]] = manifest
        root = path.resolve().parent.parent
        waiting += [root / entry["key"] for entry in manifest["inputs"].values()]
    return list(found.values())


def _content_digest(path: Path, digest: str) -> str:
    if path.name != "adapter_config.json":
        return digest
    config = json.loads(path.read_text())
    config.pop("base_model_name_or_path", None)
    return digest_text(json.dumps(config, sort_keys=True))


def _names(folder: Path) -> list[str]:
    """Files below a folder, relative, in the order of their paths."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink()) and not any(fnmatch.fnmatch(path.name, one) for one in IGNORED)
    ]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
