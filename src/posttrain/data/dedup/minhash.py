"""MinHash: texts whose sets of shingles are alike share a band of minima (Broder 1997; Leskovec et al., chapter 3).

The minimum of a random permutation over a set is shared by two sets with probability J, their Jaccard similarity. ``rows`` minima
make a band; a pair with one of ``bands`` bands in common is proposed: P(J) = 1 - (1 - J**rows)**bands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.data.shingles import U64, Shingles, mix

_TILE = 1 << 16
"""Shingles worked on at once: they and one product stay in the cache."""


class Bands(NamedTuple):
    """The shape of an LSH."""

    bands: int
    rows: int
    """Minima of one band."""

    def probability(self, jaccard: float) -> float:
        """P that a pair of this similarity is proposed."""
        return 1.0 - float((1.0 - jaccard**self.rows) ** self.bands)


def choose_bands(threshold: float, recall: float, num_perm: int) -> Bands | None:
    """The longest bands (fewest wrong proposals), and as few as possible, that propose a share ``recall`` of the pairs at
    ``threshold`` with at most ``num_perm`` permutations; None where no shape does.
    """
    for rows in range(num_perm, 0, -1):
        missed = 1.0 - threshold**rows
        bands = (
            1 if missed == 0 else int(np.ceil(np.log(1.0 - recall) / np.log(missed))) if missed < 1 else num_perm + 1
        )
        if bands * rows <= num_perm and Bands(bands, rows).probability(threshold) >= recall:
            return Bands(bands, rows)
    return None


def multipliers(count: int, seed: int) -> NDArray[np.uint32]:
    """Odd factors: x -> a x mod 2**32 is a permutation of the 32-bit integers (multiply-shift, Dietzfelbinger et al. 1997)."""
    numbers = mix(np.arange(count, dtype=np.uint64) + mix(np.array([seed & (2**64 - 1)], np.uint64)))
    return (numbers >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def band_keys(shingles: Shingles, shape: Bands, factors: NDArray[np.uint32]) -> U64:
    """Uint64 [bands, N]: one key for every band of every text."""
    minima = _minima((shingles.hashes_S >> np.uint64(32)).astype(np.uint32), shingles.offsets_N, factors)
    minima = minima.reshape(shape.bands, shape.rows, -1)
    keys = np.zeros((shape.bands, minima.shape[2]), np.uint64)
    for row in range(shape.rows):
        keys = mix(keys + minima[:, row])
    return keys


def _minima(
    values_S: NDArray[np.uint32], offsets: NDArray[np.int64], factors: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Uint32 [permutations, N]: the least product of every text's shingles with every factor."""
    count = len(offsets) - 1
    minima = np.empty((len(factors), count), np.uint32)
    begin = 0
    while begin < count:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _TILE, "right")) - 1)
        tile, starts = values_S[offsets[begin] : offsets[end]], offsets[begin:end] - offsets[begin]
        products = np.empty_like(tile)
        for number, factor in enumerate(factors):
            np.multiply(tile, factor, out=products)
            np.minimum.reduceat(products, starts, out=minima[number, begin:end])
        begin = end
    return minima
