"""A real Prefect server on loopback that a test can kill, and what it knows, over its REST API."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Api:
    """The API at ``url`` (it ends in /api)."""

    url: str

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """The answer. Where SQLite is busy, the server says 503 or nothing for a while: it is asked again, as Prefect's own clients
        do (PREFECT_CLIENT_MAX_RETRIES)."""
        for attempt in range(6):
            try:
                answer = httpx.request(method, f"{self.url}{path}", json=body and dict(body), timeout=60)
            except httpx.ReadTimeout:
                if attempt == 5:
                    raise
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(2**attempt)
        return answer

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = self.ask("POST", path, body)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def flow_runs(self) -> list[Any]:
        """The newest first."""
        return list(self.post("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 20}))

    def flow_run(self, run: str) -> Any:
        return self.get(f"/flow_runs/{run}")

    def task_runs(self, run: str) -> dict[str, Any]:
        """Name up to the last dash (the step) -> task run. States travel as events: the server can lag."""
        found = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {one["name"].rpartition("-")[0]: one for one in found}

    def artifacts(self, run: str) -> dict[str, Any]:
        """Key -> artifact."""
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {one["key"]: one for one in found}

    def log(self, run: str) -> list[str]:
        """The run's log lines, in order."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.post("/logs/filter", body)]

    def wait(self, run: str, *names: str, seconds: float = 120) -> Any:
        """The flow run once its state has one of the names."""
        return until(
            lambda: (found := self.flow_run(run))["state_name"] in names and found, seconds, f"{run} in {names}"
        )


@dataclass
class PrefectServer:
    """``prefect server start`` in a group of its own, with a database in ``home``."""

    home: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def api(self) -> Api:
        return Api(f"http://127.0.0.1:{self.port}/api")

    @property
    def environment(self) -> dict[str, str]:
        """For whoever talks to it."""
        return {**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api.url}

    def start(self) -> None:
        """A new database takes 16 to 22 s, one that is there 5 to 11."""
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        until(self.healthy, 120, "the server")

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api.url}/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


def until(ask: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first truth that ``ask`` gives."""
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
    return found


def processes() -> dict[int, str]:
    """Process -> command line, of everything that runs and is no zombie."""
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if words:  # a zombie has none
            found[int(path.name)] = words
    return found


def steps_of(store: Path) -> list[int]:
    """Processes that work on an artifact of the store."""
    return [pid for pid, words in processes().items() if f"--out {store}/" in words]


def group(leader: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for pid in processes():
        try:
            if os.getpgid(pid) == leader:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found
