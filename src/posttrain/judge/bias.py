"""How biased a judge is: consistency, direction, ties, length, failures, by category, and what each mitigation changes.

A pure function of items and games. Everything is counted over *questions* (an item's turn); an interval is Wilson's unless it says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from posttrain.judge.agreement import OrderEffects, order_effects
from posttrain.judge.items import Item
from posttrain.judge.judge import Game, Question, by_question, outcome_of, two_games
from posttrain.judge.verdicts import Accounting, Missing, Verdict, account
from posttrain.judge.win_rates import POINTS, mean_interval
from posttrain.stats.intervals import Interval, mcnemar, wilson
from posttrain.stats.ratings import normal_quantile


class LengthPreference(NamedTuple):
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


class BiasSummary(NamedTuple):
    """One judge on a set of questions."""

    calls: Accounting
    """Games: asked, answered, parsed, and what is missing by reason (``transport`` = the call failed)."""
    failures: dict[str, int]
    """Failed calls by the engine's reason."""
    orders: OrderEffects | None
    """Consistency and direction; None where one order only (or none) was asked."""
    first_shown: Interval | None
    """Share of the games with a winner that the reply shown first won. With both orders an unbiased judge has 1/2."""
    judged: int
    """Questions with an outcome."""
    dropped: int
    """Questions without one."""
    ties: Interval | None
    """Outcomes that are a tie, those of inconsistent orders included."""
    length: LengthPreference


class Mitigation(NamedTuple):
    """One way of asking, on the questions that have an outcome under every way."""

    name: str
    questions: int
    win_rate_a: Interval | None
    """(W + T/2) / n of model a, by bootstrap over items."""
    ties: Interval | None
    first_shown: Interval | None
    """Share of its games with a winner that the reply shown first won. With one order, model quality is in it too."""
    consistent: Interval | None
    """Both orders agree; None with one order."""
    changed: Interval | None
    """Questions whose outcome differs from that of the first row."""
    accuracy: Interval | None
    """Outcomes equal to the label, over labelled last turns; None without labels."""


class BiasReport(NamedTuple):
    """The bias report of one judge."""

    emphasised: bool
    """The summaries are of the emphasised prompt (only where the plain one was not asked)."""
    overall: BiasSummary
    by_category: dict[str, BiasSummary]
    """In order of appearance; items without a category are in none."""
    mitigations: tuple[Mitigation, ...]
    """One row for every way of asking that the games hold; the first is one order, one sample, the plain prompt, if that was asked."""


def main_games(games: Sequence[Game]) -> list[Game]:
    """The games that results are made of: those of the plain prompt, or of the emphasised one where there are no others."""
    plain = [game for game in games if not game.ask.emphasis]
    return plain or list(games)


