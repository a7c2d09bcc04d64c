"""Every test: offline but for loopback, in the root of the repository, away from the person's own settings.

The environment is set here at import, before any test module can import prefect, torch or wandb.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from s3_server import Server

    from steps.lib.remote import RemoteStore

ROOT = Path(__file__).parents[1]
HOME = Path(tempfile.mkdtemp(prefix="prefline-tests-"))
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")

os.environ.update(
    {
        "PREFECT_API_URL": "",  # beats a developer's .env: tests start their own server
        "PREFECT_HOME": str(HOME / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "WANDB_MODE": "disabled",
        "NETRC": str(HOME / "netrc"),
        "HF_HOME": str(HOME / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(HOME / "cache"),  # the memo of digests
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
)
for name in [name for name in os.environ if name.endswith("_API_KEY")]:
    del os.environ[name]
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what it puts into the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Delete the session's home."""
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a GPU says so, where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip(
                "needs a GPU: torch sees no CUDA device; run make test-gpu on a machine that has one (docs/gpu.md)"
            )


class NetworkUsed(RuntimeError):
    """A test reached for the network."""


def _is_here(host: object) -> bool:
    """Whether a host, as sockets and resolvers take it, is this machine."""
    text = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    return text.startswith(LOOPBACK) or text == socket.gethostname()


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Any:
    """Refuse connections and look-ups that leave this machine. Subprocesses are not held back."""
    patch = pytest.MonkeyPatch()
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: object) -> None:
        if not _is_here(host):
            raise NetworkUsed(
                f"a test connects to {host!r}: got a host that is not loopback, because tests run offline; "
                "start a small real server on 127.0.0.1 (tests/openai_server.py)"
            )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        check(host)
        return getaddrinfo(host, *arguments, **named)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the configuration are relative to the root of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data that nobody of this project wrote (``real/``, ``eval/``); it is not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "the folder ../shared/data is not there: this test reads real data that the repository does not hold"
        )
    return folder


@pytest.fixture(scope="session")
def minimal_line(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole minimal line, built once for all processes of the tests, in one of them. Work on a ``copy`` of it."""
    from fault.micro import in_this_process, micro_line, walk
    from minimal import Line

    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "minimal"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".built").exists():
            folder.mkdir()
            with in_this_process():
                walk(micro_line(folder))
            folder.with_suffix(".built").touch()
    return Line(folder)


@pytest.fixture(scope="session")
def s3_running() -> Iterator[Server]:
    from s3_server import serve

    with serve() as server:
        yield server


@pytest.fixture
def s3(s3_running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """An S3 server without faults, and the environment that leads to it."""
    from s3_server import environment

    from steps.lib import digests

    monkeypatch.setattr(digests, "YOUNG", 10_000_000)  # nanoseconds; what is written here is not changed again
    s3_running.decide = lambda asked: None
    s3_running.log.clear()
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in environment(s3_running, tmp_path).items():
        monkeypatch.setenv(name, value)
    yield s3_running
    s3_running.decide = lambda asked: None


@pytest.fixture
def url(s3: Server) -> str:
    """The URL of an empty store."""
    return f"s3://{s3.bucket()}/team/line"


@pytest.fixture
def one(url: str, tmp_path: Path) -> RemoteStore:
    """The store as one machine sees it."""
    from s3_server import machine

    return machine(url, tmp_path / "one")


@pytest.fixture
def two(url: str, tmp_path: Path) -> RemoteStore:
    """The same store, as another machine sees it."""
    from s3_server import machine

    return machine(url, tmp_path / "two")
