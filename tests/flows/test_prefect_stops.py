"""A step that stops in the middle: retried by Prefect, or stopped with Ctrl-C; both go on from the partial folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault.micro import CONCURRENCY, TASK_PROMPTS, teacher_answers, with_http_teacher
from minimal import ROOT, Line, line_recipe
from openai_server import Act, Server, serve
from prefect_server import Api, group, steps_of, until

from steps.lib.errors import DataError

pytestmark = [pytest.mark.flow, pytest.mark.fault, pytest.mark.server]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    """A line of which nothing is built."""
    line_recipe(tmp_path)
    return Line(tmp_path)


@pytest.fixture
def teacher(line: Line) -> Iterator[Server]:
    """Answers slowly, so that there is a middle."""
    answer = teacher_answers(line.folder)

    def slow(number: int, body: dict[str, Any]) -> Act:
        act: Act = answer(number, body)
        act.delay = 0.4
        return act

    with serve(slow) as server:
        with_http_teacher(line, server.url)
        yield server


@pytest.fixture
def api(prefect_harness: None) -> Api:
    from prefect.settings import PREFECT_API_URL

    return Api(str(PREFECT_API_URL.value()))


def asked_once(teacher: Server) -> bool:
    """Every prompt was asked; again only what was open at the stop."""
    return len(set(teacher.asked())) == TASK_PROMPTS and len(teacher.asked()) <= TASK_PROMPTS + CONCURRENCY


def test_a_step_whose_process_dies_is_started_again_and_goes_on(
    line: Line, teacher: Server, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import tasks
    from flows.align import align

    monkeypatch.setattr(tasks, "RETRY_DELAYS", (0.1,))

    def kill() -> None:
        until(lambda: len(teacher.asked()) >= 4, 60, "four requests")
        [step] = steps_of(line.folder / "store")
        os.kill(step, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    state = align(overrides=["retries=1"], recipes=[str(line.recipe)], until="generate", return_state=True)
    killer.join()
    assert state.is_completed() and [o.cached for o in state.result()] == [False]
    assert asked_once(teacher)
    run = str(state.state_details.flow_run_id)
    made = until(
        lambda: api.task_runs(run)["generate"]["state_name"] == "Completed" and api.task_runs(run), 20, "states"
    )
    assert made["generate"]["run_count"] == 2
    until(lambda: any("signal SIGKILL" in text and "Retry 1/1" in text for text in api.log(run)), 20, "the reason")


def test_what_somebody_wrote_is_not_tried_again(line: Line, api: Api) -> None:
    """A DataError would be the same in ten seconds."""
    from flows.align import align

    words = ["clean.min_rows.chats=500", "retries=3"]
    state = align(overrides=words, recipes=[str(line.recipe)], until="clean", return_state=True)
    run = str(state.state_details.flow_run_id)
    assert state.is_failed() and state.name == "Failed" and api.flow_run(run)["state_name"] == "Failed"
    with pytest.raises(DataError, match="500"):
        state.result()
    made = until(lambda: api.task_runs(run)["clean"]["state_name"] == "Failed" and api.task_runs(run), 20, "states")
    assert made["clean"]["run_count"] == 1


def test_ctrl_c_ends_as_resumable_and_the_same_command_goes_on(line: Line, teacher: Server, api: Api) -> None:
    argv = [sys.executable, "-m", "flows.cli", "run", "--until", "generate", "--recipe", str(line.recipe)]
    environment = {**os.environ, "PREFECT_API_URL": api.url}
    run = subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(teacher.asked()) >= 4, 60, "four requests")
    os.killpg(run.pid, signal.SIGINT)  # as the terminal does: to every process of the group
    said = " ".join(run.communicate(timeout=60)[1].split())
    assert run.returncode == 75, said
    assert re.search(
        "Resumable: step generate was stopped by (Ctrl-C|SIGINT): (its|the) partial work is kept; run the same", said
    )
    assert "Traceback" not in said and "NoneType" not in said
    assert not group(run.pid)
    [shown] = [one for one in api.flow_runs() if f"/flow-run/{one['id']}" in said]
    assert (shown["state_name"], shown["state_type"]) == ("Resumable", "FAILED")
    again = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "built" in again.stdout, again.stderr
    assert asked_once(teacher)
