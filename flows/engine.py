"""The engine: gives each step's artifact, from the store or by running the step in a process of its own. No prefect here, but
for a secret that a configuration keeps in one of its blocks.

``flows.tasks`` puts each step into a Prefect task; ``prefline step`` uses the engine as it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from flows.blocks import secrets
from flows.line import STEPS, AlignConfig, line
from steps.lib import runs, runtime, stopping
from steps.lib.artifact import Artifact
from steps.lib.code import changed
from steps.lib.config import Section
from steps.lib.door import ERROR_FILE, OUTCOME_FILE, told_error
from steps.lib.errors import ArtifactError, ConfigError, Damaged, PreflineError, Resumable
from steps.lib.step import Spec
from steps.lib.store import Store
from steps.lib.stores import open_store


@dataclass(frozen=True)
class Plan:
    """Which part of the line runs. The names are those of the steps."""

    start: str | None = None
    """``--from``: steps before it must be in the store already; nothing before it runs."""
    until: str | None = None
    """``--until``: the last step that runs."""
    force: tuple[str, ...] = ()
    """``--force``: steps that are built again although the store has them."""
    strict_code: bool = False
    """``--strict-code``: a step whose code changed since it was built is built again, although its key is the same."""

    @classmethod
    def of(
        cls,
        only: str | None = None,
        start: str | None = None,
        until: str | None = None,
        force: Sequence[str] = (),
        strict_code: bool = False,
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
        return cls(only or start, only or until, tuple(force), strict_code)


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
    far: Path | None = None
    """File in which a step's process tells how far it is; None: nobody asks."""
    record: runs.Recorder | None = None
    """What this walk tells the store of the keys it needs, so that they are not collected meanwhile."""

    @cached_property
    def store(self) -> Store:
        """The store of the run.

        Raises:
            PreflineError: its URL is of a kind that is not supported, or it cannot be reached.
        """
        return open_store(self.config.store, self.config.cache)

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
        self.record = runs.begin(self.store.place, self.group)
        ended = "done"
        try:
            return self._walk()
        except BaseException as error:
            ended = type(error).__name__
            raise
        finally:
            self.record.end(ended)

    def _walk(self) -> Artifact | None:
        """The line from its start; again where an artifact that was found turned out damaged when its bytes were read."""
        for left in reversed(range(len(STEPS))):
            self.outcomes.clear()
            try:
                return line(self, self.config)
            except Stopped:
                return self.outcomes[-1].artifact
            except Damaged:
                if not left:
                    raise
        return None

    def __call__(self, step: ModuleType, config: Section | None, **inputs: Artifact | None) -> Artifact | None:
        """The ``make`` of ``flows.line``."""
        if config is None:
            return None
        given = {name: artifact for name, artifact in inputs.items() if artifact is not None}
        spec = Spec(step, config, given, self.config.seed)
        started = time.perf_counter()
        if self.record:
            self.record.reached(spec.name, spec.key())
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
        if found and self.plan.strict_code and changed(spec.module.__name__, found.manifest.get("code", {})):
            return None
        holds = getattr(spec.module, "holds", None)
        if found and holds and (reason := holds(spec.config, self.store.fetch(found, alone=True).path)):
            self.store.set_aside(found.key, reason)
            return None
        return found

    def materialize(self, spec: Spec) -> tuple[Artifact, bool]:
        """The artifact, and whether it was there already."""
        found = self.find(spec)
        return (found, True) if found else self.build(spec)

    def build(self, spec: Spec) -> tuple[Artifact, bool]:
        """Run the step, and say whether another process had built it meanwhile.

        Raises:
            ArtifactError: the plan starts behind this step, and the store does not have it.
            PreflineError: of the step.
        """
        if self.plan.start and STEPS.index(spec.name) < STEPS.index(self.plan.start):
            raise ArtifactError(
                f"step {spec.name} ({spec.key()}) is not in the store {self.store.name}: got nothing there, "
                f"because only {self.plan.start} and what is behind it was asked for; build it first (prefline "
                f"run --until {spec.name}), or ask for it too (prefline step ... --upstream)"
            )
        for artifact in spec.inputs.values():
            self.store.fetch(artifact)
        again = spec.name in self.plan.force or self.plan.strict_code
        built = launch(spec, self.store, self._info(), say=self.say, force=again, far=self.far)
        result = self.store.find(spec.key())
        if result is None:
            raise ArtifactError(
                f"step {spec.name} ({spec.key()}) ended well, but its artifact is not in {self.store.name}: got nothing there, "
                "because somebody removed or damaged it at once; run the same command again"
            )
        return result, not built

    def _info(self) -> dict[str, Any]:
        tracking = self.config.tracking.model_dump(mode="json")
        return {"tracking": {**tracking, "group": self.group}}


