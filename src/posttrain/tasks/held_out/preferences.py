"""Held-out preferences: which of two replies several models favour, with paired bootstrap intervals.

A model's implicit reward of a reply is its log-ratio to the reference, log pi(y|x) - log pi_ref(y|x) (Rafailov et al. 2023,
arXiv:2305.18290, eq. 5, without beta). The reference itself rewards nothing, so its accuracy is one half by definition, and a
difference of rewards within rounding (`posttrain.types.resolved`) counts one half for every model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.preferences import PairTokens
from posttrain.stats.intervals import IntervalSettings, Test, compare, mean
from posttrain.tasks.held_out import held_out_record
from posttrain.tasks.records import Difference, Measure, Result, TaskRecord, TaskRow
from posttrain.types import LOGP_ROUNDING, resolved

ReplyLogps = Sequence[NDArray[np.float32]]
"""Of every reply: log p of each of its tokens under one model."""

MEASURES = (
    Measure(
        "reward_accuracy",
        "Reward accuracy",
        about="Share of pairs whose chosen reply gained more log-probability against the reference than the rejected one; 50% is chance.",
        headline=True,
    ),
    Measure(
        "reward_margin",
        "Reward margin (nats)",
        "number",
        "higher",
        "By how much more, on average over the pairs. Times beta it is the margin of DPO's training curves.",
        headline=True,
    ),
    Measure(
        "ranking_accuracy",
        "Ranking accuracy",
        about="Share of pairs whose chosen reply has the higher log-probability a token. It needs no reference, and differs from 50% before "
        "any training, as fluent replies are likelier whether they were chosen or not.",
    ),
    Measure("logps_chosen", "Log-probability of chosen replies", "number", "neither", "Summed over a reply, in nats."),
    Measure(
        "logps_rejected", "Log-probability of rejected replies", "number", "neither", "Summed over a reply, in nats."
    ),
    Measure("kl", "KL from the reference", "number", "neither", "In nats a reply token, estimated on these replies."),
)
COMPARED: dict[str, Test | None] = {"reward_accuracy": "sign", "reward_margin": None, "ranking_accuracy": "sign"}
"""What models are compared by; a share of pairs is also tested, as the bootstrap alone is too bold with few pairs."""


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
) -> TaskRecord:
    """The record of preferences.json: every model, and every later model against the first.

    ``reference`` is one of the models. ``starts``: what it says of the replies as each model was given them, where their templates
    differ; None = what it says in its own.
    """
    starts = starts or dict.fromkeys(scores, scores[reference])
    measured = {name: _measures(found, starts[name]) for name, found in scores.items()}
    pairs = len(scores[reference].chosen)
    results = []
    for name, found in scores.items():
        for key in COMPARED:
            ends = mean(measured[name][key], settings=settings)[:3]
            by_definition = name == reference and key != "ranking_accuracy"
            results.append(Result(name, key, None, *ends, pairs, pairs, by_definition=by_definition))
        start = starts[name]
        plain = {
            "logps_chosen": float(sums(found.chosen).mean()),
            "logps_rejected": float(sums(found.rejected).mean()),
            "kl": divergence([*found.chosen, *found.rejected], [*start.chosen, *start.rejected]),
        }
        results += [Result(name, key, None, value, None, None, pairs, pairs) for key, value in plain.items()]
    first, *others = scores
    differences = []
    for name in others:
        for key, test in COMPARED.items():
            seen = compare(measured[first][key], measured[name][key], test=test, settings=settings)
            ends, p_value, counts = seen.interval[:3], seen.p_value, {"higher": seen.higher, "lower": seen.lower}
            differences.append(Difference(first, name, key, *ends, prompts=pairs, p_value=p_value, test=test, **counts))
    return held_out_record(
        "preferences",
        "Held-out preferences",
        scores,
        pairs,
        settings,
        reference=reference,
        measures=MEASURES,
        results=tuple(results),
        differences=tuple(differences),
    )


def preference_rows(scores: Mapping[str, PairScores], pairs: Sequence[PairTokens]) -> Iterator[TaskRow]:
    """A row a model and pair: log-probabilities of both replies, summed, in nats, and their tokens."""
    for name, found in scores.items():
        for pair, chosen, rejected in zip(pairs, found.chosen, found.rejected, strict=True):
            values = {
                "chosen": float(chosen.sum(dtype=np.float64)),
                "rejected": float(rejected.sum(dtype=np.float64)),
                "chosen_tokens": len(chosen),
                "rejected_tokens": len(rejected),
            }
            yield TaskRow(name, pair.row_id, values=values)


class Sums(NamedTuple):
    """Log-probabilities of both replies of N pairs, summed over their tokens, and how many tokens these are."""

    chosen_N: NDArray[np.float64]
    rejected_N: NDArray[np.float64]
    chosen_tokens_N: NDArray[np.float64]
    rejected_tokens_N: NDArray[np.float64]


def _measures(own: PairScores, reference: PairScores) -> dict[str, NDArray[np.float64]]:
    """The value of every measure for every pair."""
    return pair_measures(
        *(Sums(*map(sums, each), *map(token_counts, each)) for each in (own, reference)),
    )


def pair_measures(own: Sums, reference: Sums) -> dict[str, NDArray[np.float64]]:
    """The value [N] of every measure for every pair."""
    margins_N = own.chosen_N - reference.chosen_N - (own.rejected_N - reference.rejected_N)
    rounding_N = LOGP_ROUNDING * (own.chosen_tokens_N + own.rejected_tokens_N)
    means_N = own.chosen_N / own.chosen_tokens_N - own.rejected_N / own.rejected_tokens_N
    return {
        "reward_accuracy": _wins(resolved(margins_N, rounding_N)),
        "reward_margin": margins_N,
        "ranking_accuracy": _wins(means_N),
    }


def row_measures(record: TaskRecord, rows: Sequence[TaskRow], model: str) -> dict[str, dict[str, float]]:
    """Measure -> pair -> value of a model, from the rows of a record (see `preference_rows`)."""
    start = record.reference or record.baseline
    of_models = {name: [row for row in rows if row.model == name] for name in (model, start)}
    keys = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
    own, reference = (
        Sums(*(np.array([row.values[key] for row in several], np.float64) for key in keys))
        for several in (of_models[model], of_models[start])
    )
    pairs = [row.prompt_id for row in of_models[model]]
    return {
        key: dict(zip(pairs, values.tolist(), strict=True)) for key, values in pair_measures(own, reference).items()
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
