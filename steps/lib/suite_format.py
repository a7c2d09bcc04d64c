"""Suites of answers in JSON: each row has a prompt and a JSON Schema.

``json_strict``: the whole answer is one JSON value; NaN, Infinity and a key twice are no JSON. ``json_fenced``: its only fenced
block is one. ``schema_ok``: strict, and the schema holds, ``format`` included (which jsonschema skips unless told).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib import suite_answers
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure
from steps.lib.rules import parse_strict
from steps.lib.suite_answers import Question, Questions
from steps.lib.suites import Scored

FORMAT_VERSION = "1"
_FENCE = re.compile(r"^```[A-Za-z]*[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


def problem_of(schema: Any) -> str | None:
    """Why answers cannot be held to a schema: it is none, or has a ``format`` that nothing here checks."""
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"its schema is no JSON Schema, because {error.message}"
    known = jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers
    unknown = sorted({name for name in _formats(schema) if name not in known})
    return (
        f"its schema has format {', '.join(unknown)}, which is not checked; known are {', '.join(known)}"
        if unknown
        else None
    )


def _formats(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("format"), str):
            yield schema["format"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _formats(part)


def judged(text: str, schema: Any) -> dict[str, float | None]:
    """The three scores of one answer."""
    import jsonschema

    fenced = _FENCE.findall(text)
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    found = _parsed(text)
    return {
        "json_strict": float(bool(found)),
        "json_fenced": float(len(fenced) == 1 and bool(_parsed(fenced[0]))),
        "schema_ok": float(bool(found) and checker.is_valid(found[0])),
    }


def _parsed(text: str) -> list[object]:
    """The value, as a list of one; empty where the text is no JSON."""
    try:
        return [parse_strict(text)]
    except ValueError:
        return []


@dataclass(frozen=True)
class Format(Questions):
    """One such suite."""

    @classmethod
    def read(cls, name: str, path: Path, limit: int | None) -> Format:
        """Read it.

        Raises:
            DataError: a row is wrong, or its schema is.
        """
        found: list[Question] = []
        problems: list[str] = []
        for number, row in enumerate(suite_answers.read_rows(path, ("prompt", "schema"), limit)):
            schema = json.loads(row["schema"]) if isinstance(row["schema"], str) else row["schema"]
            lang = suite_answers.language_of(row, row["prompt"])
            one = Question(str(row.get("id", number)), row["prompt"], lang, {**row, "schema": schema})
            if why := problem_of(schema):
                problems.append(f"{path} row {one.id} is wrong: {why}; correct the schema")
            found.append(one)
        if problems:
            raise DataError("\n".join(problems))
        return cls(name, suite_answers.unique(name, found))

    @property
    def measures(self) -> Sequence[Measure]:
        """Strict, fenced, and by schema."""
        names = (
            ("json_strict", "whole answer is JSON", "整个回答是 JSON"),
            ("json_fenced", "one fenced block of JSON", "唯一代码块是 JSON"),
            ("schema_ok", "JSON that fits the schema", "JSON 符合模式"),
        )
        return [
            Measure(
                name=f"{self.name}_{score}",
                label_en=f"{self.name}: {en}",
                label_zh=f"{self.name}：{zh}",
                unit="share",
                suite=self.name,
                score=score,
                method="RFC 8259, no key twice; JSON Schema 2020-12 with format",
            )
            for score, en, zh in names
        ]

    def digest(self) -> str:
        """Of rows and scorer."""
        return suite_answers.content_digest("format", FORMAT_VERSION, self.questions)

    def score(self, who: Scored) -> list[Item]:
        """An item a prompt."""
        return suite_answers.answered(who, self.name, self.questions, lambda one, text: judged(text, one.row["schema"]))
