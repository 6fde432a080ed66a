"""Held-out feedback: how well several models tell replies found good from replies found bad, with bootstrap intervals.

The reward of a reply is its log-ratio to the reference, as in `posttrain.tasks.held_out.preferences`. Rows are single replies, so there
is nothing to compare within a row: what counts is whether good replies have higher rewards than bad ones.

    separation   P(r_d > r_u) + P(r_d = r_u) / 2 of a desirable and an undesirable reply drawn at random, the area under the
                 ROC curve (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747): 1/2 for a model that can't tell
                 them apart, the reference among them; it does not depend on how many rows there are of each kind

Intervals are percentile intervals of a bootstrap stratified by label: as many desirable and undesirable rows as there are
(Efron and Tibshirani 1993, section 8.3), the same draws for every model. The rows count as independent of each other.

Shapes in names: R rows, D desirable, U undesirable, B resamples, K the measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.preferences import FeedbackTokens
from posttrain.stats.intervals import Interval, IntervalSettings
from posttrain.tasks.held_out.preferences import ReplyLogps, divergence, sums, token_counts, told
from posttrain.types import LOGP_ROUNDING, resolved

MEASURES = ("separation", "reward_margin", "reward_desirable", "reward_undesirable")

_WEIGHTS_AT_ONCE = 1_000_000
"""Rows times resamples held at once: some arrays of 8 MB. What is drawn does not depend on it."""

Floats = NDArray[np.float64]


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
) -> dict[str, Any]:
    """The content of feedback.json (docs/run-folder.md): every model, and every later model against the first.

    ``scores``: model -> of every row log p of each token of its reply. ``desirable``: the labels of the rows. ``reference``: one of the
    models. ``starts``: what it says of the replies as each model was given them, where their templates differ; None = what it says in
    its own. What needs a kind of reply that is not there is None.

    Raises:
        ValueError: no rows, or not one label for every row.

    """
    label_R = np.array(desirable, bool)
    starts = starts or dict.fromkeys(scores, scores[reference])
    if not len(label_R) or any(len(found) != len(label_R) for found in scores.values()):
        raise ValueError(f"{len(label_R)} labels, and rows of the models: {[len(found) for found in scores.values()]}")
    rewards = {name: _rewards(found, starts[name], label_R) for name, found in scores.items()}
    drawn = _resampled(rewards, settings.resamples, settings.seed)
    models = {}
    for name, found in scores.items():
        logps_R = sums(found)
        models[name] = _intervals(_measures(*_whole(rewards[name])), drawn[name], settings.confidence) | {
            "logps_desirable": _mean(logps_R[label_R]),
            "logps_undesirable": _mean(logps_R[~label_R]),
            "kl": divergence(found, starts[name]),
        }
    first, *others = scores
    differences = []
    for name in others:
        estimate_BK = _measures(*_whole(rewards[name])) - _measures(*_whole(rewards[first]))
        differences.append(
            {"a": first, "b": name} | _intervals(estimate_BK, drawn[name] - drawn[first], settings.confidence)
        )
    return {
        "reference": reference,
        "rows": len(label_R),
        "desirable": int(label_R.sum()),
        "undesirable": int((~label_R).sum()),
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "models": models,
        "differences": differences,
    }


def feedback_rows(scores: Mapping[str, ReplyLogps], units: Sequence[FeedbackTokens]) -> Iterator[dict[str, Any]]:
    """The lines of feedback_rows.jsonl."""
    for name, found in scores.items():
        for unit, logps, tokens in zip(units, sums(found), token_counts(found), strict=True):
            yield {
                "model": name,
                "row_id": unit.row_id,
                "desirable": unit.desirable,
                "logp": float(logps),
                "tokens": int(tokens),
            }


# ---- resamples ---------------------------------------------------------------------------------------------------------


def _rewards(own: ReplyLogps, reference: ReplyLogps, label_R: NDArray[np.bool_]) -> Rewards:
    """Rewards within rounding are 0: a model that is the reference rewards nothing."""
    rewards_R = resolved(sums(own) - sums(reference), LOGP_ROUNDING * token_counts(own))
    return Rewards(rewards_R[label_R], rewards_R[~label_R])


def _whole(rewards: Rewards) -> tuple[Rewards, Floats, Floats]:
    """The rewards with every row once, as one resample."""
    return rewards, np.ones((1, len(rewards.desirable_D))), np.ones((1, len(rewards.undesirable_U)))


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


def _intervals(estimate_BK: Floats, drawn_BK: Floats, confidence: float) -> dict[str, Any]:
    """Measure -> estimate with its percentile interval; None where it can't be formed."""
    tail = (1 - confidence) / 2
    low_K, high_K = np.quantile(drawn_BK, (tail, 1 - tail), axis=0)
    values = zip(MEASURES, estimate_BK[0].tolist(), low_K.tolist(), high_K.tolist(), strict=True)
    return {
        name: None if np.isnan(estimate) else told(Interval(estimate, low, high, confidence))
        for name, estimate, low, high in values
    }


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
