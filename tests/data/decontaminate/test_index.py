"""The inverted index against values worked by hand and against the rule written down naively."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.decontaminate import index as module
from posttrain.data.decontaminate.index import Index, build, covers, find
from posttrain.data.shingles import hash_tokens

EVALUATION = "a b c d e f g h i j"


def cover(index: Index, *turns: tuple[int, str]) -> dict[tuple[int, int], int]:
    """(row, text) -> matched tokens."""
    found: dict[tuple[int, int], int] = {}
    row_of = np.array([row for row, _ in turns], np.int64)
    for hits in find(index, hash_tokens([text for _, text in turns])):
        got = covers(hits.postings, row_of[hits.text], hits.gram)
        found |= {(int(r), int(t)): int(c) for r, t, c in got.iter_rows()}
    return found


def naive(texts: list[list[str]], rows: list[list[list[str]]], n: int) -> dict[tuple[int, int], int]:
    """The rule as it is written: a token is matched where an n-gram that holds it stands in the row."""
    found = {}
    for row, turns in enumerate(rows):
        for number, text in enumerate(texts):
            size = min(n, len(text))
            there = {tuple(turn[i : i + size]) for turn in turns for i in range(len(turn) - size + 1)}
            matched = {
                i + step
                for i in range(len(text) - size + 1)
                if size and tuple(text[i : i + size]) in there
                for step in range(size)
            }
            if matched:
                found[row, number] = len(matched)
    return found


def test_an_8_gram_covers_its_eight_tokens() -> None:
    index = build([EVALUATION], 8)
    assert cover(index, (0, "x a b c d e f g h y")) == {(0, 0): 8}
    assert cover(index, (0, "x b c d e f g h i y")) == {(0, 0): 8}


def test_overlapping_8_grams_cover_their_union() -> None:
    index = build([EVALUATION], 8)
    assert cover(index, (0, "a b c d e f g h i x")) == {(0, 0): 9}
    assert cover(index, (0, "a b c d e f g h x c d e f g h i j")) == {(0, 0): 10}, "two runs in one turn"
    assert cover(index, (0, "a b c d e f g h"), (0, "c d e f g h i j")) == {(0, 0): 10}, "two runs in two turns"


def test_a_repeated_run_counts_once() -> None:
    index = build([EVALUATION], 8)
    assert cover(index, (0, "a b c d e f g h x a b c d e f g h")) == {(0, 0): 8}


def test_seven_tokens_are_not_enough_and_no_n_gram_reaches_over_the_end_of_a_turn() -> None:
    index = build([EVALUATION], 8)
    assert cover(index, (0, "a b c d e f g x h i j")) == {}
    assert cover(index, (0, "a b c d"), (0, "e f g h")) == {}
    assert cover(index, (0, "a b c d e f g"), (1, "h i j")) == {}


def test_no_n_gram_reaches_from_one_text_into_the_next() -> None:
    index = build(["a b c d e f g h", "i j k l m n o p"], 8)
    assert cover(index, (0, "e f g h i j k l")) == {}


def test_a_shorter_text_is_one_n_gram_of_its_own_length() -> None:
    index = build(["Who is Larry Page?", "Hi"], 8)
    assert cover(index, (0, "Tell me: WHO is Larry Page?"), (1, "who is larry")) == {(0, 0): 4}
    assert cover(index, (3, "Hi!")) == {(3, 1): 1}


def test_a_short_text_is_not_found_by_the_n_grams_of_a_long_one() -> None:
    index = build([EVALUATION, "a b"], 8)
    assert [postings.n for postings in index.postings] == [2, 8]
    assert [len(postings.keys_U) for postings in index.postings] == [1, 3]


def test_an_n_gram_in_many_texts_hits_them_all() -> None:
    texts = [f"a b c d e f g h {number}" for number in range(500)]
    index = build(texts, 8)
    assert cover(index, (7, "a b c d e f g h")) == {(7, number): 8 for number in range(500)}


def test_texts_without_words_and_empty_turns_are_nothing() -> None:
    index = build(["?!", EVALUATION], 8)
    assert index.length_X.tolist() == [0, 10]
    assert cover(index, (0, ""), (1, "?!")) == {}
    assert cover(build([""], 8), (0, "a")) == {}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    texts = [f"{EVALUATION} {number}" for number in range(9)]
    turns = [(row, "a b c d e f g h i j " + str(row)) for row in (0, 1, 2, 5, 8)]
    expected = cover(build(texts, 8), *turns)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert cover(build(texts, 8), *turns) == expected
    assert len(expected) == 45
    assert expected[5, 5] == 11
    assert expected[5, 4] == 10


words = st.lists(st.sampled_from("abc"), max_size=14)


@given(texts=st.lists(words, min_size=1, max_size=4), rows=st.lists(st.lists(words, max_size=3), max_size=4))
@pytest.mark.parametrize("n", [2, 3, 8])
def test_covers_what_the_rule_says(n: int, texts: list[list[str]], rows: list[list[list[str]]]) -> None:
    turns = [(row, " ".join(turn)) for row, its in enumerate(rows) for turn in its]
    assert cover(build([" ".join(text) for text in texts], n), *turns) == naive(texts, rows, n)
