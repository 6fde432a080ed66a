"""Hashed tokens are the tokens of ``text.tokens``; hashed n-grams are those of ``plain_ngrams``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_ngrams import ngrams

from posttrain.data import shingles as module
from posttrain.data.shingles import hash_shingles, hash_tokens, skeletons
from posttrain.data.text import normalised, tokens

TRICKY = "aZ_0９é\u0301\u0327ßﬁİǅ①½…™一二五〇龜丽豈가각ᄀ\u1161\u11a8ㄱｶ゛\u3099ア\u09c7\u09be\u0b47\u0b3eก\u0e38\u200d😀🄀𝐀\U0002f800\U00020000\U000e0100\u00a0\u2028\n -+Ω\u0345ΐᾳ"
texts = st.lists(st.one_of(st.text(), st.text(st.sampled_from(TRICKY))), max_size=6)


def same_partition(keys: Sequence[object], hashes: Sequence[int]) -> bool:
    """Whether keys are equal exactly where hashes are."""
    return len(set(keys)) == len(set(hashes)) == len(set(zip(keys, hashes, strict=True)))


@given(texts)
def test_tokens_are_the_same(found: list[str]) -> None:
    hashed = hash_tokens(found)
    expected = [tokens(text) for text in found]
    assert np.diff(hashed.offsets_N).tolist() == [len(part) for part in expected]
    assert same_partition([token for part in expected for token in part], hashed.hashes_T.tolist())


@given(texts, st.integers(1, 6))
def test_shingles_are_the_same(found: list[str], n: int) -> None:
    hashed = hash_shingles(hash_tokens(found), found, n)
    sets = [set(hashed.hashes_S[a:b].tolist()) for a, b in pairwise(hashed.offsets_N)]
    grams: list[set[object]] = [
        set(ngrams(tokens(text), n)) or {("text", " ".join(normalised(text).split()))} for text in found
    ]
    assert [len(part) for part in sets] == [len(part) for part in grams]
    for i, left in enumerate(grams):
        for j, right in enumerate(grams):
            assert len(left & right) == len(sets[i] & sets[j])


@pytest.mark.slow
def test_every_code_point_is_what_the_tokenizer_takes_it_for() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    found = [f"x {character} x{character}x" for character in characters]
    hashed = hash_tokens(found)
    expected = [tokens(text) for text in found]
    assert np.diff(hashed.offsets_N).tolist() == [len(part) for part in expected]
    assert same_partition([token for part in expected for token in part], hashed.hashes_T.tolist())


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["The quick brown fox jumps", "", "ﬁ 一二三四五六", "x" * 300, "a b c d e f g " * 50, "..."]
    whole = hash_shingles(hash_tokens(found), found, 3)
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 16)
    cut = hash_shingles(hash_tokens(found), found, 3)
    assert whole.hashes_S.tolist() == cut.hashes_S.tolist()
    assert whole.offsets_N.tolist() == cut.offsets_N.tolist()


def test_skeletons_are_blind_to_numbers_alone() -> None:
    found = ["Add 3 and 14", "add 27 AND 5!", "add 3 or 14", "and 3 add 14", "小明有三个苹果", "小明有5个苹果", ""]
    a, b, c, d, e, f, _ = skeletons(hash_tokens(found)).tolist()
    assert a == b
    assert e == f
    assert len({a, c, d, e}) == 4


def test_no_texts() -> None:
    assert hash_shingles(hash_tokens([]), [], 5).offsets_N.tolist() == [0]
