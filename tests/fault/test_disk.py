"""A full disk, a store that cannot be written, a clock that was set back: a message that says what to do, and nothing is lost.

File systems are mounted in a name space of their own (``unshare``), so they vanish with the test whatever happens.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault.changes import Changes
from fault.kills import PATIENCE
from fault.micro import SAVE_EVERY, TASK_PROMPTS, UPDATES, digests, forget, teacher_answers, walk, with_http_teacher
from minimal import ROOT, Line
from openai_server import serve

from flows.engine import Outcome

PAGE = 4096


@functools.cache
def own_mounts() -> tuple[str, ...]:
    """The words before a command that may mount; skips where this machine allows none."""
    probe = "mount -t tmpfs -o size=64k tmpfs /mnt && touch /mnt/here"
    for words in (("unshare", "-m"), ("unshare", "-rm")):
        try:
            if not subprocess.run([*words, "sh", "-c", probe], capture_output=True, timeout=20, check=False).returncode:
                return words
        except FileNotFoundError:
            break
    pytest.skip("no file system can be mounted here: neither `unshare -m` nor `unshare -rm` may")


@dataclass
class Room:
    """A store in a file system of a given size, and the commands that are run on it, one after the other."""

    line: Line
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "room"

    def step(self, name: str, said: str, *words: str) -> str:
        """``prefline step`` on the store in the room; its output and exit code are kept under the name ``said``."""
        argv = [
            sys.executable,
            "-m",
            "flows.cli",
            "step",
            name,
            "--recipe",
            str(self.line.recipe),
            f"store={self.store}",
            *words,
        ]
        out = shlex.quote(str(self.folder / said))
        return f"{shlex.join(argv)} > {out}.out 2> {out}.err; echo $? > {out}.code"

    def list(self, said: str) -> str:
        """Names of all files in the store."""
        return f"find {shlex.quote(str(self.store))} -type f > {shlex.quote(str(self.folder / said))}.files"

    def run(self, size: int, *commands: str) -> None:
        """Mount ``size`` bytes, copy the line's store into it, run the commands, and keep a copy of the manifests."""
        self.store.mkdir(parents=True)
        room, source = shlex.quote(str(self.store)), shlex.quote(str(self.line.folder / "store"))
        kept = shlex.quote(str(self.folder / "kept"))
        script = [
            "set -e", f"mount -t tmpfs -o size={size} tmpfs {room}", f"cp -a {source}/. {room}/", "set +e", *commands,
            f"mkdir {kept}; cd {room}; find . -name manifest.json -exec cp --parents {{}} {kept} ';'",
        ]  # fmt: skip
        done = subprocess.run(
            [*own_mounts(), "sh", "-c", "\n".join(script)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def grow(self, size: str) -> str:
        return f"mount -o remount,size={size} {shlex.quote(str(self.store))}"

    def code(self, said: str) -> int:
        return int((self.folder / f"{said}.code").read_text())

    def told(self, said: str) -> str:
        return (self.folder / f"{said}.err").read_text() + (self.folder / f"{said}.out").read_text()

    def digest(self, key: str) -> str:
        return str(json.loads((self.folder / "kept" / key / "manifest.json").read_text())["digest"])


def pages(folder: Path) -> int:
    """Bytes that the files of a folder take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


FULL = [
    pytest.param("generate", 0.5),
    *[
        pytest.param(step, 0.5, marks=pytest.mark.long)
        for step in ("clean", "base", "pretrain", "sft", "pairs", "reference", "dpo", "evaluate", "promote")
    ],
    pytest.param("sft", 0.0, marks=pytest.mark.long),
    pytest.param("sft", 0.95, marks=pytest.mark.long),
    pytest.param("clean", 0.9, marks=pytest.mark.long),
    pytest.param("evaluate", 0.95, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("step", "share"), FULL)
def test_a_full_disk_is_told_and_the_same_command_goes_on(line: Line, step: str, share: float, tmp_path: Path) -> None:
    """Room for a share of the artifact; then there is more, and the digest is the undisturbed one's."""
    with serve(teacher_answers(line.folder)) as server:
        if step == "generate":
            with_http_teacher(line, server.url)
        before = walk(line)
        asked = len(server.bodies)
        wanted = before[step].artifact
        size = pages(wanted.path)
        forget(line, before[step])
        room = Room(line, tmp_path / "tests")
        room.run(
            pages(line.folder / "store") + PAGE + int(share * size) // PAGE * PAGE,
            room.step(step, "full"),
            room.list("full"),
            room.grow("64m"),
            room.step(step, "more"),
            room.list("more"),
            room.step(step, "again"),
        )
        assert len(server.bodies) - asked == (TASK_PROMPTS if step == "generate" else 0), "what was answered is kept"
    said = room.told("full")
    assert room.code("full") == 5, said
    assert re.search(r"is full: got [\d.]+ MB free|the store has no room", said), said
    assert re.search(r"make room|free some space", said) and "run the same command again" in said, said
    assert "Traceback" not in said, said
    assert str(room.store / wanted.key) + "/" not in (room.folder / "full.files").read_text(), "no artifact"
    assert room.code("more") == 0, room.told("more")
    assert room.digest(wanted.key) == wanted.digest
    assert "Cached" in room.told("again")
    assert "/broken/" not in (room.folder / "more.files").read_text()


def test_a_read_only_store_serves_what_it_has_and_says_what_it_cannot(line: Line, tmp_path: Path) -> None:
    before = walk(line)
    weights = before["sft"].artifact.path / "adapter" / "adapter_model.safetensors"
    room = Room(line, tmp_path / "tests")
    inside = shlex.quote(str(room.store / weights.relative_to(line.folder / "store")))
    lock = f"mount -o remount,ro {shlex.quote(str(room.store))}"
    room.run(
        64 << 20,
        lock,
        room.step("promote", "cached"),
        room.step("sft", "missing", "sft.lora.rank=2"),
        f"mount -o remount,rw {shlex.quote(str(room.store))}; truncate -s 100 {inside}; {lock}",
        room.step("sft", "damaged"),
        room.list("damaged"),
    )
    assert room.code("cached") == 0 and "Cached" in room.told("cached"), room.told("cached")
    said = room.told("missing")
    assert room.code("missing") == 5 and "cannot be written" in said and "make it writable" in said, said
    said = room.told("damaged")
    assert room.code("damaged") == 5 and "adapter_model.safetensors of 100 bytes" in said, said
    assert "cannot be set aside" in said and "make it writable, or name another store" in said, said
    assert "Traceback" not in "".join(room.told(name) for name in ("cached", "missing", "damaged"))
    assert "/broken/" not in (room.folder / "damaged.files").read_text(), "nothing was moved"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write where nobody may: see the read-only mount above")
def test_a_store_of_somebody_else_says_so(line: Line) -> None:
    outcomes = walk(line)
    forget(line, outcomes["sft"])
    folders = [line.folder / "store", *(path for path in (line.folder / "store").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    done = run_step(line, "sft")
    for folder in folders:
        folder.chmod(0o755)
    assert done.returncode == 5 and "cannot be written" in done.stderr, done.stderr


# --- the clock -------------------------------------------------------------------------------------------------------

YESTERDAY = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() - 86400
time.time_ns = lambda: _time_ns() - 86400 * 10**9
"""


def run_step(line: Line, step: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "flows.cli", "step", step, "--recipe", str(line.recipe)]
    return subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def killed_at(line: Line, outcome: Outcome, mark: str, times: int = 1) -> None:
    """Kill ``prefline step`` with SIGKILL when a path that matches has changed so many times in its store."""
    forget(line, outcome)
    argv = [sys.executable, "-m", "flows.cli", "step", outcome.step, "--recipe", str(line.recipe)]
    changes = Changes([line.folder / "store" / outcome.step])
    engine = subprocess.Popen(
        argv, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while engine.poll() is None:
        times -= sum(bool(re.search(mark, str(path))) for path in changes.read(0.05))
        if times <= 0:
            os.killpg(engine.pid, signal.SIGKILL)
            break
    changes.close()
    assert engine.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.long
@pytest.mark.parametrize("step", ["sft", "evaluate"])
def test_a_clock_that_was_set_back_by_a_day_changes_nothing(line: Line, step: str, tmp_path: Path) -> None:
    before = walk(line)
    history = before[step].artifact.path / "record" / "history.jsonl"
    losses = history.read_bytes() if history.exists() else b""
    if step == "sft":
        killed_at(line, before[step], rf"/checkpoints/checkpoint-{2 * SAVE_EVERY}$")
    else:
        killed_at(line, before[step], r"/log\.jsonl$", times=2)  # made, and its first line written
    (tmp_path / "past").mkdir()
    (tmp_path / "past" / "sitecustomize.py").write_text(YESTERDAY)
    done = run_step(line, step, PYTHONPATH=str(tmp_path / "past"))
    assert done.returncode == 0, done.stderr
    after = walk(line)
    assert all(outcome.cached for outcome in after.values()) and digests(after) == digests(before)
    lines = [json.loads(text) for text in (after[step].artifact.path / "record" / "log.jsonl").read_text().splitlines()]
    times = [float(entry["time"]) for entry in lines]
    assert min(times) < max(times) - 80_000, "the clock of the second run was another"
    if step == "sft":
        assert (after[step].artifact.path / "record" / "history.jsonl").read_bytes() == losses
        updates = sum(str(entry["message"]).startswith("update ") for entry in lines)
        assert UPDATES <= updates <= UPDATES + SAVE_EVERY
    done = run_step(line, step, PYTHONPATH=str(tmp_path / "past"))
    assert done.returncode == 0 and "Cached" in done.stdout, done.stderr
