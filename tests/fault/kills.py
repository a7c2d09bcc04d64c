"""Random kills: one trial kills a step of a built line once or more often, lets it go on, and compares everything with what was.

``tests/fault/test_kills.py`` runs some of them, ``benchmarks/faults.py`` many. Everything is drawn from a seed; how far a process
has come at a given time depends on the machine.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fault.changes import Changes
from fault.micro import CONCURRENCY, SAVE_EVERY, forget, teacher_answers, walk, with_http_teacher
from fault.oracle import TRAINING, Micro, compare, members, watched
from minimal import ROOT, Line
from openai_server import serve

from flows.line import steps_of

SIGNALS = ("SIGKILL", "SIGTERM")
TARGETS = ("group", "engine", "step")
TRIGGERS = ("time", "change", "time", "publish", "time", "save", "time", "save")
PATIENCE = 90.0
"""Seconds that a command may take, and that processes may live on after a kill."""
WALK = """
import sys
from pathlib import Path
from flows.engine import Engine
from flows.line import AlignConfig
from steps.lib.config import layers_of, load
from steps.lib.errors import PreflineError
try:
    Engine(load(AlignConfig, layers_of("cpu-tiny", [Path(sys.argv[1])], Path("configs"))).value).run()
except PreflineError as error:
    sys.stderr.write(f"{type(error).__name__}: {error}\\n")
    sys.exit(error.exit_code)
"""
"""The whole line, without Prefect."""


@dataclass(frozen=True)
class Kill:
    """One kill as it is drawn."""

    signal: str
    target: str
    """group: every process; engine: the one that was started; step: the one of the step, when it is there already."""
    trigger: str
    """time: after a share of the undisturbed time; change, save, publish: at one of the changes in the store (any of them, from
    the first checkpoint on, from the manifest on)."""
    share: float


@dataclass(frozen=True)
class Trial:
    """One line that is killed and goes on."""

    number: int
    step: str
    walk: bool
    """The whole line is run, with this step and the next one missing, in place of ``prefline step``."""
    kills: tuple[Kill, ...]
    """All but the first one hit the run that goes on."""


@dataclass
class Blow:
    """A kill that was delivered."""

    step: str
    kill: Kill
    target: str
    """Who was hit: group where the step's process was wanted and was not there yet."""
    phase: str
    """starting, working, publishing, published."""
    code: int
    gone: float
    """Seconds until no process of the group was left."""


