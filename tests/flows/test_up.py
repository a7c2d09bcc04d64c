"""``prefline up`` and all that it deploys: a real server, real workers, real runs; started once for all tests here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warranty
from minimal import Line
from prefect_server import steps_of, until
from up import Up, started, stopped

from steps.lib.case_store import CaseStore

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def up(minimal_line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    line = minimal_line.copy(tmp_path_factory.mktemp("up") / "line")
    loop = [
        f"retrain.feedback={line.folder / 'cases.sqlite'}",
        f"retrain.folder={line.folder / 'retrain'}",
        "retrain.threshold=3",
    ]
    one = started(line, line.folder / "home", *loop, "evaluate.limit=20")
    yield one
    stopped(one)


def test_all_is_deployed_with_its_limits_and_paused_schedules(up: Up) -> None:
    found = {f"{one['name']}": one for one in up.api.post("/deployments/filter", {"limit": 100})}
    assert {"align", "evaluate", "sft", "promote", "retrain", "watch"} <= found.keys() and len(found) == 18
    assert found["sft"]["parameters"]["only"] == "sft" and found["evaluate"]["parameters"]["until"] == "evaluate"
    again = found["retrain"]
    assert again["paused"] and [one["schedule"]["timezone"] for one in again["schedules"]] == ["UTC"]
    assert (
        again["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        and again["global_concurrency_limit"]["limit"] == 1
    )
    pools = {one["name"]: one for one in up.api.post("/work_pools/filter", {})}
    assert pools["prefline"]["concurrency_limit"] == 1 and pools["prefline-desk"]["concurrency_limit"] is None
    names = [one["name"] for one in up.api.post("/automations/filter", {})]
    assert sorted(names) == ["prefline: retrain on new bad cases", "prefline: runs that died"]


def test_a_form_that_is_wrong_is_refused_at_once(up: Up) -> None:
    bad = up.create("align/align", profile="gpu-9000")
    assert bad.status_code == 422 or bad.status_code == 409, bad.text
    assert "gpu-9000" in bad.text
    failed = up.run("align/align", "Failed", overrides=["dpo.betta=0.1"])
    assert "dpo.betta" in failed["state"]["message"] and failed["total_run_time"] < 5


def test_a_run_from_the_form_says_what_it_is_and_is_cached(up: Up) -> None:
    run = up.run("align/align", "Completed", until="clean")
    assert run["name"] == "align-cpu-tiny-minimal" and {"cpu-tiny", "minimal"} <= set(run["tags"])
    states = until(
        lambda: (found := up.api.task_runs(run["id"])).keys() >= {"generate", "clean"} and found, 20, "tasks"
    )
    assert {states[name]["state_name"] for name in ("generate", "clean")} == {"Cached"}


def test_new_bad_cases_wake_the_loop(up: Up) -> None:
    """watch counts, its event fires the automation, retrain takes the cases; it is cancelled here."""
    nothing = up.run("retrain/retrain", "NothingNew")
    assert "no event came" in nothing["state"]["message"]
    with CaseStore.open(str(up.line.folder / "cases.sqlite")) as store:
        store.ingest(warranty.events()[:2], source="desk")
        assert "2 new clusters of 3" in up.run("watch/watch", "Waiting")["state"]["message"]
        store.ingest(warranty.events()[2:8], source="desk")
        before = {run["id"] for run in up.api.flow_runs()}
        looked = up.run("watch/watch", "Enough")

        def woken() -> Any:
            return next((r for r in up.api.flow_runs() if r["id"] not in before | {looked["id"]}), None)

        run = until(woken, 60, "a run of the automation")["id"]
        until(lambda: [one for one in store.claims() if not one.done], 60, "its claim")
        up.api.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        up.api.wait(run, "Cancelled")
        assert [(one.run, one.last, one.done) for one in store.claims()] == [("retrain-0001", 8, False)]


@pytest.mark.long
def test_the_run_after_a_cancelled_one_takes_its_cases_to_the_end(up: Up) -> None:
    with CaseStore.open(str(up.line.folder / "cases.sqlite")) as store:
        store.ingest(warranty.events()[:8], source="desk")
        again = up.run("retrain/retrain", "Completed", seconds=200)
        assert again["name"] == "retrain-0001-cpu-tiny-minimal"
        assert {one["case_id"] for one in store.outcomes(run="retrain-0001")} >= {f"warranty-{n:03}" for n in range(8)}
    shown = up.api.artifacts(again["id"])
    assert shown["align-report"]["data"].startswith("## Verdict: ") and "bad-cases" in shown
    assert "no event came" in up.run("retrain/retrain", "NothingNew")["state"]["message"]


@pytest.mark.long
@pytest.mark.fault
def test_stopping_it_saves_a_training_and_starting_again_goes_on(up: Up, tmp_path: Path) -> None:
    line = up.line.copy(tmp_path / "line")
    one = started(line, tmp_path / "home")
    words = ["dpo.train.max_updates=4000", "dpo.train.epochs=9000", "dpo.train.save_every=1000000"]
    run = one.create("align/align", overrides=words).json()["id"]
    until(lambda: any("dpo: update 20/" in text for text in one.api.log(run)), 200, "a training")
    began = time.monotonic()
    stopped(one)
    assert time.monotonic() - began < 60 and not steps_of(line.folder / "store")
    resume = next((line.folder / "store" / "dpo").glob(".*partial")) / ".resume" / "checkpoints"
    kept = sorted(path.name for path in resume.glob("checkpoint-*"))
    assert len(kept) == 1 and int(kept[0].partition("-")[2]) >= 20
    again = started(line, tmp_path / "home")
    assert again.api.flow_run(run)["state_name"] == "Cancelled"
    run = again.create("align/align", overrides=words).json()["id"]
    until(lambda: any("dpo: update " in text for text in again.api.log(run)), 120, "its going on")
    first = next(text for text in again.api.log(run) if "dpo: update " in text)
    assert int(first.partition("update ")[2].partition("/")[0]) == int(kept[0].partition("-")[2]) + 1
    stopped(again)
