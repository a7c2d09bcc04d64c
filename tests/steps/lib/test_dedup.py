import functools
import random
from itertools import combinations

import numpy as np
import pytest

from steps.lib import dedup, shingles
from steps.lib.clusters import Pairs, losers
from steps.lib.dedup import against, among
from steps.lib.shingles import tokens
from steps.lib.signatures import Sketch, sketch


def words(rng: random.Random, lang: str, number: int) -> list[str]:
    if lang == "zh":
        return [chr(rng.randrange(0x4E00, 0x4E00 + 3000)) for _ in range(number)]
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(number)]


def text_of(words_: list[str], lang: str) -> str:
    return ("" if lang == "zh" else " ").join(words_)


def mixed(rng: random.Random, number: int) -> list[str]:
    """Words of which every third is Chinese."""
    return [words(rng, "en" if place % 3 else "zh", 1)[0] for place in range(number)]


def edited(rng: random.Random, words_: list[str], lang: str, count: int) -> list[str]:
    copy = list(words_)
    for place in rng.sample(range(len(copy)), count):
        copy[place] = words(rng, lang, 1)[0]
    return copy


def pairs_among(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    return by_pair(among(sketch(texts), lambda rows: [texts[row] for row in rows], threshold))


def pairs_against(texts: list[str], guard: list[str], threshold: float) -> dict[tuple[int, int], float]:
    return by_pair(
        against(
            sketch(texts),
            lambda rows: [texts[row] for row in rows],
            sketch(guard),
            lambda rows: [guard[row] for row in rows],
            threshold,
        )
    )


def by_pair(found: Pairs) -> dict[tuple[int, int], float]:
    return dict(zip(zip(found.left.tolist(), found.right.tolist(), strict=True), found.jaccard.tolist(), strict=True))


@functools.cache
def string_shingles(text: str) -> set[tuple[str, ...]]:
    """The string twin: what the hashes stand for."""
    parts = tokens(text)
    return {tuple(parts[place : place + 5]) for place in range(len(parts) - 4)}


def jaccard(one: str, other: str) -> float:
    left, right = string_shingles(one), string_shingles(other)
    return len(left & right) / len(left | right) if left | right else 0.0


def brute(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """The oracle: every pair, by the sets of strings."""
    pairs = {(i, j): jaccard(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)}
    return {pair: score for pair, score in pairs.items() if score >= threshold}


def planted(seed: int, bases: int, size: int) -> list[str]:
    """Texts in Chinese, English and both, with edited copies at 1, 3 and 5 % of the words."""
    rng, texts = random.Random(seed), []
    for number in range(bases):
        lang = ("zh", "en", "mixed")[number % 3]
        base = mixed(rng, size) if lang == "mixed" else words(rng, lang, size)
        for percent in (0, 1, 3, 5):
            count = 0 if percent == 0 else max(1, round(size * percent / 100))
            texts.append(text_of(edited(rng, base, "zh" if lang == "zh" else "en", count), lang))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("size", [12, 40, 200])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_all_pairs_are_found_with_their_exact_similarity(size: int, threshold: float) -> None:
    texts = planted(7, 60 if size < 200 else 24, size)
    want = brute(texts, threshold)
    got = pairs_among(texts, threshold)
    assert list(got) == sorted(got)
    assert set(got) == set(want) and len(want) >= 30
    assert got == pytest.approx(want)


def test_blocks_chunks_and_shards_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*planted(8, 40, 60), "", "short", "一二三四"]
    whole = among(sketch(texts), lambda rows: [texts[row] for row in rows], 0.5)
    assert len(whole) > 100
    asked: list[int] = []

    def texts_of(rows: np.ndarray) -> list[str]:
        assert (np.diff(rows) > 0).all()
        asked.append(len(rows))
        return [texts[row] for row in rows]

    for name, value in (("BLOCK_TEXTS", 3), ("BLOCK_LETTERS", 500)):
        monkeypatch.setattr(shingles, name, value)
    monkeypatch.setattr(dedup, "CHUNK", 1000)
    monkeypatch.setattr(dedup, "_PAIRS", 5)
    shards = Sketch.joined(sketch(texts[low : low + 17]) for low in range(0, len(texts), 17))
    assert (shards.signature == sketch(texts).signature).all()
    found = among(shards, texts_of, 0.5)
    assert all((getattr(found, name) == getattr(whole, name)).all() for name in ("left", "right", "jaccard"))
    assert len(asked) > 5 and max(asked) < len(texts) / 2  # read in parts


def test_a_higher_threshold_gives_the_nearest_pairs_of_a_lower_one() -> None:
    texts = planted(9, 40, 60)
    low, high = (pairs_among(texts, threshold) for threshold in (0.5, 0.7))
    assert high == {pair: score for pair, score in low.items() if score >= 0.7} and 0 < len(high) < len(low)


def test_a_large_crowd_hangs_together_with_bounded_work() -> None:
    rng = random.Random(4)
    base = words(rng, "en", 80)
    crowd = [text_of(edited(rng, base, "en", 1), "en") for _ in range(1000)]
    found = among(sketch(crowd), lambda some: [crowd[row] for row in some], 0.7)
    assert len(losers(len(crowd), found).rows) == 999
    assert len(found) < 1000 * 60  # of half a million


def test_a_bucket_of_some_dozen_gives_all_its_pairs() -> None:
    rng = random.Random(6)
    base = words(rng, "zh", 150)
    texts = [text_of(edited(rng, base, "zh", 1), "zh") for _ in range(40)]
    assert set(pairs_among(texts, 0.8)) == set(brute(texts, 0.8))
    assert len(brute(texts, 0.8)) == 40 * 39 // 2


def test_short_and_empty_texts_are_never_near_anything() -> None:
    assert pairs_among(["", "", "a b", "a b", "退货", "退货"], 0.1) == {}
    assert pairs_among([], 0.5) == pairs_among(["alone with five words here"], 0.5) == {}
    assert pairs_against(["", "退货"], ["", "退货"], 0.1) == pairs_against([], ["a b c d e f"], 0.1) == {}


def test_a_crowd_of_copies_does_not_hide_the_held_out_one() -> None:
    rng = random.Random(3)
    base = words(rng, "en", 60)
    crowd = [text_of(edited(rng, base, "en", 1), "en") for _ in range(80)]
    guard = [text_of(words(rng, "en", 60), "en"), text_of(base, "en")]
    assert pairs_against(crowd, guard, 0.5) == pytest.approx(
        {(number, 1): jaccard(text, guard[1]) for number, text in enumerate(crowd)}
    )


def test_against_equals_brute_force_at_one_half() -> None:
    rng = random.Random(5)
    bases = [words(rng, lang, 30) for lang in ("zh", "en") for _ in range(40)]
    langs = ["zh"] * 40 + ["en"] * 40
    guard = [text_of(base, lang) for base, lang in zip(bases, langs, strict=True)]
    texts = [text_of(edited(rng, base, lang, rng.randrange(5)), lang) for base, lang in zip(bases, langs, strict=True)]
    scores = {(i, j): jaccard(text, held) for i, text in enumerate(texts) for j, held in enumerate(guard)}
    want = {pair: score for pair, score in scores.items() if score >= 0.5}
    assert pairs_against(texts, guard, 0.5) == pytest.approx(want)
    assert 0 < len(want) < len(texts)


def test_against_reads_guarded_texts_by_their_own_numbers() -> None:
    texts, guard = planted(11, 12, 40), planted(11, 12, 40)[::-1] + ["", "one more with five words"]
    scores = {(i, j): jaccard(one, other) for i, one in enumerate(texts) for j, other in enumerate(guard)}
    want = {pair: score for pair, score in scores.items() if score >= 0.5}
    assert want and pairs_against(texts, guard, 0.5) == pytest.approx(want)
