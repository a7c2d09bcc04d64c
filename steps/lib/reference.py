"""The configuration for a reader: every value with its origin and doc, and the generated configs/reference.yaml."""

from __future__ import annotations

import enum
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from steps.lib.config import Loaded, S
from steps.lib.errors import ConfigError
from steps.lib.fields import Place, bounds_text, choices, default_of, flatten, is_secret, item_type, kind_text, sections
from steps.lib.nodes import Origin, dotted, walk
from steps.lib.problems import suggest_path

WIDTH = 120
HEAD = """\
Every field with its doc, type, bounds and default. Generated from the code by `prefline config --write-reference`.
This file is read by people only; values go into base.yaml, a profile or a recipe (docs/configuration.md).
What stands behind a # is off or required: an optional section that is null, an item of a list, another variant."""


@dataclass(frozen=True)
class Entry:
    """One leaf of the configuration. ``value`` is a JSON type; a secret is ``***``."""

    path: str
    value: Any
    origin: Origin
    doc: str
    kind: str


def describe(model: type[S], loaded: Loaded[S], section: str | None = None) -> list[Entry]:
    """Each leaf with its value, origin, doc and kind (type, choices, bounds), in the order of the model.

    Args:
        section: a dotted path; only what is at or below it. A section that is null is one entry.

    Raises:
        ConfigError: there is no such path; the message names the nearest.
    """
    entries: list[Entry] = []
    for path, value in walk(loaded.value):
        place = _place(model, loaded.value, path)
        field = place.field if place is not None else None
        bounds = bounds_text(field) if field is not None else ""
        kind = kind_text(place.annotation) if place is not None else ""
        entries.append(
            Entry(
                path=dotted(path),
                value=_shown(_name(path), place.annotation if place is not None else None, value),
                origin=loaded.origins[dotted(path)],
                doc=_doc(field),
                kind=", ".join(part for part in (kind, bounds) if part),
            )
        )
    if section is None:
        return entries
    chosen = [one for one in entries if one.path == section or one.path.startswith((f"{section}.", f"{section}["))]
    chosen = chosen or [one for one in entries if one.value is None and section.startswith(f"{one.path}.")]
    if not chosen:
        names = ", ".join(model.model_fields)
        hint = suggest_path(model, section) or f"; take one of: {names}"
        raise ConfigError(f"section is wrong: got {section!r}, because the configuration has no such path{hint}")
    return chosen


def plain(value: Any) -> Any:
    """A value of a validated model as a JSON type; secrets become ``***``."""
    if isinstance(value, (SecretStr, SecretBytes)):
        return "***"
    if isinstance(value, BaseModel):
        named = type(value).model_fields
        return {name: _shown(name, field.annotation, getattr(value, name)) for name, field in named.items()}
    if isinstance(value, Mapping):
        return {str(key): _shown(str(key), None, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return value.as_posix()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _shown(name: str, annotation: Any, value: Any) -> Any:
    """A named value as a JSON type, or ``***``; so is a key that was pasted where its variable's name belongs."""
    pasted = name.endswith("_env") and is_secret(name[:-4]) and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(value))
    return "***" if value is not None and (pasted or is_secret(name, annotation)) else plain(value)


def yaml_text(value: Any) -> str:
    """A JSON value as YAML on one line."""
    if isinstance(value, str):
        bare = re.fullmatch(r"(?:[^\W\d]|/)[\w./@+ -]*", value) and value == value.strip()
        word = value.lower() in ("null", "true", "false", "yes", "no", "on", "off")
        return value if bare and not word else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_text(str(key))}: {yaml_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)


def reference_yaml(model: type[BaseModel]) -> str:
    """The text of configs/reference.yaml: valid YAML that holds the code's defaults, documented."""
    lines = [*(f"# {line}" for line in HEAD.splitlines()), ""]
    lines += _section_lines(Place(model), model, 0)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _place(model: type[BaseModel], value: BaseModel, path: tuple[str | int, ...]) -> Place | None:
    """The place a leaf of a validated model stands at; the variant of a union is that of the value."""
    place: Place | None = Place(model, value)
    here: Any = value
    for name in path:
        if isinstance(here, BaseModel):
            field = type(here).model_fields[str(name)]
            here = getattr(here, str(name))
            place = Place(field.annotation, here, field)
        else:
            here = here[name]
            below = item_type(place.annotation) if place is not None else None
            place = Place(below, here, place.field if place is not None else None) if below is not None else None
    return place


