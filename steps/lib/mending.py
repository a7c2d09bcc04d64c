"""Reads a teacher's JSON: strictly first, then with a short list of exact repairs, and otherwise not at all.

A repair changes how a value is written, never what it says. Where two readings are possible, there is none: nothing that
was cut off is closed, no comma or quote is put where it might belong, no number is looked for in prose. A value that
cannot be read is missing.

| repair     | what came                                             | what is read                                      |
|------------|-------------------------------------------------------|---------------------------------------------------|
| ``fence``  | a code fence around the whole                         | what is in it                                     |
| ``around`` | text before or after one object or array              | that, from its first bracket to its last          |
| ``commas`` | a comma before a closing bracket                      | without it                                        |
| ``quotes`` | strings in single or typographic quotes               | in double quotes, if each string's end is certain |
| ``width``  | full-width colons, commas, brackets, blanks outside strings | their ASCII twins                           |
| ``control``| line ends and other control characters in a string    | their escapes                                     |
| ``words``  | ``True``, ``False``, ``None`` outside strings         | ``true``, ``false``, ``null``                     |

What not to do is UltraFeedback's annotation script (arXiv 2310.01377): scores that did not parse were stored as numbers,
and text of models went through ``eval``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from steps.lib.rules import parse_strict

_FENCE = re.compile(r"\A```[\w+-]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\Z", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SPECIAL = re.compile(r'\\.|["\x00-\x1f]', re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]+")
_NAMED = re.compile(r"[\"'”’]\s*[:：]\s*\Z")
_QUOTES = {"'": "'", "‘": "’", "“": "”", "＂": "＂"}
_WIDE = {"：": ":", "，": ",", "｛": "{", "｝": "}", "［": "[", "］": "]", "\u3000": " ", "\xa0": " ", "\ufeff": ""}
_WORDS = {"True": "true", "False": "false", "None": "null"}
_GOES_ON = (",", ":", "，", "：")
_OPEN, _CLOSE, _AFTER = "{[｛［", "}]｝］", frozenset(",:}]，：｝］")


@dataclass(frozen=True)
class Reading:
    """A JSON value that was read."""

    value: Any
    text: str
    """The value as it was written, or as it was mended: strict JSON."""
    repairs: tuple[str, ...] = ()
    """What was mended; none: it was strict as it came."""


def read_json(text: str) -> Reading:
    """The one JSON value that a text is.

    Raises:
        ValueError: it is none, and no repair makes it one without a doubt; the reason is that of the strict reader.
    """
    try:
        return Reading(parse_strict(text), text.strip())
    except ValueError as error:
        reason = error
    if (mended := mend(text)) is not None:
        try:
            return Reading(parse_strict(mended[0]), *mended)
        except ValueError:
            pass
    raise reason


def mend(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The text with the repairs of the table, and their names; None where a string has no certain end, or nothing was mended."""
    whole = text.strip()
    repairs: list[str] = []
    if (fenced := _FENCE.match(whole)) and "```" not in fenced[1]:
        whole, repairs = fenced[1].strip(), ["fence"]
    first = next((place for place, letter in enumerate(whole) if letter in _OPEN), None)
    last = next((place for place in range(len(whole) - 1, -1, -1) if whole[place] in _CLOSE), -1)
    if first is not None and last < first:
        return None
    before, behind = (whole[:first], whole[last + 1 :].lstrip()) if first is not None else ("", "")
    if before.strip() or behind:
        if (
            _NAMED.search(before)
            or behind.startswith(_GOES_ON)
            or any(one in _OPEN + _CLOSE for one in before + behind)
        ):
            return None
        whole = whole[first : last + 1]
        repairs.append("around")
    rewritten = _rewrite(whole)
    if rewritten is None:
        return None
    repairs += rewritten[1]
    return (rewritten[0], tuple(repairs)) if repairs else None


def _rewrite(text: str) -> tuple[str, list[str]] | None:
    """Goes over a text once, string by string; None where a string does not end for certain."""
    parts: list[str] = []
    made: list[str] = []
    place = 0

    def note(repair: str) -> None:
        if repair not in made:
            made.append(repair)

    while place < len(text):
        letter = text[place]
        if letter == '"':
            found = _STRING.match(text, place)
            if found is None:
                return None
            body = _literal(found[0][1:-1], '"')
            if body is None:
                return None
            if body != found[0][1:-1]:
                note("control")
            parts.append(f'"{body}"')
            place = found.end()
        elif letter in _QUOTES:
            end = _end(text, place)
            body = _literal(text[place + 1 : end], _QUOTES[letter]) if end is not None else None
            if end is None or body is None:
                return None
            note("quotes")
            parts.append(f'"{body}"')
            place = end + 1
        elif word := _WORD.match(text, place):
            if word[0] in _WORDS:
                note("words")
            parts.append(_WORDS.get(word[0], word[0]))
            place = word.end()
        else:
            if letter in _WIDE:
                note("width")
            plain = _WIDE.get(letter, letter)
            place += 1
            if (
                plain == ","
                and _closes(text, place)
                and "".join(parts[-8:]).rstrip()[-1:] not in ("", ",", "{", "[", ":")
            ):
                note("commas")
                continue
            parts.append(plain)
    return "".join(parts), made


def _end(text: str, start: int) -> int | None:
    """The end of a string that does not begin with a JSON quote: its first closing mark, if that cannot be part of the string."""
    opened, closing = text[start], _QUOTES[text[start]]
    place = start + 1
    while place < len(text) and text[place] != closing:
        if text[place] == opened:
            return None
        place += 2 if text[place] == "\\" else 1
    rest = text[place + 1 :].lstrip()
    return place if place < len(text) and (not rest or rest[0] in _AFTER) else None


def _literal(body: str, closing: str) -> str | None:
    """The inside of a string as that of a JSON string; None where a backslash stands before a control character."""
    if any(len(found) == 2 and found[1] < " " for found in _SPECIAL.findall(body)):
        return None

    def plain(found: re.Match[str]) -> str:
        if found[0].startswith("\\"):
            return closing if found[0][1] == closing != '"' else found[0]
        return json.dumps(found[0])[1:-1]

    return _SPECIAL.sub(plain, body)


def _closes(text: str, place: int) -> bool:
    """Whether nothing but blanks stands before the next closing bracket."""
    while place < len(text) and (text[place].isspace() or text[place] == "\ufeff"):
        place += 1
    return place < len(text) and text[place] in _CLOSE
