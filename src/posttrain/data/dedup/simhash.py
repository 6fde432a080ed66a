"""SimHash: fingerprints of like texts differ in few bits (Charikar 2002; Manku et al. 2007).

Every bit of a fingerprint is the majority of that bit over the hashes of a text's shingles. Two texts whose shingle vectors
have the angle a differ in each bit with probability a / pi; with sets of one size and Jaccard J, cos a = 2 J / (1 + J). Pairs
that differ in at most ``distance`` bits are all found: cut into ``distance + k`` blocks, k blocks of theirs are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from posttrain.data.dedup.greedy import Buckets, group
from posttrain.data.shingles import U64, Shingles, offsets_of, spans

BITS = 64
_MOST_TABLES = 500
_PAIRS = 1 << 22
"""Pairs of fingerprints checked at once."""
_TEXTS = 512


def probability(jaccard: float, distance: int) -> float:
    """P that the fingerprints of a pair of this similarity differ in at most ``distance`` bits."""
    bit = math.acos(min(1.0, 2 * jaccard / (1 + jaccard))) / math.pi
    return sum(math.comb(BITS, k) * bit**k * (1 - bit) ** (BITS - k) for k in range(distance + 1))


def fingerprints(shingles: Shingles) -> U64:
    """Uint64 [N]."""
    parts = []
    for begin in range(0, len(shingles.offsets_N) - 1, _TEXTS):
        bounds = shingles.offsets_N[begin : begin + _TEXTS + 1]
        hashes = shingles.hashes_S[bounds[0] : bounds[-1]]
        bits = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        ones = np.add.reduceat(bits, bounds[:-1] - bounds[0], axis=0, dtype=np.int32)
        majority = np.packbits(2 * ones > np.diff(bounds)[:, None], axis=1, bitorder="little")
        parts.append(majority.view("<u8").ravel().astype(np.uint64))
    return np.concatenate([np.empty(0, np.uint64), *parts])


def propose(prints_N: U64, ranks_N: NDArray[np.int64], distance: int) -> Buckets:
    """Buckets of the ranks whose fingerprints are equal, or differ in at most ``distance`` bits."""
    order = np.lexsort((ranks_N, prints_N))
    ranks = ranks_N[order]
    prints, starts, sizes = np.unique(prints_N[order], return_index=True, return_counts=True)
    alike = np.flatnonzero(sizes > 1)
    both = np.unique(np.concatenate([np.empty((0, 2), np.int64), *_near(prints, distance)]), axis=0)
    left, right = both[:, 0], both[:, 1]
    places = spans(np.concatenate([starts[alike], np.stack([starts[left], starts[right]], 1).ravel()]),
                   np.concatenate([sizes[alike], np.stack([sizes[left], sizes[right]], 1).ravel()]))  # fmt: skip
    bucket_sizes = np.concatenate([sizes[alike], sizes[left] + sizes[right]])
    names = np.repeat(np.arange(len(bucket_sizes)), bucket_sizes)
    members = ranks[places]
    inside = np.lexsort((members, names))
    return Buckets(members[inside], offsets_of(bucket_sizes))


def _near(prints: U64, distance: int) -> Iterator[NDArray[np.int64]]:
    """Pairs [P, 2] of places of distinct fingerprints that differ in at most ``distance`` bits, some more than once."""
    places = np.arange(len(prints), dtype=np.int64)
    for mask in _masks(distance, len(prints)):
        # group() cuts low bits off its keys, so the bits of the mask are spread over the key first
        buckets = group([((prints & mask) * np.uint64(0x9E3779B97F4A7C15), places)])
        for left, right in _pairs_within(buckets):
            near = np.bitwise_count(prints[left] ^ prints[right]) <= distance
            yield np.stack([left[near], right[near]], 1)


def _masks(distance: int, count: int) -> list[np.uint64]:
    """The bits of a fingerprint that are equal for some mask, whenever two differ in at most ``distance``."""
    equal = 1
    while (
        BITS * equal // (distance + equal) < count.bit_length()
        and math.comb(distance + equal + 1, equal + 1) <= _MOST_TABLES
    ):
        equal += 1
    blocks = distance + equal
    edges = [BITS * block // blocks for block in range(blocks + 1)]
    parts = [((1 << last) - 1) ^ ((1 << first) - 1) for first, last in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(parts, equal)]


def _pairs_within(buckets: Buckets) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs within every bucket, in portions."""
    sizes = np.diff(buckets.offsets)
    bucket_of = np.repeat(np.arange(len(sizes)), sizes)
    after = buckets.offsets[1:][bucket_of] - np.arange(len(buckets.ranks)) - 1  # members behind each one
    ends = np.cumsum(after)
    begin = 0
    while begin < len(after):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        left = np.repeat(np.arange(begin, end), after[begin:end])
        right = spans(np.arange(begin, end) + 1, after[begin:end])
        yield buckets.ranks[left], buckets.ranks[right]
        begin = end
