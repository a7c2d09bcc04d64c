"""An artifact's bytes on their way: from this machine to a URL, from there into a folder, and that folder into the cache."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib.artifact import MANIFEST, Artifact, other_bytes
from steps.lib.digests import digest_files
from steps.lib.durable import fsync
from steps.lib.objects import UrlPlace
from steps.lib.store import LOG


def files_of(artifact: Artifact) -> str:
    """Folder of an artifact's files at the URL."""
    return f"{artifact.key}/{artifact.seal[:12]}"


def misfit(artifact: Artifact, sizes: dict[str, int]) -> str | None:
    """A file that is not there, or has another size; None when all fit."""
    for name, facts in artifact.manifest["files"].items():
        size = sizes.get(f"{files_of(artifact)}/{name}")
        if size is None:
            return f"no file {name}, which the manifest lists"
        if size != int(facts["size"]):
            return f"{name} of {size} bytes, where the manifest says {facts['size']}"
    return None


def upload(remote: UrlPlace, artifact: Artifact) -> list[str]:
    """Put all files that are not there yet. Returns what else lies at the key: leftovers of uploads never finished."""
    files, at = artifact.manifest["files"], files_of(artifact)
    there = remote.below(artifact.key)
    LOG.info("keeping %s at %s: %d files, %.1f MB", artifact.key, remote.url, len(files), artifact.size / 1e6)

    async def put(name: str) -> None:
        target, digest = f"{at}/{name}", str(files[name]["sha256"])
        same_size = there.get(target) == int(files[name]["size"])
        if not (same_size and (await remote.notes(target)).get("sha256") == digest):
            await remote.upload(artifact.path / name, target, sha256=digest)

    remote.together([partial(put, name) for name in files])
    return [name for name in there if not name.startswith(at + "/") and name != f"{artifact.key}/{MANIFEST}"]


def download(remote: UrlPlace, artifact: Artifact, work: Path) -> str | None:
    """All files into a folder; what is wrong with them, or None. One with wrong bytes is fetched a second time."""
    files = artifact.manifest["files"]
    LOG.info("fetching %s from %s: %d files, %.1f MB", artifact.key, remote.url, len(files), artifact.size / 1e6)
    for folder in {(work / name).parent for name in files}:
        folder.mkdir(parents=True, exist_ok=True)
    wrong = list(files)
    for _ in range(2):
        jobs = [partial(remote.download, f"{files_of(artifact)}/{name}", work / name) for name in wrong]
        for name, came in zip(wrong, remote.together(jobs), strict=True):
            if not came:
                return f"no file {name}, which the manifest lists"
        digests = dict(zip(wrong, digest_files([work / name for name in wrong]), strict=True))
        wrong = [name for name in wrong if digests[name] != files[name]["sha256"]]
        if not wrong:
            return None
    size = (work / wrong[0]).stat().st_size
    if size != int(files[wrong[0]]["size"]):
        return f"{wrong[0]} of {size} bytes, where the manifest says {files[wrong[0]]['size']}"
    return other_bytes(wrong[0], digests[wrong[0]], str(files[wrong[0]]["sha256"]))


def settle(work: Path, manifest: dict[str, Any]) -> None:
    """Manifest last, and all on the disk."""
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in (*work.rglob("*"), work):
        fsync(path)


def rename(work: Path, folder: Path) -> None:
    """Let a folder appear in one step.

    Raises:
        FileExistsError: another process was quicker.
    """
    try:
        os.rename(work, folder)
    except OSError as error:
        if folder.is_dir():  # POSIX lets a system say EEXIST or ENOTEMPTY
            raise FileExistsError(*error.args) from error
        raise
    fsync(folder.parent)
