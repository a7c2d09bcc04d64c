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
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, Protocol, TypeVar, get_type_hints

from steps.lib import runtime, tracking
from steps.lib.code import closure
from steps.lib.config import Section, key_view, load
from steps.lib.digests import digest_text
from steps.lib.errors import BY_EXIT_CODE, ArtifactError, ConfigError, PreflineError, Resumable
from steps.lib.ledger import RowLedger
from steps.lib.locks import hold
from steps.lib.place import FolderPlace
from steps.lib.remote import open_store
from steps.lib.store import Artifact, clear, damage, finish, publish, work_folder

T = TypeVar("T")
ERROR_FILE = "PREFLINE_ERROR_FILE"
"""Variable that names the file for a failed step's message; set by the engine."""
OUTCOME_FILE = "PREFLINE_OUTCOME_FILE"
"""Variable that names the file for "built" or "found"; set by the engine."""


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
        if damage(work, key=key_of(parts), deep=True) is None:  # killed between its manifest and its last rename
            return finish(work, target, Artifact.read(work).manifest)
        clear(work)
    for folder in (resume, work / "record"):
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
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": platform.node(),
            "versions": runtime.versions(),
            "git": runtime.git_commit(),
            "code": closure(spec.module.__name__),
        },
        records=getattr(spec.module, "RECORDS", ()),
    )


def main(name: str, argv: list[str] | None = None) -> None:
    """The shell door: explicit folders in, one artifact folder out. Exits with the error's code.

    ``python -m steps.sft --config sft.yaml --base DIR --chats DIR --out DIR lora.rank=8``
    """
    module = module_of(name)
    arguments = _parser(name, module).parse_intermixed_args(argv)
    runtime.end_with_parent()
    try:
        with runtime.leaving():
            _door(module, arguments, sys.argv[1:] if argv is None else argv)
    except PreflineError as error:
        _report(error)
    except Exception as error:
        clear_error = runtime.storage_error(error, arguments.out)
        if clear_error is None:
            raise
        _report(clear_error)


def _parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
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
    parser.add_argument("--store", help=argparse.SUPPRESS)  # the engine's: URL of the store in which --out lies
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run-info", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="changes on top of the file, such as lora.rank=8")
    return parser


def _door(module: ModuleType, arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Check everything, take the artifact's lock, look again, build, and hand the artifact to the store."""
    name = module.__name__.rpartition(".")[2]
    loaded = load(config_class(module), [arguments.config] if arguments.config else [], arguments.overrides)
    given = {source: getattr(arguments, source) for source in input_names(module)}
    inputs = {source: Artifact.read(path, deep=True) for source, path in given.items() if path is not None}
    spec = Spec(module, loaded.value, inputs, arguments.seed)
    key = spec.key()
    if arguments.key and arguments.key != key:
        raise ArtifactError(
            f"key of step {name} is {key}: got {arguments.key} on the command line, because an input "
            "changed while the run was being prepared; start the run again"
        )
    if "RANK" in os.environ:  # torchrun's child: the process that started torchrun holds the lock
        build(spec, arguments.out, arguments.run_info)
        return
    store = open_store(arguments.store, arguments.cache) if arguments.store else None
    place = store.place if store else FolderPlace(arguments.out.parent)
    lock = f".locks/{key.replace('/', '-') if store else arguments.out.name}"
    log = runtime.logger(name, None)
    before = _seal(arguments.out)
    with runtime.stop_signals() as stop, hold(place, lock, log=log, stop=stop, lost=_lost) as held:
        existing = store.find(key) if store else _existing(arguments.out, key)
        if existing and not (arguments.force and _seal(arguments.out) == before):
            _tell(built=False)
            return
        with runtime.leaving() as leave:

            def check() -> None:
                leave.check()
                held.check()

            if getattr(getattr(spec.config, "train", None), "processes", 1) > 1:
                _under_torchrun(name, spec.config.train.processes, argv)  # type: ignore[attr-defined]
                artifact = Artifact.read(arguments.out)
            else:
                artifact = build(spec, arguments.out, arguments.run_info, check=check)
        if store:
            store.keep(artifact, replace=arguments.force)
        _tell(built=True)


def _existing(out: Path, key: str) -> Artifact | None:
    """The artifact at an explicit ``--out``."""
    if not out.exists():
        return None
    existing = Artifact.read(out, deep=True)
    if existing.key != key:
        raise ConfigError(
            f"--out {out} already holds {existing.key}: got a run with key {key}, because "
            "an artifact is never written over; choose another folder, or delete that one"
        )
    return existing


def _seal(folder: Path) -> str:
    """Seal of the artifact that lies there: whether another process built it anew while this one waited. "" for none."""
    return "" if damage(folder) else str(Artifact.read(folder).manifest["seal"])


def _under_torchrun(name: str, processes: int, argv: Sequence[str]) -> None:
    """Run this very command in ``processes`` ranks, and pass signals on. This process keeps the lock."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**runtime.environment(), runtime.ENGINE: "1"}
    child = subprocess.Popen([*command, "-m", f"steps.{name}", *argv], env=environment, stdin=subprocess.PIPE)
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(runtime.GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    if code:
        raise told_error() or PreflineError(
            f"step {name} failed under torchrun: got exit code {code}, because of the error above; running again goes on from "
            "the last checkpoint"
        )


def _report(error: PreflineError) -> NoReturn:
    """Give the error to the engine, or show it, and leave with its exit code."""
    _say(error)
    sys.exit(error.exit_code)


def _lost(message: str) -> NoReturn:
    """The lock is another's by now: end at once, whatever this process is doing."""
    _say(Resumable(message))
    os._exit(Resumable.exit_code)


def _say(error: PreflineError) -> None:
    if file := os.environ.get(ERROR_FILE):
        Path(file).write_text(json.dumps({"exit_code": error.exit_code, "message": str(error)}), encoding="utf-8")
    else:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()


def told_error(file: str | None = None) -> PreflineError | None:
    """The error that a step's process left in ``file`` (default: where this process's own engine looks); None without one."""
    path = Path(file or os.environ.get(ERROR_FILE, ""))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return BY_EXIT_CODE.get(facts["exit_code"], PreflineError)(facts["message"])


def _tell(*, built: bool) -> None:
    """Tell the engine whether the artifact was built here, or by another process meanwhile."""
    if file := os.environ.get(OUTCOME_FILE):
        Path(file).write_text("built" if built else "found")
