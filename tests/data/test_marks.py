"""What tells look-alikes apart, pair by pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.marks import Marks, letters, marks, plain, unicode_form

DIFFERENT = [
    ("What is 2³ + 4?", "What is 23 + 4?"),
    ("Differentiate f(x) = x² + 3x.", "Differentiate f(x) = x2 + 3x."),
    ("Balance H₂O here.", "Balance H2O here."),
    ("Take ½ cup of it.", "Take 12 cup of it."),
    ("Write a regex for [A-Z]+ now.", "Write a regex for [a-z]+ now."),
    ("Does \\d+ match it?", "Does \\D+ match it?"),
    ("Does a?b match it?", "Does a+b match it?"),
    ("Turn the name into camel case: USERNAME", "Turn the name into camel case: userName"),
    ("Turn the name into camel case: USERNAME", "Turn the name into camel case: username"),
    ("Is p → ¬q true?", "Is p → q true?"),
    ("Is a > b so?", "Is a < b so?"),
    ("Is a ≤ b so?", "Is a ≥ b so?"),
    ("Is a == b so?", "Is a != b so?"),
    ("Solve x ± y now.", "Solve x + y now."),
    ("Is A ∪ B open?", "Is A ∩ B open?"),
    ("Add -5 and 3.", "Add 5 and 3."),
    ("Weigh 3.5 of it.", "Weigh 35 of it."),
    ("Weigh .5 of it.", "Weigh 5 of it."),
    ("Convert 5 mg of it.", "Convert 5 kg of it."),
    ("Convert 5 °C of it.", "Convert 5 °F of it."),
    ("It costs $5 now.", "It costs €5 now."),
    ("What does ls -a do?", "What does ls -A do?"),
    ("What does chmod +x do?", "What does chmod -x do?"),
    ("What does cd .. do?", "What does cd . do?"),
    ("What does 😀 say?", "What does 😢 say?"),
    ("Which of them is true?", "Which of them is not true?"),
    ("下面哪一个说法是正确的？", "下面哪一个说法是不正确的？"),
    ("小明有三个苹果，吃了一个。", "小明有五个苹果，吃了一个。"),
    ("她很高兴。", "她不高兴。"),
    ("他已经成年了。", "他未成年了。"),
    ("它真好吗？", "它不好吗？"),
    ("She always swims.", "She never swims."),
    ("Ist das heute wahr?", "Ist das heute nicht wahr?"),
    ("Это так?", "Это не так?"),
    ("Isso está certo?", "Isso não está certo?"),
    ("Give me two apples.", "Give me three apples."),
    ("What is 5! + 3?", "What is 5 + 3?"),
    ("Differentiate f'(x) now.", "Differentiate f(x) now."),
    ("What is (2 + 3) * 4?", "What is 2 + 3 * 4?"),
    ("Take the interval [a, b) here.", "Take the interval (a, b] here."),
    ('What is print("1" + "2")?', "What is print(1 + 2)?"),
    ("Say का once.", "Say की once."),
    ("It is 5 feet long.", "It is 5 inches long."),
    ("It takes 5 hours here.", "It takes 5 minutes here."),
    ("It costs 5 USD now.", "It costs 5 EUR now."),
    ("It has 5 Ω now.", "It has 5 kΩ now."),
    ("It has 5 μm now.", "It has 5 mm now."),
    ("长度是5米。", "长度是5厘米。"),
    ("重量是5斤。", "重量是5公斤。"),
    ("用了三分钟。", "用了三小时。"),
    ("价格是 5 元。", "价格是 5 美元。"),
    ("切成一半了。", "切成三了。"),
    ("The third one is it.", "The fifth one is it."),
    ("Take two thirds of it.", "Take three quarters of it."),
    ("Double the sum.", "Triple the sum."),
    ("It goes at 5 m/s now.", "It goes at 5 km/h now."),
    (r"Compute \sin x.", r"Compute \cos x."),
    (r"Is a \leq b so?", r"Is a \geq b so?"),
    (r"Does \d match it?", r"Does \w match it?"),
    (r"Print a\nb here.", r"Print a\tb here."),
    ("Invert [1, 2; 3, 4] now.", "Invert [1, 2, 3; 4] now."),
]
"""Pairs of exercises with the same words."""

SAME = [
    ("３＋４ 等于几？", "3+4 等于几?"),
    ("cafe\u0301 in Paris", "café in Paris"),
    ("ﬁne thing", "fine thing"),
    ("tell\u200b me, co\u00adoperate", "\ufefftell me, cooperate"),
    ("He is very tall.", "He is tall."),
    ("他很高。", "他高。"),
    ("Tell me a joke.", "tell me a joke"),
    ("TELL ME A JOKE", "Tell me a joke!"),
    ("Hello, world: it's fine; ok?", "Hello world it's fine, ok"),
    ("A well-known fact (Paris)", "a well known fact, Paris"),
    ("- one thing\n- two more", "* one thing\n* two more"),
    ("# Title\ntext", "## Title\ntext"),
    ("**Bold** text", "Bold text"),
    ("你好，请问：什么是爱？", "你好 请问 什么是爱"),
    ("“quoted” text", '"quoted" text'),
    ("3 + 4 = ?", "3+4=?"),
    ("wait... what is it", "wait what is it"),
    ("it ends - and goes on", "it ends — and goes on"),
]
"""Pairs that differ in the punctuation, capitals or Unicode form of prose alone."""


def different(left: Marks, right: Marks) -> bool:
    case = left.case != right.case and not left.shouted and not right.shouted
    return left.signs != right.signs or case


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_other_marks_are_another_exercise(left: str, right: str) -> None:
    assert marks(left).words == marks(right).words
    assert different(marks(left), marks(right))
    assert plain(left) != plain(right)


@pytest.mark.parametrize(("left", "right"), SAME)
def test_the_marks_of_prose_tell_nothing(left: str, right: str) -> None:
    assert marks(left).words == marks(right).words
    assert not different(marks(left), marks(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *DIFFERENT,
        *SAME,
        ("它重5kg吧", "它重5mg吧"),
        ("x is 5 kg", "“x” is 5 mg"),
        ("Say 5 m/s ①", "say 5 km/h"),
        ("Z²厘米", "Z 5厘米"),
        (r"一\sin个小时", r"一\cos 个小时"),
    ],
)
def test_equal_words_have_equal_letters(left: str, right: str) -> None:
    if marks(left).words == marks(right).words:
        assert letters(unicode_form(left)) == letters(unicode_form(right))
    else:
        assert (left, right) not in DIFFERENT + SAME


@given(
    st.text(st.sampled_from("aZé n'tokg5 不三我ⁿ²ℝ一_-,.。Ωμ米厘元半很\\")),
    st.text(st.sampled_from("aZé n'tokg5 不三我ⁿ²ℝ一_-,.。Ωμ米厘元半很\\")),
)
def test_letters_are_never_finer_than_words(left: str, right: str) -> None:
    if marks(left).words == marks(right).words:
        assert letters(unicode_form(left)) == letters(unicode_form(right))


@pytest.mark.parametrize(
    ("text", "other"), [("ℝ", "R"), ("xⁿ", "xn"), ("①", "1"), ("5 ㎡", "5 m2"), ("𝐀", "A"), ("a b", "ab"), ("a", "A")]
)
def test_equality_keeps_what_folding_loses(text: str, other: str) -> None:
    assert plain(text) != plain(other)


@given(st.text())
def test_the_form_of_a_text_is_its_own_form(text: str) -> None:
    spaced = f"  {plain(text)} "
    assert plain(spaced) == plain(text)
    assert plain(plain(text)) == plain(text)


def test_a_contraction_is_a_negation() -> None:
    assert marks("It isn't so, it can't be, it won’t").signs == marks("It is not so, it cannot be, it will not").signs
    assert marks("It isn't so").words == "it is so"
    assert marks("I DON’T KNOW").amounts == marks("I don't know").amounts


def test_amounts_know_no_order() -> None:
    assert marks("Add 3 and 14 to 5").amounts == marks("5, 14 and 3: what is the sum?").amounts
    assert marks("Add 3 and 14").amounts != marks("Add 3 and 15").amounts
    assert marks("Which is true?").amounts != marks("Which is not true?").amounts
    assert marks("写一首诗").amounts == marks("写首诗").amounts
