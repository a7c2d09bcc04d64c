"""The parts of a prompt file: texts in two languages, sandboxed templates, examples, and the JSON Schema of an answer.

Each reader raises ValueError with the whole reason, so that pydantic reports it under the field's name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steps.lib.config import Section
from steps.lib.errors import ConfigError
from steps.lib.rules import Language, read_values

PROMPT_VARIABLES = frozenset({"prompt", "lang", "facts"})


class ByLanguage(Section):
    """A text in both languages."""

    zh: str
    en: str

    def of(self, lang: Language) -> str:
        """The text in ``lang``."""
        return self.zh if lang == "zh" else self.en


class Example(BaseModel):
    """One worked example: a line of the examples file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lang: Language
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    thought: str = ""
    facts: dict[str, Any] = Field(default_factory=dict)


def estimate_tokens(text: str) -> int:
    """Tokens of a text, estimated on the high side: UTF-8 bytes / 3 is 1 a Chinese character, 1 per 3 Latin
    letters."""
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / 3)


def compile_template(text: str, variables: frozenset[str] = PROMPT_VARIABLES) -> jinja2.Template:
    """Compile a template and try it once with text for every variable.

    Raises:
        ValueError: its syntax, an unknown variable, or something the sandbox does not allow.
    """
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        if unknown := sorted(meta.find_undeclared_variables(environment.parse(text)) - variables):
            raise ValueError(f"template uses {', '.join(unknown)}, which is not defined; known are {sorted(variables)}")
        template = environment.from_string(text)
        template.render({name: {} if name == "facts" else "text" for name in variables})
    except jinja2.UndefinedError:
        return template  # a fact; only the row knows
    except ValueError:
        raise
    except Exception as error:  # a template is code: it can raise anything
        raise ValueError(f"template is refused: {error}; use plain variables and filters") from None
    return template


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSONL file, checked line by line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file cannot be read: {error}; give a JSONL file of examples") from None
    pool: list[Example] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            pool += [Example.model_validate_json(line)] if line.strip() else []
        except ValidationError as error:
            problems += [f"line {number} {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if problems:
        raise ValueError("; ".join(problems))
    return pool


def read_schema(value: dict[str, Any] | str) -> dict[str, Any]:
    """The schema itself, from a mapping, "FILE" or "FILE#FIELD"."""
    if isinstance(value, dict):
        return value
    file, _, field = value.partition("#")
    try:
        content: Any = read_values(_Anything, Path(file)).root()
    except ConfigError as error:
        raise ValueError(str(error)) from None
    for name in field.split(".") if field else ():
        if not isinstance(content, dict) or name not in content:
            raise ValueError(f"{file} has no field {field!r}")
        content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"{value} holds no JSON Schema (a mapping)")
    return content


class _Anything(BaseModel):
    model_config = ConfigDict(extra="allow")

    def root(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def check_schema(schema: dict[str, Any]) -> Any:
    """A validator that follows references inside the schema only."""
    import jsonschema
    import referencing

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.message}") from None
    return kind(schema, registry=referencing.Registry())