def bias_report(
    items: Sequence[Item], games: Sequence[Game], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> BiasReport:
    """Everything the games say about the judge.

    Raises:
        ValueError: no games.

    """
    if not games:
        raise ValueError("no games, no bias report")
    main = main_games(games)
    chance = Chance(confidence, resamples, seed)
    categories = dict.fromkeys(items[game.ask.item].category for game in main)
    return BiasReport(
        emphasised=main[0].ask.emphasis,
        overall=_summary(items, main, chance),
        by_category={
            category: _summary(items, [g for g in main if items[g.ask.item].category == category], chance)
            for category in categories
            if category is not None
        },
        mitigations=_mitigations(items, games, chance),
    )


class Chance(NamedTuple):
    """How intervals are made."""

    confidence: float
    resamples: int
    seed: int

    def share(self, count: int, of: int) -> Interval | None:
        """Wilson's interval; None of nothing."""
        return wilson(count, of, self.confidence) if of else None

    def mean(self, values_R: Sequence[float], clusters_R: Sequence[str]) -> Interval | None:
        """Bootstrap over clusters; None of nothing."""
        return mean_interval(values_R, clusters_R, confidence=self.confidence, resamples=self.resamples, seed=self.seed)


# ---- one set of questions ------------------------------------------------------------------------------------------


def _summary(items: Sequence[Item], games: Sequence[Game], chance: Chance) -> BiasSummary:
    questions = by_question(games)
    both = [found for found in map(two_games, questions.values()) if found is not None]
    decided = {q: o for q, o in _outcomes(questions).items() if not isinstance(o, Missing)}
    failures = Counter(
        game.value.detail.partition(":")[0]
        for game in games
        if isinstance(game.value, Missing) and game.value.reason == "transport"
    )
    return BiasSummary(
        calls=account([game.value for game in games]),
        failures=dict(failures),
        orders=order_effects(both, confidence=chance.confidence) if both else None,
        first_shown=_first_shown(games, chance),
        judged=len(decided),
        dropped=len(questions) - len(decided),
        ties=chance.share(sum(outcome == "tie" for outcome in decided.values()), len(decided)),
        length=_length_preference(items, decided, chance),
    )


def _outcomes(questions: Mapping[Question, Sequence[Game]]) -> dict[Question, Verdict | Missing]:
    return {question: outcome_of(found) for question, found in questions.items()}


def _first_shown(games: Sequence[Game], chance: Chance) -> Interval | None:
    values = [game.value for game in games if game.ask.order != "none"]
    first, second = values.count("first"), values.count("second")
    return chance.share(first, first + second)


def _length_preference(items: Sequence[Item], decided: Mapping[Question, Verdict], chance: Chance) -> LengthPreference:
    differences: list[float] = []
    clusters: list[str] = []
    for (place, turn), outcome in decided.items():
        winner, loser = _lengths(items[place], turn, outcome)
        if outcome != "tie" and winner != loser:
            differences.append(float(winner - loser))
            clusters.append(items[place].id)
    longer = sum(difference > 0 for difference in differences)
    return LengthPreference(
        decided=len(differences),
        longer=chance.share(longer, len(differences)),
        p_value=mcnemar(longer, len(differences) - longer),
        difference=chance.mean(differences, clusters),
        slope=length_slope(
            [_lengths(items[place], turn, outcome) for (place, turn), outcome in decided.items()],
            [outcome == "tie" for outcome in decided.values()],
            [items[place].id for place, _ in decided],
            chance.confidence,
        ),
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
        return float(x_Q @ (won_Q - expit(slope * x_Q)))

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
    chances_Q = expit(slope * x_Q)
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    scores_K = np.zeros(len(places))
    np.add.at(scores_K, [places[name] for name in names], x_Q * (won_Q - chances_Q))
    information = float((chances_Q * (1 - chances_Q) * x_Q**2).sum())
    variance = len(places) / (len(places) - 1) * float((scores_K**2).sum()) / information**2
    half = normal_quantile(confidence) * math.sqrt(variance)
    return Interval(slope, slope - half, slope + half, confidence)


# ---- mitigations ---------------------------------------------------------------------------------------------------


def _ways(games: Sequence[Game]) -> dict[str, list[Game]]:
    """The games of every way of asking that they hold: orders, samples, prompt; single measures before combined ones."""
    samples = 1 + max(game.ask.sample for game in games)
    orders = {game.ask.order for game in games}
    tests: dict[str, Callable[[Game], bool]] = {}
    names = {"original": "a shown first", "swapped": "b shown first", "none": "no order"}
    for emphasis, suffix in ((False, ""), (True, ", emphasised")):
        for order in ("original", "swapped", "none"):
            if order in orders:
                tests[names[order] + suffix] = _way({order}, 1, emphasis)
        if {"original", "swapped"} <= orders:
            tests["both orders" + suffix] = _way({"original", "swapped"}, 1, emphasis)
        if samples > 1:
            for order in ("original", "swapped", "none"):
                if order in orders:
                    tests[f"{names[order]}, majority of {samples}{suffix}"] = _way({order}, samples, emphasis)
            if {"original", "swapped"} <= orders:
                tests[f"both orders, majority of {samples}{suffix}"] = _way({"original", "swapped"}, samples, emphasis)
    chosen = {name: [game for game in games if test(game)] for name, test in tests.items()}
    return {name: found for name, found in chosen.items() if found}


def _way(orders: set[str], samples: int, emphasis: bool) -> Callable[[Game], bool]:
    return lambda game: game.ask.order in orders and game.ask.sample < samples and game.ask.emphasis is emphasis


def _mitigations(items: Sequence[Item], games: Sequence[Game], chance: Chance) -> tuple[Mitigation, ...]:
    ways = {name: by_question(found) for name, found in _ways(games).items()}
    results = {name: _outcomes(questions) for name, questions in ways.items()}
    first, *_ = results.values()
    common = [q for q in first if all(not isinstance(r.get(q, _NOT_ASKED), Missing) for r in results.values())]
    return tuple(_mitigation(name, items, ways[name], results[name], first, common, chance) for name in ways)


_NOT_ASKED = Missing("empty", "not asked")


def _mitigation(
    name: str,
    items: Sequence[Item],
    questions: Mapping[Question, Sequence[Game]],
    results: Mapping[Question, Verdict | Missing],
    baseline: Mapping[Question, Verdict | Missing],
    common: Sequence[Question],
    chance: Chance,
) -> Mitigation:
    verdicts = {q: v for q in common if not isinstance(v := results[q], Missing)}
    both = [found for q in common if (found := two_games(questions[q])) is not None]
    labels = [
        (verdicts[place, turn], items[place].label)
        for place, turn in common
        if items[place].label is not None and turn == len(items[place].turns)
    ]
    return Mitigation(
        name=name,
        questions=len(common),
        win_rate_a=chance.mean([POINTS[v] for v in verdicts.values()], [items[p].id for p, _ in common]),
        ties=chance.share(sum(v == "tie" for v in verdicts.values()), len(common)),
        first_shown=_first_shown([game for q in common for game in questions[q]], chance),
        consistent=chance.share(sum(bool(found.consistent) for found in both), len(both)),
        changed=chance.share(sum(results[q] != baseline[q] for q in common), len(common)),
        accuracy=chance.share(sum(v == label for v, label in labels), len(labels)),
    )
