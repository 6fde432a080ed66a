"""Exact Jaccard similarity of sets of shingles, many pairs at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.data.dedup.greedy import firsts
from posttrain.data.shingles import U64, Offsets, Shingles, offsets_of, spans

_BITS = 52
"""Bits of a shingle's hash that are compared; the others number the pairs of a chunk. Two shingles of a pair of texts of a
hundred tokens each are taken for one with probability 1e-12."""
_CHUNK = 1 << (64 - _BITS)
_MASK = np.uint64((1 << _BITS) - 1)


@dataclass(frozen=True)
class Sets:
    """The distinct shingles of N texts, sorted within each: ``values[offsets_N[i] : offsets_N[i + 1]]``."""

    values: U64
    offsets_N: Offsets

    def __len__(self) -> int:
        return len(self.offsets_N) - 1


def distinct(shingles: Shingles) -> Sets:
    """The set of every text, cut to the compared bits."""
    offsets_N = shingles.offsets_N
    parts, counts = [], []
    for begin in range(0, len(offsets_N) - 1, _CHUNK):
        bounds = offsets_N[begin : begin + _CHUNK + 1]
        numbers = np.repeat(np.arange(len(bounds) - 1, dtype=np.uint64), np.diff(bounds))
        values = shingles.hashes_S[bounds[0] : bounds[-1]] >> np.uint64(64 - _BITS)
        values |= numbers << np.uint64(_BITS)
        values.sort()
        values = values[firsts(values)]
        counts.append(np.bincount((values >> np.uint64(_BITS)).astype(np.int64), minlength=len(bounds) - 1))
        parts.append(values & _MASK)
    return Sets(
        np.concatenate([np.empty(0, np.uint64), *parts]), offsets_of(np.concatenate([np.empty(0, np.int64), *counts]))
    )


def joined(parts: list[Sets]) -> Sets:
    """The sets of several blocks of texts, one after another."""
    counts = [np.diff(part.offsets_N) for part in parts]
    return Sets(
        np.concatenate([np.empty(0, np.uint64), *(part.values for part in parts)]),
        offsets_of(np.concatenate([np.empty(0, np.int64), *counts])),
    )


def jaccards(sets: Sets, left_P: NDArray[np.int64], right_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """Float64 [P]: |A n B| / |A u B| of the sets ``left_P[p]`` and ``right_P[p]``."""
    sizes = np.diff(sets.offsets_N)
    shared = [
        _shared(sets, left_P[begin : begin + _CHUNK], right_P[begin : begin + _CHUNK])
        for begin in range(0, len(left_P), _CHUNK)
    ]
    shared_P = np.concatenate([np.empty(0, np.int64), *shared])
    similarity_P: NDArray[np.float64] = shared_P / (sizes[left_P] + sizes[right_P] - shared_P)
    return similarity_P


def _shared(sets: Sets, left_P: NDArray[np.int64], right_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many shingles each of at most ``_CHUNK`` pairs has in common: those that stand twice in its sorted list."""
    values = np.concatenate([_numbered(sets, left_P), _numbered(sets, right_P)])
    values.sort()
    twice = values[1:][values[1:] == values[:-1]]
    counts: NDArray[np.int64] = np.bincount((twice >> np.uint64(_BITS)).astype(np.int64), minlength=len(left_P))
    return counts


def _numbered(sets: Sets, texts_P: NDArray[np.int64]) -> U64:
    """All shingles of the texts, with the number of the pair in the upper bits."""
    starts, counts = sets.offsets_N[texts_P], np.diff(sets.offsets_N)[texts_P]
    places = spans(starts, counts)
    numbers = np.repeat(np.arange(len(texts_P), dtype=np.uint64), counts)
    return sets.values[places] | (numbers << np.uint64(_BITS))
