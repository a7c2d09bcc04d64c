"""The engine without Prefect: what runs again, what does not, and what a failing step leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from minimal import ROOT, Line, line_recipe

from flows import engine as engines
from flows.engine import Engine, Outcome, Plan
from flows.line import steps_of
from steps.lib.errors import ArtifactError, ConfigError, DataError, PreflineError, Resumable
from steps.lib.step import Spec, build, module_of
from steps.lib.store import work_folder

pytestmark = pytest.mark.tiny


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run in this process, which has torch already; only ``launch`` is replaced."""

    def here(spec: Spec, store: Any, info: Any, *, say: Any = None, force: bool = False, far: Any = None) -> bool:
        build(spec, store.folder(spec.key()))
        return True

    monkeypatch.setattr(engines, "launch", here)


@pytest.fixture
def line(built_line: Line, tmp_path: Path) -> Line:
    """A copy of the built line."""
    return built_line.copy(tmp_path / "line")


def walk(line: Line, *overrides: str, plan: Plan | None = None) -> list[Outcome]:
    engine = Engine(line.config(*overrides), plan or Plan())
    engine.run()
    return engine.outcomes


def ran(outcomes: list[Outcome]) -> list[str]:
    return [outcome.step for outcome in outcomes if not outcome.cached]


def digests(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.step: outcome.artifact.digest for outcome in outcomes}


# --- plans -----------------------------------------------------------------------------------------------------------


def test_only_is_from_and_until_in_one() -> None:
    assert Plan.of("sft") == Plan.of(start="sft", until="sft") and Plan.of(force=["dpo"]).force == ("dpo",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"only": "stf"},
            "step is wrong: got 'stf', because the line has no such step; take one of: generate, badcases, correct, clean",
        ),
        ({"only": "sft", "until": "dpo"}, "--only sft cannot stand beside --from or --until"),
        ({"start": "dpo", "until": "sft"}, "--from dpo --until sft is empty: got a start behind the end"),
        ({"force": ["a", "b"]}, "2 problems in the configuration"),
    ],
)
def test_words_that_make_no_plan_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Plan.of(**words)
    assert said in str(error.value)


# --- what runs again -------------------------------------------------------------------------------------------------


def test_the_second_run_is_all_cached_and_quick(line: Line) -> None:
    outcomes = walk(line)
    assert [outcome.step for outcome in outcomes] == list(steps_of(line.config())) and ran(outcomes) == []
    assert sum(outcome.seconds for outcome in outcomes) < 5


def test_another_store_gets_the_same_digests(built_line: Line, tmp_path: Path, in_process: None) -> None:
    """Determinism: other folders, other processes, every step."""
    fresh = Line(tmp_path)
    line_recipe(tmp_path)
    outcomes = walk(fresh)
    assert ran(outcomes) == list(steps_of(fresh.config()))
    assert digests(outcomes) == digests(walk(built_line))


def test_a_change_of_dpo_runs_dpo_and_what_is_behind_it(line: Line, in_process: None) -> None:
    assert ran(walk(line, "dpo.beta=0.2")) == ["dpo", "evaluate", "promote"]
    assert ran(walk(line, "dpo.beta=0.2")) == [] == ran(walk(line)), "and the old ones are still there"


def test_a_sweep_over_losses_never_computes_the_reference_again(line: Line, in_process: None) -> None:
    for words in (["dpo.beta=0.7"], ["dpo.loss.weights=null", "dpo.loss.type=[ipo]"], ["dpo.loss.ld_alpha=0.5"]):
        outcomes = walk(line, *words, plan=Plan.of(until="dpo"))
        assert ran(outcomes) == ["dpo"] and outcomes[-2].step == "reference" and outcomes[-2].cached
    outcomes = walk(line, "dpo.train.max_length=300", plan=Plan.of(until="dpo"))
    assert ran(outcomes)[:1] == ["reference"]


def test_a_neutral_field_runs_nothing(line: Line) -> None:
    assert ran(walk(line, "dpo.train.save_every=7", "name=other", "sft.train.log_every=2")) == []


def test_a_step_that_is_left_out_closes_the_line(line: Line, in_process: None) -> None:
    outcomes = (
        walk(
            line, "pretrain=null", "generate=null", f"clean.chats=[{{name: made, path: {line.folder / 'chats.jsonl'}}}]"
        )
        if write_chats(line)
        else []
    )
    every = steps_of(line.config())
    assert [outcome.step for outcome in outcomes] == [step for step in every if step not in ("pretrain", "generate")]
    assert {
        o.step: o.artifact.manifest["inputs"]["base"]["key"].split("/")[0] for o in outcomes if o.step == "sft"
    } == {"sft": "base"}
    report = next(o.artifact for o in outcomes if o.step == "evaluate")
    assert not [name for name in report.manifest["metrics"] if name.endswith("/pretrained")]


def write_chats(line: Line) -> bool:
    rows = [
        f'{{"prompt": "Where is my parcel number {n}, please?", "completion": "Parcel {n} is on its way to your door, wait {n} days."}}'
        for n in range(10, 22)
    ]
    (line.folder / "chats.jsonl").write_text("\n".join(rows) + "\n")
    return True


def test_without_pairs_the_line_ends_with_sft(line: Line, in_process: None) -> None:
    outcomes = walk(line, "pairs=null", "dpo=null", "promote=null")
    assert ran(outcomes) == ["evaluate"] and outcomes[-1].step == "evaluate"
    with pytest.raises(ConfigError, match="dpo has nothing to train on: got pairs: null"):
        line.config("pairs=null")


