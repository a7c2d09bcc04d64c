"""Kills around a store on a URL, and the line on two machines that share one. The server is real and on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault.micro import digests, in_this_process, micro_line, walk
from minimal import ROOT, Line
from s3_server import Act, Asked, Server, machine

from flows.engine import Plan
from steps.lib.artifact import MANIFEST, Artifact, lineage
from steps.lib.publishing import publish
from steps.lib.remote import RemoteStore
from steps.lib.store import Store, work_folder

pytestmark = pytest.mark.server
FILES = {f"model/part-{n}.bin": os.urandom(4000 + n) for n in range(6)}
OPEN = """
import logging, sys, time
from pathlib import Path
from steps.lib.locks import hold
from steps.lib.stores import open_store
from steps.lib.artifact import Artifact
store = open_store(sys.argv[1], Path(sys.argv[2]))
log = logging.getLogger("test")
"""


def process(store: RemoteStore, code: str, *argv: str) -> subprocess.Popen[str]:
    """A process of the machine of a store."""
    command = [sys.executable, "-c", OPEN + code, store.name, str(store.cache), *argv]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def built(store: RemoteStore) -> Artifact:
    """An artifact that is published on this machine, and not yet at the URL."""
    work = work_folder(store.folder("sft/1"))
    (work / "model").mkdir(parents=True)
    for name, data in FILES.items():
        (work / name).write_bytes(data)
    return publish(work, store.folder("sft/1"), {"key": "sft/1", "inputs": {}})


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    paths = (path for path in artifact.path.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(artifact.path).as_posix(): path.read_bytes() for path in paths}


def killed_at(number: int, method: str, child: list[subprocess.Popen[str]]) -> Callable[[Asked], Act | None]:
    """Kill the process when it asks for the n-th time; what it asked then is served a little later, or never heard."""
    seen: list[str] = []

    def decide(asked: Asked) -> Act | None:
        if asked.method == method and "/sft/1/" in asked.path and (method == "PUT" or "/model/" in asked.path):
            seen.append(asked.path)
            if len(seen) == number:
                while not child:
                    time.sleep(0.01)
                child[0].kill()
            return Act(delay=0.05)
        return None

    return decide


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 6, 7])
def test_an_upload_that_is_killed_goes_on(one: RemoteStore, two: RemoteStore, s3: Server, number: int) -> None:
    artifact = built(one)
    child: list[subprocess.Popen[str]] = []
    s3.decide = killed_at(number, "PUT", child)
    child.append(process(one, "store.keep(Artifact.read(store.folder('sft/1')))"))
    child[0].communicate(timeout=60)
    assert child[0].returncode == -signal.SIGKILL
    time.sleep(0.1)  # what was under way is served or dropped
    s3.decide = lambda asked: None
    there = set(one.remote.below("sft/1"))
    visible = f"sft/1/{MANIFEST}" in there
    assert not visible or len(there) == 7, "the manifest is there only when all files are"
    found = two.find("sft/1")
    assert (found is not None) == visible
    s3.log.clear()
    assert one.find("sft/1") == artifact
    sent = {path.partition("/line/")[2] for path in s3.puts("sft/1")}
    assert not sent & there and sent | there == set(one.remote.below("sft/1")), "nothing whole is sent twice"
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == FILES


@pytest.mark.parametrize("number", [1, 5])
def test_a_download_that_is_killed_leaves_nothing_that_counts(
    one: RemoteStore, two: RemoteStore, s3: Server, number: int
) -> None:
    one.keep(built(one))
    child: list[subprocess.Popen[str]] = []
    s3.decide = killed_at(number, "GET", child)
    child.append(process(two, "store.fetch(store.find('sft/1'))"))
    child[0].communicate(timeout=60)
    assert child[0].returncode == -signal.SIGKILL
    s3.decide = lambda asked: None
    left = [path.name for path in (two.root / "sft").iterdir()]
    assert len(left) == 1 and left[0].startswith(".1.fetch-")
    assert [store.find("sft/1") for store in (Store(two.root),)] == [None] and not list(Store(two.root).keys())
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == FILES
    assert [path.name for path in (two.root / "sft").iterdir()] == ["1"]


def test_downloads_of_one_artifact_at_once(one: RemoteStore, two: RemoteStore) -> None:
    """The leftovers of a dead process are swept, those of a live one are its own."""
    one.keep(built(one))
    crowd = [process(two, "print(store.fetch(store.find('sft/1')).path)") for _ in range(2)]
    for child in crowd:
        said, error = child.communicate(timeout=60)
        assert child.returncode == 0, error
        assert said.strip() == str(two.folder("sft/1"))
    assert bytes_of(Artifact.read(two.folder("sft/1"), deep=True)) == FILES
    assert [path.name for path in (two.root / "sft").iterdir()] == ["1"]


def test_a_process_with_an_open_store_ends_when_it_is_told_to(one: RemoteStore, s3: Server) -> None:
    one.keep(built(one))
    child = process(one, "store.find('sft/1'); print('ready', flush=True); time.sleep(60)")
    assert child.stdout and child.stdout.readline() == "ready\n"
    started = time.monotonic()
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM and time.monotonic() - started < 3

    child = process(one, "store.find('sft/1')")
    assert child.communicate(timeout=60) == ("", "") and child.returncode == 0

    s3.decide = lambda asked: Act(delay=5)  # in the middle of a request
    child = process(one, "print('ready', flush=True); store.find('sft/1')")
    assert child.stdout and child.stdout.readline() == "ready\n"
    time.sleep(0.5)
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in error and time.monotonic() - started < 4


# --- locks -----------------------------------------------------------------------------------------------------------


def test_two_processes_never_hold_one_lock(one: RemoteStore, two: RemoteStore, tmp_path: Path) -> None:
    """Two machines. Whoever is inside makes a file that must not be there yet."""
    code = """
