"""Values with the line each came from, and how layers of them merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from steps.lib.fields import Place, is_secret, sections, tag_of


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a line (from 1) of a file, an override as it was typed, or the code's default."""

    kind: Literal["file", "override", "default"]
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.kind == "override":
            return f"override '{self.file}'"
        if self.kind == "default":
            return "default"
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Node:
    """A value with its origin. ``value`` is a mapping of nodes, a list of nodes, or a scalar."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The value without origins: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, name: str | int) -> Node | None:
        """The node below, by key or index; None when it is not there."""
        if isinstance(self.value, dict):
            return self.value.get(name)
        if isinstance(self.value, list) and isinstance(name, int) and name < len(self.value):
            found: Node = self.value[name]
            return found
        return None

    def find(self, path: Sequence[str | int]) -> Node | None:
        """The node at a path below; None when nothing was written there."""
        node: Node | None = self
        for name in path:
            node = None if node is None else node.child(name)
        return node


def dotted(path: Sequence[str | int]) -> str:
    """``("generate", "teachers", 0, "model")`` as ``generate.teachers[0].model``."""
    text = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in path)
    return text.removeprefix(".")


def shorten(value: Any, limit: int = 80) -> str:
    """A value for a message: one line, cut in the middle when it is long."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 25]} ... {text[-20:]}"


def merge(lower: Node, upper: Node, place: Place | None = None) -> Node:
    """``upper`` over ``lower``: mappings merge by key, everything else (lists and null too) is replaced.

    With a place that is a union of sections, an upper mapping that names another variant starts afresh; of the lower
    one only what was typed as an override in the same command stays.
    """
    if not (isinstance(lower.value, dict) and isinstance(upper.value, dict)):
        return upper
    kept = lower.value
    tag = tag_of(sections(place.annotation)) if place is not None else None
    if place is not None and tag is not None and tag in upper.value:
        before = kept[tag].value if tag in kept else getattr(place.default, tag, None)
        if before != upper.value[tag].value:
            typed = upper.origin.kind == "override"
            kept = {key: node for key, node in kept.items() if typed and node.origin.kind == "override"}
    merged = dict(kept)
    known = {key: node.value for key, node in {**merged, **upper.value}.items()}
    for key, node in upper.value.items():
        below = place.child(key, known) if place is not None else None
        merged[key] = merge(merged[key], node, below) if key in merged else node
    return Node(merged, upper.origin)


def shown_value(node: Node, name: str) -> str:
    """A node's value for a message, without secrets."""
    return shorten(hidden(node.plain(), name))


def hidden(value: Any, name: str = "") -> Any:
    """A plain value with every secret replaced by ``***``; a secret is told by the name of its key."""
    if isinstance(value, dict):
        return {key: hidden(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item, name) for item in value]
    return "***" if name and value is not None and is_secret(name) else value


def walk(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The leaves of a validated value with their paths. A list of scalars is one leaf; so is an empty mapping."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from walk(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from walk(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (BaseModel, dict)) for item in value):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))
    else:
        yield path, value
