"""The engine with a Prefect task around each step: what the store knows, shown in Prefect.

The store decides and Prefect shows. No task has a cache of Prefect's: its body asks the store, and gives the state by which a
person sees what happened: ``Cached``, ``Completed``, ``Resumable`` or ``Failed``. A server that goes away takes nothing along: the
line goes on without it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed

from flows import present
from flows.engine import Engine, Outcome
from flows.forecast import Expected, forecast
from flows.plan import planned
from steps.lib.artifact import Artifact
from steps.lib.errors import BudgetSpent, PreflineError, Resumable, TeacherError
from steps.lib.step import Spec

RETRY_DELAYS = (10.0, 60.0, 300.0)
"""Seconds before a failed step is started again; the last one repeats."""


class ServerGone(Abort):
    """Prefect's server does not answer any more, so it cannot be told how the run ended. Prefect leaves at once with it."""

    def __init__(self, reason: str, outcomes: Sequence[Outcome], error: PreflineError | None) -> None:
        super().__init__(reason)
        self.outcomes = outcomes
        self.error = error


class Job:
    """One step of one run. A plain class: Prefect looks into dataclasses for futures, and must not look in here."""

    def __init__(self, engine: PrefectEngine, spec: Spec) -> None:
        self.engine = engine
        self.spec = spec
        self.found: tuple[Artifact, bool] | None = None
        self.error: PreflineError | None = None


def failed(error: PreflineError, *, again: bool = True) -> State[Any]:
    """The state of what ended with this error. ``again`` False: no retry."""
    name = "Resumable" if isinstance(error, Resumable) else "Failed"
    return Failed(name=name, message=str(error), data=error if again else None)


def _worth_another_try(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """The process died, a teacher failed, or the step was stopped by itself; what somebody wrote, or a budget, stays as it is."""
    if isinstance(state.data, BudgetSpent):
        return False
    return isinstance(state.data, (TeacherError, Resumable)) or type(state.data) is PreflineError


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_another_try)
def make(job: Job, upstream: dict[str, Any]) -> State[Any]:
    """Find or build a step's artifact. ``upstream`` holds the states of the steps before it, for the edges in Prefect's graph."""
    engine, context = job.engine, TaskRunContext.get()
    if context:  # not the task's own tags: for those Prefect asks the server for slots, 0.1 s and more a step
        context.task_run.tags = [job.spec.name, *engine.tags]
    try:
        artifact, cached = job.found = engine.without_prefect(job.spec)
    except PreflineError as error:
        job.error = error
        return failed(error, again=not engine.interrupted)
    data = {"key": artifact.key, "digest": artifact.digest}
    if cached:
        return Completed(name="Cached", message=f"{artifact.key} is in the store", data=data)
    engine.show(present.step, artifact)
    return Completed(message=f"{artifact.key} was built", data=data)


