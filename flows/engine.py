"""The engine: gives each step's artifact, from the store or by running the step in a process of its own. No prefect here.

``flows.tasks`` puts each step into a Prefect task; ``prefline step`` uses the engine as it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from flows.line import STEPS, AlignConfig, line
from steps.lib import runtime
from steps.lib.config import Section
from steps.lib.errors import BY_EXIT_CODE, ArtifactError, ConfigError, PreflineError
from steps.lib.step import Spec
from steps.lib.store import Artifact, Store, work_folder

GRACE = 60.0
"""Seconds that a stopped step has to save a checkpoint before it is killed."""


@dataclass(frozen=True)
class Plan:
    """Which part of the line runs. The names are those of the steps."""

    start: str | None = None
    """``--from``: steps before it must be in the store already; nothing before it runs."""
    until: str | None = None
    """``--until``: the last step that runs."""
    force: tuple[str, ...] = ()
    """``--force``: steps that are built again although the store has them."""

    @classmethod
    def of(
        cls, only: str | None = None, start: str | None = None, until: str | None = None, force: Sequence[str] = ()
    ) -> Plan:
        """From the command line's words; ``only`` is from and until in one.

        Raises:
            ConfigError: a name that is no step, or words that contradict each other.
        """
        problems = [
            f"step is wrong: got {name!r}, because the line has no such step; take one of: {', '.join(STEPS)}"
            for name in (only, start, until, *force)
            if name is not None and name not in STEPS
        ]
        if only and (start or until):
            problems.append(
                f"--only {only} cannot stand beside --from or --until: got both, because --only is both in one; "
                "leave one out"
            )
        if not problems and start and until and STEPS.index(start) > STEPS.index(until):
            problems.append(
                f"--from {start} --until {until} is empty: got a start behind the end, because the line runs "
                f"{' -> '.join(STEPS)}; swap them"
            )
        if problems:
            raise ConfigError(problems)
        return cls(only or start, only or until, tuple(force))


@dataclass
class Outcome:
    """What happened to one step of a run."""

    step: str
    artifact: Artifact
    cached: bool
    seconds: float
    """Seconds of this run, not of the run that built the artifact."""


class Stopped(Exception):
    """The step named by ``until`` is there; the walk ends."""


@dataclass
class Engine:
    """Makes the steps of one run, in order."""

    config: AlignConfig
    plan: Plan = Plan()
    group: str = "shell"
    """Name of the run; the tracker groups by it."""
    outcomes: list[Outcome] = field(default_factory=list)
    say: Callable[[str], None] | None = None
    """Where a step's log lines go; None: straight to the terminal."""

    @property
    def store(self) -> Store:
        """The store of the run, by its absolute path."""
        return Store(self.config.store.resolve())

    def run(self) -> Artifact | None:
        """Walk the line.

        Raises:
            ConfigError: the last step of the plan is left out by the configuration.
            PreflineError: of the step that failed.
        """
        if self.plan.until and getattr(self.config, self.plan.until) is None:
            raise ConfigError(
                f"step {self.plan.until} is left out: got {self.plan.until}: null, because the profile or a recipe "
                "clears the section; set a field of it, or name another step"
            )
        try:
            return line(self, self.config)
        except Stopped:
            return self.outcomes[-1].artifact

    def __call__(self, step: ModuleType, config: Section | None, **inputs: Artifact | None) -> Artifact | None:
        """The ``make`` of ``flows.line``."""
        if config is None:
            return None
        given = {name: artifact for name, artifact in inputs.items() if artifact is not None}
        spec = Spec(step, config, given, self.config.seed)
        started = time.perf_counter()
        artifact, cached = self.materialize(spec)
        self.outcomes.append(Outcome(spec.name, artifact, cached, time.perf_counter() - started))
        if spec.name == self.plan.until:
            raise Stopped
        return artifact

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact, when it is whole, still holds, and is not to be built again."""
        if spec.name in self.plan.force:
            return None
        found = self.store.find(spec.key())
        holds = getattr(spec.module, "holds", None)
        if found and holds and (reason := holds(spec.config, found.path)):
            self.store.set_aside(found.key, reason)
            return None
        return found

    def materialize(self, spec: Spec) -> tuple[Artifact, bool]:
        """The artifact, and whether it was there already."""
        found = self.find(spec)
        return (found, True) if found else (self.build(spec), False)

    def build(self, spec: Spec) -> Artifact:
        """Run the step.

        Raises:
            ArtifactError: the plan starts behind this step, and the store does not have it.
            PreflineError: of the step.
        """
        if self.plan.start and STEPS.index(spec.name) < STEPS.index(self.plan.start):
            raise ArtifactError(
                f"step {spec.name} ({spec.key()}) is not in the store {self.store.root}: got nothing there, "
                f"because only {self.plan.start} and what is behind it was asked for; build it first (prefline "
                f"run --until {spec.name}), or ask for it too (prefline step ... --upstream)"
            )
        launch(spec, self.store, self._info(), say=self.say, force=spec.name in self.plan.force)
        return Artifact.read(self.store.folder(spec.key()))

    def _info(self) -> dict[str, Any]:
        tracking = self.config.tracking.model_dump(mode="json")
        return {"tracking": {**tracking, "group": self.group}}


def launch(
    spec: Spec, store: Store, info: Mapping[str, Any], *, say: Callable[[str], None] | None = None, force: bool = False
) -> None:
    """Run a step as ``python -m steps.NAME`` (or under torchrun) in this process group, and wait.

    Memory returns to the device with the process. On a signal or an exception here the step is asked to stop, saves, and is
    waited for.

    Raises:
        PreflineError: the kind its exit code says, with what it wrote last.
    """
    target = store.folder(spec.key())
    work = work_folder(target)
    (work / ".resume").mkdir(parents=True, exist_ok=True)
    settings = work / ".resume" / "config.json"
    settings.write_text(spec.config.model_dump_json(indent=1))
    argv = [
        *_interpreter(spec),
        f"steps.{spec.name}",
        "--config",
        str(settings),
        "--out",
        str(target),
        "--key",
        spec.key(),
        "--seed",
        str(spec.seed),
        "--run-info",
        json.dumps(dict(info)),
    ]
    argv += ["--force"] if force else []
    for name, artifact in spec.inputs.items():
        argv += [f"--{name}", str(artifact.path)]
    terminal = say is None and sys.stderr.isatty()
    errors = work / ".resume" / "error.txt"
    errors.unlink(missing_ok=True)
    environment = {**runtime.environment(), "PREFLINE_ERROR_FILE": str(errors)}
    child = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if terminal else subprocess.PIPE,
        stderr=None if terminal else subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    try:
        with _sigterm_raises():
            for text in child.stdout or ():
                (say or _echo)(text.rstrip("\n"))
            code = child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    finally:
        if child.stdout:
            child.stdout.close()
    if code:
        raise _error(code, errors, spec.name)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit where nobody handles it (Prefect does), so that the step is told, too."""
    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not alone:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interpreter(spec: Spec) -> list[str]:
    processes = getattr(getattr(spec.config, "train", None), "processes", 1)
    if processes > 1:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [sys.executable, "-u", "-m"]


def _error(code: int, errors: Path, step: str) -> PreflineError:
    message = errors.read_text() if errors.exists() else ""
    if code in BY_EXIT_CODE and message:
        return BY_EXIT_CODE[code](message)
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return PreflineError(
        f"step {step} failed: got {cause}, because of the error above; its partial work is kept, and running again "
        "continues from it"
    )


def _echo(text: str) -> None:
    os.write(2, (text + "\n").encode())