def test_the_same_rows_from_another_file_stop_the_wave(line: Line, in_process: None) -> None:
    """clean runs again, since its input changed; nothing behind it does, since its rows did not."""
    before = digests(walk(line))
    path = line.folder / "domain-train.jsonl"
    path.write_text(path.read_text().replace('", "text"', '",  "text"') + "\n")
    outcomes = walk(line)
    assert ran(outcomes) == ["clean"] and digests(outcomes) == before


def test_one_row_less_runs_what_reads_it(line: Line, in_process: None) -> None:
    path = line.folder / "pairs-heldout.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert ran(walk(line, plan=Plan.of(until="clean"))) == ["clean"]


@pytest.mark.fault
def test_a_damaged_artifact_is_rebuilt_alone(line: Line, in_process: None) -> None:
    outcomes = walk(line)
    before, folder = digests(outcomes), next(o.artifact.path for o in outcomes if o.step == "sft")
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    (next(o.artifact.path for o in outcomes if o.step == "generate") / "manifest.json").write_text("{")
    shutil.rmtree(next(o.artifact.path for o in outcomes if o.step == "clean"))
    outcomes = walk(line)
    assert ran(outcomes) == ["generate", "clean", "sft"] and digests(outcomes) == before
    reasons = sorted(path.read_text() for path in (line.folder / "store" / "broken").glob("*.reason.txt"))
    assert len(reasons) == 2 and "adapter_model.safetensors of 50 bytes" in "".join(reasons)


# --- a part of the line ----------------------------------------------------------------------------------------------


def test_until_stops_and_only_runs_one(line: Line, in_process: None) -> None:
    assert [o.step for o in walk(line, plan=Plan.of(until="clean"))] == ["generate", "clean"]
    outcomes = walk(line, "clean.answers_per_prompt=3", plan=Plan.of("clean"))
    assert ran(outcomes) == ["clean"] and outcomes[-1].step == "clean"


def test_from_runs_no_earlier_step(line: Line, in_process: None) -> None:
    assert ran(walk(line, "dpo.beta=0.3", plan=Plan.of(start="dpo", until="dpo"))) == ["dpo"]
    with pytest.raises(
        ArtifactError,
        match=r"step sft \(sft/\w+\) is not in the store .*: got nothing there, because only dpo and what",
    ):
        walk(line, "sft.lora.rank=2", plan=Plan.of(start="dpo"))


def test_force_builds_again_and_sets_the_old_one_aside(line: Line, in_process: None) -> None:
    before = digests(walk(line))
    outcomes = walk(line, plan=Plan.of(force=["clean", "promote"]))
    assert ran(outcomes) == ["clean", "promote"] and digests(outcomes)["clean"] == before["clean"]
    aside = [path.name for path in (line.folder / "store" / "broken").iterdir() if path.is_dir()]
    assert any(name.startswith("clean-") for name in aside)


def test_the_last_step_of_a_plan_must_be_in_the_line(line: Line) -> None:
    with pytest.raises(ConfigError, match="step pretrain is left out: got pretrain: null, because .*; set a field"):
        walk(line, "pretrain=null", plan=Plan.of(until="pretrain"))


# --- failing ---------------------------------------------------------------------------------------------------------


def test_a_failing_step_leaves_no_artifact_and_the_others_stay(line: Line) -> None:
    """Through a real process: the kind of the error and its message come back."""
    said: list[str] = []
    engine = Engine(line.config("clean.min_rows.chats=500"), say=said.append)
    with pytest.raises(DataError, match=r"500"):
        engine.run()
    assert [outcome.step for outcome in engine.outcomes] == ["generate"] and engine.outcomes[0].cached
    spec = Spec(module_of("clean"), engine.config.clean, {"candidates": engine.outcomes[0].artifact}, 0)
    target = engine.store.folder(spec.key())
    assert not target.exists() and work_folder(target).is_dir(), "the partial work is kept"
    assert ran(walk(line)) == []


def test_a_step_that_dies_is_named_with_its_signal(tmp_path: Path) -> None:
    error = engines._error(-9, tmp_path / "none.txt", "sft")
    assert type(error) is PreflineError and "step sft failed: got signal SIGKILL" in str(error)
    for kind in (ConfigError, DataError, ArtifactError, PreflineError, Resumable):
        told = {"exit_code": kind.exit_code, "message": "what is wrong: got 1, because 2; do 3"}
        (tmp_path / "error.txt").write_text(json.dumps(told))
        error = engines._error(kind.exit_code, tmp_path / "error.txt", "sft")
        assert type(error) is kind and told["message"] in str(error)
    assert type(engines._error(-15, tmp_path / "error.txt", "sft")) is Resumable, "stopped before it could say so"
    assert "exit code 1" in str(engines._error(1, tmp_path / "none.txt", "sft"))


@pytest.mark.fault
def test_sigterm_reaches_the_trainer_and_the_next_run_goes_on(line: Line) -> None:
    """``prefline step`` alone is told (a supervisor signals one process): its step saves a checkpoint and is gone with it."""
    words = ["sft.train.max_updates=400", "sft.train.save_every=1000"]
    argv = [sys.executable, "-m", "flows.cli", "step", "sft", *words, "--recipe", str(line.recipe)]
    parent = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stderr is not None
    for text in parent.stderr:
        if "update 2/400" in text:
            parent.send_signal(signal.SIGTERM)
            break
    said = parent.communicate(timeout=60)[1] or ""
    assert parent.returncode == 128 + signal.SIGTERM, said
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)  # nothing of the group is left
    [mark] = (line.folder / "store" / "sft").glob(".*.partial/.resume/checkpoints/checkpoint-*/complete.json")
    assert mark.parent.name != "checkpoint-400"
