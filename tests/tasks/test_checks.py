"""Checks of replies: what passes, what must not, and replies that try to."""

from __future__ import annotations

import doctest
import inspect
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.judge.quoting import answer_part
from posttrain.tasks import checks
from posttrain.tasks.checks import CHECKS, Check, count_words, number_equals, occurs, passes, stated_number

SAMPLES = {
    "contains_any": ("paris",),
    "contains_all": ("paris", "france"),
    "must_not_contain": ("london",),
    "starts_with": ("dear",),
    "ends_with": ("?",),
    "matches_regex": r"\A",
    "max_words": 5,
    "min_words": 1,
    "number_equals": 0.0,
    "all_of": (Check(kind="must_not_contain", expected=("x",)),),
}


def test_the_examples_in_the_docstrings_hold():
    found = doctest.testmod(checks)
    assert found.failed == 0
    assert found.attempted >= 15


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_has_examples_and_is_tried_here(kind):
    assert ">>>" in inspect.getdoc(CHECKS[kind])
    assert kind in SAMPLES
    assert "expected" in inspect.signature(CHECKS[kind]).parameters


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("reply", ["", "  \n\t", "<think>Paris, France?", "<think>dear 0</think>  "])
def test_no_check_passes_an_empty_answer(kind, reply):
    assert not passes(Check(kind=kind, expected=SAMPLES[kind]), reply)


@pytest.mark.parametrize("kind", CHECKS)
@given(reply=st.text(max_size=60))
def test_checks_answer_true_or_false_for_any_text(kind, reply):
    assert passes(Check(kind=kind, expected=SAMPLES[kind]), reply) in (True, False)


def test_an_unknown_check_is_a_config_error():
    with pytest.raises(ConfigError, match="did you mean 'contains_any'"):
        passes(Check(kind="contain_any", expected=("x",)), "x")


@pytest.mark.parametrize(
    ("wanted", "reply", "there"),
    [
        ("Paris", "PARIS!", True),
        ("Paris", "Comparisons", False),
        ("Paris", "Paris-based", True),
        ("Paris", "答案是Paris。", True),
        ("Paris", "P a r i s", False),
        ("7", "17", False),
        ("7", "7days", False),
        ("7", "７天", True),
        ("7", "1,7", True),
        ("New York", "new\n  york", True),
        ("H2O", "H₂O", True),
        ("café", "CAFE\u0301", True),
        ("straße", "STRASSE", True),
        ("don't", "I don’t", True),
        ("北京", "他去北京了", True),
        ("北京", "北 京", False),
        ("C++", "use C++, please", True),
        ("a.b", "axb", False),
        ("_x", "a_x", True),
    ],
)
def test_words_occur_as_whole_words(wanted, reply, there):
    assert occurs(wanted, reply) is there


