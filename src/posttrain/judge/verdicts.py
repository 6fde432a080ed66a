"""What a judge said, as a value: a verdict, a rating, or a reason why there is none.

A judge's reply is text; a failed call is not, and never comes near a parser (``Missing("transport")``). A reply without
a readable verdict is missing too, not wrong, not a tie and not -1, and it keeps its reason, so that a table can say how many were
asked, answered and understood.

Parsers are functions ``text -> value | Missing``. Two families stand side by side:

- ``mt_bench_rating``, ``mt_bench_pair`` (Zheng et al. 2023, arXiv:2306.05685) and ``arena_hard`` (Li et al. 2024, arXiv:2406.11939)
  follow the published evaluation scripts, faults included, so that published numbers can be reproduced;
- ``rating``, ``two_scores``, ``pair_verdict``, ``five_verdict`` and ``label`` are ours: they refuse a text that can be read in two ways, and do not
  take a mark that is only quoted for a verdict (`posttrain.judge.quoting`).

Verdicts name positions: ``first`` is the answer shown first, whichever model wrote it. ``BothOrders`` turns positions into models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from posttrain.generate.engine import Failure, Outcome
from posttrain.judge.quoting import answer_part, said
from posttrain.judge.refusal import refuses

Verdict = Literal["first", "second", "tie"]
FiveVerdict = Literal["first>>", "first>", "tie", "second>", "second>>"]
"""Arena-Hard's labels: much better, better, the same."""

