"""Every field of the configuration is in the key of its step, unless it is marked Neutral."""

from __future__ import annotations

import copy
import json
import shutil
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from looking import looked, missing_with
from minimal import Line
from pydantic import BaseModel, ValidationError

from flows.line import AlignConfig
from steps.lib.config import Neutral

pytestmark = pytest.mark.tiny


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


def fields(
    kind: type[BaseModel], raw: Any, path: tuple[Any, ...] = (), neutral: bool = False
) -> Iterator[tuple[tuple[Any, ...], Any, bool]]:
    """Every field of a resolved configuration that is no section: path, annotation, and whether it is marked Neutral."""
    for name, info in kind.model_fields.items():
        marked = neutral or any(mark is Neutral or isinstance(mark, Neutral) for mark in _marks(info))
        below, value = (*path, name), raw[name]
        section = _section(info.annotation, value)
        if section:
            yield from fields(section, value, below, marked)
        elif isinstance(value, (list, tuple)) and value and _section(_inner(info.annotation), value[0]):
            yield below, info.annotation, marked
            for number, one in enumerate(value):
                item = _section(_inner(info.annotation), one)
                assert item, f"{below} {number}: no section has the fields {list(one)}"
                yield from fields(item, one, (*below, number), marked)
        else:
            yield below, info.annotation, marked


def _marks(info: Any) -> list[Any]:
    found, waiting = list(info.metadata), [info.annotation]
    while waiting:
        part = waiting.pop()
        found += getattr(part, "__metadata__", ())
        waiting += get_args(part)
    return found


def _inner(annotation: Any) -> Any:
    return next((one for one in get_args(annotation) if one is not Ellipsis), annotation)


