"""All pairs of sets with a Jaccard similarity of at least t, by prefix filtering (Xiao et al. 2008, PPJoin).

Order the shingles of every set by one global order. Two sets with similarity t or more share a shingle among the first
``|x| - ceil(t |x|) + 1`` of each: so those prefixes are the keys. Rare shingles come first, by a table of counts over
hashed slots: any global order is correct, this one makes small buckets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posttrain.data.dedup.jaccard import Sets, offsets_of
from posttrain.data.shingles import U64

_SLOT_BITS = 20
SLOTS = 1 << _SLOT_BITS
_ROUNDING = 1e-9


def slot_counts(sets: Sets) -> NDArray[np.uint32]:
    """Uint32 [SLOTS]: in how many sets the shingles of each slot stand."""
    return np.bincount(_slots(sets.values), minlength=SLOTS).astype(np.uint32)


def prefixes(sets: Sets, counts: NDArray[np.uint32], threshold: float) -> Sets:
    """The first shingles of every set in the order of ``counts``."""
    sizes_N = np.diff(sets.offsets_N)
    numbers = np.repeat(np.arange(len(sizes_N)), sizes_N)
    order = np.lexsort((sets.values, counts[_slots(sets.values)], numbers))
    taken_N = sizes_N - np.ceil(threshold * sizes_N - _ROUNDING).astype(np.int64) + 1
    place = np.arange(len(order)) - np.repeat(sets.offsets_N[:-1], sizes_N)
    return Sets(sets.values[order[place < np.repeat(taken_N, sizes_N)]], offsets_of(np.minimum(taken_N, sizes_N)))


def _slots(values: U64) -> NDArray[np.int64]:
    return (values & np.uint64(SLOTS - 1)).astype(np.int64)
