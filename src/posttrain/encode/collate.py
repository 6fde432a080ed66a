"""Examples side by side in one sequence: no padding, positions that restart, targets that never cross an edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.types import Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: B examples (segments) of T tokens in all, S of them supervised.

    Attention must stay within a segment. The hidden state at ``predict_S[s]`` predicts token ``targets_S[s]``, whose
    loss counts ``target_weights_S[s]`` times. Only these S states need log-probs.
    """

    ids_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    """0, 1, 2, ... from the start of each segment."""
    segment_lengths: NDArray[np.int64]
    """Tokens of each segment [B]; they sum to T."""
    weights_T: NDArray[np.float32]
    predict_S: NDArray[np.int64]
    targets_S: NDArray[np.int64]
    target_weights_S: NDArray[np.float32]
    row_ids: tuple[str, ...]
    """Row id of each segment [B], to name rows when something goes wrong."""

    @property
    def segment_starts(self) -> NDArray[np.int64]:
        """Edges of the segments [B + 1]: 0, ..., T (``cu_seqlens`` elsewhere)."""
        return np.concatenate([[0], np.cumsum(self.segment_lengths)]).astype(np.int64)


def collate(examples: Sequence[Tokens]) -> Batch:
    """Lay examples side by side in the given order."""
    if not examples:
        raise ValueError("a batch needs at least one example")
    lengths = np.array([len(example) for example in examples], np.int64)
    ids_T = np.concatenate([example.ids_T for example in examples]).astype(np.int64)
    weights_T = np.concatenate([example.weights_T for example in examples]).astype(np.float32)
    starts = np.cumsum(lengths) - lengths
    positions_T = np.arange(len(ids_T), dtype=np.int64) - np.repeat(starts, lengths)
    # The first token of a segment is predicted by nothing; the one before it belongs to another example.
    supervised = np.flatnonzero((weights_T != 0) & (positions_T > 0))
    return Batch(
        ids_T=ids_T,
        positions_T=positions_T,
        segment_lengths=lengths,
        weights_T=weights_T,
        predict_S=supervised - 1,
        targets_S=ids_T[supervised],
        target_weights_S=weights_T[supervised],
        row_ids=tuple(example.row_id for example in examples),
    )
