"""An artifact: a folder with its files and ``manifest.json``, which says what they are, and how they were made.

The manifest lists every file with size and sha256, and carries a seal, the digest of its own content. So a folder can be proved by
itself: what is truncated, altered, missing or foreign shows.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.digests import digest_files, digest_text
from steps.lib.errors import ArtifactError, DataError

MANIFEST = "manifest.json"
IGNORED = (".DS_Store", "Thumbs.db", ".nfs*")
"""Files that an operating system leaves in any folder."""


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
    def seal(self) -> str:
        """Digest of the manifest: two results of one key differ in it."""
        return str(self.manifest["seal"])

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
        found = examine(path, deep=deep)
        if isinstance(found, str):
            raise ArtifactError(f"{path} is not a whole artifact: got {found}; rebuild it, or give the right folder")
        return found


def examine(folder: Path, *, key: str | None = None, deep: bool = False, fresh: bool = False) -> Artifact | str:
    """The artifact of a folder, or what is wrong with it.

    Args:
        folder: the artifact.
        key: what it must be; a whole artifact at a wrong place is foreign.
        deep: prove the files' digests, too (remembered ones count where the file was not written since).
        fresh: with ``deep``, read every byte whatever is remembered.
    """
    try:
        manifest = parse((folder / MANIFEST).read_bytes(), key)
    except (FileNotFoundError, NotADirectoryError):
        return f"no {MANIFEST}"
    except OSError as error:
        return f"a {MANIFEST} that cannot be read ({error.strerror})"
    if isinstance(manifest, str):
        return manifest
    files = {name: (int(facts["size"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
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
    if deep:
        try:
            digests = digest_files([folder / name for name in files], fresh=fresh)
        except (OSError, DataError) as error:
            return f"a file that cannot be read ({error})"
        for name, digest in zip(files, digests, strict=True):
            if digest != files[name][1]:
                return other_bytes(name, digest, files[name][1])
    return Artifact(folder, manifest)


def damage(folder: Path, *, key: str | None = None, deep: bool = False, fresh: bool = False) -> str | None:
    """What is wrong with an artifact's folder, as ``examine`` has it; None when nothing is."""
    found = examine(folder, key=key, deep=deep, fresh=fresh)
    return found if isinstance(found, str) else None


def parse(data: bytes, key: str | None = None) -> dict[str, Any] | str:
    """A manifest's content, or what is wrong with it: by itself, and for the key at whose place it was found."""
    try:
        manifest: dict[str, Any] = json.loads(data)
        names = [str(name) for name, facts in manifest["files"].items() if (int(facts["size"]), str(facts["sha256"]))]
        if "seal" not in manifest:
            return f"a {MANIFEST} without its seal, as older versions wrote it"
        names += [str(entry["key"]) for entry in manifest["inputs"].values()]
        if manifest["seal"] != seal(manifest):
            return f"a {MANIFEST} that was changed after it was written"
        if key is not None and manifest["key"] != key:
            return f"the artifact {manifest['key']} at the place of {key}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"a {MANIFEST} that does not parse ({error!r:.100})"
    outside = [name for name in names if {"", ".", ".."} & set(name.split("/"))]
    return f"a {MANIFEST} that names {outside[0]!r}, outside its folder" if outside else manifest


def other_bytes(name: str, found: str, listed: str) -> str:
    """What is wrong with a file whose digest is not that of the manifest."""
    return f"{name} with other bytes (sha256 {found[:12]}, where the manifest says {listed[:12]})"


def seal(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest's own content, so that a changed manifest shows."""
    rest = {name: value for name, value in manifest.items() if name != "seal"}
    return digest_text(json.dumps(rest, sort_keys=True, ensure_ascii=False))


def unlisted(artifact: Artifact) -> list[str]:
    """Files in an artifact's folder that its manifest does not list."""
    listed = artifact.manifest["files"].keys() | {MANIFEST}
    return [name for name in names_in(artifact.path) if name not in listed]


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


def names_in(folder: Path) -> list[str]:
    """Files below a folder, relative, in the order of their paths."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink()) and not any(fnmatch.fnmatch(path.name, one) for one in IGNORED)
    ]
