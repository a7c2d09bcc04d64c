"""A version of the registry on the disk: written beside the others until it is whole, read back, and proved byte by byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib import bases, model_files
from steps.lib.bases import PARTIAL, Base
from steps.lib.durable import fsync, write
from steps.lib.errors import ArtifactError
from steps.lib.registry_files import MANIFEST, SIGNATURE, inspect, is_record
from steps.lib.tickets import abandoned, mark

VERSIONS = "versions"
WEIGHTS = ("adapter", "model")
"""Folders of a version that retiring it deletes; what tells of it stays."""


@dataclass(frozen=True)
class Version:
    """A registered version."""

    name: str
    folder: Path
    digest: str
    """sha256 of its manifest, which holds the sha256 of every file."""
    facts: dict[str, Any]
    """What the registrar said (policy and report digest, name of the model in its report), and digests of base, adapter, tokenizer
    and chat template."""
    retired: bool = False
    """Whether its weights are gone."""

    @property
    def model(self) -> str:
        """Name of the model that it is a version of."""
        return self.folder.parent.parent.name

    @property
    def size(self) -> int:
        """Bytes of the files that its manifest lists; its base is not among them."""
        return sum(int(entry["size"]) for entry in self.manifest["files"])

    @property
    def manifest(self) -> dict[str, Any]:
        """The whole manifest: schema, facts, identity, base, and path, size and sha256 of each file."""
        return dict(json.loads((self.folder / MANIFEST).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Draft:
    """A version that is whole and has no number yet."""

    place: Path
    digest: str
    identity: str

    def move(self, target: Path) -> Draft:
        """Rename its folder; the target may be there already with the same content."""
        if self.place != target:
            try:
                os.rename(self.place, target)
            except OSError:
                if not (target / MANIFEST).exists():
                    raise
                shutil.rmtree(self.place, ignore_errors=True)
            fsync(target.parent)
        return Draft(target, self.digest, self.identity)


def stage(home: Path, folder: Path, facts: Mapping[str, Any], base: Base | None) -> Draft:
    """Copy the files of a folder, and its base where that is not there yet, and describe them.

    Args:
        home: folder of the model in the registry.
        folder: what becomes a version.
        facts: what the registrar says of it.
        base: what its adapter stands on; None for whole weights, or where nobody will load it.

    Raises:
        ArtifactError: a file may not come in, or the base is another one.
    """
    files = inspect(folder)
    versions = home / VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    for left in abandoned(versions, f".*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    if base:
        bases.keep(home, base)
    place = versions / f".{mark()}{PARTIAL}"
    listing = bases.copy(files, folder, place)
    told = {**facts, **({"base": base.digest} if base else {}), **_digests(place, base)}
    what = [[entry["path"], entry["sha256"]] for entry in listing if not is_record(entry["path"])]
    identity = _sha256(json.dumps([told, what], sort_keys=True))
    manifest = {
        "schema": 2,
        "facts": told,
        "identity": identity,
        "base": base.facts() if base else None,
        "files": listing,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    write(place / MANIFEST, text)
    fsync(place)
    return Draft(place, _sha256(text), identity)


def left_behind(home: Path, draft: Draft, known: Mapping[str, str]) -> Draft:
    """The draft, or what a crash between its rename and its event left of the same version."""
    for folder in sorted((home / VERSIONS).glob("v*")):
        if folder.name in known or not (folder / MANIFEST).exists():
            continue
        text = (folder / MANIFEST).read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        same = json.loads(text).get("identity") == draft.identity and folder.name.endswith(digest[:12])
        if same and not bases.differing(folder, json.loads(text)["files"], frozenset({MANIFEST, SIGNATURE})):
            shutil.rmtree(draft.place, ignore_errors=True)
            return Draft(folder, digest, draft.identity)
    return draft


def read(folder: Path, digest: str, *, retired: bool) -> Version:
    """A version, its manifest checked against the digest in its event.

    Raises:
        ArtifactError: the manifest is not there, or is another one.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} is damaged: got no {MANIFEST}, because somebody changed the registry; restore the folder from a copy"
        ) from None
    if hashlib.sha256(text).hexdigest() != digest:
        raise ArtifactError(
            f"{folder / MANIFEST} is not the one registered: got another sha256 than its event has, because somebody changed "
            "it; restore the folder"
        )
    return Version(folder.name, folder, digest, json.loads(text)["facts"], retired)


def damage(version: Version) -> list[str]:
    """Files of a version, and of the base that it keeps, with other content than was registered; every byte is read."""
    manifest = version.manifest
    files = manifest["files"]
    if version.retired:
        files = [entry for entry in files if entry["path"].partition("/")[0] not in WEIGHTS]
    wrong = bases.differing(version.folder, files, frozenset({MANIFEST, SIGNATURE}))
    if version.retired:  # its weights may be on their way out
        return [name for name in wrong if name.partition("/")[0] not in WEIGHTS]
    base = manifest.get("base") or {}
    return wrong + (bases.damage(version.folder.parent.parent, base["digest"]) if "stored" in base else [])


def _digests(folder: Path, base: Base | None) -> dict[str, str]:
    """Digests of adapter, tokenizer and chat template, as far as the version has them."""
    found: dict[str, str] = {}
    if (folder / "adapter" / "adapter_config.json").exists():
        found["adapter"] = model_files.adapter_digest(folder / "adapter")
    weights = folder / "model" if (folder / "model").is_dir() else base.folder if base else None
    if weights:
        found["tokenizer"] = model_files.tokenizer_digest(weights)
        found["template"] = model_files.template_digest(weights)
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
