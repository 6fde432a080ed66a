"""Held-out feedback: how well several models tell replies found good from replies found bad, with bootstrap intervals.

The reward of a reply is its log-ratio to the reference, as in `posttrain.tasks.held_out.preferences`. Rows are single replies, so there
is nothing to compare within a row: what counts is whether good replies have higher rewards than bad ones.

    ROC area     P(r_d > r_u) + P(r_d = r_u) / 2 of a desirable and an undesirable reply drawn at random, the area under the
                 ROC curve (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747): 1/2 for a model that can't tell
                 them apart, the reference among them; it does not depend on how many rows there are of each kind

Intervals are percentile intervals of a bootstrap stratified by label: as many desirable and undesirable rows as there are
(Efron and Tibshirani 1993, section 8.3), the same draws for every model. The rows count as independent of each other.

Shapes in names: R rows, D desirable, U undesirable, B resamples, K the measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.preferences import FeedbackTokens
from posttrain.stats.intervals import Floats, IntervalSettings
from posttrain.tasks.held_out import held_out_record
from posttrain.tasks.held_out.preferences import ReplyLogps, divergence, sums, token_counts
from posttrain.tasks.records import Difference, Measure, Result, TaskRecord, TaskRow
from posttrain.types import LOGP_ROUNDING, resolved

MEASURES = (
    Measure(
        "roc_area",
        "ROC area",
        about="How often a good reply drawn at random is rewarded more than a bad one; 50% is chance.",
        headline=True,
    ),
    Measure(
        "reward_margin",
        "Reward margin (nats)",
        "number",
        "higher",
        "Mean reward of good replies less that of bad ones; a reward is by how much log-probability a reply gained against the reference.",
    ),
    Measure("reward_desirable", "Reward of good replies (nats)", "number", "neither", "Mean over the good replies."),
    Measure("reward_undesirable", "Reward of bad replies (nats)", "number", "neither", "Mean over the bad replies."),
    Measure("logps_desirable", "Log-probability of good replies", "number", "neither", "Summed over a reply, in nats."),
    Measure(
        "logps_undesirable", "Log-probability of bad replies", "number", "neither", "Summed over a reply, in nats."
    ),
    Measure("kl", "KL from the reference", "number", "neither", "In nats a reply token, estimated on these replies."),
)
DRAWN = ("roc_area", "reward_margin", "reward_desirable", "reward_undesirable")
"""Those with intervals, in the order of K."""
COMPARED = ("roc_area", "reward_margin")
"""What models are compared by: by the interval alone."""

_WEIGHTS_AT_ONCE = 1_000_000
"""Rows times resamples held at once: some arrays of 8 MB. What is drawn does not depend on it."""


class Rewards(NamedTuple):
    """Rewards of one model in nats, of both kinds of replies."""

    desirable_D: Floats
    undesirable_U: Floats


def feedback_record(
    scores: Mapping[str, ReplyLogps],
    desirable: Sequence[bool],
    reference: str,
    starts: Mapping[str, ReplyLogps] | None = None,
    *,
    settings: IntervalSettings,
) -> TaskRecord:
    """The record of feedback.json: every model, and every later model against the first.

    ``scores``: model -> of every row log p of each token of its reply. ``desirable``: the labels of the rows. ``reference``: one of the
    models. ``starts``: what it says of the replies as each model was given them, where their templates differ; None = what it says in
    its own. What needs a kind of reply that is not there is left out.
    """
    label_R = np.array(desirable, bool)
    starts = starts or dict.fromkeys(scores, scores[reference])
    rewards = {name: _rewards(found, starts[name], label_R) for name, found in scores.items()}
    drawn = _resampled(rewards, settings.resamples, settings.seed)
    whole = {name: _measures(own, *(np.ones((1, len(side))) for side in own)) for name, own in rewards.items()}
    good, every = int(label_R.sum()), len(label_R)
    counts = {"reward_desirable": good, "reward_undesirable": every - good}
    counts |= {"logps_desirable": good, "logps_undesirable": every - good}
    results = []
    for name, found in scores.items():
        logps_R = sums(found)
        ends: dict[str, tuple[float | None, ...]] = dict(_intervals(whole[name], drawn[name], settings))
        for key, label in (("logps_desirable", label_R), ("logps_undesirable", ~label_R)):
            if label.any():
                ends[key] = float(logps_R[label].mean()), None, None
        ends["kl"] = divergence(found, starts[name]), None, None
        for key, (estimate, low, high) in ends.items():
            size, fixed = counts.get(key, every), name == reference and key in DRAWN
            results.append(Result(name, key, None, estimate, low, high, size, size, by_definition=fixed))
    first, *others = scores
    differences = []
    for name in others:
        changes = _intervals(whole[name] - whole[first], drawn[name] - drawn[first], settings)
        differences += [
            Difference(first, name, key, *changes[key], prompts=every) for key in COMPARED if key in changes
        ]
    return held_out_record(
        "feedback",
        "Held-out judged replies",
        scores,
        every,
        settings,
        reference=reference,
        measures=MEASURES,
        results=tuple(results),
        differences=tuple(differences),
        notes=(f"{good} of the replies were found good, {every - good} bad.",),
    )


def feedback_rows(scores: Mapping[str, ReplyLogps], units: Sequence[FeedbackTokens]) -> Iterator[TaskRow]:
    """A row a model and reply; ``desirable`` is 1 or 0, ``logp`` the sum over its tokens, in nats."""
    for name, found in scores.items():
        for unit, logps, tokens in zip(units, sums(found), token_counts(found), strict=True):
            values = {"desirable": float(unit.desirable), "logp": float(logps), "tokens": int(tokens)}
            yield TaskRow(name, unit.row_id, values=values)


# ---- resamples ---------------------------------------------------------------------------------------------------------


def _rewards(own: ReplyLogps, reference: ReplyLogps, label_R: NDArray[np.bool_]) -> Rewards:
    """Rewards within rounding are 0: a model that is the reference rewards nothing."""
    rewards_R = resolved(sums(own) - sums(reference), LOGP_ROUNDING * token_counts(own))
    return Rewards(rewards_R[label_R], rewards_R[~label_R])


def _resampled(rewards: Mapping[str, Rewards], resamples: int, seed: int) -> dict[str, Floats]:
    """Model -> its measures in every resample [B, K]."""
    rows_D, rows_U = (len(side) for side in next(iter(rewards.values())))
    generators = np.random.default_rng(seed).spawn(2)  # one a kind, so that what is drawn does not depend on at_once
    found: dict[str, list[Floats]] = {name: [] for name in rewards}
    at_once = max(1, _WEIGHTS_AT_ONCE // (rows_D + rows_U))
    for begin in range(0, resamples, at_once):
        count = min(at_once, resamples - begin)
        weights_BD, weights_BU = (
            _draw(rng, count, rows) for rng, rows in zip(generators, (rows_D, rows_U), strict=True)
        )
        for name, own in rewards.items():
            found[name].append(_measures(own, weights_BD, weights_BU))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _draw(rng: np.random.Generator, resamples: int, rows: int) -> Floats:
    """How often each of some rows [N] is drawn when as many are drawn with replacement, for every resample [B, N]."""
    if not rows:
        return np.zeros((resamples, 0))
    drawn_BN = rng.integers(rows, size=(resamples, rows)) + rows * np.arange(resamples)[:, None]
    return np.bincount(drawn_BN.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def _measures(rewards: Rewards, weights_BD: Floats, weights_BU: Floats) -> Floats:
    """The measures, in their order, of rows that count so many times [B, K]; NaN where a kind is not there."""
    desirable_B = _weighted_means(rewards.desirable_D, weights_BD)
    undesirable_B = _weighted_means(rewards.undesirable_U, weights_BU)
    area_B = _areas(rewards, weights_BD, weights_BU)
    return np.stack([area_B, desirable_B - undesirable_B, desirable_B, undesirable_B], axis=1)


def _weighted_means(values_N: Floats, weights_BN: Floats) -> Floats:
    if not len(values_N):
        return np.full(len(weights_BN), np.nan)
    return np.asarray((weights_BN @ values_N) / weights_BN.sum(axis=1), np.float64)


def _areas(rewards: Rewards, weights_BD: Floats, weights_BU: Floats) -> Floats:
    """The area under the ROC curve of every resample [B].

    Of the desirable rows sorted by reward, those before ``below`` lose against an undesirable row and those from ``above`` on win:
    their weights come from running sums, so a resample costs as many steps as there are rows.
    """
    if not len(rewards.desirable_D) or not len(rewards.undesirable_U):
        return np.full(len(weights_BD), np.nan)
    order = np.argsort(rewards.desirable_D)
    sorted_D = rewards.desirable_D[order]
    running_BD = np.concatenate([np.zeros((len(weights_BD), 1)), weights_BD[:, order].cumsum(axis=1)], axis=1)
    below_U, above_U = (np.searchsorted(sorted_D, rewards.undesirable_U, side) for side in ("left", "right"))
    total_B = running_BD[:, -1]
    lost_BU = (running_BD[:, below_U] + running_BD[:, above_U]) / 2  # ties count half
    won_B = (weights_BU * (total_B[:, None] - lost_BU)).sum(axis=1)
    return np.asarray(won_B / (total_B * weights_BU.sum(axis=1)), np.float64)


def _intervals(
    estimate_BK: Floats, drawn_BK: Floats, settings: IntervalSettings
) -> dict[str, tuple[float, float, float]]:
    """Measure -> estimate with its percentile interval; those that can't be formed are left out."""
    tail = (1 - settings.confidence) / 2
    low_K, high_K = np.quantile(drawn_BK, (tail, 1 - tail), axis=0)
    values = zip(DRAWN, estimate_BK[0].tolist(), low_K.tolist(), high_K.tolist(), strict=True)
    return {name: (estimate, low, high) for name, estimate, low, high in values if not np.isnan(estimate)}
