"""What the recipes share: the shape of one, plans for estimates, stages that pass items on, and what is kept of new prompts.

All text of a teacher is data: it becomes a variable of a template, between fences, and never a template, a path or a setting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from steps.lib.config import Neutral, Section
from steps.lib.dedup import tokens
from steps.lib.errors import ConfigError
from steps.lib.fences import fence_in, fence_of
from steps.lib.language import detect
from steps.lib.phrases import special_token
from steps.lib.programs import Answer, Asker, Item, Lost
from steps.lib.prompt_parts import used_variables
from steps.lib.prompts import PromptFile
from steps.lib.quality import Finding
from steps.lib.rows import Prompt, Row
from steps.lib.rules import Language, language_of, parse_strict
from steps.lib.sources import Source
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import counter

UNUSABLE = frozenset({"truncated", "empty", "unparsed", "schema", "refusal", "think_tag"})
"""Flags with which a reply is of no use to the next stage."""
LOST = "lost"
"""Variable of a spooled item that stands for a lost one."""
T = TypeVar("T", Item, Answer)
_CLAUSE = re.compile(r"[^\n。！？!?；;：:.]+")
_LISTED = re.compile(r"^[ \t]*(?:(?:[\[【(（]?\d{1,3}[\]】)）.、．:：]|[-*•])[ \t]*)+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a recipe, for estimates."""

    name: str
    prompt_file: Path
    per_row: float
    """Requests for each row that is read, at most; samples count in the last stage only."""


class Asking(Protocol):
    """What a recipe reads of the step's configuration."""

    @property
    def prompts(self) -> Sequence[Source]: ...
    @property
    def teachers(self) -> Sequence[Teacher]: ...
    @property
    def prompt_file(self) -> Path: ...
    @property
    def samples(self) -> int: ...


