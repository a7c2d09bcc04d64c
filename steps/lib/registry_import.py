"""Taking a model from outside into the registry: a checkpoint, an adapter with its base, or a version of another registry.

Everything is looked at before it is copied (``registry_files``): a raw folder of a Trainer, a pickle, a link, code named in a
configuration, or a file of an unknown kind refuses the whole folder. What comes in is a version like any other; it becomes champion
only as others do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from steps.lib import bases, model_files
from steps.lib.bases import Base
from steps.lib.digests import digest_folder
from steps.lib.errors import ArtifactError, ModelError
from steps.lib.models import Chain, base_of
from steps.lib.registry import Registry, Version
from steps.lib.registry_files import MANIFEST, SIGNATURE, inspect


def bring(registry: Registry, name: str, folder: Path, *, origin: str, work: Path, base: Path | None = None) -> Version:
    """Register a model that was not made here.

    Args:
        registry: where it goes.
        name: the model it becomes a version of.
        folder: a checkpoint (``config.json`` with safetensors), an adapter (``adapter_config.json``), or a version of a registry.
        origin: where it came from, for people.
        work: an empty folder, or one that may be emptied, for a clean copy.
        base: folder of the whole weights that an adapter fits; a version of a registry brings its own.

    Raises:
        ArtifactError: something in it may not come in, it is none of the three, or it differs from its own manifest.
        ModelError: the adapter's base is missing or unfit.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    told: dict[str, Any] = {}
    if (folder / MANIFEST).exists():
        told = _version(folder, work)
    elif (folder / "adapter_config.json").exists():
        bases.copy(inspect(folder), folder, work / "adapter")
    elif (folder / "config.json").exists():
        bases.copy(inspect(folder), folder, work / "model")
        model_files.check_folder(work / "model")
    else:
        raise ArtifactError(
            f"{folder} cannot be imported: got neither {MANIFEST} nor adapter_config.json nor config.json, because it is "
            "no version, adapter or checkpoint; give the folder that holds one of them"
        )
    found = _base(folder, work, base)
    facts = {"report": "", "model": "imported", **told, "origin": origin}
    facts.setdefault("policy", digest_folder(work))
    return registry.register(name, work, facts=facts, base=found)


def _version(folder: Path, work: Path) -> dict[str, Any]:
    """Copy a version of another registry, proved against its own manifest, and what was said of it there."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if "facts" not in manifest or not isinstance(manifest.get("files"), list):
        raise ArtifactError(
            f"{folder} cannot be imported: got a {MANIFEST} of another kind, because it is an artifact of a store and no version; "
            "run the step promote, which registers it"
        )
    wrong = bases.differing(folder, manifest["files"], frozenset({MANIFEST, SIGNATURE}))
    outside = [entry["path"] for entry in manifest["files"] if {"", ".", ".."} & set(entry["path"].split("/"))]
    if wrong or outside:
        raise ArtifactError(
            f"{folder} cannot be imported: got other content in {', '.join(wrong + outside)}, because it was changed or cut off on "
            "its way; copy it again"
        )
    bases.copy([folder / entry["path"] for entry in manifest["files"]], folder, work)
    inspect(work)
    kept = ("policy", "report", "model")
    return {name: manifest["facts"][name] for name in kept if name in manifest["facts"]}


def _base(folder: Path, work: Path, given: Path | None) -> Base | None:
    """What the adapter stands on; its chain is written where it has none."""
    if not (work / "adapter").is_dir():
        return None
    if (folder / MANIFEST).exists() and given is None:
        return base_of(folder)
    if given is None:
        raise ModelError(
            f"adapter {folder} has no base: got none given, because an adapter says only a name or a path of it; give the "
            "folder of the whole weights that it was trained on"
        )
    digest = model_files.model_digest(model_files.check_folder(given))
    if not (work / "chain.json").exists():
        Chain(base=digest).write(work)
    expected = Chain.read(work).base
    if expected != digest:
        raise ModelError(
            f"adapter {folder} does not fit its base {given}: got base digest {digest[:12]}, because the adapter was trained on "
            f"{expected[:12]}; give that base"
        )
    return Base(given, digest)
