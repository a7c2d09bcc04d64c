"""Documents in pieces: they cover it, in order, and fit."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from recipe_runs import (
    HAN,
    WORDS,
)

from steps.lib.chunks import chunks


@pytest.mark.parametrize("most", [1, 7, 40, 150])
@pytest.mark.parametrize("overlap", [0, 0.3])
def test_chunks_cover_a_document_in_order(most: int, overlap: float) -> None:
    draw = random.Random(5)
    marks = {"en": [". ", "? ", ".\n\n", "; ", ", ", " "], "zh": ["。", "？”", "。\n\n", "；", "，", ""]}
    texts = ["", "   ", "a", "3.14 is pi. example.com is a host.", "x" * 500, "字" * 300, " \n lead. \n\n tail \n"]
    for lang, words in (("en", WORDS), ("zh", list(HAN))):
        for _ in range(6):
            texts.append("".join(draw.choice(words) + (draw.choice(marks[lang]) if draw.random() < 0.4 else " " * (lang == "en")) for _ in range(150)))  # fmt: skip
    count: Callable[[str], int] = lambda text: len(text.encode()) // 3 + bool(len(text.encode()) % 3)  # noqa: E731
    for text in texts:
        found = list(chunks(text, count, most, int(most * overlap)))
        covered = set()
        for one in found:
            assert text[one.start : one.end] == one.text == one.text.strip() != ""
            assert (
                one.tokens == count(one.text)
                and (one.tokens <= most or len(one.text) == 1)
                and 0 <= one.fresh <= one.tokens
            )
            covered |= set(range(one.start, one.end))
        assert all(place in covered or letter.isspace() for place, letter in enumerate(text))
        for one, other in zip(found, found[1:], strict=False):
            assert one.start < other.start and one.end < other.end
            assert count(text[other.start : one.end].strip()) <= most * overlap or other.start >= one.end
    if most == 40 and not overlap:
        pieces = [
            one.text for one in chunks("One is 3.14 or so. Two? Three is here and stays. 四是这样。五也是。", count, 9)
        ]
        assert all(piece[-1] in ".?。" for piece in pieces) and "".join(pieces).count("3.14") == 1
