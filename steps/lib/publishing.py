"""From a working folder to an artifact: whole, or not there.

Work happens in ``.<hash20>.partial``, beside the place where the artifact will be; it survives a crash. Publishing is digests,
fsync, the manifest, and one rename. No manifest, no artifact.

The *output digest* is over the content files: it leaves out the step's records (logs, pages) and the one field of an adapter's
configuration that names a path, so it does not depend on where the store lies, who ran the step, or when.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steps.lib.artifact import MANIFEST, Artifact, names_in, seal
from steps.lib.digests import digest_files, digest_text
from steps.lib.durable import fsync, write
from steps.lib.store import Store, resume_beside

RECORDS = ("record/*",)
"""Records of every step."""


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
        name for name in names_in(work) if name not in (MANIFEST, MANIFEST + ".tmp") and not name.startswith(".resume/")
    ]
    for name in names:
        fsync(work / name)
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
    write(draft, json.dumps(manifest, indent=1, ensure_ascii=False))
    os.replace(draft, work / MANIFEST)
    return finish(work, target, manifest)


def finish(work: Path, target: Path, manifest: dict[str, Any]) -> Artifact:
    """The last moves of publishing; a work folder that already has its whole manifest needs nothing else."""
    resume = resume_beside(target)
    if (work / ".resume").exists():
        shutil.rmtree(resume, ignore_errors=True)
        os.replace(work / ".resume", resume)
    if target.exists():  # in a store, or in a folder that somebody named by hand
        in_store = target.parent.name == manifest.get("step")
        root, key = (target.parent.parent, manifest["key"]) if in_store else (target.parent, target.name)
        Store(root).set_aside(key, "built again on request")
    os.replace(work, target)
    fsync(target.parent)
    shutil.rmtree(resume, ignore_errors=True)
    return Artifact(target, manifest)


def _content_digest(path: Path, digest: str) -> str:
    if path.name != "adapter_config.json":
        return digest
    config = json.loads(path.read_text())
    config.pop("base_model_name_or_path", None)
    return digest_text(json.dumps(config, sort_keys=True))
