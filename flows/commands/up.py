"""``prefline up``: server, workers and deployments on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any

from cyclopts import Parameter

from flows.commands.deploy import Active, Slots
from flows.commands.words import Overrides, Profile, Recipe
from steps.lib.errors import PreflineError

POOLS = ("prefline", "prefline-desk")
START = 180.0
"""Seconds that a first start of the server may take: it migrates its database."""
CANCEL = 60.0
"""Seconds that running trainings have for their last checkpoint."""
STOP = 20.0
"""Seconds that a process has to end after SIGTERM."""

Port = Annotated[int, Parameter(help="Port of the server; its pages and its API.")]
Host = Annotated[str, Parameter(help="Address that the server listens at; 127.0.0.1 is this machine alone.")]
Home = Annotated[Path, Parameter(help="Folder of the server's database and logs; PREFECT_HOME, else .prefect.")]


def up(
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    port: Port = 4200,
    host: Host = "127.0.0.1",
    home: Home | None = None,
    slots: Slots = 1,
    active: Active = False,
) -> None:
    """Start everything that the Prefect pages need on this machine: server, workers and deployments.

    Ctrl-C or SIGTERM stops it: running trainings are cancelled, which saves their checkpoints, and a run that is started again
    goes on from there.
    """
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load

    load(AlignConfig, layers_of(profile, recipe or []), overrides)  # every problem, before anything starts
    folder = (home or Path(os.environ.get("PREFECT_HOME") or ".prefect")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    house = House(f"http://{host}:{port}", folder)
    if house.healthy():
        raise PreflineError(
            f"server is not started: got one that answers at {house.address} already, because another prefline up or Prefect runs "
            "there; stop it, or give another --port"
        )
    with _stops() as stop, house:
        house.start("server", "prefect", "server", "start", "--host", host, "--port", str(port))
        house.wait(stop)
        if stop:
            return
        words = ["--profile", profile, "--slots", str(slots), *(["--active"] if active else [])]
        words += [word for path in recipe or [] for word in ("--recipe", str(path))]
        house.call("flows.cli", "deploy", *words, *overrides)
        house.open()
        for pool in POOLS:
            house.start(pool, "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"up-{pool}")
        print(f"\nprefline is up: {house.address}  (logs: {folder / 'logs'}; stop with Ctrl-C)", flush=True)
        while not stop:
            house.check()
            time.sleep(0.5)
        print("stopping: running work saves its checkpoints", flush=True)


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Signals that ask for the end, in the order in which they came."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclass
class House:
    """The processes, each in a group of its own, so that Ctrl-C reaches this one alone."""

    address: str
    home: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For the server, the workers and their runs."""
        from flows.commands.run import SETTINGS

        own = {
            **SETTINGS,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": f"{self.address}/api",
            "PREFECT_UI_API_URL": "/api",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PYTHONUNBUFFERED": "1",
        }
        return {
            **own,
            **os.environ,
            **{name: own[name] for name in ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_UI_API_URL")},
        }

    def __enter__(self) -> House:
        (self.home / "logs").mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what runs, then end workers, then the server."""
        if any(pool in self.running for pool in POOLS) and self.healthy():
            self._cancel()
        for name in reversed(self.running):
            _end(self.running[name])

    def start(self, name: str, module: str, *words: str) -> None:
        """Start ``python -m module``, its lines into a log."""
        self.running[name] = self._process(module, words, (self.home / "logs" / f"{name}.log").open("ab"))

    def call(self, module: str, *words: str) -> None:
        """Run ``python -m module`` to its end; its lines are shown.

        Raises:
            PreflineError: it failed.
        """
        if code := self._process(module, words, None).wait():
            raise PreflineError(
                f"prefline {words[0]} failed: got exit code {code}, because of the lines above; mend it"
            )

    def _process(self, module: str, words: tuple[str, ...], log: IO[bytes] | None) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", module, *words]
        process = subprocess.Popen(
            argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        if log:
            log.close()
        return process

    def healthy(self) -> bool:
        """Whether a server answers."""
        import httpx

        try:
            return httpx.get(f"{self.address}/api/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def wait(self, stop: list[int]) -> None:
        """Until the server answers, or a signal comes.

        Raises:
            PreflineError: it ended, or took too long.
        """
        deadline = time.monotonic() + START
        while not stop and not self.healthy():
            self.check()
            if time.monotonic() > deadline:
                raise PreflineError(
                    f"server does not answer: got nothing at {self.address} in {START:.0f} s, because it hangs or the machine is "
                    f"busy; look into {self.home / 'logs' / 'server.log'}"
                )
            time.sleep(0.3)

    def check(self) -> None:
        """
        Raises:
            PreflineError: one of the processes ended.
        """
        for name, process in self.running.items():
            if (code := process.poll()) is not None:
                log = self.home / "logs" / f"{name}.log"
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise PreflineError(
                    f"{name} ended: got exit code {code}, because of {last[0].strip() if last else 'no word in its log'}; look "
                    f"into {log}; all others are stopped"
                )

    def open(self) -> None:
        """Let the pools give out runs, which the last stop ended."""
        import httpx

        with httpx.Client(base_url=f"{self.address}/api", timeout=30) as api:
            _pause(api, False)

    def _cancel(self) -> None:
        """Pause the pools and cancel their runs: each step saves its checkpoint, and is there to be gone on with. They stay paused
        until the next start, so that no worker takes a run while it is stopped."""
        import httpx

        with httpx.Client(base_url=f"{self.address}/api", timeout=30) as api:
            try:
                _pause(api, True)
                for run in _going(api):
                    state = {"type": "CANCELLING", "message": "prefline up was stopped; run it again to go on"}
                    api.post(f"/flow_runs/{run['id']}/set_state", json={"state": state, "force": False})
                deadline = time.monotonic() + CANCEL
                while _going(api) and time.monotonic() < deadline:
                    time.sleep(0.5)
            except httpx.HTTPError as error:
                print(f"runs could not be cancelled: {error}", file=sys.stderr)


def _pause(api: Any, paused: bool) -> None:
    """Pause the pools, or let them go on: a paused one gives its workers no run."""
    for pool in POOLS:
        api.patch(f"/work_pools/{pool}", json={"is_paused": paused}).raise_for_status()


def _going(api: Any) -> list[dict[str, Any]]:
    """Flow runs of the pools whose process runs."""
    wanted = {
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}},
        "work_pools": {"name": {"any_": list(POOLS)}},
    }
    return list(api.post("/flow_runs/filter", json=wanted).raise_for_status().json())


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process, and SIGKILL to what is left of its group after a while."""
    if process.poll() is None:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
