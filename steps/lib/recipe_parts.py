"""What the recipes share: the shape of one, plans for estimates, and stages that pass items on.

All text of a teacher is data: it becomes a variable of a template, between fences, and never a template, a path or a setting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from steps.lib.config import Neutral, Section
from steps.lib.errors import ConfigError
from steps.lib.fences import fence_in, fence_of
from steps.lib.items import Answer, Item, Lost
from steps.lib.programs import Asker
from steps.lib.prompt_parts import LANGUAGES, PROMPT_VARIABLES, used_variables
from steps.lib.prompts import PromptFile
from steps.lib.rows import Prompt, Row
from steps.lib.sources import Source
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import counter

UNUSABLE = frozenset({"truncated", "empty", "unparsed", "schema", "refusal", "think_tag"})
"""Flags with which a reply is of no use to the next stage."""
LOST = "lost"
"""Variable of a spooled item that stands for a lost one."""
T = TypeVar("T", Item, Answer)


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


@dataclass(frozen=True)
class Work:
    """What a recipe is given to go through its stages."""

    asker: Asker
    """Asks the teachers."""
    rows: Iterable[Row]
    """Of the kind that the recipe reads; read once."""
    files: Mapping[str, PromptFile]
    """What ``RecipeBase.read`` gives."""
    samples: int
    """Answers of the last stage to each item."""
    drop_flags: Collection[str]
    """Flags that keep an answer of the last stage back."""


class RecipeBase(Section):
    """What every recipe has. Its fields that are paths of prompt files are read by ``read``."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Field of a prompt file ("" for the one that answers) -> variables that its templates have, beside those of the row."""
    needs: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Field of a prompt file -> variables that its user template must use, in both languages."""
    reads: ClassVar[Mapping[str, str]] = {}
    """Field of a prompt file -> field of its JSON answers that is read."""

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

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """Go through all stages."""
        raise NotImplementedError

    def read(self, answering: Path) -> dict[str, PromptFile]:
        """The prompt files by field, with the one that answers under ""; without `summarise` where nothing is to be shortened.

        Raises:
            ConfigError: every problem of every file: it cannot be read, or does not go with what its stage gives.
        """
        found: dict[str, PromptFile] = {}
        problems: list[str] = []
        for name, path in {"": answering, **self.files()}.items():
            if name == "summarise" and "" in found and not found[""].summarises:
                continue  # nothing would read it
            try:
                found[name] = PromptFile.read(path)
            except ConfigError as error:
                problems += error.problems
            else:
                problems += self._problems(name, path, found[name])
        if problems:
            raise ConfigError(problems)
        return found

    def _problems(self, name: str, path: Path, file: PromptFile) -> Iterator[str]:
        """What keeps a prompt file from its stage."""
        where = f"generate.{f'recipe.{name}' if name else 'prompt_file'} ({path})"
        shown = {"document", "count", "fence"}
        gives = shown if name == "summarise" else {*self.gives.get(name, ())}
        needs = shown - {"count"} if name == "summarise" else {*self.needs.get(name, ())}
        kind = getattr(self, "kind", "")
        texts = [file.texts(lang) for lang in LANGUAGES]
        used = frozenset.intersection(*(used_variables([user]) for _, user in texts))
        if lacks := sorted(needs - used):
            yield (
                f"{where} does not use {', '.join(lacks)}: got a template without, because the recipe {kind} works by it; "
                f"write {{{{ {lacks[0]} }}}} into `user`, in both languages"
            )
        strange = used_variables([text for both in texts for text in both], tested=False) - PROMPT_VARIABLES - gives
        if strange:
            known = ", ".join(sorted(gives)) or "none"
            yield (
                f"{where} uses {', '.join(sorted(strange))}: got a template with it, because the variables that the recipe "
                f"{kind} gives there are {known}; correct the name, or ask for it with `is defined`"
            )
        field, schema = self.reads.get(name), file.schema_ or {}
        if field and field not in schema.get("properties", {field: {}}):
            yield (
                f"{where}, schema is wrong: got the fields {', '.join(schema['properties'])}, because the recipe {kind} reads "
                f"{field} of the answer; name the field so"
            )
        if name and file.over_budget == "summarise":
            yield (
                f"{where}, over_budget is wrong: got summarise, because only the texts of the prompt file that answers are "
                "summarised; set it to error or drop_examples"
            )


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


def fenced(item: Item, **seen: Any) -> Item:
    """The item with these template variables and no others, and the fence around all of their texts and its prompt."""
    return replace(item, seen={**seen, "fence": fence_of(item.row.prompt, json.dumps(seen, sort_keys=True))})


def _packed(lost: Lost) -> Item:
    why = {"stage": lost.stage, "reason": lost.reason, "detail": lost.detail, "teacher": lost.teacher}
    return replace(lost.item, seen={**lost.item.seen, LOST: why})


def _unpacked(item: Item) -> Lost:
    return Lost(replace(item, seen={k: v for k, v in item.seen.items() if k != LOST}), **item.seen[LOST])
