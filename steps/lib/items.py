"""What stages of a recipe hand to each other: items to ask about, what a teacher said of each, and what was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steps.lib.ledger import Reply
from steps.lib.prompts import Parsed, Rendered
from steps.lib.rows import Prompt


@dataclass(frozen=True)
class Item:
    """One thing to ask about."""

    id: str
    """Unique in a stage."""
    row: Prompt
    """Its text is ``prompt`` in templates and decides all draws."""
    sample: int = 0
    seen: Mapping[str, Any] = field(default_factory=dict)
    """More template variables, plain JSON: document, persona, answer, critique ..."""
    trail: tuple[Mapping[str, Any], ...] = ()
    """Evidence so far, plain JSON, one entry for each stage that was passed."""


@dataclass(frozen=True)
class Answer:
    """What a teacher said about an item, read."""

    item: Item
    parsed: Parsed
    reply: Reply
    teacher: str
    request: str
    """Key in the request ledger."""
    stage: str
    prompt_file: str
    """Digest."""
    rendered: Rendered
    flags: tuple[str, ...] = ()

    def item_with(
        self, *, id: str = "", row: Prompt | None = None, note: Mapping[str, Any] | None = None, **seen: Any
    ) -> Item:
        """The item of the next stage: this answer goes on its trail.

        Args:
            id: new id, where one answer becomes several items; "" keeps it.
            row: new row, where the answer is a new prompt.
            note: more for the trail's entry, plain JSON.
            seen: more template variables.
        """
        entry: dict[str, Any] = {
            "stage": self.stage,
            "teacher": self.teacher,
            "request": self.request,
            "prompt_file": self.prompt_file,
            "answer": self.parsed.answer,
            **({"flags": list(self.flags)} if self.flags else {}),
            **(note or {}),
        }
        item = self.item
        return replace(
            item, id=id or item.id, row=row or item.row, seen={**item.seen, **seen}, trail=(*item.trail, entry)
        )


@dataclass(frozen=True)
class Lost:
    """No answer came, or a flag keeps it back, or it did not fit."""

    item: Item
    stage: str
    reason: str
    """Reason code, the same that the row ledger counts."""
    detail: str
    teacher: str = ""


class Spool:
    """Items on disk, one JSON line each; can be gone through again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Item]:
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                row, *rest = json.loads(line)
                item_id, sample, seen, trail = rest
                yield Item(item_id, Prompt.model_construct(**row), sample, seen, tuple(trail))
