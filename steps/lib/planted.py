"""Garbled copies of answers: a judge that does not prefer the whole one cannot see what it judges.

The copy has the same words and the same length, so that neither gives it away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from steps.lib.asking import draw
from steps.lib.figures import Item
from steps.lib.rules import language_of

GARBLED = 24
"""Characters that an answer needs to be garbled."""


def planted_among(rows: Sequence[Item], count: int) -> list[tuple[Item, str]]:
    """Up to ``count`` rows whose answer is long enough, drawn by their ids, each with the garbled copy of its answer."""
    usable = [row for row in rows if len(row.output.strip()) >= GARBLED]
    usable.sort(key=lambda row: (draw("planted", row.item_id), row.item_id))
    broken = [(row, garbled(row.output, row.item_id)) for row in usable[:count]]
    return [(row, text) for row, text in broken if text != row.output]


def garbled(text: str, key: str) -> str:
    """The same words of an answer in another order (characters, where it is Chinese or one word); drawn by ``key``."""
    spaced = language_of(text) == "en" and len(text.split()) > 3
    parts = text.split() if spaced else list(text)
    random.Random(f"garbled {key}").shuffle(parts)
    return (" " if spaced else "").join(parts)
