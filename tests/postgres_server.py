"""A real PostgreSQL on loopback for tests: a cluster of its own in a temporary folder, and an empty database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any


def missing() -> str:
    """Why no PostgreSQL can be started here; empty where one can."""
    try:
        import psycopg  # noqa: F401 - the driver
    except ImportError:
        return "psycopg is not installed: pip install 'prefline[postgres]'"
    if programs() is None:
        return "PostgreSQL's programs are not installed: apt-get install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return ""


def programs() -> Path | None:
    """The folder of initdb and postgres; the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    plain = shutil.which("initdb")
    return found[-1].parent if found else Path(plain).parent if plain else None


def _user() -> str | None:
    names = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@dataclass
class Postgres:
    """A running cluster."""

    port: int
    user: str
    _numbers: Iterator[int] = field(default_factory=count)

    def database(self) -> str:
        """The address of a new database, as SQLAlchemy takes it."""
        import psycopg

        name = f"t{next(self._numbers)}"
        with psycopg.connect(f"postgresql://{self.user}@127.0.0.1:{self.port}/postgres", autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/{name}"


@contextmanager
def running() -> Iterator[Postgres]:
    """A cluster for the length of the block."""
    tools = programs()
    assert tools is not None
    folder = Path(tempfile.mkdtemp(prefix="prefline-pg-", dir="/tmp"))
    own: dict[str, Any] = {}
    user = pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        name = _user()
        assert name is not None
        user, own = name, {"user": name}
        shutil.chown(folder, name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    options: dict[str, Any] = {**own, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    argv = [str(tools / "initdb"), "-D", str(data), "-U", user, "--auth=trust", "-E", "UTF8", "--no-sync", "--locale=C"]
    subprocess.run(argv, check=True, **options)
    argv = [
        str(tools / "postgres"),
        "-D",
        str(data),
        "-p",
        str(port),
        "-k",
        str(folder),
        "-h",
        "127.0.0.1",
        "-c",
        "fsync=off",
    ]
    server = subprocess.Popen(argv, **{**options, "stderr": subprocess.DEVNULL})
    try:
        deadline = time.monotonic() + 30
        while not _answers(port, user):
            assert server.poll() is None and time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.05)
        yield Postgres(port, user)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int, user: str) -> bool:
    import psycopg

    try:
        psycopg.connect(f"postgresql://{user}@127.0.0.1:{port}/postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
