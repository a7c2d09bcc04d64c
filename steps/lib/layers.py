"""Reads layers of values: YAML files, mappings and ``key=value`` overrides, each value with the line it came from.

YAML 1.2: ``5e-7`` is a number and ``no`` is text. A key that is written twice is an error, with both lines. Anchors and
aliases work; tags other than YAML's own, merge keys (``<<``) and several documents in a file do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib.fields import is_secret
from steps.lib.nodes import Node, Origin, dotted, shorten, shown_value

MAX_DEPTH = 40
SCALARS = ("null", "bool", "int", "float", "str", "timestamp")


@dataclass(frozen=True)
class Layer:
    """Values that are in memory already, with the name to show as their origin."""

    values: Mapping[str, Any]
    name: str


@dataclass
class Problems:
    """Messages, collected in order; ``unread`` says that a whole file is missing from the values."""

    messages: list[str] = field(default_factory=list)
    unread: bool = False

    def add(self, message: str, *, unread: bool = False) -> None:
        """Notes one problem."""
        self.messages.append(message)
        self.unread = self.unread or unread


def read_layer(layer: Layer | Path, problems: Problems) -> Node | None:
    """The nodes of one layer; None after noting why it cannot be read."""
    if isinstance(layer, Layer):
        return _from_values(layer.values, Origin("file", layer.name))
    name = layer.as_posix()
    try:
        text = layer.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problems.add(
            f"{name} cannot be read: got no such file, because it was not written or lies elsewhere; write it, or correct the path",
            unread=True,
        )
        return None
    except UnicodeDecodeError as error:
        line = layer.read_bytes()[: error.start].count(b"\n") + 1
        problems.add(f"{name}:{line} cannot be read, because it is not UTF-8; save the file as UTF-8", unread=True)
        return None
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        problems.add(f"{name} cannot be read, because of this: {cause}; give a readable YAML file", unread=True)
        return None
    composed = _compose(text, name, problems)
    if composed is None:
        problems.unread = True
        return None
    if not composed.tag.endswith(":map"):
        got = "a list" if composed.tag.endswith(":seq") else shorten(composed.value)
        line = composed.start_mark.line + 1
        problems.add(
            f"{name}:{line} is not a mapping: got {got}, because a configuration file is 'key: value' lines; write one",
            unread=True,
        )
        return None
    return _from_yaml(composed, (), name, problems)


def read_override(text: str, problems: Problems) -> Node | None:
    """The nodes of one ``dpo.beta=0.05``; the value is a YAML scalar or flow (``[a, b]``, ``{a: 1}``)."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    secret = equals and is_secret(path[-1].removesuffix("_env"))
    origin = Origin("override", f"{key}=***" if secret else text)
    shown = str(origin)
    if not equals:
        hint = f"{text.strip() or 'KEY'}=VALUE"
        problems.add(f"{shown} is wrong: got no '=', because an override is KEY=VALUE; write {hint}")
        return None
    if not value.strip():
        problems.add(
            f"{shown} is wrong: got no value, because what is empty could mean several things; "
            f"write {key}=null to clear it, or {key}='\"\"' for empty text"
        )
        return None
    if not all(path) or re.search(r"[\s\[\]]", key.strip()):
        problems.add(
            f"{shown} is wrong: got the key {key!r}, because a key is names with dots between and a list is replaced "
            "as a whole; write for example dpo.beta=0.05 or some.list='[a, b]'"
        )
        return None
    composed = _compose(value, shown, problems, lines=False)
    if composed is None:
        return None
    flow = value.strip()[0] in "[{"
    if composed.tag.endswith((":map", ":seq")) != flow or (not flow and " #" in value and not composed.style):
        problems.add(
            f"{shown} is wrong: got {'***' if secret else shorten(value)}, because YAML does not read this as one "
            "value; put it in quotes"
        )
        return None
    node = _from_yaml(composed, tuple(path), shown, problems, origin)
    for name in reversed(path):
        node = Node({name: node}, origin)
    return node


def _compose(text: str, name: str, problems: Problems, *, lines: bool = True) -> Any:
    """ruamel's node graph of a text; None after noting a syntax error or that there is nothing in it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        composed = YAML(typ="rt").compose(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        cause = (error.problem if isinstance(error, MarkedYAMLError) else None) or str(error).splitlines()[0]
        if cause.startswith("but ") and isinstance(error, MarkedYAMLError):
            cause = f"{error.context} {cause}"
        rows = text.splitlines()
        row = min(mark.line, max(len(rows) - 1, 0)) if mark is not None else 0
        where = f"{name}:{row + 1}" if lines else name
        got = shorten(rows[row].strip()) if rows else "nothing"
        part = "line" if lines else "value"
        problems.add(f"{where} is not valid YAML: got {got}, because {cause}; correct the {part}")
        return None
    if composed is None:
        cause = "nothing but comments is in it"
        problems.add(f"{name} is empty: got no key, because {cause}; write keys, or '{{}}' for none")
    return composed


def _from_yaml(
    node: Any, path: tuple[str | int, ...], name: str, problems: Problems, origin: Origin | None = None, line: int = 0
) -> Node:
    """Our nodes from ruamel's; ``origin`` is given for overrides, ``line`` is that of the key."""
    here = origin or Origin("file", name, line or node.start_mark.line + 1)
    shown = dotted(path) or "the file"
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if len(path) > MAX_DEPTH:
        problems.add(f"{shown} ({here}) is too deep, because an alias contains itself; write the values out")
        return Node(None, here)
    if kind == "map":
        found: dict[str, Node] = {}
        for key, value in node.value:
            at = origin or Origin("file", name, key.start_mark.line + 1)
            if str(key.tag) != "tag:yaml.org,2002:str":
                cause = "merge keys are not YAML 1.2" if str(key.tag).endswith(":merge") else "a key is text"
                problems.add(f"{shown} ({at}) has a wrong key: got {shorten(key.value)}, because {cause}; write a name")
                continue
            child = _from_yaml(value, (*path, key.value), name, problems, origin, key.start_mark.line + 1)
            if key.value in found:
                first = found[key.value]
                problems.add(
                    f"{dotted((*path, key.value))} ({at}) is written twice: got {shown_value(child, key.value)}, "
                    f"because {first.origin} already says {shown_value(first, key.value)}; keep one of the two"
                )
            found[key.value] = child
        return Node(found, here)
    if kind == "seq":
        items = [_from_yaml(value, (*path, index), name, problems, origin) for index, value in enumerate(node.value)]
        return Node(items, here)
    if kind not in SCALARS:
        problems.add(f"{shown} ({here}) is wrong: got the tag {node.tag}, because only values are read; remove the tag")
        return Node(None, here)
    try:
        return Node(_scalar(kind, node.value), here)
    except ValueError:
        problems.add(f"{shown} ({here}) is wrong: got {shorten(node.value)}, because it is no {kind}; correct it")
        return Node(None, here)


def _scalar(kind: str, text: str) -> Any:
    """A YAML 1.2 scalar as a Python value; dates stay text."""
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        digits = text.replace("_", "").lower()
        base = next((base for mark, base in (("0x", 16), ("0o", 8), ("0b", 2)) if mark in digits[:3]), 10)
        return int(digits, base)
    if kind == "float":
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.replace("_", "").lower()))
    return text


def _from_values(values: Any, origin: Origin) -> Node:
    """Nodes of plain values, all from one origin."""
    if isinstance(values, Mapping):
        return Node({str(key): _from_values(value, origin) for key, value in values.items()}, origin)
    if isinstance(values, (list, tuple)):
        return Node([_from_values(value, origin) for value in values], origin)
    return Node(values, origin)
