"""From a row to the messages that are sent for it: texts, examples, and the context budget."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2

from steps.lib.errors import DataError
from steps.lib.examples import Example, Pool
from steps.lib.prompt_parts import (
    LANGUAGES,
    PROMPT_VARIABLES,
    ByLanguage,
    ChainOfThought,
    compile_template,
    used_variables,
)
from steps.lib.rows import Prompt, messages
from steps.lib.rules import Language, language_of
from steps.lib.tokens import BOUND, Turns, whole

_MARKS = re.compile(r"\{[{%#]")
_BARE = re.compile(r"\{\{ *(\w+) *\}\}")
OverPolicy = Literal["error", "drop_examples", "summarise"]


@dataclass(frozen=True)
class Rendered:
    """What is sent for one row."""

    messages: list[dict[str, str]]
    shots: int
    """Examples that were shown."""
    fewer: int = 0
    """Examples that were left out: over the context budget, or equal to the row's own prompt."""
    tokens: int = 0
    """Tokens of the messages, by the counter that ``render`` was given, or else at most."""
    examples: tuple[Example, ...] = ()
    """The examples that were shown, in their order."""
    lang: Language = "en"
    """Language of the texts."""


class OverBudget(DataError):
    """A rendered prompt does not fit into the context budget.

    Args:
        message: for people.
        size: tokens of the prompt.
        limit: tokens it may have.
        variable: under ``summarise`` the longest text among the variables that the templates use, such as document; empty
            where no shorter text would help. A shorter one goes to ``render`` in ``seen``, also for ``prompt``.
        text: its text.
        room: tokens that are left for it.
    """

    def __init__(self, message: str, size: int, limit: int, variable: str = "", text: str = "", room: int = 0) -> None:
        super().__init__(message)
        self.size, self.limit, self.variable, self.text, self.room = size, limit, variable, text, room


class Texts:
    """The texts around a row: system and user turn, in both languages, compiled.

    Args:
        system: template of the system text.
        user: template of the user turn.
        chain: what is added to the system text.
        variables: names that the templates may use.
    """

    def __init__(
        self, system: ByLanguage, user: str | ByLanguage, chain: ChainOfThought, variables: Sequence[str]
    ) -> None:
        names = PROMPT_VARIABLES | set(variables)
        self._chain = chain
        self._system: dict[Language, jinja2.Template | str] = {}
        self._user: dict[Language, jinja2.Template] = {}
        self._bare: dict[Language, str] = {}
        self._used: dict[Language, frozenset[str]] = {}
        for lang in LANGUAGES:
            above, below = system.of(lang).strip(), user if isinstance(user, str) else user.of(lang)
            # most system texts are no templates, and then every row has the same
            self._system[lang] = compile_template(above, names) if _MARKS.search(above) else above
            self._user[lang] = compile_template(below, names)
            self._used[lang] = used_variables([above, below])
            if only := _BARE.fullmatch(below):
                self._bare[lang] = only[1]

    def head(self, lang: Language, values: Mapping[str, Any], where: str) -> list[dict[str, str]]:
        """The system turn, where there is one.

        Raises:
            DataError: the template uses what is not there.
        """
        system = self._system[lang]
        above = system if isinstance(system, str) else _filled("system", system, values, where).strip()
        text = "\n".join(part for part in (above, self._chain.told(lang)) if part)
        return messages(("system", text)) if text else []

    def user(self, lang: Language, values: Mapping[str, Any], where: str) -> dict[str, str]:
        """The user turn.

        Raises:
            DataError: the template uses what is not there.
        """
        alone = values.get(self._bare[lang]) if lang in self._bare else None
        if isinstance(alone, str):  # "{{ prompt }}" needs no template engine
            return {"role": "user", "content": alone}
        return {"role": "user", "content": _filled("user", self._user[lang], values, where)}

    def example(self, example: Example) -> list[dict[str, str]]:
        """The turns of an example: what was asked, and its answer with the thought before it."""
        values = {"prompt": example.prompt, **example.seen, "lang": example.lang, "facts": example.facts}
        answer = example.answer
        if self._chain.mode != "none":
            answer = f"{example.thought}\n{self._chain.marker.of(example.lang)}\n{answer}"
        where = f"example {example.prompt[:40]!r}"
        return [self.user(example.lang, values, where), {"role": "assistant", "content": answer}]

    def longest(self, lang: Language, values: Mapping[str, Any]) -> tuple[str, str]:
        """Name and text of the longest text that the templates show."""
        shown = [(name, value) for name, value in values.items() if name in self._used[lang] and name != "lang"]
        texts = [(name, value) for name, value in shown if isinstance(value, str)]
        return max(texts, key=lambda one: len(one[1].encode("utf-8", "surrogatepass")), default=("", ""))


