"""The shell door of every step, ``python -m steps.NAME``: what the engine starts, and what a person may start by hand.

It checks everything, takes the artifact's lock, looks again, builds, and hands the artifact to the store. So all doors are covered
by one lock, and the engine only finds and launches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from steps.lib import runtime, stopping
from steps.lib.artifact import Artifact, examine
from steps.lib.config import load
from steps.lib.errors import ArtifactError, ConfigError, PreflineError, Resumable, told
from steps.lib.locks import hold
from steps.lib.place import FolderPlace
from steps.lib.step import Spec, build, config_class, input_names, module_of
from steps.lib.store import lock_of
from steps.lib.stores import open_store

ERROR_FILE = "PREFLINE_ERROR_FILE"
"""Variable that names the file for a failed step's message; set by the engine."""
OUTCOME_FILE = "PREFLINE_OUTCOME_FILE"
"""Variable that names the file for "built" or "found"; set by the engine."""


def main(name: str, argv: list[str] | None = None) -> None:
    """The shell door: explicit folders in, one artifact folder out. Exits with the error's code.

    ``python -m steps.sft --config sft.yaml --base DIR --chats DIR --out DIR lora.rank=8``
    """
    module = module_of(name)
    arguments = _parser(name, module).parse_intermixed_args(argv)
    stopping.end_with_parent()
    try:
        with stopping.leaving(lambda message: _say(Resumable(message))):
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
    lock = lock_of(key if store else arguments.out.name)
    log = runtime.logger(name, None)
    before = _seal(arguments.out)
    with stopping.stop_signals() as stop, hold(place, lock, log=log, stop=stop, lost=_lost) as held:
        existing = store.find(key) if store else _existing(arguments.out, key)
        if existing and not (arguments.force and _seal(arguments.out) == before):
            _tell(built=False)
            return
        processes = getattr(getattr(spec.config, "train", spec.config), "processes", 1)
        if processes > 1:
            _under_torchrun(name, processes, argv, stop)
            artifact = Artifact.read(arguments.out)
        else:
            with stopping.leaving(lambda message: _say(Resumable(message))):
                stop.check()  # a signal that came between the lock and here
                artifact = build(spec, arguments.out, arguments.run_info, check=held.check)
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
    found = examine(folder)
    return found.seal if isinstance(found, Artifact) else ""


def _under_torchrun(name: str, processes: int, argv: Sequence[str], stop: stopping.Stop) -> None:
    """Run this very command in ``processes`` ranks, and pass a signal on. This process keeps the lock until they are gone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**runtime.environment(), stopping.ENGINE: "1"}
    child = subprocess.Popen([*command, "-m", f"steps.{name}", *argv], env=environment, stdin=subprocess.PIPE)
    told = 0.0
    while (code := child.poll()) is None:
        if stop and not told:
            told = time.monotonic()
            child.terminate()
        if told and time.monotonic() - told > stopping.GRACE:
            child.kill()
        time.sleep(0.1)
    if code:
        stop.check()
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
        Path(file).write_text(
            json.dumps({"exit_code": error.exit_code, "kind": type(error).__name__, "message": str(error)}),
            encoding="utf-8",
        )
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
    return told(facts["exit_code"], facts.get("kind", ""), facts["message"])


def _tell(*, built: bool) -> None:
    """Tell the engine whether the artifact was built here, or by another process meanwhile."""
    if file := os.environ.get(OUTCOME_FILE):
        Path(file).write_text("built" if built else "found")
