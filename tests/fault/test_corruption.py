"""Damage to any file of any artifact is found at the next look-up: set aside with the reason, built again, never used."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault.micro import (
    SAVE_EVERY,
    TASK_PROMPTS,
    UPDATES,
    digests,
    forget,
    in_this_process,
    teacher_answers,
    walk,
    with_http_teacher,
)
from minimal import Line
from openai_server import serve

from flows.engine import Outcome, Plan
from flows.line import steps_of
from steps.lib import door
from steps.lib import step as step_shape
from steps.lib.artifact import MANIFEST, Artifact
from steps.lib.store import Store

ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0


def truncate(path: Path, other: Path) -> bool:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return len(data) > 0


def flip(path: Path, other: Path) -> bool:
    """One byte in the middle, with the old time stamp on the file."""
    data, facts = bytearray(path.read_bytes()), path.stat()
    if data:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return len(data) > 0


def delete(path: Path, other: Path) -> bool:
    path.unlink()
    return True


def swap(path: Path, other: Path) -> bool:
    """The file of the same name that a run with another seed wrote."""
    before = path.read_bytes()
    shutil.copyfile(other, path)
    return path.read_bytes() != before


def hide(path: Path, other: Path) -> bool:
    """Make it unreadable. Root reads everything: a folder in its place is what root cannot read."""
    if not ROOT_USER:
        path.chmod(0)
        return True
    path.unlink()
    path.mkdir()
    return True


def dangle(path: Path, other: Path) -> bool:
    path.unlink()
    path.symlink_to("/nowhere/at/all")
    return True


Damage = Callable[[Path, Path], bool]
"""Damages ``path``; says whether that changed anything (an empty file cannot be cut)."""
DAMAGES: tuple[Damage, ...] = (truncate, flip, delete, swap, hide, dangle)


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


@pytest.fixture(scope="session")
def other_seed(minimal_line: Line, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artifacts of a run with another seed."""
    other = minimal_line.copy(tmp_path_factory.mktemp("seed"))
    with in_this_process():
        outcomes = walk(other, "seed=1")
    return {step: outcome.artifact for step, outcome in outcomes.items()}


def cases(outcomes: dict[str, Outcome], every: bool) -> Iterator[tuple[Artifact, str]]:
    """Each file of each artifact; or each name of a file once."""
    seen = set[str]()
    for outcome in outcomes.values():
        for name in (*outcome.artifact.manifest["files"], MANIFEST):
            if every or name not in seen:
                seen.add(name)
                yield outcome.artifact, name


