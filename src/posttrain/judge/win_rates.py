"""Who wins: win rates with intervals over questions, and a sign test. Statistics only, no torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from posttrain.judge.verdicts import Missing, Verdict, mirrored
from posttrain.stats.intervals import Interval, IntervalSettings, mcnemar, mean, wilson

POINTS: dict[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


class PairOutcome(NamedTuple):
    """What a judge (or a panel) says of one question to two models."""

    model_a: str
    model_b: str
    outcome: Verdict | Missing
    """``first``: model a is better."""
    cluster: Hashable
    """Outcomes of one cluster (the turns of one question) are resampled together."""


@dataclass(frozen=True, slots=True)
class WinRates:
    """Model a against model b over the questions with an outcome."""

    model_a: str
    model_b: str
    wins: int
    losses: int
    ties: int
    missing: int
    """Questions without an outcome: in none of the rates."""
    win_rate: Interval | None
    """W / (W + L + T); None without outcomes."""
    adjusted: Interval | None
    """(W + T/2) / (W + L + T)."""
    p_value: float
    """Two-sided exact sign test of wins against losses, ties left out. It takes questions as independent: where they come in clusters the
    intervals are the safer guide."""


def win_rates(outcomes: Iterable[PairOutcome], settings: IntervalSettings = IntervalSettings()) -> tuple[WinRates, ...]:
    """Win rates of every two models that meet; two models are one pair whichever of them stands first.

    The percentile intervals resample clusters. Where all outcomes are the same the interval is Wilson's for as many clusters.
    """
    groups: dict[tuple[str, str], list[tuple[Verdict | Missing, Hashable]]] = {}
    for a, b, outcome, cluster in outcomes:
        turned = (b, a) in groups
        verdict = mirrored(outcome) if turned and not isinstance(outcome, Missing) else outcome
        groups.setdefault((b, a) if turned else (a, b), []).append((verdict, cluster))
    return tuple(_of_pair(a, b, found, settings) for (a, b), found in groups.items())


def _of_pair(
    model_a: str, model_b: str, found: list[tuple[Verdict | Missing, Hashable]], settings: IntervalSettings
) -> WinRates:
    judged = [(outcome, cluster) for outcome, cluster in found if not isinstance(outcome, Missing)]
    verdicts, clusters = [outcome for outcome, _ in judged], [cluster for _, cluster in judged]
    wins, losses, ties = (verdicts.count(one) for one in ("first", "second", "tie"))

    def rate(values: list[float]) -> Interval | None:
        if len(set(values)) == 1:  # the bootstrap would have no width, which is no certainty
            size = len(set(clusters))
            return wilson(values[0] * size, size, settings.confidence)
        return mean(values, clusters, settings) if values else None

    return WinRates(
        model_a,
        model_b,
        wins,
        losses,
        ties,
        len(found) - len(judged),
        rate([float(verdict == "first") for verdict in verdicts]),
        rate([POINTS[verdict] for verdict in verdicts]),
        mcnemar(wins, losses),
    )