@dataclass
class PrefectEngine(Engine):
    """Runs every step as a Prefect task, called directly from the flow."""

    tags: Sequence[str] = ()
    """Tags of the flow run and of every task run."""
    title: str = ""
    """Name of the flow run."""
    states: dict[str, State[Any]] = field(default_factory=dict)
    """Key -> final state of the step's task; Prefect draws the graph's edges from these objects."""
    gone: str = ""
    """Why Prefect's server does not answer any more; empty as long as it does."""
    interrupted: bool = False
    """A person or a supervisor stopped the whole run."""

    def materialize(self, spec: Spec) -> tuple[Artifact, bool]:
        """Through Prefect, as long as its server answers."""
        if not self.answers():
            return self.without_prefect(spec)
        job = Job(self, spec)
        state = make.with_options(
            name=spec.name,
            task_run_name=spec.key().replace("/", "-")[: len(spec.name) + 9],
            retries=self.config.retries,
            retry_delay_seconds=list(RETRY_DELAYS),
        )(job, {name: self.states[artifact.key] for name, artifact in self._shown(spec)}, return_state=True)
        self.states[spec.key()] = state
        if job.found:
            return job.found
        error = job.error or state.result(raise_on_failure=False)
        assert isinstance(error, BaseException)
        raise error

    def without_prefect(self, spec: Spec) -> tuple[Artifact, bool]:
        """The step from the store or by its process, as the plain engine does it."""
        return super().materialize(spec)

    def build(self, spec: Spec) -> tuple[Artifact, bool]:
        """Run the step; its lines go into the run's log, where somebody can read them there."""
        lines = None if PREFECT_API_URL.value() is None and sys.stderr.isatty() else Lines.of_this_run()
        self.say = lines
        try:
            with present.progress(spec.name) as self.far:
                return super().build(spec)
        except (KeyboardInterrupt, TerminationSignal) as stop:
            run = FlowRunContext.get()
            if isinstance(stop, TerminationSignal) and run and run.flow_run and run.flow_run.deployment_id:
                raise  # the worker knows why: cancelled, or going down
            self.interrupted = True
            name = "SIGTERM" if isinstance(stop, TerminationSignal) else "Ctrl-C"
            if name == "Ctrl-C" and PREFECT_API_URL.value() is None:
                self.gone = "stopped by Ctrl-C, too"  # the server that Prefect started for this run alone
            raise Resumable(
                f"step {spec.name} was stopped by {name}: its partial work is kept; run the same command again to go on"
            ) from None
        finally:
            if lines:
                lines.close()

    def walk(self) -> PreflineError | None:
        """The whole line with what Prefect shows of it; the error that ended it, if one did."""
        if coming := self._coming():
            self.show(present.plan, coming)
        self.show(present.configuration, self.config, self.tags, self.title)
        problem: PreflineError | None = None
        try:
            self.run()
        except PreflineError as error:
            problem = error
        if self.outcomes:
            self.show(present.summary, self.outcomes)
        return problem

    def _coming(self) -> list[Expected]:
        """What will be built, and what it takes; none where that cannot be told: the run itself says why."""
        try:
            return list(forecast(planned(self.config, self.plan, self.store), self.plan, self.store).values())
        except PreflineError:
            return []

    def answers(self) -> bool:
        """Whether Prefect's server is there. One that is away is waited for (Prefect's own retries), and then done without."""
        run = FlowRunContext.get()
        if not self.gone and run and isinstance(problem := run.client.api_healthcheck(), httpx.TransportError):
            self.gone = str(problem) or type(problem).__name__
            _log().warning("Prefect's server does not answer any more: the line goes on without it, into the store")
        return not self.gone

    def show(self, call: Callable[..., object], *arguments: Any) -> None:
        """Show something in Prefect. What cannot be shown is no reason to stop."""
        if not self.answers():
            return
        try:
            call(*arguments)
        except httpx.HTTPError as error:
            _log().warning("not shown in Prefect: %s", error)

    def leave(self, error: PreflineError | None) -> None:
        """Called last.

        Raises:
            ServerGone: the server went away and did not come back; Prefect's own way would try for two minutes to reach it.
        """
        run = FlowRunContext.get()
        if not self.gone or not run:
            return
        with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0}):
            if PREFECT_API_URL.value() is None or run.client.api_healthcheck() is not None:
                raise ServerGone(self.gone, self.outcomes, error)

    def _shown(self, spec: Spec) -> list[tuple[str, Artifact]]:
        """Inputs whose steps ran as tasks."""
        return [(name, artifact) for name, artifact in spec.inputs.items() if artifact.key in self.states]


class Lines:
    """Passes a step's lines on to the run's log: a burst of them at once, then one every ``PERIOD`` seconds.

    A line there costs a millisecond and a row of the server's database; all of them are in the artifact's record/log.jsonl. What
    was held back last is passed on at the end, since it says why a step failed.
    """

    BURST = 200
    """lines"""
    PERIOD = 5.0
    """seconds"""

    def __init__(self, log: Callable[[str], None], *, echo: bool) -> None:
        self._log = log
        self._echo = echo
        self._room = float(self.BURST)
        self._time = time.monotonic()
        self._held: deque[str] = deque(maxlen=30)
        self._left_out = 0

    @classmethod
    def of_this_run(cls) -> Lines:
        """Into the log of the task run that runs now; to standard error too, where Prefect's console does not show it."""
        log = get_run_logger()
        record = logging.makeLogRecord({"name": "prefect.task_runs", "levelno": logging.INFO})
        consoles = logging.getLogger("prefect").handlers or logging.getLogger().handlers
        shown = log.isEnabledFor(logging.INFO) and any(handler.filter(record) for handler in consoles)
        return cls(log.info, echo=not shown)

    def __call__(self, text: str) -> None:
        """Take one line."""
        if self._echo:
            os.write(2, (text + "\n").encode())
        now = time.monotonic()
        self._room = min(float(self.BURST), self._room + (now - self._time) / self.PERIOD)
        self._time = now
        if self._room >= 1:
            self._tell()
            self._held.clear()
            self._room -= 1
            self._log(text)
        else:
            self._held.append(text)
            self._left_out += 1

    def close(self) -> None:
        """Pass on what was held back last."""
        self._left_out -= len(self._held)
        self._tell()
        for text in self._held:
            self._log(text)
        self._held.clear()

    def _tell(self) -> None:
        if self._left_out > 0:
            self._log(f"({self._left_out} lines left out here; all are in record/log.jsonl of the artifact)")
        self._left_out = 0


def _log() -> logging.Logger:
    return logging.getLogger("prefline.prefect")
