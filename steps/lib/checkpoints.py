"""Checkpoints that are whole or not there.

The Trainer writes into ``checkpoints.partial/``. What it has finished gets a mark with the digest of every file; when all of it
is on the disk (fsync), one rename moves it to ``checkpoints/``; and only then older ones are deleted. So

* a crash during a save leaves something in ``checkpoints.partial/``, which is no result and is deleted;
* a loss of power leaves no mark without the bytes that it speaks of;
* bytes that changed later show: such a checkpoint is set aside, and the one before it is taken.

The Trainer's own deleting (``save_total_limit``) stays off: it goes by time stamps, so after a clock was set back it deletes the
newest one, and it does so before that one is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.lib.durable import fsync, write

MARK = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")
KEEP = 2
"""Whole checkpoints that are kept: the newest, and one to fall back to."""


def written(resume: Path) -> Path:
    """The folder that the Trainer writes into."""
    return resume / "checkpoints.partial"


def kept(resume: Path) -> Path:
    """The folder of whole checkpoints, ``checkpoint-<update>`` each."""
    return resume / "checkpoints"


def keep(resume: Path, update: int) -> Path:
    """Take over what the Trainer has just written, and delete whole checkpoints that are not needed any more."""
    source, folder = written(resume) / f"checkpoint-{update}", kept(resume)
    folder.mkdir(exist_ok=True)
    mark(source)
    target = folder / source.name
    if target.exists():
        shutil.rmtree(target)
    os.replace(source, target)
    fsync(folder)
    for path in _by_update(folder)[KEEP:]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def mark(folder: Path) -> None:
    """Flush every file of a finished checkpoint to the disk, then write the mark that names their digests."""
    files = {path.relative_to(folder).as_posix(): _digest(path, flush=True) for path in _files(folder)}
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        fsync(path)
    draft = folder / (MARK + ".tmp")
    write(draft, json.dumps(files, indent=1))
    os.replace(draft, folder / MARK)
    fsync(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a marked checkpoint; None when its files are those of the mark, byte by byte."""
    try:
        marked = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"a {MARK} that cannot be read"
    found = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if not isinstance(marked, dict) or not marked:
        return f"a {MARK} without files"
    if differing := sorted(found ^ marked.keys()):
        return (
            f"no file {differing[0]}" if differing[0] in marked else f"a file {differing[0]} that {MARK} does not name"
        )
    for name, digest in marked.items():
        try:
            changed = _digest(folder / name) != digest
        except OSError as error:
            return f"{name} that cannot be read ({error.strerror})"
        if changed:
            return f"{name} with other bytes than were written"
    return None


def clear(resume: Path) -> None:
    """Delete what a save that did not come to its end left: it is no result, and may be what fills the disk."""
    for path in written(resume).glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def newest(resume: Path, log: logging.Logger) -> Path | None:
    """The newest whole checkpoint, or None. Leftovers of a crash are deleted; damaged ones are renamed to ``damaged-<name>``."""
    clear(resume)
    for path in _by_update(kept(resume)):
        if not (path / MARK).exists():
            log.info("%s was not finished when the run was stopped: deleted", path.name)
            shutil.rmtree(path)
        elif problem := damage(path):
            aside = path.with_name(f"damaged-{path.name}-{time.time_ns()}")
            os.replace(path, aside)
            log.warning(
                "%s is damaged: got %s, because the disk changed it or somebody did; it is set aside as %s, and training "
                "goes on from an earlier one",
                path.name,
                problem,
                aside.name,
            )
        else:
            return path
    return None


def marked(resume: Path) -> list[Path]:
    """Checkpoints that were finished, the newest first; whether their bytes still hold is not looked at."""
    return [path for path in _by_update(kept(resume)) if (path / MARK).exists()]


def update_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


class Journal:
    """Values kept one by one in a file, each with its checksum; reading ends before the first line that is torn or changed.

    It holds what can be computed again, so nothing is flushed to the disk: a killed process loses none of it.
    """

    def __init__(self, path: Path, head: Any) -> None:
        """Open the journal of ``head`` (plain JSON); one that was written for another head is begun afresh."""
        self._path = path
        lines = list(self._lines())
        if not lines or lines[0][0] != head:
            path.write_bytes(b"")
            self.append(head)
            lines = []
        elif lines[-1][1] < path.stat().st_size:
            os.truncate(path, lines[-1][1])
        self.values = [value for value, _ in lines[1:]]
        """What was on record when the journal was opened."""

    def append(self, value: Any) -> None:
        """Put a value (plain JSON) on record."""
        text = json.dumps(value, separators=(",", ":")).encode()
        with self._path.open("ab") as file:
            file.write(b"%08x %s\n" % (zlib.crc32(text), text))

    def _lines(self) -> Iterator[tuple[Any, int]]:
        """Whole lines from the start: the value, and the offset behind it."""
        if not self._path.exists():
            return
        end = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                return
            end += len(line)
            yield json.loads(text), end


def _by_update(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest first."""
    return sorted((path for path in folder.glob("*") if NAME.fullmatch(path.name)), key=update_of, reverse=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MARK, MARK + ".tmp")]


def _digest(path: Path, *, flush: bool = False) -> str:
    """sha256 of the bytes as they are now. Checkpoints come and go: they are not worth a place in the memo of digests."""
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
