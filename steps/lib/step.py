"""The shape of a step: its context, its metrics, its key, and building it.

A step module has ``VERSION``, ``<Name>Config``, ``run(config, *, <inputs>, out, context) -> Metrics``, and may have
``RECORDS`` (globs of files that do not count in the output digest), ``externals(config)`` (content digests of what it reads from
outside the store) and ``holds(config, folder)`` (why a cached result no longer holds, or None).

The three doors (Prefect task, ``prefline step``, ``python -m steps.NAME``; see ``door``) all end in ``build`` here.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, get_type_hints

from steps.lib import runtime, tracking
from steps.lib.artifact import Artifact, examine
from steps.lib.code import closure
from steps.lib.config import Section, key_view
from steps.lib.digests import digest_text
from steps.lib.publishing import clear, finish, publish
from steps.lib.row_ledger import RowLedger
from steps.lib.store import work_folder

T = TypeVar("T")


class Track(Protocol):
    """Sends metrics of one moment to the tracker; ``step`` is the update they belong to."""

    def __call__(self, values: Mapping[str, float], step: int | None = None) -> None: ...


class Progress(Protocol):
    """Wraps an iterable in a progress bar (on a terminal, and only when it lasts); ``note`` says what stands behind the bar."""

    def __call__(
        self, items: Iterable[T], label: str, total: int | None = None, note: Callable[[], str] | None = None
    ) -> Iterator[T]: ...


@dataclass(frozen=True)
class Context:
    """What a step gets besides its configuration and inputs."""

    log: logging.Logger
    seed: int
    resume: Path
    """Folder for checkpoints and request ledgers; it survives a crash and is deleted at publishing."""
    progress: Progress
    track: Track
    key: str = ""
    """Key of what is built. A folder that was named by hand may hold, in ``resume``, the work of another one."""


@dataclass
class Metrics:
    """What a step says of its own run; it goes into the manifest."""

    values: dict[str, float | int | str] = field(default_factory=dict)
    rows: RowLedger = field(default_factory=RowLedger)
    tokens: int = 0
    """Tokens generated or trained on."""
    cost: float = 0.0
    """US dollars paid to teachers and judges."""


@dataclass(frozen=True)
class Spec:
    """One step with its configuration and inputs: all that decides its result."""

    module: ModuleType
    config: Section
    inputs: dict[str, Artifact]
    seed: int

    @property
    def name(self) -> str:
        """The step's name: file = config section = command = artifact folder."""
        return self.module.__name__.rpartition(".")[2]

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The parts of the key, in plain JSON, read once. No path, name, time or count is among them.

        Raises:
            PreflineError: something the step reads from outside is missing or unreadable.
        """
        externals: Callable[..., dict[str, str]] | None = getattr(self.module, "externals", None)
        arguments: dict[str, Any] = {}
        if externals and "inputs" in inspect.signature(externals).parameters:
            arguments["inputs"] = {name: artifact.digest for name, artifact in self.inputs.items()}
        return {
            "step": self.name,
            "version": self.module.VERSION,
            "config": key_view(self.config),
            "inputs": {name: artifact.digest for name, artifact in sorted(self.inputs.items())},
            "seed": self.seed,
            "externals": dict(sorted(externals(self.config, **arguments).items())) if externals else {},
        }

    def key(self) -> str:
        """``<step>/<20 hex digits>``: the artifact's folder below the store's root."""
        return key_of(self.parts)


def key_of(parts: Mapping[str, Any]) -> str:
    """The key of the given parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"{parts['step']}/{digest_text(text)[:20]}"


def module_of(name: str) -> ModuleType:
    """The step module called ``name``."""
    return importlib.import_module(f"steps.{name}")


def config_class(module: ModuleType) -> type[Section]:
    """The configuration model of a step: the type of ``run``'s first parameter."""
    kind = get_type_hints(module.run)["config"]
    assert isinstance(kind, type) and issubclass(kind, Section)
    return kind


def input_names(module: ModuleType) -> dict[str, bool]:
    """Name of each input of a step -> whether it must be given."""
    names: dict[str, bool] = {}
    for name, parameter in inspect.signature(module.run).parameters.items():
        if name not in ("config", "out", "context"):
            names[name] = parameter.default is inspect.Parameter.empty
    return names


def build(
    spec: Spec, target: Path, run_info: Mapping[str, Any] | None = None, *, check: Callable[[], None] | None = None
) -> Artifact:
    """Run a step and publish its artifact at ``target``. Work lies in a sibling ``.<name>.partial`` until it is whole.

    Under torchrun every rank runs the step and rank 0 publishes.

    Args:
        spec: the step.
        target: folder of the artifact.
        run_info: settings of the tracker.
        check: called right before publishing; raises when this process may not publish any more.

    Raises:
        PreflineError: of the step; the partial folder stays, and running again continues from it.
    """
    info = dict(run_info or {})
    parts = spec.parts
    rank = int(os.environ.get("RANK", "0"))
    work = work_folder(target)
    resume = work / ".resume"
    if rank == 0:
        done = examine(work, key=key_of(parts), deep=True)
        if isinstance(done, Artifact):  # killed between its manifest and its last rename
            return finish(work, target, done.manifest)
        clear(work)
    for folder in (resume, work / "record"):
        folder.mkdir(parents=True, exist_ok=True)
    log = runtime.logger(spec.name, work / "record" / "log.jsonl" if rank == 0 else None)
    runtime.prepare(spec.seed)
    started = time.time()
    with tracking.run(spec.name, key_of(parts), key_view(spec.config), info.get("tracking"), work) as track:
        context = Context(
            log=log, seed=spec.seed, resume=resume, progress=runtime.progress, track=track, key=key_of(parts)
        )
        folders = {name: artifact.path for name, artifact in spec.inputs.items()}
        metrics: Metrics = spec.module.run(
            spec.config,
            **{name: folders.get(name) for name in input_names(spec.module)},
            out=work,
            context=context,
        )
        track({k: float(v) for k, v in metrics.values.items() if isinstance(v, (int, float))})
    runtime.close(log)
    if rank != 0:
        return Artifact(target, {})
    if check:
        check()
    return publish(
        work,
        target,
        {
            "step": spec.name,
            "key": key_of(parts),
            "parts": parts,
            "inputs": {
                name: {"key": artifact.key, "digest": artifact.digest} for name, artifact in sorted(spec.inputs.items())
            },
            "config": spec.config.model_dump(mode="json"),
            "metrics": metrics.values,
            "rows": metrics.rows.dump(),
            "tokens": metrics.tokens,
            "cost": metrics.cost,
            "seconds": round(time.time() - started, 3),
            "memory": runtime.peak_memory(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": platform.node(),
            "versions": runtime.versions(),
            "git": runtime.git_commit(),
            "code": closure(spec.module.__name__),
        },
        records=getattr(spec.module, "RECORDS", ()),
    )
