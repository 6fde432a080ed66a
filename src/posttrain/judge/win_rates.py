"""Who wins: win rates with intervals over questions, and a sign test. Statistics only, no torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from posttrain.judge.verdicts import Missing, Verdict
from posttrain.stats.intervals import Interval, clustered_difference, mcnemar, wilson

POINTS: dict[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


class WinRates(NamedTuple):
    """Model a (``first``) against model b over the questions with an outcome."""

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
    """Two-sided exact sign test of wins against losses, ties left out (McNemar's test on the discordant questions)."""


def win_rates(
    outcomes_Q: Sequence[Verdict | Missing],
    clusters_Q: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRates:
    """Win rates of model a; the percentile intervals resample clusters (the turns of one question belong together).

    Where all outcomes are the same the interval is Wilson's for as many clusters.

    The sign test takes questions as independent; where they come in clusters the intervals are the safer guide.

    Raises:
        ValueError: unequal lengths.

    """
    if len(outcomes_Q) != len(clusters_Q):
        raise ValueError(f"{len(outcomes_Q)} outcomes, but {len(clusters_Q)} clusters")
    judged = [(o, c) for o, c in zip(outcomes_Q, clusters_Q, strict=True) if not isinstance(o, Missing)]
    verdicts = [outcome for outcome, _ in judged]
    wins, losses, ties = (verdicts.count(one) for one in ("first", "second", "tie"))

    def mean(values: Sequence[float]) -> Interval | None:
        clusters = len({cluster for _, cluster in judged})
        if len(set(values)) == 1:  # the bootstrap would have no width, which is no certainty
            return wilson(values[0] * clusters, clusters, confidence)
        return mean_interval(values, [c for _, c in judged], confidence=confidence, resamples=resamples, seed=seed)

    return WinRates(
        wins,
        losses,
        ties,
        len(outcomes_Q) - len(judged),
        mean([float(verdict == "first") for verdict in verdicts]),
        mean([POINTS[verdict] for verdict in verdicts]),
        mcnemar(wins, losses),
    )


def mean_interval(
    values_R: Sequence[float],
    clusters_R: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Mean with its percentile interval over clusters; None without values."""
    if not values_R:
        return None
    return clustered_difference(
        np.zeros(len(values_R)), values_R, clusters_R, confidence=confidence, resamples=resamples, seed=seed
    )
