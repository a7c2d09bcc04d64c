"""``personal`` on the rows of steps: the row with its texts redacted, and a dropped row with its raw text redacted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from steps.lib.personal import Personal, Redacted, redact
from steps.lib.personal_records import redact_raw
from steps.lib.rows import Dropped, Message, Row

R = TypeVar("R", bound=Row)

TEXTS = ("text", "prompt", "messages", "chosen", "rejected", "completion", "answer", "thought", "facts", "evidence")
"""Fields with what people and teachers wrote, in the order in which placeholders are numbered. Ids, sources and keys are names."""


def redact_rows(rows: Sequence[R], config: Personal) -> list[tuple[R, Redacted]]:
    """Each row with its texts redacted, and what was found. A row without personal data comes back as it is."""
    found = redact([[*_texts(row)] for row in rows], config)
    return [(_with(row, done.texts) if done.counts else row, done) for row, done in zip(rows, found, strict=True)]


def redact_dropped(dropped: Dropped, config: Personal) -> Dropped:
    """A dropped row as it may be kept: its raw record and its evidence redacted, unless ``keep_raw``."""
    if config.keep_raw:
        return dropped
    clean = {"row": redact_raw(dropped.row, config), "detail": redact_raw(dropped.detail, config)}
    changed = {name: text for name, text in clean.items() if text != getattr(dropped, name)}
    return dropped.model_copy(update=changed) if changed else dropped


def _texts(row: Row) -> Iterator[str]:
    for name in TEXTS:
        value = getattr(row, name, None)
        if isinstance(value, str):
            yield value
        elif value:
            yield from (turn.content for turn in value)


def _with(row: R, texts: Sequence[str]) -> R:
    """The row with these texts in the places of its own."""
    left = iter(texts)
    changed: dict[str, Any] = {}
    for name in TEXTS:
        value = getattr(row, name, None)
        if isinstance(value, str):
            changed[name] = next(left)
        elif value:
            changed[name] = [Message(role=turn.role, content=next(left)) for turn in value]
    return row.model_copy(update=changed)
