"""Near-duplicates by meaning: cosines of sentence vectors, every row against every kept row, in the order of ranks.

No index: matrix products of blocks are exact, and the kept rows are all there is to compare with. Texts are encoded in
batches by rank, so the vectors do not depend on the order of the file or on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posttrain.data.dedup.greedy import Ranks, Settled
from posttrain.data.dedup.passages import Common
from posttrain.data.encoders import Vectors, loaded_encoder
from posttrain.data.engine import map_blocks
from posttrain.data.steps import StepRun, stored_texts
from posttrain.data.text import Fields

_BATCH = 256
"""Texts encoded together."""
_KEPT_BLOCK = 8192
_ROUNDING = 1e-6
"""Equal texts encoded in different batches have a cosine of 1 but for this."""

TellApart = Callable[[Ranks, Ranks, NDArray[np.float64]], NDArray[np.float64]]
"""(left, right, cosines) -> the cosines that count."""
THRESHOLDS = {"use-multilingual": 0.9}
"""Cosines for deletion, calibrated in docs/data-dedup.md: higher than those from which a pair is worth a look."""


def default_threshold(name: str) -> float:
    """The cosine from which rows are dropped. Raises ConfigError where it was not calibrated for this encoder."""
    return THRESHOLDS[name] if name in THRESHOLDS else loaded_encoder(name).threshold


def settle_by_cosine(
    rows_file: Path,
    fields: Fields,
    row_of_rank: NDArray[np.int64],
    blank_N: NDArray[np.bool_],
    name: str,
    threshold: float,
    common: Common,
    tell_apart: TellApart,
    run: StepRun,
) -> Settled:
    """Walk the ranks whose text is not blank."""
    best_N, representative_N = np.zeros(len(blank_N)), np.full(len(blank_N), -1, np.int64)
    ranks = np.flatnonzero(~blank_N)
    batches = [ranks[begin : begin + _BATCH] for begin in range(0, len(ranks), _BATCH)]
    limit = threshold - _ROUNDING
    kept: list[tuple[Ranks, Vectors]] = []
    compared = 0
    with stored_texts(rows_file, fields) as texts:
        batch_texts = ([texts[row] for row in row_of_rank[batch].tolist()] for batch in batches)
        found = map_blocks(partial(_encode, name, common), batch_texts, run)
        for number, (batch, vectors_B) in enumerate(zip(batches, found, strict=True), 1):
            best_B, nearest_B = np.zeros(len(batch)), np.full(len(batch), -1, np.int64)
            for others, vectors in kept:
                cosines = _that_count(vectors_B @ vectors.T, batch, others, limit, tell_apart)
                _improve(best_B, nearest_B, cosines, others)
                compared += cosines.size
            within = _that_count(vectors_B @ vectors_B.T, batch, batch, limit, tell_apart)
            for place in range(len(batch)):
                if best_B[place] < limit:  # it stays, so the later ones are compared with it
                    later = slice(place + 1, None)
                    _improve(
                        best_B[later], nearest_B[later], within[later, place : place + 1], batch[place : place + 1]
                    )
            stays_B = best_B < limit
            best_N[batch], representative_N[batch] = np.minimum(best_B, 1.0), np.where(stays_B, -1, nearest_B)
            _add(kept, batch[stays_B], vectors_B[stays_B])
            compared += len(batch) * (len(batch) - 1) // 2
            run.progress("encoding", min(number * _BATCH, len(ranks)), len(ranks))
    return Settled(representative_N, best_N, compared)


def _encode(name: str, common: Common, texts: Sequence[str]) -> Vectors:
    return loaded_encoder(name).encode(common.cut(texts))


def _that_count(
    cosines_BK: NDArray[np.float32],
    batch: Ranks,
    others: Ranks,
    limit: float,
    tell_apart: TellApart,
) -> NDArray[np.float64]:
    """The cosines, with those above the limit as ``tell_apart`` has them (only where the other row comes first)."""
    cosines = cosines_BK.astype(np.float64)
    right, left = np.nonzero(cosines >= limit)
    first = others[left] < batch[right]
    right, left = right[first], left[first]
    cosines[right, left] = tell_apart(others[left], batch[right], cosines[right, left])
    return cosines


def _improve(best_B: NDArray[np.float64], nearest_B: Ranks, cosines_BK: NDArray[np.float64], others: Ranks) -> None:
    """Put larger cosines, and whose they are, in the place of smaller ones."""
    if not cosines_BK.size:
        return
    places = cosines_BK.argmax(axis=1)
    values = cosines_BK[np.arange(len(places)), places]
    better = values > best_B
    best_B[better], nearest_B[better] = values[better], others[places[better]]


def _add(kept: list[tuple[Ranks, Vectors]], ranks: Ranks, vectors: Vectors) -> None:
    """Add rows that stay to the blocks of those before them; small blocks are joined as soon as they are enough for a large one."""
    kept.append((ranks, vectors))
    small = [block for block in kept if len(block[0]) < _KEPT_BLOCK]
    if sum(len(each) for each, _ in small) >= _KEPT_BLOCK:
        kept[-len(small) :] = [(np.concatenate([r for r, _ in small]), np.concatenate([v for _, v in small]))]
