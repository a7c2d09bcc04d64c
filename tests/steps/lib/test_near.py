"""ROUGE-L and the index over it, against the textbook and against comparing all."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from recipe_runs import (
    HAN,
    WORDS,
)

from steps.lib.near import NearIndex, rouge_l


def longest_common(one: list[str], other: list[str]) -> int:
    """The textbook's table: oracle of the bit vectors."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, left in enumerate(one):
        for column, right in enumerate(other):
            table[row + 1][column + 1] = (
                table[row][column] + 1 if left == right else max(table[row][column + 1], table[row + 1][column])
            )
    return table[-1][-1]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_the_index_finds_what_comparing_all_finds(threshold: float) -> None:
    draw, index, texts, hits = random.Random(3), NearIndex(threshold), list[list[str]](), 0
    for number in range(250):
        if texts and draw.random() < 0.5:
            words = list(draw.choice(texts))
            words[draw.randrange(len(words))] = draw.choice(WORDS + list(HAN))
        else:
            words = draw.choices(WORDS if draw.random() < 0.5 else HAN, k=draw.randint(1, 12))
        text = " ".join(words)
        scores = [2 * longest_common(words, other) / (len(words) + len(other)) for other in texts]
        assert not scores or rouge_l(text, " ".join(texts[-1])) == scores[-1]
        best = max(scores, default=0.0)
        found = index.nearest(text)
        if best >= threshold:
            assert found is not None and (found.name, found.score) == (str(scores.index(best)), best)
            hits += 1
        else:
            assert found is None
        index.add(str(number), text)
        texts.append(words)
    assert hits > 2 and len(index) == 250


def test_near_texts_are_told_alike_in_both_languages() -> None:
    index = NearIndex(0.7)
    for name, text in (
        ("en", "Write a short letter to the landlord."),
        ("zh", "给房东写一封简短的信。"),
        ("mark", "?!"),
        ("empty", ""),
    ):
        index.add(name, text)
    assert index.nearest("write a SHORT letter to my landlord") is not None
    assert index.nearest("请给房东写一封简短的信") is not None
    assert (
        index.nearest("给校长写一首很长的诗") is None and index.nearest("Bake a cake for the landlord's wife.") is None
    )
    assert index.nearest("?!") is not None and index.nearest("...") is None


@pytest.mark.parametrize("letters", [HAN, ""])
def test_an_earlier_text_takes_little_memory(letters: str) -> None:
    """Texts of 40 characters or 20 words: the tokens, twice 4 bytes each, and the name; no text, and no string a token."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(500)]
    texts = [
        "".join(draw.choices(letters, k=40)) if letters else " ".join(draw.choices(words, k=20)) for _ in range(4000)
    ]
    tracemalloc.start()
    try:
        index = NearIndex(0.7)
        for number, text in enumerate(texts):
            index.add(f"row-{number}", text)
        taken = tracemalloc.get_traced_memory()[0] / len(texts)
    finally:
        tracemalloc.stop()
    assert 100 < taken < 900, taken
