"""Pairs that may be duplicates: rows that share a key of MinHash, SimHash or of the prefix of their n-grams.

Every row is read once (twice for prefixes) and hashed to keys; memory holds the keys of all rows, never text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup import minhash, simhash
from posttrain.data.dedup.greedy import Buckets, Order, group
from posttrain.data.dedup.jaccard import distinct
from posttrain.data.dedup.passages import Compared
from posttrain.data.engine import map_rows
from posttrain.data.rows import compared_texts
from posttrain.data.shingles import U64, Shingles, hash_tokens
from posttrain.data.steps import StepRun

Result = TypeVar("Result")
_SLOTS = 1 << 20
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Proposed:
    """What a method proposes."""

    blank_N: NDArray[np.bool_]
    """By rank: rows with nothing to compare."""
    buckets: Buckets
    facts: dict[str, Any] = field(default_factory=dict)
    probability: Callable[[float], float] | None = None
    """P(similarity) that a pair is proposed; None where every pair is."""


@dataclass(frozen=True)
class Passes:
    """Walks over the shingles of a file of rows."""

    compared: Compared
    rows_file: Path
    run: StepRun

    def over(self, work: Callable[[Shingles], Result], what: str) -> Iterator[tuple[int, NDArray[np.bool_], Result]]:
        """(place of the first row, which rows have nothing to compare, result) for every block."""
        block_work = partial(_work_on_shingles, work, self.compared)
        for begin, (blank, result) in map_rows(block_work, self.rows_file, ["messages"], self.run, what):
            yield begin, blank, result

    def keys(self, work: Callable[[Shingles], U64], count: int, total: int) -> tuple[NDArray[np.bool_], U64]:
        """(which of ``total`` rows have nothing to compare, uint64 [count, total]: the keys of every row)."""
        blank_R, keys_KR = np.empty(total, np.bool_), np.empty((count, total), np.uint64)
        for begin, blank, keys in self.over(work, "hashing"):
            blank_R[begin : begin + len(blank)], keys_KR[:, begin : begin + len(blank)] = blank, keys
        return blank_R, keys_KR


def _work_on_shingles(
    work: Callable[[Shingles], Result], compared: Compared, block: pl.DataFrame
) -> tuple[NDArray[np.bool_], Result]:
    texts = compared_texts(block, compared.fields)
    blank = np.fromiter((not text or text.isspace() for text in texts), np.bool_, len(texts))
    return blank, work(compared.shingles(hash_tokens(texts), texts))


def by_minhash(shape: minhash.Bands, passes: Passes, order: Order, seed: int) -> Proposed:
    """Rows that share a band of minima."""
    factors = minhash.multipliers(shape.bands * shape.rows, seed)
    work = partial(minhash.band_keys, shape=shape, factors=factors)
    blank_R, keys_BR = passes.keys(work, shape.bands, len(order.row_of_rank))
    there = np.flatnonzero(~blank_R)
    ranks = order.rank_of_row[there]
    return Proposed(
        blank_R[order.row_of_rank],
        group((keys[there], ranks) for keys in keys_BR),
        {"bands": shape.bands, "rows_per_band": shape.rows, "num_perm": shape.bands * shape.rows},
        shape.probability,
    )


def by_simhash(distance: int, passes: Passes, order: Order) -> Proposed:
    """Rows whose fingerprints differ in at most ``distance`` bits."""
    blank_R, [prints_R] = passes.keys(simhash.fingerprints, 1, len(order.row_of_rank))
    there = np.flatnonzero(~blank_R)
    return Proposed(
        blank_R[order.row_of_rank],
        simhash.propose(prints_R[there], order.rank_of_row[there], distance),
        {"bits": simhash.BITS, "distance": distance},
        partial(simhash.probability, distance=distance),
    )


def by_prefix(threshold: float, passes: Passes, order: Order) -> Proposed:
    """Rows that share a shingle of their prefixes: all pairs with a Jaccard similarity of at least t (Xiao et al. 2008, PPJoin).

    Order the shingles of every set by one global order. Two sets with similarity t or more share a shingle among the first
    ``|x| - ceil(t |x|) + 1`` of each: so those prefixes are the keys. Rare shingles come first, by a table of counts over
    hashed slots: any global order is correct, this one makes small buckets.
    """
    counts = np.zeros(_SLOTS, np.uint32)
    blanks = []
    for _, blank, found in passes.over(slot_counts, "counting"):
        counts += found
        blanks.append(blank)
    blank_R = np.concatenate([np.empty(0, np.bool_), *blanks])
    keys, ranks = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for begin, blank, (values, sizes) in passes.over(partial(prefixes, threshold, counts), "hashing"):
        block_ranks = np.repeat(order.rank_of_row[begin : begin + len(sizes)], sizes)
        there = ~np.repeat(blank, sizes)
        # the hash's lower bits are the fuller ones once it is cut
        keys.append(values[there] << np.uint64(12))
        ranks.append(block_ranks[there])
    return Proposed(blank_R[order.row_of_rank], group([(np.concatenate(keys), np.concatenate(ranks))]))


def slot_counts(shingles: Shingles) -> NDArray[np.uint32]:
    """Uint32 [SLOTS]: in how many sets the shingles of each slot stand."""
    return np.bincount(_slots(distinct(shingles).values), minlength=_SLOTS).astype(np.uint32)


def prefixes(threshold: float, counts: NDArray[np.uint32], shingles: Shingles) -> tuple[U64, NDArray[np.int64]]:
    """The first shingles of every set in the order of ``counts``, and how many each has."""
    sets = distinct(shingles)
    sizes_N = np.diff(sets.offsets_N)
    numbers = np.repeat(np.arange(len(sizes_N)), sizes_N)
    order = np.lexsort((sets.values, counts[_slots(sets.values)], numbers))
    taken_N = sizes_N - np.ceil(threshold * sizes_N - _ROUNDING).astype(np.int64) + 1
    place = np.arange(len(order)) - np.repeat(sets.offsets_N[:-1], sizes_N)
    return sets.values[order[place < np.repeat(taken_N, sizes_N)]], np.minimum(taken_N, sizes_N)


def _slots(values: U64) -> NDArray[np.int64]:
    return (values & np.uint64(_SLOTS - 1)).astype(np.int64)
