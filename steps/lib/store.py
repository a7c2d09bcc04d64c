"""Artifacts: folders that are whole or not there.

``<root>/<step>/<hash20>/`` holds the step's files and ``manifest.json``, which is written last. Work happens in the sibling
``.<hash20>.partial``, which survives a crash; publishing is fsync and one rename. No manifest, no artifact.

The *output digest* is over the content files: it leaves out the step's records (logs, pages) and the one field of an adapter's
configuration that names a path, so it does not depend on where the store lies, who ran the step, or when.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.errors import ArtifactError, DataError

MANIFEST = "manifest.json"
FOREIGN = ("prefect.json",)
"""Files that others put into a finished artifact; they are neither listed nor digested."""
RECORDS = ("record/*",)
"""Records of every step."""


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

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Read and check cheaply: the manifest parses, and every file it lists has its size.

        Raises:
            ArtifactError: the folder is no artifact, or is damaged.
        """
        problem = damage(path)
        if problem:
            raise ArtifactError(f"{path} is not a whole artifact: got {problem}; rebuild it, or give the right folder")
        return cls(path, json.loads((path / MANIFEST).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Store:
    """A folder of artifacts."""

    root: Path

    def folder(self, key: str) -> Path:
        """Where the artifact of ``key`` lies, whether it exists or not."""
        return self.root / key

    def find(self, key: str) -> Artifact | None:
        """Look an artifact up. A damaged one is set aside under ``broken/`` with the reason, and counts as missing."""
        folder = self.folder(key)
        if not folder.exists():
            return None
        problem = damage(folder)
        if problem is None:
            return Artifact.read(folder)
        self.set_aside(key, problem)
        return None

    def set_aside(self, key: str, reason: str) -> Path:
        """Move an artifact to ``broken/`` and write the reason beside it. Nothing is deleted."""
        target = (
            self.root
            / "broken"
            / f"{key.replace('/', '-')}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder(key), target)
        target.with_name(target.name + ".reason.txt").write_text(reason + "\n")
        return target

    def artifacts(self) -> Iterator[Artifact]:
        """Every whole artifact, in the order of its key."""
        for manifest in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            folder = manifest.parent
            if folder.parent.name != "broken" and not folder.name.startswith(".") and damage(folder) is None:
                yield Artifact.read(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with an artifact folder, by a cheap look (no file is read but the manifest); None when nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: int(facts["size"]) for name, facts in manifest["files"].items()}
        if not isinstance(manifest["key"], str) or not isinstance(manifest["digest"], str):
            return f"a {MANIFEST} without key and digest"
    except (FileNotFoundError, NotADirectoryError):
        return f"no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"a {MANIFEST} that does not parse ({error!r:.100})"
    for name, expected in sizes.items():
        try:
            size = (folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"no file {name}, which the manifest lists"
        if size != expected:
            return f"{name} of {size} bytes, where the manifest says {expected}"
    return None


def work_folder(target: Path) -> Path:
    """The sibling folder in which an artifact is made."""
    return target.parent / f".{target.name}.partial"


def publish(work: Path, target: Path, facts: Mapping[str, Any], *, records: Sequence[str] = ()) -> Artifact:
    """Turn a work folder into an artifact: digests, fsync, manifest last, one rename.

    Args:
        work: folder with the finished files; its ``.resume`` is deleted.
        target: final folder; an artifact that is there is set aside.
        facts: what else the manifest says.
        records: globs of files that do not count in the output digest.
    """
    shutil.rmtree(work / ".resume", ignore_errors=True)
    if (work / "record").is_dir() and not any((work / "record").iterdir()):
        (work / "record").rmdir()
    files: dict[str, dict[str, Any]] = {}
    content: list[tuple[str, str]] = []
    for path in _files(work):
        name = path.relative_to(work).as_posix()
        digest = digest_file(path)
        files[name] = {"size": path.stat().st_size, "sha256": digest}
        if not any(fnmatch.fnmatch(name, pattern) for pattern in (*RECORDS, *records)):
            content.append((name, _content_digest(path, digest)))
        _fsync(path)
    manifest = {**facts, "digest": digest_text(json.dumps(content)), "files": files}
    with (work / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        Store(target.parent.parent).set_aside(f"{target.parent.name}/{target.name}", "built again on request (--force)")
    os.replace(work, target)
    _fsync(target.parent)
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


def digest_text(text: str) -> str:
    """sha256 of the text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        DataError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(
            f"file {path} is missing: got no such file, because the configuration names it; "
            "correct the path (relative ones start at the working directory)"
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"file {path} is a folder: got a folder, because the configuration names a file; name one file"
        ) from None


def digest_folder(folder: Path, patterns: Sequence[str] = ("**/*",)) -> str:
    """Digest of names (relative) and bytes of the files that match."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return digest_text(json.dumps([(path.relative_to(folder).as_posix(), digest_file(path)) for path in paths]))


def _content_digest(path: Path, digest: str) -> str:
    if path.name != "adapter_config.json":
        return digest
    config = json.loads(path.read_text())
    config.pop("base_model_name_or_path", None)
    return digest_text(json.dumps(config, sort_keys=True))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in FOREIGN and path.relative_to(folder).as_posix() != MANIFEST:
            yield path


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
