"""Prompt files: what a teacher is told, as values, and how its answer is read.

A prompt file holds a system text and a user template (Jinja2, sandboxed: a template can reach its variables and
nothing else), examples for zero-, few- or many-shot prompting, a chain of thought with its parser, and a JSON Schema
of the answer. It is YAML, or Markdown with a front matter (steps/lib/prompt_markdown.py): the same content has the same
digest. Template variables: ``prompt``, ``lang``, ``facts`` (the labels of the row) and those that the file names in
``variables``, which a recipe gives for a row. Values are never rendered as templates.

Source of the chain of thought in examples: Wei et al., "Chain-of-Thought Prompting", arXiv 2201.11903, section 2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jinja2
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from steps.lib.config import Added, Section, key_view
from steps.lib.errors import DataError
from steps.lib.examples import Example, Pick, Pool, read_examples
from steps.lib.prompt_markdown import read_markdown
from steps.lib.prompt_parts import (
    LANGUAGES,
    PROMPT_VARIABLES,
    ByLanguage,
    ChainOfThought,
    check_schema,
    compile_template,
    read_schema,
)
from steps.lib.rendering import OverBudget, OverPolicy, Rendered, Renderer, Texts, language_for
from steps.lib.replies import Parsed, read_answer, read_reply
from steps.lib.rows import Prompt, messages
from steps.lib.rules import Language, check_values, language_of, read_values

__all__ = ["OverBudget", "Parsed", "PromptFile", "Rendered"]

T = TypeVar("T", str | ByLanguage, ByLanguage)
OWN_LANGUAGE: tuple[Pick, ...] = ("same_language", "similar", "diverse")
"""Ways to pick that take examples of the row's language, unless the file says otherwise."""


