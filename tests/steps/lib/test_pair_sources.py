"""How many pairs each source gives: weights, and the share of bad cases."""

from __future__ import annotations

from typing import Any

import pytest
from minimal import pair
from pydantic import TypeAdapter

from steps.lib.errors import DataError
from steps.lib.pair_sources import Book, Made, PairSource, weighed
from steps.lib.row_ledger import RowLedger

SOURCES: TypeAdapter[list[Any]] = TypeAdapter(list[PairSource])


def many(name: str, count: int) -> list[Any]:
    return [pair(0).model_copy(update={"id": f"{name}-{n}"}) for n in range(count)]


def left(made: dict[str, int], *sources: dict[str, Any]) -> tuple[dict[str, int], Book, Made]:
    book = Book(RowLedger())
    rows: Any = {kind: many(kind, count) for kind, count in made.items()}
    kept = weighed(rows, SOURCES.validate_python(list(sources)), book)
    book.rows.balance({"to mix": ["pairs"]})
    assert book.rows.rows_in["to mix"] == sum(made.values()) == sum(map(len, kept.values())) + len(book.dropped)
    return {kind: len(pairs) for kind, pairs in kept.items()}, book, kept


def test_without_weights_every_source_gives_all() -> None:
    assert left({"policy": 7, "imported": 3}, {"kind": "policy"}, {"kind": "imported"})[0] == {
        "policy": 7,
        "imported": 3,
    }


def test_weights_are_exact_and_the_scarcest_source_decides() -> None:
    sources = [{"kind": "policy", "weight": 3}, {"kind": "imported", "weight": 1}, {"kind": "teacher"}]
    counts, book, kept = left({"policy": 100, "imported": 20, "teacher": 5}, *sources)
    assert counts == {"policy": 60, "imported": 20, "teacher": 5}
    assert {row.reason for row in book.dropped} == {"mix_surplus"} and len(book.dropped) == 40
    names = [row.id for row in kept["policy"]]
    assert names == sorted(names, key=lambda name: int(name.split("-")[1])) and names != [
        f"policy-{n}" for n in range(60)
    ]
    again = left({"policy": 101, "imported": 20, "teacher": 5}, *sources)[2]["policy"]
    assert len({row.id for row in again} ^ set(names)) <= 2, "one row more changes little"


def test_a_weighed_source_without_a_pair_is_an_error() -> None:
    with pytest.raises(DataError, match="source policy has too few rows for the mix: got 0"):
        left({"policy": 0, "imported": 20}, {"kind": "policy", "weight": 1}, {"kind": "imported", "weight": 1})


@pytest.mark.parametrize(("share", "expected"), [(0.3, 30), (0.2, 17), (None, 90), (0.9, 90)])
def test_bad_cases_are_a_share_of_all_pairs_at_most(share: float | None, expected: int) -> None:
    counts, book, _ = left(
        {"imported": 70, "badcases": 90}, {"kind": "imported"}, {"kind": "badcases", "max_share": share}
    )
    assert counts == {"imported": 70, "badcases": expected}
    assert share is None or counts["badcases"] <= share * sum(counts.values()) + 1e-9
    assert {row.reason for row in book.dropped} <= {"max_share"}
