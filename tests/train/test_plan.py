"""The order of the data: every example once an epoch, whatever the batch, and nothing but arguments decides it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.train.plan import Plan, micro_batches

PLANS = st.builds(
    Plan,
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40).map(tuple),
    batch_size=st.integers(1, 17),
    micro_batch_tokens=st.integers(1, 120),
    epochs=st.floats(0.01, 4.0),
    seed=st.integers(0, 2**31),
)


@given(PLANS)
def test_every_example_once_an_epoch(plan: Plan) -> None:
    seen = [index for step in range(plan.total_steps) for index in plan.step_examples(step)]
    count = len(plan.lengths)
    assert len(seen) == plan.num_examples == max(1, round(plan.epochs * count))
    for begin in range(0, len(seen), count):
        epoch = Counter(seen[begin : begin + count])
        assert set(epoch.values()) == {1}
    assert plan.epoch_after(plan.total_steps - 1) == plan.num_examples / count


@given(PLANS)
def test_micro_batches_hold_the_step_and_the_budget(plan: Plan) -> None:
    for step in range(plan.total_steps):
        groups = plan.micro_batches(step)
        assert sorted(i for group in groups for i in group) == sorted(plan.step_examples(step))
        for group in groups:
            assert len(group) == 1 or sum(plan.lengths[i] for i in group) <= plan.micro_batch_tokens


@given(PLANS, st.integers(1, 10))
def test_max_steps_cuts_and_changes_nothing_before(plan: Plan, most: int) -> None:
    cut = Plan(plan.lengths, plan.batch_size, plan.micro_batch_tokens, plan.epochs, plan.seed, max_steps=most)
    assert cut.total_steps == min(most, plan.total_steps)
    for step in range(cut.total_steps):
        assert cut.step_examples(step) == plan.step_examples(step)


def test_by_hand() -> None:
    plan = Plan(lengths=(5,) * 10, batch_size=4, micro_batch_tokens=10, epochs=1.5, seed=0)
    assert plan.num_examples == 15
    assert plan.total_steps == 4
    assert [len(plan.step_examples(s)) for s in range(4)] == [4, 4, 4, 3]
    assert [len(plan.micro_batches(s)) for s in range(4)] == [2, 2, 2, 2]
    assert [plan.epoch_after(s) for s in range(4)] == [0.4, 0.8, 1.2, 1.5]
    # The third step takes the last two examples of the first epoch and the first two of the second.
    first = [i for s in range(3) for i in plan.step_examples(s)][:10]
    assert sorted(first) == list(range(10))


def test_the_micro_batch_does_not_touch_the_order() -> None:
    small = Plan((7, 3, 9, 4, 4, 8), 4, 1, 3.0, 11)
    large = Plan((7, 3, 9, 4, 4, 8), 4, 10_000, 3.0, 11)
    assert [small.step_examples(s) for s in range(5)] == [large.step_examples(s) for s in range(5)]
    assert all(len(group) == 1 for group in small.micro_batches(0))
    assert len(large.micro_batches(0)) == 1


def test_seeds_and_epochs_shuffle_differently() -> None:
    plans = [Plan((1,) * 50, 50, 100, 2.0, seed) for seed in (0, 1)]
    orders = [plan.step_examples(step) for plan in plans for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert Plan((1,) * 50, 50, 100, 2.0, 0).step_examples(1) == orders[1]


def test_longer_than_the_budget_goes_alone() -> None:
    assert micro_batches([3, 0, 1], (2, 3, 1, 50), 5) == [[3], [0, 1]]


def test_a_step_of_a_large_plan_is_cheap() -> None:
    """A million rows: the order of an epoch is drawn once, not once a step."""
    import time

    plan = Plan((10,) * 1_000_000, 16, 2048, 1.0, 0)
    plan.step_examples(0)
    begin = time.perf_counter()
    for step in range(1, 21):
        plan.step_examples(step)
    assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize("epochs", [0.001, 1.0])
def test_a_single_example(epochs: float) -> None:
    plan = Plan((3,), 16, 8, epochs, 0)
    assert plan.total_steps == 1
    assert plan.step_examples(0) == [0]