MissingReason = Literal["transport", "refused", "length", "empty", "parse", "ambiguous", "out_of_range"]
"""``transport``: the call failed. ``refused``: the judge declined. ``length``: cut off at the token limit, or thinking that never
ended. ``empty``: nothing after the thinking. ``parse``: no verdict in the text. ``ambiguous``: several. ``out_of_range``: off the scale."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Missing:
    """No verdict, and why."""

    reason: MissingReason
    detail: str = ""
    """What a reader needs to see the case: the error of a failed call, the marks found in the text."""


# ---- from a reply to a value ---------------------------------------------------------------------------------------


def read(outcome: Outcome, parse: Callable[[str], T | Missing]) -> T | Missing:
    """What became of one call to a judge: a failed call is ``transport``, whatever its reason; an answer is ``judged``."""
    if isinstance(outcome, Failure):
        return Missing("transport", f"{outcome.reason}: {outcome.detail}")
    return judged(outcome.text, outcome.finish, parse)


def judged(text: str, finish_reason: str, parse: Callable[[str], T | Missing]) -> T | Missing:
    """What a judge's finished reply says after its think block.

    A reply cut off at the token limit (``finish_reason`` ``length``) is missing even where the parser would find something: the text
    may quote a verdict it was going to reject. A reply stopped by a content filter, or one without a verdict that reads as a
    refusal, is ``refused``.
    """
    answer, cut = answer_part(text), finish_reason == "length"
    if finish_reason == "content_filter":
        return Missing("refused", "stopped by a content filter")
    endless = "<think>" in answer or (not answer and "<think>" in text and "</think>" not in text)
    if cut and (
        endless or not answer
    ):  # an empty text that hit the limit was all thinking, wherever the engine keeps it
        return Missing("length", "cut off while thinking")
    if endless:
        return Missing("length", "the thinking never ended")
    if not answer:
        return Missing("empty")
    if cut:
        return Missing("length", "cut off at the token limit")
    found = parse(answer)
    if isinstance(found, Missing) and found.reason == "parse" and refuses(answer):
        return Missing("refused", answer[:200])
    return found


# ---- ratings -------------------------------------------------------------------------------------------------------

_DOUBLE_NUMBER = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_SINGLE_NUMBER = re.compile(r"\[(\d+\.?\d*)\]")
_OPEN, _CLOSE = r"(?:\[\[|【【|［［)", r"(?:\]\]|】】|］］)"
_SCORES = re.compile(rf"{_OPEN}\s*(\d+(?:\.\d+)?)\s*[,，/]\s*(\d+(?:\.\d+)?)\s*{_CLOSE}")
_RATING = re.compile(rf"{_OPEN}\s*(\d+(?:\.\d+)?)\s*(?:/\s*(\d+)|分)?\s*{_CLOSE}")


def mt_bench_rating(text: str) -> float | Missing:
    """MT-Bench's rule: the first ``[[5]]``, otherwise the first ``[5]``; no check of the scale.

    So a rating that is quoted and rejected wins over the one that is given, and without double brackets a footnote mark is a
    rating. Kept to reproduce recorded scores; ``rating`` is the one to judge with.
    """
    found = _DOUBLE_NUMBER.search(text) or _SINGLE_NUMBER.search(text)
    return float(found[1]) if found else Missing("parse", _end(text))


def rating(text: str, low: float = 1, high: float = 10) -> float | Missing:
    """The one rating in double brackets: ``[[7]]``, ``[[7.5]]``, ``[[7/10]]``, ``[[7分]]`` or with full-width brackets.

    The same rating may be repeated. Two different ones are ``ambiguous``; a value off the scale, or out of another maximum than
    ``high``, is ``out_of_range``. Single brackets are not read.
    """
    marks = list(_RATING.finditer(said(text, _RATING)))
    if not marks:
        return _nothing_said(text, _RATING)
    values = {float(mark[1]) for mark in marks}
    if len(values) > 1:
        return Missing("ambiguous", " ".join(mark[0] for mark in marks))
    value = values.pop()
    if not low <= value <= high or any(mark[2] and float(mark[2]) != high for mark in marks):
        return Missing("out_of_range", f"{marks[0][0]} on a scale of {low:g} to {high:g}")
    return value


def two_scores(text: str) -> tuple[float, float] | Missing:
    """Two ratings in one pair of brackets, ``[[8, 6]]``. The same pair may be repeated; two different ones are ``ambiguous``."""
    marks = {(float(mark[1]), float(mark[2])) for mark in _SCORES.finditer(said(text, _SCORES))}
    if not marks:
        return _nothing_said(text, _SCORES)
    return marks.pop() if len(marks) == 1 else Missing("ambiguous", " ".join(m[0] for m in _SCORES.finditer(text)))


def verdict_of_scores(first: float, second: float) -> Verdict:
    """The higher score wins; a difference of at most 0.1 is a tie (MT-Bench's rule and margin)."""
    # 0.1 itself is no binary number: 9.1 - 9.0 must be a tie as much as 1.1 - 1.0.
    if abs(first - second) <= 0.1 + 1e-9:
        return "tie"
    return "first" if first > second else "second"


# ---- pairs ---------------------------------------------------------------------------------------------------------

_LETTERS: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie", "TIE": "tie", "平局": "tie"}
_PAIR = re.compile(rf"{_OPEN}\s*([ABC]|TIE|平局)\s*{_CLOSE}", re.IGNORECASE)
_FIVE: dict[str, FiveVerdict] = {
    "A>>B": "first>>",
    "A>B": "first>",
    "A=B": "tie",
    "B=A": "tie",
    "B>A": "second>",
    "B>>A": "second>>",
    "A<B": "second>",
    "A<<B": "second>>",
    "B<A": "first>",
    "B<<A": "first>>",
}
_FIVE_MARK = re.compile(rf"{_OPEN}\s*((?:A\s?(?:>>?|<<?|=)\s?B|B\s?(?:>>?|<<?|=)\s?A))\s*{_CLOSE}", re.IGNORECASE)
_FIVE_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_FIVE_SINGLE = re.compile(r"\[([AB<>=]+)\]")


def mt_bench_pair(text: str) -> Verdict | Missing:
    """MT-Bench's rule: ``[[A]]`` anywhere is first, otherwise ``[[B]]`` is second, otherwise ``[[C]]`` is a tie.

    A text that names both is first: the parser itself favours the answer shown first. Kept to reproduce; ``pair_verdict`` is the
    one to judge with.
    """
    for letter in "ABC":
        if f"[[{letter}]]" in text:
            return _LETTERS[letter]
    return Missing("parse", _end(text))


def pair_verdict(text: str) -> Verdict | Missing:
    """The last verdict: what the last line with a mark says, ``[[A]]``, ``[[B]]`` or ``[[C]]`` (also ``[[tie]]``, full-width brackets).

    Judges reason before they decide, so a later line overrules an earlier one. A line with two different marks can't be read
    ("[[A]] or [[B]]", or the instructions repeated) and is ``ambiguous``; an earlier clear line does not save it.
    """
    return _last_line(text, _PAIR, lambda mark: _LETTERS[mark[1].upper()])


def arena_hard(text: str) -> FiveVerdict | Missing:
    """Arena-Hard's rule: on upper-cased text the last ``[[A>>B]]``, otherwise the last ``[A>>B]``.

    A last mark that is none of the labels (``[[A]]``) is ``parse``; the mirrored spellings of the labels (``[[A<B]]``) are read.
    """
    upper = text.upper()
    marks = _FIVE_DOUBLE.findall(upper) or _FIVE_SINGLE.findall(upper)
    if not marks:
        return Missing("parse", _end(text))
    return _FIVE.get(marks[-1]) or Missing("parse", f"[[{marks[-1]}]] is no label")


def five_verdict(text: str) -> FiveVerdict | Missing:
    """The last of Arena-Hard's labels that is said, ``[[A>>B]]`` to ``[[B>>A]]``; read line by line as ``pair_verdict`` is."""
    return _last_line(text, _FIVE_MARK, lambda mark: _FIVE[re.sub(r"\s", "", mark[1]).upper()])


def side(verdict: FiveVerdict) -> Verdict:
    """Without the strength."""
    if verdict == "tie":
        return "tie"
    return "first" if verdict.startswith("first") else "second"


# ---- labels --------------------------------------------------------------------------------------------------------

_MARKED = re.compile(rf"{_OPEN}\s*([^\[\]【】]+?)\s*{_CLOSE}")


def label(text: str, labels: Sequence[str]) -> int | Missing:
    r"""The place of a label in ``labels``: the one in the last line that has one in double brackets, in any case.

    As in ``pair_verdict`` a later line overrules, and a line with two different labels is ``ambiguous``. Other words in brackets do not count.

    >>> label("It says sorry, but helps.\n[[Partly]]", ("complies", "refuses", "partly"))
    2
    """
    place = {name.casefold(): number for number, name in enumerate(labels)}

    return _last_line(text, _MARKED, lambda mark: place.get(mark[1].casefold()))


# ---- several verdicts ----------------------------------------------------------------------------------------------


def mirrored(verdict: Verdict) -> Verdict:
    """The same verdict where the answers are shown the other way round."""
    if verdict == "tie":
        return "tie"
    return "second" if verdict == "first" else "first"


@dataclass(frozen=True, slots=True)
class BothOrders:
    """One pair judged in both orders. Each judgment keeps what the judge said about the positions it saw."""

    original: Verdict | Missing
    """Model a shown first."""
    swapped: Verdict | Missing
    """Model b shown first."""

    @property
    def outcome(self) -> Verdict | Missing:
        """MT-Bench's rule, in models (``first`` is model a): what both orders agree on, otherwise a tie.

        Missing where either judgment is: one order alone can't show that it was not the order that won.
        """
        for judgment in (self.original, self.swapped):
            if isinstance(judgment, Missing):
                return judgment
        return self.original if self.consistent else "tie"

    @property
    def consistent(self) -> bool | None:
        """Whether both orders name the same model, or both a tie; None where a judgment is missing."""
        if isinstance(self.original, Missing) or isinstance(self.swapped, Missing):
            return None
        return self.original == mirrored(self.swapped)

    @property
    def position(self) -> Literal["first", "second"] | None:
        """The position that won both judgments, so that only the order decided; None where it did not."""
        if self.original == self.swapped == "first":
            return "first"
        return "second" if self.original == self.swapped == "second" else None


def majority(verdicts: Iterable[Verdict | Missing]) -> Verdict | Missing:
    """The most frequent verdict; a tie where two are equally frequent. Missing ones do not vote.

    Without any verdict the result is missing, for the most frequent reason.
    """
    votes = list(verdicts)
    ranked = Counter(vote for vote in votes if not isinstance(vote, Missing)).most_common(2)
    if not ranked:
        ((reason, _),) = Counter(vote.reason for vote in votes if isinstance(vote, Missing)).most_common(1)
        return Missing(reason, f"none of {len(votes)} has a verdict")
    return "tie" if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]


