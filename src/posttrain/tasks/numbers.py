r"""Numbers as people and models write them: ``9{,}500``, ``\frac{3}{4}``, ``1½``, ``9²``, ``1.5e3``, ``75%``, ``−4``, ``١٢``, ``3万5千``, ``十二``.

    text -> one spelling (digits, signs, LaTeX) -> compound forms worked out -> readings, in order

Everything that compares a number in a reply reads it here. Left alone: symbols (``3\pi`` is 3), ratios (``3:4``), and a comma as the
decimal sign (``3,5`` may be two numbers) except behind groups of thousands (``1.234,50``). Number words are read by ``words_in`` alone:
in most texts they count nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
CJK_SIGN = rf"[{CJK}]"
LETTER = rf"[^\W_{CJK}]"
"""A letter or digit of a script that parts its words."""


class Reading(NamedTuple):
    """One number of a text."""

    value: float
    """As it is written: ``75%`` is 75, ``1.5 million`` is 1.5."""
    scaled: float
    """With what it counts: .75, 1,500,000. Equal to ``value`` where nothing is said."""


def numbers_in(text: str) -> list[Reading]:
    r"""All numbers of a text. Chinese numerals are read only where no digit stands: many are parts of words (一起, 万一).

    >>> [one.value for one in numbers_in("9{,}500 and \\frac{3}{4}, 1½, 9², 2^3, 1.5e3, 1 234")]
    [9500.0, 0.75, 1.5, 81.0, 8.0, 1500.0, 1234.0]
    >>> numbers_in("75%"), [one.value for one in numbers_in("H2O, 25 m²")], [one.value for one in numbers_in("负十二")]
    ([Reading(value=75.0, scaled=0.75)], [25.0], [-12.0])
    """
    clear = one_spelling(text)
    return _readings(clear) or _readings(_CHINESE.sub(_chinese, clear))


# ---- one spelling --------------------------------------------------------------------------------------------------


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), plain) for pattern, plain in rules)


_UNSEEN = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\u061c\ufeff]")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", "⁺")
_RAISED_RUN = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞])")
_SIGNS = str.maketrans("⁄٫٬٪−‐‑⋅·’萬億兩點負", "/.,%---××'万亿两点负")
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
_LATEX = _rules(
    (r"\\!", ""),
    (r"\{,\}", ","),
    (r"\\(?:[,;: ]|quad\b)|(?<=\d)~(?=\d)", " "),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\\div\b", " / "),
    (r"\\([$%&#])", r"\1"),
    (r"\\(?:left|right|displaystyle)\b", ""),
    (r"\\(?:text\w*|math[a-z]+|boldsymbol|mbox)\s*\{([^{}]*)\}", r" \1"),
)
_MARKDOWN = _rules(
    (r"(?<=\d)\s?\*\*\s?(?=\d)", "^"),  # a power in code, where markdown has nothing to open
    (r"(?<=\d)\s?\*\s?(?=\d)", " × "),
    (r"\*", ""),
)
_DASH_AS_SIGN = re.compile(r"(?<![\w)\]%][ ])(?<![\w)\]%])[‒–](?=[$€£¥]?[\d.])")


def one_spelling(text: str) -> str:
    r"""ASCII digits, signs and fractions; powers as ``^``; LaTeX's and markdown's marks taken away.

    >>> one_spelling("−4, **1½** m², 3**2, ١٢٫٥, \\text{9{,}500}")
    '-4, 1 1/2 m^{2}, 3^2, 12.5,  9,500'
    """
    text = text if text.isascii() else _ascii_digits(text)
    for pattern, plain in _LATEX if "\\" in text or "{" in text else ():
        text = pattern.sub(plain, text)
    for pattern, plain in _MARKDOWN if "*" in text else ():
        text = pattern.sub(plain, text)
    return text


def _ascii_digits(text: str) -> str:
    text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", _UNSEEN.sub("", text))
    text = _VULGAR.sub(" ", _DASH_AS_SIGN.sub("-", text))  # a mixed number: 1 1/2, not 11/2
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    return _OTHER_DIGIT.sub(lambda sign: str(unicodedata.decimal(sign[0])), text)


# ---- compound forms ------------------------------------------------------------------------------------------------

_D = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
_NOT_INSIDE = rf"(?<![\d.,])(?<!{LETTER})"
_LATEX_PART = r"(?:\{\s*(-?[\d.]+)\s*\}|(\d))"
_EXPONENT = r"\s?\^\s?(?:\{\s?(-?[\d./]+)\s?\}|\(\s?(-?[\d./]+)\s?\)|(-?\d+)(?!\.?\d))"


def _without_marks(found: re.Match[str]) -> str:
    return re.sub(r"[^\d.]", "", found[0])


def _continental(found: re.Match[str]) -> str:
    return found[0].replace(".", "").replace(",", ".")


def _latex_fraction(found: re.Match[str]) -> str:
    above, below = found[1] or found[2], found[3] or found[4]
    sign = "-" if above.startswith("-") != below.startswith("-") else ""
    after_number = found.start() and found.string[found.start() - 1].isdecimal()
    return f"{' ' if after_number else ''}{sign}{above.removeprefix('-')}/{below.removeprefix('-')}"


def _power(base: float, exponent: str, otherwise: str) -> str:
    above, _, below = exponent.partition("/")
    try:
        return _written(base ** (float(above) / float(below or 1)))
    except (ArithmeticError, ValueError):
        return otherwise


def _times_ten(found: re.Match[str]) -> str:
    tens = _power(10.0, found[2] or found[3] or found[4], "")
    return _written(float(found[1]) * float(tens)) if tens else found[0]


def _base_power(found: re.Match[str]) -> str:
    return _power(float(found[1]), found[2] or found[3] or found[4], found[0])


def _mixed(found: re.Match[str]) -> str:
    whole, above, below = (int(part) for part in found.groups())
    return _written(whole + above / below) if above < below else found[0]


def _fraction(found: re.Match[str]) -> str:
    return _written(float(found[1]) / float(found[2])) if float(found[2]) else found[0]


def _chinese_units(found: re.Match[str]) -> str:
    value = _chinese_value(found[0])
    return found[0] if value is None else _written(value)


def _written(value: float) -> str:
    """A literal that reads back to the same number; integers without a point."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


