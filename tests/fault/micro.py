"""The micro line: the minimal line with several checkpoints a step and a gate that promotes. Built in this process in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from minimal import ROOT, Line, line_recipe

from flows import engine as engines
from flows.engine import Engine, Outcome, Plan
from steps.lib.step import Spec, build
from steps.lib.store import Store

UPDATES, SAVE_EVERY = 6, 2
"""Updates of every training step, and between its checkpoints."""
TASK_PROMPTS = 12
CONCURRENCY = 2
"""Requests in flight at the teacher over HTTP."""


def micro_line(folder: Path) -> Line:
    """Recipe and data of the micro line in ``folder``; nothing is built. Its teacher is the scripted one."""
    path = line_recipe(folder)
    recipe = json.loads(path.read_text(encoding="utf-8"))
    for step in ("base", "pretrain", "sft", "dpo"):
        recipe[step]["train"] |= {"max_updates": UPDATES, "save_every": SAVE_EVERY}
    recipe["pretrain"]["train"]["lr"] = 5e-3
    recipe["promote"] |= {"baseline": "base", "primary": {"figure": "domain_bits_per_byte"}, "guards": []}
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return Line(folder)


def with_http_teacher(line: Line, url: str) -> None:
    """Write an HTTP teacher at ``url`` into the line's recipe. The address is not in any key."""
    recipe = json.loads(line.recipe.read_text(encoding="utf-8"))
    recipe["generate"]["teachers"] = [
        {
            "kind": "http",
            "name": "loopback",
            "endpoint": "test",
            "base_url": url,
            "model": "server-model",
            "concurrency": CONCURRENCY,
            "backoff_seconds": 0.01,
        }
    ]
    line.recipe.write_text(json.dumps(recipe, indent=1), encoding="utf-8")


def teacher_answers(folder: Path) -> Callable[[int, dict[str, Any]], Any]:
    """For ``openai_server.serve``: the scripted teacher's words, each after a while, so that a kill meets open requests."""
    from openai_server import Act

    from steps.lib.scripted import ScriptedTeacher

    scripted = ScriptedTeacher(ROOT / "data" / "seed" / "task" / "teacher.yaml")
    rows = (folder / "task-prompts_train.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {
        prompt: scripted.answer(prompt, seed=0, sample=0) for prompt in (json.loads(row)["prompt"] for row in rows)
    }

    def decide(number: int, body: dict[str, Any]) -> Act:
        return Act(answers[body["messages"][-1]["content"]], delay=0.05)

    return decide


@contextmanager
def in_this_process() -> Iterator[list[str]]:
    """Steps run here, where torch is loaded already; only the launch of their processes is replaced. Gives their names."""
    built: list[str] = []

    def here(
        spec: Spec, store: Store, info: Mapping[str, Any], *, say: Any = None, force: bool = False, far: Any = None
    ) -> bool:
        build(spec, store.folder(spec.key()))
        built.append(spec.name)
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "launch", here)
        yield built


def walk(line: Line, *overrides: str, plan: Plan | None = None) -> dict[str, Outcome]:
    """Walk the line (each step in a process of its own, or ``in_this_process``); step -> what became of it."""
    engine = Engine(line.config(*overrides), plan or Plan(), say=lambda text: None)
    engine.run()
    return {outcome.step: outcome for outcome in engine.outcomes}


def digests(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Step -> output digest."""
    return {name: outcome.artifact.digest for name, outcome in outcomes.items()}


def forget(line: Line, outcome: Outcome) -> None:
    """Remove one artifact as if it had never been built; for promote, the registry, too."""
    shutil.rmtree(line.folder / "store" / outcome.artifact.key)
    if outcome.step == "promote":
        shutil.rmtree(line.folder / "registry")
