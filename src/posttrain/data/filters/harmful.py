"""Harmful content: a small lexicon of our own, and the score of a classifier or judge where the rows carry one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from annotated_types import Ge

from posttrain.data import text
from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most
from posttrain.data.filters.lexicon import LEXICON


@dataclass(frozen=True, kw_only=True)
class Harmful(Filter):
    """Harmful content in what is compared; a refused request is not a harmful answer, see ``fields``."""

    lexicon: bool = True
    """Look for the built-in lexicon (English and Chinese)."""
    extra_terms: tuple[str, ...] = ()
    """Further words and phrases to look for."""
    max_terms: Annotated[int, Ge(0)] = 0
    """Most different terms a row may hold."""
    fields: text.Fields = "conversation"
    """Whose turns are looked at: ``user``, ``assistant`` or ``conversation``."""
    score: str | None = None
    """Name of a score the rows carry (column ``scores``, or a number in ``meta``), high = harmful."""
    max_score: float = 0.5
    """Largest score that stays. Rows without the score are not judged by it."""

    replies = "wanted"

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        terms = (*(LEXICON if self.lexicon else ()), *self.extra_terms)
        if terms:
            found = terms_in(text.compared_text(row.messages, self.fields), terms)
            yield at_most("harmful.terms", len(found), self.max_terms, "harmful_terms", ", ".join(found[:5]), "terms")
        if self.score is not None and (value := score_of(row, self.score)) is not None:
            yield at_most("harmful.score", value, self.max_score, "harmful_score", unit=self.score)


_CJK = re.compile(f"[{text.CJK}]")


@cache
def _by_beginning(terms: tuple[str, ...]) -> dict[str, list[str]]:
    """First characters -> the terms that begin so, normalised: few beginnings stand for many terms."""
    found: dict[str, list[str]] = {}
    for term in dict.fromkeys(" ".join(text.normalised(term).split()) for term in terms):
        if term:
            found.setdefault(term[: 2 if _CJK.match(term) else 6], []).append(term)
    return found


@cache
def _pattern(term: str) -> re.Pattern[str]:
    """A term as a whole word. A Chinese character beside a word is a border."""
    before = "" if _CJK.match(term[0]) else f"(?<![^\\W{text.CJK}])"
    after = "" if _CJK.match(term[-1]) else f"(?![^\\W{text.CJK}])"
    return re.compile(before + re.escape(term) + after)


def terms_in(written: str, terms: tuple[str, ...]) -> list[str]:
    """The terms that stand in a text, sorted."""
    normal = " ".join(text.normalised(written).split())
    near = [begun for beginning, begun in _by_beginning(terms).items() if beginning in normal]
    return sorted(term for begun in near for term in begun if term in normal and _pattern(term).search(normal))


def score_of(row: Conversation, name: str) -> float | None:
    """The score of a row by name: from its scores, else a number in its meta; None where it has none."""
    value = row.scores.get(name, row.meta.get(name))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
