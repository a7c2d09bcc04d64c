"""Texts without the rules, tables and charts that are drawn in them: before what repeats itself is counted."""

from __future__ import annotations

import re
from collections.abc import Sequence


def without_frames(text: str) -> str:
    """The text with a blank for each run of one mark or of blanks: rules, tables and charts are drawn with them."""
    return _FRAME.sub(" ", text)


def all_without_frames(texts: Sequence[str]) -> list[str]:
    """``without_frames`` of each; only those in which four equal characters stand side by side are gone through."""
    import numpy as np

    if not texts:
        return []
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    same = letters[1:] == letters[:-1]
    places = np.flatnonzero(same[2:] & same[1:-1] & same[:-2])
    ends = np.cumsum([len(text) for text in texts])
    framed = {int(number) for number in np.unique(np.searchsorted(ends, places, "right"))}
    return [without_frames(text) if number in framed else text for number, text in enumerate(texts)]


_FRAME = re.compile(r"([^\w])\1{3,}")
