"""A source in shards: some thousand rows at a time are read, their characters repaired, and the filters asked; each row alone.

A finished shard is a plain value that a step can keep; a run that goes on takes it from there. The rows that come out, and their
order, are the same for every size of a shard.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from steps.lib.quality import Filters, Finding, judge_chat, judge_text, normalise
from steps.lib.rows import Chat, Dropped, Message, Pair, Prompt, Row, Text, Thumb
from steps.lib.sources import Rejected
from steps.lib.work_ledger import Recall

R = TypeVar("R", bound=Row)
T = TypeVar("T")

TURNS: dict[type[Row], tuple[str, ...]] = {
    Chat: ("messages",),
    Pair: ("prompt", "chosen", "rejected"),
    Thumb: ("prompt", "completion"),
}
"""Rows with turns -> the fields that hold them."""


@dataclass
class Shard(Generic[R]):
    """What became of some rows of a source."""

    rows: list[R] = field(default_factory=list)
    findings: list[Finding | None] = field(default_factory=list)
    """For each of the rows, the filter it fails."""
    dropped: list[tuple[Dropped, int]] = field(default_factory=list)
    """What could not be taken, and how many rows each stands for."""
    ids: list[str] = field(default_factory=list)
    """Ids of the rows that were read; none where the source needs none to go on."""

    def keep(self, row: R, finding: Finding | None) -> None:
        """Take a row."""
        self.rows.append(row)
        self.findings.append(finding)

    def dump(self) -> dict[str, Any]:
        """The shard as plain JSON."""
        return {
            "rows": [row.model_dump() for row in self.rows],
            "findings": self.findings,
            "dropped": [(row.model_dump(), count) for row, count in self.dropped],
            "ids": self.ids,
        }

    @classmethod
    def load(cls, value: Mapping[str, Any], kind: type[R]) -> Shard[R]:
        """The shard of rows of ``kind`` that was dumped."""
        return cls(
            [kind.model_validate(row) for row in value["rows"]],
            [(finding[0], finding[1]) if finding else None for finding in value["findings"]],
            [(Dropped.model_validate(row), count) for row, count in value["dropped"]],
            value["ids"],
        )


def shards(
    rows: Callable[[int, list[str]], Iterable[T]],
    size: int,
    work: Callable[[Iterable[T]], Shard[R]],
    kind: type[R],
    facts: Mapping[str, Any],
    recall: Recall,
) -> Iterator[Shard[R]]:
    """A source in shards of ``size`` rows, in order.

    Args:
        rows: opens the source behind so many rows, which had these ids; not called while finished shards are there.
        size: rows of a shard.
        work: what is done to the rows of one shard; it looks at each row alone.
        kind: type of the rows that come out.
        facts: content of the source, how it is read, and all that ``work`` depends on.
        recall: keeps finished shards.
    """
    reader: Iterator[T] | None = None
    place, ids = 0, list[str]()

    def compute(start: int) -> dict[str, Any]:
        nonlocal reader, place
        if reader is None:
            reader, place = iter(rows(start, ids)), start
        taken = list(itertools.islice(reader, start - place, start - place + size))
        place = start + len(taken)
        return {"last": len(taken) < size, **work(taken).dump()}

    for start in itertools.count(0, size):
        value = recall({**facts, "from": start, "to": start + size}, functools.partial(compute, start))
        shard = Shard.load(value, kind)
        yield shard
        if value["last"]:
            return
        if reader is None:
            ids += shard.ids


def taken(rows: Iterable[R | Rejected], step: str, filters: Filters | None) -> Shard[R]:
    """Rows of a source with their characters repaired, and the filter each fails; what could not be read is dropped.

    Args:
        filters: None for rows that are held out, which no filter judges.
    """
    shard = Shard[R]()
    for row in rows:
        if isinstance(row, Rejected):
            shard.dropped.append((row.dropped(step), row.count))
            continue
        shard.ids.append(row.id)
        clean = repaired(row)
        if all(texts_of(clean)):
            shard.keep(clean, judge(clean, filters) if filters else None)
        else:
            detail = "nothing is left but white space and control characters"
            shard.dropped.append((set_aside(step, row, "empty", detail), 1))
    return shard


def repaired(row: R) -> R:
    """The row with ``normalise`` on every text of it."""
    if isinstance(row, Text):
        return row.model_copy(update={"text": normalise(row.text)})
    if isinstance(row, Prompt):
        return row.model_copy(update={"prompt": normalise(row.prompt)})
    names = next(fields for kind, fields in TURNS.items() if isinstance(row, kind))
    turns = {name: [turn.model_copy(update={"content": normalise(turn.content)}) for turn in getattr(row, name)]
             for name in names}  # fmt: skip
    return row.model_copy(update=turns)


BAD_ANSWERS = {
    "echo": False, "think_tags": False, "identity": False, "refusal": False, "prompt_leak": False, "repetition": None,
    "languages": (),
}  # fmt: skip
"""Filters that an answer with its thumb down need not pass."""


def judge(row: Row, filters: Filters) -> Finding | None:
    """The first filter a row fails. A rejected answer may be bad, it is there for that; but it must differ.

    So may an answer with its thumb down; but none may hold a special token or be too long. A refusal that was liked is no fault.
    """
    if isinstance(row, Text):
        return judge_text(row.text, filters)
    if isinstance(row, Pair):
        if [turn.content for turn in row.chosen] == [turn.content for turn in row.rejected]:
            return "equal_pair", "chosen and rejected are the same"
        return judge_chat([*row.prompt, *row.chosen], filters.model_copy(update={"refusal": False}))
    if isinstance(row, Thumb):
        whole = [*row.prompt, *row.completion]
        if row.label:
            return judge_chat(whole, filters.model_copy(update={"refusal": False}))
        return judge_chat(row.prompt, filters) or judge_chat(whole, filters.model_copy(update=BAD_ANSWERS))
    return judge_chat(row.messages, filters) if isinstance(row, Chat) else None


def set_aside(step: str, row: Row, reason: str, detail: str) -> Dropped:
    """A row that is kept back, whole, with the reason."""
    return Dropped(
        id=row.id,
        lang=row.lang,
        source=row.source,
        step=step,
        reason=reason,
        detail=detail,
        row=row.model_dump_json(),
    )


def turns_of(row: Row) -> list[Message] | None:
    """Every turn of a conversation, pair or thumb; None for a row without turns."""
    names = next((fields for kind, fields in TURNS.items() if isinstance(row, kind)), None)
    return None if names is None else [turn for name in names for turn in getattr(row, name)]


def texts_of(row: Row) -> list[str]:
    """Every text of a row."""
    if isinstance(row, Text):
        return [row.text]
    return [row.prompt] if isinstance(row, Prompt) else [turn.content for turn in turns_of(row) or ()]
