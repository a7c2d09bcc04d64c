"""``prefline step``: its page, its inputs from the store or from folders, and what it would do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault.micro import in_this_process
from minimal import ROOT, Line

from flows.commands.step import inputs_of, page, step
from flows.line import STEPS
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.step import module_of

pytestmark = pytest.mark.tiny


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


def told(line: Line, capsys: pytest.CaptureFixture[str], name: str, *words: str, **more: Any) -> Any:
    """What the command prints, as JSON."""
    capsys.readouterr()
    code = step(name, *words, recipe=[line.recipe], json=True, **more)
    return {**json.loads(capsys.readouterr().out), "code": code}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_has_a_page_with_its_inputs_and_fields(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page(name, ["step", name, "--help"])
    said = capsys.readouterr().out
    assert f"Usage: prefline step {name} " in said and "Reads:" in said and "Writes:" in said
    for word in inputs_of(module_of(name)):
        assert f"  --{word}" in said


def test_the_page_is_printed_without_torch_and_prefect() -> None:
    code = (
        "import sys; sys.argv = ['prefline', 'step', 'sft', '--help']\n"
        "from flows.cli import main; main()\n"
        "print(sorted({'torch', 'transformers', 'prefect', 'trl'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n") and "sft.lora.rank" in done.stdout and "Rank of the update" in done.stdout, done


def test_inputs_are_told_and_nothing_runs(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    with in_this_process() as built:
        found = told(line, capsys, "dpo", print_inputs=True)
        assert found["there"] and found["code"] == 0
        assert {one["input"]: one["step"] for one in found["inputs"]} == {
            "policy": "sft",
            "pairs": "pairs",
            "reference": "reference",
        }
        assert all(Path(one["folder"]).is_dir() for one in found["inputs"])
        other = told(line, capsys, "dpo", "dpo.beta=0.33", print_inputs=True)
        assert (
            not other["there"]
            and other["code"] == 10
            and other["inputs"] == found["inputs"]
            and other["key"] != found["key"]
        )
        waits = told(line, capsys, "dpo", "sft.train.lr=0.005", print_inputs=True)
        assert waits["key"] is None and waits["waits_for"] == ["sft"] and not built


def test_folders_in_place_of_the_store_s_artifacts(
    line: Line, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = told(line, capsys, "sft", print_inputs=True)
    folders = {one["input"]: Path(one["folder"]) for one in found["inputs"]}
    empty = f"store={tmp_path / 'empty'}"
    with in_this_process() as built:
        same = told(line, capsys, "sft", **folders)
        assert same["key"] == found["key"] and same["state"] == "cached" and not built
        with pytest.raises(ArtifactError, match="step sft lacks --chats: got nothing of clean in the store"):
            step("sft", empty, recipe=[line.recipe], base=folders["base"])
        fresh = told(line, capsys, "sft", empty, **folders)
        assert fresh["key"] == found["key"] and fresh["state"] == "built" and built == ["sft"]
    assert (tmp_path / "empty" / found["key"] / "manifest.json").exists()


def test_what_is_wrong_is_said_with_the_nearest_name(line: Line, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="step sft has no input bse: .*; did you mean --base"):
        step("sft", recipe=[line.recipe], bse=tmp_path)
    with pytest.raises(ArtifactError, match="is not a whole artifact"):
        step("sft", recipe=[line.recipe], base=tmp_path)
    with pytest.raises(ConfigError, match="--base cannot stand beside --upstream"):
        step("sft", recipe=[line.recipe], base=tmp_path, upstream=True)
    with pytest.raises(ConfigError, match="got 'sftt', because the line has no such step; did you mean sft"):
        page("sftt", [])
