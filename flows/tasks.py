"""The engine with a Prefect task around each step: what the store knows, shown in Prefect.

The pattern: Prefect's record of a task lies inside the artifact's folder, so both live and die together; whether a step runs is
decided from the store, never from Prefect's states.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from typing import Any

from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from flows.engine import Engine
from steps.lib.step import Spec
from steps.lib.store import Artifact


class StepCache(CachePolicy):
    """The store's key is Prefect's key; the record becomes ``<step>/<hash>/prefect.json``."""

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """The path of the record below the store's root."""
        return f"{inputs['job'].spec.key()}/prefect.json"


class Job:
    """One step of one run. A plain class: Prefect looks into dataclasses for futures, and must not look in here."""

    def __init__(self, engine: PrefectEngine, spec: Spec) -> None:
        self.engine = engine
        self.spec = spec
        self.ran = False


@task(persist_result=True, result_serializer="json", cache_policy=StepCache())
def build(job: Job, upstream: dict[str, Any]) -> dict[str, str]:
    """Build a step's artifact. ``upstream`` holds the results of the steps before it, for the edges in Prefect's graph."""
    found = job.engine.find(job.spec)
    artifact = found or job.engine.build(job.spec)
    job.ran = found is None
    return {"key": artifact.key, "digest": artifact.digest}


@dataclass
class PrefectEngine(Engine):
    """Runs every step as a Prefect task, called directly from the flow."""

    results: dict[str, Any] = field(default_factory=dict)
    """Key -> what the step's task returned; Prefect draws the graph's edges from these objects."""

    def materialize(self, spec: Spec) -> tuple[Artifact, bool]:
        """Through Prefect: state ``Cached`` where the store has the artifact."""
        job = Job(self, spec)
        present = self.find(spec) is not None
        result = build.with_options(
            name=spec.name,
            task_run_name=spec.key().replace("/", "-"),
            result_storage=self.store.root,
            refresh_cache=not present,
        )(job, {name: self.results[artifact.key] for name, artifact in spec.inputs.items()})
        self.results[spec.key()] = result
        return Artifact.read(self.store.folder(spec.key())), not job.ran

    def build(self, spec: Spec) -> Artifact:
        """Run the step; its log lines become the task run's, where Prefect's level takes them and no person watches."""
        log = get_run_logger()
        if log.isEnabledFor(logging.INFO) and not sys.stderr.isatty():
            self.say = log.info
        return super().build(spec)
