"""Held-out likelihood of several models on the same rows, with paired bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.model.score import Scores
from posttrain.stats.intervals import IntervalSettings, compare
from posttrain.types import Tokens


def likelihood_record(scores: Mapping[str, Scores], *, settings: IntervalSettings) -> dict[str, Any]:
    """The content of likelihood.json (docs/run-folder.md): every model, and every later model against the first."""
    first = next(iter(scores))
    models = {
        name: {
            "loss": s.mean(),
            "perplexity": math.exp(s.mean()),
            "tokens": float(s.weight_N.sum()),
            "rows": len(s.nll_N),
        }
        for name, s in scores.items()
    }
    pairs = []
    for name in list(scores)[1:]:
        a, b = scores[first], scores[name]
        # the weights differ where the two are given rows in templates of their own
        found = compare(a.nll_N, b.nll_N, weights_a_R=a.weight_N, weights_b_R=b.weight_N, settings=settings)
        pairs.append(
            {
                "a": first,
                "b": name,
                "difference": found.interval.estimate,
                "low": found.interval.low,
                "high": found.interval.high,
                "confidence": settings.confidence,
                "resamples": settings.resamples,
                "rows_improved": found.lower,
            }
        )
    return {"models": models, "pairs": pairs}


def row_records(scores: Mapping[str, Scores], examples: Sequence[Tokens]) -> Iterator[dict[str, Any]]:
    """The lines of likelihood_rows.jsonl."""
    for name, s in scores.items():
        for example, nll, weight in zip(examples, s.nll_N, s.weight_N, strict=True):
            yield {"model": name, "row_id": example.row_id, "nll": float(nll), "tokens": float(weight)}
