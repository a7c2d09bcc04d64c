"""Shingle hashes and signatures against sets of strings."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from steps.lib import shingles, signatures
from steps.lib.shingles import blocks, tokens
from steps.lib.signatures import BINS, Sketch, sketch

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.-\n\x00_'"
WIDE = "一丁七万 的是在了，。ÀÉß éПривет мирΣΑΣ άς İıJ\u0307Ａｂ１２ｶﾅ かなカナ한글 𠀀𠀁😀\ud83d\ude00\u200b١٢٣\u13a0\uab70\ua77dKÅ"


def windows_of(texts: list[str]) -> list[list[int]]:
    """The hashes of each text, from the blocks."""
    found: dict[int, list[int]] = {}
    for block in blocks(texts):
        beyond = set(block.beyond.tolist())
        for place, number in enumerate(block.texts):
            at = range(int(block.firsts[place]), int(block.firsts[place + 1]))
            assert number not in found
            found[number] = [int(block.windows[one]) for one in at if one not in beyond]
            assert len(found[number]) == block.counts[place]
    return [found[number] for number in range(len(texts))]


def strings_of(text: str) -> list[tuple[str, ...]]:
    parts = tokens(text)
    return [tuple(parts[place : place + 5]) for place in range(len(parts) - 4)]


def odd_texts() -> list[str]:
    draw = random.Random(2)
    texts = [
        "",
        " ",
        "a",
        "订单",
        "one two three four",
        "一二三四五",
        "a" * 200 + " b c d " + "é" * 90 + " e",
        "x" * 64 + " y" * 9,
    ]
    for size in (5, 20, 80, 300):
        texts += ["".join(draw.choices(LETTERS, k=size)) for _ in range(60)]
        texts += ["".join(draw.choices(LETTERS + WIDE * 3, k=size)) for _ in range(120)]
        texts += [
            " ".join("".join(draw.choices("abé", k=draw.randint(1, 40))) for _ in range(size // 5)) for _ in range(30)
        ]
    return texts


def test_tokens_are_words_and_single_han_characters() -> None:
    assert tokens("My iPhone-15，坏了！ 2x") == ["my", "iphone", "15", "坏", "了", "2x"]
    assert tokens("ΣΑΣ İ Привет") == ["σας", "i", "привет"]


@pytest.mark.parametrize(("most", "letters"), [(62, 60_000), (5, 200)])
def test_hashes_stand_for_strings_one_to_one(monkeypatch: pytest.MonkeyPatch, most: int, letters: int) -> None:
    monkeypatch.setattr(shingles, "BLOCK_TEXTS", most)
    monkeypatch.setattr(shingles, "BLOCK_LETTERS", letters)
    texts = odd_texts()
    meaning: dict[int, tuple[str, ...]] = {}
    for text, hashes in zip(texts, windows_of(texts), strict=True):
        strings = strings_of(text)
        assert len(strings) == len(hashes), text
        for number, string in zip(hashes, strings, strict=True):
            assert meaning.setdefault(number, string) == string
    assert len(set(meaning.values())) == len(meaning) > 10_000


def test_a_word_has_one_hash_in_ascii_and_in_other_texts() -> None:
    words = "My order number 12345678901234567 is LATE and thequickbrownfoxjumpsoverthelazydog again"
    plain, beside, wide = windows_of([words, words + " 退货", words + " café ПРИВЕТ"])
    assert plain == beside[: len(plain)] == wide[: len(plain)]


def test_a_line_without_a_gap_is_one_cheap_token() -> None:
    texts = ["x" * 1_000_000 + " a b c d", "x" * 999_999 + " a b c d", "é" * 500_000 + " a b c d"]
    one, other, third = windows_of(texts)
    assert len(one) == len(other) == len(third) == 1 and len({one[0], other[0], third[0]}) == 3


def test_signatures_estimate_jaccard_for_short_and_long_texts() -> None:
    draw, errors = random.Random(1), list[float]()
    for size in (6, 12, 30, 60, 200, 600):
        pairs = []
        for _ in range(40):
            words = ["".join(draw.choices("abcdefghijkl", k=4)) for _ in range(size + 4)]
            cut = int(size * draw.uniform(0, 0.4))
            pairs.append((" ".join(words), " ".join(words[cut:] + words[:3])))
        ones, others = (sketch([pair[side] for pair in pairs]) for side in (0, 1))
        for (one, other), mine, theirs in zip(pairs, ones.signature, others.signature, strict=True):
            left, right = set(strings_of(one)), set(strings_of(other))
            errors.append(float((mine == theirs).mean()) - len(left & right) / len(left | right))
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.05 and np.max(np.abs(errors)) < 0.17


def test_a_signature_hangs_on_its_own_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "_BATCH", 1000)
    texts = odd_texts() * 2  # more than one batch
    whole = sketch(texts)
    assert len(whole) == len(texts) > 1000
    assert (whole.signature[: len(texts) // 2] == whole.signature[-len(texts) // 2 :]).all()
    alone = Sketch.joined(sketch([text]) for text in texts[:300])
    assert (alone.signature == whole.signature[:300]).all() and (alone.counts == whole.counts[:300]).all()
    assert (whole.take([5, 3]).counts == whole.counts[[5, 3]]).all()
    none = Sketch.joined([])
    assert len(none) == 0 and none.signature.shape == (0, BINS)


def test_a_text_of_few_tokens_has_no_signature() -> None:
    one = sketch(["", "退货", "a b c d", "a b c d e"])
    assert one.counts.tolist() == [0, 0, 0, 1] and one.signature.any(axis=1).tolist() == [False, False, False, True]


def test_signatures_are_equal_in_another_process() -> None:
    code = "from steps.lib.signatures import sketch; print(sketch(['我的订单在哪里', 'where is my order now']).signature.tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(sketch(["我的订单在哪里", "where is my order now"]).signature.tolist())