class PromptFile(Section):
    """A prompt file. Paths in it start at the working directory, like all paths of a configuration."""

    variables: Annotated[list[str], Added] = []
    """Names, beside prompt, lang and facts, that the templates use: what a stage of a recipe gives for each row, such as
    document or persona."""
    system: ByLanguage = ByLanguage(zh="", en="")
    """Template of the system text; empty: no system turn."""
    user: str | ByLanguage = "{{ prompt }}"
    """Template of the user turn, one for both languages or one each."""
    shots: int = Field(default=0, ge=0)
    """Examples shown before the prompt: 0 zero-shot, a few, or many."""
    examples: Path | None = None
    """JSONL file of examples: {"lang", "prompt", "answer"} and, where wanted, "thought", "facts" and "seen" (values of
    ``variables``)."""
    pick: Pick = "same_language"
    """fixed: the first ones of the file; random: drawn by the row's prompt; same_language: drawn, of the row's
    language only; similar: the nearest by their characters, nearest last; diverse: far from each other, the same for
    all rows."""
    examples_language: Annotated[Literal["row", "any"] | None, Added] = None
    """row: only examples of the row's language; any: of all; null: any for fixed and random, row for the others."""
    chain_of_thought: ChainOfThought = ChainOfThought()
    answer_schema: dict[str, Any] | str | None = Field(default=None, alias="schema")
    """JSON Schema of the answer: written out, or "FILE" or "FILE#FIELD" of a YAML or JSON file. Always checked."""
    repairs: Annotated[int, Added] = Field(default=0, ge=0)
    """Times that a teacher is asked again when its answer has not the asked form, with its words and the reason."""
    repair: Annotated[ByLanguage, Added] = ByLanguage(
        zh="这个回答不能用：{{ problem }}。请把完整的回答重写一遍，只按要求的格式，不要解释，也不要道歉。",
        en="This answer cannot be used: {{ problem }}. Write the whole answer again, in the asked form only, without any "
        "explanation or apology.",
    )
    """Template of the turn that asks again; its variable ``problem`` says what is wrong, and where."""
    max_context_tokens: int | None = Field(default=None, gt=0)
    """Tokens that the rendered messages may have: by the teacher's tokenizer, or else one a UTF-8 byte; null: no limit."""
    over_budget: OverPolicy = "error"
    """What happens past the limit: error: the row is an error; drop_examples: fewer examples are shown; summarise: the
    longest text of the row is summarised first, where the recipe can."""

    _pool: list[Example] = PrivateAttr(default_factory=list)
    _renderer: Renderer = PrivateAttr()
    _repair: dict[Language, jinja2.Template] = PrivateAttr(default_factory=dict)
    _schema: dict[str, Any] | None = PrivateAttr(default=None)
    _validator: Any = PrivateAttr(default=None)
    _path: Path | None = PrivateAttr(default=None)

    @field_validator("variables")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        if bad := [name for name in value if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or name in PROMPT_VARIABLES]:
            raise ValueError(
                f"{bad[0]!r} cannot be a name: write small letters, digits and _, and not prompt, lang, facts"
            )
        return value

    @field_validator("user", mode="before")
    @classmethod
    def _one_text_or_both(cls, value: object) -> object:
        lacking = [lang for lang in LANGUAGES if isinstance(value, Mapping) and not str(value.get(lang) or "").strip()]
        if lacking or (isinstance(value, str) and not value.strip()):
            raise ValueError(
                f"there is no text{' in ' + ' and '.join(lacking) if lacking else ''}; write one for both languages, or zh and en"
            )
        return value

    @field_validator("system", "user")
    @classmethod
    def _templates_work(cls, value: str | ByLanguage, info: ValidationInfo) -> str | ByLanguage:
        return _compiled(value, PROMPT_VARIABLES | set(info.data.get("variables", ())))

    @field_validator("repair")
    @classmethod
    def _repair_works(cls, value: ByLanguage) -> ByLanguage:
        return _compiled(value, {"problem"})

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
        self._repair = {lang: compile_template(self.repair.of(lang), {"problem"}) for lang in LANGUAGES}
        if self.answer_schema is not None:
            self._schema = read_schema(self.answer_schema)
            self._validator = check_schema(self._schema)
        if self.examples is not None:
            self._pool = read_examples(self.examples)
        texts = Texts(self.system, self.user, self.chain_of_thought, self.variables)
        if problems := self._problems(texts):
            raise ValueError("; ".join(problems))
        self._renderer = Renderer(
            texts,
            self._pool,
            Pool(self._pool, self.pick, self._own_language) if self.shots else None,
            self.shots,
            self.max_context_tokens,
            self.over_budget,
            [texts.example(example) for example in self._pool] if self.shots else [],
        )
        return self

    @property
    def _own_language(self) -> bool:
        return self.examples_language == "row" or (self.examples_language is None and self.pick in OWN_LANGUAGE)

    def _problems(self, texts: Texts) -> list[str]:
        found: list[str] = []
        if self.pick == "same_language" and self.examples_language == "any":
            found.append(
                "pick is same_language but examples_language is any; set pick to random for examples of any language"
            )
        if self.shots and self.examples is None:
            found.append(f"shots is {self.shots} but examples names no file; name one, or set shots to 0")
        elif self.shots:
            for lang in LANGUAGES if self._own_language else (None,):
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
            for number, example in enumerate(self._pool, 1):
                where = f"examples ({self.examples}) line {number}"
                if self._validator is not None:
                    reading, problem = read_answer(example.answer, self._validator)
                    if problem or reading is None or reading.repairs:
                        flag = "schema" if reading and not reading.repairs else "unparsed"
                        found.append(f"{where}: answer breaks the schema ({flag}); correct it")
                try:
                    texts.example(example)
                except DataError as error:
                    found.append(f"{where}: {error}")
        return found

    @classmethod
    def read(cls, path: Path) -> PromptFile:
        """Read and check a prompt file with its examples and its schema.

        Raises:
            ConfigError: naming the file and every wrong field.
        """
        found = check_values(cls, read_markdown(path), path) if path.suffix == ".md" else read_values(cls, path)
        found._path = path
        return found

    @property
    def schema_(self) -> dict[str, Any] | None:
        """JSON Schema of the answer."""
        return self._schema

    @property
    def sent_schema(self) -> dict[str, Any] | None:
        """JSON Schema that an endpoint can be held to; None where the teacher thinks before it answers."""
        return self._schema if self.chain_of_thought.mode == "none" else None

    @property
    def summarises(self) -> bool:
        """Whether texts that do not fit are shortened by a teacher first."""
        return self.over_budget == "summarise" and self.max_context_tokens is not None

    @property
    def pool(self) -> Sequence[Example]:
        """All examples of the file."""
        return self._pool

    def texts(self, lang: Language) -> tuple[str, str]:
        """Templates of the system text and of the user turn in a language."""
        return self.system.of(lang), self.user if isinstance(self.user, str) else self.user.of(lang)

    def digest(self) -> str:
        """Digest of the content: values, examples and schema, but no path, comment or layout."""
        values = key_view(self)
        content = {
            **{name: value for name, value in values.items() if name not in ("examples", "answer_schema")},
            "examples": [_content(example) for example in self._pool] if self.shots else [],
            "schema": self._schema,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def messages(self, row: Prompt, seed: int) -> list[dict[str, str]]:
        """The turns to send for one row. See ``render``, which also counts the examples."""
        return self.render(row, seed).messages

    def render(
        self,
        row: Prompt,
        seed: int,
        count: Callable[[str], int] | None = None,
        seen: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Render one row.

        Args:
            row: the prompt; its text decides which examples are chosen, so that other rows or their order do not
            matter. seed: seed of the run.
            count: tokens (``tokens.counter`` of a teacher, or a function of a text); without it, at most.
            seen: values of ``variables``, and where it is to be shown otherwise, ``prompt``.

        Raises:
            OverBudget: it does not fit into ``max_context_tokens``.
            DataError: a template uses a fact or a variable that the row lacks.
        """
        try:
            return self._renderer.render(row, seed, count, seen)
        except DataError as error:
            if self._path is not None:
                error.args = (f"{self._path}: {error}",)
            raise

    def similarity(self, row: Prompt, example: Example) -> float:
        """Lexical similarity (steps/lib/examples.py) of a row and an example of the file, 0 to 1."""
        pool = self._renderer.pool
        return pool.similarity(row.prompt, language_for(row), self._pool.index(example)) if pool else 0.0

    def parse(self, text: str) -> Parsed:
        """Read a reply. See ``replies.read_reply``."""
        return read_reply(text, self.chain_of_thought, self._validator)

    def retry(
        self, turns: Sequence[dict[str, str]], text: str, parsed: Parsed, lang: Language | None = None
    ) -> list[dict[str, str]]:
        """The turns that ask again: what was sent, the teacher's words, and what is wrong with them.

        Args:
            turns: what was sent.
            text: the reply, as it came.
            parsed: how it was read; it has a ``problem``.
            lang: language of the row; without it, that of the last turn.
        """
        if parsed.problem is None:
            raise ValueError("an answer in the asked form is not asked for again")
        lang = lang or language_of(turns[-1]["content"])
        note = self._repair[lang].render(problem=parsed.problem.of(lang))
        if not text.strip():  # servers refuse an empty turn, and templates two turns of one role
            return [*map(dict, turns[:-1]), {**turns[-1], "content": f"{turns[-1]['content']}\n\n{note}"}]
        return [*map(dict, turns), *messages(("assistant", text), ("user", note))]


def _compiled(value: T, names: Collection[str]) -> T:
    """A text, or one in each language, whose templates compile; an error names the language."""
    for lang, text in {"": value}.items() if isinstance(value, str) else value:
        try:
            compile_template(str(text), names)
        except ValueError as error:
            raise ValueError(f"{lang}: {error}" if lang else str(error)) from None
    return value


def _content(example: Example) -> dict[str, Any]:
    return example.model_dump(exclude=None if example.seen else {"seen"})
