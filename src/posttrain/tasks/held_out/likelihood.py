"""Held-out likelihood of several models on the same rows, with paired bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from posttrain.model.score import Scores
from posttrain.stats.intervals import IntervalSettings, compare
from posttrain.tasks.held_out import held_out_record
from posttrain.tasks.records import Difference, Measure, Result, TaskRecord, TaskRow
from posttrain.types import Tokens

MEASURES = (
    Measure(
        "loss",
        "Held-out loss",
        "number",
        "lower",
        "Mean negative log-likelihood of a supervised token, in nats.",
        headline=True,
    ),
    Measure("perplexity", "Perplexity", "number", "lower", "e to the power of the loss."),
    Measure("tokens", "Supervised tokens", "count", "neither", "What the loss is the mean of."),
)


def likelihood_record(scores: Mapping[str, Scores], *, settings: IntervalSettings) -> TaskRecord:
    """The record of likelihood.json: every model, and every later model against the first."""
    first, *others = scores
    results = []
    for name, own in scores.items():
        found = {"loss": own.mean(), "perplexity": math.exp(own.mean()), "tokens": float(own.weight_N.sum())}
        rows = len(own.nll_N)
        results += [Result(name, key, None, value, None, None, rows, rows) for key, value in found.items()]
    differences = []
    for name in others:
        a, b = scores[first], scores[name]
        # the weights differ where the two are given rows in templates of their own
        seen = compare(a.nll_N, b.nll_N, weights_a_R=a.weight_N, weights_b_R=b.weight_N, settings=settings)
        differences.append(
            Difference(first, name, "loss", *seen.interval[:3], prompts=seen.rows, higher=seen.higher, lower=seen.lower)
        )
    return held_out_record(
        "likelihood",
        "Held-out loss and perplexity",
        scores,
        len(scores[first].nll_N),
        settings,
        measures=MEASURES,
        results=tuple(results),
        differences=tuple(differences),
    )


def likelihood_rows(scores: Mapping[str, Scores], examples: Sequence[Tokens]) -> Iterator[TaskRow]:
    """A row a model and held-out row: ``nll`` is the sum over its supervised tokens, in nats."""
    for name, own in scores.items():
        for example, nll, weight in zip(examples, own.nll_N, own.weight_N, strict=True):
            yield TaskRow(name, example.row_id, values={"nll": float(nll), "tokens": float(weight)})
