from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.encode.collate import collate
from posttrain.encode.segments import Segments
from posttrain.types import Tokens


def tokens(ids: list[int], weights: list[float], row_id: str = "r") -> Tokens:
    return Tokens(np.array(ids, np.int32), np.array(weights, np.float32), row_id)


def test_by_hand():
    batch = collate([tokens([5, 6, 7], [0, 1, 0.5], "a"), tokens([8, 9], [0, 2], "b")])
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9]
    assert batch.segments.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.segments == Segments([3, 2])
    assert batch.predict_S.tolist() == [0, 1, 3]
    assert batch.targets_S.tolist() == [6, 7, 9]
    assert batch.target_weights_S.tolist() == [1, 0.5, 2]


def test_no_target_crosses_an_edge_even_if_a_first_token_had_a_weight():
    batch = collate([tokens([5, 6], [0, 0]), tokens([7, 8], [1, 1])])
    assert batch.predict_S.tolist() == [2]
    assert batch.targets_S.tolist() == [8]


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="at least one example"):
        collate([])


@given(st.lists(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0])), min_size=1), min_size=1))
def test_side_by_side_equals_one_by_one(parts: list[list[tuple[int, float]]]):
    examples = [tokens([i for i, _ in part], [0.0, *(w for _, w in part[1:])]) for part in parts]
    batch = collate(examples)
    singles = [collate([example]) for example in examples]
    starts = batch.segments.starts
    assert len(batch.ids_T) == sum(map(len, examples))  # no padding
    assert batch.predict_S.tolist() == [
        int(i) + int(s) for one, s in zip(singles, starts, strict=True) for i in one.predict_S
    ]
    assert batch.targets_S.tolist() == [int(i) for one in singles for i in one.targets_S]
    assert batch.target_weights_S.sum() == sum(example.weights_T.sum() for example in examples)
    segment_T = np.repeat(np.arange(len(examples)), batch.segments.lengths)
    assert (segment_T[batch.predict_S] == segment_T[batch.predict_S + 1]).all()
