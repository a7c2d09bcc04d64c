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

from flows.line import STEPS
from steps.lib.errors import ConfigError

pytestmark = pytest.mark.flow


@pytest.fixture
def line(built_line: Line, prefect_harness: None, tmp_path: Path) -> Line:
    return built_line.copy(tmp_path / "line")


def align(line: Line, *overrides: str, **words: Any) -> Any:
    """The flow's final state."""
    from flows.align import align as flow

    return flow(profile="cpu-tiny", overrides=list(overrides), recipes=[str(line.recipe)], return_state=True, **words)


def task_states(state: Any) -> dict[str, str]:
    """Task -> name of its state, as the server knows them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    async def read() -> dict[str, str]:
        async with get_client() as client:
            runs = await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
            )
        return {run.name: str(run.state_name) for run in runs}

    deadline = time.monotonic() + 20
    while True:  # task states travel as events: the server can lag
        found = asyncio.run(read())
        if not {"Running", "Pending"} & set(found.values()) or time.monotonic() > deadline:
            return {name.rpartition("-")[0] or name: value for name, value in found.items()}
        time.sleep(0.3)


def step_states(state: Any) -> dict[str, str]:
    return {name: value for name, value in task_states(state).items() if name in STEPS}


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


def built(state: Any) -> list[str]:
    return [outcome["step"] for outcome in state.result() if not outcome["cached"]]


def test_built_then_cached_then_only_what_was_lost(line: Line) -> None:
    """Three runs: the store lacks clean, dpo and promote; it has all; sft's folder was deleted, record and all."""
    store = line.folder / "store"
    for step in ("clean", "dpo", "promote"):
        shutil.rmtree(store / step)
    first = align(line)
    assert first.is_completed() and built(first) == ["clean", "dpo", "promote"]
    assert step_states(first) == dict.fromkeys(STEPS, "Completed")
    shown = artifact_texts(first)
    assert json.loads(shown["configuration"].strip().removeprefix("```json").removesuffix("```"))["name"] == "minimal"
    assert "| dpo | built |" in shown["align-report"] and "| sft | Cached |" in shown["align-report"]
    assert "Strict format" in shown["align-report"], "the evaluation's report"
    assert len(list(store.glob("*/*/prefect.json"))) == 9, "each record lies in the artifact's folder"

    start = time.perf_counter()
    second = align(line)
    assert step_states(second) == dict.fromkeys(STEPS, "Cached") and built(second) == []
    assert time.perf_counter() - start < 20

    shutil.rmtree(store / "generate")
    [sft] = store.glob("sft/[!.]*")
    weights = sft / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10])
    third = align(line)
    assert built(third) == ["generate", "sft"]
    states = step_states(third)
    assert [step for step in STEPS if states[step] == "Completed"] == ["generate", "sft"], (
        "Prefect's own record is not believed"
    )
    assert set(states.values()) == {"Completed", "Cached"}


def test_a_broken_record_of_prefect_changes_nothing(line: Line) -> None:
    """Written anew from the store; the artifact is as it was."""
    first = align(line, until="base")
    assert first.is_completed() and built(first) == []
    for record in (line.folder / "store").glob("*/*/prefect.json"):
        record.write_text('{"metadata": {"stor')
    assert built(align(line, until="base")) == []
    assert set(step_states(align(line, until="base")).values()) == {"Cached"}


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
    assert not task_states(state)


def test_a_failing_step_fails_the_run_with_its_message_and_the_table_stays(line: Line) -> None:
    state = align(line, "clean.min_rows.chats=500")
    assert state.is_failed()
    with pytest.raises(Exception, match="500"):
        state.result()
    assert step_states(state) == {"generate": "Completed", "clean": "Failed"} or step_states(state)["clean"] == "Failed"
    assert "| generate | Cached |" in artifact_texts(state)["align-report"]


def test_the_form_has_a_description_of_every_field() -> None:
    from flows.align import align as flow

    properties = flow.parameters.properties
    assert set(properties) == {"profile", "overrides", "recipes", "only", "start", "until", "force"}
    assert all(field.get("description") for field in properties.values())
    names = {path.stem for path in (Path("configs") / "profiles").glob("*.yaml")}
    assert set(properties["profile"]["enum"]) == names, "every profile can be chosen"
