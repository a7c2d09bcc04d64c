"""Keys are made of content, and the shell door says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
from minimal import BASE, ROOT, data_artifact

from steps.lib.artifact import Artifact
from steps.lib.config import Neutral, Section, load
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import DataError
from steps.lib.publishing import publish
from steps.lib.rows import Text, read_parquet
from steps.lib.step import Context, Metrics, Spec, build, input_names
from steps.lib.store import work_folder


class Inner(Section):
    rank: int = 8
    threads: Annotated[int, Neutral] = 1


class ToyConfig(Section):
    path: Annotated[Path, Neutral] = Path("words.txt")
    lr: float = 1e-3
    inner: Inner = Inner()


def run(config: ToyConfig, *, corpus: Path, extra: Path | None = None, out: Path, context: Context) -> Metrics:
    """Copy the corpus' bytes, and fail on request."""
    text = (corpus / "text").read_text()
    (out / "copy").write_text(text + str(config.lr))
    tries = context.resume / "tries"
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    context.log.info("copied")
    if text == "bad":
        raise DataError("text is bad")
    metrics = Metrics({"seed": context.seed, "tries": tries.read_text(), "extra": str(extra)}, tokens=3)
    metrics.rows.took("texts")
    metrics.rows.gave("copied")
    return metrics


def toy(version: str = "1", externals: Any = None) -> ModuleType:
    module = ModuleType("steps.toy")
    module.__dict__.update(VERSION=version, ToyConfig=ToyConfig, run=run, RECORDS=("seen",))
    if externals:
        module.__dict__["externals"] = externals
    return module


def corpus(root: Path, text: str = "text", name: str = "a" * 20) -> Artifact:
    work = work_folder(root / "clean" / name)
    work.mkdir(parents=True)
    (work / "text").write_text(text)
    return publish(work, root / "clean" / name, {"key": f"clean/{name}", "step": "clean", "inputs": {}})


def key(
    root: Path, config: ToyConfig | None = None, seed: int = 0, module: ModuleType | None = None, text: str = "text"
) -> str:
    made = corpus(root, text) if not (root / "clean").exists() else Artifact.read(root / "clean" / ("a" * 20))
    return Spec(module or toy(), config or ToyConfig(), {"corpus": made}, seed).key()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_changes_with_everything_that_can_change_the_result(tmp_path: Path) -> None:
    def by_content(config: ToyConfig) -> dict[str, str]:
        return {"words": digest_file(config.path)}

    words = tmp_path / "words.txt"
    words.write_text("one")
    config = ToyConfig(path=words)
    keys = [
        key(tmp_path / "1"),
        key(tmp_path / "2", text="texT"),
        key(tmp_path / "1", seed=1),
        key(tmp_path / "1", module=toy(version="2")),
        key(tmp_path / "1", ToyConfig(lr=1.0001e-3)),
        key(tmp_path / "1", ToyConfig(inner=Inner(rank=9))),
        key(tmp_path / "1", config, module=toy(externals=by_content)),
    ]
    words.write_text("onf")
    keys.append(key(tmp_path / "1", config, module=toy(externals=by_content)))
    assert len(set(keys)) == len(keys) and all(k.startswith("toy/") and len(k) == 24 for k in keys)


def test_a_key_does_not_change_with_what_cannot(tmp_path: Path) -> None:
    first = key(tmp_path / "1")
    assert key(tmp_path / "elsewhere") == first, "where the input lies"
    assert key(tmp_path / "1", ToyConfig(path=tmp_path / "other.txt")) == first, "a path"
    assert key(tmp_path / "1", ToyConfig(inner=Inner(threads=64))) == first, "a neutral field inside a section"
    named = corpus(tmp_path / "3", name="b" * 20)
    assert Spec(toy(), ToyConfig(), {"corpus": named}, 0).key() == first, "the name or key of the input"
    assert Spec(toy(), ToyConfig(lr=0.001), {"corpus": named}, 0).key() == first, "a default that is written out"


def test_a_key_does_not_change_with_the_order_of_a_yaml_file_or_of_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 0.5\ninner: {rank: 4, threads: 2}\n")
    (tmp_path / "b.yaml").write_text("inner:\n  threads: 3\n  rank: 4  # a comment\nlr: 5e-1\n")
    one, two = (load(ToyConfig, [tmp_path / name]).value for name in ("a.yaml", "b.yaml"))
    inputs = {"corpus": corpus(tmp_path / "1"), "extra": corpus(tmp_path / "2", "more")}
    assert Spec(toy(), one, inputs, 0).key() == Spec(toy(), two, dict(reversed(inputs.items())), 0).key()
    swapped = {"corpus": inputs["extra"], "extra": inputs["corpus"]}
    assert Spec(toy(), one, swapped, 0).key() != Spec(toy(), one, inputs, 0).key()


def test_parts_hold_no_path_and_no_host(tmp_path: Path) -> None:
    text = json.dumps(Spec(toy(), ToyConfig(path=tmp_path), {"corpus": corpus(tmp_path)}, 0).parts)
    assert str(tmp_path) not in text and os.uname().nodename not in text


def test_inputs_are_read_from_the_signature_of_run() -> None:
    assert input_names(toy()) == {"corpus": True, "extra": False}


# --- building --------------------------------------------------------------------------------------------------------


