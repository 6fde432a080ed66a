"""The sieve may let a text pass in vain, but never holds back one that shares an n-gram."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.decontaminate.index import build, encode, windows
from posttrain.data.decontaminate.sieve import passing, sieve
from posttrain.data.text import tokens


def test_only_texts_that_share_an_n_gram_pass() -> None:
    through = sieve({3: ["a b c d", "x y z"], 2: ["hello world"]})
    texts = ["", "b c d", "a b", "say HELLO, world!", "z y x", "d x y z"]
    assert passing(through, texts).tolist() == [1, 3, 5]
    assert passing(through, []).tolist() == []


def test_n_grams_over_the_end_of_a_text_are_looked_at_by_the_index() -> None:
    through = sieve({3: ["a b c"]})
    assert set(passing(through, ["a b", "c"]).tolist()) <= {0}


def test_nothing_passes_a_sieve_of_nothing() -> None:
    assert passing(sieve({}), ["a b c"]).tolist() == []


alphabet = st.sampled_from("aAbB1é́e \n_?中文Ａßﬁ🙂")


@given(st.lists(st.text(alphabet, max_size=12), max_size=4), st.lists(st.text(alphabet, max_size=12), max_size=4))
def test_whatever_shares_an_n_gram_passes(evaluation: list[str], texts: list[str]) -> None:
    index = build(evaluation, 3)
    turns = encode(index, list(enumerate(texts)))
    shared = {int(turns.turn_N[at]) for postings in index.postings for at in windows(postings, turns.ids_N)[0]}
    assert shared <= set(passing(index.sieve, texts).tolist())
    assert np.count_nonzero([len(tokens(text)) for text in texts]) >= len(shared)
