"""Collection: nothing that is needed ever goes, what goes is gone, and a run that starts meanwhile is not met."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import example_report
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minimal import ROOT

from steps.lib import runs
from steps.lib.artifact import Artifact
from steps.lib.collect import Busy, Item, alone, collect, survey
from steps.lib.digests import digest_text
from steps.lib.errors import ArtifactError
from steps.lib.locks import hold
from steps.lib.publishing import publish
from steps.lib.references import references
from steps.lib.registry import Registry
from steps.lib.store import Store

OLD = time.time() - 3 * 24 * 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def aged(path: Path, when: float = OLD) -> None:
    """As if everything below had been written then."""
    for one in (*path.rglob("*"), path):
        os.utime(one, (when, when))


def begun(store: Store, step: str, name: str) -> str:
    """The key of an artifact of one small file, which is written. (Hashing waits until a file is 50 ms old.)"""
    key = f"{step}/{digest_text(name)[:20]}"
    if not store.partial(key).exists():
        store.partial(key).mkdir(parents=True)
        (store.partial(key) / "result.txt").write_text(name)
    return key


def made(store: Store, step: str, name: str, *inputs: Artifact, old: bool = True, **facts: object) -> Artifact:
    """An artifact of one small file."""
    key = begun(store, step, name)
    work = store.partial(key)
    links = {f"input{place}": {"key": one.key, "digest": one.digest} for place, one in enumerate(inputs)}
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(OLD if old else time.time()))
    artifact = publish(
        work, store.folder(key), {"step": step, "key": key, "inputs": links, "config": {}, "finished": stamp, **facts}
    )
    if old:
        aged(artifact.path)
    return artifact


def chain(store: Store, name: str) -> list[Artifact]:
    """clean -> sft -> dpo."""
    for step in ("clean", "sft", "dpo"):
        begun(store, step, f"{step} {name}")
    found = [made(store, "clean", f"clean {name}")]
    for step in ("sft", "dpo"):
        found.append(made(store, step, f"{step} {name}", found[-1]))
    return found


def walked(store: Store, artifacts: list[Artifact], name: str = "run", *, end: bool = True) -> runs.Recorder:
    walk = runs.begin(store.place, name)
    for one in artifacts:
        walk.reached(one.key.partition("/")[0], one.key)
    if end:
        walk.end()
    return walk


def verdicts(items: list[Item], kind: str = "artifact") -> dict[str, str]:
    """Name -> why it stays; "" for what goes."""
    return {item.name: "" if item.goes else item.reason for item in items if item.kind == kind}


def left(store: Store) -> set[str]:
    return set(store.keys())


@contextmanager
def held(store: Store, key: str) -> Iterator[int]:
    """Another process that holds a key's lock."""
    code = (
        "import logging, sys, time; from pathlib import Path; from steps.lib.locks import hold\n"
        "from steps.lib.place import FolderPlace\n"
        "with hold(FolderPlace(Path(sys.argv[1])), sys.argv[2], log=logging.getLogger()):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(store.root), f".locks/{key.replace('/', '-')}"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


# --- what stays ------------------------------------------------------------------------------------------------------


def test_what_nothing_refers_to_goes_and_a_survey_changes_nothing(store: Store) -> None:
    keys = {one.key for one in chain(store, "a")}
    items = survey(store)
    assert {item.name for item in items if item.goes} == keys == left(store)
    assert all(item.size == len((store.folder(item.name) / "result.txt").read_bytes()) for item in items)
    assert [item.goes for item in collect(store, items)] == [True] * 3
    assert left(store) == set() and not list(store.root.glob("*/*")), "no trash, no ticket"


def test_the_last_runs_keep_their_artifacts_and_what_is_behind_them(store: Store) -> None:
    lines = {name: chain(store, name) for name in "abc"}
    for name in "abc":
        walked(store, lines[name][2:], name)  # only the last step is on record
    found = verdicts(survey(store, keep_runs=2))
    for name in "bc":
        assert all(f"run {name}" in found[one.key] for one in lines[name])
        assert found[lines[name][0].key].startswith(f"behind {lines[name][2].key}: run {name}"), "named by its root"
    assert [found[one.key] for one in lines["a"]] == ["", "", ""]
    assert all(verdicts(survey(store, keep_runs=3)).values())
    assert not any(verdicts(survey(store, keep_runs=0)).values())


def test_a_run_that_goes_on_keeps_all_and_a_killed_one_does_not(store: Store) -> None:
    line = chain(store, "a")
    walk = walked(store, line, end=False)
    assert all("goes on" in why for why in verdicts(survey(store, keep_runs=0)).values())
    path = store.root / ".runs" / f"{walk.id}.json"
    record = json.loads(path.read_text())
    record["walker"]["pid"] = 2**22 + 7  # no such process
    path.write_text(json.dumps(record))
    assert not any(verdicts(survey(store, keep_runs=0)).values())
    assert all(verdicts(survey(store, keep_runs=1)).values()), "still the last run: it can be continued"


def test_a_pin_keeps_an_artifact_and_what_it_was_made_from(store: Store) -> None:
    line = chain(store, "a")
    runs.pin(store.place, line[1].key, "for the paper")
    found = verdicts(survey(store))
    assert found[line[1].key] == "pinned: for the paper" and found[line[0].key].startswith(f"behind {line[1].key}")
    assert found[line[2].key] == "", "what was made from it may go"


def test_young_things_stay(store: Store) -> None:
    first = made(store, "clean", "old")
    made(store, "sft", "young", first, old=False)
    assert set(verdicts(survey(store)).values()) == {
        "younger than an hour",
        f"behind sft/{digest_text('young')[:20]}: younger than an hour",
    }
    assert not any(verdicts(survey(store, now=time.time() + 3601)).values())
    assert all(verdicts(survey(store, now=OLD - 1e6)).values()), "a clock that was set back keeps everything"


def test_a_held_lock_keeps_the_artifact_the_partial_folder_and_the_rest_of_its_run(store: Store) -> None:
    line = chain(store, "a")
    partial = store.partial("dpo/" + "7" * 20)
    (partial / ".resume").mkdir(parents=True)
    aged(partial)
    walk = walked(store, line[:2], end=False)
    walk.reached("dpo", "dpo/" + "7" * 20)
    path = store.root / ".runs" / f"{walk.id}.json"
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {2**22 + 7}'))  # its engine was killed
    with held(store, "dpo/" + "7" * 20) as pid:
        items = survey(store, keep_runs=0)
        assert f"process {pid}" in verdicts(items, "partial")["dpo/" + "7" * 20]
        found = verdicts(items)
        assert "goes on" in found[line[0].key] and "goes on" in found[line[1].key] and found[line[2].key] == ""
    items = survey(store, keep_runs=0)
    assert verdicts(items, "partial") == {"dpo/" + "7" * 20: ""} and not any(verdicts(items).values())


def promoted(root: Path, name: str, policy: Artifact) -> str:
    """A version of a model with the output digest of a policy; promoted."""
    registry = Registry(root)
    folder = root.parent / f"files-{policy.digest[:8]}"
    example_report.safetensors(folder / "adapter" / "adapter_model.safetensors", policy.digest)
    facts = {"policy": policy.digest, "report": digest_text("no artifact"), "model": "dpo"}
    version = registry.register(name, folder, facts=facts)
    champion = registry.champion(name)
    registry.promote(
        name, version.name, expected=champion.name if champion else None, verdict_digest="", reason="better"
    )
    return version.name


def test_the_champion_and_what_a_rollback_goes_back_to_stay(store: Store, tmp_path: Path) -> None:
    lines = [chain(store, name) for name in "abc"]
    for line in lines:
        promoted(tmp_path / "registry", "desk", line[2])
    found = verdicts(survey(store, [tmp_path / "registry"]))
    assert found[lines[2][2].key] == "champion of desk"
    assert found[lines[1][2].key] == "a rollback of desk goes back to it"
    assert all(found[one.key] for line in lines[1:] for one in line) and not any(found[one.key] for one in lines[0])


def test_a_registry_that_only_a_promote_artifact_names_is_read(store: Store, tmp_path: Path) -> None:
    line = chain(store, "a")
    promoted(tmp_path / "elsewhere", "desk", line[2])
    facts = {"config": {"registry": str(tmp_path / "elsewhere")}, "metrics": {"verdict": "promote"}}
    verdict = made(store, "promote", "a", line[2], **facts)
    found = verdicts(survey(store))
    assert found[line[2].key] == found[verdict.key] == "champion of desk" and all(found.values())
    shutil.rmtree(tmp_path / "elsewhere")
    found = verdicts(survey(store))
    assert "not at hand" in found[verdict.key] and all(found.values()), "in doubt it stays"


def test_a_damaged_registry_stops_everything(store: Store, tmp_path: Path) -> None:
    promoted(tmp_path / "registry", "desk", chain(store, "a")[2])
    (tmp_path / "registry" / "desk" / "events" / "000001.json").write_text("{}")
    with pytest.raises(ArtifactError, match="event"):
        survey(store, [tmp_path / "registry"])


def test_a_damaged_artifact_stays_and_keeps_what_it_was_made_from_when_something_needs_it(store: Store) -> None:
    line = chain(store, "a")
    (line[1].path / "result.txt").write_text("other bytes, other size")
    aged(line[1].path)
    assert verdicts(survey(store))[line[1].key] == "damaged: prefline verify sets it aside"
    runs.pin(store.place, line[2].key, "")
    found = verdicts(survey(store))
    assert found[line[0].key].startswith(f"behind {line[2].key}"), "the chain is read through the damaged one"


# --- leftovers -------------------------------------------------------------------------------------------------------


def test_partial_folders_trash_and_downloads_go_when_they_are_old_and_nobody_needs_them(store: Store) -> None:
    for name in (
        "sft/.aa.partial",
        "sft/.bb.partial",
        "sft/.cc.trash-77-1",
        "sft/.cc.resume",
        "sft/.dd.fetch-host.example-12-ab",
        "sft/.other",
    ):
        (store.root / name).mkdir(parents=True)
        (store.root / name / "file").write_bytes(b"x" * 10)
        aged(store.root / name)
    (store.root / "sft/.ee.partial").mkdir()
    walked(store, [Artifact(Path(), {"key": "sft/bb"})])
    items = survey(store)
    assert verdicts(items, "leftover") == {
        "sft/.cc.trash-77-1": "",
        "sft/.cc.resume": "",
        "sft/.dd.fetch-host.example-12-ab": "",
    }
    found = verdicts(items, "partial")
    assert found["sft/aa"] == "" and "one of the last" in found["sft/bb"] and found["sft/ee"] == "younger than an hour"
    assert sum(item.size for item in items if item.goes) == 40
    list(collect(store, items))
    assert sorted(path.name for path in (store.root / "sft").iterdir()) == [".bb.partial", ".ee.partial", ".other"]


def test_old_tickets_of_keys_that_are_gone_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    line = chain(store, "a")
    runs.pin(store.place, line[2].key, "")
    log = logging.getLogger("test")
    for key in (line[0].key, "sft/gone"):
        with hold(store.place, f".locks/{key.replace('/', '-')}", log=log):
            pass
    with monkeypatch.context() as patch:
        now = time.time()
        patch.setattr(time, "gmtime", lambda seconds=None: time.localtime(seconds or now - 7200))
        patch.setenv("TZ", "UTC")
        time.tzset()
        with hold(store.place, ".locks/sft-old", log=log):
            pass
    items = survey(store)
    assert verdicts(items, "lock") == {".locks/sft-gone": "younger than an hour", ".locks/sft-old": ""}
    with held(store, "sft/old"):
        list(collect(store, items))
        assert (store.root / ".locks" / "sft-old").exists(), "somebody holds it by now"
    list(collect(store, items))
    assert not (store.root / ".locks" / "sft-old").exists() and (store.root / ".locks" / "sft-gone").exists()


def test_what_was_set_aside_goes_only_when_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set_aside(made(store, "sft", "a").key, "bad bytes")
    [name] = verdicts(survey(store), "broken")
    assert verdicts(survey(store), "broken")[name] == "bad bytes; younger than an hour"
    later = time.time() + 3700
    assert verdicts(survey(store, now=later), "broken")[name] == "bad bytes; --broken deletes it"
    items = survey(store, broken=True, now=later)
    assert verdicts(items, "broken")[name] == ""
    list(collect(store, items))
    assert list((store.root / "broken").iterdir()) == []


# --- deleting --------------------------------------------------------------------------------------------------------


def test_a_locked_artifact_is_passed_by(store: Store) -> None:
    line = chain(store, "a")
    items = survey(store)
    with held(store, line[1].key):
        ended = {item.name: item for item in collect(store, items)}
    assert "held by process" in ended[line[1].key].reason and not ended[line[1].key].goes
    assert left(store) == {line[0].key, line[1].key}, "what it was made from stays, too"
    with held(store, line[1].key), pytest.raises(Busy), alone(store, line[1].key):
        pass


def test_a_run_that_begins_between_the_survey_and_the_deletion_keeps_its_artifacts(store: Store) -> None:
    line, other = chain(store, "a"), chain(store, "b")
    items = survey(store)
    ends = collect(store, items, keep_runs=0)
    gone = next(ends)
    walked(store, line, end=False)
    rest = {item.name: item.goes for item in ends}
    kept = {one.key for one in line} - {gone.name}
    assert kept <= left(store) and not any(rest[key] for key in kept)
    assert not ({one.key for one in other} & left(store))


def test_a_pin_between_the_survey_and_the_deletion_counts(store: Store) -> None:
    line = chain(store, "a")
    items = survey(store)
    runs.pin(store.place, line[1].key, "")
    list(collect(store, items))
    assert left(store) == {line[0].key, line[1].key}


def test_an_artifact_that_was_built_again_meanwhile_stays(store: Store) -> None:
    """By a process that keeps no record, after the first deletion looked at what is needed."""
    line = chain(store, "a")
    ends = collect(store, survey(store))
    assert next(ends).name == line[2].key
    shutil.rmtree(line[1].path)
    made(store, "sft", "sft a", line[0], old=False)
    assert [(item.goes, item.reason.rpartition(": ")[2]) for item in ends] == [(False, "younger than an hour")] * 2
    assert left(store) == {line[0].key, line[1].key}


def test_what_was_made_goes_before_what_it_was_made_from(store: Store) -> None:
    """So that a crash in between leaves no artifact without its ancestors."""
    line = chain(store, "a")
    gone = [item.name for item in collect(store, survey(store))]
    assert gone == [one.key for one in reversed(line)]


def test_a_deletion_that_fails_is_told_and_the_others_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    line = chain(store, "a")
    items = survey(store)
    remove = Store.remove

    def failing(self: Store, key: str) -> None:
        if key == line[1].key:
            raise PermissionError(13, "Permission denied", key)
        remove(self, key)

    monkeypatch.setattr(Store, "remove", failing)
    ended = {item.name: item for item in collect(store, items)}
    assert "cannot be deleted" in ended[line[1].key].reason and left(store) == {line[0].key, line[1].key}


# --- any graph -------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_in_any_graph_nothing_that_is_needed_goes_and_all_else_does(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw = random.Random(seed)
    home = tmp_path_factory.mktemp("any")
    store, registry = Store(home / "store"), home / "registry"
    nodes: list[Artifact] = []
    steps = [draw.choice(["clean", "sft", "dpo", "evaluate"]) for _ in range(draw.randint(1, 9))]
    for number, step in enumerate(steps):
        begun(store, step, f"{seed} {number}")
    for number, step in enumerate(steps):
        above = draw.sample(nodes, draw.randint(0, min(3, len(nodes))))
        nodes.append(made(store, step, f"{seed} {number}", *above, old=draw.random() < 0.9))
    behind = {one.key: {entry["key"] for entry in one.manifest["inputs"].values()} for one in nodes}
    needed = {one.key for one in nodes if time.time() - one.path.stat().st_mtime < 1800}
    for one in draw.sample(nodes, draw.randint(0, 1)):
        runs.pin(store.place, one.key, "")
        needed.add(one.key)
    if draw.random() < 0.5:
        going = draw.sample(nodes, draw.randint(0, min(2, len(nodes))))
        walked(store, going, end=False)
        needed |= {one.key for one in walked_of(going)}
    keep = draw.randint(0, 1)
    if draw.random() < 0.5:
        past = draw.sample(nodes, 1)
        walked(store, past)
        if keep:
            needed |= newest_run(store)
    for one in draw.sample(nodes, draw.randint(0, min(3, len(nodes)))):
        promoted(registry, "desk", one)
    history = Registry(registry).history("desk") if registry.exists() else None
    if history and history.aliases():
        champion = history.aliases()["champion"]
        for version in (champion, history.replaced(champion)):
            if version:
                policy = Registry(registry).resolve("desk", version).facts["policy"]
                needed |= {one.key for one in nodes if one.digest == policy}
    while True:
        more = {key for one in needed for key in behind[one]} - needed
        if not more:
            break
        needed |= more
    items = survey(store, [registry], keep_runs=keep)
    assert {item.name for item in items if item.kind == "artifact" and not item.goes} == needed
    assert references(store, [registry], keep_runs=keep).keys() == needed
    assert all(item.reason for item in items)
    list(collect(store, items, [registry], keep_runs=keep))
    assert left(store) == needed
    for key in needed:
        Artifact.read(store.folder(key), deep=True)
    shutil.rmtree(home)


def walked_of(artifacts: list[Artifact]) -> list[Artifact]:
    """A record has one key a step: of several the last one."""
    return list({one.key.partition("/")[0]: one for one in artifacts}.values())


def newest_run(store: Store) -> set[str]:
    """Keys of the newest record that has any."""
    for name in sorted(os.listdir(store.root / ".runs"), reverse=True):
        if keys := set(json.loads((store.root / ".runs" / name).read_text())["steps"].values()):
            return keys
    return set()