class _Compound(NamedTuple):
    """A form that is worked out; looked for only where ``sign`` occurs."""

    sign: str
    pattern: re.Pattern[str]
    work_out: Callable[[re.Match[str]], str]


_COMPOUND = tuple(
    _Compound(sign, re.compile(pattern), work_out)
    for sign, pattern, work_out in (
        (",", rf"{_NOT_INSIDE}\d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}}(?![\d.,]*\d)", _continental),  # 1.234,50
        (".", rf"{_NOT_INSIDE}\d{{1,3}}(?:\.\d{{3}}){{2,}}(?![\d.,]*\d)", _continental),  # 1.234.567
        (",", rf"{_NOT_INSIDE}\d{{1,3}}(?:,\d{{3}})+(?!\d)", _without_marks),
        (",", rf"{_NOT_INSIDE}\d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d)", _without_marks),  # 12,34,567
        ("'", rf"{_NOT_INSIDE}\d{{1,3}}(?:'\d{{3}})+(?!\d)", _without_marks),
        ("_", rf"{_NOT_INSIDE}\d{{1,3}}(?:_\d{{3}})+(?!\d)", _without_marks),
        (" ", rf"{_NOT_INSIDE}(?<!\d[ ])[1-9]\d{{0,2}}(?:[ ]\d{{3}})+(?![ ]?\d)", _without_marks),
        ("frac", rf"\\[dtc]?frac\s*{_LATEX_PART}\s*{_LATEX_PART}", _latex_fraction),
        ("^", rf"{_NOT_INSIDE}({_D})\s?[x×]\s?10{_EXPONENT}", _times_ten),
        ("^", rf"{_NOT_INSIDE}({_D}){_EXPONENT}", _base_power),
        ("^", r"\^\s?(?:\{[^{}]*\}|\([^()]*\)|-?\d+(?:\.\d+)?)", lambda _: ""),  # of a unit or a symbol: m^2
        ("_", rf"(?<={LETTER})_(?:\{{[^{{}}]*\}}|\d{{1,2}}(?!\d))", lambda _: ""),  # x_1
        ("分之", r"(?<!\d)(\d+)分之(\d+)", lambda found: f"{found[2]}/{found[1]}"),
        ("分之", rf"百分之\s?({_D})", lambda found: f"{found[1]}%"),
        ("/", rf"{_NOT_INSIDE}(\d{{1,15}})[ ](\d{{1,15}})/(\d{{1,15}})(?![.,/]?\d)", _mixed),
        ("/", rf"{_NOT_INSIDE}({_D})\s?/\s?({_D})(?![\d.,]*\d)", _fraction),
        ("", r"(?<![\d.])\d+(?:\.\d+)?[十百千万亿]+(?:[零〇]?\d+[十百千万亿]*)+", _chinese_units),
    )
)
"""Tried in this order; each writes what it has worked out as a plain literal."""

