import functools
import random

import pytest

from steps.lib.dedup import clusters, near_pairs, near_to, shingles, tokens


def words(rng: random.Random, lang: str, number: int) -> list[str]:
    if lang == "zh":
        return [chr(rng.randrange(0x4E00, 0x4E00 + 3000)) for _ in range(number)]
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(number)]


def text_of(words_: list[str], lang: str) -> str:
    return ("" if lang == "zh" else " ").join(words_)


def edited(rng: random.Random, words_: list[str], lang: str, count: int) -> list[str]:
    copy = list(words_)
    for place in rng.sample(range(len(copy)), count):
        copy[place] = words(rng, lang, 1)[0]
    return copy


@functools.cache
def string_shingles(text: str) -> set[tuple[str, ...]]:
    """The string twin: what the hashes stand for."""
    parts = tokens(text)
    return {tuple(parts[place : place + 5]) for place in range(len(parts) - 4)}


def jaccard(one: str, other: str) -> float:
    left, right = string_shingles(one), string_shingles(other)
    return len(left & right) / len(left | right) if left | right else 0.0


ODD = [
    "",
    " ",
    "a",
    "订单",
    "one two three four",
    "一二三四五",
    "İstanbul İİ two three four five",
    "a\x00b\nc d e f",
    "\ud83d half a pair two three four",
    "𠀀𠀁𠀂𠀃𠀄𠀅",
    "Ｆｕｌｌ width ｗｏｒｄｓ here and there",
]


def test_tokens_are_words_and_single_han_characters() -> None:
    assert tokens("My iPhone-15，坏了！ 2x") == ["my", "iphone", "15", "坏", "了", "2x"]


def test_hashes_count_the_same_shingles_as_strings() -> None:
    rng = random.Random(1)
    texts = ODD + [text_of(words(rng, lang, size), lang) for lang in ("zh", "en") for size in range(3, 40, 3)] * 10
    cut = shingles(texts)  # more than one block of 200
    assert len(cut) == len(texts) > 200
    assert [len(cut.unique(number)) for number in range(len(texts))] == [len(string_shingles(text)) for text in texts]


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_planted_copies_are_found_with_their_exact_similarity(lang: str, threshold: float) -> None:
    rng = random.Random(7)
    bases = [words(rng, lang, 120) for _ in range(60)]
    texts = [text_of(base, lang) for base in bases]
    texts += [text_of(edited(rng, base, lang, rng.choice((0, 1, 2, 4, 6))), lang) for base in bases]
    want = {(i, j): jaccard(texts[i], texts[j]) for i in range(120) for j in range(i + 1, 120)}
    want = {pair: score for pair, score in want.items() if score >= threshold}
    got = {(i, j): score for i, j, score in near_pairs(texts, threshold)}
    assert set(got) <= set(want) and len(got) >= 0.98 * len(want) > 30
    assert all(got[pair] == pytest.approx(want[pair]) for pair in got)


def test_short_and_empty_texts_are_never_near_anything() -> None:
    assert near_pairs(["", "", "a b", "a b", "退货", "退货"], 0.1) == []
    assert near_pairs([], 0.5) == near_pairs(["alone with five words here"], 0.5) == []
    assert near_to(["", "退货"], ["", "退货"], 0.1) == near_to([], ["a b c d e f"], 0.1) == {}


def test_a_crowd_of_copies_does_not_hide_the_held_out_one() -> None:
    rng = random.Random(3)
    base = words(rng, "en", 60)
    crowd = [text_of(edited(rng, base, "en", 1), "en") for _ in range(80)]
    guard = [text_of(words(rng, "en", 60), "en"), text_of(base, "en")]
    found = near_to(crowd, guard, 0.5)
    assert set(found) == set(range(80))
    assert all(found[number] == (1, pytest.approx(jaccard(crowd[number], guard[1]))) for number in found)


def test_near_to_equals_brute_force_at_one_half() -> None:
    rng = random.Random(5)
    bases = [words(rng, lang, 30) for lang in ("zh", "en") for _ in range(40)]
    langs = ["zh"] * 40 + ["en"] * 40
    guard = [text_of(base, lang) for base, lang in zip(bases, langs, strict=True)]
    texts = [text_of(edited(rng, base, lang, rng.randrange(5)), lang) for base, lang in zip(bases, langs, strict=True)]
    want = {number for number, text in enumerate(texts) if any(jaccard(text, held) >= 0.5 for held in guard)}
    assert set(near_to(texts, guard, 0.5)) == want
    assert 0 < len(want) < len(texts)


def test_clusters_join_chains_under_their_first_member() -> None:
    assert clusters(6, [(3, 4, 0.9), (1, 3, 0.8), (0, 5, 1.0)]) == [0, 1, 2, 1, 1, 0]
