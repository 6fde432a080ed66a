"""Which examples are computed together, and in which order they are seen. Pure functions of lengths and numbers."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack examples into micro-batches of at most ``budget`` tokens: best fit, longest first.

    Returns indices into ``lengths``; every index stands in exactly one micro-batch, longer examples alone. Equal
    input gives equal output: ties go to the earlier example and the older micro-batch; indices rise within a
    micro-batch, and micro-batches are ordered by their first index. Best-fit-decreasing needs at most
    11/9 of the fewest possible micro-batches, plus 4 (Johnson et al. 1974, doi:10.1137/0203025).
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, not {budget}")
    batches: list[list[int]] = []
    # (tokens left, number of the micro-batch), sorted: the first entry with room enough is the tightest fit.
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        at = bisect.bisect_left(room, (length, 0))
        if at == len(room):
            batches.append([index])
            left, number = budget - length, len(batches) - 1
        else:
            left, number = room.pop(at)
            batches[number].append(index)
            left -= length
        if left > 0:
            bisect.insort(room, (left, number))
    return sorted((sorted(batch) for batch in batches), key=lambda batch: batch[0])


def shuffled_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order [num_rows] in which an epoch visits its rows: the same for equal arguments, on every machine.

    Sorts raw PCG64 output, whose stream NumPy guarantees across versions (unlike that of ``permutation``).
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    return np.argsort(raw, kind="stable")
