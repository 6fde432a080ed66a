"""Held-out preferences: which of two replies several models favour, with paired bootstrap intervals.

A model's implicit reward of a reply is its log-ratio to the reference, log pi(y|x) - log pi_ref(y|x) (Rafailov et al. 2023,
arXiv:2305.18290, eq. 5, without beta). The reference itself rewards nothing, so its accuracy is one half by definition, and a
difference of rewards within rounding (`posttrain.types.resolved`) counts one half for every model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.preferences import PairTokens
from posttrain.stats.intervals import Interval, IntervalSettings, compare, mean
from posttrain.types import LOGP_ROUNDING, resolved

ReplyLogps = Sequence[NDArray[np.float32]]
"""Of every reply: log p of each of its tokens under one model."""

MEASURES = ("reward_accuracy", "reward_margin", "ranking_accuracy")


class PairScores(NamedTuple):
    """Of every held-out pair: log p of each token of the chosen and of the rejected reply under one model."""

    chosen: ReplyLogps
    rejected: ReplyLogps


def preference_record(
    scores: Mapping[str, PairScores],
    reference: str,
    starts: Mapping[str, PairScores] | None = None,
    *,
    settings: IntervalSettings,
) -> dict[str, Any]:
    """The content of preferences.json (docs/run-folder.md): every model, and every later model against the first.

    ``reference`` is one of the models. ``starts``: what it says of the replies as each model was given them, where their templates
    differ; None = what it says in its own.
    """
    starts = starts or dict.fromkeys(scores, scores[reference])
    measured = {name: _measures(found, starts[name]) for name, found in scores.items()}
    models = {}
    for name, found in scores.items():
        intervals = {key: told(mean(measured[name][key], settings=settings)) for key in MEASURES}
        start = starts[name]
        models[name] = intervals | {
            "logps_chosen": float(sums(found.chosen).mean()),
            "logps_rejected": float(sums(found.rejected).mean()),
            "kl": divergence([*found.chosen, *found.rejected], [*start.chosen, *start.rejected]),
        }
    first, *others = scores
    differences = [
        {"a": first, "b": name}
        | {
            key: told(compare(measured[first][key], measured[name][key], settings=settings).interval)
            for key in MEASURES
        }
        for name in others
    ]
    return {
        "reference": reference,
        "pairs": len(scores[reference].chosen),
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "models": models,
        "differences": differences,
    }


def preference_rows(scores: Mapping[str, PairScores], pairs: Sequence[PairTokens]) -> Iterator[dict[str, Any]]:
    """The lines of preference_rows.jsonl."""
    for name, found in scores.items():
        for pair, chosen, rejected in zip(pairs, found.chosen, found.rejected, strict=True):
            yield {
                "model": name,
                "row_id": pair.row_id,
                "chosen": float(chosen.sum(dtype=np.float64)),
                "rejected": float(rejected.sum(dtype=np.float64)),
                "chosen_tokens": len(chosen),
                "rejected_tokens": len(rejected),
            }


def _measures(own: PairScores, reference: PairScores) -> dict[str, NDArray[np.float64]]:
    """The value of every measure for every pair."""
    margins = sums(own.chosen) - sums(reference.chosen) - (sums(own.rejected) - sums(reference.rejected))
    rounding = LOGP_ROUNDING * (token_counts(own.chosen) + token_counts(own.rejected))
    means = [np.array([float(part.mean(dtype=np.float64)) for part in side]) for side in own]
    return {
        "reward_accuracy": _wins(resolved(margins, rounding)),
        "reward_margin": margins,
        "ranking_accuracy": _wins(means[0] - means[1]),
    }


def _wins(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the chosen reply is favoured, 1/2 where neither is."""
    return (np.sign(differences) + 1) / 2


def sums(parts: ReplyLogps) -> NDArray[np.float64]:
    """log p of every reply: the sum over its tokens."""
    return np.array([part.sum(dtype=np.float64) for part in parts])


def token_counts(parts: ReplyLogps) -> NDArray[np.float64]:
    """Tokens of every reply."""
    return np.array([len(part) for part in parts], np.float64)


def divergence(own: ReplyLogps, reference: ReplyLogps) -> float:
    """Half the mean squared log-ratio of a reply's token, as the training logs it."""
    ratios = [a - b for a, b in zip(own, reference, strict=True)]
    return float(0.5 * np.mean(np.square(np.concatenate(ratios), dtype=np.float64)))


def told(interval: Interval) -> dict[str, float]:
    """An interval as it stands in a record."""
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