@given(st.text(min_size=1, max_size=12).filter(lambda text: checks.comparable(text)))
def test_a_text_occurs_in_itself_and_between_quotes(text):
    assert occurs(text, text)
    assert occurs(text, f'so: "{text}" .')


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("12", 12),
        ("12.", 12),
        ("It is 12.5.", 12.5),
        ("1,000", 1000),
        ("1,234,567.5", 1234567.5),
        ("2,3", 3),
        ("1,0000", 0),
        ("-3", -3),
        ("5-3", 3),
        ("5 - 3", 3),
        ("is .5", 0.5),
        ("5 - 3 = 2", 2),
        ("it was −4 degrees", -4),
        ("x=-4", -4),
        ("3/4", 0.75),
        ("3 / 4", 0.75),
        ("1/0", 0),
        ("3/4/2024", 2024),
        ("$30.00", 30),
        ("50%", 50),
        ("60km", 60),
        ("H2O", None),
        ("一共12个", 12),
        ("１２", 12),
        ("**12**", 12),
        ("\\boxed{12} 13", 12),
        ("#### 42\nThat was step 3", 42),
        ("Answer: 12", 12),
        ("Answer: 12 (that is 5 + 7)", 12),
        ("**Answer:** 12 apples, from 3 boxes", 12),
        ("The answer is 3 + 4 = 7. I used 2 steps.", 7),
        ("Answer: 5. No, wait. Answer: 6. Two of 3", 6),
        ("The answer isn't 5 but 7", 7),
        ("答案：8（5+3）", 8),
        ("答案是 8，共 2 步", 8),
        ("答案: 没有。但是 5", 5),
        ("答：9。", 9),
        ("no idea", None),
        ("Answer:", None),
        ("seven", 7),
        ("Answer: two hundred and five", 205),
        ("The answer is one third of it", 1 / 3),
        ("Answer: minus three and a half", -3.5),
        ("Answer: one", 1),
        ("The answer is the sum of the two.\nSo 12", 12),
        ("She has five apples.", 5),
        ("One of them is right.", None),
        ("Answer: 3,5", 3.5),
        ("Answer: 0,75 kg", 0.75),
        ("Answer: (3,5)", 3),
        ("The answer is not 5 but 7.", 7),
        ("It is 12, not 13.", 12),
        ("一共是 12 个，不是 13 个。", 12),
        ("答案不是5，而是7。", 7),
        ("The answer is 18 = 3 * 6", 18),
        ("The answer is 18, because 3 * 6 = 18 and 2 = 2", 18),
        ("1\n2\n3", 3),
    ],
)
def test_stated_numbers(reply, number):
    assert stated_number(reply) == number


@given(st.integers(-(10**8), 10**8))
def test_a_number_is_found_however_it_is_written(number):
    for written in (
        f"{number}",
        f"{number:,}",
        f"so it is {number}.",
        f"Answer: {number}",
        f"答案：{number}。",
        f"({number})",
    ):
        assert number_equals(written, number), written
    assert not number_equals(f"{number}", number + 1)


def test_a_list_of_guesses_does_not_pass_by_its_first():
    assert not number_equals("7 or 8", 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("...", 0),
        ("one", 1),
        ("well-known fact", 2),
        ("don't", 1),
        ("3.5 kg", 2),
        ("今天下雨", 4),
        ("我用 GPT 写", 4),
        ("한국어", 3),
        ("a_b", 2),
        ("ｆｕｌｌ width", 2),
    ],
)
def test_words_are_counted(text, words):
    assert count_words(text) == words


def test_thinking_is_not_the_answer():
    assert answer_part("a</think>b</think> c") == "c"
    assert not passes(Check(kind="number_equals", expected=7), "<think>7</think> I do not know.")
    assert passes(Check(kind="number_equals", expected=7), "<think>6? no</think>\n7")


def test_quotes_and_markdown_do_not_hide_the_ends():
    assert CHECKS["ends_with"]("**Does it?**", ("?",))
    assert CHECKS["ends_with"]("“他明天去吗？”", ("？",))
    assert CHECKS["ends_with"]("「去吗？」", ("?",))
    assert CHECKS["starts_with"]("# Dear you", ("Dear",))
    assert not CHECKS["starts_with"]("Hello, dear", ("Dear",))


@pytest.mark.shared
def test_the_answers_of_gsm8k_are_read(shared_data):
    """With the data set's own ``####`` always; by the last number of the worked solution in 97 of 100 cases."""
    lines = (shared_data / "gsm8k" / "grade_school_math__data__test.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    gold = [float(text.split("#### ")[1].replace(",", "")) for text in solutions]
    assert all(number_equals(text, number) for text, number in zip(solutions, gold, strict=True))
    worked = [re.sub("<<.*?>>", "", text.split("####")[0]) for text in solutions]
    right = sum(number_equals(text, number) for text, number in zip(worked, gold, strict=True))
    assert right == 1283  # one solution writes 118 000
    assert len(gold) == 1319
