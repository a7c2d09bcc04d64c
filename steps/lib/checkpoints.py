"""Checkpoints that are whole or not there: marked with their files' digests after the Trainer has written them.

A crash during a save leaves a folder without a mark; resuming takes the newest folder whose mark holds, and sets others aside.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from steps.lib.store import digest_file

MARK = "complete.json"


def mark(folder: Path) -> None:
    """Write the mark of a finished checkpoint: size and digest of every file."""
    files = {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MARK, MARK + ".tmp")
    }
    temporary = folder / (MARK + ".tmp")
    temporary.write_text(json.dumps(files, indent=1))
    os.replace(temporary, folder / MARK)


def valid(folder: Path) -> bool:
    """Whether the mark is there and every file has the digest it names."""
    try:
        files = json.loads((folder / MARK).read_text())
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(files, dict):
        return False
    return all((folder / name).is_file() and digest_file(folder / name) == digest for name, digest in files.items())


def newest_valid(folder: Path) -> Path | None:
    """The newest whole ``checkpoint-<update>`` in a folder; damaged newer ones are renamed to ``damaged-<name>``."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        if valid(path):
            return path
        os.replace(path, path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
    return None
