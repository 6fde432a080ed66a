"""Common prefixes laid once: every token of every sequence is there, in order, and only equal tokens are shared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.encode import segments as module
from posttrain.encode.collate import collate, collate_shared
from posttrain.encode.segments import SHORTEST_SHARED, Segments, share_prefixes
from posttrain.types import Tokens


def sequences(*texts: str) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]


def text(ids: np.ndarray) -> str:
    return bytes(ids.astype(np.uint8)).decode()


SYSTEM = "you are a helpful assistant. "
assert len(SYSTEM) > SHORTEST_SHARED


def test_layout_by_hand():
    segments = Segments([3, 2, 4], [-1, 0, 0])
    assert segments.starts == (0, 3, 5)
    assert segments.depths == (0, 3, 3)
    assert segments.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert segments.spans(1) == ((0, 5),)  # adjoining places are one span
    assert segments.spans(2) == ((0, 3), (5, 9))


def test_a_segment_continues_an_earlier_one():
    with pytest.raises(ValueError, match="can't continue"):
        Segments([1, 1], [1, -1])
    with pytest.raises(ValueError, match="can't continue"):
        Segments([1, 1], [-1])


def test_a_common_prefix_stands_once():
    segments, places, ids_T = share_prefixes(sequences(SYSTEM + "abc", SYSTEM + "xy"))
    assert text(ids_T) == SYSTEM + "abc" + "xy"
    assert segments == Segments([len(SYSTEM), 3, 2], [-1, 0, 0])
    assert [text(ids_T[place]) for place in places] == [SYSTEM + "abc", SYSTEM + "xy"]


def test_prefixes_nest():
    """The prompt of a pair below the system prompt of all."""
    prompt = SYSTEM + "which is the longest river?"
    segments, _, ids_T = share_prefixes(sequences(prompt + "Nile", SYSTEM + "hi", prompt + "Amazon"))
    assert text(ids_T) == prompt + "Nile" + "Amazon" + "hi"
    assert segments.parents == (-1, 0, 1, 1, 0)


def test_short_prefixes_are_not_shared_but_longer_ones_of_some_are():
    segments, _, ids_T = share_prefixes(sequences("ab" + "1" * 20 + "c", "ab" + "1" * 20 + "d", "ax"))
    assert text(ids_T) == "ab" + "1" * 20 + "c" + "d" + "ax"
    assert segments.parents == (-1, 0, 0, -1)


def test_equal_sequences_and_prefixes_of_others():
    segments, places, ids_T = share_prefixes(sequences(SYSTEM, SYSTEM + "z", SYSTEM))
    assert text(ids_T) == SYSTEM + "z"
    assert segments == Segments([len(SYSTEM), 1], [-1, 0])
    assert [len(place) for place in places] == [len(SYSTEM), len(SYSTEM) + 1, len(SYSTEM)]


texts = st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=9)


@given(texts, st.integers(1, 6))
def test_every_token_keeps_its_past(strings: list[str], shortest: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHORTEST_SHARED", shortest)
        segments, places, ids_T = share_prefixes(sequences(*strings))
    assert [text(ids_T[place]) for place in places] == strings
    assert len(ids_T) == sum(segments.lengths) <= sum(map(len, strings))
    assert all(length > 0 for length in segments.lengths)
    positions = segments.positions
    for place in places:
        assert positions[place].tolist() == list(range(len(place)))
    assert set(np.concatenate(places).tolist()) == set(range(len(ids_T)))  # nothing is computed for nobody
    if shortest == 1:  # then it is the trie of the texts, which has a node for every distinct prefix
        assert len(ids_T) == len({s[:n] for s in strings for n in range(1, len(s) + 1)})


@given(st.lists(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1), min_size=1))
def test_shared_batch_asks_for_the_same(parts: list[list[tuple[int, float]]]):
    examples = [
        Tokens(np.array([i for i, _ in p], np.int32), np.array([0.0, *(w for _, w in p[1:])], np.float32), f"{n}")
        for n, p in enumerate(parts)
    ]
    plain = collate(examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHORTEST_SHARED", 2)
        shared = collate_shared(examples)
    assert shared.targets_S.tolist() == plain.targets_S.tolist()
    assert shared.target_weights_S.tolist() == plain.target_weights_S.tolist()
    assert len(shared.ids_T) <= len(plain.ids_T)
    for a, b in zip(shared.predict_S, plain.predict_S, strict=True):
        assert history(shared, int(a)) == history(plain, int(b))


def history(batch, place: int) -> list[int]:
    """The tokens that the state at a place has seen."""
    segments = batch.segments
    index = max(i for i, start in enumerate(segments.starts) if start <= place)
    places = [p for start, end in segments.spans(index) for p in range(start, end)]
    return [int(batch.ids_T[p]) for p in places[: places.index(place) + 1]]


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="at least one example"):
        collate_shared([])


def test_nothing_behind_the_last_prediction_is_computed():
    example = Tokens(np.arange(6, dtype=np.int32), np.array([0, 0, 1, 1, 0, 0], np.float32), "r")
    batch = collate_shared([example])
    assert batch.ids_T.tolist() == [0, 1, 2]  # 3 is only a target
    assert batch.predict_S.tolist() == [1, 2]
    assert batch.targets_S.tolist() == [2, 3]
