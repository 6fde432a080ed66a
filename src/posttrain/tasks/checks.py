"""Checks of a reply: small pure functions ``(reply, expected) -> passed``, in one table.

A check is a mechanical question with one answer: does the reply hold the capital's name, is the last number 12, are there at most
ten words. It knows nothing of meaning: "it is not Paris" contains Paris. Write checks that a wrong reply is unlikely to pass, and combine
them with ``all_of``.

A new check is one function and one line in ``CHECKS``. The annotation of ``expected`` is what a prompt file may write there.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from posttrain.judge.quoting import answer_part
from posttrain.table import Table
from posttrain.tasks.numbers import CJK, LETTER, Reading, numbers_in, one_spelling, words_in

Texts = Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a right reply looks like."""

    kind: str
    """A check of the table below."""
    expected: Any
    """What it compares with; its form depends on the kind."""


def passes(check: Check, reply: str) -> bool:
    """Whether the answer part of a reply passes. An empty answer never does.

    >>> passes(Check(kind="contains_any", expected=("Paris",)), "The capital is Paris.")
    True
    >>> passes(Check(kind="contains_any", expected=("Paris",)), "<think>Paris? No.</think>Lyon")
    False
    """
    answer = answer_part(reply)
    return bool(answer) and CHECKS[check.kind](answer, check.expected)


def wanted(check: Check) -> str:
    """What a check asks for: ``contains any: 7, seven``; parts of a combined check are joined by ``; ``.

    >>> wanted(Check(kind="contains_any", expected=("7", "seven")))
    'contains any: 7, seven'
    """
    values = check.expected if isinstance(check.expected, list | tuple) else [check.expected]
    if values and all(isinstance(part, Check) for part in values):
        return "; ".join(map(wanted, values))
    return f"{check.kind.replace('_', ' ')}: {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}"


# ---- text ----------------------------------------------------------------------------------------------------------

_WORD = re.compile(rf"[{CJK}]|{LETTER}+(?:['\u2019.,-]{LETTER}+)*")


