"""Who stays: rows are taken in a total order, and a row goes where a row that stays is similar to it.

Pairs are proposed by buckets, rows that share a key. A dropped row never speaks for another: no chain of similar rows removes anything by
itself. The result is that of looking at the rows one by one; it is found in rounds, in which every row that no undecided row before it
could drop is settled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.shingles import U64, Offsets, mix, offsets_of, spans

Ranks = NDArray[np.int64]
Similarity = Callable[[Ranks, Ranks], NDArray[np.float64]]
"""Similarities of pairs (left_P, right_P) -> float64 [P]."""


@dataclass(frozen=True)
class Order:
    """The rows of a file by rank: score first (the highest; rows without one last), then content id, then place."""

    row_of_rank: NDArray[np.int64]
    rank_of_row: NDArray[np.int64]
    ids: pl.Series
    """Content id of every row of the file."""
    scored: int
    """Rows that carry the score."""


def total_order(rows_file: Path, prefer: str) -> Order:
    """The order of a file of rows by its score ``prefer``, content ids, then source, file and line (equal contents)."""
    score = pl.element().filter(pl.element().struct.field("name") == prefer).struct.field("value")
    table = (
        pl.scan_parquet(rows_file, glob=False)
        .select("id", *("source", "file", "line"), score=pl.col("scores").list.eval(score).list.max().fill_nan(None))
        .with_row_index("row")
        .collect()
    )
    by = ["score", "id", "source", "file", "line", "row"]
    placed = table.sort(by, descending=[True, *[False] * 5], nulls_last=True)["row"]
    row_of_rank = placed.to_numpy().astype(np.int64)
    rank_of_row = np.empty_like(row_of_rank)
    rank_of_row[row_of_rank] = np.arange(len(row_of_rank))
    return Order(row_of_rank, rank_of_row, table["id"], int(table["score"].count()))


@dataclass(frozen=True)
class Settled:
    """What became of N rows, by rank."""

    representative_N: Ranks
    """Rank of the kept row a dropped one is most similar to; -1 for rows that stay."""
    similarity_N: NDArray[np.float64]
    """Largest similarity to a kept row it was compared with; 0 where none was proposed."""
    pairs: int
    """Pairs compared."""

    @property
    def dropped(self) -> NDArray[np.bool_]:
        """Which rows go."""
        return self.representative_N >= 0


def settle(buckets: Buckets, count: int, threshold: float, similarity: Similarity) -> Settled:
    """Walk the ranks 0 .. count - 1; pairs are compared only within a bucket, the earlier rank being one that stays."""
    best_N, representative_N = np.zeros(count), np.full(count, -1, np.int64)
    decided_N = np.zeros(count, np.bool_)
    ranks = buckets.ranks
    bucket = np.repeat(np.arange(len(buckets.offsets) - 1), np.diff(buckets.offsets))
    compared = 0
    while len(ranks):
        starts = np.flatnonzero(firsts(bucket))
        heads = np.repeat(ranks[starts], np.diff(np.append(starts, len(ranks))))
        waiting_N = np.zeros(count, np.bool_)
        waiting_N[ranks[ranks != heads]] = True
        settled = ~waiting_N[heads]  # the head of this bucket is the head of all its buckets: it stays
        pairs = np.unique(heads[settled] * count + ranks[settled])
        left, right = pairs // count, pairs % count
        left, right = left[left != right], right[left != right]
        values = similarity(left, right)
        compared += len(values)
        _note(best_N, representative_N, left, right, values, threshold)
        decided_N[heads[settled]] = True
        decided_N[right[values >= threshold]] = True
        ranks, bucket = _undecided(ranks, bucket, decided_N)
    return Settled(representative_N, best_N, compared)


def _note(
    best_N: NDArray[np.float64],
    representative_N: Ranks,
    left: Ranks,
    right: Ranks,
    values: NDArray[np.float64],
    threshold: float,
) -> None:
    """Remember the most similar kept row of each right one (the earlier of equals)."""
    order = np.lexsort((left, -values, right))
    order = order[firsts(right[order])]
    left, right, values = left[order], right[order], values[order]
    better = values > best_N[right]
    best_N[right[better]] = values[better]
    similar = values >= threshold
    representative_N[right[similar]] = left[similar]


def _undecided(ranks: Ranks, bucket: Ranks, decided_N: NDArray[np.bool_]) -> tuple[Ranks, Ranks]:
    """What is left of the buckets: undecided rows, where at least two share one."""
    open_ = ~decided_N[ranks]
    ranks, bucket = ranks[open_], bucket[open_]
    several = _repeated(bucket)
    return ranks[several], bucket[several]


def firsts(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values differ from the one before."""
    first = np.ones(len(values), np.bool_)
    first[1:] = values[1:] != values[:-1]
    return first


def _repeated(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values have an equal one beside them."""
    first = firsts(values)
    alone: NDArray[np.bool_] = first & np.append(first[1:], True)[: len(first)]
    return ~alone


@dataclass(frozen=True)
class Buckets:
    """The ranks in every bucket of two rows or more, ascending: ``ranks[offsets[b] : offsets[b + 1]]``."""

    ranks: NDArray[np.int64]
    offsets: Offsets


def group(entries: Iterable[tuple[U64, NDArray[np.int64]]]) -> Buckets:
    """Buckets from sets of (keys, ranks); keys of different sets are never compared.

    Keys are cut so that key and rank fit into 64 bits and sort as one number; two keys that fall together only propose more.
    Of buckets with the same rows one is kept.
    """
    found = [_shared_keys(keys, ranks) for keys, ranks in entries]
    ranks = np.concatenate([np.empty(0, np.int64), *(part[0] for part in found)])
    sizes = np.concatenate([np.empty(0, np.int64), *(part[1] for part in found)])
    if not len(sizes):
        return Buckets(ranks, offsets_of(sizes))
    starts = offsets_of(sizes)[:-1]
    names = np.add.reduceat(mix(ranks.astype(np.uint64) + np.uint64(1)), starts) + mix(sizes.astype(np.uint64))
    _, first = np.unique(names, return_index=True)
    first.sort()
    return Buckets(ranks[spans(starts[first], sizes[first])], offsets_of(sizes[first]))


def _shared_keys(keys: U64, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ranks of all keys that stand at least twice, key by key and ascending; how many each key has)."""
    if len(keys) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    bits = np.uint64(max(1, int(ranks.max()).bit_length()))
    packed = (keys >> bits << bits) | ranks.astype(np.uint64)
    packed.sort()
    packed = packed[firsts(packed)]
    packed = packed[_repeated(packed >> bits)]
    sizes = np.diff(np.append(np.flatnonzero(firsts(packed >> bits)), len(packed)))
    return (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), sizes
