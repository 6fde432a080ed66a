"""Marks that are quoted are no verdicts, for every parser of ours and in both languages; verdicts in odd clothes still are."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.judge import quoting, verdicts
from posttrain.judge.verdicts import Missing

LABELS = ("complies", "refuses", "partly")
PARSERS = {
    "pair": (verdicts.pair_verdict, ("[[A]]", "[[B]]", "[[C]]"), "first"),
    "five": (verdicts.five_verdict, ("[[A>>B]]", "[[B>A]]", "[[A=B]]"), "first>>"),
    "rating": (verdicts.rating, ("[[5]]", "[[6]]", "[[7.5]]"), 5.0),
    "scores": (verdicts.two_scores, ("[[8, 6]]", "[[6, 8]]", "[[7, 7]]"), (8.0, 6.0)),
    "label": (lambda text: verdicts.label(text, LABELS), ("[[complies]]", "[[refuses]]", "[[partly]]"), 0),
}
QUOTED = [
    'The instructions say: output "[[A]]" if assistant A is better.',
    "I would answer [[A]] if it were shorter.",
    "If A were correct, I would answer [[A]].",
    "[[A]] if assistant A is better\n[[B]] if assistant B is better\n[[C]] if they are equally good",
    "- [[A]]: answer A is better\n- [[B]]: answer B is better\n\n- [[C]]: equally good",
    "1. Assistant A is better: [[A]]\n2. Assistant B is better: [[B]]\n3. Tie: [[C]]",
    "I need to finish with [[A]], [[B]] or [[C]].",
    "The format is:\n```\n[[A]]\n```\nI am not sure.",
    "It printed\n```python\nprint('[[A]]')\n```\nand that is all",
    'My final verdict should be in the format "[[C]]" for a tie.',
    'Example output: "My final verdict is tie: [[C]]".',
    "For example [[B]] or [[C]].",
    "Assistant B tells me to output [[B]].",
    'The response ends with "[[B]]".',
    "Comparing the two.\n\n> [[A]]\n\nis what the answer claims.",
    "Should I say [[A]]?",
    "It is not [[A]].",
    "The user wrote `[[B]]`.",
    "I could have said [[B]] had it been complete.",
    "When A is better: [[A]]",
    "如果回答A更好写 [[A]]，回答B更好写 [[B]]，两者一样好写 [[C]]。",
    "先比较，然后另起一行写出结论：回答A更好写 [[A]]，回答B更好写 [[B]]，两者一样好写 [[C]]。",
    "按照格式，应输出“[[A]]”表示A更好。",
    "例如 [[A]] 或 [[B]]",
    "若助手A更好，输出 [[A]]。",
    "用户要求输出 [[B]]。",
    "这不是 [[A]]。",
    "Assistant B asks the judge to output [[B]].",
    "I refuse to output [[A]].",
    "I can't say [[A]] with confidence.",
    "Were it not for the bug, [[A]].",
    "我无法给出 [[A]]。",
]
SAID = [
    "My verdict: [[A]]",
    "**[[A]]**",
    "`[[A]]`",
    "```\n[[A]]\n```",
    '"[[A]]"',
    'Final verdict: "[[A]]"',
    'My final verdict is: "Assistant A is slightly better: [[A]]".',
    "I would go with [[A]].",
    "If I had to choose, I would say [[A]].",
    "It's [[A]], not [[B]].",
    "[[A]] because B fails if the list is empty.",
    "B fails when the list is empty, so [[A]].",
    "Even though B is longer, [[A]].",
    "结论：[[A]]",
    "我的判断是“[[A]]”。",
    "当然，A更好：[[A]]",
    "回答A正确，回答B错误，所以 [[A]]",
    "要求全部满足，因此选 [[A]]",
    '[[A]]\n\nNote: "[[B]]" would mean that B is better.',
    'The prompt says "[[C]]" for a tie, but there is none.\n[[A]]',
    "Assistant A says the truth, so [[A]].",
    "Which one is better? [[A]]",
    "### Verdict\n[[A]]",
    "Winner: `[[A]]`",
    "[[A]] (answer A is better)",
    'A\'s use of "foo" is right, and so is "bar": [[A]]',
    "Verdict:\n```\n[[A]]\n```",
    'So the answer should be "[[A]]".',
    "两者相当，但A略好，[[A]]",
    "我不会选 [[B]]，而是 [[A]]",
    "I can't choose [[B]], so [[A]].",
    "It isn't [[B]], it is [[A]].",
]


def in_marks(text: str, marks: tuple[str, ...]) -> str:
    for old, new in zip(("[[A]]", "[[B]]", "[[C]]"), marks, strict=True):
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("text", QUOTED)
def test_quoted_marks_are_no_verdict(parser, text):
    parse, marks, _ = PARSERS[parser]
    assert isinstance(parse(in_marks(text, marks)), Missing)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("text", SAID)
def test_verdicts_are_read_whatever_stands_around_them(parser, text):
    parse, marks, expected = PARSERS[parser]
    assert parse(in_marks(text, marks)) == expected


def test_a_verdict_before_the_quoted_format_counts():
    assert verdicts.pair_verdict("I choose [[B]].\n\n(The format was [[A]] if A is better.)") == "second"
    assert verdicts.pair_verdict('"[[A]]" if A is better.').detail.startswith("only quoted")


@given(st.text(' \n"`>[]ABCif.?言“”', max_size=60))
def test_only_marks_are_blanked_and_nothing_moves(text):
    left = quoting.said(text, verdicts._PAIR)
    assert len(left) == len(text)
    assert all(new in (old, " ") for old, new in zip(text, left, strict=True))
    assert len(verdicts._PAIR.findall(left)) <= len(verdicts._PAIR.findall(text))


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(quoting) == (0, 5)
