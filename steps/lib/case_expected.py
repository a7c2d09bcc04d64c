"""What a case expects of an answer, checked by program: rules, patterns with a bound on time, a JSON Schema.

An expectation comes from outside with its case. So a pattern is bounded in length and time, a schema refers to nothing outside
itself, and no rule runs code.

Source: EVALUATION.md 3.4 (strict JSON, with ``format`` checked) and 3.8 (a case's expectation is executable).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import jsonschema
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from steps.lib.errors import DataError
from steps.lib.language import detect
from steps.lib.rules import Task, parse_strict

PATTERN_SECONDS = 1.0
"""Seconds that one pattern may search one answer."""
ANSWER_CHARS = 20_000
"""Characters of an answer that patterns search; what is behind is longer than any answer that a case expects."""
_REFUSING = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable)|I can(?:no|')t (?:help|assist|do)|as an AI)\b"
    r"|(?:抱歉|对不起).{0,12}(?:不能|无法|没法)|作为(?:一个)?(?:AI|人工智能)",
    re.IGNORECASE,
)


def _sound(pattern: str) -> str:
    import regex  # type: ignore[import-untyped]

    try:
        regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise ValueError(f"not a regular expression, because {error}; mend the pattern") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_sound)]
"""A regular expression of the library ``regex``, searched anywhere in the answer."""


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Says(_Values):
    """The answer holds a text, or does not; letters of either case."""

    kind: Literal["says", "says_not"]
    text: str = Field(min_length=1, max_length=2000)
    """What is looked for."""

    def holds(self, prompt: str, answer: str, task: Task | None) -> bool:
        """Whether the answer keeps the rule."""
        return (self.text.casefold() in answer.casefold()) == (self.kind == "says")


class Is(_Values):
    """The answer is a text and nothing else, but for white space around it."""

    kind: Literal["is"]
    text: str = Field(min_length=1, max_length=2000)
    """The whole answer."""

    def holds(self, prompt: str, answer: str, task: Task | None) -> bool:
        """Whether the answer keeps the rule."""
        return answer.strip() == self.text.strip()


class Length(_Values):
    """Characters of the answer."""

    kind: Literal["chars"]
    least: int = Field(1, ge=0)
    """Characters at least."""
    most: int = Field(ANSWER_CHARS, ge=1)
    """Characters at most."""

    def holds(self, prompt: str, answer: str, task: Task | None) -> bool:
        """Whether the answer keeps the rule."""
        return self.least <= len(answer.strip()) <= self.most


class Written(_Values):
    """The language of the answer."""

    kind: Literal["language"]
    lang: Literal["zh", "en"]
    """Language, told by script."""

    def holds(self, prompt: str, answer: str, task: Task | None) -> bool:
        """Whether the answer keeps the rule."""
        return detect(answer) == self.lang


class Refuses(_Values):
    """The answer refuses, or does not. Told by the usual words of the two languages, so it is a rule for short answers."""

    kind: Literal["refuses", "refuses_not"]

    def holds(self, prompt: str, answer: str, task: Task | None) -> bool:
        """Whether the answer keeps the rule."""
        return bool(_REFUSING.search(answer)) == (self.kind == "refuses")


class OfTask(_Values):
    """Every rule of the task file that applies to the prompt."""

    kind: Literal["task"]

    def holds(self, prompt: str, answer: str, task: Task | None) -> bool:
        """Whether the answer keeps the rule.

        Raises:
            DataError: there is no task.
        """
        if task is None:
            raise DataError(
                "rule task cannot be checked: got no task file, because the case expects the rules of a task; "
                "set clean.task, or give the case rules of its own"
            )
        return task.score(prompt, answer) == 1.0


Rule = Annotated[Says | Is | Length | Written | Refuses | OfTask, Field(discriminator="kind")]


class Expected(_Values):
    """What a case expects. All of it must hold."""

    rules: list[Rule] = Field(default_factory=list, max_length=20)
    """Rules that the answer keeps."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON Schema (2020-12) that the whole answer satisfies as strict JSON."""
    must: list[Pattern] = Field(default_factory=list, max_length=20)
    """Patterns that are found in the answer."""
    must_not: list[Pattern] = Field(default_factory=list, max_length=20)
    """Patterns that are not."""
    reference: str = Field("", max_length=ANSWER_CHARS)
    """A good answer, for a judge."""
    rubric: str = Field("", max_length=4000)
    """What a judge looks at."""

    @model_validator(mode="after")
    def _closed_schema(self) -> Expected:
        if self.json_schema is None:
            return self
        try:
            jsonschema.Draft202012Validator.check_schema(self.json_schema)
        except (jsonschema.SchemaError, RecursionError) as error:
            raise ValueError(f"schema is not a JSON Schema, because {str(error)[:200]}; mend it") from None
        for key, value in _pairs(self.json_schema):
            if key in ("$ref", "$dynamicRef") and not str(value).startswith("#"):
                raise ValueError(f"schema refers to {value!r:.80}, which is outside of it; write it out")
            if key == "patternProperties":
                raise ValueError(
                    "schema has patternProperties, whose patterns have no bound on time; name the properties"
                )
            if key == "pattern" and isinstance(value, str):
                _sound(value)
        return self

    @property
    def by_program(self) -> bool:
        """Whether a program alone can tell."""
        return bool(self.rules or self.json_schema is not None or self.must or self.must_not)

    @property
    def by_judge(self) -> bool:
        """Whether a judge is asked too."""
        return bool(self.rubric or self.reference)

    def check(self, prompt: str, answer: str, task: Task | None = None) -> dict[str, bool]:
        """Every check that a program makes -> whether it holds.

        Args:
            prompt: the last user turn.
            answer: the whole answer.
            task: for the rule ``task``.

        Raises:
            DataError: a pattern took too long, or a rule needs a task that is not there.
        """
        text = answer[:ANSWER_CHARS]
        found = {f"rule:{n}:{rule.kind}": rule.holds(prompt, answer, task) for n, rule in enumerate(self.rules)}
        if self.json_schema is not None:
            found["schema"] = self._fits(answer)
        found |= {f"must:{n}": searched(pattern, text) for n, pattern in enumerate(self.must)}
        return found | {f"must_not:{n}": not searched(pattern, text) for n, pattern in enumerate(self.must_not)}

    def _fits(self, answer: str) -> bool:
        try:
            value = parse_strict(answer)
        except ValueError:
            return False
        return not any(self._validator.iter_errors(value))

    @cached_property
    def _validator(self) -> Any:
        def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[Any]:
            if isinstance(instance, str) and not searched(wanted, instance[:ANSWER_CHARS]):
                yield jsonschema.ValidationError(f"{instance!r:.80} does not match {wanted!r}")

        own = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})
        return own(self.json_schema, format_checker=own.FORMAT_CHECKER)

    def dumped(self) -> str:
        """As JSON, without what is empty; ``{}`` when nothing is expected."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_defaults=True), ensure_ascii=False)


def searched(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text.

    Raises:
        DataError: it took longer than ``PATTERN_SECONDS``.
    """
    import regex  # type: ignore[import-untyped]

    try:
        return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise DataError(
            f"pattern {pattern!r:.120} took too long: got no result after {PATTERN_SECONDS:.0f} s on {len(text)} characters, "
            "because it goes back and forth without end; write it without nested repeats"
        ) from None


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)