for _ in range(4):
    with hold(store.place, ".locks/sft-1", log=log, beat=0.5, silence=20) as held:
        with open(sys.argv[3], "x"):
            time.sleep(0.1)
            held.check()
        Path(sys.argv[3]).unlink()
    print("in", flush=True)
"""
    crowd = [process(store, code, str(tmp_path / "inside")) for store in (one, two)]
    for child in crowd:
        said, error = child.communicate(timeout=90)
        assert (child.returncode, said.count("in")) == (0, 4), error


@pytest.mark.parametrize("elsewhere", [False, True], ids=["this machine", "another machine"])
def test_the_lock_of_a_killed_holder_is_taken_over(one: RemoteStore, two: RemoteStore, elsewhere: bool) -> None:
    """At once where its process can be looked for, after the silence where it cannot."""
    code = "import platform; platform.node = lambda: 'elsewhere'\n" if elsewhere else ""
    code += (
        "with hold(store.place, '.locks/sft-1', log=log, beat=0.3, silence=2): print('in', flush=True); time.sleep(60)"
    )
    child = process(one, code)
    assert child.stdout and child.stdout.readline() == "in\n", child.communicate(timeout=60)
    child.kill()
    child.communicate(timeout=60)
    started = time.monotonic()
    follower = process(two, "with hold(store.place, '.locks/sft-1', log=log, beat=0.3, silence=2): print('in')")
    assert follower.communicate(timeout=30)[0] == "in\n"
    if elsewhere:
        assert time.monotonic() - started > 2


# --- the line on two machines ----------------------------------------------------------------------------------------


def test_steps_of_one_machine_are_cached_on_another(url: str, tmp_path: Path) -> None:
    """Each step in a process of its own, which locks, builds and keeps at the URL."""
    (tmp_path / "line").mkdir()
    line = micro_line(tmp_path / "line")
    here, there = ([f"store={url}", f"cache={tmp_path / name}"] for name in ("one", "two"))
    first = walk(line, *here, plan=Plan(until="clean"))
    assert [outcome.cached for outcome in first.values()] == [False, False]
    assert machine(url, tmp_path / "one").place.names(f".locks/{first['clean'].artifact.key.replace('/', '-')}") == [
        "1"
    ]

    again = walk(line, *there, plan=Plan(until="clean"))
    assert [outcome.cached for outcome in again.values()] == [True, True] and digests(again) == digests(first)
    data = again["clean"].artifact
    assert not data.path.exists(), "nothing reads it yet"
    assert bytes_of(machine(url, tmp_path / "two").fetch(data)) == bytes_of(first["clean"].artifact)


@pytest.mark.tiny
def test_a_line_of_one_machine_is_whole_on_another(minimal_line: Line, url: str, tmp_path: Path) -> None:
    """All of it is found; an adapter comes with its base, so that it can be evaluated and trained on."""
    line = minimal_line.copy(tmp_path / "line")
    one, two = (machine(url, tmp_path / name) for name in ("one", "two"))
    shutil.copytree(line.folder / "store", one.root)
    first = walk(line, f"store={url}", f"cache={one.cache}")
    assert all(outcome.cached for outcome in first.values())

    second = walk(line, f"store={url}", f"cache={two.cache}")
    assert all(outcome.cached for outcome in second.values()) and digests(second) == digests(first)

    two.set_aside(second["dpo"].artifact.key, "for this test")
    with in_this_process() as ran:
        third = walk(line, f"store={url}", f"cache={two.cache}")
    assert ran == ["dpo"] and digests(third) == digests(first)
    keys = {manifest["key"] for manifest in lineage(two.fetch(third["evaluate"].artifact).path)}
    assert keys == {outcome.artifact.key for step, outcome in first.items() if step != "promote"}