def comparable(text: str) -> str:
    """NFKC, case folded, straight quotes, runs of white space as one space.

    >>> comparable("\uff30\uff21\uff32\uff29\uff33  \u2019s ")
    "paris 's"
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(
        folded.replace("\u2018", "'").replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"').split()
    )


def occurs(wanted: str, reply: str) -> bool:
    """Whether a word or phrase occurs as whole words. Chinese, Japanese and Korean text has no word boundaries: there any place counts.

    >>> occurs("art", "He started."), occurs("art", "It's ART!"), occurs("\u5df4\u9ece", "\u662f\u5df4\u9ece\u3002")
    (False, True, True)
    """
    needle = comparable(wanted)
    before = rf"(?<!{LETTER})" if re.match(LETTER, needle) else ""
    after = rf"(?!{LETTER})" if re.search(rf"{LETTER}\Z", needle) else ""
    return re.search(before + re.escape(needle) + after, comparable(reply)) is not None


def contains_any(reply: str, expected: Texts) -> bool:
    """One of the words or phrases occurs.

    >>> contains_any("Water, of course.", ("water", "H2O"))
    True
    """
    return any(occurs(text, reply) for text in expected)


def contains_all(reply: str, expected: Texts) -> bool:
    """Every word or phrase occurs, in any order.

    >>> contains_all("red and blue", ("blue", "red")), contains_all("red", ("blue", "red"))
    (True, False)
    """
    return all(occurs(text, reply) for text in expected)


def must_not_contain(reply: str, expected: Texts) -> bool:
    """None of the words or phrases occurs.

    >>> must_not_contain("It is fine.", ("very",)), must_not_contain("Very fine.", ("very",))
    (True, False)
    """
    return not contains_any(reply, expected)


def starts_with(reply: str, expected: Texts) -> bool:
    """The reply begins with one of the texts, after quotes and markdown.

    >>> starts_with('**Dear** Ms Lee', ("dear",))
    True
    """
    return comparable(reply).lstrip("\"'*_#> \u300c").startswith(tuple(comparable(text) for text in expected))


def ends_with(reply: str, expected: Texts) -> bool:
    """The reply ends with one of the texts, before closing quotes and markdown.

    >>> ends_with('"Is it cold?"', ("?",)), ends_with("Is it? Yes.", ("?",))
    (True, False)
    """
    return comparable(reply).rstrip("\"'*_ \u300d").endswith(tuple(comparable(text) for text in expected))


def matches_regex(reply: str, expected: Annotated[str, MinLen(1)]) -> bool:
    r"""The regular expression is found in the reply as it is written (case counts; ``(?i)`` and the other flags work).

    >>> matches_regex("ALL CAPS 7!", r"\A[^a-z]*\Z"), matches_regex("no", r"\A[^a-z]*\Z")
    (True, False)
    """
    return re.search(expected, reply) is not None


def count_words(text: str) -> int:
    """Words of a text: each Chinese, Japanese or Korean character is one, elsewhere a run of letters and digits is.

    >>> count_words("I don't know, it's 3.5 kg."), count_words("\u6211\u6709 2 \u53ea\u732b\u3002")
    (6, 5)
    """
    return len(_WORD.findall(unicodedata.normalize("NFKC", text)))


def max_words(reply: str, expected: Annotated[int, Ge(1)]) -> bool:
    """At least one word and at most so many (see ``count_words``).

    >>> max_words("Yes, sir.", 2), max_words("Yes, of course.", 2), max_words("...", 2)
    (True, False, False)
    """
    return 1 <= count_words(reply) <= expected


def min_words(reply: str, expected: Annotated[int, Ge(1)]) -> bool:
    """At least so many words (see ``count_words``).

    >>> min_words("Yes, of course.", 3), min_words("Yes!", 3)
    (True, False)
    """
    return count_words(reply) >= expected


# ---- numbers -------------------------------------------------------------------------------------------------------

_ANSWER = re.compile(
    r"answer\s*(?:is\b|are\b|:|=)+|\\boxed\s*\{|####|\u7b54\u6848\s*(?:\u662f|\u4e3a|:|=)+|\u7b54\s*:", re.IGNORECASE
)

_DENIED_NUMBER = re.compile(
    r"(?:\b(?:not|rather than|instead of)\s|n['\u2019]t\s|\u2260|!=|\\neq?\b|(?:\u800c?\u4e0d|\u5e76\u975e)\u662f|\u800c\u975e|\u5e76\u975e|\u4e0d\u7b49\u4e8e)"
    r"\s*(?:equal to |exactly )?[$\u20ac\u00a3\u00a5]?-?\d+(?:[.,]\d+)*",
    re.IGNORECASE,
)
"""``not 5``, \u4e0d\u662f5: a number that is said to be wrong."""
_STATEMENT_END = re.compile(r"[.!?;\u3002](?!\d)|,?\s(?:because|since)\b|[,\uff0c]?\u56e0\u4e3a", re.IGNORECASE)
_ALONE_WITH_COMMA = re.compile(r"^([^\d([{]*\d+),(\d{1,2})(?=[^\d)\]}]*$)")
"""A comma between digits in a statement that has no others: the decimal sign, since the number is one."""
_CALCULATION = re.compile(r"\d\s*[-+\u00d7x*/\u00f7]\s*\d")


def number_equals(reply: str, expected: float) -> bool:
    r"""The number the reply ends up with is the expected one (relative difference at most 1e-9).

    After the last ``answer:``, ``answer is``, ``\boxed{``, ``####`` (or their Chinese forms) that a number follows on its line, that number counts; behind
    an ``=`` there, the one after the last ``=``. Without such words it is the last number of the reply. A number that is denied (``not 5``)
    never counts; English number words do where no digit stands, and ``3,5`` alone in a statement is 3.5. How numbers may be written is said
    in `posttrain.tasks.numbers`; ``75%`` is 75 as well as 0.75, ``1.5 million`` is 1.5 as well as 1,500,000, other units and currency signs are ignored.

    >>> number_equals("3 + 4 = 7, so she has 7 apples.", 7), number_equals("Answer: 1,250.50 dollars (not 3)", 1250.5)
    (True, True)
    >>> number_equals("Of 7 apples 3 are left.", 7)
    False
    """
    number = _stated(reply)
    return number is not None and any(math.isclose(value, expected, rel_tol=1e-9) for value in number)


def stated_number(reply: str) -> float | None:
    r"""The number ``number_equals`` compares; None where there is none.

    >>> stated_number("The answer is 3 + 4 = 7."), stated_number("-2.5"), stated_number("\\boxed{12}"), stated_number("none")
    (7.0, -2.5, 12.0, None)
    """
    number = _stated(reply)
    return None if number is None else number.value


def _stated(reply: str) -> Reading | None:
    text = _DENIED_NUMBER.sub(" ", one_spelling(reply))
    for marker in reversed(list(_ANSWER.finditer(text))):
        rest = text[marker.end() :].lstrip().split("\n", 1)[0]
        sentence = _STATEMENT_END.split(rest, maxsplit=1)[0]
        numbers = numbers_in(_result(_ALONE_WITH_COMMA.sub(r"\1.\2", sentence))) or words_in(sentence, at_start=True)
        if numbers:
            return numbers[0]
    last_sentence = re.split(r"[.!?\n]\s*(?=\S)", text.strip())[-1]
    numbers = numbers_in(text) or words_in(last_sentence)
    return numbers[-1] if numbers else None


def _result(statement: str) -> str:
    """The side of an equation that is worked out: what stands behind the last ``=``, unless only the first side is one number."""
    first, *others = statement.split("=")
    worked_out = others and _CALCULATION.search(others[-1]) and not _CALCULATION.search(first) and numbers_in(first)
    return first if worked_out else statement.rpartition("=")[2]


# ---- the table -----------------------------------------------------------------------------------------------------


def all_of(reply: str, expected: Annotated[tuple[Check, ...], MinLen(1)]) -> bool:
    """Every one of the checks passes.

    >>> all_of("BIG CAT", (Check(kind="max_words", expected=2), Check(kind="contains_any", expected=("cat",))))
    True
    """
    return all(CHECKS[check.kind](reply, check.expected) for check in expected)


CHECKS: Table[Callable[[str, Any], bool]] = Table(
    "check",
    {
        "contains_any": contains_any,
        "contains_all": contains_all,
        "must_not_contain": must_not_contain,
        "starts_with": starts_with,
        "ends_with": ends_with,
        "matches_regex": matches_regex,
        "max_words": max_words,
        "min_words": min_words,
        "number_equals": number_equals,
        "all_of": all_of,
    },
)