def launch(
    spec: Spec,
    store: Store,
    info: Mapping[str, Any],
    *,
    say: Callable[[str], None] | None = None,
    force: bool = False,
    far: Path | None = None,
) -> bool:
    """Run a step as ``python -m steps.NAME`` in this process group, and wait.

    Memory returns to the device with the process. On a signal or an exception here the step is asked to stop, saves, and is
    waited for; when this process dies, the step notices by the end of its standard input.

    Returns:
        Whether the step was built; False when another process had built it while this one waited for the lock.

    Raises:
        ConfigError: a Prefect Secret block that the configuration names cannot be read.
        PreflineError: the kind its exit code says, with what it wrote last.
    """
    with tempfile.TemporaryDirectory(prefix="prefline-") as folder:
        errors, outcome, settings = (Path(folder) / name for name in ("error.txt", "outcome.txt", "config.json"))
        settings.write_text(spec.config.model_dump_json(indent=1), encoding="utf-8")
        argv = [sys.executable, "-u", "-m", f"steps.{spec.name}"]
        argv += ["--config", str(settings), "--out", str(store.folder(spec.key())), "--key", spec.key()]
        argv += ["--seed", str(spec.seed), "--store", store.name, "--cache", str(store.cache)]
        argv += ["--run-info", json.dumps(dict(info)), *(["--force"] if force else [])]
        for name, artifact in spec.inputs.items():
            argv += [f"--{name}", str(artifact.path)]
        own = {ERROR_FILE: str(errors), OUTCOME_FILE: str(outcome), stopping.ENGINE: "1", **secrets(spec.config)}
        if far:
            own[runtime.PROGRESS] = str(far)
        code = _wait(argv, {**runtime.environment(), **own}, say)
        if code:
            raise _error(code, errors, spec.name)
        return outcome.read_text() == "built"


def _wait(argv: Sequence[str], environment: Mapping[str, str], say: Callable[[str], None] | None) -> int:
    """Run a process to its end, its lines passed on; whatever ends this function early ends the process, too."""
    terminal = say is None and sys.stderr.isatty()
    child = subprocess.Popen(
        argv,
        env=dict(environment),
        stdin=subprocess.PIPE,  # stays open: its end tells the step that the engine is gone
        stdout=None if terminal else subprocess.PIPE,
        stderr=None if terminal else subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    try:
        with _sigterm_raises():
            for text in child.stdout or ():
                (say or _echo)(text.rstrip("\n"))
            return child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(stopping.GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    finally:
        for stream in (child.stdin, child.stdout):
            if stream:
                stream.close()


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


def _error(code: int, errors: Path, step: str) -> PreflineError:
    if code > 0 and (told := told_error(str(errors))):
        stopped = isinstance(told, Resumable) and str(told).startswith("stopped by")
        return Resumable(f"step {step} was {told}") if stopped else told
    if -code in (signal.SIGTERM, signal.SIGINT):
        return Resumable(
            f"step {step} was stopped by {signal.Signals(-code).name}: its partial work is kept; "
            "run the same command again to go on"
        )
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return PreflineError(
        f"step {step} failed: got {cause}, because of the error above; its partial work is kept, and running again "
        "continues from it"
    )


def _echo(text: str) -> None:
    os.write(2, (text + "\n").encode())
