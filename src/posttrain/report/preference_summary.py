"""The part of summary.json that tells of preferences."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain.report.facts import EvalFacts, TrainFacts
from posttrain.report.preference_comparison import PreferenceStages
from posttrain.report.preference_wording import remarks
from posttrain.report.preferences import Measure

MEASURES: tuple[Measure, ...] = ("reward_accuracy", "reward_margin", "ranking_accuracy")


def training(train: TrainFacts) -> dict[str, Any] | None:
    """Return what a preference stage logged on the held-out rows; None for other stages."""
    found = train.preferences
    if found is None:
        return None
    return {
        "objective": found.objective,
        "settings": dict(found.settings),
        "reference": found.reference,
        "first_step": dataclasses.asdict(found.steps[0]) if found.steps else None,
        "last_step": dataclasses.asdict(found.steps[-1]) if found.steps else None,
        "held_out": [dataclasses.asdict(record) for record in found.held_out],
        "remarks": [dataclasses.asdict(remark) for remark in remarks(train)],
    }


def evaluation(evaluation: EvalFacts) -> dict[str, Any] | None:
    """Return the held-out preferences of an eval stage with verdicts; None where it has none."""
    found = evaluation.preferences
    if found is None:
        return None
    return {
        "reference": found.reference,
        "pairs": found.pairs,
        "confidence": found.confidence,
        "resamples": found.resamples,
        "models": {name: dataclasses.asdict(model) for name, model in found.models.items()},
        "differences": [
            {
                **dataclasses.asdict(c.difference),
                "verdicts": {measure: c.verdict(measure) for measure in MEASURES},
                "sign_tests": {
                    measure: {"better": test.better, "worse": test.worse, "p_value": test.p_value}
                    for measure, test in c.tests.items()
                },
            }
            for c in found.comparisons
        ],
    }


def stages(found: PreferenceStages) -> list[dict[str, Any]]:
    """Return the columns of the comparison of preference stages, the start model first."""
    return [
        {
            "name": column.name,
            "objective": column.training.objective if column.training else None,
            "settings": dict(column.training.settings) if column.training else None,
            "learning_rate": column.learning_rate,
            "held_out": dataclasses.asdict(column.held_out) if column.held_out else None,
            "kl_from_start": column.kl,
            "replies": dataclasses.asdict(column.replies) if column.replies else None,
            "seconds": column.train.seconds if column.train else None,
            "training_seconds": column.train.result.training_seconds if column.train else None,
            "tokens_per_second": column.train.result.tokens_per_second if column.train else None,
            "peak_memory_bytes": column.train.peak_memory_bytes if column.train else None,
        }
        for column in found.columns
    ]
