"""Which setting is best, good enough, or only lucky: values by hand and invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.sweep.analysis import differences, effects, expected, seed_noise
from posttrain.sweep.outcome import dominated


def test_by_hand() -> None:
    # three settings, two seeds, two rows
    values_KSR = np.array([[[1.0, 3.0], [1.2, 3.2]], [[1.0, 2.8], [1.0, 2.8]], [[2.0, 4.0], [2.0, 4.0]]])
    found = differences(values_KSR, lower=True)
    assert found.best == 1
    np.testing.assert_allclose(found.means_K, [2.1, 1.9, 3.0])
    # seeds of the first differ by 0.2: variance 0.02, of the others 0
    assert found.noise == pytest.approx(math.sqrt(0.02 / 3))
    # rows of the first less those of the second: 0.1 and 0.3, sd 0.1 sqrt(2), over sqrt(2) rows
    assert found.errors_K[0] == pytest.approx(math.hypot(0.1, found.noise * math.sqrt(2 / 2)))
    assert found.errors_K[1] == 0
    assert found.freedom == 1  # two rows; seeds alone would have 3
    assert found.chosen == 1  # 0.2 away is more than one standard error (0.13)


def test_the_simplest_within_one_standard_error_is_chosen() -> None:
    rows = np.array([1.0, 2.0, 3.0, 4.0])
    shift = np.array([0.3, -0.3, 0.3, -0.28])
    values_KSR = np.stack([rows + shift, rows, rows + 1])[:, None, :]
    found = differences(values_KSR, lower=True)
    assert (found.best, found.chosen) == (1, 0)
    assert differences(values_KSR[::-1], lower=True).chosen == 1, "the simplest stand first"


@given(st.integers(2, 5), st.integers(1, 3), st.integers(2, 12), st.integers(0, 10_000))
def test_lower_and_higher_are_mirror_images(settings: int, seeds: int, rows: int, seed: int) -> None:
    values_KSR = np.random.default_rng(seed).normal(size=(settings, seeds, rows))
    low, high = differences(values_KSR, lower=True), differences(-values_KSR, lower=False)
    assert (low.best, low.chosen) == (high.best, high.chosen)
    np.testing.assert_allclose(low.errors_K, high.errors_K)
    assert low.chosen <= low.best
    assert low.means_K[low.best] <= expected(values_KSR, lower=True) + 1e-12 or settings == 1


def test_the_best_of_many_equals_flatters_and_the_expected_value_does_not() -> None:
    """Forty settings that are all worth 0: the best looks better than 0, its value on other rows does not."""
    draws = [np.random.default_rng(seed).normal(size=(40, 1, 50)) for seed in range(40)]
    best = np.mean([d.mean(axis=(1, 2)).min() for d in draws])
    honest = np.mean([expected(d, lower=True) for d in draws])
    assert best < -0.25
    assert abs(honest) < 0.06


def test_effects_of_a_grid_are_what_was_put_in() -> None:
    grid = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2, 3)]
    truth = np.array([10 * (one["a"] == 2) + one["b"] for one in grid], float)
    noise_KS = np.array([[-0.1, 0.1]] * 6)
    found = {(e.path, e.value): e for e in effects(grid, truth[:, None] + noise_KS, 0.95)}
    assert {key: e.estimate for key, e in found.items()} == pytest.approx({("a", 2): 10, ("b", 2): 1, ("b", 3): 2})
    assert seed_noise(truth[:, None] + noise_KS) == pytest.approx(0.1 * math.sqrt(2))
    assert all(e.shown and e.runs == (6 if path == "a" else 4) for (path, _), e in found.items())
    alone = effects(grid, truth[:, None], 0.95)
    assert all(e.shown is None and e.difference is None for e in alone), "one seed tells nothing of noise"
    assert effects(grid[:-1], truth[:-1, None], 0.95) == (), "a grid with a hole is none"


def test_noise_alone_is_seldom_called_an_effect() -> None:
    grid = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2)]
    drawn = [effects(grid, np.random.default_rng(seed).normal(size=(4, 3)), 0.95) for seed in range(300)]
    assert np.mean([e.shown for several in drawn for e in several]) == pytest.approx(0.05, abs=0.025)


def test_a_training_is_ended_only_when_shown_worse_twice_in_its_second_half() -> None:
    best = {step: {f"r{k}": 1.0 + k / 10 for k in range(20)} for step in (1, 2, 3, 4)}
    worse = {
        step: {row: value + 0.1 + 0.001 * k for k, (row, value) in enumerate(rows.items())}
        for step, rows in best.items()
    }
    assert not dominated({1: worse[1]}, best, 1, 4)
    assert not dominated({1: worse[1], 2: worse[2]}, best, 2, 4), "one measurement of the second half"
    assert dominated({1: worse[1], 2: worse[2], 3: worse[3]}, best, 3, 4)
    assert not dominated({2: worse[2], 3: best[3]}, best, 3, 4)
    assert not dominated({2: best[2], 3: worse[3]}, best, 3, 4)
