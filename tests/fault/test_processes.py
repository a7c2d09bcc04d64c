"""Several processes run the same configuration on one store: each step is built once, also when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault.micro import CONCURRENCY, TASK_PROMPTS, digests, micro_line, teacher_answers, walk, with_http_teacher
from fault.oracle import members
from minimal import ROOT, Line
from openai_server import serve

from flows.line import steps_of

PROCESSES = 4
RUN = """
import json, sys
from pathlib import Path
from flows.engine import Engine, Plan
from flows.line import AlignConfig
from steps.lib.config import layers_of, load

class Telling(list):
    def append(self, outcome):
        print(json.dumps([outcome.step, outcome.cached, outcome.artifact.digest]), flush=True)
        super().append(outcome)

config = load(AlignConfig, layers_of("cpu-tiny", [Path(sys.argv[1])], Path("configs"))).value
Engine(config, Plan.of(until=sys.argv[2]), outcomes=Telling()).run()
"""
"""A walk that tells at once what became of each step."""


@dataclass
class Run:
    """One of the processes."""

    process: subprocess.Popen[bytes]
    said: Path

    def told(self) -> list[tuple[str, bool, str]]:
        """(step, whether it was there already, digest), as far as it came."""
        lines = self.said.with_suffix(".out").read_text().splitlines()
        return [(step, cached, digest) for step, cached, digest in map(json.loads, lines)]


def start(line: Line, until: str, number: int) -> Run:
    said = line.folder / f"said-{number}.err"
    with said.open("wb") as errors, said.with_suffix(".out").open("wb") as out:
        argv = [sys.executable, "-c", RUN, str(line.recipe), until]
        return Run(subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True), said)


def builder(line: Line, step: str) -> int | None:
    """The process that builds a step now, as its ticket says."""
    for ticket in sorted((line.folder / "store" / ".locks").glob(f"{step}-*/[0-9]*"), reverse=True):
        facts = json.loads(ticket.read_bytes())
        if not facts["released"] and any((line.folder / "store" / step).glob(".*.partial")):
            return int(facts["pid"])
    return None


def kill_the_builder(line: Line, step: str, runs: list[Run]) -> Run:
    """SIGKILL the run whose step process holds the lock, with all it started."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        pid = builder(line, step)
        for run in runs if pid else []:
            if pid in members(run.process.pid):
                os.killpg(run.process.pid, signal.SIGKILL)
                run.process.wait(10)
                return run
        time.sleep(0.01)
    raise AssertionError(f"nobody built {step}: {[run.said.read_text()[-500:] for run in runs]}")


@pytest.mark.parametrize(
    ("until", "hit"),
    [("base", "base"), pytest.param("promote", "sft", marks=pytest.mark.long)],
    ids=["three-steps", "whole-line"],
)
def test_four_processes_and_one_is_killed_while_it_builds(
    minimal_line: Line, tmp_path: Path, until: str, hit: str
) -> None:
    line = micro_line(tmp_path)
    every = steps_of(line.config())
    steps = every[: every.index(until) + 1]
    with serve(teacher_answers(line.folder)) as server:
        with_http_teacher(line, server.url)
        runs = [start(line, until, number) for number in range(PROCESSES)]
        try:
            killed = kill_the_builder(line, hit, runs)
            others = [run for run in runs if run is not killed]
            codes = [run.process.wait(240) for run in others]
        finally:
            for run in runs:
                for pid in members(run.process.pid):
                    os.kill(pid, signal.SIGKILL)
        asked = len(server.bodies)
    assert codes == [0, 0, 0], [run.said.read_text()[-1500:] for run in others]
    assert TASK_PROMPTS <= asked <= TASK_PROMPTS + (CONCURRENCY if hit == "generate" else 0)
    for run in others:
        assert [step for step, _, _ in run.told()] == list(steps)
    assert len({tuple(digest for _, _, digest in run.told()) for run in others}) == 1, "equal results"
    built = [step for run in runs for step, cached, _ in run.told() if not cached]
    assert sorted(built) == sorted(steps), "each step was built, by one of them"
    assert hit in {step for run in others for step, cached, _ in run.told() if not cached}
    store = line.folder / "store"
    assert not (store / "broken").exists()
    assert not list(store.glob("*/.*.partial")) and all(len(list((store / step).iterdir())) == 1 for step in steps)
    told = "".join(run.said.read_text() for run in others)
    assert "is taken over from process" in told and "waiting for lock" in told
    oracle = digests(walk(minimal_line))
    same = [step for step in steps if step not in ("generate", "evaluate", "promote")]  # these name the teacher
    assert {step: digest for step, _, digest in others[0].told() if step in same} == {
        step: oracle[step] for step in same
    }
