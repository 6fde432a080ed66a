"""summary.json: the numbers of the report for programs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

from posttrain.report import benchmark_summary, preference_summary, wording
from posttrain.report.facts import EvalFacts, RunFacts, TrainFacts
from posttrain.report.feedback import feedback_summary
from posttrain.report.overview import overview
from posttrain.report.preference_comparison import PreferenceStages
from posttrain.report.reading import Stage
from posttrain.report.records import LengthStatistics

SCHEMA = 1


def summary(facts: RunFacts, stages: PreferenceStages | None = None) -> dict[str, Any]:
    """Return the content of summary.json.

    Losses are in nats per token, memory in bytes, times in seconds, shares between 0 and 1. Numbers that are not finite
    are null, as JSON has no others.
    """
    models = overview(facts)
    value = {
        "schema": SCHEMA,
        "name": facts.name,
        "title": facts.title,
        "model": facts.model,
        "seed": facts.seed,
        "status": facts.status,
        "seconds": facts.seconds,
        "paragraph": wording.paragraph(facts),
        "findings": [dataclasses.asdict(finding) for finding in wording.findings(facts)],
        "gaps": [dataclasses.asdict(gap) for gap in facts.gaps],
        "stages": [_stage(stage) for stage in facts.stages],
        "data": [{"stage": data.stage.name, **dataclasses.asdict(data.result)} for data in facts.data],
        "training": [_training(train) for train in facts.training],
        "evaluations": [_evaluation(evaluation) for evaluation in facts.evaluations],
        "preference_stages": preference_summary.stages(stages) if stages else None,
        "overview": benchmark_summary.overview(models) if models else None,
    }
    return {key: _finite(inner) for key, inner in value.items()}


def _stage(stage: Stage) -> dict[str, Any]:
    manifest, ledger = stage.manifest, stage.ledger
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status,
        "seconds": manifest.seconds if manifest else None,
        "peak_memory_bytes": manifest.peak_memory_bytes if manifest else None,
        "device": manifest.device if manifest else None,
        "dtype": manifest.dtype if manifest else None,
        "digest": manifest.digest if manifest else None,
        "error": manifest.error if manifest else None,
        "ledger": None
        if ledger is None
        else {
            "rows_in": ledger.rows_in,
            "rows_kept": ledger.rows_kept,
            "added": ledger.added,
            "dropped": ledger.dropped,
            "truncated": ledger.truncated,
            "steps": [dataclasses.asdict(step) for step in ledger.steps],
        },
    }


def _training(train: TrainFacts) -> dict[str, Any]:
    lengths = train.lengths
    return {
        "stage": train.stage.name,
        "result": dataclasses.asdict(train.result),
        "steps": train.step_count,
        "seconds": train.seconds,
        "peak_memory_bytes": train.peak_memory_bytes,
        "held_out": [dataclasses.asdict(record) for record in train.held_out],
        "lengths": None
        if lengths is None
        else {
            "limit": lengths.limit,
            "conversation": _length_statistics(lengths.conversation),
            "assistant": _length_statistics(lengths.assistant),
            **{name: _length_statistics(statistics) for name, statistics in lengths.sides},
        },
        "preferences": preference_summary.training(train),
    }


def _length_statistics(statistics: LengthStatistics) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(statistics).items() if key != "values"}


def _evaluation(evaluation: EvalFacts) -> dict[str, Any]:
    return {
        "stage": evaluation.stage.name,
        "models": evaluation.models,
        "likelihood": {name: dataclasses.asdict(model) for name, model in evaluation.likelihood.items()},
        "loss_comparisons": [
            {
                **dataclasses.asdict(c.pair),
                "verdict": c.verdict,
                "perplexity_change": c.perplexity_change,
                "perplexity_change_low": c.perplexity_change_low,
                "perplexity_change_high": c.perplexity_change_high,
                "rows": len(c.row_differences),
                "rows_better": c.rows_better,
            }
            for c in evaluation.loss_comparisons
        ],
        "accuracy": {name: dataclasses.asdict(model) for name, model in evaluation.accuracy.items()},
        "accuracy_comparisons": [
            {**dataclasses.asdict(c.pair), "checked": c.checked, "verdict": c.verdict}
            for c in evaluation.accuracy_comparisons
        ],
        "preferences": preference_summary.evaluation(evaluation),
        "feedback": feedback_summary(evaluation.feedback),
        "benchmarks": [benchmark_summary.benchmark(one) for one in evaluation.benchmarks],
        "replies": {
            "prompts": len(evaluation.prompts),
            "outcomes": dict(Counter(prompt.outcome for prompt in evaluation.prompts)),
            "cut_at_length_limit": {model: evaluation.cut_replies(model) for model in evaluation.models},
            "not_finite": {model: evaluation.failed_replies(model) for model in evaluation.models},
        },
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
