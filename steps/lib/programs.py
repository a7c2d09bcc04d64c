"""Items in, answers out: a stage of a recipe asks teachers about items, and reads what they say.

A reply that breaks its schema is mended here where that is certain (flag ``repaired``), then asked for again, as often as the
prompt file says, with its own words and the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from steps.lib.ledger import Reply
from steps.lib.prompts import Parsed, PromptFile, Rendered
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


class Asker:
    """Asks teachers about items."""

    def ask(
        self,
        stage: str,
        prompt_file: PromptFile,
        items: Iterable[Item],
        *,
        samples: int = 1,
        drop_flags: Collection[str] = (),
    ) -> Iterator[Answer | Lost]:
        """Answers in the order of the items.

        Args:
            stage: name in rows, metrics and the request ledger.
            prompt_file: what teachers are told.
            items: pulled as requests are made.
            samples: answers to each item, numbered by ``Item.sample``; 1 keeps the item's own number.
            drop_flags: flags that turn an answer into a ``Lost``.
        """
        raise NotImplementedError

    def spool(self, name: str, items: Iterable[Item]) -> Collection[Item]:
        """The items on disk; can be gone through again and again."""
        raise NotImplementedError
