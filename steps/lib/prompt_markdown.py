"""Prompt files as Markdown: fields in a YAML front matter, texts in sections that are named after them.

    ---
    shots: 4
    examples: data/examples.jsonl
    ---
    ## system (zh)
    你是……
    ## system (en)
    You are ...
    ## user
    {{ prompt }}

A section is a text of the file, without the blank lines around it; a heading without a language is for both. Headings are
lines that begin with ``## ``. Other levels belong to the text, and so does everything inside a code fence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from steps.lib.errors import ConfigError

SECTIONS: dict[str, tuple[str, ...]] = {
    "system": ("system",),
    "user": ("user",),
    "instruction": ("chain_of_thought", "instruction"),
    "marker": ("chain_of_thought", "marker"),
    "repair": ("repair",),
}
"""Heading -> field."""
_HEADING = re.compile(r"## +(.*?)\s*\Z")
_NAME = re.compile(r"(\w+)(?: +\((zh|en)\))?")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def read_markdown(path: Path) -> dict[str, Any]:
    """The values of a Markdown file, as YAML would give them.

    Raises:
        ConfigError: every problem, with its line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read, because {error}; give a Markdown file in UTF-8") from None
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    if not lines or lines[0].rstrip() != "---" or not end:
        raise ConfigError(
            f"{path}:1 has no front matter: got {(lines or [''])[0][:40]!r}, because a prompt file in Markdown begins with "
            "a line ---, fields as YAML, and a line ---; write both lines, even with no field between them"
        )
    try:
        values = YAML(typ="safe").load("\n".join(lines[1:end]))
    except YAMLError as error:
        raise ConfigError(f"{path} has a front matter that is not YAML, because {error}; mend it") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}:2 is wrong: got {lines[1][:40]!r}, because a front matter is 'field: value' lines; write those"
        )
    problems: list[str] = []
    for number, heading, text in _sections(path, lines, end + 1, problems):
        name = _NAME.fullmatch(heading)
        if name is None or name[1] not in SECTIONS:
            problems.append(
                f"{path}:{number} has an unknown heading: got {heading!r}, because sections are {', '.join(SECTIONS)}, each "
                "alone or with (zh) or (en); write one of these, or ### where it is part of a text"
            )
        elif not _put(values, SECTIONS[name[1]], name[2], text):
            problems.append(
                f"{path}:{number} says {heading!r} a second time, because an earlier section or the front matter has a text "
                "for it; keep one of them"
            )
    if problems:
        raise ConfigError(problems)
    return values


def _sections(path: Path, lines: list[str], start: int, problems: list[str]) -> list[tuple[int, str, str]]:
    """Line, heading and text of each section."""
    found: list[tuple[int, str, list[str]]] = []
    fence, opened = "", 0
    for number, line in enumerate(lines[start:], start + 1):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence, opened = mark[1], number
        elif mark and mark[1].startswith(fence) and not line.strip(" `~"):
            fence = ""
        elif not fence and (heading := _HEADING.match(line)):
            found.append((number, heading[1], []))
            continue
        if found:
            found[-1][2].append(line)
        elif line.strip():
            problems.append(
                f"{path}:{number} is in no section: got {line[:40]!r}, because texts stand below a heading such as "
                "## system (en); write one above it, or # before a comment in the front matter"
            )
    if fence:
        problems.append(
            f"{path}:{opened} opens a code fence that is not closed: got {fence!r}, because everything behind it would be "
            "text; close it"
        )
    return [(number, heading, "\n".join(text).strip("\n").strip()) for number, heading, text in found]


def _put(values: dict[str, Any], field: tuple[str, ...], lang: str | None, text: str) -> bool:
    """Set a field, for one language or both; False when it has a value already. ``user`` may be one text for both."""
    for name in field[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            return False
    last = field[-1]
    if lang is None:
        if last in values:
            return False
        values[last] = text if last == "user" else {"zh": text, "en": text}
        return True
    both = values.setdefault(last, {})
    if not isinstance(both, dict) or lang in both:
        return False
    both[lang] = text
    return True
