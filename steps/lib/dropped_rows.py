"""Dropped rows for people: what stood in them, and where they came from. One row group at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.errors import DataError
from steps.lib.rows import Dropped

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_PLACE = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+)(?: [^:]+)?: ")
KINDS = {
    "messages": "chats",
    "chosen": "pairs",
    "completion": "thumbs",
    "answer": "candidates",
    "prompt": "prompts",
    "text": "documents",
}
"""Field of a row -> kind of the row; the first that it has."""


@dataclass(frozen=True)
class Shown:
    """A dropped row as it is shown."""

    id: str
    kind: str
    """documents, prompts, chats, pairs, thumbs, candidates; empty: its fields are none that tell."""
    source: str
    lang: str
    place: str
    """File and line, where they are known: of rows that could not be read."""
    reason: str
    detail: str
    text: str

    @classmethod
    def of(cls, row: Dropped, most: int | None = None) -> Shown:
        """A row, its text cut after ``most`` characters."""
        place, detail = _PLACE.match(row.detail), row.detail
        kept = _parsed(row.row)
        kind = next((kind for name, kind in KINDS.items() if isinstance(kept, dict) and name in kept), "")
        text = text_of(row.row)
        if most is not None and len(text) > most:
            text = f"{text[:most]}… ({len(text):,} characters)"
        where = f"{place['file']}:{place['line']}" if place else ""
        return cls(row.id, kind, row.source, row.lang, where, row.reason, detail, text)

    def page(self) -> dict[str, Any]:
        """As plain JSON."""
        return dict(self.__dict__)


def dropped_rows(path: Path, reason: str | None = None, kind: str | None = None) -> Iterator[Dropped]:
    """Rows of a dropped.parquet, in order.

    Args:
        reason: only those with this reason.
        kind: only those of this kind (see ``Shown.kind``).

    Raises:
        DataError: the file is missing or cannot be read.
    """
    for record in _records(path):
        if reason is None or record["reason"] == reason:
            row = Dropped.model_validate(record)
            if kind is None or Shown.of(row, 0).kind == kind:
                yield row


def reasons_of(path: Path) -> Counter[str]:
    """Reason -> rows that a dropped.parquet has of it.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    return Counter(record["reason"] for record in _records(path, ["reason"]))


def _records(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: got {error!s:.160}, because it is missing or damaged; build the step that wrote it again"
        ) from None


def text_of(row: str) -> str:
    """What stood in a row: its text, or its turns; of a line that was no row, the line. Half of a surrogate pair is an escape."""
    return _text_of(row).encode("utf-8", "backslashreplace").decode()


def _text_of(row: str) -> str:
    kept = _parsed(row)
    if not isinstance(kept, dict):
        return kept if isinstance(kept, str) else row
    if isinstance(kept.get("text"), str):
        return str(kept["text"])
    names = ("messages", "prompt", "answer", "completion", "chosen", "rejected")
    said = [line for name in names for line in _lines(name, kept.get(name))]
    return "\n".join(said) if said else row


def visible(text: str) -> str:
    """Text of others fit for a page: what would move a cursor, change colours or turn lines round becomes U+FFFD."""
    return CONTROLS.sub("\ufffd", text.expandtabs(4))


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [f"{name}: {value}"]
    if not isinstance(value, list):
        return []
    label = "" if name in ("messages", "prompt") else f"{name} "
    return [
        f"{label}{turn['role']}: {turn['content']}"
        for turn in value
        if isinstance(turn, dict) and {"role", "content"} <= turn.keys()
    ]


def _parsed(row: str) -> Any:
    try:
        return json.loads(row)
    except (ValueError, RecursionError):
        return row
