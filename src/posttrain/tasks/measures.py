"""From a benchmark's values to its record: means with intervals, paired differences with tests, accounting. Statistics only, no torch.

A value belongs to a task; tasks are the unit that is resampled, so two turns, four samples or three instructions of one prompt
count as one piece of evidence (Miller 2024, arXiv:2411.00640). Differences are later models minus the first, on the
tasks that both have values for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.stats.intervals import Interval, IntervalSettings, compare, holm, mean, wilson
from posttrain.tasks.base import Answer, Findings, Measure, Value

Tasks = Mapping[str, Sequence[float]]
"""Values by task, of one model and measure."""


def mean_of(tasks: Tasks, settings: IntervalSettings) -> Interval:
    """Mean over all values. Wilson's interval for a plain share (one 0 or 1 a task), else the bootstrap over tasks.

    The bootstrap of a share that is 0 or 1 has no width, which would claim certainty after ten prompts: hence Wilson's.
    """
    values = [value for found in tasks.values() for value in found]
    if _plain_share(tasks):
        return wilson(int(sum(values)), len(values), settings.confidence)
    return mean(values, [task for task, found in tasks.items() for _ in found], settings)


def difference_of(a: Tasks, b: Tasks, settings: IntervalSettings) -> dict[str, Any] | None:
    """``b`` minus ``a`` on common tasks; None where there are none.

    A task with a value missing on one side (a turn, a sample) is compared by its means. Plain shares are tested by McNemar's exact
    test, anything else by permuting tasks.
    """
    common = [task for task in a if task in b]
    if not common:
        return None
    values_a: list[float] = []
    values_b: list[float] = []
    clusters: list[str] = []
    for task in common:
        found_a, found_b = list(a[task]), list(b[task])
        if len(found_a) != len(found_b):
            found_a, found_b = [float(np.mean(found_a))], [float(np.mean(found_b))]
        values_a += found_a
        values_b += found_b
        clusters += [task] * len(found_a)
    plain = _plain_share({t: a[t] for t in common}) and _plain_share({t: b[t] for t in common})
    found = compare(values_a, values_b, clusters, test="mcnemar" if plain else "permutation", settings=settings)
    return {
        "difference": found.interval.estimate,
        "low": found.interval.low,
        "high": found.interval.high,
        "p_value": found.p_value,
        "test": found.test,
        "detectable": found.detectable,
        "prompts": len(common),
    }


def _plain_share(tasks: Tasks) -> bool:
    return all(len(found) == 1 and found[0] in (0.0, 1.0) for found in tasks.values())


# ---- the record ----------------------------------------------------------------------------------------------------


def results(
    values: Sequence[Value], measures: Sequence[Measure], models: Sequence[str], settings: IntervalSettings
) -> list[Any]:
    """Every measure of every model: over all tasks, and in every category."""
    found = []
    for measure in measures:
        for model in models:
            own = [v for v in values if v.measure == measure.key and v.model == model]
            categories = dict.fromkeys(v.category for v in own if v.category is not None)
            for category in (None, *categories) if own else ():
                tasks = _by_task(v for v in own if category is None or v.category == category)
                interval = mean_of(tasks, settings)
                found.append(
                    {
                        "model": model,
                        "measure": measure.key,
                        "category": category,
                        "estimate": interval.estimate,
                        "low": interval.low,
                        "high": interval.high,
                        "values": sum(map(len, tasks.values())),
                        "prompts": len(tasks),
                    }
                )
    return found


def differences(
    values: Sequence[Value], measures: Sequence[Measure], models: Sequence[str], settings: IntervalSettings
) -> list[dict[str, Any]]:
    """Every later model against the first. ``adjusted_p``: Holm over the headline measures together, and over the others together."""
    found: list[dict[str, Any]] = []
    for headline in (True, False):
        family = []
        for measure in measures:
            if measure.headline is headline:
                first = _by_task(v for v in values if v.measure == measure.key and v.model == models[0])
                for model in models[1:]:
                    other = _by_task(v for v in values if v.measure == measure.key and v.model == model)
                    if (one := difference_of(first, other, settings)) is not None:
                        family.append({"a": models[0], "b": model, "measure": measure.key, **one})
        adjusted = holm([one["p_value"] for one in family]) if family else ()
        found += [{**one, "adjusted_p": p} for one, p in zip(family, adjusted, strict=True)]
    order = {measure.key: place for place, measure in enumerate(measures)}
    return sorted(found, key=lambda one: order[one["measure"]])


def _by_task(values: Iterable[Value]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for value in values:
        found.setdefault(value.task, []).append(float(value.value))
    return found


def reply_facts(answers: Sequence[Answer]) -> dict[str, Any]:
    """Lengths of the replies of one model; tokens where the engine counted them (thinking included)."""
    tokens = [usage.completion_tokens for a in answers for usage in a.usages if usage is not None]
    characters = [len(reply) for a in answers for reply in a.replies]
    return {
        "tokens_mean": float(np.mean(tokens)) if tokens else None,
        "tokens_p50": float(np.quantile(tokens, 0.5)) if tokens else None,
        "tokens_p95": float(np.quantile(tokens, 0.95)) if tokens else None,
        "characters_mean": float(np.mean(characters)) if characters else None,
        "cut": sum(finish == "length" for a in answers for finish in a.finishes),
    }


def benchmark_record(
    measures: Sequence[Measure], findings: Findings, answers: Mapping[str, Sequence[Answer]], settings: IntervalSettings
) -> dict[str, Any]:
    """The measured part of a benchmark's record (docs/run-folder.md).

    Raises:
        AssertionError: a benchmark lost answers without a reason.

    """
    models = list(answers)
    for model, counts in findings.counts.items():
        assert counts.asked == counts.measured + sum(counts.dropped.values()), f"{model}: answers without a reason"
        assert counts.asked == len(answers[model]), f"{model}: not every answer is accounted for"
    extra = dict(findings.extra)
    own_results, own_differences = extra.pop("results", []), extra.pop("differences", [])
    return {
        "models": models,
        "baseline": models[0],
        "confidence": settings.confidence,
        "measures": [measure._asdict() for measure in measures],
        "results": [*results(findings.values, measures, models, settings), *own_results],
        "differences": [*differences(findings.values, measures, models, settings), *own_differences],
        "accounting": {model: counts._asdict() for model, counts in findings.counts.items()},
        "replies": {model: reply_facts(found) for model, found in answers.items()},
        "win_rates": [],
        "ratings": None,
        "length_controlled": None,
        **extra,
        "notes": list(findings.notes),
    }


def reply_rows(answers: Mapping[str, Sequence[Answer]], findings: Findings) -> Iterator[dict[str, Any]]:
    """One line of the rows file for every model, task and sample."""
    for model, found in answers.items():
        for answer in found:
            task, key = answer.task, (model, answer.task.id, answer.sample)
            shown = findings.shown.get(key)
            counted = [usage.completion_tokens for usage in answer.usages if usage is not None]
            yield {
                "model": model,
                "prompt_id": task.id,
                "category": task.category,
                "language": task.language,
                "sample": answer.sample,
                "turns": list(task.turns),
                "replies": list(answer.replies),
                "finishes": list(answer.finishes),
                "tokens": sum(counted) if len(counted) == len(answer.replies) else None,
                "failure": None if answer.failure is None else f"{answer.failure.reason}: {answer.failure.detail}",
                "values": dict(findings.values_shown.get(key, {})),
                "shown": None if shown is None else shown._asdict(),
            }