def _name(path: tuple[str | int, ...]) -> str:
    """The last name in a path that is not an index."""
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _doc(field: FieldInfo | None) -> str:
    """A field's docstring as one paragraph; a section without one has that of its model."""
    if field is None:
        return ""
    models = sections(field.annotation)
    text = field.description or ((models[0].__doc__ or "").partition("\n\n")[0] if len(models) == 1 else "")
    return re.sub(r"\s+", " ", text.strip()).replace("``", "`")


def _comment(text: str, indent: int) -> list[str]:
    """A text as comment lines."""
    prefix = f"{'  ' * indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False)


def _section_lines(place: Place, model: type[BaseModel], indent: int) -> list[str]:
    """The fields of one section."""
    lines: list[str] = []
    for name in model.model_fields:
        field = model.model_fields[name]
        inherited = isinstance(place.default, model)
        default = getattr(place.default, name) if inherited else default_of(field)
        below = Place(field.annotation, default, field)
        if sections(below.annotation) and indent == 0:
            lines.append("")
        lines += _field_lines(name, below, field, indent)
    return lines


def _field_lines(name: str, place: Place, field: FieldInfo, indent: int) -> list[str]:
    """One field: its doc and kind, its value, and what may stand below it."""
    variants, default = sections(place.annotation), place.default
    facts = "; ".join(part for part in (kind_text(place.annotation), bounds_text(field)) if part)
    required = default is PydanticUndefined
    doc = " ".join(part for part in (_doc(field), f"[{facts}{'; required' if required else ''}]") if part)
    if variants:
        optional = " or null (off)" if type(None) in flatten(place.annotation)[0] else ""
        state = "; null by default" if default is None else "; required" if required else ""
        doc = " ".join(part for part in (_doc(field), f"[section{optional}{state}]") if part)
    lines = _comment(doc, indent)
    if variants:
        lines += _variant_lines(name, place, variants, indent)
    else:
        allowed = choices(place.annotation)
        text = "..." if required else yaml_text(_shown(name, place.annotation, default))
        if required and len(allowed) == 1:  # the tag of a variant
            required, text = False, yaml_text(plain(allowed[0]))
        off = required or text == '"***"'
        lines.append(f"{'  ' * indent}{'# ' if off else ''}{name}: {text}")
        lines += _item_lines(place, indent + 1)
    return lines


def _variant_lines(name: str, place: Place, variants: list[type[BaseModel]], indent: int) -> list[str]:
    """A section, or each variant of a union; the one that is the default is not commented."""
    lines: list[str] = []
    pad = "  " * indent
    for variant in sorted(variants, key=lambda one: not isinstance(place.default, one)):
        live = isinstance(place.default, variant)
        here = Place(variant, place.default) if live else Place(variant)
        body = _section_lines(here, variant, indent + 1)
        block = [f"{pad}{name}:", *body]
        if len(variants) > 1:
            block = [*_comment(f"{name}, variant {_doc_of(variant)}", indent), *block]
        lines += block if live else _commented(block, indent)
    return lines


def _item_lines(place: Place, indent: int) -> list[str]:
    """The fields of a list's items, when these are sections: commented, once a variant."""
    lines: list[str] = []
    for variant in sections(item_type(place.annotation)):
        body = _section_lines(Place(variant), variant, indent + 1)
        lines += _commented([*_comment(f"each item: {_doc_of(variant)}", indent), f"{'  ' * indent}-", *body], indent)
    return lines


def _doc_of(variant: type[BaseModel]) -> str:
    """A variant's name and the first line of its docstring."""
    doc = (variant.__doc__ or "").strip().splitlines()
    return f"{variant.__name__}: {doc[0]}" if doc else variant.__name__


def _commented(lines: list[str], indent: int) -> list[str]:
    """The lines behind a '# ' at this indent."""
    pad = "  " * indent
    return [f"{pad}# {line[len(pad) :]}" if line.strip() else line for line in lines]


def settings(entries: list[Entry]) -> Iterator[dict[str, Any]]:
    """The entries as JSON objects, for ``prefline config --json``."""
    for one in entries:
        origin = {"kind": one.origin.kind, "file": one.origin.file or None, "line": one.origin.line}
        yield {"path": one.path, "value": one.value, "from": origin, "doc": one.doc, "kind": one.kind}
