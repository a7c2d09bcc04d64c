"""A key changes with everything that can change a result, and with nothing else. Nothing is built here: the line is only looked at."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from looking import READERS, behind, looked, missing
from minimal import ROOT, SEEDS, Line, line_steps

from flows.line import AlignConfig, steps_of
from steps.lib.artifact import Artifact
from steps.lib.config import load
from steps.lib.publishing import publish
from steps.lib.step import build, input_names, module_of
from steps.lib.store import Store, work_folder

pytestmark = pytest.mark.tiny


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


def test_the_built_line_is_found_whole(line: Line) -> None:
    assert missing(line) == set()
    steps = steps_of(line.config())
    assert {step: set(READERS[step]) for step in steps} == {
        step: {
            other
            for other, spec in looked(line.config()).specs.items()
            if any(a.key.startswith(step + "/") for a in spec.inputs.values())
        }
        for step in steps
    }


# --- one byte --------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def positions(path: Path) -> list[int]:
    """First, last, and one that is drawn (from the name, so the same one every time)."""
    size = path.stat().st_size
    return sorted({0, size - 1, random.Random(path.name).randrange(size)})


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_one_byte_of_an_input_file_is_missed_by_its_reader_alone(line: Line, name: str) -> None:
    path = line.folder / f"{name.replace('/', '-')}.jsonl"
    whole = path.read_bytes()
    for position in positions(path):
        flip(path, position)
        assert missing(line) == {"generate" if name == "task/prompts_train" else "clean"}, position
        path.write_bytes(whole)
        assert missing(line) == set()


def own_files(line: Line) -> dict[str, tuple[list[str], Path, str]]:
    """What else the line reads from outside -> overrides that name a copy of it, the file of the copy to change, its reader."""
    shutil.copytree(ROOT / "data" / "seed" / "task", line.folder / "task")
    shutil.copy(ROOT / "data" / "seed" / "prompts" / "task" / "examples.jsonl", line.folder / "examples.jsonl")
    shutil.copytree(ROOT / "configs" / "prompts", line.folder / "prompts")
    prompt_file = line.folder / "prompts" / "aftersales.yaml"
    here = {"examples:": line.folder / "examples.jsonl", "schema:": f"{line.folder / 'task' / 'task.yaml'}#schema"}
    rows = prompt_file.read_text(encoding="utf-8").splitlines()
    moved = [next((f"{name} {path}" for name, path in here.items() if row.startswith(name)), row) for row in rows]
    prompt_file.write_text("\n".join(moved) + "\n", encoding="utf-8")
    told = [f"generate.prompt_file={prompt_file}"]
    teacher = line.folder / "task" / "teacher.yaml"
    return {
        "task file": (
            [f"clean.task={line.folder / 'task' / 'task.yaml'}"],
            line.folder / "task" / "task.yaml",
            "clean",
        ),
        "prompt file": (told, prompt_file, "generate"),
        "examples of the prompt file": (told, line.folder / "examples.jsonl", "generate"),
        "schema of the prompt file": (told, line.folder / "task" / "task.yaml", "generate"),
        "teacher file": (
            [f"generate.teachers=[{{kind: scripted, name: scripted-aftersales, path: {teacher}}}]"],
            teacher,
            "generate",
        ),
    }


WORDS = {
    "task file": ("json_schema", "json_schemas"),
    "prompt file": ("without greetings", "without a greeting"),
    "examples of the prompt file": ("你好", "您好"),
    "schema of the prompt file": ("additionalProperties: false", "additionalProperties: true"),
    "teacher file": ("intent", "intend"),
}


@pytest.mark.parametrize("name", sorted(WORDS))
def test_a_word_of_what_teachers_and_rules_are_made_of_is_missed_by_its_reader(line: Line, name: str) -> None:
    overrides, path, reader = own_files(line)[name]
    assert missing(line, *overrides) == set(), "a copy at another path is the same"
    old, new = WORDS[name]
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert missing(line, *overrides) == {reader}


def test_a_judge_and_its_prompt_are_in_the_key_of_pairs(line: Line) -> None:
    prompt = line.folder / "judge.yaml"
    shutil.copy(ROOT / "configs" / "prompts" / "judge.yaml", prompt)
    plain = looked(line.config()).specs["pairs"]

    def key(**changes: Any) -> str:
        teacher = {
            "kind": "http",
            "name": "judge",
            "endpoint": "test",
            "base_url": "http://127.0.0.1:1/v1",
            "model": "m",
        }
        raw = plain.config.model_dump() | {"judge": {"teacher": teacher | changes, "prompt_file": prompt}}
        return replace(plain, config=type(plain.config).model_validate(raw)).key()

    first = key()
    assert first != plain.key() and first == key(base_url="http://127.0.0.1:2/v1") != key(model="n")
    prompt.write_text(prompt.read_text(encoding="utf-8").replace("better", "best", 1), encoding="utf-8")
    assert key() != first


# --- what an earlier step wrote --------------------------------------------------------------------------------------


def rewritten(line: Line, artifact: Artifact, name: str) -> None:
    """Publish the artifact as if its step had given one other byte in a file."""
    work = work_folder(artifact.path)
    shutil.copytree(artifact.path, work)
    if name.endswith("adapter_config.json"):
        path = work / name
        path.write_text(path.read_text().replace('"r": 4', '"r": 5'))
    else:
        flip(work / name, (work / name).stat().st_size - 1)
    module = module_of(artifact.manifest["step"])
    facts = {key: value for key, value in artifact.manifest.items() if key not in ("files", "digest", "seal")}
    publish(work, artifact.path, facts, records=getattr(module, "RECORDS", ()))


def contents() -> Iterator[tuple[str, str, bool]]:
    """Step, file of its artifact, and whether it counts as its output."""
    models = (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
    files = {
        "generate": {"candidates.parquet": True, "record/requests.sqlite": False},
        "clean": {
            "chats.parquet": True,
            "corpus.parquet": True,
            "heldout_prompts.parquet": True,
            "task.yaml": True,
            "dropped.parquet": False,
        },
        "base": {**{f"model/{name}": True for name in models}, "record/history.jsonl": False},
        "pretrain": {f"model/{name}": True for name in models},
        "sft": {
            "adapter/adapter_model.safetensors": True,
            "adapter/adapter_config.json": True,
            "chain.json": True,
            "record/location.json": False,
        },
        "pairs": {"pairs.parquet": True, "samples.parquet": True},
        "reference": {"logps.parquet": True, "policy.json": True, "record/log.jsonl": False},
        "dpo": {
            "adapter/adapter_model.safetensors": True,
            "adapter/adapter_config.json": True,
            "record/log.jsonl": False,
        },
        "evaluate": {"items.parquet": True, "report.json": True, "record/log.jsonl": False},
    }
    for step, names in files.items():
        for name, counts in names.items():
            yield step, name, counts


@pytest.mark.parametrize(
    ("step", "name", "counts"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in contents()]
)
def test_one_byte_of_an_earlier_artifact_is_missed_by_what_reads_it(
    line: Line, step: str, name: str, counts: bool
) -> None:
    rewritten(line, artifact_of(line, step), name)
    found = looked(line.config()).found
    assert {one for one, state in found.items() if state != "hit"} == (behind(step) if counts else set())
    assert not counts or READERS[step] >= {one for one, state in found.items() if state == "miss"} != set()


def artifact_of(line: Line, step: str) -> Artifact:
    config = line.config()
    found = Store(Path(config.store)).find(looked(config).specs[step].key())
    assert found
    return found


def test_each_input_counts_by_its_digest_and_not_by_its_key(line: Line) -> None:
    for step, spec in looked(line.config()).specs.items():
        key = spec.key()
        assert spec.inputs.keys() <= input_names(spec.module).keys()
        for name, artifact in spec.inputs.items():
            other = Artifact(artifact.path, {**artifact.manifest, "digest": "0" * 64})
            same = Artifact(
                Path("elsewhere"), {**artifact.manifest, "key": "other/key", "finished": "never", "host": "?"}
            )
            assert replace(spec, inputs={**spec.inputs, name: other}).key() != key, (step, name)
            assert replace(spec, inputs={**spec.inputs, name: same}).key() == key, (step, name)


@pytest.mark.parametrize(
    ("name", "missed"),
    [
        *[
            (name, True)
            for name in (
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "chat_template.jinja",
                "config.json",
            )
        ],
        ("README.md", False),
    ],
)
def test_one_byte_of_a_checkpoint_is_missed_by_base(line: Line, name: str, missed: bool) -> None:
    folder = line.folder / "checkpoint"
    shutil.copytree(artifact_of(line, "base").path / "model", folder)
    (folder / "README.md").write_text("a model")
    words = ["base.kind=checkpoint", f"base.path={folder}"]
    spec = looked(line.config(*words)).specs["base"]
    assert spec.inputs == {}
    build(spec, line.folder / "store" / spec.key())
    assert "base" not in missing(line, *words)
    moved = folder.rename(line.folder / "elsewhere")
    words[1] = f"base.path={moved}"
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    assert "base" not in missing(line, *words), "moved and touched"
    if name == "config.json":  # it must parse: a broken one is an error, not a miss
        (moved / name).write_text((moved / name).read_text() + " ")
    else:
        flip(moved / name, (moved / name).stat().st_size - 1)
    assert ("base" in missing(line, *words)) is missed


# --- VERSION, seed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", line_steps())
def test_version_and_seed_are_in_every_key(line: Line, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = looked(line.config()).specs[step]
    assert replace(spec, seed=spec.seed + 1).key() != spec.key()
    monkeypatch.setattr(module_of(step), "VERSION", "another")
    assert missing(line) == {step}


def test_the_seed_of_the_line_is_that_of_every_step(line: Line) -> None:
    found = looked(line.config("seed=1")).found
    assert set(found.values()) == {"miss", "behind"} and found["generate"] == "miss"


# --- what changes nothing --------------------------------------------------------------------------------------------


def reordered(value: Any) -> Any:
    """The same mappings with their keys in the opposite order."""
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def _order_of_keys(line: Line) -> list[str]:
    recipe = json.loads(line.recipe.read_text(encoding="utf-8"))
    line.recipe.write_text(json.dumps(reordered(recipe)), encoding="utf-8")
    assert line.recipe.read_text(encoding="utf-8").index("promote") < line.recipe.read_text(encoding="utf-8").index(
        "generate"
    )
    return []


def _touch(line: Line) -> list[str]:
    for path in line.folder.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    return []


def _rename_sources(line: Line) -> list[str]:
    text = line.recipe.read_text(encoding="utf-8")
    for path in line.folder.glob("*.jsonl"):
        path.rename(path.with_name(f"renamed-{path.name}"))
        text = text.replace(path.name, f"renamed-{path.name}")
    line.recipe.write_text(text, encoding="utf-8")
    return []


def _move_store(line: Line) -> list[str]:
    shutil.move(line.folder / "store", line.folder / "elsewhere")
    return [f"store={line.folder / 'elsewhere'}"]


def _move_registry(line: Line) -> list[str]:
    shutil.move(line.folder / "registry", line.folder / "elsewhere")
    return [f"promote.registry={line.folder / 'elsewhere'}"]


def _relative(line: Line) -> list[str]:
    text = line.recipe.read_text(encoding="utf-8")
    line.recipe.write_text(text.replace(str(line.folder), os.path.relpath(line.folder)), encoding="utf-8")
    return []


SAME: dict[str, Callable[[Line], list[str]]] = {
    "reordered keys": _order_of_keys,
    "touched files": _touch,
    "renamed sources": _rename_sources,
    "a moved store": _move_store,
    "a moved registry": _move_registry,
    "relative paths": _relative,
    "other checkpoints and logs": lambda line: [
        f"{step}.train.{name}=7" for step in ("base", "pretrain", "sft", "dpo") for name in ("save_every", "log_every")
    ],
    "retries, cache, name": lambda line: ["retries=3", f"cache={line.folder / 'c'}", "name=other"],
    "tracking": lambda line: ["tracking.mode=offline", "tracking.project=other"],
}


SWEEPS = ("dpo.beta=0.3", "dpo.loss.weights=null dpo.loss.type=[ipo]", "dpo.loss.ld_alpha=0.5", "dpo.train.lr=1e-5", "dpo.train.epochs=3",
          "dpo.train.batch_size=4", "dpo.loss.label_smoothing=0.1 dpo.loss.weights=null dpo.loss.type=[robust]")  # fmt: skip
"""What people try several values of."""


@pytest.mark.parametrize("words", SWEEPS)
def test_a_sweep_has_its_reference(line: Line, words: str) -> None:
    found = looked(line.config(*words.split())).found
    assert found["reference"] == "hit" and found["dpo"] == "miss"


@pytest.mark.parametrize(
    "word",
    ["dpo.train.max_length=300", "dpo.train.too_long=truncate", "dpo.train.precision=float32", "dpo.method=qlora"],
)
def test_what_decides_the_reference_is_missed_by_it_and_dpo_waits(line: Line, word: str) -> None:
    assert missing(line, word) == {"reference"}


@pytest.mark.parametrize("name", sorted(SAME))
def test_what_changes_no_result_is_missed_by_nothing(line: Line, name: str) -> None:
    assert missing(line, *SAME[name](line)) == set()


def test_a_renamed_folder_is_the_same_line(line: Line) -> None:
    moved = line.folder.rename(line.folder.with_name("renamed"))
    text = (moved / "minimal.yaml").read_text(encoding="utf-8").replace(str(line.folder), str(moved))
    (moved / "minimal.yaml").write_text(text, encoding="utf-8")
    assert missing(Line(moved)) == set()


def test_an_http_teacher_s_address_and_patience_are_not_in_the_key(line: Line) -> None:
    teacher = {"kind": "http", "name": "t", "endpoint": "e", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    neutral = {
        "base_url": "http://127.0.0.1:2/v1",
        "api_key_env": "NO_SUCH_KEY",
        "concurrency": 3,
        "timeout_seconds": 7.0,
        "attempts": 2,
    }
    plain = looked(line.config()).specs["generate"]

    def key(**changes: Any) -> str:
        raw = plain.config.model_dump() | {"teachers": [teacher | changes]}
        return replace(plain, config=type(plain.config).model_validate(raw)).key()

    first = key()
    for name, value in neutral.items():
        assert key(**{name: value}) == first, name
    for name, value in {
        "endpoint": "f",
        "model": "n",
        "temperature": 0.1,
        "top_p": 0.5,
        "max_tokens": 9,
        "name": "u",
        "send_seed": False,
    }.items():
        assert key(**{name: value}) != first, name


def test_the_process_does_not_matter(line: Line) -> None:
    """Another interpreter with another hash seed, and another layout of the same YAML, give the same keys."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/flows']\n"
        "from pathlib import Path; from minimal import Line; from looking import looked\n"
        "print(sorted(spec.key() for spec in looked(Line(Path(sys.argv[1])).config()).specs.values()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(line.folder)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)}, cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert said == {f"{sorted(spec.key() for spec in looked(line.config()).specs.values())}\n"}


