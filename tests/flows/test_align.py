"""The line through Prefect: the store decides, Prefect shows it."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from minimal import Line

from flows.line import STEPS, steps_of
from steps.lib.errors import ConfigError, DataError

pytestmark = pytest.mark.flow


@pytest.fixture
def line(minimal_line: Line, prefect_harness: None, tmp_path: Path) -> Line:
    copied: Line = minimal_line.copy(tmp_path / "line")
    return copied


def align(line: Line, *overrides: str, **words: Any) -> Any:
    """The flow's final state."""
    from flows.align import align as flow

    return flow(profile="cpu-tiny", overrides=list(overrides), recipes=[str(line.recipe)], return_state=True, **words)


def task_runs(state: Any) -> dict[str, Any]:
    """Step -> task run, as the server knows it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    async def read() -> Any:
        async with get_client() as client:
            return await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
            )

    deadline = time.monotonic() + 20
    while True:  # task states travel as events: the server can lag
        found = asyncio.run(read())
        if not {"Running", "Pending"} & {run.state_name for run in found} or time.monotonic() > deadline:
            return {run.name.rpartition("-")[0]: run for run in found}
        time.sleep(0.3)


def step_states(state: Any) -> dict[str, str]:
    return {name: str(run.state_name) for name, run in task_runs(state).items() if name in STEPS}


def artifact_texts(state: Any) -> dict[str, str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    async def read() -> Any:
        async with get_client() as client:
            return await client.read_artifacts(
                artifact_filter=ArtifactFilter(
                    flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
                )
            )

    return {str(artifact.key): str(artifact.data) for artifact in asyncio.run(read())}


def flow_tags(state: Any) -> set[str]:
    from prefect.client.orchestration import get_client

    async def read() -> Any:
        async with get_client() as client:
            return await client.read_flow_run(state.state_details.flow_run_id)

    return set(asyncio.run(read()).tags)


def log_lines(state: Any) -> list[str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    async def read() -> Any:
        async with get_client() as client:
            return await client.read_logs(
                log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
            )

    return [line.message for line in asyncio.run(read())]


def built(state: Any) -> list[str]:
    return [outcome.step for outcome in state.result() if not outcome.cached]


def test_built_then_cached_then_only_what_was_lost(line: Line) -> None:
    """Three runs: the store lacks generate, clean and promote; it has all; one is damaged and one is gone."""
    store = line.folder / "store"
    for step in ("generate", "clean", "promote"):
        shutil.rmtree(store / step)
    first = align(line)
    assert first.is_completed() and built(first) == ["generate", "clean", "promote"]
    states = step_states(first)
    assert [step for step in steps_of(line.config()) if states[step] == "Completed"] == built(first)
    assert set(states.values()) == {"Completed", "Cached"}
    shown = artifact_texts(first)
    assert json.loads(shown["configuration"].strip().removeprefix("```json").removesuffix("```"))["name"] == "minimal"
    assert "| clean | " in shown["plan"], "what is to be built, and what it takes"
    assert "may be Cached" in shown["plan"], "what comes out of generate is not known yet"
    assert "| clean | built |" in shown["align-report"] and "| sft | Cached |" in shown["align-report"]
    assert "Strict format" in shown["align-report"], "the evaluation's report"

    start = time.perf_counter()
    second = align(line)
    assert step_states(second) == dict.fromkeys(steps_of(line.config()), "Cached") and built(second) == []
    assert time.perf_counter() - start < 20
    assert set(artifact_texts(second)) == {"configuration", "align-report"}, "a cached step costs no call"

    shutil.rmtree(store / "generate")
    [clean] = store.glob("clean/[!.]*")
    (clean / "chats.parquet").write_bytes((clean / "chats.parquet").read_bytes()[:10])
    third = align(line)
    assert built(third) == ["generate", "clean"], "what Prefect remembers of earlier runs is not believed"
    assert not list(store.rglob("prefect.json"))


def test_a_task_run_says_what_it_is_and_what_it_built(line: Line) -> None:
    """Name with a short key, tags, edges of the graph, the step's artifact, and its log."""
    state = align(line, "clean.answers_per_prompt=2", until="clean")
    runs = task_runs(state)
    [generate, clean] = state.result()
    assert runs["clean"].name == clean.artifact.key.replace("/", "-")[: len("clean-") + 8]
    assert set(runs["clean"].tags) == {"clean", "cpu-tiny", "minimal"}
    assert flow_tags(state) == {"cpu-tiny", "minimal"}
    assert {one.id for one in runs["clean"].task_inputs["upstream"]} == {runs["generate"].id}
    assert runs["generate"].state.message == f"{generate.artifact.key} is in the store"
    text = artifact_texts(state)["clean"]
    assert clean.artifact.key in text and f"`{clean.artifact.path}`" in text
    metric, value = next(iter(clean.artifact.manifest["metrics"].items()))
    assert f"| {metric} | {value}"[:20] in text
    kind, count = next(iter(clean.artifact.manifest["rows"]["out"].items()))
    assert f"| out | {kind} | {count} |" in text
    deadline = time.monotonic() + 20
    while not any(text.startswith("clean: ") for text in log_lines(state)):
        assert time.monotonic() < deadline, "the step's own lines are in the run's log"
        time.sleep(0.3)


