"""Where the small files of a store lie (locks, run records, pins): a folder here, an object store in ``remote``.

A name is relative, with ``/`` between its parts. Files are tiny and are read and written whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)
"""How file systems say that they make no hard links."""


class Place(Protocol):
    """Small files by name. Whatever keeps a method from doing its work is raised as ``OSError``."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None when there is no such file."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file. Readers see the old bytes or the new ones, never half."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that is not there yet. Of many callers exactly one gets True; the file appears whole."""
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted base names of the files directly in a folder; none when there is no such folder."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file; a missing one is fine."""
        ...


@dataclass(frozen=True)
class FolderPlace:
    """A place in a folder of this machine, or of a share that several machines mount.

    Nothing is flushed to the disk: a heartbeat must not wait behind a checkpoint that is being written.
    Names that begin with a dot are kept for work in progress.
    """

    root: Path

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None when there is no such file."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file by a rename."""
        with self._temporary(name, data) as temporary:
            os.replace(temporary, self.root / name)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file by a hard link to a finished one. True for exactly one of many callers.

        Where links are not possible, the name is taken first and then written: a reader may see an empty or a half file.
        """
        with self._temporary(name, data) as temporary:
            try:
                os.link(temporary, self.root / name)
            except FileExistsError:
                return temporary.stat().st_nlink > 1  # NFS sent the request twice, because the first answer was lost
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _create_in_place(self.root / name, data)
        return True

    def names(self, folder: str) -> list[str]:
        """Sorted base names of the files directly in a folder; none when there is no such folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, name: str) -> None:
        """Delete a file, and what writers of it that were killed left behind; a missing one is fine."""
        target = self.root / name
        try:
            left = [one for one in os.listdir(target.parent) if one.startswith(f".{target.name}.")]
        except (FileNotFoundError, NotADirectoryError):
            return
        for one in (target.name, *left):
            target.with_name(one).unlink(missing_ok=True)

    @contextmanager
    def _temporary(self, name: str, data: bytes) -> Iterator[Path]:
        """A file with the data, beside the one it will become; gone after the block."""
        target = self.root / name
        path = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(data)
            yield path
        finally:
            with suppress(OSError):
                path.unlink()


def _create_in_place(path: Path, data: bytes) -> bool:
    """Take a name with O_EXCL, then write. A file that could not be written is taken away again."""
    try:
        with path.open("xb", buffering=0) as file:
            try:
                file.write(data)
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True
