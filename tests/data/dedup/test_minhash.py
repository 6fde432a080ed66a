"""Bands, their curve, and minima, against plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from posttrain.data.dedup.minhash import Bands, _minima, band_keys, choose_bands, multipliers
from posttrain.data.shingles import Shingles, mix


def test_the_curve_by_hand() -> None:
    assert Bands(1, 1).probability(0.3) == pytest.approx(0.3)
    assert Bands(2, 3).probability(0.5) == pytest.approx(1 - (1 - 0.125) ** 2)
    assert Bands(14, 8).probability(0.8) == pytest.approx(0.924, abs=5e-4)  # as FineWeb documents it


@pytest.mark.parametrize(
    ("threshold", "num_perm", "expected"),
    [(0.7, 128, (17, 4)), (0.9, 128, (11, 10)), (0.5, 64, (17, 2)), (1.0, 8, (1, 8))],
)
def test_the_longest_bands_that_find_enough(threshold: float, num_perm: int, expected: tuple[int, int]) -> None:
    shape = choose_bands(threshold, 0.99, num_perm)
    assert shape == Bands(*expected)
    assert shape.probability(threshold) >= 0.99
    one_less = Bands(shape.bands - 1, shape.rows)
    assert threshold == 1.0 or one_less.probability(threshold) < 0.99
    longer = Bands(num_perm // (shape.rows + 1), shape.rows + 1)
    assert longer.bands == 0 or longer.probability(threshold) < 0.99


def test_too_few_permutations() -> None:
    assert choose_bands(0.3, 0.99, 8) is None


def test_minima_against_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    import posttrain.data.dedup.minhash as module

    draw = np.random.default_rng(0)
    values = draw.integers(0, 2**32, 60, dtype=np.uint64).astype(np.uint32)
    offsets = np.array([0, 1, 5, 5 + 40, 60])
    factors = multipliers(6, 3)
    expected = [[min(int(v) * int(f) % 2**32 for v in values[a:b]) for a, b in pairwise(offsets)] for f in factors]
    for tile in (1, 7, 1 << 16):
        monkeypatch.setattr(module, "_TILE", tile)
        assert _minima(values, offsets, factors).tolist() == expected


def test_band_keys_follow_the_curve() -> None:
    """Sets of known similarity share a band as often as the formula says (3 standard errors)."""
    pairs, size = 3000, 60
    shape, factors = Bands(5, 4), multipliers(20, 0)
    for shared in (30, 45, 55):
        elements = mix(np.arange(pairs * (2 * size - shared), dtype=np.uint64)).reshape(pairs, -1)
        both = np.stack([elements[:, :size], elements[:, -size:]], 1).reshape(-1)
        keys = band_keys(Shingles(both, np.arange(0, 2 * pairs * size + 1, size)), shape, factors)
        found = (keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean()
        expected = shape.probability(shared / (2 * size - shared))
        assert found == pytest.approx(expected, abs=3 * (expected * (1 - expected) / pairs) ** 0.5 + 1e-3)


def test_seeds_give_other_permutations() -> None:
    assert (multipliers(8, 0) % 2 == 1).all()
    assert len({*multipliers(8, 0).tolist(), *multipliers(8, 1).tolist()}) == 16
