"""Says what pydantic found wrong, in the words of a person who edits YAML.

One message a place: ``PATH is wrong: got VALUE (FILE:LINE), because CAUSE; do THIS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from steps.lib.fields import (
    Place,
    bounds_text,
    choices,
    flatten,
    is_secret,
    kind_text,
    known_paths,
    sections,
    tag_of,
)
from steps.lib.nodes import Node, Origin, dotted, hidden, shorten


@dataclass
class Found:
    """What pydantic says about one place; several members of a union may each say something."""

    path: tuple[str | int, ...]
    place: Place | None
    parent: Place
    kind: str
    causes: list[str]


def explain(error: ValidationError, merged: Node, model: type[BaseModel], *, whole: bool = True) -> list[str]:
    """One message for each wrong place, in the order of the files and lines.

    Args:
        merged: the values that were validated, with their origins.
        whole: False when a file could not be read; then nothing is said about missing values.
    """
    found: dict[tuple[str | int, ...], Found] = {}
    for detail in error.errors(include_url=False, include_context=True):
        if detail["type"] == "missing" and not whole:
            continue
        path, place, parent = _locate(detail["loc"], Place(model), merged)
        cause = _cause(detail["type"], detail["msg"])
        if path in found:
            found[path].causes.append(cause)
        else:
            found[path] = Found(path, place, parent, detail["type"], [cause])
    known = list(dict.fromkeys(known_paths(model)))
    ordered = sorted(found.values(), key=lambda one: _order(_origin_of(merged, one.path)))
    return [_message(one, merged, known) for one in ordered]


def _cause(kind: str, message: str) -> str:
    """pydantic's words as the part after 'because'."""
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "it should be a mapping of keys"
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.partition(", unable to parse")[0].replace("Input should", "it should")


def _locate(loc: Sequence[str | int], place: Place, node: Node) -> tuple[tuple[str | int, ...], Place | None, Place]:
    """pydantic's location without the labels it adds for union members, and the place it points to, with its parent."""
    path: list[str | int] = []
    here: Place | None = place
    parent, at, tagged = place, node, False
    for index, name in enumerate(loc):
        values = at.plain() if at is not None else None
        below = here.child(name, values) if here is not None else None
        if here is not None and not tagged and _is_label(name, here):
            tagged = True
            continue
        written = at is not None and at.child(name) is not None
        if not (isinstance(name, int) or below is not None or written or index == len(loc) - 1):
            continue
        if isinstance(name, str) and index == len(loc) - 1 and below is None and not written:
            break  # the label of a plain union, such as "int"
        path.append(name)
        parent, here, tagged = here or parent, below, False
        at = at.child(name) if at is not None else None  # type: ignore[assignment]
    return tuple(path), here, parent


def _is_label(name: str | int, place: Place) -> bool:
    """Whether pydantic put this name into a location to say which variant of a union it means."""
    variants = sections(place.annotation)
    tag = tag_of(variants)
    return tag is not None and any(name in choices(variant.model_fields[tag].annotation) for variant in variants)


def _origin_of(merged: Node, path: Sequence[str | int]) -> Origin:
    """Where a place was written; for what is missing, where the section around it was."""
    for length in range(len(path), -1, -1):
        node = merged.find(path[:length])
        if node is not None:
            return node.origin
    return merged.origin


def _order(origin: Origin) -> tuple[bool, str, int]:
    """Sorts by file and line, overrides last."""
    return origin.kind == "override", origin.file, origin.line or 0


def _message(one: Found, merged: Node, known: list[str]) -> str:
    """The text for one place."""
    node, origin = merged.find(one.path), _origin_of(merged, one.path)
    path, name = dotted(one.path) or "the configuration", str(one.path[-1]) if one.path else ""
    if one.kind == "missing":
        return (
            f"{path} is missing: got no value ({origin}), because it has no default; "
            f"write '{name}: ...'{_inside(one.path)} ({_kind(one.place)})"
        )
    # A key may have been pasted where the name of its environment variable belongs.
    secret = any(is_secret(str(part).removesuffix("_env")) for part in one.path)
    secret = secret or (one.place is not None and is_secret("", one.place.annotation))
    got = "nothing" if node is None else "***" if secret else shorten(hidden(node.plain(), name))
    if one.kind == "extra_forbidden":
        return f"{path} is wrong: got {got} ({origin}), because there is no such key; {_nearest(one, merged, known)}"
    if one.kind.startswith("union_tag") and one.place is not None:
        return _wrong_variant(one, merged, path, origin)
    if (
        one.kind == "value_error" and not secret and all(": got " in cause for cause in one.causes)
    ):  # a section's own check says it all
        return f"{'' if not one.path else f'{path}: '}{'; and '.join(dict.fromkeys(one.causes))} ({origin})"
    cause = " or ".join(dict.fromkeys(one.causes))
    do = f"write this: {_kind(one.place)}" if secret else _way_out(one, node)
    return f"{path} is wrong: got {got} ({origin}), because {cause}; {do}"


