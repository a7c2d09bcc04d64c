"""Prompt files: what a teacher is told, as values, and how its answer is read.

A prompt file holds a system text and a user template (Jinja2, sandboxed: a template can reach its variables and
nothing else), examples for zero-, few- or many-shot prompting, a chain of thought with its parser, and a JSON Schema
of the answer. Template variables: ``prompt``, ``lang`` and ``facts`` (the labels of the row).

Source of the chain of thought in examples: Wei et al., "Chain-of-Thought Prompting", arXiv 2201.11903, section 2.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
from pydantic import Field, PrivateAttr, field_validator, model_validator

from steps.lib.config import Section
from steps.lib.errors import DataError
from steps.lib.phrases import refusal
from steps.lib.prompt_parts import (
    ByLanguage,
    Example,
    check_schema,
    compile_template,
    estimate_tokens,
    read_examples,
    read_schema,
)
from steps.lib.rows import Prompt, messages
from steps.lib.rules import Language, language_of, parse_strict, read_values

_THINK = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)


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
        for lang in ("zh", "en") if self.mode != "none" else ():
            if not self.marker.of(lang).strip() or self.marker.of(lang) not in self.instruction.of(lang):
                raise ValueError(
                    f"instruction.{lang} does not name the marker {self.marker.of(lang)!r}; tell the teacher to "
                    "write that line before the answer"
                )
        return self


@dataclass(frozen=True)
class Rendered:
    """What is sent for one row."""

    messages: list[dict[str, str]]
    shots: int
    """Examples that were shown."""
    fewer: int = 0
    """Examples that were left out: over the context budget, or equal to the row's own prompt."""


@dataclass(frozen=True)
class Parsed:
    """A reply, read. ``flags``: empty, think_tag, unparsed, schema, refusal."""

    answer: str
    thought: str = ""
    flags: tuple[str, ...] = ()


class OverBudget(DataError):
    """A rendered prompt does not fit into the context budget."""