class RecipeBase(Section):
    """What every recipe has. Its fields that are paths of prompt files are read by ``files``."""

    needs: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Field of a prompt file ("" for the one that answers) -> variables that its template must use."""

    summarise: Annotated[Path, Neutral] = Path("configs/prompts/summarise.yaml")
    """What makes a text shorter that does not fit, where ``over_budget`` of the prompt file that answers is summarise."""

    @property
    def rows(self) -> type[Row]:
        """Rows that the sources are read as."""
        return Prompt

    def files(self) -> dict[str, Path]:
        """Prompt files of the stages other than the one that answers, by field."""
        return {name: value for name, value in self if isinstance(value, Path)}

    def stages(self, config: Asking) -> list[StagePlan]:
        """The stages, with the requests that each needs at most."""
        raise NotImplementedError

    def run(
        self, asker: Asker, rows: Iterable[Row], answering: PromptFile, samples: int, drop_flags: Collection[str]
    ) -> Iterator[Answer | Lost]:
        """Go through all stages.

        Args:
            asker: asks the teachers.
            rows: of the kind ``rows``, read once.
            answering: the prompt file that answers.
            samples: answers of the last stage to each item.
            drop_flags: flags that keep an answer of the last stage back.

        Raises:
            ConfigError: a prompt file does not do what its stage needs; before the first request.
        """
        raise NotImplementedError

    def read(self, answering: PromptFile) -> dict[str, PromptFile]:
        """The prompt files by field, with the answering one under "".

        Raises:
            ConfigError: every problem of every file.
        """
        found: dict[str, PromptFile] = {"": answering}
        problems: list[str] = []
        for name, path in self.files().items():
            try:
                found[name] = PromptFile.read(path)
            except ConfigError as error:
                problems.append(str(error))
        for name, prompt_file in found.items():
            if name and prompt_file.over_budget == "summarise":
                problems.append(
                    f"{self.files()[name]}: over_budget is wrong: got summarise, because only the texts of the prompt "
                    f"file that answers are summarised, and recipe.{name} does not answer; set it to error or drop_examples"
                )
            if lacks := sorted(set(self.needs.get(name, ())) - used(prompt_file)):
                where = f"recipe.{name} ({self.files()[name]})" if name else "prompt_file"
                problems.append(
                    f"generate.{where} does not use {', '.join(lacks)}: got a template without, because the recipe "
                    f"{getattr(self, 'kind', '')} works by it; write {{{{ {lacks[0]} }}}} into `user`"
                )
        if problems:
            raise ConfigError(problems)
        return found


class NewPrompts(RecipeBase):
    """What recipes that make prompts ask of each."""

    min_chars: int = 4
    """Characters (letters, digits, CJK) a new prompt has at least."""
    max_chars: int = 4000
    """Characters a new prompt has at most."""
    same_language: bool = True
    """Drop a new prompt that is not in the language of the row it comes from."""

    def finding(self, text: str, answer: Answer, shown: Sequence[str]) -> Finding | None:
        """Why a new prompt is not kept, or None.

        Args:
            text: the new prompt.
            answer: it stands in.
            shown: the material that the teacher saw, whose words it may use.
        """
        visible = sum(map(len, tokens(text)))
        if visible < self.min_chars:
            return "too_short", f"{visible} characters, at least {self.min_chars}"
        if len(text) > self.max_chars:
            return "too_long", f"{len(text)} characters, at most {self.max_chars}"
        if mark := special_token(text):
            return "special_token", mark
        lang = lang_of(answer.item.row)
        if self.same_language and (got := detect(text)) != lang:
            return "wrong_language", f"{got}, not {lang}"
        instruction = answer.rendered.messages[-1]["content"]
        if mark := copied_words(text, shown, instruction, str(answer.item.seen.get("fence", ""))):
            return "copied_words", mark
        return None


class Passed:
    """What a stage passed on and what it lost, on disk, so that the next stage can start when this one is done.

    Args:
        asker: has the disk.
        name: of the spool.
        results: items for the next stage, and losses; gone through at once.
    """

    def __init__(self, asker: Asker, name: str, results: Iterable[Item | Lost]) -> None:
        self._all = asker.spool(name, (_packed(one) if isinstance(one, Lost) else one for one in results))

    def __iter__(self) -> Iterator[Item | Lost]:
        """All, in the order they came."""
        return (_unpacked(item) if LOST in item.seen else item for item in self._all)

    def items(self) -> Iterator[Item]:
        """Those that go on."""
        return (item for item in self._all if LOST not in item.seen)

    def lost(self) -> Iterator[Lost]:
        """Those that do not."""
        return (_unpacked(item) for item in self._all if LOST in item.seen)


def counted(asker: Asker, kind: str, results: Iterable[T | Lost]) -> Iterator[T | Lost]:
    """Results of a stage, with what the recipe itself made, kept and dropped counted as rows of ``kind``.

    A loss of another stage than ``kind`` is the asker's, which has counted it.
    """
    rows = asker.rows
    for one in results:
        if not isinstance(one, Lost):
            rows.took(kind)
            rows.gave(f"kept {kind}")
        elif one.stage == kind:
            rows.took(kind)
            rows.drop(kind, one.reason)
        yield one
    rows.balance({kind: [f"kept {kind}"]})


def copied_words(text: str, shown: Sequence[str], instruction: str, fence: str) -> str:
    """Words of the instruction in a text that should be the teacher's own; "" where there are none.

    A whole clause of the instruction counts (6 words or 8 Chinese characters, or more), and its fence; words of what was shown in
    the instruction do not.
    """
    if mark := fence_in(text, fence):
        return mark
    for material in shown:
        instruction = instruction.replace(material, "\n")
    for clause in _CLAUSE.findall(instruction):
        words = str(clause).strip()
        if (
            len(tokens(words)) >= (6 if words.isascii() else 8)
            and words in text
            and not any(words in one for one in shown)
        ):
            return words
    return ""


def unfenced(kind: str, answers: Iterable[Answer | Lost]) -> Iterator[Answer | Lost]:
    """Answers without those that repeat the fence around what they were shown."""
    for answer in answers:
        if isinstance(answer, Answer) and (
            mark := fence_in(answer.parsed.answer, str(answer.item.seen.get("fence", "")))
        ):
            yield Lost(answer.item, kind, "copied_words", mark, answer.teacher)
        else:
            yield answer


def most_tokens(teachers: Sequence[Teacher]) -> Callable[[str], int]:
    """Tokens of a text, by the teacher that makes the most of it: what fits one fits all."""
    counters = [counter(teacher) for teacher in teachers]
    return lambda text: max(count(text) for count in counters)


def used(prompt_file: PromptFile) -> frozenset[str]:
    """Variables that the user template reads, in every language."""
    user = prompt_file.user
    found = [used_variables([text]) for text in ([user] if isinstance(user, str) else [user.zh, user.en])]
    return frozenset.intersection(*found)


def lang_of(row: Prompt) -> Language:
    """Language in which a row is worked on."""
    return language_of(row.prompt) if row.lang == "other" else row.lang


def fenced(item: Item, **seen: Any) -> Item:
    """The item with these template variables and no others, and the fence around all of their texts and its prompt."""
    return replace(item, seen={**seen, "fence": fence_of(item.row.prompt, json.dumps(seen, sort_keys=True))})


def listed(answer: str, field: str, schema: bool) -> list[str]:
    """The texts of a list that was asked for: a JSON object's field where the prompt file has a schema, else numbered lines.

    Numbers and dashes at the front of a line are no part of its text. Where no line has one, those that end with a question mark
    are the list; nothing else is taken for an entry.
    """
    if not schema:
        numbered = [found.strip() for found in _LISTED.findall(answer)]
        return numbered or [line.strip() for line in answer.splitlines() if line.rstrip().endswith(("?", "？"))]
    try:
        value = parse_strict(answer)
    except ValueError:
        return []
    entries = value.get(field) if isinstance(value, dict) else None
    return [one.strip() for one in entries if isinstance(one, str) and one.strip()] if isinstance(entries, list) else []


def child_of(row: Prompt, *, id: str, prompt: str) -> Prompt:
    """A new prompt that comes from a row: its source and language, none of its labels, which are of the old prompt."""
    return Prompt(id=id, lang=row.lang, source=row.source, prompt=prompt)


def _packed(lost: Lost) -> Item:
    why = {"stage": lost.stage, "reason": lost.reason, "detail": lost.detail, "teacher": lost.teacher}
    return replace(lost.item, seen={**lost.item.seen, LOST: why})


def _unpacked(item: Item) -> Lost:
    return Lost(replace(item, seen={k: v for k, v in item.seen.items() if k != LOST}), **item.seen[LOST])
