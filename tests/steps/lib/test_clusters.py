"""Clusters and the row that stays, against the textbook's union-find."""

from __future__ import annotations

import random

import numpy as np
import pytest

from steps.lib.clusters import Pairs, kept_of, labels_of, losers


def pairs_of(*triples: tuple[int, int, float]) -> Pairs:
    left, right, score = zip(*triples, strict=True)
    return Pairs(np.array(left), np.array(right), np.array(score))


def union_find(number: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The oracle."""
    parent = list(range(number))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(node) for node in range(number)]


def test_clusters_join_chains_under_their_first_member() -> None:
    assert labels_of(6, np.array([3, 1, 0]), np.array([4, 3, 5])).tolist() == [0, 1, 2, 1, 1, 0]
    none = np.zeros(0, np.int64)
    assert labels_of(3, none, none).tolist() == [0, 1, 2] and labels_of(0, none, none).tolist() == []


@pytest.mark.parametrize("links", [10, 100, 300])
def test_labels_equal_union_find_whatever_the_order(links: int) -> None:
    draw = random.Random(links)
    pairs = [(draw.randrange(200), draw.randrange(200)) for _ in range(links)]
    left, right = np.array(pairs).T
    assert labels_of(200, left, right).tolist() == union_find(200, pairs)
    assert labels_of(200, right[::-1], left[::-1]).tolist() == union_find(200, pairs)


def test_a_long_chain_in_the_worst_order_is_one_cluster() -> None:
    order = np.random.default_rng(1).permutation(20_000)
    assert not labels_of(20_000, order[:-1], order[1:]).any()


def test_the_best_score_stays_then_the_earliest() -> None:
    labels = np.array([0, 0, 0, 3, 3, 5, 5])
    assert kept_of(labels).tolist() == [0, 0, 0, 3, 3, 5, 5]
    scores = [0.1, 0.9, 0.9, 0.5, 0.5, float("nan"), -7.0]
    assert kept_of(labels, scores).tolist() == [1, 1, 1, 3, 3, 6, 6]
    assert kept_of(np.zeros(0, np.int64), []).tolist() == []


def test_a_dropped_row_names_what_stays_and_what_it_was_verified_against() -> None:
    """A chain 0 - 1 - 2 - 3 and a pair 5 - 6; 4 is alone."""
    pairs = pairs_of((0, 1, 0.8), (1, 2, 0.9), (2, 3, 0.75), (5, 6, 1.0))
    lost = losers(7, pairs)
    assert lost.rows.tolist() == [1, 2, 3, 6] and lost.kept.tolist() == [0, 0, 0, 5]
    assert lost.linked.tolist() == [0, 1, 2, 5] and lost.jaccard.tolist() == [0.8, 0.9, 0.75, 1.0]
    best = losers(7, pairs, [0, 0, 5, 0, 0, 0, 1])
    assert best.rows.tolist() == [0, 1, 3, 5] and best.kept.tolist() == [2, 2, 2, 6]
    # 1 is linked to 2, which stays, though it is the second in its list; 0 has only 1.
    assert best.linked.tolist() == [1, 2, 2, 6] and best.jaccard.tolist() == [0.8, 0.9, 0.75, 1.0]
    none = np.zeros(0, np.int64)
    assert losers(7, Pairs(none, none, np.zeros(0))).rows.tolist() == []


def test_of_equally_near_rows_the_earliest_is_linked() -> None:
    pairs = pairs_of((0, 1, 0.7), (1, 3, 0.8), (2, 3, 0.8), (0, 2, 0.7))
    assert losers(4, pairs).linked.tolist() == [0, 0, 1]
