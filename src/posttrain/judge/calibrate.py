"""Is a judge good enough? Its outcomes or ratings beside those of people, its consistency, and a verdict in words."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.judge.agreement import (
    Calibration,
    calibration,
    pearson_correlation,
    quadratic_kappa,
    spearman_correlation,
)
from posttrain.judge.bias import main_judgments
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment, both_orders_of, by_question, outcome_of
from posttrain.judge.verdicts import Accounting, BothOrders, Missing, Verdict, account, mirrored
from posttrain.stats.intervals import Interval, IntervalSettings

Decision = Literal["good enough", "not good enough", "not decided"]


# When a judge is good enough. Ours, not published.
MARGIN = 0.1
"""The lower end of accuracy must be this far above what a constant answer gets."""
CONSISTENCY = 0.7
"""Share of pairs on which both orders agree."""
MOST_MISSING = 0.05
"""At most this share of calls without a verdict."""
CORRELATION = 0.5
"""Ratings: the lower end of the rank correlation with people is at least this."""
FEWEST_REPLIES = 30
"""Ratings: fewer replies than this decide nothing (a bootstrap over so few is too sure of itself)."""


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """A judge on labelled pairs."""

    pairs: int
    measured: Calibration
    """Accuracy in one order and in both, kappa, order effects."""
    calls: Accounting
    chance: float
    """Accuracy of the best constant answer: the share of the commonest label, and at least 1/2."""
    decision: Decision
    reasons: tuple[str, ...]
    """Why, in words; one line a criterion."""


def calibrate(
    items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings = IntervalSettings()
) -> JudgeCalibration:
    """Compare the outcomes of the last turns, asked in both orders, with the labels of their items.

    A judge without orders (a reward model) counts as saying the same in both; its consistency is then no evidence and not asked for.
    ``not decided``: accuracy could be on either side of the bar, and more labelled pairs would tell.
    """
    last = _of_last_turns(items, judgments)
    gold: list[Verdict] = []
    both: list[BothOrders] = []
    for (place, _), found in by_question(last).items():
        if (label := items[place].label) is None:
            raise ValueError(f"item {items[place].id!r} has no label")
        if (pair := both_orders_of(found)) is None:
            outcome = outcome_of(found)
            pair = BothOrders(outcome, outcome if isinstance(outcome, Missing) else mirrored(outcome))
        gold.append(label)
        both.append(pair)
    measured = calibration(both, gold, settings)
    calls = account([judgment.value for judgment in last])
    chance = max(0.5, max(Counter(gold).values()) / len(gold))
    ordered = any(judgment.ask.order != "none" for judgment in last)
    return JudgeCalibration(len(gold), measured, calls, chance, *_decide(measured, calls, chance, ordered))


def _of_last_turns(items: Sequence[Item], judgments: Sequence[Judgment]) -> list[Judgment]:
    return [one for one in main_judgments(judgments) if one.ask.turn == len(items[one.ask.item].turns)]


def _decide(measured: Calibration, calls: Accounting, chance: float, ordered: bool) -> tuple[Decision, tuple[str, ...]]:
    accuracy, consistent = measured.both_orders, measured.orders.consistent
    if accuracy is None or consistent is None:
        return "not good enough", ("no pair has a verdict in both orders",)
    bar = chance + MARGIN
    states = [_above(accuracy, bar)]
    reasons = [
        f"accuracy {accuracy.estimate:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%}): {_ABOVE[states[0]]} {bar:.1%}, "
        f"which is {100 * MARGIN:.0f} points above a constant answer"
    ]
    if ordered:
        good = consistent.estimate >= CONSISTENCY
        states.append("good enough" if good else "not good enough")
        reasons.append(
            f"the same verdict in both orders for {consistent.estimate:.1%} of the pairs: "
            f"{'at least' if good else 'less than'} {CONSISTENCY:.0%}"
        )
    return _with_missing(states, reasons, calls)


# ---- ratings of single replies -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RatingCalibration:
    """A judge's ratings beside people's, over the labelled replies that have a rating. Several samples of a reply are averaged."""

    replies: int
    """Labelled replies that were asked for."""
    rated: int
    """Those with a rating."""
    spearman: Interval | None
    """Rank correlation. Intervals of the first five resample items by ``id``; None where a rater gives all replies the same rating."""
    pearson: Interval | None
    kappa: Interval | None
    """Quadratically weighted kappa: how close the ratings are, beyond chance."""
    error: Interval | None
    """Mean absolute difference, in points of the scale."""
    shift: Interval | None
    """Mean of judge minus people: above 0 the judge is milder."""
    exact: Interval | None
    """Share of replies less than half a point apart (Wilson)."""
    within_one: Interval | None
    """Share at most one point apart (Wilson)."""
    calls: Accounting
    constant_error: float
    """Mean absolute difference of the best constant answer, the median of the labels."""
    decision: Decision
    reasons: tuple[str, ...]
    """Why, in words; one line a criterion."""


def calibrate_ratings(
    items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings = IntervalSettings()
) -> RatingCalibration:
    """Compare the ratings of the last turns with the ratings people gave (``Item.rating``), which are on the same scale.

    ``not decided``: a correlation or an error could be on either side of its bar, and more labelled replies would tell.
    """
    last = _of_last_turns(items, judgments)
    gold: list[float] = []
    rated: list[tuple[float, float, str]] = []
    for (place, _), found in by_question(last).items():
        item = items[place]
        if item.rating is None:
            raise ValueError(f"item {item.id!r} has no rating by people")
        gold.append(item.rating)
        if ratings := [float(judgment.value) for judgment in found if isinstance(judgment.value, float | int)]:
            rated.append((sum(ratings) / len(ratings), item.rating, item.id))
    given, labels, clusters = [one[0] for one in rated], [one[1] for one in rated], [one[2] for one in rated]
    differences = [own - label for own, label, _ in rated]

    def share(near: Callable[[float], bool]) -> Interval | None:
        return settings.share(sum(near(abs(d)) for d in differences), len(differences))

    def known(coefficient: Callable[..., Interval]) -> Interval | None:
        interval = coefficient(given, labels, clusters_I=clusters, settings=settings) if rated else None
        return None if interval is None or math.isnan(interval.estimate) else interval

    middle = statistics.median(gold)
    measured = RatingCalibration(
        replies=len(gold),
        rated=len(rated),
        spearman=known(spearman_correlation),
        pearson=known(pearson_correlation),
        kappa=known(quadratic_kappa),
        error=settings.mean([abs(d) for d in differences], clusters),
        shift=settings.mean(differences, clusters),
        exact=share(lambda distance: distance < 0.5),
        within_one=share(lambda distance: distance <= 1),
        calls=account([judgment.value for judgment in last]),
        constant_error=sum(abs(label - middle) for label in gold) / len(gold),
        decision="not decided",
        reasons=(),
    )
    decision, reasons = _decide_ratings(measured, labels)
    return replace(measured, decision=decision, reasons=reasons)


def _decide_ratings(measured: RatingCalibration, labels: Sequence[float]) -> tuple[Decision, tuple[str, ...]]:
    error, spearman, constant = measured.error, measured.spearman, measured.constant_error
    if error is None:
        return "not good enough", ("no reply has a rating",)
    if len(set(labels)) == 1:
        return "not decided", ("people gave every reply the same rating: nothing can be told from that",)
    if spearman is None:
        return "not good enough", ("the judge gives every reply the same rating",)
    ranked = _above(spearman, CORRELATION)
    near: Decision = (
        "good enough" if error.high < constant else "not decided" if error.low < constant else "not good enough"
    )
    reasons = [
        f"rank correlation {spearman.estimate:.2f} ({spearman.low:.2f} to {spearman.high:.2f}): "
        f"{_ABOVE[ranked]} {CORRELATION:g}",
        f"{error.estimate:.2f} points off on average ({error.low:.2f} to {error.high:.2f}): "
        f"{_BELOW[near]} {constant:.2f}, the error of a constant answer",
    ]
    states = [ranked, near]
    if measured.rated < FEWEST_REPLIES:
        states.append("not decided")
        reasons.append(f"{measured.rated} rated replies: fewer than {FEWEST_REPLIES} decide nothing")
    return _with_missing(states, reasons, measured.calls)


# ---- criteria ------------------------------------------------------------------------------------------------------

_ABOVE: dict[Decision, str] = {
    "good enough": "the lower end reaches",
    "not decided": "the interval holds",
    "not good enough": "even the upper end is below",
}
_BELOW: dict[Decision, str] = {
    "good enough": "the upper end is below",
    "not decided": "the interval holds",
    "not good enough": "even the lower end reaches",
}


def _above(interval: Interval, bar: float) -> Decision:
    return "good enough" if interval.low >= bar else "not decided" if interval.high >= bar else "not good enough"


def _with_missing(
    states: Sequence[Decision], reasons: Sequence[str], calls: Accounting
) -> tuple[Decision, tuple[str, ...]]:
    """The criterion that every judge must meet, and the decision: as bad as the worst of all."""
    missing = (calls.asked - calls.parsed) / calls.asked
    good = missing <= MOST_MISSING
    reason = f"{missing:.1%} of the calls have no verdict: {'at most' if good else 'more than'} {MOST_MISSING:.0%}"
    order: tuple[Decision, ...] = ("not good enough", "not decided", "good enough")
    worst = min([*states, order[2] if good else order[0]], key=order.index)
    return worst, (*reasons, reason)
