"""Looking at the line without building anything: which steps the store has, which only wait for others, what a command says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from minimal import ROOT, Line

from flows import line as lines
from steps.lib.artifact import Artifact
from steps.lib.config import Section
from steps.lib.step import Spec
from steps.lib.store import Store

BEHIND: Any = object()
"""In place of an artifact that is not there: what reads it can have no key yet."""
READERS = {
    "generate": {"clean"},
    "badcases": {"clean", "evaluate"},
    "clean": {"base", "pretrain", "sft", "pairs", "evaluate"},
    "base": {"pretrain", "evaluate"},
    "pretrain": {"sft", "evaluate"},
    "sft": {"pairs", "reference", "dpo", "evaluate"},
    "pairs": {"reference", "dpo"},
    "reference": {"dpo"},
    "dpo": {"evaluate", "promote"},
    "evaluate": {"promote"},
    "promote": set[str](),
}
"""Step -> steps that read its artifact, as drawn in docs/architecture.md."""


def prefline(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A command as it is typed."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def behind(*steps: str) -> set[str]:
    """All that reads one of the steps, over any number of others."""
    found, waiting = set[str](), list(steps)
    while waiting:
        for reader in READERS[waiting.pop()] - found:
            found.add(reader)
            waiting.append(reader)
    return found - set(steps)


@dataclass
class Look:
    """A ``make`` that builds nothing: it says of each step whether the store has it."""

    config: Any
    found: dict[str, str] = field(default_factory=dict)
    specs: dict[str, Spec] = field(default_factory=dict)

    def __call__(self, step: ModuleType, config: Section | None, **inputs: Artifact | None) -> Artifact | None:
        if config is None:
            return None
        name = step.__name__.rpartition(".")[2]
        given = {source: artifact for source, artifact in inputs.items() if artifact is not None}
        if any(artifact is BEHIND for artifact in given.values()):
            self.found[name] = "behind"
            return BEHIND
        self.specs[name] = Spec(step, config, given, self.config.seed)
        artifact = Store(Path(self.config.store)).find(self.specs[name].key())
        self.found[name] = "hit" if artifact else "miss"
        return artifact or BEHIND


def looked(config: Any) -> Look:
    look = Look(config)
    lines.line(look, config)
    return look


def missing(line: Line, *overrides: str) -> set[str]:
    """The steps that would have to run because of what they read themselves. What only stands behind them is checked, not named."""
    return missing_with(line.config(*overrides))


def missing_with(config: Any) -> set[str]:
    found = looked(config).found
    missed = {step for step, state in found.items() if state == "miss"}
    waiting = {step for step, state in found.items() if state == "behind"}
    assert waiting == behind(*missed), f"{waiting} wait for {missed}"
    return missed
