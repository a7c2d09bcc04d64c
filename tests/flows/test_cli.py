"""The command from the shell: messages, exit codes, and no artifact where a step failed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from looking import prefline
from minimal import ROOT, Line, line_recipe

from steps.lib.gate import EXIT
from steps.lib.rows import Dropped, read_parquet


def said(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """The code, every part of the message, no traceback, and an answer to what, got, because and do."""
    text = " ".join(done.stderr.split())
    assert done.returncode == code, done.stderr
    for part in parts:
        assert part in text, done.stderr
    assert "Traceback" not in text and "got " in text and "because" in text and ";" in text


def finished(line: Line) -> list[str]:
    """Steps with an artifact in the store."""
    return sorted(
        {
            path.parent.parent.name
            for path in (line.folder / "store").glob("*/*/manifest.json")
            if not path.parent.name.startswith(".")
        }
    )


@pytest.fixture
def line(tmp_path: Path) -> Line:
    """A line of which nothing is built."""
    line_recipe(tmp_path)
    return Line(tmp_path)


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "step"])
@pytest.mark.parametrize(
    ("word", "place", "near"),
    [
        ("dop.beta=0.1", "dop", "dpo"),
        ("dpo.betta=0.1", "dpo.betta", "dpo.beta"),
        ("sft.train.batch_sise=3", "sft.train.batch_sise", "batch_size"),
        ("generate.teachers=[{kind: scripted, paht: x}]", "paht", "path"),
    ],
)
def test_a_mistyped_key_at_any_depth_is_named_with_the_nearest(
    line: Line, command: str, word: str, place: str, near: str
) -> None:
    words = [command, "clean"] if command == "step" else [command]
    said(prefline(*words, word, "--recipe", str(line.recipe)), 2, place, near)
    assert not (line.folder / "store").exists(), "nothing was started"


def test_every_problem_is_said_at_once(line: Line) -> None:
    done = prefline("run", "dpo.betta=0.1", "sft.lora.rank=-1", "store=", "--recipe", str(line.recipe))
    said(done, 2, "problems in the configuration", "dpo.betta", "sft.lora.rank")


def test_a_profile_that_does_not_exist_lists_those_that_do() -> None:
    said(
        prefline("run", "--profile", "cpu-tny"),
        2,
        "profile is wrong: got 'cpu-tny'",
        "did you mean 'cpu-tiny'",
        "gpu-24gb",
    )


def test_a_key_that_stands_twice_in_a_file_is_refused_with_its_line(line: Line, tmp_path: Path) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("dpo:\n  beta: 0.1\n  beta: 0.2\n")
    said(prefline("run", "--recipe", str(line.recipe), "--recipe", str(twice)), 2, "twice.yaml:3", "beta")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = prefline("run", "--recipe", str(tmp_path / "no.yaml"))
    assert done.returncode == 2 and "no.yaml" in done.stderr and "got no such file" in done.stderr


def test_words_of_a_plan_are_checked_before_anything_starts(line: Line) -> None:
    said(prefline("run", "--until", "stf", "--recipe", str(line.recipe)), 2, "got 'stf'")
    said(prefline("step", "stf", "--recipe", str(line.recipe)), 2, "got 'stf'")
    said(prefline("step", "pretrain", "pretrain=null", "--recipe", str(line.recipe)), 2, "step pretrain is left out")


def test_config_shows_each_value_with_where_it_came_from(line: Line) -> None:
    done = prefline("config", "dpo", "dpo.beta=0.5", "--recipe", str(line.recipe), "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["path"]: row for row in json.loads(done.stdout)}
    assert rows["dpo.beta"]["value"] == 0.5 and "1 / nat" in rows["dpo.beta"]["doc"]
    assert rows["dpo.train.lr"]["value"] == 1e-3 and "minimal.yaml" in json.dumps(rows["dpo.train.lr"])
    table = prefline("config", "dpo", "dpo.beta=0.5")
    assert "cpu-tiny.yaml" in table.stdout and "dpo.beta" in table.stdout
    said(prefline("config", "dop"), 2, "dop", "dpo")


@pytest.mark.tiny
@pytest.mark.parametrize("words", [["show", "sft"], ["report"]], ids=["rich", "print"])
def test_where_nobody_reads_a_command_ends_quietly(minimal_line: Line, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "flows.cli", *words, "--recipe", str(minimal_line.recipe)]
    done = subprocess.run(argv, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141 and "Traceback" not in done.stderr and "Pipe" not in done.stderr, done.stderr


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_a_line_that_is_cut_off_and_a_row_without_an_answer_are_dropped_with_the_reason(
    line: Line, tmp_path: Path
) -> None:
    with (tmp_path / "domain-train.jsonl").open("a") as file:
        file.write('{"id": "half", "lang": "en", "text": "The shop is op\n')
    turns = [{"role": "user", "content": f"Where is my parcel {n}?"} for n in range(2)]
    answer = {"role": "assistant", "content": "Parcel 1 is on its way, please wait for two days."}
    rows = [{"messages": turns[:1]}, {"messages": [turns[1], answer]}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = prefline(
        "step",
        "clean",
        "generate=null",
        f"clean.chats=[{{name: made, path: {tmp_path / 'chats.jsonl'}}}]",
        "--recipe",
        str(line.recipe),
    )
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "store" / "clean").glob("[!.]*")
    dropped = {row.reason: row for row in read_parquet(folder / "dropped.parquet", Dropped)}
    assert "no_assistant_turn" in dropped and "user" in dropped["no_assistant_turn"].detail
    [cut] = [row for row in dropped.values() if "The shop is op" in row.row]
    assert cut.step == "clean" and cut.reason
    counted = json.loads((folder / "manifest.json").read_text())["rows"]
    assert counted["dropped"]["chats"]["no_assistant_turn"] == 1 and counted["dropped"]["domain"][cut.reason] == 1


@pytest.mark.tiny
def test_nothing_left_after_cleaning_stops_with_the_reasons(line: Line) -> None:
    done = prefline("step", "clean", "clean.filters.text_min_chars=5000", "--upstream", "--recipe", str(line.recipe))
    said(done, 3, "corpus", "too_short")
    assert finished(line) == ["generate"]


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("harm", "part"),
    [("no weights", "no *.safetensors weights"), ("pickle", "only pickled weights"), ("gone", "is not there")],
)
def test_a_checkpoint_that_cannot_be_used_stops_before_it_is_loaded(
    line: Line, tmp_path: Path, harm: str, part: str
) -> None:
    model = tmp_path / "model"
    if harm != "gone":
        model.mkdir()
        (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (model / "tokenizer.json").write_text("{}")
    if harm == "pickle":
        (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = prefline(
        "step", "base", "base.kind=checkpoint", f"base.path={model}", "--upstream", "--recipe", str(line.recipe)
    )
    said(done, 4, part, str(model))
    assert finished(line) == ["clean", "generate"]


def test_a_step_whose_inputs_are_not_there_says_so(line: Line) -> None:
    said(prefline("step", "clean", "--recipe", str(line.recipe)), 5, "step generate", "is not in the store")
    said(prefline("report", "--recipe", str(line.recipe)), 5, "is not in the store")


# --- what is cached --------------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_a_cached_step_answers_at_once_and_report_names_the_page(built_line: Line, tmp_path: Path) -> None:
    line = built_line.copy(tmp_path / "line")
    took = []
    for _ in range(2):
        start = time.perf_counter()
        done = prefline("step", "evaluate", "--recipe", str(line.recipe))
        took.append(time.perf_counter() - start)
        assert done.returncode == 0 and "  Cached  " in done.stdout, done.stderr
    assert min(took) < 2.0
    shown = prefline("report", "--recipe", str(line.recipe))
    page = Path("".join(shown.stdout.split("\n")))
    assert page.name == "report.html" and page.read_text(encoding="utf-8").startswith("<!")
    text = prefline("report", "--text", "--recipe", str(line.recipe))
    assert "prefline" in text.stdout and "|" in text.stdout
    shutil.rmtree(line.folder / "store" / "evaluate")
    said(prefline("report", "--recipe", str(line.recipe)), 5, "step evaluate", "is not in the store")


@pytest.mark.tiny
def test_a_run_ends_with_the_code_of_the_verdict_where_that_is_asked(built_line: Line, tmp_path: Path) -> None:
    line = built_line.copy(tmp_path / "line")
    words = ("run", "--recipe", str(line.recipe))
    assert prefline(*words).returncode == 0
    [folder] = (line.folder / "store" / "promote").glob("[!.]*")
    verdict = json.loads((folder / "verdict.json").read_text())["verdict"]
    asked = prefline(*words, "--gate")
    assert f"verdict: {verdict}" in asked.stdout and asked.returncode == EXIT[verdict] > 0
    said(prefline(*words, "--gate", "--until", "evaluate"), 2, "--gate has no verdict to end with")
