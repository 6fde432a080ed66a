"""Buckets, prefixes and fingerprints propose what brute force finds."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.dedup import proposals, simhash
from posttrain.data.dedup.greedy import Buckets, group
from posttrain.data.dedup.jaccard import distinct, jaccards
from posttrain.data.shingles import Shingles, mix

sets = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=12)


def shingles(lists: list[list[int]]) -> Shingles:
    hashes = mix(np.array([value for part in lists for value in part], np.uint64) + np.uint64(1))
    return Shingles(hashes, np.cumsum([0, *map(len, lists)]))


def rows_of(buckets: Buckets) -> set[tuple[int, ...]]:
    return {tuple(buckets.ranks[a:b].tolist()) for a, b in pairwise(buckets.offsets)}


def proposed(buckets: Buckets) -> set[tuple[int, int]]:
    return {pair for rows in rows_of(buckets) for pair in combinations(rows, 2)}


def test_buckets_by_hand() -> None:
    keys = np.array([7, 9, 7, 1, 9, 7], np.uint64) << np.uint64(40)
    ranks = np.array([5, 0, 2, 1, 4, 3])
    again = (np.array([3, 3, 3, 8, 8, 2], np.uint64) << np.uint64(40), np.array([2, 3, 5, 0, 1, 4]))
    assert rows_of(group([(keys, ranks)])) == {(2, 3, 5), (0, 4)}
    assert rows_of(group([(keys, ranks), again])) == {(2, 3, 5), (0, 4), (0, 1)}  # equal buckets once
    assert rows_of(group([])) == rows_of(group([(keys[:1], ranks[:1])])) == set()


@given(sets)
def test_jaccard_against_python_sets(lists: list[list[int]]) -> None:
    found = distinct(shingles(lists))
    left, right = np.array([(i, j) for i in range(len(lists)) for j in range(len(lists))]).T
    expected = [
        len({*lists[i]} & {*lists[j]}) / len({*lists[i]} | {*lists[j]}) for i, j in zip(left, right, strict=True)
    ]
    assert jaccards(found, left, right).tolist() == expected


def test_jaccard_over_several_chunks() -> None:
    draw = np.random.default_rng(0)
    lists = [draw.integers(0, 12, 5).tolist() for _ in range(9000)]
    left, right = draw.integers(0, 9000, (2, 9000))
    expected = [
        len({*lists[i]} & {*lists[j]}) / len({*lists[i]} | {*lists[j]}) for i, j in zip(left, right, strict=True)
    ]
    assert jaccards(distinct(shingles(lists)), left, right).tolist() == expected


@given(sets, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.8, 1.0]))
def test_prefixes_miss_no_pair(lists: list[list[int]], threshold: float) -> None:
    found = shingles(lists)
    values, sizes = proposals.prefixes(threshold, proposals.slot_counts(found), found)
    keys = [set(part.tolist()) for part in np.split(values, np.cumsum(sizes)[:-1])]
    for i, j in combinations(range(len(lists)), 2):
        a, b = {*lists[i]}, {*lists[j]}
        if len(a & b) >= threshold * len(a | b) - 1e-12:
            assert keys[i] & keys[j]


def test_fingerprints_by_hand() -> None:
    hashes = np.array([0b1100, 0b1010, 0b1001, 0b0110, 0b0011], np.uint64)
    found = simhash.fingerprints(Shingles(hashes, np.array([0, 3, 5])))
    assert found.tolist() == [0b1000, 0b0010]  # the majority; half is none


@settings(max_examples=30)
@given(st.integers(0, 6), st.integers(0, 2**32))
def test_every_pair_within_the_distance_is_proposed(distance: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    prints = draw.integers(0, 2**64, 12, dtype=np.uint64)
    near = [
        value ^ np.uint64(sum(1 << int(bit) for bit in draw.choice(64, k, replace=False)))
        for k, value in enumerate(prints)
    ]
    every = np.concatenate([prints, np.array(near, np.uint64), prints[:3]])
    ranks = draw.permutation(len(every))
    expected = {
        tuple(sorted((int(ranks[i]), int(ranks[j]))))
        for i, j in combinations(range(len(every)), 2)
        if int(every[i] ^ every[j]).bit_count() <= distance
    }
    assert proposed(simhash.propose(every, ranks, distance)) == expected


def test_the_chance_of_a_fingerprint() -> None:
    assert simhash.probability(1.0, 0) == 1.0
    assert simhash.probability(0.0, 12) < 1e-5  # right angle: half of the bits differ
    assert simhash.probability(1 / 3, 0) == pytest.approx((2 / 3) ** 64)  # cos a = 1/2: a third of the bits
