"""Rated or ranked answers to one prompt, and the rule that makes pairs of them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Literal

from annotated_types import Ge

from posttrain.data.formats.base import Foreign, RowError
from posttrain.data.formats.sides import Turns, pair_row
from posttrain.types import Message, Origin, PairRow


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """Which pairs are made of rated or ranked answers."""

    take: Literal["best_worst", "all"] = "best_worst"
    """The best answer against the worst, or every answer against every worse one."""
    min_margin: Annotated[float, Ge(0)] = 0.0
    """The least difference in score (or rank) of a pair. Answers of equal score are never one."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The answers of a record with their scores, higher is better; None where there is no score."""

    record: Foreign
    used: Set[str]
    """The keys it was made from."""
    prompt: Turns
    answers: tuple[tuple[float | None, str], ...]
    origin: Origin
    source: str


def pairs_of(ranked: Ranked, rule: PairRule) -> tuple[PairRow, ...]:
    """The pairs of a record, each with the difference in score as ``meta["margin"]``; at least one.

    Blank answers and those without a score are passed over. Of equal scores the answer that stands first is taken. Raises
    RowError with ``too_few_answers``, ``margin_too_small``, or the reason why none of the pairs can be used.
    """
    usable = [(score, text) for score, text in ranked.answers if score is not None and text.strip()]
    if len(usable) < 2:
        raise RowError(
            "too_few_answers", f"{len(usable)} of {len(ranked.answers)} answers have both a text and a score"
        )
    ordered = sorted(usable, key=_score, reverse=True)
    compared = combinations(ordered, 2) if rule.take == "all" else [(ordered[0], min(usable, key=_score))]
    widest = ordered[0][0] - ordered[-1][0]
    problem = RowError("margin_too_small", f"the scores differ by {widest:g}, wanted are {rule.min_margin:g} and more")
    found = []
    for (better, good), (worse, bad) in compared:
        margin = better - worse
        if margin <= 0 or margin < rule.min_margin:
            continue
        sides = (Message("assistant", good),), (Message("assistant", bad),)
        try:
            pair = pair_row(ranked.record, ranked.used, ranked.prompt, *sides, ranked.origin, ranked.source)
        except RowError as error:
            problem = error
            continue
        found.append(replace(pair, meta={**pair.meta, "margin": margin}))
    if not found:
        raise problem
    return tuple(found)


def _score(answer: tuple[float, str]) -> float:
    return answer[0]
