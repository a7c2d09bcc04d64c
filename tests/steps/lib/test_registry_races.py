"""Eight processes on one registry, killed at any moment: the chain stays whole, and nothing is half there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from example_report import safetensors

from steps.lib.bases import Base
from steps.lib.model_files import model_digest
from steps.lib.registry import Registry

RACER = """
import random, sys
from pathlib import Path
from steps.lib import registry_retention
from steps.lib.bases import Base
from steps.lib.errors import ArtifactError
from steps.lib.model_files import model_digest
from steps.lib.registry import Registry
registry_retention.YOUNG = 0
root, seed = Path(sys.argv[1]), int(sys.argv[2])
registry, dice = Registry(root / "registry", actor=f"racer {seed}"), random.Random(seed)
base = Base(root / "base", model_digest(root / "base"))
folders = sorted((root / "models").iterdir())
while not (root / "stop").exists():
    history = registry.history("desk")
    now, live = history.aliases().get("champion"), sorted(history.registered().keys() - history.retired())
    try:
        what = dice.random()
        if what < 0.35:
            folder = dice.choice(folders)
            registry.register("desk", folder, facts={"policy": folder.name}, base=base)
        elif what < 0.75:
            registry.promote("desk", dice.choice(live), expected=now, verdict_digest="0", reason="race")
        elif what < 0.85:
            registry.rollback("desk", expected=now, reason="race")
        elif what < 0.95:
            registry.point("desk", dice.choice(live), alias="challenger", reason="race")
        else:
            registry.prune("desk", keep=2, dry=False)
    except ArtifactError as error:
        known = ("has moved", "is retired", "nothing to go back to")
        assert any(said in str(error) for said in known), error
"""


CUTS = """
import os, shutil, sys
from pathlib import Path
from steps.lib import registry_retention
from steps.lib.bases import Base
from steps.lib.model_files import model_digest
from steps.lib.registry import Registry
registry_retention.YOUNG = registry_retention.UNSEEN = 0
source, calls = Path(sys.argv[1]), ("rename", "replace", "link", "unlink", "mkdir", "fsync", "rmdir")
base = Base(source / "base", model_digest(source / "base"))


def work(root):
    registry = Registry(root)
    one, two, three = (
        registry.register("desk", source / name, facts={"policy": name}, base=base).name for name in ("one", "two", "three")
    )
    if registry.champion("desk") is None:
        registry.promote("desk", one, expected=None, verdict_digest="d", reason="better")
    registry.point("desk", two, alias="challenger", reason="inconclusive")
    registry.prune("desk", keep=1, dry=False)


def cut(number):
    left = number

    def wrap(real):
        def call(*words, **named):
            nonlocal left
            left -= 1
            if not left:
                os._exit(9)
            return real(*words, **named)

        return call

    for name in calls:
        setattr(os, name, wrap(getattr(os, name)))


def run(root, number):
    child = os.fork()
    if not child:
        if number:
            cut(number)
        work(root)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


number, code = int(sys.argv[3]) - int(sys.argv[4]), 9
while code == 9:
    number += int(sys.argv[4])
    root = Path(sys.argv[2]) / str(number)
    code = run(root, number)
    assert code in (0, 9), code
    registry = Registry(root)
    assert registry.problems("desk") == [], (number, registry.problems("desk"))
    assert run(root, 0) == 0, number
    history = registry.history("desk")
    assert registry.problems("desk") == [], (number, registry.problems("desk"))
    live = {registry.resolve("desk", name).facts["policy"] for name in history.registered().keys() - history.retired()}
    assert live == {"one", "two"}, (number, live)
    policies = {alias: registry.resolve("desk", alias).facts["policy"] for alias in history.aliases()}
    assert policies == {"champion": "one", "challenger": "two"}, (number, policies)
    left = [path.name for path in root.rglob("*") if path.name.endswith((".partial", ".tmp"))]
    assert not left, (number, left)
    assert len(list((root / "desk" / "bases").iterdir())) == 1
    shutil.rmtree(root)
