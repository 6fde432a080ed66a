"""How biased a judge is: consistency, direction, ties, length, failures, by category, and what each mitigation changes.

A pure function of items and judgments. Everything is counted over *questions* (an item's turn); an interval is Wilson's unless it says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from posttrain.judge.agreement import OrderEffects, order_effects
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment, Order, Question, both_orders_of, by_question, outcome_of
from posttrain.judge.verdicts import Accounting, Missing, Verdict, account
from posttrain.judge.win_rates import POINTS
from posttrain.stats.intervals import Interval, IntervalSettings, cluster_sums, mcnemar
from posttrain.stats.ratings import normal_quantile
from posttrain.table import grouped


@dataclass(frozen=True, slots=True)
class LengthPreference:
    """Does the longer reply win? Longer replies may well be better: read it beside the labels, or beside another judge."""

    decided: int
    """Questions with a winner whose replies differ in length."""
    longer: Interval | None
    """Share of them that the longer reply wins; None where there are none."""
    p_value: float
    """Two-sided p-value of an even split (exact sign test)."""
    difference: Interval | None
    """Mean of winner's minus loser's length in characters, by bootstrap over items."""
    slope: Interval | None
    """Slope of winning on length (`length_slope`), ties included: 0 = length does not matter, 1 = twice as long doubles the odds. None
    where it is infinite (the longer one always wins, or never) or where there is one item only."""


@dataclass(frozen=True, slots=True)
class BiasSummary:
    """One judge on a set of questions."""

    calls: Accounting
    """Judgments: asked, answered, parsed, and what is missing by reason (``transport`` = the call failed)."""
    failures: dict[str, int]
    """Failed calls by the engine's reason."""
    orders: OrderEffects | None
    """Consistency and direction; None where one order only (or none) was asked."""
    first_shown: Interval | None
    """Share of the judgments with a winner that the reply shown first won. With both orders an unbiased judge has 1/2."""
    judged: int
    """Questions with an outcome."""
    dropped: int
    """Questions without one."""
    ties: Interval | None
    """Outcomes that are a tie, those of inconsistent orders included."""
    length: LengthPreference


@dataclass(frozen=True, slots=True)
class Mitigation:
    """One way of asking, on the questions that have an outcome under every way."""

    name: str
    questions: int
    win_rate_a: Interval | None
    """(W + T/2) / n of model a, by bootstrap over items."""
    ties: Interval | None
    first_shown: Interval | None
    """Share of its judgments with a winner that the reply shown first won. With one order, model quality is in it too."""
    consistent: Interval | None
    """Both orders agree; None with one order."""
    changed: Interval | None
    """Questions whose outcome differs from that of the first row."""
    accuracy: Interval | None
    """Outcomes equal to the label, over labelled last turns; None without labels."""


@dataclass(frozen=True, slots=True)
class BiasReport:
    """The bias report of one judge."""

    emphasised: bool
    """The summaries are of the emphasised prompt (only where the plain one was not asked)."""
    overall: BiasSummary
    by_category: dict[str, BiasSummary]
    """In order of appearance; items without a category are in none."""
    mitigations: tuple[Mitigation, ...]
    """One row for every way of asking that the judgments hold; the first is one order, one sample, the plain prompt, if that was asked."""


def main_judgments(judgments: Sequence[Judgment]) -> list[Judgment]:
    """The judgments that results are made of: those of the plain prompt, or of the emphasised one where there are no others."""
    plain = [judgment for judgment in judgments if not judgment.ask.emphasis]
    return plain or list(judgments)


def bias_report(
    items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings = IntervalSettings()
) -> BiasReport:
    """Everything the judgments, of which there is one at least, say about the judge."""
    main = main_judgments(judgments)
    categories = [items[judgment.ask.item].category for judgment in main]
    by_category = grouped((own, one) for own, one in zip(categories, main, strict=True) if own is not None)
    return BiasReport(
        emphasised=main[0].ask.emphasis,
        overall=_summary(items, main, settings),
        by_category={category: _summary(items, found, settings) for category, found in by_category.items()},
        mitigations=_mitigations(items, judgments, settings),
    )