def test_what_stands_behind_an_equal_input_changes_no_byte(line: Line) -> None:
    """Other candidates clean to the same rows: what is built behind them has the same key, and must have the same bytes."""
    from fault.micro import digests, forget, in_this_process, teacher_answers, walk, with_http_teacher
    from openai_server import serve

    before = walk(line)
    with serve(teacher_answers(line.folder)) as server, in_this_process() as built:
        with_http_teacher(line, server.url)
        after = walk(line)
        assert built == ["generate", "clean"] and digests(after)["clean"] == digests(before)["clean"]
        for step in ("base", "evaluate", "promote"):
            forget(line, after[step])
        again = walk(line)
    assert built[2:] == ["base", "evaluate", "promote"]
    changed = [step for step, digest in digests(again).items() if digest != digests(before)[step]]
    assert changed == ["generate"], f"{changed} changed under the same key"


def test_load_is_what_the_line_uses(line: Line) -> None:
    """The keys come from the same resolved configuration whatever layer a value stands in."""
    recipe = json.loads(line.recipe.read_text(encoding="utf-8"))
    del recipe["sft"]["lora"]
    line.recipe.write_text(json.dumps(recipe), encoding="utf-8")
    assert missing(line, "sft.lora.rank=4", "sft.lora.alpha=8") == set() != missing(line)
    assert load(AlignConfig, [], []).value