@pytest.mark.parametrize(
    "every", [pytest.param(False, id="each-name"), pytest.param(True, id="each-file", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_set_aside_and_told(
    line: Line, other_seed: dict[str, Artifact], damage: Damage, every: bool, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes, store, count = walk(line), Store(line.folder / "store"), 0
    for artifact, name in cases(outcomes, every):
        path, whole = artifact.path / name, (artifact.path / name).read_bytes()
        changed = damage(path, other_seed[artifact.manifest["step"]].path / name)
        if changed:
            count += 1
            caplog.clear()
            assert store.find(artifact.key) is None, f"{damage.__name__} of {artifact.key}/{name} was not found"
            assert not artifact.path.exists() and not os.path.lexists(artifact.path)
            [aside] = [folder for folder in (store.root / "broken").iterdir() if folder.is_dir()]
            reason = aside.with_name(aside.name + ".reason.txt").read_text()
            told = "at the place of" if name == MANIFEST and damage is swap else name
            assert told in reason, f"{damage.__name__} of {artifact.key}/{name}: {reason}"
            [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert artifact.key in said and reason.strip() in said and str(aside) in said
            aside.rename(artifact.path)
            shutil.rmtree(store.root / "broken")
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert count > (30 if every else 15)
    assert all(outcome.cached for outcome in walk(line).values())


SAMPLES: list[tuple[Damage, str, str]] = [
    (flip, "generate", "record/requests.sqlite"),
    (delete, "clean", "chats.parquet"),
    (truncate, "base", "model/tokenizer.json"),
    (flip, "pretrain", "model/model.safetensors"),
    (swap, "sft", "adapter/adapter_model.safetensors"),
    (dangle, "pairs", "pairs.parquet"),
    (flip, "reference", "logps.parquet"),
    (hide, "dpo", "adapter/adapter_config.json"),
    (truncate, "evaluate", "report.json"),
    (swap, "promote", MANIFEST),
]


@pytest.mark.parametrize(
    ("damage", "step", "name"), SAMPLES, ids=[f"{sample[0].__name__}-{sample[1]}" for sample in SAMPLES]
)
def test_a_damaged_artifact_is_built_again_alone_and_equal(
    line: Line, other_seed: dict[str, Artifact], damage: Damage, step: str, name: str
) -> None:
    before = walk(line)
    assert damage(before[step].artifact.path / name, other_seed[step].path / name)
    with in_this_process() as built:
        after = walk(line)
    assert built == [step] and digests(after) == digests(before)
    assert len(list((line.folder / "store" / "broken").glob(f"{step}-*.reason.txt"))) == 1


def test_a_step_never_sees_a_damaged_input(line: Line) -> None:
    """Only what reads it would run; the damaged one is built again first."""
    outcomes = walk(line)
    flip(outcomes["pairs"].artifact.path / "pairs.parquet", Path())
    forget(line, outcomes["dpo"])
    with in_this_process() as built:
        after = walk(line)
    assert built == ["pairs", "dpo"] and digests(after) == digests(outcomes)


@pytest.mark.long  # each of them alone is in every run
def test_several_damaged_at_once_are_all_mended_in_one_walk(line: Line) -> None:
    outcomes = walk(line)
    for step in steps_of(line.config()):
        folder = outcomes[step].artifact.path
        flip(folder / sorted(outcomes[step].artifact.manifest["files"])[0], Path())
    (outcomes["clean"].artifact.path / MANIFEST).write_text("{")
    shutil.rmtree(outcomes["base"].artifact.path)
    with in_this_process() as built:
        after = walk(line)
    assert built == list(steps_of(line.config())) and digests(after) == digests(outcomes)


def test_a_whole_artifact_of_another_run_at_this_place_is_foreign(line: Line, other_seed: dict[str, Artifact]) -> None:
    outcomes = walk(line)
    mine, other = outcomes["sft"].artifact, other_seed["sft"]
    shutil.rmtree(mine.path)
    shutil.copytree(other.path, mine.path)
    with in_this_process() as built:
        assert digests(walk(line)) == digests(outcomes)
    assert built == ["sft"]
    [reason] = (line.folder / "store" / "broken").glob("*.reason.txt")
    assert f"the artifact {other.key} at the place of {mine.key}" in reason.read_text()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_folder_at_an_artifact_s_place_is_set_aside(line: Line, kind: str, tmp_path: Path) -> None:
    outcomes = walk(line)
    path = outcomes["pairs"].artifact.path
    path.rename(tmp_path / "moved")
    if kind == "file":
        path.write_text("")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    with in_this_process() as built:
        assert digests(walk(line)) == digests(outcomes)
    assert built == ["pairs"] and path.is_dir() and not path.is_symlink()


@pytest.mark.parametrize("name", ["notes.txt", "model/pytorch_model.bin", "record/notes.txt", "adapter/extra/deep.bin"])
def test_a_foreign_file_is_set_aside_alone(line: Line, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for outcome in walk(line).values():
        path = outcome.artifact.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("foreign")
    caplog.clear()
    assert all(outcome.cached for outcome in walk(line).values())
    found = sorted((line.folder / "store" / "broken").glob(f"*/{name}"))
    count = len(steps_of(line.config()))
    assert len(found) == count and {path.read_text() for path in found} == {"foreign"}
    assert sum(name in record.getMessage() for record in caplog.records) == count
    caplog.clear()
    assert all(outcome.cached for outcome in walk(line).values()) and not caplog.records, "told once"


# --- inputs given by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [truncate, flip, delete, dangle], ids=lambda damage: damage.__name__)
def test_an_input_given_by_hand_is_proved_too(
    line: Line, damage: Damage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcomes = walk(line)
    by_key = {outcome.artifact.key: outcome.artifact for outcome in outcomes.values()}
    tried = 0
    for step, outcome in outcomes.items():
        given = {source: by_key[entry["key"]] for source, entry in outcome.artifact.manifest["inputs"].items()}
        for source, artifact in given.items():
            name = max(artifact.manifest["files"], key=lambda one: artifact.manifest["files"][one]["size"])
            path, whole = artifact.path / name, (artifact.path / name).read_bytes()
            assert damage(path, path)
            words = [word for each, one in given.items() for word in (f"--{each}", str(one.path))]
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                door.main(step, [*words, "--out", str(tmp_path / "out")])
            said = capsys.readouterr().err
            assert ended.value.code == 5 and name in said and str(artifact.path) in said, f"{step} --{source}: {said}"
            assert not (tmp_path / "out").exists() and artifact.path.exists(), "nothing is written or moved"
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
            tried += 1
    assert tried >= 17


@pytest.mark.parametrize("step", ["pairs", "reference", "dpo", "evaluate"])
def test_the_base_below_an_adapter_given_by_hand_is_proved_too(
    line: Line, step: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The base is not on the command line: the adapter's artifact leads to it."""
    outcomes = walk(line)
    weights = outcomes["pretrain"].artifact.path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # the last weight: the file loads as before
    weights.write_bytes(data)
    by_key = {outcome.artifact.key: outcome.artifact for outcome in outcomes.values()}
    inputs = outcomes[step].artifact.manifest["inputs"]
    given = {
        source: by_key[entry["key"]] for source, entry in inputs.items() if not entry["key"].startswith("pretrain")
    }
    words = [word for source, one in given.items() for word in (f"--{source}", str(one.path))]
    with pytest.raises(SystemExit) as ended:
        door.main(step, [*words, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 4 and "does not fit its base" in said and outcomes["pretrain"].artifact.key in said, said
    assert not (tmp_path / "out").exists()


# --- what a stopped step left ----------------------------------------------------------------------------------------


class Stopped(Exception):
    """In place of a kill right before the artifact is published."""


def stopped_before_publishing(line: Line, step: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The partial folder of a step that did all its work and was killed then."""

    def killed(*_: Any, **__: Any) -> None:
        raise Stopped

    key = walk(line)[step].artifact.key
    forget(line, walk(line)[step])
    with monkeypatch.context() as patch, in_this_process(), pytest.raises(Stopped):
        patch.setattr(step_shape, "publish", killed)
        walk(line, plan=Plan.of(until=step))
    return Store(line.folder / "store").partial(key)


def messages(outcome: Outcome) -> str:
    return (outcome.artifact.path / "record" / "log.jsonl").read_text(encoding="utf-8")


def damage_checkpoint(folder: Path, how: str) -> None:
    if how == "flip":
        flip(folder / "optimizer.pt", Path())
    elif how == "delete":
        next(folder.rglob("*.safetensors")).unlink()
    elif how == "unmarked":
        (folder / "complete.json").unlink()
    elif how == "mark":
        truncate(folder / "complete.json", Path())
    elif how == "foreign":
        (folder / "extra.bin").write_bytes(b"x")


@pytest.mark.parametrize(
    ("step", "how"),
    [
        ("pretrain", "flip"),
        ("sft", "delete"),
        ("base", "foreign"),
        pytest.param("dpo", "mark", marks=pytest.mark.long),
        pytest.param("sft", "unmarked", marks=pytest.mark.long),
    ],
)
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken(
    line: Line, step: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = walk(line)
    partial = stopped_before_publishing(line, step, monkeypatch)
    found = sorted(path.name for path in (partial / ".resume" / "checkpoints").iterdir())
    assert found == [f"checkpoint-{UPDATES - SAVE_EVERY}", f"checkpoint-{UPDATES}"]
    damage_checkpoint(partial / ".resume" / "checkpoints" / found[-1], how)
    with in_this_process() as built:
        after = walk(line)
    assert built == [step] and digests(after) == digests(before)
    said = messages(after[step])
    assert f"after update {UPDATES - SAVE_EVERY} of" in said, said
    assert len(re.findall(r"update \d+/", said)) == UPDATES + SAVE_EVERY, said
    assert f"checkpoint-{UPDATES} " in said, "the damaged one is named"
    history = "record/history.jsonl"
    assert (after[step].artifact.path / history).read_bytes() == (walk_again(line, step) / history).read_bytes()


def walk_again(line: Line, step: str) -> Path:
    """The artifact of a step, built once more without a disturbance."""
    forget(line, walk(line)[step])
    with in_this_process():
        return walk(line)[step].artifact.path


def test_with_all_checkpoints_damaged_training_starts_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    before = walk(line)
    partial = stopped_before_publishing(line, "sft", monkeypatch)
    for folder in (partial / ".resume" / "checkpoints").iterdir():
        flip(folder / "rng_state.pth", Path())
    with in_this_process():
        after = walk(line)
    assert digests(after) == digests(before) and messages(after["sft"]).count("update ") == 2 * UPDATES


@pytest.mark.parametrize("how", ["header", "row", "cut", "empty", "deleted"])
def test_of_a_damaged_ledger_only_what_is_lost_is_asked_again(
    line: Line, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(teacher_answers(line.folder)) as server:
        with_http_teacher(line, server.url)
        with in_this_process():
            before = walk(line)
        asked = len(server.bodies)
        partial = stopped_before_publishing(line, "generate", monkeypatch)
        assert len(server.bodies) == 2 * asked == 2 * TASK_PROMPTS
        path = partial / ".resume" / "requests.sqlite"
        if how == "header":
            path.write_bytes(b"no database" + path.read_bytes()[11:])
        elif how == "row":
            with sqlite3.connect(path) as database:
                database.execute("UPDATE requests SET text = text || ' ' WHERE rowid = 3")
            database.close()
        elif how == "cut":
            truncate(path, path)
        elif how == "empty":
            path.write_bytes(b"")
        else:
            path.unlink()
        with in_this_process() as built:
            after = walk(line)
        again = len(server.bodies) - 2 * asked
    assert built[0] == "generate" and digests(after) == digests(before)
    assert again == (1 if how == "row" else TASK_PROMPTS)
    with sqlite3.connect(after["generate"].artifact.path / "record" / "requests.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


@pytest.mark.parametrize("step", ["clean", "pairs", "reference", "evaluate"])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_ledger_of_own_work_is_not_believed(
    line: Line, step: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = walk(line)
    partial = stopped_before_publishing(line, step, monkeypatch)
    ledgers = sorted((partial / ".resume").rglob("*.sqlite"))
    if not ledgers:
        pytest.skip(f"{step} keeps no ledger for rows this few")
    for path in ledgers:
        data = bytearray(path.read_bytes())
        for place in range(4096, len(data), 997):  # behind the first page, in every page of rows
            data[place] ^= 1
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])
    with in_this_process() as built:
        after = walk(line)
    assert built == [step] and digests(after) == digests(before)
