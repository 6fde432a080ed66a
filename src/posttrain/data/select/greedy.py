"""Taking rows one after another, and none too near to what is taken: by n-grams or by embeddings.

Both walk a given order once. The result follows from the order alone, not from how the work is cut into blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.data.encoders import Vectors
from posttrain.data.shingles import hash_shingles, hash_tokens

Hashes = NDArray[np.uint64]

_FRESH = 1 << 16
"""Hashes kept in a set before they become a sorted array."""


class Walk(NamedTuple):
    """What happened to the rows of an order: values [N], NaN from where the budget was full."""

    kept: NDArray[np.bool_]
    values: NDArray[np.float64]
    """Novelty, or the largest cosine with a row kept before (-inf where none was)."""
    nearest: NDArray[np.int64]
    """Place in the order of the kept row that is nearest, -1 where none is known."""
    seen: int
    """Number of rows looked at before the budget was full."""


class SeenHashes:
    """The n-grams of all kept rows: 8 bytes each in sorted arrays that are merged when they grow alike, none forgotten."""

    def __init__(self) -> None:
        self._fresh: set[int] = set()
        self._sorted: list[Hashes] = []

    def new(self, hashes: Hashes) -> Hashes:
        """Those of some distinct hashes that are not among the seen."""
        unseen = np.ones(len(hashes), bool)
        for known in self._sorted:
            places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            unseen &= known[places] != hashes
        left = hashes[unseen]
        return left[[value not in self._fresh for value in left.tolist()]] if self._fresh and len(left) else left

    def add(self, hashes: Hashes) -> None:
        """Remember some hashes that are new."""
        self._fresh.update(hashes.tolist())
        if len(self._fresh) < _FRESH:
            return
        merged = np.sort(np.fromiter(self._fresh, np.uint64, len(self._fresh)))
        self._fresh = set()
        while self._sorted and len(self._sorted[-1]) <= 2 * len(merged):
            merged = np.sort(np.concatenate([self._sorted.pop(), merged]))
        self._sorted.append(merged)


def ngram_hashes(texts: Sequence[str], n: int) -> list[Hashes]:
    """The distinct hashes of every text's n-grams, sorted; at least one a text (see posttrain.data.shingles)."""
    shingles = hash_shingles(hash_tokens(texts), texts, n)
    return [np.unique(shingles.hashes_S[begin:end]) for begin, end in itertools.pairwise(shingles.offsets_N.tolist())]


def walk_ngrams(texts: Iterable[Hashes], count: int, min_novelty: float, budget: int | None) -> Walk:
    """Take rows whose share of new n-grams is at least ``min_novelty``, until ``budget`` rows are taken."""
    kept, values = np.zeros(count, bool), np.full(count, np.nan)
    seen, taken, looked = SeenHashes(), 0, 0
    for place, hashes in enumerate(texts):
        new = seen.new(hashes)
        values[place] = len(new) / len(hashes)
        looked = place + 1
        if values[place] >= min_novelty:
            kept[place] = True
            seen.add(new)
            taken += 1
            if taken == budget:
                break
    return Walk(kept, values, np.full(count, -1, np.int64), looked)


def walk_embeddings(vectors: Iterable[Vectors], count: int, max_cosine: float, budget: int | None) -> Walk:
    """Take rows whose cosine with every row taken before is at most ``max_cosine``, until ``budget`` rows are taken.

    ``vectors`` gives those of ``count`` rows in their order, in blocks [n, D] of rows of length 1; it is read no further
    than needed.
    """
    kept, values = np.zeros(count, bool), np.full(count, np.nan)
    nearest = np.full(count, -1, np.int64)
    taken, places, begin = np.zeros((0, 0), np.float32), np.zeros(0, np.int64), 0
    for block in vectors:
        before = len(places)
        cosines = block @ taken[:before].T if before else np.zeros((len(block), 0), np.float32)
        inside = block @ block.T
        here: list[int] = []
        for index in range(len(block)):
            near = np.concatenate([cosines[index], inside[index, here]])
            place = begin + index
            values[place] = -np.inf
            if len(near):
                best = int(near.argmax())
                values[place] = float(near[best])
                nearest[place] = places[best] if best < before else begin + here[best - before]
            if values[place] <= max_cosine:
                kept[place] = True
                here.append(index)
                if before + len(here) == budget:
                    return Walk(kept, values, nearest, place + 1)
        taken = _grown(taken, before, block[here])
        places = np.concatenate([places, begin + np.array(here, np.int64)])
        begin += len(block)
    return Walk(kept, values, nearest, begin)


def _grown(taken: Vectors, used: int, more: Vectors) -> Vectors:
    """An array whose first rows are ``taken[:used]`` and ``more``; its size doubles when it is full."""
    if used + len(more) > len(taken):
        larger = np.zeros((max(1024, 2 * (used + len(more))), more.shape[1]), np.float32)
        if used:
            larger[:used] = taken[:used]
        taken = larger
    taken[used : used + len(more)] = more
    return taken
