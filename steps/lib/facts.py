"""What passes over all rows know of each row: numbers in numpy arrays, some hundred bytes a row, in place of the row.

Units: a document is compared whole. A conversation or pair is compared with held-out data and split by its user turns,
and with its like by user turns and answers; the system turn counts for neither.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, Thumb
from steps.lib.signatures import sketch

if TYPE_CHECKING:
    from numpy.typing import NDArray

TURNS: dict[type[Row], tuple[str, ...]] = {
    Chat: ("messages",),
    Pair: ("prompt", "chosen", "rejected"),
    Thumb: ("prompt", "completion"),
}
"""Rows with turns -> the fields that hold them."""
LANGS = ("zh", "en", "other")
Facts = dict[str, Any]
"""Name -> array with one entry a row; ``units`` alone has ``units_of_row`` entries a row."""


def turns_of(row: Row) -> list[Message] | None:
    """Every turn of a conversation, pair or thumb; None for a row without turns."""
    names = next((fields for kind, fields in TURNS.items() if isinstance(row, kind)), None)
    return None if names is None else [turn for name in names for turn in getattr(row, name)]


def texts_of(row: Row) -> list[str]:
    """Every text of a row."""
    if isinstance(row, Text):
        return [row.text]
    return [row.prompt] if isinstance(row, Prompt) else [turn.content for turn in turns_of(row) or ()]


def whole(row: Row) -> str:
    """What near-copies of the same kind are told by: the document; user turns and answers."""
    turns = turns_of(row)
    return asked(row) if turns is None else "\n".join(turn.content for turn in turns if turn.role != "system")


def asked(row: Row) -> str:
    """What is compared with held-out data and keeps a group together: the document; the user turns."""
    if isinstance(row, Text):
        return row.text
    if isinstance(row, Prompt):
        return row.prompt
    return "\n".join(turn.content for turn in turns_of(row) or () if turn.role == "user")


def asked_units(row: Row) -> list[str]:
    """Each user turn alone, and all together last: a held-out prompt may stand in the middle of a conversation."""
    turns = [turn.content for turn in turns_of(row) or () if turn.role == "user"]
    return [*turns, asked(row)] if len(turns) > 1 else [asked(row)]


def normal(text: str) -> str:
    """What exact copies have in common: the text without case, white space as one blank. Signs stay: 1.5 is not 15, a+b not a-b."""
    return " ".join(text.split()).casefold()


def fold(text: str) -> str:
    """Letters and digits only, without case: equal for texts that differ by spaces and punctuation."""
    return "".join(re.findall(r"[^\W_]+", text.casefold()))


def facts_of(rows: Sequence[Row], findings: Sequence[int]) -> Facts:
    """Facts of some rows.

    Args:
        rows: repaired.
        findings: a number for the filter that each fails; 0 for none.
    """
    import numpy as np

    units = [[folded(unit) for unit in asked_units(row)] for row in rows]
    number = len(rows)
    said = sketch([whole(row) for row in rows])
    found: Facts = {}
    if not (rows and isinstance(rows[0], Text)):  # of a document the two are the same
        asking = sketch([asked(row) for row in rows])
        found = {"asked_signature": asking.signature, "asked_shingles": asking.counts}
    return found | {
        "id": np.fromiter((hash_of(row.id) for row in rows), np.uint64, number),
        "content": _bytes((_sha("\x00".join(map(normal, texts_of(row))))[:16] for row in rows), 16),
        "asked": _bytes((_sha(asked(row)) for row in rows), 32),
        "units": np.fromiter((unit for some in units for unit in some), np.uint64),
        "units_of_row": np.fromiter(map(len, units), np.int32, number),
        "users": np.fromiter((_users(row) for row in rows), np.int32, number),
        "chars": np.fromiter((len(whole(row)) for row in rows), np.int32, number),
        "lang": np.fromiter((LANGS.index(row.lang) for row in rows), np.int8, number),
        "label": np.fromiter((isinstance(row, Thumb) and row.label for row in rows), np.bool_, number),
        "score": np.fromiter((row.margin if isinstance(row, Pair) else 0.0 for row in rows), np.float32, number),
        "finding": np.fromiter(findings, np.int16, number),
        "whole_signature": said.signature,
        "whole_shingles": said.counts,
    }


def hash_of(text: str) -> int:
    """64 bits of a text, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def folded(text: str) -> int:
    """``hash_of`` of what ``fold`` leaves; 0 when that is nothing."""
    return (hash_of(left) or 1) if (left := fold(text)) else 0


def _users(row: Row) -> int:
    return sum(turn.role == "user" for turn in turns_of(row) or ())


def _sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _bytes(values: Any, width: int) -> NDArray[Any]:
    """(N, width) bytes."""
    import numpy as np

    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, width)
