"""Rounds settle what a walk over the rows one by one settles."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.dedup.greedy import Buckets, settle


def one_by_one(buckets: list[list[int]], similarity: np.ndarray, threshold: float) -> list[bool]:
    """Which rows are dropped, the slow way."""
    shared = {pair for rows in buckets for pair in combinations(sorted(rows), 2)}
    dropped: list[bool] = []
    for row in range(len(similarity)):
        dropped.append(
            any(
                not dropped[kept] and (kept, row) in shared and similarity[kept, row] >= threshold
                for kept in range(row)
            )
        )
    return dropped


@given(
    st.integers(1, 12), st.lists(st.sets(st.integers(0, 11), min_size=2, max_size=8), max_size=8), st.integers(0, 9999)
)
def test_the_same_as_one_by_one(count: int, drawn: list[set[int]], seed: int) -> None:
    lists = [sorted(row for row in rows if row < count) for rows in drawn]
    lists = [rows for rows in lists if len(rows) > 1]
    buckets = Buckets(
        np.array([row for rows in lists for row in rows], np.int64), np.cumsum([0, *map(len, lists)]).astype(np.int64)
    )
    values = np.random.default_rng(seed).random((count, count))
    values = (values + values.T) / 2
    found = settle(buckets, count, 0.5, lambda left, right: values[left, right])
    assert found.dropped.tolist() == one_by_one(lists, values, 0.5)
    for row, kept in enumerate(found.representative_N.tolist()):
        if kept >= 0:
            assert not found.dropped[kept]
            assert found.similarity_N[row] == values[kept, row] >= 0.5
            assert any(kept in rows and row in rows for rows in lists)
        else:
            assert found.similarity_N[row] < 0.5


def test_a_chain_removes_only_its_middle() -> None:
    """0 ~ 1 ~ 2 ~ 3, and nothing else: 1 goes because of 0, then 2 stays, 3 goes because of 2."""
    near = np.eye(4)
    for a, b in pairwise(range(4)):
        near[a, b] = near[b, a] = 0.8
    buckets = Buckets(np.arange(4), np.array([0, 4]))
    found = settle(buckets, 4, 0.7, lambda left, right: near[left, right])
    assert found.representative_N.tolist() == [-1, 0, -1, 2]
    assert found.similarity_N.tolist() == [0, 0.8, 0, 0.8]
    assert found.pairs == 4  # 0-1, 0-2, 0-3, 2-3: never two dropped rows


def test_the_most_similar_of_several_stands_for_a_row() -> None:
    near = np.array([[1, 0, 0.8], [0, 1, 0.9], [0.8, 0.9, 1]])
    buckets = Buckets(np.array([0, 2, 1, 2]), np.array([0, 2, 4]))
    assert settle(buckets, 3, 0.7, lambda left, right: near[left, right]).representative_N.tolist() == [-1, -1, 1]