@dataclass(frozen=True)
class Renderer:
    """Renders rows: all that is the same for every row is made once."""

    texts: Texts
    examples: Sequence[Example] = ()
    pool: Pool | None = None
    """How examples are chosen; None: none is shown."""
    shots: int = 0
    limit: int | None = None
    """Tokens that the messages may have."""
    over: OverPolicy = "error"
    turns: list[list[dict[str, str]]] = field(default_factory=list)
    """The turns of each example."""

    def render(
        self, row: Prompt, seed: int, count: Callable[[str], int] | None, seen: Mapping[str, Any] | None
    ) -> Rendered:
        """See ``PromptFile.render``."""
        lang = language_for(row)
        values = {"prompt": row.prompt, **(seen or {}), "lang": lang, "facts": json.loads(row.facts)}
        where = f"row {row.id}"
        head, last = self.texts.head(lang, values, where), self.texts.user(lang, values, where)
        chosen = self.pool.choose(row.prompt, lang, self.shots, seed) if self.pool else []
        sent = self._sent(head, chosen, last)
        size = whole(count, sent)
        if self.limit is not None and size > self.limit:
            fewer = self._fewer(self.limit, head, chosen, last, count)
            if fewer is None:
                longest = self.texts.longest(lang, values) if self.over == "summarise" else ("", "")
                raise self._too_long(self.limit, row.id, size, len(chosen), count, *longest)
            chosen, sent = fewer, self._sent(head, fewer, last)
            size = whole(count, sent)
        shown = tuple(self.examples[index] for index in chosen)
        return Rendered(sent, len(chosen), self.shots - len(chosen), size, shown, lang)

    def _sent(self, head: Turns, chosen: Sequence[int], last: dict[str, str]) -> list[dict[str, str]]:
        return [*head, *(dict(turn) for index in chosen for turn in self.turns[index]), last]

    def _fewer(
        self, limit: int, head: Turns, chosen: Sequence[int], last: dict[str, str], count: Callable[[str], int] | None
    ) -> list[int] | None:
        """As many of the examples as fit; None where that is not wanted, or does not help."""
        if self.over != "drop_examples" or not self.pool:
            return None
        keep = self.pool.keep
        fits = bisect.bisect_right(
            range(len(chosen)), limit, key=lambda n: whole(count, self._sent(head, keep(chosen, n), last))
        )
        return keep(chosen, fits - 1) if fits else None

    def _too_long(
        self, limit: int, row: str, size: int, shots: int, count: Callable[[str], int] | None, name: str, text: str
    ) -> OverBudget:
        room = limit - size + (count or BOUND)(text)
        if room < 1:
            name, text, room = "", "", 0
        more = ", or set over_budget: drop_examples" if self.over == "error" and shots else ""
        return OverBudget(
            f"prompt of row {row} is too long: got {size} tokens with {shots} examples, because max_context_tokens is "
            f"{limit}; shorten it, or raise the limit{more}",
            size,
            limit,
            name,
            text,
            room if name else 0,
        )


def _filled(what: str, template: jinja2.Template, values: Mapping[str, Any], where: str) -> str:
    try:
        return template.render(values)
    except Exception as error:  # a template is code: it can raise anything
        given = sorted({*values} - PROMPT_VARIABLES)
        raise DataError(
            f"{what} template fails on {where}: got {error}, because it has the facts {sorted(values['facts'])} and the "
            f"variables {given}; correct the template, or test with `is defined`"
        ) from None


def language_for(row: Prompt) -> Language:
    """The language in which a row is asked."""
    return language_of(row.prompt) if row.lang == "other" else row.lang
