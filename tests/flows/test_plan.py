"""The walk that only looks: every state, keys as the engine has them, and nothing written."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from minimal import ROOT, Line, line_recipe

from flows import plan
from flows.line import AlignConfig, steps_of
from flows.plan import Look, walk
from steps.lib.artifact import Artifact
from steps.lib.code import closure
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.publishing import publish
from steps.lib.step import Spec
from steps.lib.store import Store


def config_of(line: Line, *overrides: str) -> AlignConfig:
    from steps.lib.config import layers_of, load

    return load(AlignConfig, layers_of("cpu-tiny", [line.recipe], ROOT / "configs"), overrides).value


def fake(store: Store, spec: Spec, text: str = "", **facts: Any) -> Artifact:
    """The artifact of a step as ``steps.lib.step.build`` publishes it, without the work: its one file holds ``text``."""
    work = store.partial(spec.key())
    work.mkdir(parents=True, exist_ok=True)
    (work / "result.txt").write_text(text or spec.key())
    manifest = {
        "step": spec.name,
        "key": spec.key(),
        "parts": spec.parts,
        "inputs": {name: {"key": one.key, "digest": one.digest} for name, one in spec.inputs.items()},
        "config": spec.config.model_dump(mode="json"),
        "metrics": {"loss": 0.5},
        "rows": {"in": {"prompts": 9}, "out": {"rows": 7}, "dropped": {"prompts": {"too_long": 2}}},
        "tokens": 1234,
        "cost": 0.0,
        "seconds": 1.5,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": "here",
        "versions": {"python": "3.11"},
        "git": "abc",
        "code": closure(spec.module.__name__),
    }
    return publish(work, store.folder(spec.key()), {**manifest, **facts})


def fill(config: AlignConfig, store: Store, *, until: str = "evaluate", **texts: str) -> dict[str, Look]:
    """Fake artifacts of a configuration, one after the other, up to a step."""
    while True:
        looks = {look.step: look for look in walk(config, store)}
        missing = next((look for look in looks.values() if not look.there), None)
        if missing is None or looks[until].there:
            return looks
        assert missing.spec
        fake(store, missing.spec, texts.get(missing.step, ""))


@pytest.fixture
def line(tmp_path: Path) -> Line:
    line_recipe(tmp_path)
    return Line(tmp_path)


@pytest.fixture
def store(line: Line) -> Store:
    return Store(line.folder / "store")


def states(config: AlignConfig, store: Store) -> dict[str, str]:
    return {look.step: look.state for look in walk(config, store)}


def everything(folder: Path) -> list[tuple[str, int, int]]:
    """Every name below a folder with size and time of writing."""
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_an_empty_store_has_nothing_and_what_is_behind_waits(line: Line, store: Store) -> None:
    looks = walk(config_of(line), store)
    assert [look.step for look in looks] == list(steps_of(config_of(line)))
    assert (looks[0].state, looks[0].key is not None) == ("missing", True)
    for look in looks[1:]:
        assert (look.state, look.key, look.waits_for) == ("waits", None, ("generate",))
    assert not store.root.exists(), "looking makes no folder"


def test_keys_are_those_of_the_engine(line: Line, store: Store) -> None:
    from flows.engine import Engine

    config = config_of(line, "promote=null")
    fill(config, store)
    engine = Engine(config)
    engine.run()
    assert [one.artifact.key for one in engine.outcomes] == [look.key for look in walk(config, store)]
    assert all(one.cached for one in engine.outcomes)


def test_a_filled_store_is_done_and_nothing_is_written(line: Line, store: Store) -> None:
    config = config_of(line, "promote=null")
    fill(config, store)
    before = everything(store.root)
    assert set(states(config, store).values()) == {"done"}
    assert everything(store.root) == before


def test_another_value_makes_its_step_stale_and_those_behind_wait(line: Line, store: Store) -> None:
    fill(config_of(line, "promote=null"), store)
    other = config_of(line, "promote=null", "sft.lora.rank=8")
    found = {look.step: look for look in walk(other, store)}
    assert found["sft"].state == "stale" and found["pretrain"].state == "done"
    assert [found[step].waits_for for step in ("pairs", "reference", "dpo", "evaluate")] == [("sft",)] * 4
    [(artifact, changes)] = [one for one in [plan.differing(found["sft"], store)] if one]
    assert [(change.name, change.old and change.old.value, change.new and change.new.value) for change in changes] == [
        ("sft.lora.rank", 4, 8)
    ]
    assert artifact.key.startswith("sft/")


def test_a_line_with_two_holes_names_the_holes_and_not_what_waits(line: Line, store: Store) -> None:
    config = config_of(line, "promote=null")
    looks = fill(config, store)
    for step in ("pretrain", "pairs"):
        shutil.rmtree(store.folder(str(looks[step].key)))
    found = {look.step: look for look in walk(config, store)}
    assert found["pretrain"].state == "missing" and found["sft"].waits_for == ("pretrain",)
    assert found["pairs"].waits_for == ("pretrain",), "its key is not known either"
    assert found["evaluate"].waits_for == ("pretrain",)
    fill(config, store, until="pretrain")
    found = {look.step: look for look in walk(config, store)}
    assert found["sft"].state == "done", "the same output gives the same keys"
    assert found["pairs"].state == "missing" and found["dpo"].waits_for == found["reference"].waits_for == ("pairs",)


def test_equal_outputs_of_a_rebuilt_step_leave_those_behind_done(line: Line, store: Store) -> None:
    config = config_of(line, "promote=null")
    fill(config, store, generate="the same answers")
    other = config_of(line, "promote=null", "generate.max_failed_share=0.5")
    assert states(other, store)["generate"] == "stale"
    fill(other, store, until="generate", generate="the same answers")
    assert set(states(other, store).values()) == {"done"}


def test_changed_code_is_told_and_reused(line: Line, store: Store) -> None:
    config = config_of(line, "promote=null")
    looks = fill(config, store, until="clean")
    spec = looks["clean"].spec
    assert spec
    code = closure("steps.clean")
    shutil.rmtree(store.folder(spec.key()))
    fake(store, spec, code={"digest": "x", "files": {**code["files"], "steps/clean.py": "0" * 64}})
    found = {look.step: look for look in walk(config, store)}
    assert (found["clean"].state, found["clean"].code) == ("changed code", ("steps/clean.py",))
    assert found["clean"].there and found["base"].state == "missing"


def test_a_partial_folder_shows_how_far_it_came(line: Line, store: Store) -> None:
    config = config_of(line, "promote=null")
    first = walk(config, store)[0]
    assert first.key
    resume = store.partial(first.key) / ".resume"
    resume.mkdir(parents=True)
    with sqlite3.connect(resume / "requests.sqlite") as ledger:
        ledger.execute("CREATE TABLE requests (key TEXT, status TEXT)")
        ledger.executemany("INSERT INTO requests VALUES (?, ?)", [("a", "ok"), ("b", "ok"), ("c", "failed")])
    ledger.close()
    shutil.copyfile(resume / "requests.sqlite", resume / "damaged-1-requests.sqlite")
    before = everything(store.root)
    look = walk(config, store)[0]
    assert everything(store.root) == before, "not even SQLite's companions"
    assert look.state == "partial" and look.age is not None and look.age < 60
    assert [str(one) for one in look.progress] == ["2 of 12 answers"]

    looks = fill(config, store, until="pretrain")
    sft = next(look for look in walk(config, store) if look.step == "sft")
    checkpoint = store.partial(str(sft.key)) / ".resume" / "checkpoints" / "checkpoint-2"
    for name, marked in (("checkpoint-2", True), ("checkpoint-4", True), ("checkpoint-6", False)):
        folder = checkpoint.with_name(name)
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"max_steps": 430}))
        if marked:
            (folder / "complete.json").write_text("{}")
    shutil.move(checkpoint.with_name("checkpoint-4"), checkpoint.with_name(f"damaged-checkpoint-4-{time.time_ns()}"))
    look = next(look for look in walk(config, store) if look.step == "sft")
    assert (look.state, [str(one) for one in look.progress]) == ("partial", ["2 of 430 updates"])
    assert looks["pretrain"].there


def test_a_ledger_that_a_process_is_writing_is_counted(line: Line, store: Store) -> None:
    config = config_of(line)
    first = walk(config, store)[0]
    path = store.partial(str(first.key)) / ".resume" / "requests.sqlite"
    path.parent.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from steps.lib.ledger import Reply, RequestLedger\n"
        "with RequestLedger(Path(sys.argv[1])) as ledger:\n"
        "    [ledger.put(str(n), Reply('x')) for n in range(5)]\n"
        "    print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline()
            assert [str(one) for one in walk(config, store)[0].progress] == ["5 of 12 answers"]
            process.kill()
            process.wait()
            assert [str(one) for one in walk(config, store)[0].progress] == ["5 of 12 answers"]
        finally:
            process.kill()


def _hold(root: str, name: str, taken: Any, done: Any) -> None:
    import logging

    from steps.lib.locks import hold
    from steps.lib.place import FolderPlace

    with hold(FolderPlace(Path(root)), name, log=logging.getLogger("test")):
        taken.set()
        done.wait(60)


def test_a_held_lock_is_a_step_that_runs(line: Line, store: Store) -> None:
    config = config_of(line)
    key = str(walk(config, store)[0].key)
    spawn = multiprocessing.get_context("spawn")
    taken, done = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(str(store.root), f".locks/{key.replace('/', '-')}", taken, done))
    process.start()
    try:
        assert taken.wait(30)
        look = walk(config, store)[0]
        assert look.state == "running" and look.holder and look.holder.pid == process.pid
        process.kill()
        process.join()
        assert walk(config, store)[0].state == "missing", "its process is gone"
    finally:
        process.kill()


def test_a_damaged_artifact_is_told_and_left_where_it_is(line: Line, store: Store) -> None:
    config = config_of(line)
    looks = fill(config, store, until="clean")
    folder = store.folder(str(looks["generate"].key))
    (folder / "result.txt").write_text("x")
    found = walk(config, store)
    assert (found[0].state, found[1].waits_for) == ("damaged", ("generate",))
    assert "result.txt" in found[0].reason and folder.exists() and not (store.root / "broken").exists()


def test_a_missing_file_blocks_its_step_and_names_itself(line: Line, store: Store) -> None:
    config = config_of(line)
    fill(config, store, until="generate")
    (line.folder / "domain-train.jsonl").unlink()
    found = {look.step: look for look in walk(config, store)}
    assert found["clean"].state == "blocked" and "domain-train.jsonl" in found["clean"].reason
    assert found["sft"].waits_for == ("clean",)


def test_a_verdict_that_the_registry_does_not_show_is_stale(line: Line, store: Store) -> None:
    config = config_of(line)
    looks = fill(config, store, until="evaluate")
    spec = next(look.spec for look in walk(config, store) if look.step == "promote")
    assert spec and looks["evaluate"].artifact
    artifact = fake(store, spec)
    verdict = {
        "verdict": "reject",
        "reasons": ["no"],
        "policy": "p",
        "report": "r",
        "candidate": "dpo",
        "against": "sft",
    }
    shutil.rmtree(artifact.path)
    work = store.partial(spec.key())
    work.mkdir(parents=True)
    (work / "verdict.json").write_text(json.dumps(verdict))
    fake(store, spec)
    look = walk(config, store)[-1]
    assert (look.step, look.state) == ("promote", "stale") and "has no version" in look.reason


@pytest.mark.tiny
def test_a_line_that_real_steps_built_is_done_with_its_verdict(minimal_line: Line) -> None:
    store = Store(minimal_line.folder / "store")
    looks = walk(minimal_line.config(), store)
    assert [(look.step, look.state) for look in looks] == [(step, "done") for step in steps_of(minimal_line.config())]
    for look in looks:
        assert look.artifact and look.parts == plan.parts_of(look.artifact), "the manifest tells the same parts"


def test_a_word_names_a_step_a_key_or_the_start_of_a_key(line: Line, store: Store) -> None:
    config = config_of(line)
    fill(config, store, until="clean")
    fill(config_of(line, "generate.max_failed_share=0.5"), store, until="generate")
    key = str(walk(config, store)[0].key)
    for word in ("generate", key, key[:-8], key.partition("/")[2][:10]):
        assert plan.resolve(word, config, store).key == key, word
    coming = next(look for look in walk(config, store) if look.step == "base")
    assert plan.resolve(str(coming.key)[:12], config, store).state == "missing", "a key that is only to come"
    with pytest.raises(ConfigError, match="got 2 that begin so"):
        plan.resolve("generate/", config, store)
    with pytest.raises(ArtifactError, match="no key that begins so"):
        plan.resolve("sft/123", config, store)
    with pytest.raises(ConfigError, match="step dpo is left out"):
        plan.resolve("dpo", config_of(line, "dpo=null"), store)


def test_times_in_words() -> None:
    assert [plan.ago(seconds) for seconds in (-5, 40, 119, 120, 5400, 7200, 200_000)] == [
        "0 s",
        "40 s",
        "119 s",
        "2 min",
        "90 min",
        "2 h",
        "2 d",
    ]


def test_looking_loads_nothing_heavy() -> None:
    code = (
        "import sys, flows.plan, flows.commands.status, flows.commands.why, flows.commands.show, flows.commands.lineage, "
        "flows.commands.verify, flows.commands.gc\n"
        "print({'torch', 'transformers', 'prefect', 'pyarrow', 'matplotlib', 'fsspec', 's3fs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "set()", done.stderr
