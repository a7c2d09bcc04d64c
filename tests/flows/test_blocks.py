"""A teacher's key out of a Prefect Secret block: it reaches the endpoint, and nothing else ever holds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, Server, serve
from ruamel.yaml import YAML

from flows.blocks import block_names
from flows.engine import Engine, Plan
from flows.line import AlignConfig
from steps.lib.api_keys import secret_variable
from steps.lib.config import layers_of, load
from steps.lib.errors import ConfigError

SECRET = "sk-from-a-block-0123456789"


@pytest.fixture
def teacher() -> Iterator[Server]:
    """It gives the key away in an error, as careless servers do."""

    def decide(number: int, body: dict[str, Any]) -> Act:
        if body["messages"][-1]["content"] == "question 3":
            return Act(status=400, raw=f"bad request with key {SECRET}".encode())
        return Act(text="fine")

    with serve(decide) as server:
        yield server


def recipe(folder: Path, server: Server, block: str) -> Path:
    rows = [{"id": f"p{n}", "lang": "en", "prompt": f"question {n}"} for n in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "store": str(folder / "store"),
        "generate": {
            "prompts": [{"name": "train", "path": str(folder / "prompts.jsonl")}],
            "prompt_file": "configs/prompts/plain.yaml",
            "max_failed_share": 0.5,
            "teachers": [{"kind": "http", "name": "t", "endpoint": "e", "base_url": server.url, "model": "m", "api_key_block": block}],
        },
    }  # fmt: skip
    with (folder / "recipe.yaml").open("w") as file:
        YAML(typ="safe").dump(settings, file)
    return folder / "recipe.yaml"


def config(path: Path) -> AlignConfig:
    return load(AlignConfig, layers_of("cpu-tiny", [path])).value


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_every_section_that_names_a_block_is_found(tmp_path: Path) -> None:
    teacher = "{kind: http, name: j, endpoint: e, base_url: 'http://h/v1', model: m, api_key_block: judge-key}"
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"generate:\n  teachers: [{teacher.replace('judge-key', 'big-key')}]\npairs:\n  judge: {{teacher: {teacher}}}\n"
    )
    found = config(path)
    assert sorted(block_names(found)) == ["big-key", "judge-key"] and list(block_names(found.dpo)) == []
    assert secret_variable("big-key") == "PREFLINE_SECRET_BIG_KEY"


@pytest.mark.flow
def test_a_secret_reaches_the_endpoint_and_no_file_and_no_line(
    prefect_harness: None, teacher: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from prefect.blocks.system import Secret

    Secret(value=SECRET).save("big-key", overwrite=True)
    path, lines = recipe(tmp_path, teacher, "big-key"), list[str]()
    engine = Engine(config(path), Plan.of("generate"), say=lines.append)
    engine.run()
    assert {one["Authorization"] for one in teacher.headers} == {f"Bearer {SECRET}"}
    assert not engine.outcomes[0].cached and lines
    said = capfd.readouterr()
    assert SECRET not in "\n".join([*lines, said.out, said.err])
    assert files_with("big-key", tmp_path / "store"), "the name of the block is no secret: it is in the manifest"
    assert not files_with(SECRET, tmp_path) and secret_variable("big-key") not in os.environ
    dropped = (engine.outcomes[0].artifact.path / "dropped.parquet").read_bytes()
    assert b"***" in dropped, "the endpoint gave it away, and it was struck out"
    Secret.delete("big-key")  # type: ignore[unused-coroutine]
    again = Engine(config(path), Plan.of("generate"))
    again.run()
    assert again.outcomes[0].cached, "what is in the store needs no key"


@pytest.mark.flow
def test_inside_a_flow_and_a_block_that_is_not_there(prefect_harness: None, teacher: Server, tmp_path: Path) -> None:
    from prefect.blocks.system import Secret

    from flows.align import align

    path = recipe(tmp_path, teacher, "other-key")
    with pytest.raises(ConfigError, match=r"got no Prefect Secret block 'other-key', because .*; make the block"):
        Engine(config(path), Plan.of("generate")).run()
    assert not teacher.headers
    Secret(value=SECRET).save("other-key")
    state: Any = align(profile="cpu-tiny", recipes=[str(path)], only="generate", return_state=True)
    assert state.is_completed() and {one["Authorization"] for one in teacher.headers} == {f"Bearer {SECRET}"}
    assert not files_with(SECRET, tmp_path)


@pytest.mark.flow
def test_a_variable_that_is_set_is_taken_and_no_server_is_asked(
    teacher: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(secret_variable("none-such"), SECRET)
    Engine(config(recipe(tmp_path, teacher, "none-such")), Plan.of("generate")).run()
    assert {one["Authorization"] for one in teacher.headers} == {f"Bearer {SECRET}"}
