"""The loop when things die around it, or start twice: no case is lost, and none used by two runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warranty
from minimal import ROOT, Line
from prefect_server import processes, steps_of, until
from up import Up, started, stopped

from steps.lib.case_store import CaseStore

pytestmark = [pytest.mark.flow, pytest.mark.fault, pytest.mark.long]
WORDS = ("evaluate.limit=20", "dpo.train.max_updates=60", "dpo.train.epochs=200", "dpo.train.save_every=10")


def begun(minimal_line: Line, folder: Path) -> tuple[Up, list[str]]:
    """A running house with eight new cases, and the words that a shell needs for the same loop."""
    line = minimal_line.copy(folder / "line")
    own = [f"retrain.feedback={line.folder / 'cases.sqlite'}", f"retrain.folder={line.folder / 'retrain'}", *WORDS]
    with CaseStore.open(str(line.folder / "cases.sqlite")) as store:
        assert store.ingest(warranty.events()[:8], source="desk").new == 8
    return started(line, line.folder / "home", *own), [*own, "--recipe", str(line.recipe)]


def shell(words: list[str], *more: str) -> str:
    """``prefline retrain`` without a server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    argv = [sys.executable, "-m", "flows.cli", "retrain", *words, *more]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def once(line: Line, runs: int) -> None:
    """Every case has one outcome, every event one claim."""
    with CaseStore.open(str(line.folder / "cases.sqlite")) as store:
        claims, told = store.claims(), store.outcomes()
        assert len(claims) == runs and all(one.done for one in claims)
        assert claims[0].first == 0 and claims[-1].last == store.head()
        assert all(one.last == other.first for one, other in zip(claims, claims[1:], strict=False))
        names = [
            one["case_id"] for one in told if one["run"] == "retrain-0001" and one["case_id"].startswith("warranty")
        ]
        assert sorted(names) == [f"warranty-{n:03}" for n in range(8)]


def in_training(up: Up) -> None:
    until(
        lambda: any("steps.dpo" in words for words in processes().values() if str(up.line.folder) in words), 200, "dpo"
    )


@pytest.mark.parametrize("who", ["server", "worker", "flow"])
def test_what_is_killed_in_mid_run_is_gone_on_with(minimal_line: Line, tmp_path: Path, who: str) -> None:
    up, words = begun(minimal_line, tmp_path)
    made = up.create("retrain/retrain")
    assert made.is_success, made.text
    in_training(up)
    victim = _flow(up) if who == "flow" else _part(up, who)
    os.kill(victim, signal.SIGKILL)
    if who == "flow":
        up.api.wait(made.json()["id"], "Crashed", seconds=120)
        stopped(up)
    else:
        said = up.process.communicate(timeout=120)[0]
        assert up.process.returncode != 0 and "ended: got exit code -9" in said, said
    until(lambda: not steps_of(up.line.folder / "store"), 60, "the end of the step")
    with CaseStore.open(str(up.line.folder / "cases.sqlite")) as store:
        assert [one.done for one in store.claims()] == [False]
    assert "retrain-0001" in shell(words)
    assert "nothing to do" in shell(words)
    once(up.line, 1)


def _part(up: Up, who: str) -> int:
    """The process of the server or of the first worker that belongs to this house: its environment names its home."""
    sought = {"server": "prefect server start", "worker": "worker start --pool prefline --type"}[who]
    home = str(up.home).encode()
    return next(
        pid for pid, said in processes().items() if sought in said and home in Path(f"/proc/{pid}/environ").read_bytes()
    )


def _flow(up: Up) -> int:
    """The process of the flow run: the one that started the step."""
    step = next(pid for pid, said in processes().items() if "steps.dpo" in said and str(up.line.folder) in said)
    return int(Path(f"/proc/{step}/stat").read_text().rpartition(")")[2].split()[1])


def test_runs_that_start_together_use_each_case_once(minimal_line: Line, tmp_path: Path) -> None:
    up, words = begun(minimal_line, tmp_path)
    try:
        runs = [up.create("retrain/retrain").json()["id"] for _ in range(3)]
        in_training(up)
        told = json.loads(shell(words, "--json"))
        assert told["run"] is None and "another retraining is going" in told["reason"]
        ends = [up.api.wait(run, "Completed", "Cancelled", "NothingNew", seconds=300)["state_name"] for run in runs]
        # Prefect cancels those that meet a run in its slot; one that it lets through meets the lock, and has nothing to do.
        assert ends.count("Completed") == 1, ends
        once(up.line, 1)
    finally:
        stopped(up)
