"""The shape of a step, and its shell door ``python -m steps.NAME``.

A step module has ``VERSION``, ``<Name>Config``, ``run(config, *, <inputs>, out, context) -> Metrics``, and may have
``RECORDS`` (globs of files that do not count in the output digest), ``externals(config)`` (content digests of what it reads from
outside the store) and ``holds(config, folder)`` (why a cached result no longer holds, or None).

The three doors (Prefect task, ``prefline step``, ``python -m steps.NAME``) all end in ``build`` here.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, get_type_hints

from steps.lib import runtime, tracking
from steps.lib.config import Section, key_view, load
from steps.lib.errors import ArtifactError, ConfigError, PreflineError
from steps.lib.ledger import RowLedger
from steps.lib.store import Artifact, digest_text, publish, work_folder

T = TypeVar("T")


class Track(Protocol):
    """Sends metrics of one moment to the tracker; ``step`` is the update they belong to."""

    def __call__(self, values: Mapping[str, float], step: int | None = None) -> None: ...


class Progress(Protocol):
    """Wraps an iterable in a progress bar (on a terminal, and only when it lasts)."""

    def __call__(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]: ...


@dataclass(frozen=True)
class Context:
    """What a step gets besides its configuration and inputs."""

    log: logging.Logger
    seed: int
    resume: Path
    """Folder for checkpoints and request ledgers; it survives a crash and is deleted at publishing."""
    progress: Progress
    track: Track


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


def build(spec: Spec, target: Path, run_info: Mapping[str, Any] | None = None) -> Artifact:
    """Run a step and publish its artifact at ``target``. Work lies in a sibling ``.<name>.partial`` until it is whole.

    Under torchrun every rank runs the step and rank 0 publishes.

    Raises:
        PreflineError: of the step; the partial folder stays, and running again continues from it.
    """
    info = dict(run_info or {})
    parts = spec.parts
    rank = int(os.environ.get("RANK", "0"))
    work = work_folder(target)
    resume = work / ".resume"
    record = work / "record"
    for folder in (resume, record):
        folder.mkdir(parents=True, exist_ok=True)
    log = runtime.logger(spec.name, work / "record" / "log.jsonl" if rank == 0 else None)
    runtime.prepare(spec.seed)
    started = time.time()
    with tracking.run(spec.name, key_of(parts), key_view(spec.config), info.get("tracking"), work) as track:
        context = Context(log=log, seed=spec.seed, resume=resume, progress=runtime.progress, track=track)
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
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": platform.node(),
            "versions": runtime.versions(),
            "git": runtime.git_commit(),
        },
        records=getattr(spec.module, "RECORDS", ()),
    )


def main(name: str, argv: list[str] | None = None) -> None:
    """The shell door: explicit folders in, one artifact folder out. Exits with the error's code.

    ``python -m steps.sft --config sft.yaml --base DIR --chats DIR --out DIR lora.rank=8``
    """
    module = module_of(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m steps.{name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, help="YAML or JSON file with the step's own section; without it the defaults"
    )
    for source, required in input_names(module).items():
        parser.add_argument(f"--{source}", type=Path, required=required, help="folder of the artifact to read")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the artifact to write; it must not exist yet"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", help="refuse to publish when the key of what is read is another one")
    parser.add_argument(
        "--force", action="store_true", help="build again although --out is there; the old one is set aside"
    )
    parser.add_argument("--run-info", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="changes on top of the file, such as lora.rank=8")
    arguments = parser.parse_intermixed_args(argv)
    try:
        loaded = load(config_class(module), [arguments.config] if arguments.config else [], arguments.overrides)
        given = {source: getattr(arguments, source) for source in input_names(module)}
        inputs = {source: Artifact.read(path) for source, path in given.items() if path is not None}
        spec = Spec(module, loaded.value, inputs, arguments.seed)
        key = spec.key()
        if arguments.key and arguments.key != key:
            raise ArtifactError(
                f"key of step {name} is {key}: got {arguments.key} on the command line, because an input "
                "changed while the run was being prepared; start the run again"
            )
        if arguments.out.exists() and not arguments.force:
            existing = Artifact.read(arguments.out)
            if existing.key != key:
                raise ConfigError(
                    f"--out {arguments.out} already holds {existing.key}: got a run with key {key}, because "
                    "an artifact is never written over; choose another folder, or delete that one"
                )
            return
        build(spec, arguments.out, arguments.run_info)
    except PreflineError as error:
        if "PREFLINE_ERROR_FILE" in os.environ:
            Path(os.environ["PREFLINE_ERROR_FILE"]).write_text(str(error))
        else:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