def failures_of(judgments: Sequence[Judgment]) -> dict[str, int]:
    """Failed calls by the engine's reason."""
    lost = [judgment.value for judgment in judgments if isinstance(judgment.value, Missing)]
    return dict(Counter(value.detail.partition(":")[0] for value in lost if value.reason == "transport"))


# ---- one set of questions ------------------------------------------------------------------------------------------


def _summary(items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings) -> BiasSummary:
    questions = by_question(judgments)
    both = [pair for pair in map(both_orders_of, questions.values()) if pair is not None]
    found = {question: outcome_of(several) for question, several in questions.items()}
    decided = {question: outcome for question, outcome in found.items() if not isinstance(outcome, Missing)}
    return BiasSummary(
        calls=account([judgment.value for judgment in judgments]),
        failures=failures_of(judgments),
        orders=order_effects(both, settings) if both else None,
        first_shown=_first_shown(judgments, settings),
        judged=len(decided),
        dropped=len(questions) - len(decided),
        ties=settings.share(sum(outcome == "tie" for outcome in decided.values()), len(decided)),
        length=_length_preference(items, decided, settings),
    )


def _first_shown(judgments: Sequence[Judgment], settings: IntervalSettings) -> Interval | None:
    values = [judgment.value for judgment in judgments if judgment.ask.order != "none"]
    first, second = values.count("first"), values.count("second")
    return settings.share(first, first + second)


def _length_preference(
    items: Sequence[Item], decided: Mapping[Question, Verdict], settings: IntervalSettings
) -> LengthPreference:
    lengths = [_lengths(items[place], turn, outcome) for (place, turn), outcome in decided.items()]
    ties = [outcome == "tie" for outcome in decided.values()]
    names = [items[place].id for place, _ in decided]
    apart = [
        (float(winner - loser), name)
        for (winner, loser), tie, name in zip(lengths, ties, names, strict=True)
        if winner != loser and not tie
    ]
    longer = sum(difference > 0 for difference, _ in apart)
    return LengthPreference(
        decided=len(apart),
        longer=settings.share(longer, len(apart)),
        p_value=mcnemar(longer, len(apart) - longer),
        difference=settings.mean([difference for difference, _ in apart], [name for _, name in apart]),
        slope=length_slope(lengths, ties, names, settings.confidence),
    )


def _lengths(item: Item, turn: int, outcome: Verdict) -> tuple[int, int]:
    """Characters of winner and loser; of a tie those of the longer and the shorter one."""
    a, b = len(item.replies_a[turn - 1]), len(item.replies_b[turn - 1])
    if outcome == "tie":
        return max(a, b), min(a, b)
    return (a, b) if outcome == "first" else (b, a)


