"""Turns of the loop on the micro line: each event in one run, each case with one outcome, sides for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import warranty
from fault.micro import in_this_process
from minimal import ROOT, Line

from flows.engine import Engine
from flows.retraining import Result, Retraining
from steps.lib.case_store import CaseStore
from steps.lib.config import layers_of
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.rows import BadCase, read_parquet

pytestmark = pytest.mark.tiny


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


def loop(line: Line, *overrides: str) -> Retraining:
    """The loop of a line; feedback and records lie in its folder."""
    words = [f"retrain.feedback={line.folder / 'cases.sqlite'}", f"retrain.folder={line.folder / 'retrain'}"]
    words += [
        "evaluate.limit=20",
        "pairs.lint.max_separable=null",
        "pairs.lint.max_longer_share=null",
        "pairs.lint.max_length_ratio=null",
    ]
    layers = layers_of("cpu-tiny", [line.recipe], ROOT / "configs")
    found = Retraining.of("cpu-tiny", layers[2:], [*words, *overrides])
    return found


def send(line: Line, first: int, count: int) -> None:
    with CaseStore.open(str(line.folder / "cases.sqlite")) as store:
        assert store.ingest(warranty.events()[first : first + count], source="desk").new == count


def turned(one: Retraining) -> Result | None:
    with one.turn() as turn:
        if turn is None:
            return None
        engine = Engine(turn.config)
        engine.run()
        return turn.finish(engine.outcomes)


def test_nothing_new_ends_at_once(line: Line) -> None:
    one = loop(line)
    with in_this_process() as built:
        assert turned(one) is None and not built
    assert "no event came into" in one.why


def test_each_case_is_used_once_and_told_what_became_of_it(line: Line) -> None:
    send(line, 0, 12)
    one = loop(line)
    with in_this_process() as built:
        with pytest.raises(KeyboardInterrupt), one.turn() as turn:
            assert turn is not None and turn.taken.run == "retrain-0001"
            raise KeyboardInterrupt
        send(line, 12, 12)
        assert (loop(line).waiting().events, loop(line).waiting().clusters) == (12, 0), (
            "a run is going, or is to be gone on with"
        )
        first = turned(loop(line))  # the run that died is gone on with: what came meanwhile is the next run's
        assert first and first.run == "retrain-0001" and first.version.startswith("v0002")
        told = {one.outcome for one in first.outcomes.values()}
        assert len(first.outcomes) == 12 and told & {"trained_on"} and told & {"still_failing", "fixed"}, first.counts()
        before = read_parquet(line.folder / "retrain" / "retrain-0001" / "cases.parquet", BadCase)
        built.clear()
        second = turned(loop(line))
        assert turned(loop(line)) is None, "nothing came since"
    assert second and second.run == "retrain-0002" and "badcases" in built and "generate" not in built
    held = {case.id for case in before if case.split == "holdout"}
    assert set(second.outcomes) >= {f"warranty-{n:03}" for n in range(12, 24)} | held, (
        "earlier held-out cases are measured again"
    )
    after = {
        case.id: case for case in read_parquet(line.folder / "retrain" / "retrain-0002" / "cases.parquet", BadCase)
    }
    assert {case.id: (case.cluster, case.split) for case in before} == {
        case.id: (after[case.id].cluster, after[case.id].split) for case in before
    }
    with CaseStore.open(str(line.folder / "cases.sqlite")) as store:
        claims = store.claims()
        assert [(one.first, one.last, one.done) for one in claims] == [(0, 12, True), (12, 24, True)]
        assert {one["case_id"] for one in store.outcomes(run="retrain-0001")} == set(first.outcomes)
    assert not list((line.folder / "retrain").glob("*/events.jsonl")), "texts lie in the store of bad cases alone"
    assert len(list((line.folder / "retrain").glob("*/cases.parquet"))) == 1


def test_a_deleted_case_is_trained_on_no_more_and_wakes_the_loop(line: Line) -> None:
    send(line, 0, 12)
    with in_this_process():
        first = turned(loop(line))
        assert first
        gone = next(name for name, one in first.outcomes.items() if one.outcome == "trained_on")
        with CaseStore.open(str(line.folder / "cases.sqlite")) as store:
            store.delete(gone, reason="its sender asked", by="li")
        assert turned(loop(line, "retrain.min_clusters=5")), "a deletion needs no new cluster"
        cases = read_parquet(next((line.folder / "retrain").glob("*/cases.parquet")), BadCase)
        next((line.folder / "retrain").glob("*/cases.parquet")).unlink()
        send(line, 12, 1)
        with pytest.raises(ArtifactError, match=r"got no .*retrain-0002/cases\.parquet"):
            turned(loop(line))
    assert [(case.status, case.prompt, case.response) for case in cases if case.id == gone] == [("deleted", [], "")]
    with CaseStore.open(str(line.folder / "cases.sqlite")) as store:
        assert store.outcomes(case_id=gone)[-1]["detail"].startswith("deleted")


def test_fewer_new_clusters_than_asked_for_train_nothing(line: Line) -> None:
    send(line, 0, 3)
    with in_this_process() as built:
        one = loop(line, "retrain.min_clusters=4")
        assert one.waiting().clusters == 3
        assert turned(one) is None and "3 new events in 3 new clusters" in one.why and set(built) == {"badcases"}
        send(line, 3, 1)
        with loop(line, "retrain.min_clusters=4").turn() as turn:
            assert turn is not None


def test_only_one_run_goes_at_a_time(line: Line) -> None:
    send(line, 0, 3)
    code = (
        "import sys, time; from pathlib import Path; from flows.retraining import Retraining\n"
        "one = Retraining.of('cpu-tiny', [sys.argv[1]], sys.argv[2:])\n"
        "with one.turn() as turn: print(turn.taken.run, flush=True); time.sleep(60)\n"
    )
    words = list(loop(line).overrides)
    other = subprocess.Popen([sys.executable, "-c", code, str(line.recipe), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout and other.stdout.readline() == "retrain-0001\n"
        one, started = loop(line), time.monotonic()
        assert turned(one) is None and time.monotonic() - started < 5
        assert f"another retraining is going (process {other.pid}" in one.why
    finally:
        other.kill()
        other.communicate()
    with loop(line).turn() as turn:
        assert turn is not None and turn.taken.run == "retrain-0001", "its claim is taken over"


def test_without_a_gate_there_is_no_loop(line: Line) -> None:
    with pytest.raises(ConfigError, match="retraining has no gate"):
        loop(line, "promote=null")
