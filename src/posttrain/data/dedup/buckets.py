"""Buckets: rows that share a key. A pair in one bucket is a proposal, nothing more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.data.shingles import U64, Offsets, mix, offsets_of, spans


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
    packed = packed[np.concatenate([[True], packed[1:] != packed[:-1]])]
    names = packed >> bits
    same = names[1:] == names[:-1]
    inside = np.zeros(len(packed), np.bool_)
    inside[1:] |= same
    inside[:-1] |= same
    names, packed = names[inside], packed[inside]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(names)), np.bool_), names[1:] != names[:-1]]))
    sizes = np.diff(np.append(starts, len(names)))
    return (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), sizes
