"""Is a judge good enough? Its outcomes against human labels, its consistency, and a verdict in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from posttrain.eval.agreement import Calibration, calibration
from posttrain.eval.judges.bias import main_games
from posttrain.eval.judges.items import Item
from posttrain.eval.judges.judge import Game, by_question, outcome_of, two_games
from posttrain.eval.verdicts import Accounting, Missing, TwoGames, Verdict, account, mirrored

Decision = Literal["good enough", "not good enough", "not decided"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a judge is good enough. Ours, not published: change them to what your decision can bear."""

    margin: float = 0.1
    """The lower end of accuracy must be this far above what a constant answer gets."""
    consistency: float = 0.7
    """Share of pairs on which both orders agree."""
    missing: float = 0.05
    """At most this share of calls without a verdict."""


class JudgeCalibration(NamedTuple):
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
    items: Sequence[Item],
    games: Sequence[Game],
    thresholds: Thresholds = Thresholds(),
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> JudgeCalibration:
    """Compare the outcomes of the last turns with the labels of their items.

    A judge without orders (a reward model) counts as saying the same in both; its consistency is then no evidence and not asked for.
    ``not decided``: accuracy could be on either side of the bar, and more labelled pairs would tell.

    Raises:
        ValueError: an item without a label, no games, or games in one order only.

    """
    labelled = [item.label for item in items]
    last = [game for game in main_games(games) if game.ask.turn == len(items[game.ask.item].turns)]
    questions = by_question(last)
    gold: list[Verdict] = []
    both: list[TwoGames] = []
    ordered = True
    for (place, _), found in questions.items():
        label, pair = labelled[place], two_games(found)
        if label is None:
            raise ValueError(f"item {items[place].id!r} has no label")
        if pair is None and any(game.ask.order != "none" for game in found):
            raise ValueError("calibration needs both orders")
        if pair is None:
            ordered = False
            outcome = outcome_of(found)
            pair = TwoGames(outcome, outcome if isinstance(outcome, Missing) else mirrored(outcome))
        gold.append(label)
        both.append(pair)
    measured = calibration(both, gold, confidence=confidence, resamples=resamples, seed=seed)
    calls = account([game.value for game in last])
    chance = max(0.5, max(Counter(gold).values()) / len(gold))
    decision, reasons = _decide(measured, calls, chance, thresholds, ordered)
    return JudgeCalibration(len(gold), measured, calls, chance, decision, reasons)


def _decide(
    measured: Calibration, calls: Accounting, chance: float, limits: Thresholds, ordered: bool
) -> tuple[Decision, tuple[str, ...]]:
    accuracy, consistent = measured.both_orders, measured.orders.consistent
    if accuracy is None or consistent is None:
        return "not good enough", ("no pair has a verdict in both orders",)
    bar = chance + limits.margin
    if accuracy.low >= bar:
        states: list[Decision] = ["good enough"]
        words = "the lower end reaches"
    elif accuracy.high >= bar:
        states, words = ["not decided"], "the interval holds"
    else:
        states, words = ["not good enough"], "even the upper end is below"
    reasons = [
        f"accuracy {accuracy.estimate:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%}): {words} {bar:.1%}, "
        f"which is {100 * limits.margin:.0f} points above a constant answer"
    ]
    if ordered:
        good = consistent.estimate >= limits.consistency
        states.append("good enough" if good else "not good enough")
        reasons.append(
            f"the same verdict in both orders for {consistent.estimate:.1%} of the pairs: "
            f"{'at least' if good else 'less than'} {limits.consistency:.0%}"
        )
    missing = (calls.asked - calls.parsed) / calls.asked
    good = missing <= limits.missing
    states.append("good enough" if good else "not good enough")
    reasons.append(
        f"{missing:.1%} of the calls have no verdict: {'at most' if good else 'more than'} {limits.missing:.0%}"
    )
    for state in ("not good enough", "not decided"):
        if state in states:
            return state, tuple(reasons)
    return "good enough", tuple(reasons)