class PromptFile(Section):
    """A prompt file. Paths in it start at the working directory, like all paths of a configuration."""

    system: ByLanguage = ByLanguage(zh="", en="")
    """System text, sent as it is; empty: no system turn."""
    user: str | ByLanguage = "{{ prompt }}"
    """Template of the user turn, one for both languages or one each."""
    shots: int = Field(default=0, ge=0)
    """Examples shown before the prompt: 0 zero-shot, a few, or many."""
    examples: Path | None = None
    """JSONL file of examples: {"lang", "prompt", "answer"} and, where wanted, "thought" and "facts"."""
    pick: Literal["fixed", "random", "same_language"] = "same_language"
    """fixed: the first ones of the file; random: drawn by the row's prompt; same_language: drawn, of the row's
    language only."""
    chain_of_thought: ChainOfThought = ChainOfThought()
    answer_schema: dict[str, Any] | str | None = Field(default=None, alias="schema")
    """JSON Schema of the answer: written out, or "FILE" or "FILE#FIELD" of a YAML or JSON file. Always checked."""
    max_context_tokens: int | None = Field(default=None, gt=0)
    """Tokens that the rendered messages may have, by a careful estimate (UTF-8 bytes / 3, and 4 a turn); null: no
    limit."""
    over_budget: Literal["error", "drop_examples"] = "error"
    """What happens past the limit: error stops before the first request; drop_examples leaves out examples, last
    first."""

    _pool: list[Example] = PrivateAttr(default_factory=list)
    _templates: dict[Language, jinja2.Template] = PrivateAttr(default_factory=dict)
    _schema: dict[str, Any] | None = PrivateAttr(default=None)
    _validator: Any = PrivateAttr(default=None)

    @field_validator("user")
    @classmethod
    def _templates_work(cls, value: str | ByLanguage) -> str | ByLanguage:
        for text in (value,) if isinstance(value, str) else (value.zh, value.en):
            compile_template(text)
        return value

    @field_validator("examples")
    @classmethod
    def _examples_read(cls, value: Path | None) -> Path | None:
        if value is not None:
            read_examples(value)
        return value

    @field_validator("answer_schema")
    @classmethod
    def _schema_sound(cls, value: dict[str, Any] | str | None) -> dict[str, Any] | str | None:
        if value is not None:
            check_schema(read_schema(value))
        return value

    @model_validator(mode="after")
    def _assemble(self) -> PromptFile:
        if self.examples is not None:
            self._pool = read_examples(self.examples)
        user = self.user
        self._templates = {
            lang: compile_template(user if isinstance(user, str) else user.of(lang)) for lang in ("zh", "en")
        }
        if self.answer_schema is not None:
            self._schema = read_schema(self.answer_schema)
            self._validator = check_schema(self._schema)
        problems = self._problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        found: list[str] = []
        if self.shots and self.examples is None:
            found.append(f"shots is {self.shots} but examples names no file; name one, or set shots to 0")
        elif self.shots:
            for lang in ("zh", "en") if self.pick == "same_language" else (None,):
                have = sum(lang in (None, example.lang) for example in self._pool)
                if have < self.shots:
                    found.append(
                        f"shots is {self.shots} but examples ({self.examples}) has {have}"
                        f"{f' in {lang}' if lang else ''}; write more examples, or lower shots"
                    )
            if self.chain_of_thought.mode != "none" and (
                bare := [i for i, e in enumerate(self._pool, 1) if not e.thought]
            ):
                found.append(
                    f"examples ({self.examples}) line {bare[0]} ({len(bare)} in all) has no thought, but "
                    f"chain_of_thought.mode is {self.chain_of_thought.mode}; add one, or set shots to 0"
                )
            for number, example in enumerate(self._pool, 1) if self._validator is not None else ():
                if flag := self._shape(example.answer):
                    found.append(
                        f"examples ({self.examples}) line {number}: answer breaks the schema ({flag}); correct it"
                    )
        return found

    @classmethod
    def read(cls, path: Path) -> PromptFile:
        """Read and check a prompt file with its examples and its schema.

        Raises:
            ConfigError: naming the file and every wrong field.
        """
        return read_values(cls, path)

    @property
    def schema_(self) -> dict[str, Any] | None:
        """JSON Schema of the answer."""
        return self._schema

    @property
    def pool(self) -> list[Example]:
        """All examples of the file."""
        return self._pool

    def digest(self) -> str:
        """Digest of the content: values, examples and schema, but no path, comment or layout."""
        content = {
            **self.model_dump(mode="json", exclude={"examples", "answer_schema"}),
            "examples": [example.model_dump() for example in self._pool] if self.shots else [],
            "schema": self._schema,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def messages(self, row: Prompt, seed: int) -> list[dict[str, str]]:
        """The turns to send for one row. See ``render``, which also counts the examples."""
        return self.render(row, seed).messages

    def render(self, row: Prompt, seed: int, count: Callable[[str], int] | None = None) -> Rendered:
        """Render one row.

        Args:
            row: the prompt; its text decides which examples are drawn, so that other rows or their order do not
            matter. seed: seed of the run.
            count: tokens of a text, by a real tokenizer; without it a careful estimate.

        Raises:
            OverBudget: it does not fit into ``max_context_tokens``.
            DataError: the template uses a fact that the row lacks.
        """
        lang: Language = language_of(row.prompt) if row.lang == "other" else row.lang
        system = "\n".join(text for text in (self.system.of(lang).strip(), self._instruction(lang)) if text)
        head = messages(("system", system)) if system else []
        tail = messages(("user", self._user(lang, row.prompt, json.loads(row.facts), f"row {row.id}")))
        chosen, fewer = self._choose(row, lang, seed)
        while True:
            turns = [turn for example in chosen for turn in self._turns(example)]
            whole = head + turns + tail
            size = sum(4 + (count or estimate_tokens)(turn["content"]) for turn in whole)
            if self.max_context_tokens is None or size <= self.max_context_tokens:
                return Rendered(whole, len(chosen), fewer)
            if self.over_budget == "error" or not chosen:
                raise OverBudget(
                    f"prompt of row {row.id} is too long: got about {size} tokens with {len(chosen)} examples, because "
                    f"max_context_tokens is {self.max_context_tokens}; shorten it, raise the limit, or set "
                    "over_budget: drop_examples"
                )
            chosen, fewer = chosen[:-1], fewer + 1

    def parse(self, text: str) -> Parsed:
        """Read a reply. Nothing is guessed: what does not have the asked shape is flagged ``unparsed`` or
        ``schema``."""
        flags: list[str] = []
        thought, answer = "", text.strip()
        if (found := _THINK.match(answer)) or answer.startswith("<think>"):
            flags.append("think_tag")
            thought = (found.group(1) if found else answer.removeprefix("<think>")).strip()
            answer = answer[found.end() :].strip() if found else ""
        whole = answer
        if self.chain_of_thought.mode != "none" and answer:
            said, answer, clear = self._split(answer)
            thought = "\n".join(part for part in (thought, said) if part)
            if not clear:
                flags.append("unparsed")
        if not answer:
            flags.append("empty")
        elif "unparsed" not in flags:
            if flag := self._shape(answer):
                flags.append(flag)
            if (self._schema is None or flag) and refusal(answer):
                flags.append("refusal")
        mode = self.chain_of_thought.mode
        return Parsed(whole if mode == "keep" else answer, thought if mode == "apart" else "", tuple(flags))

    def _instruction(self, lang: Language) -> str:
        return self.chain_of_thought.instruction.of(lang).strip() if self.chain_of_thought.mode != "none" else ""

    def _choose(self, row: Prompt, lang: Language, seed: int) -> tuple[list[Example], int]:
        pool = [example for example in self._pool if self.pick != "same_language" or example.lang == lang]
        others = [example for example in pool if example.prompt.strip() != row.prompt.strip()]
        wanted = min(self.shots, len(others))
        if self.pick == "fixed":
            return others[:wanted], self.shots - wanted
        draw = random.Random(f"{seed}\n{row.prompt}")
        return draw.sample(others, wanted), self.shots - wanted

    def _turns(self, example: Example) -> list[dict[str, str]]:
        user = self._user(example.lang, example.prompt, example.facts, f"example {example.prompt[:40]!r}")
        answer = example.answer
        if self.chain_of_thought.mode != "none":
            answer = f"{example.thought}\n{self.chain_of_thought.marker.of(example.lang)}\n{answer}"
        return messages(("user", user), ("assistant", answer))

    def _user(self, lang: Language, prompt: str, facts: dict[str, Any], where: str) -> str:
        try:
            return self._templates[lang].render(prompt=prompt, lang=lang, facts=facts)
        except Exception as error:  # a template is code: it can raise anything
            raise DataError(
                f"user template fails on {where}: got {error}, because the row has the facts {sorted(facts)}; "
                "correct the template, or test with `is defined`"
            ) from None

    def _split(self, text: str) -> tuple[str, str, bool]:
        """Thought, answer, and whether exactly one marker line stood between them."""
        marks = [re.escape(mark) for mark in (self.chain_of_thought.marker.zh, self.chain_of_thought.marker.en)]
        found = list(re.finditer(rf"^[ \t]*(?:{'|'.join(marks)})[ \t]*[:：]?", text, re.MULTILINE))
        if len(found) != 1:
            return "", text, False
        return text[: found[0].start()].strip(), text[found[0].end() :].strip(), True

    def _shape(self, answer: str) -> str:
        """The flag of an answer that is not as the schema says: unparsed, schema, or none."""
        if self._validator is None:
            return ""
        try:
            value = parse_strict(answer)
        except ValueError:
            return "unparsed"
        return "" if self._validator.is_valid(value) else "schema"
