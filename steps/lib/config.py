"""Configuration: the base class of every section, the marker of fields that do not change results, and the loader.

A section is a frozen pydantic model. It owns its defaults, its checks and its documentation: a field's docstring is its
help text and its line in configs/reference.yaml. For numbers, the first word of the docstring is the unit.

Layers, the later one wins: code defaults < configs/base.yaml < one profile < recipe files < ``dpo.beta=0.05``. Mappings
merge by key, lists are replaced, ``null`` clears (a section that is set again later starts from the code's defaults).
A mapping that names another variant of a union (``kind: http`` over ``kind: local``) starts afresh.

Paths in a section stay as they were written: relative to the working directory, which is the root of the project.
Environment variables are not expanded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from steps.lib.errors import ConfigError
from steps.lib.fields import Place, default_of, marks
from steps.lib.layers import Layer, Problems, read_layer, read_override
from steps.lib.nodes import Node, Origin, dotted, merge, walk

__all__ = ["Added", "Layer", "Loaded", "Neutral", "Origin", "Section", "key_view", "layers_of", "load", "profiles"]

S = TypeVar("S", bound=BaseModel)
DEFAULT = Origin("default")


class Neutral:
    """Marks a field that does not change results: ``workers: Annotated[int, Neutral] = 2``.

    Such a field (a path, a number of threads, a log setting) stays out of the cache key. What a path points to comes
    into the key by the step's ``externals``.
    """


class Added:
    """Marks a field that came when results were already kept under keys without it: at its default it stays out of the key.

    So configurations that do not use it keep their keys. When such a default changes, the step's VERSION must.
    """


class Section(BaseModel):
    """Base of every configuration section: frozen, no unknown keys, defaults are checked too."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A validated model, and where each of its leaves (``dpo.beta``, ``generate.teachers[0].model``) came from."""

    value: S
    origins: dict[str, Origin]


def key_view(section: BaseModel) -> dict[str, Any]:
    """The resolved values of a section that change results, as JSON types: what goes into the cache key.

    Fields marked ``Neutral`` are left out at every depth: in nested sections, in lists and mappings of sections, and in
    the chosen variant of a union. Fields marked ``Added`` are left out while they have their default.
    """
    dumped = section.model_dump(mode="json")
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not _marked(field, Neutral) and not (_marked(field, Added) and _alike(value, default_of(field))):
            kept[name] = _key_value(value, dumped[name])
    return kept


def _alike(value: Any, default: Any) -> bool:
    """Whether a value gives the same results as the default."""
    if isinstance(value, BaseModel) and type(value) is type(default):
        return key_view(value) == key_view(default)
    return bool(value == default)


def _marked(field: FieldInfo, kind: type) -> bool:
    return any(mark is kind or isinstance(mark, kind) for mark in marks(field))


def _key_value(value: Any, dumped: Any) -> Any:
    """The key view of one value; ``dumped`` is its JSON form."""
    if isinstance(value, BaseModel):
        return key_view(value)
    if isinstance(value, (list, tuple)):
        return [_key_value(item, plain) for item, plain in zip(value, dumped, strict=True)]
    if isinstance(value, dict):  # a mapping keeps its order when it is dumped
        return {name: _key_value(item, dumped[name]) for name, item in zip(dumped, value.values(), strict=True)}
    return sorted(dumped, key=str) if isinstance(value, (set, frozenset)) else dumped


def profiles(root: Path = Path("configs")) -> list[str]:
    """The names of the profiles that exist."""
    return sorted(file.stem for file in (root / "profiles").glob("*.yaml"))


def layers_of(profile: str, recipes: Sequence[Path] = (), root: Path = Path("configs")) -> list[Path]:
    """The files of a run, lowest first: base.yaml, the profile, the recipes.

    Raises:
        ConfigError: there is no such profile; the message lists those that exist.
    """
    names = profiles(root)
    if profile not in names:
        near = difflib.get_close_matches(profile, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(
            f"profile is wrong: got {profile!r}, because {(root / 'profiles').as_posix()} has no {profile}.yaml{hint} "
            f"take one of: {', '.join(names) or 'none exists'}"
        )
    return [root / "base.yaml", root / "profiles" / f"{profile}.yaml", *recipes]


def load(model: type[S], layers: Sequence[Layer | Path], overrides: Sequence[str] = ()) -> Loaded[S]:
    """Reads the layers (lowest first) and the overrides, merges and validates them.

    Raises:
        ConfigError: with every problem found, each with path, value, origin, cause and way out.
    """
    from steps.lib.problems import explain

    problems, place = Problems(), Place(model)
    read = [read_layer(layer, problems) for layer in layers] + [read_override(text, problems) for text in overrides]
    merged = Node({}, DEFAULT)
    for node in read:
        if node is not None:
            merged = merge(merged, node, place)
    try:
        value = model.model_validate(_completed(merged.plain(), place))
    except ValidationError as error:
        for message in explain(error, merged, model, whole=not problems.unread):
            problems.add(message)
    if problems.messages:
        raise ConfigError(problems.messages)
    return Loaded(value, {dotted(path): _origin(merged, path) for path, _ in walk(value)})


def _completed(values: Any, place: Place | None) -> Any:
    """The values, with what is missing taken from the default that stands at each place.

    pydantic would take the class's defaults: for ``dpo: Dpo = Dpo(beta=0.5)`` and ``dpo: {lr: 1}`` it forgets the 0.5.
    """
    if isinstance(values, list):
        return [_completed(item, place.child(index) if place else None) for index, item in enumerate(values)]
    if not isinstance(values, Mapping):
        return values
    filled = {name: _completed(item, place.child(name, values) if place else None) for name, item in values.items()}
    variant = place.variant(values) if place is not None else None
    if place is not None and variant is not None and isinstance(place.default, variant):
        for name in variant.model_fields:
            filled.setdefault(name, getattr(place.default, name))
    return filled


def _origin(merged: Node, path: Sequence[str | int]) -> Origin:
    """The origin of one leaf: where it, or the list or null it is part of, was written."""
    found = merged.find(path)
    return found.origin if found is not None else DEFAULT
