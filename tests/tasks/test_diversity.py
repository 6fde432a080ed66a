"""Diversity: values worked by hand, slow twins, invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks.diversity import embedding_spread
from posttrain.tasks.ngrams import distinct_n, longest_repeat, repetition, self_bleu

texts = st.lists(st.text(alphabet="ab c", max_size=12), max_size=5)


# ---- distinct-n ----------------------------------------------------------------------------------------------------


def test_distinct_by_hand():
    replies = ["The cat, the dog.", "the cat"]
    assert distinct_n(replies, 1) == pytest.approx(3 / 6)  # the cat dog of six
    assert distinct_n(replies, 2) == pytest.approx(3 / 4)  # the-cat cat-the the-dog; the-cat again
    assert distinct_n(replies, 3) == 1.0  # n-grams do not run over the end of a reply
    assert distinct_n(replies, 5) is None
    assert distinct_n(["你好你好"], 1) == 0.5


def test_the_same_reply_again_divides_by_the_number_of_replies():
    assert distinct_n(["one two three four"] * 8, 2) == pytest.approx(1 / 8)


@given(texts, st.integers(1, 3))
def test_distinct_is_a_share_in_any_order(replies, n):
    found = distinct_n(replies, n)
    assert found == distinct_n(replies[::-1], n)
    assert found is None or 0 < found <= 1


# ---- self-BLEU -----------------------------------------------------------------------------------------------------


def test_self_bleu_by_hand():
    # a b c d and a b c x against each other: 3/4, 2/3, 1/2, 0.1/1 (floor), both ways.
    assert self_bleu(["a b c d", "a b c x"]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)
    # The third has nothing in common: 0; the others see it as a useless reference.
    assert self_bleu(["a b", "a b", "x y"]) == pytest.approx(2 / 3)


def test_samples_without_tokens_are_left_out():
    assert self_bleu(["a b", "...", "a b"]) == 1.0
    assert self_bleu(["a b", "..."]) is None


@given(st.lists(st.sampled_from(["a b c", "a b d e", "c", "d e f g h", ""]), max_size=5))
def test_self_bleu_is_a_share_in_any_order(samples):
    found = self_bleu(samples)
    assert found == pytest.approx(self_bleu(samples[::-1]))
    assert found is None or 0 <= found <= 1


# ---- embeddings ----------------------------------------------------------------------------------------------------


def test_spread_by_hand():
    assert embedding_spread([[1, 0], [0, 2]]) == pytest.approx(1.0)
    assert embedding_spread([[1, 0], [-3, 0]]) == pytest.approx(2.0)
    # 45 degrees twice, 90 once.
    assert embedding_spread([[1, 0], [1, 1], [0, 1]]) == pytest.approx(1 - (2 * math.sqrt(0.5) + 0) / 3)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 1000))
def test_spread_is_the_mean_over_pairs(samples, dimensions, seed):
    rows_ND = np.random.default_rng(seed).normal(size=(samples, dimensions))
    cosines = [
        rows_ND[i] @ rows_ND[j] / np.linalg.norm(rows_ND[i]) / np.linalg.norm(rows_ND[j])
        for i in range(samples)
        for j in range(i)
    ]
    assert embedding_spread(rows_ND) == pytest.approx(1 - np.mean(cosines), abs=1e-12)
    assert embedding_spread(rows_ND * 1e200) == pytest.approx(embedding_spread(rows_ND))


def test_spread_of_nearly_equal_rows_keeps_its_digits():
    # cos = 1 / sqrt(1 + 1e-18): the distance is 5e-19, far below the rounding of 1 - cos.
    assert embedding_spread([[1.0, 0.0], [1.0, 1e-9]]) == pytest.approx(5e-19, rel=1e-6)
    assert embedding_spread([[1.0, 2.0]] * 3) == 0.0


# ---- repetition ----------------------------------------------------------------------------------------------------


def test_repetition_by_hand():
    assert repetition("a b c d e") == (0.0, 0)
    assert repetition("a b c") is None
    # 7 four-grams of which the last 3 stood before (period 4): a b c d a b c d a b
    assert repetition("a b c d a b c d a b") == pytest.approx((3 / 7, 6))
    assert repetition("go " * 10)[0] == pytest.approx(6 / 7)


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_the_longest_repeat_is_that_of_a_slow_twin(words):
    def repeats(length):
        runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
        return len(set(runs)) < len(runs)

    assert longest_repeat(words) == max((n for n in range(1, len(words)) if repeats(n)), default=0)


def test_long_loops_are_measured():
    assert longest_repeat(["x"] * 50_000) == 49_999
    rng = np.random.default_rng(0)
    assert longest_repeat([str(i) for i in rng.permutation(20_000)] * 2) == 20_000


# ---- a set of prompts ----------------------------------------------------------------------------------------------


def random_samples(seed: int, prompts: int = 15) -> dict[int, list[str]]:
    rng = np.random.default_rng(seed)
    return {p: [" ".join(rng.choice(list("abcde"), rng.integers(4, 9))) for _ in range(3)] for p in range(prompts)}
