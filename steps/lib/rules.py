"""A task as values: the rules an answer must keep, checked by program and never by a model.

The rules of a task are data (`data/seed/task/task.yaml`); this module is the small engine that reads them. An answer is
text. It is *strict* when the whole text is one JSON value that satisfies the task's JSON Schema; an answer that is not
strict fails every rule that applies to its prompt.

Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, section 2
("verifiable instructions": each is checked by a short program). Deviations:
  1. The rules hold for a whole task, not for one prompt; `when_prompt` and `unless_prompt` say which prompts they meet.
  2. There is no loose scoring (their section 2.2): text around the JSON is itself a fault of the answer.
  3. Both Chinese and English; the language is told by script, no model is asked.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jsonschema
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from steps.lib.errors import ConfigError

Language = Literal["zh", "en"]
M = TypeVar("M", bound=BaseModel)

_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_ZH_SHARE, _EN_SHARE = 0.5, 0.1  # share of CJK characters among CJK characters plus Latin words


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression, because {error}; mend the pattern") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
"""A regular expression of Python's `re`, searched anywhere in the text."""


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _RuleValues(_Values):
    name: str = Field(min_length=1)
    """The rule's name in reports; unique in a task."""
    when_prompt: Pattern | None = None
    """The rule applies only to prompts in which this is found; null: to all."""
    unless_prompt: Pattern | None = None
    """The rule does not apply to prompts in which this is found."""

    def applies(self, prompt: str) -> bool:
        """Tell from the prompt alone, so that no answer can talk its way out of a rule."""
        if self.when_prompt is not None and not re.search(self.when_prompt, prompt):
            return False
        return self.unless_prompt is None or not re.search(self.unless_prompt, prompt)


class SchemaRule(_RuleValues):
    """The whole answer is one JSON value that satisfies the task's schema."""

    kind: Literal["schema"]

    def holds(self, prompt: str, fields: dict[str, Any]) -> bool:
        """True: a strict answer satisfies the schema already."""
        return True


class CopiedRule(_RuleValues):
    """A field repeats the first match of a pattern in the prompt, or is null when there is none."""

    kind: Literal["copied"]
    field: str
    """The field of the answer."""
    pattern: Pattern
    """What is to be copied from the prompt."""

    def holds(self, prompt: str, fields: dict[str, Any]) -> bool:
        """Compare the field with the prompt's first match."""
        found = re.search(self.pattern, prompt)
        return bool(fields.get(self.field) == (found.group() if found else None))


class MatchRule(_RuleValues):
    """A text field holds (`must_match`) or does not hold (`must_not_match`) a pattern."""

    kind: Literal["must_match", "must_not_match"]
    field: str
    """The field of the answer."""
    pattern: Pattern
    """What is looked for in the field."""

    def holds(self, prompt: str, fields: dict[str, Any]) -> bool:
        """Search the field; a field that is not text never holds."""
        value = fields.get(self.field)
        return isinstance(value, str) and bool(re.search(self.pattern, value)) == (self.kind == "must_match")


class LanguageRule(_RuleValues):
    """A text field is written in the language of the prompt, told by script."""

    kind: Literal["language"]
    field: str
    """The field of the answer."""

    def holds(self, prompt: str, fields: dict[str, Any]) -> bool:
        """Compare scripts; a mixed field is of neither language."""
        value = fields.get(self.field)
        return isinstance(value, str) and script_of(value) == language_of(prompt)


Rule = Annotated[SchemaRule | CopiedRule | MatchRule | LanguageRule, Field(discriminator="kind")]


