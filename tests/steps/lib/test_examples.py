"""Which examples a row is shown: against slow twins, in both languages, the same on every call."""

import math
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest

from steps.lib.examples import Example, Grams, Pick, Pool
from steps.lib.rules import Language

TEXTS = {
    "en": [
        "How do I get a refund for my kettle?", "Where is my parcel?", "The kettle leaks, can you repair it?",
        "I want an invoice for the blender", "Does the toaster work at 110 V?", "My parcel did not come",
    ],
    "zh": [
        "怎么申请退款？", "我的快递在哪里？", "电水壶漏水，能维修吗？", "请给我开发票", "烤面包机能用110伏吗？", "快递没有收到",
    ],
}  # fmt: skip


def example(lang: Language, prompt: str) -> Example:
    return Example(lang=lang, prompt=prompt, answer="ok")


EXAMPLES = [example(lang, text) for pair in zip(TEXTS["zh"], TEXTS["en"], strict=True)
            for lang, text in zip(("zh", "en"), pair, strict=True)]  # fmt: skip


def is_cjk(letter: str) -> bool:
    return "\u3040" <= letter <= "\u9fff" or "\uf900" <= letter <= "\ufaff" or letter >= "\U00020000"


def grams(text: str) -> Counter[str]:
    plain = f" {' '.join(unicodedata.normalize('NFKC', text).casefold().split())} ".ljust(3)
    two = [plain[i : i + 2] for i in range(len(plain) - 1) if any(map(is_cjk, plain[i : i + 2]))]
    three = [plain[i : i + 3] for i in range(len(plain) - 2) if not any(map(is_cjk, plain[i : i + 3]))]
    return Counter(two + three)


def cosines(pool: list[str], text: str) -> list[float]:
    """The twin: dictionaries and sums."""
    counted = [grams(one) for one in pool]
    shared = Counter(gram for one in counted for gram in one)

    def weighted(found: Counter[str]) -> dict[str, float]:
        return {gram: n * (math.log((1 + len(pool)) / (1 + shared[gram])) + 1) for gram, n in found.items()}

    def norm(one: dict[str, float]) -> float:
        return math.sqrt(sum(value**2 for value in one.values()))

    mine = weighted(grams(text))
    return [
        sum(mine.get(gram, 0) * value for gram, value in one.items()) / norm(mine) / norm(one)
        for one in map(weighted, counted)
    ]


@pytest.mark.parametrize(
    "text", ["我的快递呢", "Where's my PARCEL", "ｐａｒｃｅｌ 快递", "🙂", "好", "  a\n\tb ", "\ud800"]
)
def test_similarity_is_the_cosine_of_rare_grams(text: str) -> None:
    pool = [*TEXTS["zh"], *TEXTS["en"], "好", "x"]
    assert Grams(pool).scores(text) == pytest.approx(cosines(pool, text), abs=1e-12)


def test_a_text_is_most_similar_to_itself() -> None:
    pool = [*TEXTS["zh"], *TEXTS["en"]]
    found = np.array([Grams(pool).scores(text) for text in pool])
    assert found.diagonal() == pytest.approx(1.0)
    assert (found.argmax(axis=1) == np.arange(len(pool))).all()


@pytest.mark.parametrize(
    ("lang", "prompt", "nearest"),
    [("zh", "我的快递到哪里了？", "我的快递在哪里？"), ("en", "where is the parcel now", "Where is my parcel?"),
     ("zh", "能开发票吗", "请给我开发票"), ("en", "Kettle leaks!", "The kettle leaks, can you repair it?")],
)  # fmt: skip
def test_similar_shows_the_nearest_last(lang: Language, prompt: str, nearest: str) -> None:
    pool = Pool(EXAMPLES, "similar", own_language=True)
    chosen = pool.choose(prompt, lang, 3, 0)
    near = [pool.similarity(prompt, lang, index) for index in chosen]
    assert near == sorted(near) and EXAMPLES[chosen[-1]].prompt == nearest
    assert {EXAMPLES[index].lang for index in chosen} == {lang}
    assert pool.keep(chosen, 1) == chosen[-1:] and pool.keep(chosen, 0) == []
    assert pool.choose(prompt, lang, 3, 1) == chosen  # no draw


def test_similar_is_lexical_and_not_semantic() -> None:
    """What the docs say that it cannot do: other words and other languages are far."""
    pool = Pool(EXAMPLES, "similar", own_language=False)
    refund, invoice = 1, 7
    assert EXAMPLES[refund].prompt.startswith("How do I get a refund")
    assert pool.similarity("Please give me my money back", "en", refund) < 0.2
    assert pool.similarity("How do I get an invoice", "en", refund) > pool.similarity(
        "How do I get an invoice", "en", invoice
    )
    assert pool.similarity("怎么申请退款？", "zh", refund) == 0.0


def test_equal_similarities_follow_the_file() -> None:
    pool = Pool([example("en", text) for text in ("aaa", "bbb", "ccc", "aaa ")], "similar", own_language=True)
    assert pool.choose("zzz", "en", 3, 0) == [2, 1, 0]
    assert pool.choose("aaa!", "en", 2, 0) == [3, 0]


@pytest.mark.parametrize("pick", ["fixed", "random", "same_language", "similar", "diverse"])
def test_a_prompt_is_never_its_own_example_and_all_others_are_there(pick: Pick) -> None:
    twice = [*EXAMPLES, example("en", "Where is my parcel? ")]
    pool = Pool(twice, pick, own_language=True)
    chosen = pool.choose("Where is my parcel?", "en", 99, 0)
    assert sorted(twice[index].prompt for index in chosen) == sorted(set(TEXTS["en"]) - {"Where is my parcel?"})
    assert len(pool.choose("something else", "en", 7, 0)) == 7
    assert pool.choose("something else", "en", 0, 0) == []


def test_diverse_examples_are_far_from_each_other_and_the_same_for_all_rows() -> None:
    words = ["refund of the kettle", "refund for the kettle", "refund for this kettle", "where is the parcel",
             "where is this parcel", "110 V?", "110 V ?"]  # fmt: skip
    pool = Pool([example("en", word) for word in words], "diverse", own_language=True)
    chosen = pool.choose("hello", "en", 3, 0)
    assert chosen == pool.choose("another row", "en", 3, 7)
    assert {("refund" in words[i], "parcel" in words[i], "110" in words[i]) for i in chosen} == {
        (True, False, False), (False, True, False), (False, False, True)
    }  # fmt: skip


def test_diverse_is_farthest_point() -> None:
    draw = random.Random(5)
    pool = ["".join(draw.choices("abcd 退款", k=12)) for _ in range(30)]
    alike = np.round([cosines(pool, text) for text in pool], 9)
    expected = [int(np.argmax(np.round(alike.sum(axis=0), 9)))]
    while len(expected) < 8:
        nearest = alike[expected].max(axis=0)
        nearest[expected] = 9
        expected.append(int(nearest.argmin()))
    assert Grams(pool).spread(8) == expected
    assert sorted(Grams(pool).spread(99)) == list(range(30))


def test_random_draws_what_it_drew_before() -> None:
    """The choice decides requests, and so what a ledger holds: it must not change between versions."""
    pool = Pool([example("en", f"question {n}") for n in range(20)], "random", own_language=False)
    assert pool.choose("a", "en", 4, 1) == [6, 19, 7, 8]
