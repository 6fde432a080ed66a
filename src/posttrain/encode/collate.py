"""Examples in one row of tokens: no padding, positions that restart, targets that never cross an edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.segments import Segments, share_prefixes
from posttrain.types import Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: B examples in segments of T tokens in all, S tokens supervised.

    A token attends to its own segment and those it continues. The hidden state at ``predict_S[s]`` predicts token
    ``targets_S[s]``, whose loss counts ``target_weights_S[s]`` times. Only these S states need log-probs. The S targets
    stand in the order of the examples, each example's in the order of its tokens.
    """

    ids_T: NDArray[np.int64]
    segments: Segments
    predict_S: NDArray[np.int64]
    targets_S: NDArray[np.int64]
    target_weights_S: NDArray[np.float32]
    counts_B: NDArray[np.int64]
    """How many of the S targets each example has."""


def collate(examples: Sequence[Tokens]) -> Batch:
    """Lay whole examples side by side in the given order, one segment each."""
    if not examples:
        raise ValueError("a batch needs at least one example")
    segments = Segments([len(example) for example in examples])
    places = [np.arange(start, start + len(e)) for start, e in zip(segments.starts, examples, strict=True)]
    ids_T = np.concatenate([example.ids_T for example in examples]).astype(np.int64)
    return _batch(examples, ids_T, segments, places)


def collate_shared(examples: Sequence[Tokens]) -> Batch:
    """The batch that gives the log-probs of `collate` from the fewest tokens: what compute goes through.

    Common prefixes stand once, and tokens behind the last prediction of their example are left out: nothing that is
    asked for depends on them.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    predicting = [int(_supervised(example)[-1:].sum()) for example in examples]
    segments, places, ids_T = share_prefixes(
        [example.ids_T[: max(1, end)] for example, end in zip(examples, predicting, strict=True)]
    )
    return _batch(examples, ids_T, segments, places)


def _supervised(example: Tokens) -> NDArray[np.int64]:
    """Indices of an example's targets. Its first token is none: nothing predicts it."""
    return np.flatnonzero(example.weights_T[1:]) + 1


def _batch(
    examples: Sequence[Tokens], ids_T: NDArray[np.int64], segments: Segments, places: Sequence[NDArray[np.int64]]
) -> Batch:
    targets = [_supervised(example) for example in examples]
    return Batch(
        ids_T=ids_T,
        segments=segments,
        predict_S=np.concatenate([place[t - 1] for place, t in zip(places, targets, strict=True)]),
        targets_S=np.concatenate([e.ids_T[t] for e, t in zip(examples, targets, strict=True)]).astype(np.int64),
        target_weights_S=np.concatenate([e.weights_T[t] for e, t in zip(examples, targets, strict=True)]),
        counts_B=np.array([len(t) for t in targets], np.int64),
    )