print(number)
"""


def ended(root: Path, first: int, stride: int) -> int:
    """Do and redo the work, ended at each ``stride``-th call of the disk.

    Returns:
        Number of the last call.
    """
    for name in ("one", "two", "three"):
        safetensors(root / name / "adapter" / "adapter_model.safetensors", name)
    safetensors(root / "base" / "model.safetensors", "base")
    (root / "base" / "config.json").write_text("{}")
    (root / "cuts").mkdir()
    command = [sys.executable, "-c", CUTS, str(root), str(root / "cuts"), str(first), str(stride)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.fault
def test_a_process_that_ends_at_some_calls_of_the_disk_leaves_a_valid_registry(tmp_path: Path) -> None:
    """Register, promote, point and prune, ended at renames, links, flushes and deletions; then done again."""
    assert ended(tmp_path, 5, 11) > 50


@pytest.mark.fault
@pytest.mark.long
def test_a_process_that_ends_at_any_call_of_the_disk_leaves_a_valid_registry(tmp_path: Path) -> None:
    assert ended(tmp_path, 1, 1) > 50


def race(root: Path, kills: int, seed: int) -> Registry:
    """Eight racers; whenever three more events are there, one of them is killed at some moment, and another takes its place."""
    for number in range(6):
        safetensors(root / "models" / f"m{number}" / "adapter" / "adapter_model.safetensors", f"m{number}")
    safetensors(root / "base" / "model.safetensors", "base")
    (root / "base" / "config.json").write_text("{}")
    registry = Registry(root / "registry")
    first = registry.register("desk", root / "models" / "m0", facts={"policy": "m0"}, base=_base(root))
    registry.promote("desk", first.name, expected=None, verdict_digest="0", reason="the first one")
    dice, number = random.Random(seed), 0

    def start() -> subprocess.Popen[bytes]:
        nonlocal number
        number += 1
        command = [sys.executable, "-c", RACER, str(root), str(seed * 1000 + number)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()}, stderr=subprocess.PIPE)

    def events() -> int:
        return len(list((registry.root / "desk" / "events").glob("[0-9]*.json")))

    racers = [start() for _ in range(8)]
    try:
        for _ in range(kills):
            wanted, limit = events() + 3, time.monotonic() + 60
            while events() < wanted and time.monotonic() < limit:
                time.sleep(0.005)
            assert events() >= wanted, "nobody gets on"
            time.sleep(dice.uniform(0, 0.05))
            victim = dice.randrange(len(racers))
            racers[victim].send_signal(signal.SIGKILL)
            _, said = racers[victim].communicate(timeout=30)
            assert not said, said.decode()
            racers[victim] = start()
    finally:
        (root / "stop").touch()
    for racer in racers:
        _, said = racer.communicate(timeout=60)
        assert racer.returncode == 0, said.decode()
    return registry


def check(registry: Registry, root: Path) -> int:
    """All that must hold afterwards.

    Returns:
        Number of events.
    """
    history = registry.history("desk")  # raises when the chain is broken
    assert registry.problems("desk") == []
    at: str | None = None
    for event in history.events:
        if event.alias == "champion":
            assert event.before == at, f"event {event.seq} is not a swap from the state before it"
            at = event.after
    assert at and registry.resolve("desk", "champion").name == at
    names = list(history.registered())
    assert [name[:5] for name in names] == [f"v{number:04d}" for number in range(1, len(names) + 1)]
    live = [one.facts["policy"] for one in registry.versions("desk") if not one.retired]
    assert len(live) == len(set(live)), "the same model is registered once"
    registry.register("desk", root / "models" / "m1", facts={"policy": "m1"}, base=_base(root))
    registry.prune("desk", keep=2, dry=False)
    home = registry.root / "desk"
    left = [path for path in home.rglob(".*") if path.name.endswith((".tmp", ".partial"))]
    assert not left, "what the killed ones left is swept"
    assert registry.problems("desk") == []
    cache = json.loads((home / "aliases.json").read_text())
    assert cache["aliases"] == registry.history("desk").aliases()
    return len(history.events)


def _base(root: Path) -> Base:
    return Base(root / "base", model_digest(root / "base"))


@pytest.mark.fault
def test_eight_racing_processes_with_kills_leave_a_valid_registry(tmp_path: Path) -> None:
    registry = race(tmp_path, kills=5, seed=1)
    assert check(registry, tmp_path) >= 15


@pytest.mark.fault
@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_long_race(tmp_path: Path, seed: int) -> None:
    registry = race(tmp_path, kills=60, seed=seed)
    assert check(registry, tmp_path) >= 180