def length_slope(
    lengths_Q2: Sequence[tuple[int, int]], ties_Q: Sequence[bool], clusters_Q: Sequence[str], confidence: float = 0.95
) -> Interval | None:
    """How far length decides: the slope s of the logistic model ``P(one wins) = sigmoid(s x)`` with
    ``x = ln((1 + characters of the one) / (1 + characters of the other))``.

    One coefficient, no intercept: neither reply has a name. A tie is half a win of each. ``lengths_Q2``: characters of winner and loser
    (of a tie in any order). A reply that is twice as long has ``2^s`` times the odds. Maximum likelihood; Wald
    interval with the sandwich variance over clusters, times K / (K - 1) for K clusters. None where the slope is infinite (every
    difference decided for the longer reply, or every one for the shorter, and no ties), without a decision, and with one cluster.
    """
    x_Q = np.array([math.log((1 + winner) / (1 + loser)) for winner, loser in lengths_Q2])
    won_Q = np.where(np.asarray(ties_Q, dtype=bool), 0.5, 1.0)
    kept = x_Q != 0
    x_Q, won_Q = x_Q[kept], won_Q[kept]
    names = [name for name, keep in zip(clusters_Q, kept, strict=True) if keep]
    decided_Q = won_Q == 1
    bounded = not decided_Q.all() or ((x_Q > 0).any() and (x_Q < 0).any())
    if not decided_Q.any() or not bounded or len(set(names)) < 2:
        return None

    def gradient(slope: float) -> float:
        return float(x_Q @ (won_Q - scipy.special.expit(slope * x_Q)))

    # The gradient falls with the slope: its zero is found by halving, whatever the lengths are.
    low, high = -1.0, 1.0
    while gradient(low) < 0:
        low *= 2
    while gradient(high) > 0:
        high *= 2
    while high - low > 1e-12 * max(1.0, abs(low), abs(high)):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient(middle) > 0 else (low, middle)
    slope = (low + high) / 2
    chances_Q = scipy.special.expit(slope * x_Q)
    scores_K = cluster_sums(x_Q * (won_Q - chances_Q), names)
    information = float((chances_Q * (1 - chances_Q) * x_Q**2).sum())
    variance = len(scores_K) / (len(scores_K) - 1) * float((scores_K**2).sum()) / information**2
    half = normal_quantile(confidence) * math.sqrt(variance)
    return Interval(slope, slope - half, slope + half, confidence)


# ---- mitigations ---------------------------------------------------------------------------------------------------


WAYS: tuple[tuple[str, frozenset[Order]], ...] = (
    ("a shown first", frozenset({"original"})),
    ("b shown first", frozenset({"swapped"})),
    ("no order", frozenset({"none"})),
    ("both orders", frozenset({"original", "swapped"})),
)


def _ways(judgments: Sequence[Judgment]) -> dict[str, list[Judgment]]:
    """The judgments of every way of asking that they hold: orders, samples, prompt; single measures before combined ones."""
    samples = 1 + max(judgment.ask.sample for judgment in judgments)
    orders = {judgment.ask.order for judgment in judgments}
    found = {}
    for emphasis in (False, True):
        for count in dict.fromkeys((1, samples)):
            for name, way in WAYS:
                if way <= orders:
                    majority = f", majority of {count}" if count > 1 else ""
                    found[f"{name}{majority}{', emphasised' if emphasis else ''}"] = [
                        one
                        for one in judgments
                        if one.ask.order in way and one.ask.sample < count and one.ask.emphasis is emphasis
                    ]
    return {name: chosen for name, chosen in found.items() if chosen}


def _mitigations(
    items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings
) -> tuple[Mitigation, ...]:
    ways = {name: by_question(chosen) for name, chosen in _ways(judgments).items()}
    results = {name: {q: outcome_of(found) for q, found in questions.items()} for name, questions in ways.items()}
    first, *_ = results.values()
    not_asked = Missing("empty", "not asked")
    common = [q for q in first if all(not isinstance(r.get(q, not_asked), Missing) for r in results.values())]
    clusters = [items[place].id for place, _ in common]
    labels = {q: items[q[0]].label for q in common if q[1] == len(items[q[0]].turns)}
    labelled = {q: label for q, label in labels.items() if label is not None}

    def mitigation(name: str) -> Mitigation:
        questions, verdicts = ways[name], {q: v for q in common if not isinstance(v := results[name][q], Missing)}
        both = [found for q in common if (found := both_orders_of(questions[q])) is not None]
        return Mitigation(
            name=name,
            questions=len(common),
            win_rate_a=settings.mean([POINTS[v] for v in verdicts.values()], clusters),
            ties=settings.share(sum(v == "tie" for v in verdicts.values()), len(common)),
            first_shown=_first_shown([judgment for q in common for judgment in questions[q]], settings),
            consistent=settings.share(sum(bool(found.consistent) for found in both), len(both)),
            changed=settings.share(sum(verdicts[q] != first[q] for q in common), len(common)),
            accuracy=settings.share(sum(verdicts[q] == label for q, label in labelled.items()), len(labelled)),
        )

    return tuple(map(mitigation, ways))
