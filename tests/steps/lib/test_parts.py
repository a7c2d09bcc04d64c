"""Parts of keys by the names that people write, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.lib.artifact import Artifact
from steps.lib.parts import Part, differences, flat, nearest, parts_of

CONFIG = {
    "domain": [{"name": "shop", "path": "data/shop.jsonl"}, {"name": "news", "hub": "org/news"}],
    "teachers": [{"name": "desk", "kind": "local", "model": "org/teacher"}],
    "task": "data/task.yaml",
    "prompt_file": "configs/ask.yaml",
}


def artifact(number: int, config: dict[str, Any], *, finished: str = "", seed: int = 0, **more: Any) -> Artifact:
    parts = {
        "step": "dpo",
        "version": "1",
        "config": config,
        "inputs": {"policy": "a" * 64},
        "seed": seed,
        "externals": {},
    }
    inputs = {"policy": {"key": "sft/1", "digest": "a" * 64}}
    manifest = {"key": f"dpo/{number}", "parts": {**parts, **more}, "inputs": inputs, "finished": finished}
    return Artifact(Path(f"dpo/{number}"), manifest)


def names(old: Artifact, new: Artifact) -> list[str]:
    return [change.name for change in differences(parts_of(old), parts_of(new))]


def test_every_part_has_a_name_and_inputs_their_keys() -> None:
    found = parts_of(
        artifact(1, {"beta": 0.1, "train": {"lr": 1e-4, "targets": ["q", "k"]}, "loss": [], "judge": None})
    )
    assert found == [
        Part("VERSION", "1"),
        Part("seed", 0),
        Part("input policy", "a" * 64, "sft/1"),
        Part("dpo.beta", 0.1),
        Part("dpo.train.lr", 1e-4),
        Part("dpo.train.targets[0]", "q"),
        Part("dpo.train.targets[1]", "k"),
        Part("dpo.loss", []),
        Part("dpo.judge", None),
    ]


def test_an_external_is_shown_with_its_file() -> None:
    externals = {
        "domain/shop": "1",
        "domain/news": "2",
        "teacher desk": "3",
        "task": "4",
        "prompt file": "5",
        "champion": "6",
    }
    parts = {"step": "clean", "version": "1", "config": {}, "inputs": {}, "seed": 0, "externals": externals}
    notes = {part.name: part.note for part in flat(parts, {}, CONFIG) if part.name.startswith("external")}
    assert notes == {
        "external domain/shop": "data/shop.jsonl",
        "external domain/news": "org/news",
        "external teacher desk": "org/teacher",
        "external task": "data/task.yaml",
        "external prompt file": "configs/ask.yaml",
        "external champion": "",
    }
    parts["externals"] = {"judge prompt of desk": "1", "teacher desk": "2"}
    judge = {"judge": {"prompt_file": "configs/judge.yaml", "teacher": {"name": "desk", "path": "data/rules.yaml"}}}
    assert [part.note for part in flat(parts, {}, judge)][2:] == ["configs/judge.yaml", "data/rules.yaml"]
    parts["externals"] = {"checkpoint": "1"}
    assert list(flat(parts, {}, {"path": "models/x"}))[-1].note == "models/x"


def test_differences_are_exact_and_say_what_came_and_went() -> None:
    old = artifact(1, {"beta": 1, "gone": True, "same": "x", "list": [1, 2]})
    new = artifact(2, {"beta": 1.0, "new": False, "same": "x", "list": [1, 2, 3]}, seed=1)
    assert names(old, new) == ["seed", "dpo.beta", "dpo.new", "dpo.list[2]", "dpo.gone"], "1 and 1.0 are two keys"
    sides = {
        change.name: (change.old is None, change.new is None) for change in differences(parts_of(old), parts_of(new))
    }
    assert sides["dpo.new"] == (True, False) and sides["dpo.gone"] == (False, True) and sides["seed"] == (False, False)
    assert names(old, old) == []


def test_the_nearest_has_the_fewest_changes_and_of_those_is_the_newest() -> None:
    now = parts_of(artifact(9, {"beta": 0.1, "lr": 1}))
    far = artifact(1, {"beta": 0.2, "lr": 2}, finished="2026-11-23T09:00:00Z")
    old = artifact(2, {"beta": 0.3, "lr": 1}, finished="2026-11-21T08:00:00Z")
    new = artifact(3, {"beta": 0.1, "lr": 3}, finished="2026-11-22T08:00:00Z")
    itself = artifact(9, {"beta": 0.1, "lr": 1}, finished="2026-11-24T08:00:00Z")
    made_elsewhere = Artifact(Path(), {"key": "dpo/5", "inputs": {}})
    for order in ([far, old, new, itself, made_elsewhere], [made_elsewhere, new, itself, old, far]):
        found = nearest(now, order)
        assert found and found[0].key == "dpo/3" and [change.name for change in found[1]] == ["dpo.lr"]
    assert nearest(now, [made_elsewhere, itself]) is None
