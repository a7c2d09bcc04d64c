"""How alike requests are: known values, both languages, and the index against plain sets."""

from __future__ import annotations

import random

import pytest

from steps.lib.case_grams import Grams, folded, grams, pairs_of


def plain(one: str, other: str) -> float:
    left, right = grams(one), grams(other)
    return len(left & right) / len(left | right) if left and right else 0.0


def test_what_is_compared() -> None:
    assert folded("ＡＢ－１２，《退貨》！") == "ab 12 退货"
    assert grams("退 货吗") == {"退货吗"} and grams("好") == {"好"} and grams("?!") == frozenset()
    assert grams("Refund") == {" refu", "refun", "efund", "fund "}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("请问净水器什么时候能送到？", "請問淨水器什麼時候能送到?"),
        ("Where is my ORDER?", "where is my order"),
        ("订单 K20417 的发票", "订单K20417的发票。"),
    ],
)
def test_the_same_in_other_signs_is_the_same(one: str, other: str) -> None:
    assert plain(one, other) == 1.0


def test_a_known_similarity() -> None:
    # 4 grams each of 6 characters; shared: 我要退, 要退货 -> 2 of 6
    assert plain("我要退货好吗", "我要退货行不") == pytest.approx(2 / 6)


def test_the_index_finds_what_plain_sets_find() -> None:
    draw = random.Random(3)
    words = ["退货", "发票", "快递", "order", "refund", "oven", "净水器", "please", "怎么", "late"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 6))) for _ in range(150)]
    found = {(one, other): score for one, other, score in pairs_of(texts, 0.4)}
    wanted = {
        (i, k): plain(texts[i], texts[k]) for k in range(150) for i in range(k) if plain(texts[i], texts[k]) >= 0.4
    }
    assert found == pytest.approx(wanted) and len(wanted) > 20


def test_the_nearest_comes_first_of_equals_the_earliest() -> None:
    index = Grams(["我要退货好吗", "我要退货", "我要退货"])
    assert [number for number, _ in index.near("我要退货", 0.3)] == [1, 2, 0]
    assert index.near("", 0.3) == [] and index.near("!!", 0.3) == [] and Grams().near("我要", 0.3) == []
