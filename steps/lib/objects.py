"""An object store (s3 or gs) through fsspec: small files for everyone to share (``UrlPlace``), and large ones up and down.

Trusted: an object is put whole or not at all; a read after a write sees it; a conditional create has one winner. Not trusted: a
rename (it is a copy and a delete), a listing that was kept, a look before a write. fsspec's loop runs in a thread of its own:
a process that used it must not fork and go on using it (a new process, as each step is one, is fine).

Source: S3 conditional writes, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html; for gs
ifGenerationMatch=0, https://cloud.google.com/storage/docs/request-preconditions (gs is the same code, and not tested).
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from steps.lib.errors import ConfigError

T = TypeVar("T")

PACKAGES = {"s3": ("s3fs", "pip install 'prefline[s3]'"), "gs": ("gcsfs", "pip install gcsfs")}
"""Protocols whose stores have a conditional create -> package, and how it is installed."""
CHUNK = 16 << 20
"""Bytes of a piece of a large file; some pieces of some files are in memory at a time."""
PIECES = 4
"""Pieces of one file on their way at once."""
FILES = 4
"""Files on their way at once."""
PATIENCE = 10.0
"""Seconds for one small file. Shorter than the silence after which a lock is taken over: its holder must notice in time."""
TRIES = 3
"""Times that a file is sent or fetched before it counts as failed; the package's own tries come on top."""
MARKER = ".prefline"
"""File that proves that the server refuses to create what is there."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
TAKEN = ("PreconditionFailed", "412")
MET = ("ConditionalRequestConflict", "OperationAborted", "409")
"""What S3 answers when two creates meet: send it again."""


class Trouble(OSError):
    """What keeps an object store from doing its work, as a message for a person."""

    def __init__(self, message: str, number: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = number


@dataclass(frozen=True)
class UrlPlace:
    """A place on an object store. What keeps a method from doing its work is raised as ``Trouble``."""

    fs: Any
    """fsspec's file system; its listings are not cached."""
    protocol: str
    root: str
    """Bucket and prefix."""

    @property
    def url(self) -> str:
        """The place's URL."""
        return f"{self.protocol}://{self.root}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None when there is no such file."""
        with self._speaking():
            try:
                return bytes(self.fs.cat_file(self._path(name), timeout=PATIENCE, **self._whole))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file."""
        with self._speaking():
            self.fs.pipe_file(self._path(name), data, timeout=PATIENCE)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that is not there yet, by a conditional put. Of many callers exactly one gets True.

        An answer may get lost; the same request, sent again, is refused then. A random note with the file says whose it is.

        Raises:
            ConfigError: the server overwrites where it should refuse.
        """
        if not self.refuses:
            raise ConfigError(
                f"store {self.url} cannot be used: got a second {MARKER} in place of a refusal, because its server has no "
                "conditional create (If-None-Match: *), and two machines would build one step over each other; use a "
                "server that has it"
            )
        with self._speaking():
            return self._create(name, data)

    def names(self, folder: str) -> list[str]:
        """Sorted base names of the files directly in a folder; none when there is no such folder."""
        return [name for name, kind in self.entries(folder, timeout=PATIENCE) if kind == "file"]

    def delete(self, name: str) -> None:
        """Delete a file; a missing one is fine."""
        with self._speaking(), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name), timeout=PATIENCE)

    @cached_property
    def refuses(self) -> bool:
        """Whether the server refuses to create a file a second time: tried once. It also shows early whether we may write."""
        with self._speaking():
            for _ in range(2):
                try:
                    if not self._create(
                        MARKER, b"A store of prefline. Its server refuses to create this file again.\n"
                    ):
                        return True
                except OSError as error:
                    if _code(error) not in ("NotImplemented", "501"):
                        raise
                    return False
        return False

    def entries(self, folder: str, timeout: float | None = None) -> list[tuple[str, str]]:
        """Sorted (base name, "file" or "directory") of what is directly in a folder."""
        at = self._path(folder).rstrip("/") + "/"
        with self._speaking():
            try:
                found = self.fs.ls(at[:-1], detail=True, refresh=True, timeout=timeout)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return []
        paths = [(str(one["name"]).rstrip("/"), str(one["type"])) for one in found]
        return sorted((path[len(at) :], kind) for path, kind in paths if path.startswith(at))

    def below(self, folder: str) -> dict[str, int]:
        """Name -> bytes of every file below a folder."""
        with self._speaking():
            found = self.fs.find(self._path(folder), detail=True)
        at, cut = self._path(folder) + "/", len(self.root) + 1
        return {path[cut:]: int(facts["size"]) for path, facts in found.items() if path.startswith(at)}

    def together(self, jobs: Sequence[Callable[[], Awaitable[T]]], most: int = FILES) -> list[T]:
        """Run coroutines of this place, ``most`` at a time; the first failure ends all. A signal is heard meanwhile."""
        from fsspec.asyn import sync

        async def every() -> list[T]:
            gate = asyncio.Semaphore(most)

            async def one(job: Callable[[], Awaitable[T]]) -> T:
                async with gate:
                    return await job()

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(job)) for job in jobs]
            return [task.result() for task in tasks]

        with self._speaking():
            try:
                return list(sync(self.fs.loop, every))
            except ExceptionGroup as group:
                raise group.exceptions[0] from group.exceptions[0].__cause__

    async def get(self, name: str) -> bytes | None:
        """``read`` for many files ``together``."""
        try:
            return bytes(await self.fs._cat_file(self._path(name), **self._whole))
        except FileNotFoundError:
            return None

    async def drop(self, name: str) -> None:
        """``delete`` for many files ``together``."""
        with suppress(FileNotFoundError):
            await self.fs._rm_file(self._path(name))

    async def move(self, name: str, target: str) -> None:
        """Copy a file within the store, and delete it; one that is gone is another's work."""
        with suppress(FileNotFoundError):
            await self.fs._cp_file(self._path(name), self._path(target))
            await self.fs._rm_file(self._path(name))

    async def notes(self, name: str) -> dict[str, str]:
        """The notes that were put with a file; none when there is no such file."""
        try:
            if self.protocol == "s3":
                return dict(await self.fs._metadata(self._path(name)))
            return dict((await self.fs._info(self._path(name))).get("metadata") or {})
        except FileNotFoundError:
            return {}

    async def download(self, name: str, path: Path) -> bool:
        """Write a file here, piece by piece. False: there is no such file."""
        options = {"chunksize": CHUNK, "max_concurrency": PIECES} if self.protocol == "s3" else {}
        try:
            await _patiently(partial(self.fs._get_file, self._path(name), str(path), **options))
        except FileNotFoundError:
            return False
        return True

    async def upload(self, path: Path, name: str, **notes: str) -> None:
        """Put a file of this machine there, piece by piece, with notes."""
        pieces = -(-path.stat().st_size // 9000)  # S3 takes 10,000; gs wants multiples of 256 KiB
        options: dict[str, Any] = {"chunksize": max(CHUNK, -(-pieces // (1 << 18)) << 18), **self._noted(notes)}
        if self.protocol == "s3":
            options["max_concurrency"] = PIECES
        await _patiently(partial(self.fs._put_file, str(path), self._path(name), **options))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @property
    def _whole(self) -> dict[str, int]:
        """The argument that reads a file by one request, without a look at its size before."""
        return {"max_concurrency" if self.protocol == "s3" else "concurrency": 1}

    def _noted(self, notes: dict[str, str]) -> dict[str, Any]:
        return {"Metadata" if self.protocol == "s3" else "metadata": notes}

    def _create(self, name: str, data: bytes) -> bool:
        token = os.urandom(8).hex()
        for attempt in range(8):
            try:
                self.fs.pipe_file(
                    self._path(name), data, mode="create", timeout=PATIENCE, **self._noted({"token": token})
                )
                return True
            except OSError as error:
                if isinstance(error, FileExistsError) or _code(error) in TAKEN:
                    return self.together([partial(self.notes, name)])[0].get("token") == token
                if _code(error) not in MET:
                    raise
                met = error
            time.sleep(0.05 * 2**attempt)
        raise met

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except Trouble:
            raise
        except Exception as error:  # botocore, aiohttp and google have trees of their own
            raise _trouble(self.url, error) from error


def open_place(protocol: str, root: str, endpoint: str | None) -> UrlPlace:
    """A place on an object store; nothing is asked of its server yet.

    Raises:
        ConfigError: the protocol's package is not installed.
    """
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol == "s3":  # the endpoint is named, so that fsspec makes another instance for another one
        options |= {"endpoint_url": endpoint, "default_block_size": CHUNK, "max_concurrency": PIECES}
        options["config_kwargs"] = {
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"mode": "standard", "max_attempts": 3},
            "max_pool_connections": FILES * PIECES + 4,
        }
    try:
        fs = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        package, install = PACKAGES[protocol]
        raise ConfigError(
            f"store {protocol}://{root} needs {package}: got {error}, because it is an optional package; install it with "
            f"`{install}`"
        ) from None
    if protocol == "s3":
        fs.retries = 3
    return UrlPlace(fs, protocol, root)


async def _patiently(send: Callable[[], Awaitable[Any]]) -> None:
    """Move a file; again after a moment when the connection broke in the middle of it."""
    for attempt in range(TRIES):
        try:
            await send()
            return
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            if attempt == TRIES - 1 or getattr(error, "errno", None) in NO_ROOM:
                raise
            await asyncio.sleep(0.5 * 4**attempt)


def _code(error: BaseException) -> str:
    """S3's word for what went wrong, or ""."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _trouble(url: str, error: Exception) -> Trouble:
    """What the package raised, as a message that says what to do. The number is what waiting processes judge by."""
    kind, code, text = type(error).__name__, _code(error), str(error)
    got = f"{code or kind} ({text:.200})"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Trouble(
            f"a file of {url} cannot be written here: got {got}, because the disk is full; free some space",
            errno.ENOSPC,
        )
    if isinstance(error, FileNotFoundError):
        return Trouble(
            f"store {url} is not there: got {got}, because there is no such bucket; make the bucket, or correct the URL "
            "(store=URL)",
            errno.ENOENT,
        )
    if "Credential" in kind or "Profile" in kind or "Token" in kind:
        return Trouble(
            f"store {url} cannot be opened: got {got}, because no credentials are set; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (for gs: GOOGLE_APPLICATION_CREDENTIALS)",
            errno.EACCES,
        )
    if isinstance(error, PermissionError) or text.startswith("Forbidden"):
        return Trouble(
            f"store {url} refuses: got {got}, because these credentials may not do it; allow them to list the bucket and "
            "to read, write and delete objects below the prefix, or name another store (store=URL)",
            errno.EACCES,
        )
    return Trouble(
        f"store {url} does not answer: got {got}, because the server or the network fails, or the endpoint is wrong; check "
        "AWS_ENDPOINT_URL and the network, and run the same command again (what is finished lies in the cache, and is "
        "uploaded then)"
    )