@dataclass
class Result:
    """What came of a trial."""

    trial: Trial
    blows: list[Blow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    asked_again: int = 0
    """Answers asked of the teacher more often than once."""
    updated_again: int = 0
    """Training updates done more often than once."""


def draw(seed: int, steps: tuple[str, ...], each: tuple[int, ...] = (1, 1, 1, 2)) -> Iterator[Trial]:
    """Trials without end. Steps, signals, targets and triggers come in turn, in a drawn order; the moments are drawn.

    Args:
        seed: of the drawing.
        steps: of the line.
        each: kills of a trial, in turn.
    """
    rng = random.Random(seed)
    decks: dict[str, list[Any]] = {}

    def deal(name: str, cards: tuple[Any, ...]) -> Any:
        if not decks.get(name):
            decks[name] = rng.sample(cards, len(cards))
        return decks[name].pop()

    def kill(step: str) -> Kill:
        number, target = deal("blow", tuple((s, t) for s in SIGNALS for t in TARGETS))
        trigger = deal("trigger", TRIGGERS)
        if trigger == "save" and step not in TRAINING:
            trigger = "change"
        return Kill(number, target, trigger, rng.random())

    number = 0
    while True:
        step = deal("step", steps)
        kills = tuple(kill(step) for _ in range(deal("kills", each)))
        yield Trial(number, step, deal("walk", (True, *[False] * 8)), kills)
        number += 1


def campaign(
    micro: Micro,
    folder: Path,
    seed: int,
    kills: int,
    *,
    workers: int = 2,
    each: tuple[int, ...] = (1, 1, 1, 2),
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run trials until ``kills`` kills were delivered (a process may end before its moment comes)."""
    trials, results, delivered = draw(seed, steps_of(micro.line.config()), each), list[Result](), 0
    say(f"random kills: {kills}, seed {seed}, {workers} at a time")
    with ThreadPoolExecutor(workers) as pool:
        while delivered < kills:
            batch, planned = [], delivered
            while planned < kills:
                batch.append(next(trials))
                planned += len(batch[-1].kills)
            for result in pool.map(lambda trial: attempt(micro, trial, folder / f"trial-{trial.number:03d}"), batch):
                results.append(result)
                delivered += len(result.blows)
                for line in describe(result):
                    say(line)
    return results


def attempt(micro: Micro, trial: Trial, folder: Path) -> Result:
    """Run a trial; where the process ended before its moment, once more with an earlier moment."""
    for _ in range(4):
        result = run(micro, trial, folder)
        if result.blows or result.problems:
            break
        trial = replace(trial, kills=tuple(replace(kill, share=kill.share / 2) for kill in trial.kills))
    return result


def describe(result: Result) -> list[str]:
    """A line a blow, a line a problem."""
    head = f"trial {result.trial.number:3d} {result.trial.step:8s} {'run ' if result.trial.walk else 'step'}"
    lines = [
        f"{head} {b.kill.signal} to the {b.target:6s} by {b.kill.trigger:7s} while {b.phase:10s}"
        f" exit {b.code:4d}, gone in {b.gone:4.1f} s"
        for b in result.blows
    ] or [f"{head} was over before its moment came"]
    return lines + [f"{head} PROBLEM: {problem}" for problem in result.problems]


def run(micro: Micro, trial: Trial, folder: Path) -> Result:
    """One trial, in a copy of the line; the copy is deleted when all is as it was."""
    result = Result(trial)
    line = micro.line.copy(folder)
    with serve(teacher_answers(line.folder)) as server:
        with_http_teacher(line, server.url)
        before = walk(line)
        every = steps_of(line.config())
        names = every[every.index(trial.step) :][: 2 if trial.walk else 1]
        missing = {step: before[step].artifact.key for step in names}
        for step in missing:
            forget(line, before[step])
        allowed = {"asked": 0, "updated": 0}
        for number, kill in enumerate(trial.kills):
            blow = strike(micro, line, trial, kill, missing, folder / f"said-{number}.txt", result)
            if blow is None:
                break
            result.blows.append(blow)
            if blow.kill.signal == "SIGKILL" and blow.target != "engine":
                allowed = {"asked": allowed["asked"] + CONCURRENCY, "updated": allowed["updated"] + SAVE_EVERY}
        said = folder / "said-last.txt"
        code = _go_on(line, trial, said)
        if code is None:
            result.problems.append(f"going on did not end in {PATIENCE:g} s: {said.read_text()[-2000:]}")
        elif code:
            result.problems.append(f"going on failed with exit code {code}: {said.read_text()[-2000:]}")
        else:
            found = compare(micro, line, missing, len(server.bodies), allowed)
            result.problems += found.problems
            result.asked_again, result.updated_again = found.asked_again, found.updated_again
    if not result.problems:
        shutil.rmtree(folder)
    return result


def _go_on(line: Line, trial: Trial, said: Path) -> int | None:
    """Run the command to its end; its exit code, or None where it had to be killed."""
    with said.open("wb") as file:
        engine = subprocess.Popen(command(line, trial), cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            return engine.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()
            return None


def strike(
    micro: Micro, line: Line, trial: Trial, kill: Kill, missing: dict[str, str], said: Path, result: Result
) -> Blow | None:
    """Start the command, kill it at the drawn moment, wait until nothing is left; None when it ended before."""
    changes = Changes([folder for step in missing for folder in watched(line, step)])
    try:
        with said.open("wb") as file:
            engine = subprocess.Popen(command(line, trial), cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            if not _moment(micro, missing, kill, engine, changes):
                if engine.wait(PATIENCE):
                    result.problems.append(f"it failed before it was killed: {said.read_text()[-2000:]}")
                return None
            blow = _hit(line, missing, kill, engine)
        except BaseException:
            os.killpg(engine.pid, signal.SIGKILL)
            raise
    finally:
        changes.close()
    struck = time.monotonic()
    left: dict[int, str] = {}
    while time.monotonic() < struck + PATIENCE:
        ended = engine.poll() is not None
        left = members(engine.pid)
        if ended and not left:
            break
        time.sleep(0.02)
    else:
        result.problems.append(f"{PATIENCE:g} s after {kill} there are still: {left}; {said.read_text()[-1000:]}")
        for pid in (*left, engine.pid):
            os.kill(pid, signal.SIGKILL)
    blow.gone, blow.code = time.monotonic() - struck, engine.wait()
    if problem := _told_badly(blow, said.read_text(errors="replace")):
        result.problems.append(problem)
    return blow


def _moment(
    micro: Micro, missing: dict[str, str], kill: Kill, engine: subprocess.Popen[bytes], changes: Changes
) -> bool:
    """Wait for the moment of a kill; False when the process ends before it."""
    if kill.trigger == "time":
        try:
            engine.wait(kill.share * sum(micro.seconds[step] for step in missing))
        except subprocess.TimeoutExpired:
            return True
        return False
    marks = {"change": r"", "save": r"/checkpoint-\d+$", "publish": r"/manifest\.json\.tmp$"}
    mark = re.compile(marks[kill.trigger])
    expected = [path for step in missing for path in micro.changes[step]]
    first = next((number for number, path in enumerate(expected) if mark.search(path)), 0)
    wanted, seen = 1 + int(kill.share * (len(expected) - first)), 0
    while engine.poll() is None:
        for path in changes.read(0.05):
            seen += bool(seen or mark.search(str(path)))
            if seen >= wanted:
                return True
    return False


def _hit(line: Line, missing: dict[str, str], kill: Kill, engine: subprocess.Popen[bytes]) -> Blow:
    steps = [pid for pid, words in members(engine.pid).items() if " -m steps." in words]
    target = "group" if kill.target == "step" and not steps else kill.target
    phase, step = phase_of(line, missing)
    number = getattr(signal, kill.signal)
    try:
        if target == "group":
            os.killpg(engine.pid, number)
        else:
            os.kill(engine.pid if target == "engine" else steps[0], number)
    except ProcessLookupError:
        phase = "ended"
    return Blow(step, kill, target, phase, 0, 0.0)


def phase_of(line: Line, missing: dict[str, str]) -> tuple[str, str]:
    """How far the command has come, and in which of the missing steps."""
    for step, key in reversed(missing.items()):
        target = line.folder / "store" / key
        partial, resume = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "resume"))
        if resume.exists() or any((partial / name).exists() for name in ("manifest.json", "manifest.json.tmp")):
            return "publishing", step
        if target.exists():
            return "published", step
        if partial.exists():
            return "working", step
    return "starting", next(iter(missing))


def _told_badly(blow: Blow, said: str) -> str | None:
    """Whether the exit code and the message are none that a kill may have."""
    number = getattr(signal, blow.kill.signal)
    fine = {-number, 128 + number} if blow.target != "step" else set()
    if blow.target != "engine":
        fine |= {1} if blow.kill.signal == "SIGKILL" else {75}
    if blow.phase in ("publishing", "published", "ended"):
        fine |= {0}  # too late to matter
    if blow.code not in fine:
        return f"exit code {blow.code} after {blow}, not one of {sorted(fine)}: {said[-1500:]}"
    if blow.code in (1, 75) and not re.search("run the same command again|running again", said):
        return f"no word on how to go on after {blow}: {said[-1500:]}"
    if "Traceback" in said and blow.target != "engine":
        return f"a traceback after {blow}: {said[-2500:]}"
    return None


def command(line: Line, trial: Trial) -> list[str]:
    """What is run, killed, and run again."""
    if trial.walk:
        return [sys.executable, "-c", WALK, str(line.recipe)]
    return [sys.executable, "-m", "flows.cli", "step", trial.step, "--recipe", str(line.recipe)]
