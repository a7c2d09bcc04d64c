"""Stopping, killing and resuming a real training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from minimal import ROOT

from steps.lib.step import Spec, build, module_of
from steps.lib.store import Artifact, work_folder

KILL = """
import os, sys, signal
from steps.lib import tracking
from steps.lib.step import main
def die(values, step=None):
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
tracking._silent = die
main(sys.argv[2], sys.argv[3:])
"""


def losses(artifact: Artifact) -> list[float]:
    return [json.loads(line)["loss"] for line in (artifact.path / "record" / "history.jsonl").read_text().splitlines()]


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


def killed_at(root: Path, spec: Spec, out: Path, update: int) -> None:
    """Run the step in a process of its own that kills itself with SIGKILL after the log of an update."""
    words = [sys.executable, "-c", KILL, str(update), spec.name, *argv(root, spec, out)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert not out.exists() and list((work_folder(out) / ".resume" / "checkpoints").glob("checkpoint-*"))


def spec(name: str, config: Any, **inputs: Artifact) -> Spec:
    return Spec(module_of(name), config, inputs, 0)


def same(resumed: Artifact, whole: Artifact) -> None:
    """Loss by loss, and every published byte."""
    assert losses(resumed) == losses(whole)
    assert resumed.digest == whole.digest
    assert resumed.manifest["metrics"]["updates"] == whole.manifest["metrics"]["updates"]


def whole(root: Path, what: Spec) -> Artifact:
    target = root / "whole" / what.key()
    return Artifact.read(target) if target.exists() else build(what, target)