# ---- readings ------------------------------------------------------------------------------------------------------

_UNITS = {"百": 1e2, "千": 1e3, "万": 1e4, "百万": 1e6, "千万": 1e7, "亿": 1e8, "十亿": 1e9, "百亿": 1e10, "千亿": 1e11}
_UNITS |= {"hundred": 1e2, "k": 1e3, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "万亿": 1e12}
_NUMBER = re.compile(
    rf"""(?<!\d) (?<!{LETTER})
        (?P<sign> (?<!{LETTER}) (?<![)\]}}]) - | (?<=[={{]) [ ]*-[ ] | 负 | (?<![\w)]) (?<!\d[ ]) (?:minus|negative)[ ] )?
        [$€£¥]?
        (?P<digits> (?:\d+(?:\.\d+)?|\.\d+) (?:e[+-]?\d+(?!\w))? )
        (?: \s?(?P<share> % | percent\b | per[ ]cent\b ) | [ ]?(?P<unit> (?:hundred|thousand|[mbtr]+illion)\b | [十百千万亿]+ | (?<=\d)k\b ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _readings(clear: str) -> list[Reading]:
    for sign, pattern, work_out in _COMPOUND:
        if sign in clear:
            clear = pattern.sub(work_out, clear)
    found = []
    for match in _NUMBER.finditer(clear):
        value = float(match["digits"])
        value = -value if match["sign"] else value
        unit = (match["unit"] or "").lower()
        found.append(Reading(value, value / 100 if match["share"] else value * _UNITS.get(unit, 1.0)))
    return found


# ---- Chinese numerals ----------------------------------------------------------------------------------------------

_DIGITS = {sign: place for place, sign in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_TENS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10_000, "亿": 100_000_000}
_RUN = "[零〇一二两三四五六七八九十百千万亿]"
_CHINESE = re.compile(rf"(?<!第){_RUN}+(?:点[零〇一二三四五六七八九]+)?")
_COUNTED = "个只元块岁人天年月页公米斤本辆条张支枝头名位件朵盒瓶杯套箱袋颗粒棵台艘层倍周角毛次双对份间把根岁题道"
_BEFORE_ONE = "是为得共有剩余下等于约成到负之约花需用"


def _chinese(found: re.Match[str]) -> str:
    """A numeral in digits, where it is plain that it is one and no part of a word."""
    numeral, text = found[0], found.string
    if len(numeral) == 1:
        before, after = text[: found.start()][-1:], text[found.end() :][:2]
        counted = after[:1] in _COUNTED and numeral != "一"  # \u4e00 before it is an article
        if not (counted or not re.match(CJK_SIGN, after) or after == "分之"):
            return numeral
        if re.match(CJK_SIGN, before) and before not in _BEFORE_ONE:
            return numeral
    value = _chinese_value(numeral)
    return numeral if value is None else _written(value)


def _chinese_value(numeral: str) -> float | None:
    """The value of 一百二十, 三点五, 两万五, 二〇二六 or 3万5千; None where it is no numeral (千万, 七八)."""
    numeral, point, decimals = numeral.partition("点")
    if point:
        whole = _chinese_value(numeral)
        return None if whole is None else float(f"{int(whole)}.{''.join(str(_DIGITS[sign]) for sign in decimals)}")
    if len(numeral) > 1 and all(sign in _DIGITS for sign in numeral):
        spelt = len(numeral) > 2 or "〇" in numeral or "零" in numeral
        return float("".join(str(_DIGITS[sign]) for sign in numeral)) if spelt and "两" not in numeral else None
    total, section, digit, unit, zero = 0.0, 0.0, None, 1, False
    for token in re.findall(r"\d+(?:\.\d+)?|.", numeral):
        if token in "零〇":
            zero = True
        elif token in _TENS:
            if digit is None and not (token == "十" and not section):
                return None
            section, unit, digit, zero = (
                section + (1 if digit is None else digit) * _TENS[token],
                _TENS[token],
                None,
                False,
            )
        elif token in _MYRIADS:
            if digit is None and not section and not total:
                return None
            part = section + (digit or 0)
            total = total + part * _MYRIADS[token] if part else total * _MYRIADS[token]
            section, unit, digit, zero = 0.0, _MYRIADS[token], None, False
        elif digit is not None:
            return None
        else:
            digit = float(_DIGITS.get(token, -1)) if token in _DIGITS else float(token)
    if digit is None:
        return total + section
    return total + section + digit * (unit // 10 if digit < 10 and unit > 10 and not zero else 1)


# ---- English number words ------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+")
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = {word: value for value, word in enumerate(_WORD.findall(_SMALL))}
_TENS_IN_WORDS = {
    word: 10 * value
    for value, word in enumerate(_WORD.findall("twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
_MANY = {"hundred": 100, "dozen": 12, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_PARTS = {"third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10, "half": 2}
_BELOW_THOUSANDS = "|".join((*_ONES, *_TENS_IN_WORDS))
_WORD_RUN = re.compile(
    rf"(?<![\w-])(?P<sign>minus |negative )?"
    rf"(?:(?P<number>(?:(?:an? )?(?:{'|'.join(_MANY)})|{_BELOW_THOUSANDS})\b(?:(?:[ -]| and )(?:{'|'.join(_MANY)}|{_BELOW_THOUSANDS})\b)*)"
    rf"(?:[ -](?P<part>{'|'.join(_PARTS)})s?\b|(?P<half> and (?:a|one) half\b))?|(?P<alone>(?:a )?half\b))",
    re.IGNORECASE,
)
_LEADS = re.compile(
    r"[\W_]*(?:(?:then|therefore|thus|exactly|simply|just|about|approximately|equal to|a total of)[\W_]+)*",
    re.IGNORECASE,
)


def words_in(text: str, at_start: bool = False) -> list[Reading]:
    """Numbers in English words; ``at_start``: only one with which the text begins. A lone "one" or "half" must be all that it says.

    >>> [one.value for one in words_in("Two hundred and five, minus twelve, three quarters or four and a half")]
    [205.0, -12.0, 0.75, 4.5]
    >>> words_in("one of them"), [one.value for one in words_in(": **one**.", at_start=True)]
    ([], [1.0])
    """
    start = _LEADS.match(text)
    found = [_WORD_RUN.match(text, start.end() if start else 0)] if at_start else _WORD_RUN.finditer(text)
    return [Reading(value, value) for run in found if run is not None and (value := _run_value(run)) is not None]


def _is_all(run: re.Match[str]) -> bool:
    """Whether a run of number words is all that a text says."""
    start = _LEADS.match(run.string)
    return start is not None and start.end() == run.start() and not re.search(r"\w", run.string[run.end() :])


def _run_value(run: re.Match[str]) -> float | None:
    words = re.findall("[a-z]+", (run["number"] or "").lower())
    if words in ([], ["one"]) and not run["part"] and not run["half"] and not _is_all(run):
        return None
    total, section, last = 0, 0, 1_000
    for word in words:
        if word in _MANY and _MANY[word] >= 1_000:
            total, section, last = total + max(section, 1) * _MANY[word], 0, 1_000
        elif word in _MANY:
            section, last = max(section, 1) * _MANY[word], 100
        elif word not in ("a", "an", "and"):
            value = _ONES.get(word, _TENS_IN_WORDS.get(word, 0))
            if last < 100 and not (last >= 20 and value < 10):
                return None  # "five six" is no number
            section, last = section + value, value
    number = float(total + section)
    if run["alone"] or run["half"]:
        number += 0.5
    elif run["part"]:
        number /= _PARTS[run["part"].lower()]
    return -number if run["sign"] else number
