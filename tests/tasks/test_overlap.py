"""BLEU and ROUGE-L: values worked by hand, published examples, slow twins, invariants."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.text import tokens
from posttrain.tasks import ngrams
from posttrain.tasks.ngrams import (
    added,
    bleu_counts,
    bleu_of,
    longest_common_subsequence,
    ngram_counts,
    rouge_l,
)

words = st.lists(st.sampled_from("abcd"), max_size=12)
some_words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


def corpus_bleu(texts, references, smoothing="exponential"):
    rows = zip(texts, references, strict=True)
    return bleu_of(added(bleu_counts(tokens(text), [tokens(one) for one in own]) for text, own in rows), smoothing)


def test_the_examples_in_the_docstrings_hold():
    found = doctest.testmod(ngrams)
    assert (found.failed, found.attempted) == (0, 3)


# ---- BLEU ----------------------------------------------------------------------------------------------------------


def test_clipping_as_in_the_paper():
    # Papineni et al. 2002, example 2: "the" seven times; modified unigram precision 2/7, bigrams 0.
    references = [["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]
    counts = bleu_counts(["the"] * 7, references)
    assert (counts.matches_N, counts.ngrams_N) == ((2, 0, 0, 0), (7, 6, 5, 4))
    # References of 6 and 7 tokens.
    assert (counts.length, counts.reference_length) == (7, 7)


def test_candidates_of_the_paper():
    # Papineni et al. 2002, example 1: unigram precisions 17/18 and 8/14, bigrams 10/17 and 1/13.
    references = [
        [
            "it",
            "is",
            "a",
            "guide",
            "to",
            "action",
            "that",
            "ensures",
            "that",
            "the",
            "military",
            "will",
            "forever",
            "heed",
            "party",
            "commands",
        ],
        [
            "it",
            "is",
            "the",
            "guiding",
            "principle",
            "which",
            "guarantees",
            "the",
            "military",
            "forces",
            "always",
            "being",
            "under",
            "the",
            "command",
            "of",
            "the",
            "party",
        ],
        [
            "it",
            "is",
            "the",
            "practical",
            "guide",
            "for",
            "the",
            "army",
            "always",
            "to",
            "heed",
            "the",
            "directions",
            "of",
            "the",
            "party",
        ],
    ]
    one = [
        "it",
        "is",
        "a",
        "guide",
        "to",
        "action",
        "which",
        "ensures",
        "that",
        "the",
        "military",
        "always",
        "obeys",
        "the",
        "commands",
        "of",
        "the",
        "party",
    ]
    two = [
        "it",
        "is",
        "to",
        "insure",
        "the",
        "troops",
        "forever",
        "hearing",
        "the",
        "activity",
        "guidebook",
        "that",
        "party",
        "direct",
    ]
    counts = bleu_counts(one, references)
    assert (counts.matches_N[:2], counts.ngrams_N[:2]) == ((17, 10), (18, 17))
    counts = bleu_counts(two, references)
    assert (counts.matches_N[:2], counts.ngrams_N[:2]) == ((8, 1), (14, 13))


def test_bleu_by_hand():
    # the cat sat on the mat / the cat sat on a mat: 5/6, 3/5, 2/4, 1/3 -> (1/12)^(1/4); as long as the reference.
    assert corpus_bleu(["The cat sat on the mat."], [["The cat sat on a mat!"]]) == pytest.approx((1 / 12) ** 0.25)
    # Four of six tokens: all precisions 1, exp(1 - 6/4).
    assert corpus_bleu(["the cat sat on"], [["the cat sat on a mat"]]) == pytest.approx(math.exp(-0.5))
    # Too long is punished by precision alone: 4/5, 3/4, 2/3, 1/2.
    assert corpus_bleu(["a b c d e"], [["a b c d"]]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_the_nearest_reference_sets_the_length_and_the_shorter_one_of_two():
    assert bleu_counts(["a"] * 5, [["a"] * 9, ["a"] * 3, ["a"] * 7]).reference_length == 3


def test_a_corpus_is_the_sum_of_its_counts_not_the_mean_of_its_scores():
    # 4 + 2 unigrams of 4 + 2, 3 + 1 of 3 + 1, 2 + 0 of 2, 1 + 0 of 1; 6 tokens against 4 + 4.
    found = corpus_bleu(["a b c d", "a b"], [["a b c d"], ["a b x y"]])
    assert found == pytest.approx(math.exp(1 - 8 / 6))


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [
        # a b c x against a b c d: 3/4, 2/3, 1/2, 0/1
        ("floor", (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25),
        ("exponential", (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25),
    ],
)
def test_smoothing_by_hand(smoothing, expected):
    assert corpus_bleu(["a b c x"], [["a b c d"]], smoothing=smoothing) == pytest.approx(expected)


def test_exponential_smoothing_halves_again_at_every_order_without_matches():
    # a x b y against a b: 2/4, 0/3, 0/2, 0/1 -> 1/2, 1/4 and 1/8 of a match
    counts = bleu_counts("axby", ["ab"])
    assert bleu_of(counts, "exponential") == pytest.approx((2 / 4 * (1 / 2) / 3 * (1 / 4) / 2 * (1 / 8)) ** 0.25)


def test_short_texts_score_by_the_orders_they_have_when_asked():
    counts = bleu_counts(["a", "b"], [["a", "b"]])
    assert bleu_of(counts, "floor") == 0.0
    assert bleu_of(counts, "floor", effective_order=True) == 1.0


@pytest.mark.parametrize("smoothing", ["floor", "exponential"])
def test_without_a_match_every_smoothing_gives_zero(smoothing):
    assert corpus_bleu(["x y z w v"], [["a b c d e"]], smoothing=smoothing) == 0.0
    assert corpus_bleu(["..."], [["a b c d e"]], smoothing=smoothing) == 0.0


def test_chinese_characters_are_tokens():
    assert corpus_bleu(["今天天气很好。"], [["今天天气真好！"]]) == pytest.approx(
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )


@given(some_words, st.lists(some_words, min_size=1, max_size=3), st.sampled_from(["floor", "exponential"]))
def test_bleu_is_a_share_and_a_text_equals_itself(text, references, smoothing):
    counts = bleu_counts(text, references)
    assert 0 <= bleu_of(counts, smoothing, effective_order=True) <= 1
    assert bleu_of(bleu_counts(text, [*references, text]), smoothing, effective_order=True) == pytest.approx(1.0)


@given(words, words, st.integers(1, 4))
def test_matches_are_those_of_a_slow_twin(text, reference, n):
    own = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    left = [tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)]
    matches = 0
    for gram in own:
        if gram in left:
            left.remove(gram)
            matches += 1
    counts = bleu_counts(text, [reference])
    assert (counts.matches_N[n - 1], counts.ngrams_N[n - 1]) == (matches, len(own))
    assert ngram_counts(text, n).total() == len(own)


@given(st.lists(st.tuples(words, some_words), min_size=1, max_size=5))
def test_counts_add_up_in_any_order(pairs):
    counts = [bleu_counts(text, [reference]) for text, reference in pairs]
    assert added(counts) == added(reversed(counts))
    assert added(counts).length == sum(len(text) for text, _ in pairs)


# ---- ROUGE-L -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "f"),
    # Lin 2004, section 3.1: S1 "police killed the gunman"; S2, S3 and S4 against it, beta = 1.
    [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4), ("the gunman police killed", 2 / 4)],
)
def test_the_sentences_of_the_paper(text, f):
    assert rouge_l(text, ["police killed the gunman"]) == pytest.approx(f)


def test_rouge_l_by_hand():
    # a c e is common: 3 of 4 and 3 of 5. F1 = 2 * 3 / 9.
    assert rouge_l("a x c e", ["a b c d e"]) == pytest.approx(6 / 9)


def test_the_best_reference_counts():
    assert rouge_l("a b", ["c d", "A, b!", "a"]) == 1.0


def test_nothing_in_common_is_zero():
    for text in ("x y", "", "?!"):
        assert rouge_l(text, ["a b"]) == 0.0


@given(words, words)
def test_the_common_subsequence_is_that_of_the_usual_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(a, b) == table[-1][-1]


def test_long_texts_are_no_trouble():
    text = " ".join(str(i % 977) for i in range(20_000))
    assert rouge_l(text, [text]) == 1.0
