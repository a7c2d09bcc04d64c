"""The parts of a prompt file: texts in two languages, chain of thought, sandboxed templates, the JSON Schema of an answer.

Each reader raises ValueError with the whole reason, so that pydantic reports it under the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, model_validator

from steps.lib.config import Section
from steps.lib.errors import ConfigError
from steps.lib.rules import Language, read_values

LANGUAGES: tuple[Language, ...] = ("zh", "en")
PROMPT_VARIABLES = frozenset({"prompt", "lang", "facts"})


class ByLanguage(Section):
    """A text in both languages."""

    zh: str
    """The Chinese text."""
    en: str
    """The English text."""

    def of(self, lang: Language) -> str:
        """The text in ``lang``."""
        return self.zh if lang == "zh" else self.en


class ChainOfThought(Section):
    """Whether the teacher thinks first, and what becomes of the thought."""

    mode: Literal["none", "keep", "strip", "apart"] = "none"
    """none: no thought is asked for; keep: it stays in the answer; strip: it is thrown away; apart: it is stored
    beside it."""
    instruction: ByLanguage = ByLanguage(zh="", en="")
    """Added to the system text; it must name the marker."""
    marker: ByLanguage = ByLanguage(zh="### 答案", en="### Answer")
    """Begins the one line after which the answer stands."""

    @model_validator(mode="after")
    def _complete(self) -> ChainOfThought:
        for lang in LANGUAGES if self.mode != "none" else ():
            if not self.marker.of(lang).strip() or self.marker.of(lang) not in self.instruction.of(lang):
                raise ValueError(
                    f"instruction.{lang} does not name the marker {self.marker.of(lang)!r}; tell the teacher to "
                    "write that line before the answer"
                )
        return self

    def told(self, lang: Language) -> str:
        """What is added to the system text."""
        return self.instruction.of(lang).strip() if self.mode != "none" else ""

    def split(self, text: str) -> tuple[str, str, bool]:
        """Thought, answer, and whether exactly one marker line stood between them."""
        marks = "|".join(re.escape(self.marker.of(lang)) for lang in LANGUAGES)
        found = list(re.finditer(rf"^[ \t]*(?:{marks})[ \t]*[:：]?", text, re.MULTILINE))
        if len(found) != 1:
            return "", text, False
        return text[: found[0].start()].strip(), text[found[0].end() :].strip(), True


def compile_template(text: str, variables: Collection[str] = PROMPT_VARIABLES) -> jinja2.Template:
    """Compile a template and try it once: with text for every variable, and where that does not do, without those of recipes.

    Raises:
        ValueError: its syntax, an unknown variable, or something the sandbox does not allow.
    """
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    known = sorted({*variables})
    try:
        if unknown := sorted(meta.find_undeclared_variables(environment.parse(text)) - {*known}):
            raise ValueError(
                f"template uses {', '.join(unknown)}, which is not defined; known are {known}, and what `variables` names"
            )
        template = environment.from_string(text)
        _try(template, [name for name in known if name in PROMPT_VARIABLES], known)
    except ValueError:
        raise
    except Exception as error:  # a template is code: it can raise anything
        raise ValueError(f"template is refused: {error}; use plain variables and filters") from None
    return template


def _try(template: jinja2.Template, own: list[str], known: list[str]) -> None:
    """Render with text in place of values. What a recipe gives need not be text; only a recipe knows."""
    for names in (known, own):
        try:
            template.render({name: {} if name == "facts" else "text" for name in names})
            return
        except jinja2.UndefinedError:
            return  # a fact, or what a recipe gives; only the row knows
        except SecurityError:
            raise
        except Exception:  # a template is code: it can raise anything
            if names == own or own == known:
                raise


def used_variables(texts: Collection[str], *, tested: bool = True) -> frozenset[str]:
    """The variables that templates use; where ``tested`` is false, without those that they ask for with ``is defined``."""
    environment = ImmutableSandboxedEnvironment()
    found: set[str] = set()
    for text in texts:
        tree = environment.parse(text)
        asked = {test.node.name for test in tree.find_all(nodes.Test)
                 if test.name == "defined" and isinstance(test.node, nodes.Name)}  # fmt: skip
        found |= meta.find_undeclared_variables(tree) - (set() if tested else asked)
    return frozenset(found)


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