@dataclass(frozen=True, slots=True)
class Accounting:
    """What became of the judgments asked for. ``asked`` is ``answered`` plus the failed calls; ``answered`` is ``parsed`` plus the rest."""

    asked: int
    answered: int
    parsed: int
    missing: dict[MissingReason, int] = field(default_factory=dict)
    """Those without a verdict, by reason."""


def account(values: Sequence[object]) -> Accounting:
    """Count verdicts or ratings and, by reason, what is missing."""
    reasons = Counter(value.reason for value in values if isinstance(value, Missing))
    return Accounting(
        asked=len(values),
        answered=len(values) - reasons["transport"],
        parsed=len(values) - reasons.total(),
        missing=dict(reasons),
    )


def _last_line(text: str, mark: re.Pattern[str], value: Callable[[re.Match[str]], T | None]) -> T | Missing:
    """What the last line that says something says; two different things can't be read. Marks without a value do not count."""
    found = _of_lines(said(text, mark), mark, value)
    if found is not None:
        return found
    quoted = _of_lines(text, mark, value)
    return quoted if isinstance(quoted, Missing) else _nothing_said(text, mark)


def _of_lines(text: str, mark: re.Pattern[str], value: Callable[[re.Match[str]], T | None]) -> T | Missing | None:
    for line in reversed(text.splitlines()):
        named = {found for one in mark.finditer(line) if (found := value(one)) is not None}
        if len(named) > 1:
            return Missing("ambiguous", line.strip()[:200])
        if named:
            return named.pop()
    return None


def _nothing_said(text: str, mark: re.Pattern[str]) -> Missing:
    quoted = [line.strip() for line in text.splitlines() if mark.search(line)]
    return Missing("parse", f"only quoted: {quoted[-1][:180]}" if quoted else _end(text))


def _end(text: str) -> str:
    """The end of a text, where its verdict should be."""
    return text.strip()[-200:]
