"""ROUGE-L of the pool: the reference's numbers on English, right on Chinese; what answers are read as."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.synth.base import numbered
from posttrain.synth.pool import Pool, rouge_l
from posttrain.synth.preferences import read_ratings
from posttrain.synth.reading import instances, json_objects, written_tasks
from posttrain.synth.variety import topics, variety, verb_and_object

REFERENCE = [
    ("the cat_sat on the mat", "The cat sat on a mat!", 0.8333333333333334),
    ("don't stop", "do not stop", 0.3333333333333333),
    ("a b c d e", "e d c b a", 0.20000000000000004),
    ("Describe the water cycle in 3 steps.", "Describe, in three steps, the water cycle", 0.5714285714285714),
    ("Write a short poem about autumn leaves", "Write a poem about the leaves of autumn in a park", 0.5555555555555556),
]
"""F of rouge-score 0.1.2, RougeScorer(["rougeL"], use_stemmer=False)."""


@pytest.mark.parametrize(("first", "second", "expected"), REFERENCE)
def test_it_is_the_references_number_on_english(first: str, second: str, expected: float) -> None:
    assert rouge_l(first, second) == pytest.approx(expected, abs=1e-12)


def test_chinese_counts_by_characters() -> None:
    assert rouge_l("请写一首关于秋天的诗", "请写一首关于秋天的诗") == 1.0  # the reference says 0
    assert rouge_l("写一首诗", "写一首歌") == pytest.approx(0.75)
    assert rouge_l("用Python写一个函数", "用 python 写一个类") == pytest.approx(2 * 5 / (7 + 6))
    assert rouge_l("今天", "明日") == 0.0


def _slow(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "写", "诗", "7", "été"]), max_size=80)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=5))
def test_it_is_the_plain_recurrence_against_every_text(text: list[str], pool_texts: list[list[str]]) -> None:
    pool = Pool()
    for place, words in enumerate(pool_texts):
        pool.add(str(place), " ".join(words), made=False)
    found = pool.scores(" ".join(text))
    for words, score in zip(pool_texts, found, strict=True):
        expected = 2 * _slow(text, words) / (len(text) + len(words)) if text and words else 0.0
        assert score == pytest.approx(expected, abs=1e-12)
    best = pool.similar(" ".join(text), most=3)
    assert [one.score for one in best] == sorted(found.tolist(), reverse=True)[:3]


def test_the_index_finds_what_comparing_with_all_finds() -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices("abcdefgh写诗", k=chance.randint(1, 12))) for _ in range(2_000)]
    pool = Pool()
    for place, text in enumerate(texts):
        pool.add(str(place), text, made=False)
    for text in texts[:40]:
        scores = pool.scores(text)
        for but in (frozenset[str](), frozenset({text})):
            known = [0.0 if texts[place] in but else float(score) for place, score in enumerate(scores)]
            order = sorted(range(len(texts)), key=lambda place: (-known[place], place))[:10]
            assert pool.similar(text, but) == [(str(place), known[place]) for place in order]


@given(st.text(max_size=300))
def test_no_answer_breaks_its_reader(text: str) -> None:
    assert all(entry for entry in numbered(text))
    for reader in (written_tasks, lambda t: list(json_objects(t))):  # type: ignore[list-item]
        reader(text)
    for output_first in (False, True):
        instances(text, output_first=output_first)
    assert all(1 <= rating <= 5 for rating in read_ratings(text, 4).values())
    verb_and_object(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here are some:\n9. First task\nin two lines\n10) Second", ["First task\nin two lines", "Second"]),
        ("**1.** Bold", ["Bold"]),
        ("一、写诗\n二、唱歌", ["写诗", "唱歌"]),
        ("3.5 kilograms of flour", []),
        ("no list", []),
    ],
)
def test_numbered_lists(text: str, expected: list[str]) -> None:
    assert numbered(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1: 4\n2: N/A\n3: 5", {1: 4.0, 3: 5.0}),
        ("Answer 1: 3\nAnswer 2: 10", {1: 3.0}),  # 10 is not read as 1 (UltraFeedback #8)
        ("1：2\n2：4.5", {1: 2.0, 2: 4.5}),
        ("I can't rate them.", {}),
    ],
)
def test_ratings_are_read_or_missing(text: str, expected: dict[int, float]) -> None:
    assert read_ratings(text, 3) == expected


def test_variety_by_hand() -> None:
    found = variety(
        ["Write a poem", "Write a song", "Explain the moon to a child"], ["one two", "one", "one two three"]
    )
    assert found.first_words == pytest.approx(2 / 3)
    assert found.nearest == pytest.approx((2 / 3 + 2 / 3 + 2 * 1 / 9) / 3)
    assert found.pairs == {"write poem": 1, "write song": 1, "explain moon": 1}
    assert (found.instruction_words, found.reply_words) == (3, 2)
    assert verb_and_object("请写一首关于春天的诗歌") == "写 诗歌"


def test_topics_tell_two_subjects_apart() -> None:
    made = [f"how do I bake bread with flour number{k % 7}" for k in range(20)]
    real = [f"solve the equation with variable letter{k % 7}" for k in range(20)]
    found: list[Any] = topics(made, real)
    assert sum(one.made for one in found) == sum(one.yardstick for one in found) == 20
    assert all(one.made == 0 or one.yardstick == 0 for one in found)
