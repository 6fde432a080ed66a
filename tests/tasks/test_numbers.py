"""Numbers as they are written: notations worked by hand, what is no number, and texts made to confuse."""

from __future__ import annotations

import doctest
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import numbers
from posttrain.tasks.checks import number_equals, stated_number
from posttrain.tasks.numbers import numbers_in


def values(text: str) -> list[float]:
    return [one.value for one in numbers_in(text)]


def test_the_examples_in_the_docstrings_hold():
    found = doctest.testmod(numbers)
    assert found.failed == 0
    assert found.attempted >= 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # groups of thousands
        *[("9{,}500", [9500]), (r"\boxed{9{,}500}", [9500]), (r"9\,500", [9500]), ("$1,234.50", [1234.5])],
        *[("1 234", [1234]), ("1\u202f234\u00a0567", [1234567]), ("€1.234,50", [1234.5]), ("1.234.567", [1234567])],
        *[("1'234", [1234]), ("1_000", [1000]), ("12,34,567", [1234567]), ("1,2", [1, 2]), ("12 34", [12, 34])],
        *[("5 1234", [5, 1234]), ("1 234 5", [1, 234, 5]), ("2.345", [2.345])],
        # fractions
        *[(r"\frac{3}{4}", [0.75]), (r"-\dfrac{7}{2}", [-3.5]), (r"\tfrac34", [0.75]), (r"2\frac{1}{2}", [2.5])],
        *[(r"\frac{-3}{4}", [-0.75]), (r"\frac{1{,}500}{3}", [500]), ("½", [0.5]), ("1½ cups", [1.5]), ("-½", [-0.5])],
        *[("3/4", [0.75]), ("1 3/4", [1.75]), ("3⁄4", [0.75]), ("5 7/2", [5, 3.5]), ("1/0", [1, 0])],
        # powers, and what is none
        *[("9²", [81]), ("10³", [1000]), ("2⁻¹", [0.5]), ("2^3", [8]), ("2**3", [8]), ("2^{10}", [1024])],
        *[("4^(1/2)", [2]), ("-2^2", [-4]), ("25 m^2", [25]), ("25 m²", [25]), (r"25\,\text{cm}^{2}", [25])],
        *[("x^2 = 9", [9]), ("x_1 = 5", [5]), ("H₂O", []), ("100^1000", [100])],
        *[("1.5e3", [1500]), ("2E-3", [0.002]), ("1.5 × 10^3", [1500]), (r"3\times 10^{-2}", [0.03]), ("3·10²", [300])],
        # signs
        *[("−5", [-5]), ("–5", [-5]), ("-$5", [-5]), ("$-5", [-5]), ("等于-5", [-5]), ("x = - 5", [-5])],
        *[("negative 5", [-5]), ("10 minus 5", [10, 5]), ("pages 3–5", [3, 5]), ("5-3", [5, 3])],
        # marks around numbers
        *[("**9,500**", [9500]), ("3*4 = 12", [3, 4, 12]), (r"\boxed{\text{12}}", [12]), (r"\$5 and 10\%", [5, 10])],
        # other digits
        *[("١٢", [12]), ("١٢٫٥", [12.5]), ("१२", [12]), ("１，２３４", [1234]), ("\u200f12\u200e", [12])],
        # Chinese
        *[("3万5千", [35000]), ("百分之75", [75]), ("4分之3", [0.75]), ("负12", [-12]), ("2万5000", [25000])],
        *[
            ("十二", [12]),
            ("一百零五", [105]),
            ("一百二十", [120]),
            ("两万五", [25000]),
            ("三点五", [3.5]),
            ("负三", [-3]),
        ],
        *[
            ("四分之三", [0.75]),
            ("百分之七十五", [75]),
            ("他有五个苹果", [5]),
            ("二〇二六年", [2026]),
            ("一亿两千万", [1.2e8]),
        ],
        *[("一起努力", []), ("千万不要", []), ("万一", []), ("这是一个问题", []), ("七八个", []), ("一共3个", [3])],
        *[("第一", []), ("统一", []), ("三三两两", [])],
    ],
)
def test_how_numbers_are_written(text, expected):
    assert values(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "right", "wrong"),
    [
        ("So it is 75%.", (75, 0.75), (7500,)),
        ("百分之七十五", (75, 0.75), (100,)),
        ("It has 1.5 million people.", (1.5, 1_500_000), (15,)),
        ("It pays $5.5k a year.", (5.5, 5_500), (55,)),
        ("约1.5万元", (1.5, 15_000), (10_000,)),
        (r"The answer is \(\frac{3}{4}\).", (0.75,), (3, 4)),
        (r"\[\boxed{-\dfrac{1}{2}}\]", (-0.5,), (1, 2)),
        ("答案是十二。", (12,), (10, 2)),
        ("The area is 25 m^2.", (25,), (2,)),
        ("Answer: 2**3", (8,), (23,)),
        ("Answer: 3 * 4", (3,), (34,)),
    ],
)
def test_what_a_reply_states(reply, right, wrong):
    assert all(number_equals(reply, number) for number in right)
    assert not any(number_equals(reply, number) for number in wrong)


@given(
    st.integers(-(10**8), 10**8), st.sampled_from(["0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९"])
)
def test_an_integer_is_the_same_in_every_notation(number, digits):
    sign, plain = "-" if number < 0 else "", f"{abs(number)}"
    groups = f"{abs(number):,}"
    for written in (plain, groups, groups.replace(",", " "), groups.replace(",", "{,}"), groups.replace(",", "\u202f")):
        other = written.translate(str.maketrans("0123456789", digits))
        assert values(f"it is {sign}{other}.") == [number]
        assert stated_number(f"\\boxed{{{sign}{other}}}") == number


@given(st.integers(0, 10**9 - 1))
def test_chinese_numerals_read_back(number):
    assert numbers._chinese_value(in_chinese(number)) == number


def in_chinese(number: int) -> str:
    """A numeral in full, made the other way round than it is read."""
    if number >= 10_000:
        unit, sign = (100_000_000, "亿") if number >= 100_000_000 else (10_000, "万")
        high, low = divmod(number, unit)
        gap = "零" if 0 < low < unit // 10 else ""
        return in_chinese(high) + sign + (gap + in_chinese(low) if low else "")
    for unit, sign in ((1000, "千"), (100, "百"), (10, "十")):
        if number >= unit:
            high, low = divmod(number, unit)
            gap = "零" if 0 < low < unit // 10 else ""
            return "零一二三四五六七八九"[high] + sign + (gap + in_chinese(low) if low else "")
    return "零一二三四五六七八九"[number]


@given(st.text("0123456789 .,/^{}()-+*xe%½²一二十百万分之点负frac\\$=_'", max_size=40))
def test_any_text_has_numbers_or_none(text):
    assert not any(math.isnan(one) for reading in numbers_in(text) for one in reading)


@pytest.mark.parametrize("piece", ["9", "1 ", "9,", "1/2 ", "一", "\\frac{1}{", "1^", "{", "1万", "1'2", "9分之"])
def test_long_texts_are_read_in_a_moment(piece):
    begin = time.monotonic()
    numbers_in(piece * 5000)
    assert time.monotonic() - begin < 5
