"""What a configuration model accepts at each place: its sections, variants, lists, choices, bounds and known paths.

Everything is read from the pydantic model. A place is a type together with the default that stands there.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

BOUNDS = {
    "gt": "> {}",
    "ge": ">= {}",
    "lt": "< {}",
    "le": "<= {}",
    "multiple_of": "multiple of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
    "pattern": "matches {}",
}


def flatten(annotation: Any) -> tuple[list[Any], list[Any]]:
    """The members of a type (through unions, ``Annotated`` and aliases; ``None`` too) and the marks on the way."""
    if hasattr(annotation, "__value__"):
        return flatten(annotation.__value__)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        members, deeper = flatten(inner)
        opened = [found for mark in marks for found in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
        return members, [*opened, *deeper]
    if origin in (Union, types.UnionType):
        parts = [flatten(part) for part in get_args(annotation)]
        return [member for members, _ in parts for member in members], [mark for _, marks in parts for mark in marks]
    return [annotation], []


def marks(field: FieldInfo) -> list[Any]:
    """Every mark of a field: bounds, ``Neutral``; also those written inside a union with ``None``."""
    return [*field.metadata, *flatten(field.annotation)[1]]


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The models that may stand here: none, one, or the variants of a union."""
    return [member for member in flatten(annotation)[0] if isinstance(member, type) and issubclass(member, BaseModel)]


def item_type(annotation: Any) -> Any:
    """The type of a list's items or of a mapping's values; None when this is neither."""
    for member in flatten(annotation)[0]:
        origin, arguments = get_origin(member), get_args(member)
        if isinstance(origin, type) and arguments:
            if issubclass(origin, Mapping):
                return arguments[1]
            if issubclass(origin, (Sequence, set, frozenset)):
                return arguments[0]
    return None


def choices(annotation: Any) -> list[Any]:
    """The allowed values of literals and enums; empty when the type is open."""
    found: list[Any] = []
    for member in flatten(annotation)[0]:
        if get_origin(member) is Literal:
            found.extend(get_args(member))
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            found.extend(item.value for item in member)
    return found


def tag_of(variants: Sequence[type[BaseModel]]) -> str | None:
    """The field that tells the variants of a union apart: the first one that is a literal in each of them."""
    if len(variants) < 2:
        return None
    for name, field in variants[0].model_fields.items():
        others = [variant.model_fields.get(name) for variant in variants]
        if choices(field.annotation) and all(other is not None and choices(other.annotation) for other in others):
            return name
    return None


def is_secret(name: str, annotation: Any = None) -> bool:
    """Whether a value must never be shown: a secret type, or a name like ``api_key`` or ``access_token``.

    Numbers are no secrets, nor are counts of tokens (``max_tokens``), nor the name of an environment variable or of a block
    (``api_key_env``, ``api_key_block``).
    """
    kinds = [kind for kind in flatten(annotation)[0] if kind is not type(None)]
    if any(isinstance(kind, type) and issubclass(kind, (SecretStr, SecretBytes)) for kind in kinds):
        return True
    if kinds and all(kind in (int, float, bool) or get_origin(kind) is Literal for kind in kinds):
        return False
    # By whole word, so that "tokens" and "tokenizer" are shown.
    words = name.lower().replace("-", "_").split("_")
    if words[-1] in ("env", "block"):
        return False
    return any(word in ("key", "keys", "apikey", "token", "secret", "password") for word in words)


def default_of(field: FieldInfo) -> Any:
    """The field's default; ``PydanticUndefined`` when it is required."""
    if field.default_factory is not None:
        try:
            return field.get_default(call_default_factory=True, validated_data={})
        except (KeyError, TypeError):  # a factory that looks at other fields
            return PydanticUndefined
    return field.default


@dataclass(frozen=True)
class Place:
    """A place in a configuration: the type that is accepted, and the default that stands there."""

    annotation: Any
    default: Any = PydanticUndefined
    field: FieldInfo | None = None

    def variant(self, values: Any) -> type[BaseModel] | None:
        """The model that ``values`` (a mapping, or anything) is meant for; None when that cannot be told."""
        variants = sections(self.annotation)
        tag = tag_of(variants)
        if tag is None:
            return variants[0] if len(variants) == 1 else None
        said = values.get(tag) if isinstance(values, Mapping) else None
        for variant in variants:
            if said is not None and said in choices(variant.model_fields[tag].annotation):
                return variant
        return type(self.default) if said is None and isinstance(self.default, BaseModel) else None

    def child(self, name: str | int, values: Any = None) -> Place | None:
        """The place below, by field name, key or index; None when the model knows no such place."""
        model = self.variant(values)
        if model is not None and isinstance(name, str):
            field = model.model_fields.get(name)
            if field is None:
                return None
            inherited = getattr(self.default, name) if isinstance(self.default, model) else default_of(field)
            return Place(field.annotation, inherited, field)
        below = item_type(self.annotation)
        return None if below is None else Place(below)


def kind_text(annotation: Any) -> str:
    """A type in words a person writes in YAML: ``number``, ``text``, ``list of section`` ..."""
    words = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    parts: list[str] = []
    for member in flatten(annotation)[0]:
        origin = get_origin(member)
        if origin is Literal:
            parts.append("one of " + ", ".join(map(str, get_args(member))))
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            parts.append("one of " + ", ".join(str(item.value) for item in member))
        elif member in words:
            parts.append(words[member])
        elif isinstance(member, type) and issubclass(member, BaseModel):
            parts.append("section")
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            parts.append(f"mapping of {kind_text(item_type(member))}")
        elif isinstance(origin, type) and item_type(member) is not None:
            parts.append(f"list of {kind_text(item_type(member))}")
        elif isinstance(member, type):
            parts.append({"Path": "path", "SecretStr": "secret"}.get(member.__name__, member.__name__))
        else:
            parts.append("any" if member is typing.Any else str(member))
    return " or ".join(dict.fromkeys(parts))


def bounds_text(field: FieldInfo) -> str:
    """The bounds of a field: ``> 0, <= 1``; empty when there are none."""
    found: list[str] = []
    for mark in marks(field):
        for name, form in BOUNDS.items():
            value = getattr(mark, name, None)
            if value is not None and not callable(value):
                found.append(form.format(value))
    return ", ".join(dict.fromkeys(found))


def known_paths(model: type[BaseModel], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Every path the model knows, dotted; ``[]`` stands for an index and ``*`` for a free key."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        below, annotation = path, field.annotation
        while not sections(annotation) and item_type(annotation) is not None:
            mapping = any(
                isinstance(get_origin(member), type) and issubclass(get_origin(member), Mapping)
                for member in flatten(annotation)[0]
            )
            below, annotation = below + (".*" if mapping else "[]"), item_type(annotation)
        if depth < 8:  # a model that contains itself
            for section in sections(annotation):
                yield from known_paths(section, f"{below}.", depth + 1)
