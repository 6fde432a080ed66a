"""Learning rates by hand, their bounds and their edges."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.train.config import TrainSettings
from posttrain.train.optimizer import learning_rate

Schedule = Literal["cosine", "linear", "constant"]


def rates(schedule: Schedule, total: int, warmup: int = 0, floor: float = 0.0, peak: float = 1.0) -> list[float]:
    settings = TrainSettings(learning_rate=peak, schedule=schedule, warmup=warmup / total, learning_rate_floor=floor)
    return [learning_rate(t, total, settings) for t in range(total)]


def test_linear_by_hand() -> None:
    assert rates("linear", 4) == [1.0, 0.75, 0.5, 0.25]
    assert rates("linear", 4, floor=0.2, peak=10.0) == pytest.approx([10.0, 8.0, 6.0, 4.0])


def test_cosine_by_hand() -> None:
    half_root = math.sqrt(0.5)
    assert rates("cosine", 4) == pytest.approx([1.0, (1 + half_root) / 2, 0.5, (1 - half_root) / 2])
    assert rates("cosine", 2, floor=0.5) == pytest.approx([1.0, 0.75])


def test_warmup_by_hand() -> None:
    assert rates("constant", 5, warmup=3) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates("linear", 6, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])
    assert rates("cosine", 1, warmup=0) == [1.0]


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    total=st.integers(1, 60),
    warmup=st.floats(0, 0.99),
    floor=st.floats(0, 1),
    peak=st.floats(1e-7, 1),
)
def test_bounds_and_shape(schedule: Schedule, total: int, warmup: float, floor: float, peak: float) -> None:
    steps = round(warmup * total)
    values = rates(schedule, total, steps, floor, peak)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in values)
    rise, fall = values[: steps + 1], values[steps:]
    assert rise == sorted(rise)
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(fall))
    assert all(rate >= floor * peak * (1 - 1e-12) for rate in fall)
    if steps < total:
        assert values[steps] == pytest.approx(peak)
