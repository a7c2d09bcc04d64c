"""Stopping, killing and resuming a real training step, in processes of their own."""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from steps.lib import checkpoints, history
from steps.lib.artifact import Artifact
from steps.lib.door import main
from steps.lib.step import Spec, build, module_of
from steps.lib.store import work_folder

LOADED = [
    "torch",
    "transformers",
    "datasets",
    "peft",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.rloo_trainer",
    "trl.trainer.grpo_trainer",
]
"""Modules of the process from which those of the steps are forked: importing them takes longer than training."""


def losses(artifact: Artifact) -> list[float]:
    return [entry["loss"] for entry in history.read(artifact.path / "record" / "history.jsonl")]


def argv(root: Path, spec: Spec, out: Path) -> list[str]:
    """The arguments of ``python -m steps.NAME`` for a spec."""
    root.mkdir(parents=True, exist_ok=True)
    config = root / f"{spec.name}.json"
    config.write_text(spec.config.model_dump_json())
    words = ["--config", str(config), "--out", str(out), "--seed", str(spec.seed), "--key", spec.key()]
    for name, artifact in spec.inputs.items():
        words += [f"--{name}", str(artifact.path)]
    return words


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _step(name: str, words: Sequence[str], at: str, count: int, number: int, screen: str) -> None:
    """In a process of its own: run a step that gets a signal when ``at`` is called for the ``count``-th time."""
    sys.stderr = open(screen, "a", buffering=1)  # noqa: SIM115
    os.environ.pop("PREFLINE_ENGINE", None)
    place, _, attribute = at.rpartition(".")
    owner = _found(place)
    real, calls = getattr(owner, attribute), [0]

    @functools.wraps(real)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    setattr(owner, attribute, counted)
    main(name, list(words))


def _found(path: str) -> Any:
    """A module, or a class in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        place, _, name = path.rpartition(".")
        return getattr(importlib.import_module(place), name)


def forked(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start a function in a process of its own, in which ``LOADED`` is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    child = context.Process(target=target, args=arguments)
    child.start()
    return child


def cut(
    root: Path, spec: Spec, out: Path, at: str, count: int = 1, by: signal.Signals = signal.SIGKILL
) -> tuple[int, list[int]]:
    """Run a step and send it a signal when a function is called for the ``count``-th time.

    Returns:
        Its exit code, and the updates of the whole checkpoints it leaves, the newest first.
    """
    root.mkdir(parents=True, exist_ok=True)
    screen = root / "screen.txt"
    child = forked(_step, spec.name, argv(root, spec, out), at, count, int(by), str(screen))
    child.join(300)
    assert child.exitcode in (-9, 75) and not out.exists(), f"exit code {child.exitcode}\n{screen.read_text()}"
    return child.exitcode, kept(out)


def kept(out: Path) -> list[int]:
    """Updates of the whole checkpoints of a step's work folder, the newest first."""
    folders = checkpoints.kept(work_folder(out) / ".resume").glob("checkpoint-*")
    return sorted((checkpoints.update_of(path) for path in folders if (path / checkpoints.MARK).exists()), reverse=True)


def said(artifact: Artifact) -> list[str]:
    """Messages of the log of all processes that worked on an artifact."""
    lines = (artifact.path / "record" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["message"]) for line in lines]


def spec(name: str, config: Any, **inputs: Artifact) -> Spec:
    return Spec(module_of(name), config, inputs, 0)


def same(resumed: Artifact, whole: Artifact) -> None:
    """Every published byte, the history of every update, and what the manifest says of the training."""
    one, two = (artifact.path / "record" / "history.jsonl" for artifact in (resumed, whole))
    assert one.read_text() == two.read_text()
    assert resumed.digest == whole.digest

    def facts(artifact: Artifact) -> dict[str, Any]:
        return {name: value for name, value in artifact.manifest["metrics"].items() if name != "train_seconds"}

    assert facts(resumed) == facts(whole) and resumed.manifest["rows"] == whole.manifest["rows"]


def whole(root: Path, what: Spec) -> Artifact:
    target = root / "whole" / what.key()
    return Artifact.read(target) if target.exists() else build(what, target)


def survives(root: Path, what: Spec, ending: str, *more: tuple[str, int, list[int]]) -> Artifact:
    """Kill a step in every phase, continue each time, and compare with a run that was left alone.

    Args:
        root: a folder for this test.
        what: a step with save_every 3, log_every 4 and 7 updates, so that nothing divides anything.
        ending: a function that is called while the finished model is being saved.
        more: kills before the others: function, count of the call, checkpoints that are left.
    """
    out = root / "cut" / what.key()
    due = "steps.lib.history.due"  # called once after each update, before its checkpoint
    for at, count, left in more:
        assert cut(root, what, out, at, count) == (-9, left)
    assert cut(root, what, out, "steps.lib.checkpoints.mark") == (-9, [])
    assert list(checkpoints.written(work_folder(out) / ".resume").glob("checkpoint-3")), "written, not marked"
    assert cut(root, what, out, due, 5) == (-9, [3]), "update 5 of the first attempt; 4 and 5 are done again"
    assert cut(root, what, out, due, 1, signal.SIGTERM) == (75, [5, 3]), "it came after 4, 5 was finished and saved"
    assert cut(root, what, out, "torch.save", 2) == (-9, [5, 3]), "in the middle of the save after 6"
    assert cut(root, what, out, "steps.lib.checkpoints._by_update", 2) == (-9, [6, 5, 3]), "before old ones are deleted"
    assert cut(root, what, out, "steps.lib.history.write") == (-9, [7, 6]), "all updates are done"
    assert cut(root, what, out, ending) == (-9, [7, 6]), "while the model is saved"
    resumed, alone = build(what, out), whole(root, what)
    same(resumed, alone)
    told = [line for line in said(resumed) if line.startswith("resuming after update")]
    assert told == [f"resuming after update {n} of 7" for n in (3, 5, 5, 6, 7, 7)], "at most one interval is repeated"
    shown = [line for line in said(alone) if line.startswith("update ")]
    assert [line.split()[1] for line in shown] == ["1/7", "4/7", "7/7"]
    assert {line for line in said(resumed) if line.startswith("update ")} == set(shown), (
        "what is shown is the same, too"
    )
    return resumed
