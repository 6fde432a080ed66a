"""The published ranges by value; every objective and method has them."""

from __future__ import annotations

from typing import get_args

import pytest

from posttrain.errors import ConfigError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives import Objective, default_objective
from posttrain.plan.guidance import Advice, Method, guidance, method_of, start, steps

OBJECTIVES = [kind() for kind in get_args(get_args(Objective)[0])]
METHODS: tuple[Method, ...] = get_args(Method)


@pytest.mark.parametrize(
    ("adapter", "method"),
    [(FullWeights(), "full"), (LoraAdapter(), "lora"), (LoraAdapter(quantize="nf4"), "qlora")],
)
def test_the_method_is_read_from_the_adapter(adapter: FullWeights | LoraAdapter, method: Method) -> None:
    assert method_of(adapter) == method


@pytest.mark.parametrize(
    ("kind", "method", "value", "low", "high"),
    [
        ("conversations", "full", 1e-5, 2e-6, 2e-5),
        ("conversations", "lora", 2e-4, 2e-5, 2e-4),
        ("conversations", "qlora", 2e-4, 1e-4, 2e-4),
        ("pairs", "full", 1e-6, 5e-7, 5e-6),
        ("pairs", "lora", 1e-5, 5e-6, 5e-5),
        ("feedback", "qlora", 1e-5, 5e-6, 5e-5),
    ],
)
def test_learning_rates(kind: str, method: Method, value: float, low: float, high: float) -> None:
    rate = guidance(default_objective(kind), method, 1_000).learning_rate  # type: ignore[arg-type]
    assert (rate.value, rate.low, rate.high) == pytest.approx((value, low, high))
    assert rate.holds(low)
    assert rate.holds(high)
    assert not rate.holds(high * 1.01)


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(1, (3, 3, 5)), (4_999, (3, 3, 5)), (5_000, (2, 1, 3)), (50_000, (2, 1, 3)), (50_001, (1, 1, 1))],
)
def test_epochs_by_rows(rows: int, epochs: tuple[int, int, int]) -> None:
    found = guidance(default_objective(), "lora", rows).epochs
    assert (found.value, found.low, found.high) == epochs


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one.name)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_advised_lies_in_its_range_and_has_a_source(objective: Objective, method: Method) -> None:
    found = guidance(objective, method, 100)
    settings: list[Advice] = [found.learning_rate, found.epochs, found.batch_size, found.rank]
    assert all(one.low <= one.value <= one.high and one.holds(one.value) and one.source for one in settings)
    assert (found.epochs.high == 1) == (objective.row_kind != "conversations")
    full = guidance(objective, "full", 100).learning_rate.value
    assert method == "full" or 5 * full <= found.learning_rate.value <= 20 * full


def test_no_rows_have_no_guidance() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        guidance(default_objective(), "lora", 0)


@pytest.mark.parametrize(("rows", "epochs", "batch", "count"), [(160, 1, 16, 10), (161, 1, 16, 11), (100, 2.5, 16, 16)])
def test_steps_by_hand(rows: int, epochs: float, batch: int, count: int) -> None:
    assert steps(rows, epochs, batch) == count


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("conversations", 528, (2e-4, 3, 16, 99, True)),
        ("conversations", 529, (2e-4, 3, 16, 100, False)),
        ("pairs", 1_600, (1e-5, 1, 16, 100, False)),
    ],
)
def test_a_run_of_few_steps_starts_elsewhere(
    kind: str, rows: int, expected: tuple[float, float, int, int, bool]
) -> None:
    *values, few = expected
    found = start(guidance(default_objective(kind), "lora", rows), rows)  # type: ignore[arg-type]
    assert found.few == few
    if not few:
        assert [found.learning_rate, found.epochs, found.batch_size, found.steps] == pytest.approx(values)


def test_few_pairs_are_taken_in_small_batches_at_the_highest_rate() -> None:
    found = start(guidance(default_objective("pairs"), "lora", 100), 100)
    assert (found.learning_rate, found.epochs, found.batch_size, found.steps) == pytest.approx((5e-5, 1, 8, 13))
