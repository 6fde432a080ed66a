"""Short prompts: where they must stand."""

from __future__ import annotations

import polars as pl
import pytest

from posttrain.data.decontaminate.benchmarks import Prompt
from posttrain.data.decontaminate.matching import ShortPrompts, matcher, stands_alone, turns_of, words
from posttrain.data.rows import rows_frame
from posttrain.data.text import COMPARED_ROLES, Fields, tokens
from posttrain.types import Message, Origin, SftRow


@pytest.mark.parametrize(
    "turn",
    [
        "Write Test",
        "  write,  TEST!! ",
        "Do this. Write Test. Then stop.",
        "Do this:\nwrite test\nthank you",
        'Answer: "Write test" please',
        "请回答：write test。谢谢",
        "说「Write Test」",
    ],
)
def test_a_prompt_stands_alone_in_a_turn_a_sentence_a_line_or_a_quotation(turn: str) -> None:
    assert stands_alone(turn, ("write", "test"))


@pytest.mark.parametrize("turn", ["Write test cases", "please write test", "write. a. test", "", "write\ntests"])
def test_a_prompt_inside_a_sentence_does_not_stand_alone(turn: str) -> None:
    assert not stands_alone(turn, ("write", "test"))


def test_a_prompt_of_several_sentences_stands_alone_as_whole_sentences() -> None:
    assert stands_alone("Well. Hi there. Who are you? Bye.", ("hi", "there", "who", "are", "you"))
    assert not stands_alone("Well. Hi there. Who are you today? Bye.", ("hi", "there", "who", "are", "you"))


def test_two_chinese_characters_are_one_word() -> None:
    assert words(tokens("证明勾股定理")) == 3
    assert words(tokens("who is 张三")) == 3
    assert words([]) == 0


def overlaps(prompt: str, row: list[Message], fields: Fields = "user", short: ShortPrompts = "anywhere") -> list[float]:
    find, _ = matcher([Prompt("b", "1", (prompt,))], n=8, limit=0.5, fields=fields, short_prompts=short)
    frame: pl.DataFrame = rows_frame([SftRow(tuple(row), Origin("f", 1), "s")])
    return find(frame)["overlap"].to_list()


@pytest.mark.parametrize(
    ("prompt", "turn", "anywhere", "alone"),
    [
        ("Who is Larry Page?", "I ask myself who is larry page, really", True, False),
        ("Who is Larry Page?", "WHO  IS LARRY-PAGE", True, True),
        ("What is Atlantis?", "And what is Atlantis like today", False, False),
        ("What is Atlantis?", "A question. What is Atlantis?", True, True),
        ("你是谁", "请问你是谁的老师", False, False),
        ("你是谁", "你是谁？", True, True),
        ("证明勾股定理。", "用面积法证明勾股定理的逆定理", False, False),
    ],
)
def test_where_short_prompts_are_found(prompt: str, turn: str, anywhere: bool, alone: bool) -> None:
    row = [Message("user", turn), Message("assistant", "x")]
    assert bool(overlaps(prompt, row, short="anywhere")) is anywhere
    assert bool(overlaps(prompt, row, short="alone")) is alone


def test_numbers_stay_distinct() -> None:
    row = [Message("user", "What is 5 + 9 times 2 minus 1 over 4?"), Message("assistant", "x")]
    assert overlaps("What is 3 + 4 times 2 minus 1 over 4?", row) == []


def test_a_short_prompt_is_found_with_its_own_numbers_and_operators() -> None:
    def found(prompt: str, turn: str) -> bool:
        return bool(overlaps(prompt, [Message("user", turn), Message("assistant", "x")]))

    assert found("What is 2³ + 4?", "Tell me: what is ２³ + 4, please?")
    assert not found("What is 2³ + 4?", "Tell me: what is 23 + 4, please?")
    assert not found("What is a > b here?", "Tell me: what is a < b here, please?")
    assert found("Tell me what I don’t know", "TELL ME WHAT I DON'T KNOW!")


@pytest.mark.parametrize(("fields", "found"), [("user", False), ("assistant", True), ("conversation", True)])
def test_only_the_chosen_turns_are_compared(fields: Fields, found: bool) -> None:
    prompt = "Explain in one short line how tides come about on earth"
    row = [Message("system", prompt), Message("user", "hello"), Message("assistant", prompt)]
    assert overlaps(prompt, row, fields=fields) == ([1.0] if found else [])


def test_a_rows_hits_over_the_limit_and_its_highest_below() -> None:
    prompts = [Prompt("b", str(i), (f"a b c d e f g h {' '.join(['z'] * i)}",)) for i in (1, 5, 9, 20)]
    find, owners = matcher(prompts, n=8, limit=0.5, fields="user", short_prompts="anywhere")
    assert owners == [(0, 0), (1, 0), (2, 0), (3, 0)]
    rows = [("a b c d e f g h",), ("x",), ("z z z z z z z z z z z z z z z z z z z",)]
    frame = rows_frame([SftRow((Message("user", t), Message("assistant", "y")), Origin("f", 1), "s") for (t,) in rows])
    hits = find(frame).rows()
    assert hits == [(0, 0, 8 / 9), (0, 1, 8 / 13), (2, 2, 9 / 17), (2, 3, 20 / 28)]
    assert find(frame.clear()).is_empty()


def test_the_turns_of_a_block_are_those_of_the_conversations() -> None:
    rows = [
        SftRow((Message("user", "one"), Message("assistant", "a"), Message("user", "")), Origin("f", 1), "s"),
        SftRow((Message("system", "s"), Message("assistant", "b")), Origin("f", 2), "s"),
        SftRow((Message("user", "two"), Message("tool", "t"), Message("assistant", "c")), Origin("f", 3), "s"),
    ]
    frame = rows_frame(rows)
    fields: Fields
    for fields in ("user", "assistant", "conversation"):
        expected = [
            (n, turn.content)
            for n, row in enumerate(rows)
            for turn in row.messages
            if turn.role in COMPARED_ROLES[fields]
        ]
        assert turns_of(frame, fields) == expected
    assert turns_of(frame.clear(), "user") == []
