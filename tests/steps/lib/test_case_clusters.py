"""Clusters keep their side for ever; what leaks across is found, and what was trained on is not measured with."""

from __future__ import annotations

import random

import numpy as np
import pytest

from steps.lib.case_clusters import HOLDOUT, TRAIN, Known, Nearness, Place, placed, side_of
from steps.lib.case_grams import pairs_of
from steps.lib.clusters import Pairs
from steps.lib.rows import BadCase, Message


def case(name: str, text: str) -> BadCase:
    return BadCase(id=name, prompt=[Message(role="user", content=text)])


def decided(cases: list[BadCase], record: dict[str, Known] | None = None, percent: int = 50) -> dict[str, Place]:
    near = Nearness.of(cases, 0.4).at_least(0.4)
    found = placed(cases, near, record or {}, salt="s", percent=percent)
    return {one.id: place for one, place in zip(cases, found, strict=True)}


def known(places: dict[str, Place]) -> dict[str, Known]:
    return {name: Known(place.cluster, place.split, place.contaminated) for name, place in places.items()}


def variants(number: int, seed: int = 0) -> list[BadCase]:
    """Cases of some sources, three each: the request, one with other words around it, one with an edit."""
    draw = random.Random(seed)
    pool = "退换货发票快递维修保修加湿器净水器空调烤箱吸尘器电饭煲遥控滤网水箱门锁声音漏水断电加热慢重开抬头地址师傅上门时间"
    rows = []
    for source in range(number):
        base = "".join(draw.sample(pool, 16))
        rows += [
            case(f"{source}-a", base),
            case(f"{source}-b", f"你好，{base}，谢谢"),
            case(f"{source}-c", base[:7] + draw.choice(pool) + base[8:]),
        ]
    return rows


def test_the_share_of_sides_is_the_percent_and_the_salt_draws_anew() -> None:
    names = [f"case-{n}" for n in range(4000)]
    sides = [side_of("a", name, 30) for name in names]
    assert sides.count(HOLDOUT) / 4000 == pytest.approx(0.3, abs=0.03)
    assert [side_of("a", name, 30) for name in names] == sides != [side_of("b", name, 30) for name in names]
    assert {side_of("a", name, 0) for name in names} == {TRAIN} and {side_of("a", name, 100) for name in names} == {
        HOLDOUT
    }


def test_variants_of_a_source_lie_on_one_side_whatever_comes_later() -> None:
    first = variants(60)
    places = decided(first)
    assert all(len({places[f"{n}-{k}"].split for k in "abc"}) == 1 for n in range(60))
    assert {place.split for place in places.values()} == {HOLDOUT, TRAIN}
    later = decided([*first, *variants(90)[180:]], known(places))
    assert all(later[name] == place for name, place in places.items())
    alone = decided([*first, *variants(90)[180:]])
    assert alone == later, "without a merge the record changes nothing"


def test_rows_drawn_at_random_leak_and_clusters_do_not() -> None:
    rows = variants(80)
    places, draw = decided(rows), random.Random(1)
    at_random = {row.id: draw.choice((HOLDOUT, TRAIN)) for row in rows}

    def leak(sides: dict[str, str]) -> float:
        held = [row for row in rows if sides[row.id] == HOLDOUT]
        trained = {row.id.split("-")[0] for row in rows if sides[row.id] == TRAIN}
        return sum(row.id.split("-")[0] in trained for row in held) / len(held)

    assert leak(at_random) > 0.5
    assert leak({name: place.split for name, place in places.items()}) == 0.0


def test_a_case_that_joins_two_clusters_makes_both_held_out_and_what_was_trained_on_is_contaminated() -> None:
    held, trained = case("h", "甲乙丙丁戊己庚辛"), case("t", "子丑寅卯辰巳午未")
    record = {"h": Known("h", HOLDOUT, False), "t": Known("t", TRAIN, False)}
    assert {n: p.split for n, p in decided([held, trained], record).items()} == {"h": HOLDOUT, "t": TRAIN}
    bridge = case("b", "甲乙丙丁戊己庚辛子丑寅卯辰巳午未")
    after = decided([held, trained, bridge], record)
    assert {place.split for place in after.values()} == {HOLDOUT} and {place.cluster for place in after.values()} == {
        "h"
    }
    assert not after["h"].contaminated, "it was never near to what was trained on"
    assert after["t"].contaminated and after["b"].contaminated
    again = decided([held, trained, bridge, case("n", "甲乙丙丁戊己庚辛壬")], known(after))
    assert again["t"].contaminated and again["n"].split == HOLDOUT and not again["n"].contaminated


def test_a_cluster_stays_one_when_the_text_that_held_it_together_is_deleted() -> None:
    a, b, c = (
        case("a", "甲乙丙丁戊己庚辛"),
        case("b", "甲乙丙丁戊己庚辛子丑寅卯辰巳午未"),
        case("c", "子丑寅卯辰巳午未"),
    )
    places = decided([a, b, c])
    assert {place.cluster for place in places.values()} == {"a"}
    gone = BadCase(id="b", prompt=[], status="deleted")
    assert decided([a, gone, c], known(places)) == places


def test_new_clusters_take_their_side_from_their_first_case() -> None:
    rows = [case("x", "甲乙丙丁戊己庚辛"), case("y", "甲乙丙丁戊己庚辛壬")]
    places = decided(rows)
    assert places["x"] == places["y"] == Place("x", side_of("s", "x", 50), False)


def test_nearness_of_nothing_is_nothing() -> None:
    assert len(Nearness.of([], 0.4).pairs) == 0 and list(pairs_of([], 0.4)) == []
    none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    assert placed([], none, {}, salt="s", percent=30) == []