def test_build_publishes_with_all_that_made_it(tmp_path: Path) -> None:
    spec = Spec(toy(), ToyConfig(), {"corpus": corpus(tmp_path)}, 5)
    made = build(spec, tmp_path / spec.key())
    manifest = made.manifest
    assert manifest["key"] == spec.key() and manifest["parts"] == spec.parts and manifest["step"] == "toy"
    assert manifest["inputs"] == {"corpus": {"key": f"clean/{'a' * 20}", "digest": spec.inputs["corpus"].digest}}
    assert manifest["metrics"] == {"seed": 5, "tries": "x", "extra": "None"} and manifest["tokens"] == 3
    assert manifest["rows"] == {"in": {"texts": 1}, "out": {"copied": 1}, "dropped": {}}
    assert {"config", "seconds", "finished", "versions", "git", "host", "cost"} <= set(manifest)
    line = json.loads((made.path / "record" / "log.jsonl").read_text().splitlines()[0])
    assert line["message"] == "copied" and line["level"] == "info"


def test_a_failing_step_leaves_its_partial_folder_and_no_artifact(tmp_path: Path) -> None:
    spec = Spec(toy(), ToyConfig(), {"corpus": corpus(tmp_path, "bad")}, 0)
    target = tmp_path / spec.key()
    for tries in ("x", "xx"):
        with pytest.raises(DataError, match="text is bad"):
            build(spec, target)
        assert not target.exists() and (work_folder(target) / ".resume" / "tries").read_text() == tries, "it survives"


# --- the shell door --------------------------------------------------------------------------------------------------


def sources(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": f"The {word} of the shop is open on weekdays from nine to five, says the sign on its door."}
        for word in ("door", "window", "garden", "cellar")
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / "clean.yaml"
    config.write_text(f"domain:\n  - {{name: shop, path: {folder / 'text.jsonl'}}}\nnear_duplicate: {{corpus: null}}\n")
    return config


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], step: str = "clean") -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(step, argv)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().err


def test_the_door_builds_once_and_then_returns_at_once(tmp_path: Path) -> None:
    argv = ["--config", str(sources(tmp_path)), "--out", str(tmp_path / "out")]
    main("clean", argv)
    made = Artifact.read(tmp_path / "out")
    assert len(read_parquet(made.path / "corpus.parquet", Text)) == 4
    stamp = (made.path / "manifest.json").stat().st_mtime_ns
    main("clean", argv)
    main("clean", [*argv, "--key", made.key])
    assert (made.path / "manifest.json").stat().st_mtime_ns == stamp
    main("clean", [*argv, "--force"])
    assert Artifact.read(tmp_path / "out").digest == made.digest
    assert (made.path / "manifest.json").stat().st_mtime_ns > stamp


def test_the_door_never_writes_over_another_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(sources(tmp_path)), "--out", str(tmp_path / "out")]
    main("clean", argv)
    capsys.readouterr()
    digest = Artifact.read(tmp_path / "out").digest
    code, said = refused([*argv, "--seed", "1"], capsys)
    assert code == 2 and "already holds clean/" in said and "choose another folder" in said
    assert Artifact.read(tmp_path / "out").digest == digest
    (tmp_path / "full").mkdir()
    code, said = refused([*argv[:-1], str(tmp_path / "full")], capsys)
    assert code == 5 and "is not a whole artifact: got no manifest.json" in said


def test_the_door_refuses_a_key_that_is_not_that_of_what_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(sources(tmp_path)), "--out", str(tmp_path / "out"), "--key", "clean/" + "0" * 20]
    code, said = refused(argv, capsys)
    assert code == 5 and said.startswith("ArtifactError: key of step clean is clean/") and "start the run again" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["near_heldut=0.4"], 2, "near_heldout"),
        (["answers_per_prompt=-1"], 2, "answers_per_prompt"),
        (["near_heldut=0.4", "answers_per_prompt=-1"], 2, "2 problems in the configuration"),
        (["min_rows.corpus=99"], 3, "corpus"),
        (["--candidates", "nowhere"], 5, "nowhere is not a whole artifact"),
        (["task=nothing.yaml"], 3, "nothing.yaml is missing"),
    ],
)
def test_the_door_says_what_is_wrong_with_the_exit_code_of_its_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    found, message = refused(["--config", str(sources(tmp_path)), "--out", str(tmp_path / "out"), *argv], capsys)
    assert (found, said in message) == (code, True), message
    assert "got " in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_the_engines_error_file_gets_the_message_in_place_of_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFLINE_ERROR_FILE", str(tmp_path / "error.txt"))
    code, said = refused(["--config", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "out")], capsys)
    assert code == 2 and "Error" not in said
    told = json.loads((tmp_path / "error.txt").read_text())
    assert told["exit_code"] == 2 and "no.yaml" in told["message"]


@pytest.mark.tiny
def test_the_model_step_runs_from_the_shell_with_explicit_folders(tmp_path: Path) -> None:
    data = data_artifact(tmp_path)
    config = tmp_path / "base.json"
    config.write_text(BASE.model_dump_json())
    argv = [
        sys.executable,
        "-m",
        "steps.base",
        "--config",
        str(config),
        "--corpus",
        str(data.path),
        "--out",
        str(tmp_path / "mine"),
        "train.max_updates=2",
        "train.log_every=1",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    made = Artifact.read(tmp_path / "mine")
    assert made.manifest["metrics"]["updates"] == 2 and made.manifest["inputs"]["corpus"]["digest"] == data.digest
    assert (made.path / "model" / "model.safetensors").exists() and "update 2/2" in done.stderr
    assert not list(tmp_path.rglob("*.bin")), "no pickle is published"
    assert not list(made.path.rglob("*.pt"))
    light = "import sys, steps.base, steps.sft, steps.dpo, steps.evaluate; print({'torch', 'transformers', 'prefect'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", light], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