def test_the_evaluations_artifact_links_its_report(line: Line) -> None:
    from flows.present import facts

    outcome = align(line, until="evaluate").result()[-1]
    assert f"[report.html]({(outcome.artifact.path / 'report.html').as_uri()})" in facts(outcome.artifact)


def test_what_a_step_shows_reaches_the_server(line: Line) -> None:
    """A table, an image and a link, as the server keeps them."""
    from prefect import flow

    from flows import present
    from steps.lib.artifact import Artifact

    [folder] = (line.folder / "store").glob("evaluate/[!.]*")
    evaluated = Artifact.read(folder)
    state = flow(lambda: present.step(evaluated), name="shows")(return_state=True)
    assert state.is_completed()
    found = artifact_texts(state)
    assert found.keys() == {"evaluate", "evaluate-page", "evaluate-table", "evaluate-plot"}
    assert (folder / "report.html").as_uri() in found["evaluate-page"]
    assert json.loads(found["evaluate-table"]) == present.figures(evaluated) != []
    assert found["evaluate-plot"] == present.picture(evaluated) != ""


def test_nothing_of_prefect_is_written_to_a_read_only_store(line: Line) -> None:
    folders = [path for path in (line.folder / "store").rglob("*") if path.is_dir()]
    before = {path: path.stat().st_mtime_ns for path in folders if path.name != ".runs"}
    assert built(align(line)) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_step_that_another_process_builds_meanwhile_is_cached(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look finds nothing; the step's own look, under the lock, does."""
    from flows.tasks import PrefectEngine

    monkeypatch.setattr(PrefectEngine, "find", lambda self, spec: None)
    state = align(line, until="generate")
    assert built(state) == [] and step_states(state) == {"generate": "Cached"}


def test_a_change_runs_what_is_behind_it(line: Line) -> None:
    state = align(line, "clean.answers_per_prompt=2", until="clean", force=["clean"])
    assert built(state) == ["clean"] and set(step_states(state)) == {"generate", "clean"}


def test_wrong_overrides_fail_at_once_with_every_problem(line: Line) -> None:
    start = time.perf_counter()
    state = align(line, "dpo.betta=0.1", "sft.lora.rank=-1")
    assert state.is_failed() and time.perf_counter() - start < 5
    with pytest.raises(ConfigError) as error:
        state.result()
    assert "dpo.betta" in str(error.value) and "sft.lora.rank" in str(error.value)
    assert not task_runs(state)


def test_a_failing_step_fails_the_run_with_its_message_and_the_table_stays(line: Line) -> None:
    state = align(line, "clean.min_rows.chats=500")
    assert state.is_failed()
    with pytest.raises(DataError, match="500"):
        state.result()
    assert step_states(state) == {"generate": "Cached", "clean": "Failed"}
    assert "| generate | Cached |" in artifact_texts(state)["align-report"]


def test_the_form_has_a_description_of_every_field() -> None:
    from flows.align import align as flow

    properties = flow.parameters.properties
    assert set(properties) == {"profile", "overrides", "recipes", "only", "start", "until", "force", "strict_code"}
    assert all(field.get("description") for field in properties.values())
    names = {path.stem for path in (Path("configs") / "profiles").glob("*.yaml")}
    assert set(properties["profile"]["enum"]) == names, "every profile can be chosen"


def test_a_burst_of_lines_is_thinned_and_its_end_is_kept() -> None:
    from flows.tasks import Lines

    said: list[str] = []
    lines = Lines(said.append, echo=False)
    for number in range(1000):
        lines(f"line {number}")
    assert said == [f"line {number}" for number in range(Lines.BURST)]
    lines.close()
    assert said[Lines.BURST] == "(770 lines left out here; all are in record/log.jsonl of the artifact)"
    assert said[-30:] == [f"line {number}" for number in range(970, 1000)]