def _wrong_variant(one: Found, merged: Node, path: str, origin: Origin) -> str:
    """The text for a union of sections whose tag is missing or unknown."""
    assert one.place is not None
    variants = sections(one.place.annotation)
    tag = tag_of(variants) or "kind"
    allowed = [str(value) for variant in variants for value in choices(variant.model_fields[tag].annotation)]
    node = merged.find((*one.path, tag))
    if node is None:
        cause = "it says which keys there are"
        return f"{path}.{tag} is missing: got no value ({origin}), because {cause}; write one of {', '.join(allowed)}"
    return (
        f"{path}.{tag} is wrong: got {shorten(node.plain())} ({node.origin}), because there is no such {tag}; "
        f"{_pick(str(node.plain()), allowed)}"
    )


def _nearest(one: Found, merged: Node, known: list[str]) -> str:
    """What to do about an unknown key: the nearest sibling, or the nearest path anywhere."""
    name, prefix = str(one.path[-1]), dotted(one.path[:-1])
    around = merged.find(one.path[:-1])
    model = one.parent.variant(around.plain() if around is not None else None)
    siblings = list(model.model_fields) if model is not None else []
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{f'{prefix}.' if prefix else ''}{near[0]}'?"
    for variant in sections(one.parent.annotation):
        tag = tag_of(sections(one.parent.annotation))
        if tag is not None and variant is not model and name in variant.model_fields:
            other = choices(variant.model_fields[tag].annotation)[0]
            return f"it belongs to {tag}: {other}; remove it, or choose that {tag}"
    return _anywhere(dotted(one.path), name, known) or (
        f"remove it, or take one of: {', '.join(siblings)}" if siblings else "remove it"
    )


def _anywhere(path: str, name: str, known: list[str]) -> str:
    """The known paths that end in this name, or are most like this path; empty when none is near."""
    same = [f"'{candidate}'" for candidate in known if candidate.rpartition(".")[2] == name]
    near = same[:3] or [f"'{one}'" for one in difflib.get_close_matches(path, known, n=1, cutoff=0.75)]
    if not near:
        last = {candidate.rpartition(".")[2]: f"'{candidate}'" for candidate in reversed(known)}
        near = [last[one] for one in difflib.get_close_matches(name, last, n=1, cutoff=0.75)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def suggest_path(model: type[BaseModel], path: str) -> str:
    """'; did you mean ...' for a path that a person asked for; empty when nothing is near."""
    hint = _anywhere(path, path.rpartition(".")[2], list(dict.fromkeys(known_paths(model))))
    return f"; {hint}" if hint else ""


def _pick(got: str, allowed: Sequence[str]) -> str:
    """'write one of', with the nearest."""
    near = difflib.get_close_matches(got, allowed, n=1)
    return f"write one of {', '.join(allowed)}" + (f"; did you mean '{near[0]}'?" if near else "")


def _kind(place: Place | None) -> str:
    """The expected type with its bounds: ``number, > 0``."""
    if place is None:
        return "a value"
    bounds = bounds_text(place.field) if place.field is not None else ""
    return kind_text(place.annotation) + (f", {bounds}" if bounds else "")


def _inside(path: Sequence[str | int]) -> str:
    """' under SECTION', for a place that is in one."""
    return f" under {dotted(path[:-1])}" if len(path) > 1 else ""


def _way_out(one: Found, node: Node | None) -> str:
    """What to do about a wrong value."""
    if one.place is None or not one.path:
        return "change one of these values"
    allowed = [str(value) for value in choices(one.place.annotation)]
    value = node.plain() if node is not None else None
    if allowed and not isinstance(value, (dict, list)) and len(flatten(one.place.annotation)[0]) == 1:
        return _pick(str(value), allowed)
    if sections(one.place.annotation) and not isinstance(value, dict):
        return "write its keys indented below it" + ("" if value is not None else ", or leave it out for the defaults")
    if "list_type" in one.kind:
        return "write [a, b], or one '- item' a line"
    if str in flatten(one.place.annotation)[0] and isinstance(value, (int, float)):
        return f'write it in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    default = one.place.default
    plain = default is not PydanticUndefined and isinstance(default, (int, float, str))
    return f"write this: {_kind(one.place)}" + (f"; the default is {default}" if plain else "")
