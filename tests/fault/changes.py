"""Changes below folders as they happen, from Linux's inotify: so that a kill can meet a save, a rename or the publishing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE, IS_DIR = 0x2, 0x40, 0x80, 0x100, 0x200, 0x40000000
MASK = MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE
HEAD = struct.Struct("iIII")
"""Watch, mask, cookie, length of the name; from inotify(7)."""


class Changes:
    """Every change (writes, renames, new and deleted files) below some folders; new folders are watched as they appear."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watched: dict[int, Path] = {}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            self._watch(folder)

    def _watch(self, folder: Path) -> None:
        number = self._libc.inotify_add_watch(self._handle, os.fsencode(folder), MASK)
        if number < 0:
            return  # it is gone already
        self._watched[number] = folder
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    self._watch(Path(entry.path))

    def read(self, timeout: float) -> list[Path]:
        """Paths that changed since the last call, in order; waits up to ``timeout`` seconds for the first."""
        if not select.select([self._handle], [], [], timeout)[0]:
            return []
        data, found = os.read(self._handle, 1 << 16), []
        while data:
            number, mask, _, length = HEAD.unpack_from(data)
            name = data[HEAD.size : HEAD.size + length].rstrip(b"\0")
            data = data[HEAD.size + length :]
            folder = self._watched.get(number)
            if folder is None or not name:
                continue
            path = folder / os.fsdecode(name)
            found.append(path)
            if mask & IS_DIR and mask & (CREATE | MOVED_TO):
                self._watch(path)
        return found

    def close(self) -> None:
        os.close(self._handle)


@contextmanager
def recorded(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """The changes of the block, in order."""
    changes, found, done = Changes(folders), list[Path](), threading.Event()

    def follow() -> None:
        while not done.is_set():
            found.extend(changes.read(0.02))
        found.extend(changes.read(0))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        changes.close()
