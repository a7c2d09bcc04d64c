"""``prefline up`` as a user starts it, for tests: a real server, real workers, real runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from minimal import ROOT, Line
from prefect_server import Api, processes


@dataclass
class Up:
    """A running ``prefline up``."""

    process: subprocess.Popen[str]
    home: Path
    api: Api
    line: Line

    def deployment(self, name: str) -> Any:
        return self.api.get(f"/deployments/name/{name}")

    def create(self, name: str, **words: Any) -> httpx.Response:
        """Start a run as the form does: every field is sent. Asked twice for want of an answer, it is one run."""
        one = self.deployment(name)
        body = {"parameters": {**one["parameters"], **words}, "idempotency_key": os.urandom(8).hex()}
        return self.api.ask("POST", f"/deployments/{one['id']}/create_flow_run", body)

    def run(self, name: str, *states: str, seconds: float = 120, **words: Any) -> Any:
        """The run's end."""
        made = self.create(name, **words)
        assert made.is_success, made.text
        return self.api.wait(made.json()["id"], *states, seconds=seconds)


def started(line: Line, home: Path, *words: str) -> Up:
    """Start it, and wait for its last line."""
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "flows.cli",
        "up",
        "--port",
        str(port),
        "--home",
        str(home),
        "--recipe",
        str(line.recipe),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    process = subprocess.Popen(
        [*argv, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    said = []
    for text in process.stdout:
        said.append(text)
        if "prefline is up" in text:
            return Up(process, home, Api(f"http://127.0.0.1:{port}/api"), line)
    raise AssertionError("".join(said))


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def stopped(up: Up) -> None:
    """SIGTERM, and nothing of it is left."""
    up.process.send_signal(signal.SIGTERM)
    said = up.process.communicate(timeout=120)[0]
    assert up.process.returncode == 0, said
    left = [words for words in processes().values() if str(up.home) in words or f"--port {up.api.url[17:-4]}" in words]
    assert not left