class Task(_Values):
    """A task: what the student is told, the shape of an answer, and the rules."""

    name: str = Field(min_length=1)
    """The task's name in reports."""
    student_system: dict[Language, str]
    """The system line put before every prompt, by language."""
    json_schema: dict[str, Any] = Field(alias="schema")
    """JSON Schema of an answer."""
    rules: list[Rule] = Field(min_length=1)
    """The rules, in the order of the reports."""

    _validator: Any = PrivateAttr()

    @model_validator(mode="after")
    def _sound(self) -> Task:
        if missing := {"zh", "en"} - set(self.student_system):
            raise ValueError(f"student_system lacks {sorted(missing)}; write one line for zh and one for en")
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rule names {twice} occur twice; give every rule its own name")
        try:
            jsonschema.Draft202012Validator.check_schema(self.json_schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"schema is not a JSON Schema, because {error.message}; mend it") from None
        fields = set(self.json_schema.get("properties", {}))
        for rule in self.rules:
            if not isinstance(rule, SchemaRule) and rule.field not in fields:
                raise ValueError(f"rule {rule.name}: field {rule.field!r} is not in schema.properties {sorted(fields)}")
        self._validator = jsonschema.Draft202012Validator(self.json_schema)
        return self

    @classmethod
    def read(cls, path: Path) -> Task:
        """Read and check a task file.

        Args:
            path: a YAML 1.2 file of values.

        Raises:
            ConfigError: naming the file and every wrong field.
        """
        return read_values(cls, path)

    def fields(self, answer: str) -> dict[str, Any]:
        """Return the fields of a strict answer.

        Raises:
            ValueError: with the reason, when the answer is not strict.
        """
        value = parse_strict(answer)
        if not isinstance(value, dict):
            raise ValueError(f"got a JSON {type(value).__name__}, because the answer must be an object")
        for error in self._validator.iter_errors(value):
            raise ValueError(f"{error.json_path}: {error.message}")
        return value

    def check(self, prompt: str, answer: str) -> dict[str, bool | None]:
        """Check one answer against every rule.

        Args:
            prompt: the customer's message alone, without the system line.
            answer: the whole text of the answer.

        Returns:
            Rule name -> True (kept), False (broken) or None (does not apply to this prompt).
        """
        try:
            fields: dict[str, Any] | None = self.fields(answer)
        except ValueError:
            fields = None
        return {
            rule.name: (fields is not None and rule.holds(prompt, fields)) if rule.applies(prompt) else None
            for rule in self.rules
        }

    def score(self, prompt: str, answer: str) -> float:
        """Return the mean over the rules that apply, from 0 to 1; 1.0 when none applies."""
        kept = [value for value in self.check(prompt, answer).values() if value is not None]
        return sum(kept) / len(kept) if kept else 1.0


def read_values(model: type[M], path: Path) -> M:
    """Read a YAML 1.2 file into a model.

    Raises:
        ConfigError: naming the file and every wrong field with its value.
    """
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read, because {error.strerror}; give the path of a YAML file") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML, because {error}; mend the file") from error
    return check_values(model, values, path)


def check_values(model: type[M], values: object, path: Path) -> M:
    """Make a model of the values of a file.

    Raises:
        ConfigError: naming the file and every wrong field with its value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        names = [field.alias or name for name, field in model.model_fields.items()]
        raise ConfigError(
            [
                f"{path}, {'.'.join(map(str, p['loc'])) or 'top level'} is wrong: "
                f"got {str(p.get('input'))[:80]!r}, because {p['msg'].removeprefix('Value error, ')}; "
                + (
                    _nearest(str(p["loc"][0]), names)
                    if p["type"] == "extra_forbidden" and len(p["loc"]) == 1
                    else "correct it"
                )
                for p in error.errors()
            ]
        ) from None


def _nearest(name: str, known: Sequence[str]) -> str:
    """What to do about a field that there is not."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"


def parse_strict(text: str) -> object:
    """Parse a text that is one JSON value and nothing else (white space around it is JSON's own).

    `json.loads` is laxer than RFC 8259 in two ways that are refused here: NaN and Infinity, and duplicate keys.

    Raises:
        ValueError: with the reason.
    """

    def constant(word: str) -> object:
        raise ValueError(f"got {word}, because JSON has no such number")

    def unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"got the key {key!r} twice in one object")
            result[key] = value
        return result

    try:
        value: object = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _cjk_share(text: str) -> float | None:
    cjk, words = len(_CJK.findall(text)), len(_LATIN_WORD.findall(text))
    return cjk / (cjk + words) if cjk + words else None


def script_of(text: str) -> Language | None:
    """Return the language of a text by script, or None for a mixed or letterless text."""
    share = _cjk_share(text)
    if share is None:
        return None
    return "zh" if share >= _ZH_SHARE else "en" if share <= _EN_SHARE else None


def language_of(prompt: str) -> Language:
    """Return the language a prompt must be answered in: zh from half CJK characters on, else en."""
    return "zh" if (_cjk_share(prompt) or 0.0) >= _ZH_SHARE else "en"
