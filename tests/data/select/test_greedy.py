"""The greedy walks: against plain sets and plain loops, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from posttrain.data.select import greedy
from posttrain.data.select.greedy import SeenHashes, ngram_hashes, walk_embeddings, walk_ngrams


@pytest.mark.parametrize("fresh", [1, 3, 1000])
@given(st.lists(st.sets(st.integers(0, 40) | st.integers(2**63, 2**64 - 1), max_size=12), max_size=30))
def test_seen_hashes_are_a_set(fresh: int, texts: list[set[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "_FRESH", fresh)
        seen, known = SeenHashes(), set[int]()
        for text in texts:
            hashes = np.array(sorted(text), np.uint64)
            new = seen.new(hashes)
            assert set(new.tolist()) == text - known
            seen.add(new)
            known |= text


def test_hashes_of_texts() -> None:
    def hashes(text: str) -> list[int]:
        return list(ngram_hashes(["before", text, "after"], 3)[1].tolist())

    assert len(hashes("one two three four")) == 2
    assert len(hashes("one two")) == 1
    assert len(hashes("北京的天气")) == 3
    assert hashes("ＡＢＣ one two") == hashes("abc, ONE two!")
    assert hashes("???") != hashes("!!!")  # no tokens: the text itself
    assert len(hashes("")) == 1
    assert not set(hashes("3 + 4")) & set(hashes("5 + 9"))
    assert len(hashes("no no no no no no")) == 1
    assert ngram_hashes([], 3) == []


def test_ngram_walk_by_hand() -> None:
    texts = [np.array(t, np.uint64) for t in ([1, 2, 3, 4], [3, 4, 5, 6], [4, 5, 6, 7], [1, 2], [8])]
    walk = walk_ngrams(texts, 5, min_novelty=0.5, budget=None)
    assert walk.values.tolist() == [1.0, 0.5, 0.25, 0.0, 1.0]  # 7 of the third is not remembered: it was not kept
    assert walk.kept.tolist() == [True, True, False, False, True]
    assert walk.seen == 5
    short = walk_ngrams(iter(texts), 5, min_novelty=0.5, budget=2)
    assert (short.kept.tolist(), short.seen) == ([True, True, False, False, False], 2)
    assert np.isnan(short.values[2:]).all()


def naive(vectors: np.ndarray, max_cosine: float, budget: int | None) -> list[int]:
    kept: list[int] = []
    for place, vector in enumerate(vectors):
        if len(kept) == budget:
            break
        if all(float(vector @ vectors[other]) <= max_cosine for other in kept):
            kept.append(place)
    return kept


@given(
    st.integers(1, 7),
    arrays(np.int8, st.tuples(st.integers(1, 25), st.just(3)), elements=st.integers(-3, 3)),
    st.sampled_from([-0.5, 0.0, 0.5, 0.9, 1.0]),
    st.none() | st.integers(1, 6),
)
def test_embedding_walk_is_the_plain_loop(size: int, raw: np.ndarray, max_cosine: float, budget: int | None) -> None:
    lengths = np.maximum(np.linalg.norm(raw.astype(float), axis=1, keepdims=True), 1e-9)
    vectors = (raw / lengths).astype(np.float32)
    # away from the limit: products of blocks round in another way than single ones
    cosines = vectors.astype(float) @ vectors.astype(float).T
    limit = max_cosine + (1e-5 if np.any(np.abs(cosines - max_cosine) < 1e-6) else 0)
    blocks = (vectors[begin : begin + size] for begin in range(0, len(vectors), size))
    walk = walk_embeddings(blocks, len(vectors), limit, budget)
    assert np.flatnonzero(walk.kept).tolist() == naive(vectors, limit, budget)
    for place in range(walk.seen):
        before = [p for p in np.flatnonzero(walk.kept) if p < place]
        if before:
            near = [float(vectors[place] @ vectors[p]) for p in before]
            assert walk.values[place] == pytest.approx(max(near), abs=1e-6)
            assert float(vectors[place] @ vectors[walk.nearest[place]]) == pytest.approx(max(near), abs=1e-6)
        else:
            assert walk.values[place] == -np.inf


def test_kept_vectors_grow_over_many_blocks() -> None:
    vectors = np.eye(1500, dtype=np.float32)
    walk = walk_embeddings((vectors[k : k + 100] for k in range(0, 1500, 100)), 1500, 0.5, None)
    assert walk.kept.all()