def _section(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The model of a value, among those that its annotation allows."""
    if not isinstance(value, dict):
        return None
    waiting, kinds = [annotation], list[type[BaseModel]]()
    while waiting:
        part = waiting.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            kinds.append(part)
        elif typing.get_origin(part) is not dict:
            waiting += get_args(part)
    fitting = [kind for kind in kinds if kind.model_fields.keys() == value.keys()]
    return fitting[0] if fitting else None


def others(value: Any, annotation: Any, folder: Path) -> Iterator[Any]:
    """Other values that a field may take, the likeliest first."""
    if isinstance(value, Path) and value.is_file():
        copied = folder / f"copy-of-{value.name}"
        shutil.copy(value, copied)
        yield copied
    elif isinstance(value, Path):
        yield value.with_name("other")
    choices, waiting = [], [annotation]
    while waiting:
        part = waiting.pop()
        if typing.get_origin(part) is typing.Literal:
            choices += get_args(part)
        else:
            waiting += get_args(part)
    yield from (one for one in choices if one != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 0.9 + 0.05, value * 0.5, value + 0.01, value * 2)
    elif isinstance(value, str):
        yield from (f"{value}-other", "other")
    elif isinstance(value, (list, tuple)):
        yield from ([*value, *value[:1]], value[:-1], [*value, "x"], [*value, "empty"])
        yield from (
            [{"name": "another", "path": folder / "domain-train.jsonl"}],
            [{"figure": "another", "margin": 0.5}],
        )
        if value and isinstance(value[0], dict) and "name" in value[0]:
            yield from ([*value, {**value[0], "name": name}] for name in ("another", "scripted-another"))
    elif isinstance(value, dict):
        yield {**value, "a": "b"}
    if value is None:
        yield from (
            1,
            0.5,
            "other",
            str(folder),
            {"teacher": {"kind": "scripted", "path": "data/seed/task/teacher.yaml"}},
        )
    else:
        yield None


WHOLE = {
    ("reward",), ("rl",), *(("pairs", "sources", number, "kind") for number in range(3)), ("pairs", "sources", 2, "confirm"), ("generate", "teachers", 0, "kind"), ("generate", "recipe", "kind"), ("base", "kind"), *((step, "train", "processes") for step in ("base", "pretrain", "sft", "dpo")),
    *((*path, field) for field in ("hub", "files", "delimiter") for path in [("generate", "prompts", 0), *[("clean", kind, 0) for kind in ("domain", "general", "pairs")],
                                  *[("clean", "heldout", kind, 0) for kind in ("domain", "general", "prompts", "pairs")]]),
    *((step, "lora", "iterations") for step in ("pretrain", "sft", "dpo")),
    *((step, "ia3", name) for step in ("pretrain", "sft", "dpo") for name in ("targets", "feedforward")),
    *((step, "prompt", "text") for step in ("sft", "dpo")),
    ("kto",), ("badcases",), ("correct",), ("retrain", "timezone"), *(("evaluate", name) for name in ("suites", "lm_eval", "pairwise", "name", "case_repeats")), ("promote", "registry"),
    *(("promote", "mirrors", name) for name in ("folder", "wandb", "mlflow", "hub")),
    ("clean", "semantic"), ("clean", "mix"), ("clean", "toxicity", "model"), ("clean", "heldout", "record"),
    *(("clean", "student", name) for name in ("tokenizer", *(f"{kind}_{side}_tokens" for kind in ("text", "chat") for side in ("min", "max")))),
    *(("dpo", "loss", name) for name in ("type", "label_smoothing", "alpha", "discopop_tau")),
}  # fmt: skip
"""Fields that can only be changed with others beside them; they have tests of their own, here or with their steps."""


READ_BEFORE = {
    ("dpo", *path): "reference"
    for path in (("method",), ("train", "max_length"), ("train", "too_long"), ("train", "precision"))
}
"""Field -> the step that reads it first, where that is not the one of its section."""


def test_every_field_is_in_its_step_s_key_unless_it_is_marked_neutral(line: Line) -> None:
    config = line.config()
    assert missing_with(config) == set()
    raw, changed, stuck = config.model_dump(), 0, list[tuple[Any, ...]]()
    for path, annotation, neutral in fields(AlignConfig, raw):
        if path in WHOLE or path[0] in ("seed", "store", "cache"):
            continue
        value = raw
        for part in path:
            value = value[part]
        for other in others(value, annotation, line.folder):
            if (
                json.dumps(other, default=str) != json.dumps(value, default=str)
                and (config := changed_at(raw, path, other)) is not None
            ):
                break
        else:
            stuck.append(path)
            continue
        expected = set() if neutral else {READ_BEFORE.get(path, path[0])}
        assert missing_with(config) == expected, f"{path}: {value!r} -> {other!r} (neutral: {neutral})"
        changed += 1
    assert not stuck, f"no other value was found for {stuck}"
    assert changed > 120


JUDGE = {"kind": "http", "name": "judge", "endpoint": "desk", "base_url": "http://127.0.0.1:9/v1", "model": "m"}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("badcases",), {"sources": [{"name": "desk", "path": "data/seed/badcases/events.jsonl"}]}, {"badcases"}),
        (("evaluate", "suites"), [{"kind": "rules"}], {"evaluate"}),
        (("evaluate", "pairwise"), {"judge": {"teacher": JUDGE}}, {"evaluate"}),
        (("promote", "mirrors", "folder"), {"folder": "elsewhere"}, set()),
        (("promote", "mirrors", "mlflow"), {"tracking_uri": "http://127.0.0.1:9"}, set()),
    ],
)
def test_sections_that_come_whole_are_in_the_key_of_their_step(
    line: Line, path: tuple[str, ...], value: Any, expected: set[str]
) -> None:
    config = changed_at(line.config().model_dump(), path, value)
    assert config is not None and missing_with(config) == expected


@pytest.mark.parametrize("step", ["base", "pretrain", "sft", "dpo"])
def test_the_number_of_processes_is_not_in_the_key(line: Line, step: str) -> None:
    first, second = (line.config(f"{step}.train.accumulation=2", f"{step}.train.processes={n}") for n in (1, 2))
    spec = looked(line.config()).specs[step]
    one, two = (replace(spec, config=getattr(config, step)) for config in (first, second))
    assert one.key() == two.key() != spec.key()


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("dpo", ["loss.weights=null"], ["loss.type=[ipo]"]),
        ("dpo", ["loss.weights=null", "loss.type=[robust]", "loss.label_smoothing=0.1"], ["loss.label_smoothing=0.2"]),
        ("dpo", ["loss.f_divergence=alpha_divergence"], ["loss.alpha=0.7"]),
        ("dpo", ["loss.weights=null", "loss.type=[discopop]"], ["loss.discopop_tau=0.1"]),
        *((step, ["lora.init=pissa"], ["lora.iterations=4"]) for step in ("pretrain", "sft")),
        *((step, [], ["ia3.targets=[k_proj]"]) for step in ("pretrain", "sft")),
        *((step, ["ia3.targets=[k_proj, up_proj]"], ["ia3.feedforward=[up_proj]"]) for step in ("pretrain", "sft")),
        ("sft", ["prompt.init=text", "prompt.text=Answer."], ["prompt.text=Reply."]),
    ],
)
def test_fields_that_change_with_others_are_in_their_step_s_key(
    line: Line, step: str, before: list[str], after: list[str]
) -> None:
    first, second = (line.config(*(f"{step}.{word}" for word in words)) for words in (before, [*before, *after]))
    spec = looked(line.config()).specs[step]
    assert replace(spec, config=getattr(first, step)).key() != replace(spec, config=getattr(second, step)).key()


def changed_at(raw: dict[str, Any], path: tuple[Any, ...], value: Any) -> Any:
    """The configuration with another value in one place; None when it is refused."""
    found = copy.deepcopy(raw)
    place = found
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    try:
        return AlignConfig.model_validate(found)
    except ValidationError:
        return None
