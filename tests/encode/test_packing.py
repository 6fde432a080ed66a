from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.encode.packing import pack, shuffled_order


def fewest_bins(lengths: list[int], budget: int) -> int:
    """By brute force, for a handful of lengths of at most the budget."""
    for bins in range(1, len(lengths) + 1):
        for choice in itertools.product(range(bins), repeat=len(lengths)):
            loads = np.bincount(choice, weights=lengths, minlength=bins)
            if loads.max() <= budget:
                return bins
    return 0


def test_by_hand():
    # 6 opens a; 5 opens b; 4 fits both, tighter into a (4 left); 3 and 2 fill b.
    assert pack([4, 6, 2, 5, 3], 10) == [[0, 1], [2, 3, 4]]


def test_best_fit_not_first_fit():
    # 7 and 8 open micro-batches; 2 fits both and takes the tighter one, so that 3 still fits the other.
    assert pack([7, 8, 3, 2], 10) == [[0, 2], [1, 3]]


def test_longer_than_the_budget_goes_alone():
    assert pack([3, 50, 3], 10) == [[0, 2], [1]]


def test_nothing_packs_into_nothing():
    assert pack([], 10) == []


def test_a_budget_below_one_is_an_error():
    with pytest.raises(ValueError, match="at least 1 token"):
        pack([1], 0)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 200))
def test_every_index_once_within_the_budget(lengths: list[int], budget: int):
    bins = pack(lengths, budget)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in members) for members in bins]
    assert all(load <= budget or len(members) == 1 for load, members in zip(loads, bins, strict=True))
    # Any two micro-batches together exceed the budget: otherwise one of them need not exist.
    fitting = sorted(load for load in loads if load <= budget)
    assert all(a + b > budget for a, b in itertools.pairwise(fitting))
    assert bins == pack(list(lengths), budget)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
@settings(max_examples=60)
def test_number_of_bins_is_within_the_known_bound(lengths: list[int]):
    assert len(pack(lengths, 12)) <= 11 / 9 * fewest_bins(lengths, 12) + 4
    assert len(pack(lengths, 12)) <= fewest_bins(lengths, 12) + 1  # far from the worst case at this size


def test_real_lengths_waste_little():
    lengths = np.random.default_rng(0).gamma(2.0, 90.0, size=2000).astype(int) + 10
    bins = pack(lengths.tolist(), 2048)
    assert lengths.sum() / (len(bins) * 2048) > 0.99


@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 50))
def test_an_order_is_a_permutation_and_repeats(num_rows: int, seed: int, epoch: int):
    order = shuffled_order(num_rows, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_rows))
    assert order.tolist() == shuffled_order(num_rows, seed, epoch).tolist()


def test_orders_differ_by_seed_and_epoch():
    orders = {tuple(shuffled_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_order_never_changes_between_versions():
    assert shuffled_order(8, seed=42, epoch=0).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]
