"""A real server and a real worker: runs that are cancelled, killed, or lose their server lose nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault.micro import TASK_PROMPTS, teacher_answers, with_http_teacher
from minimal import ROOT, Line, line_recipe
from openai_server import Act, serve
from prefect_server import PrefectServer, group, processes, steps_of, until

from steps.lib.artifact import Artifact

pytestmark = [pytest.mark.flow, pytest.mark.server, pytest.mark.long]

UPDATES = 60
TRAINING = [f"sft.train.max_updates={UPDATES}", "sft.train.epochs=200", "sft.train.save_every=1000"]
"""Overrides: no checkpoint is due before the end, so that one in the middle was saved because of the stop."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    started = PrefectServer(tmp_path_factory.mktemp("prefect"))
    started.start()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def deployment(server: PrefectServer) -> Iterator[str]:
    """A deployment of the flow and a process worker that runs it."""
    flow = server.api.post("/flows/", {"name": "align"})
    server.api.post("/work_pools/", {"name": "here", "type": "process"})
    enter = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
    body = {"name": "test", "flow_id": flow["id"], "entrypoint": "flows/align.py:align", "work_pool_name": "here"}
    found = server.api.post("/deployments/", {**body, "pull_steps": [enter], "enforce_parameter_schema": False})
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "here", "--type", "process"]
    environment = {**server.environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with (server.home / "worker.log").open("ab") as log:
        worker = subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    yield str(found["id"])
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@dataclass
class Run:
    """A run of the deployment that trains."""

    server: PrefectServer
    line: Line
    id: str

    def training(self) -> tuple[int, int]:
        """(process of the flow, process of the step), once the step trains."""

        def both() -> Any:
            return [pid for pid in steps_of(self.line.folder / "store") if _parent(pid) in processes()]

        [step] = until(both, 180, "the step's process")
        return _parent(step), step

    def said(self, part: str, seconds: float = 180) -> None:
        until(lambda: any(part in text for text in self.server.api.log(self.id)), seconds, f"{part!r} in the run's log")


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    copied: Line = minimal_line.copy(tmp_path / "line")
    return copied


def start(server: PrefectServer, deployment: str, line: Line) -> Run:
    parameters = {"profile": "cpu-tiny", "overrides": TRAINING, "recipes": [str(line.recipe)], "until": "sft"}
    made = server.api.post(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
    return Run(server, line, made["id"])


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def partial(line: Line) -> Path:
    """The folder in which the training is made."""
    [found] = (line.folder / "store" / "sft").glob(".*.partial")
    return found


def finished(line: Line) -> Artifact:
    """The longer training's artifact."""
    found = map(Artifact.read, (line.folder / "store" / "sft").glob("[!.]*"))
    [artifact] = [one for one in found if one.manifest["metrics"]["updates"] == UPDATES]
    return artifact


def test_a_cancelled_run_saves_and_the_next_one_goes_on(server: PrefectServer, deployment: str, line: Line) -> None:
    """Cancelled through the API, as the button in the UI does it."""
    run = start(server, deployment, line)
    run.said("update 3/")
    flow, step = run.training()
    server.api.post(f"/flow_runs/{run.id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    server.api.wait(run.id, "Cancelled", seconds=60)
    until(lambda: not {flow, step} & processes().keys(), 30, "the end of both processes")
    assert not group(flow), "no process of the group is left"
    marks = list(partial(line).glob(".resume/checkpoints/checkpoint-*/complete.json"))
    assert marks and marks[0].parent.name != f"checkpoint-{UPDATES}"

    again = start(server, deployment, line)
    server.api.wait(again.id, "Completed", seconds=240)
    again.said("resuming after update", 20)
    until(lambda: server.api.task_runs(again.id)["sft"]["state_name"] == "Completed", 20, "states")
    states = {name: one["state_name"] for name, one in server.api.task_runs(again.id).items()}
    assert states["pretrain"] == "Cached" and finished(line).digest


def test_a_flow_whose_process_is_killed_is_crashed_and_can_be_started_again(
    server: PrefectServer, deployment: str, line: Line
) -> None:
    run = start(server, deployment, line)
    run.said("update 3/")
    flow, step = run.training()
    os.kill(flow, signal.SIGKILL)
    server.api.wait(run.id, "Crashed", seconds=60)
    until(lambda: step not in processes(), 90, "the step's end")  # it sees that its engine is gone, saves, and leaves
    assert list(partial(line).glob(".resume/checkpoints/checkpoint-*/complete.json"))

    argv = [sys.executable, "-m", "prefect", "flow-run", "retry", run.id]
    subprocess.run(argv, env=server.environment, check=True, capture_output=True, timeout=60)
    again = server.api.wait(run.id, "Completed", seconds=240)
    assert again["run_count"] == 2
    run.said("resuming after update", 20)
    assert finished(line).digest


def test_a_server_that_goes_away_takes_nothing_along(server: PrefectServer, tmp_path: Path) -> None:
    """The line goes on without it, and says what to do; the same command with the server back is all Cached."""
    line_recipe(tmp_path)
    line = Line(tmp_path)
    answer = teacher_answers(tmp_path)

    def slow(number: int, body: dict[str, Any]) -> Act:
        act: Act = answer(number, body)
        act.delay = 0.4
        return act

    argv = [sys.executable, "-m", "flows.cli", "run", "--until", "clean", "--recipe", str(line.recipe)]
    with serve(slow) as teacher:
        with_http_teacher(line, teacher.url)
        run = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=server.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        until(lambda: len(teacher.asked()) >= 4, 60, "four requests")
        server.kill()
        shown, said = run.communicate(timeout=180)
        said = " ".join(said.split())
        assert run.returncode == 1, said
        assert f"Prefect's server ({server.api.url}) does not answer: got " in said and "because it was stopped" in said
        assert "start the server again" in said and "--upstream" in said and "Traceback" not in said
        assert shown.count("built") == 2, "the line went on to its end"
        assert said.count("does not answer") == 2 and not group(run.pid), said

        server.start()
        done = subprocess.run(argv, cwd=ROOT, env=server.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout.count("Cached") == 2, done.stderr
        assert len(teacher.asked()) == TASK_PROMPTS, "nothing was asked twice"
        [newest] = server.api.flow_runs()[:1]
        assert newest["state_name"] == "Completed"
