"""From values to results and differences: means with intervals, paired differences with tests. Statistics only, no torch.

A value belongs to a task; tasks are the unit that is resampled, so two turns, four samples or three instructions of one prompt
count as one piece of evidence (Miller 2024, arXiv:2411.00640). Differences are later models minus the first, on the
tasks that both have values for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from posttrain.stats.intervals import Interval, IntervalSettings, PairedDifference, compare, holm, mean, wilson
from posttrain.table import grouped
from posttrain.tasks.base import Findings, Value
from posttrain.tasks.records import Difference, Measure, Result

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


def difference_of(
    a: Tasks, b: Tasks, settings: IntervalSettings, *, models: tuple[str, str], measure: str
) -> Difference | None:
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
    return difference_between(*models, measure, found)


def difference_between(a: str, b: str, measure: str, found: PairedDifference) -> Difference:
    """A comparison as it is recorded."""
    return Difference(
        a,
        b,
        measure,
        *found.interval[:3],
        prompts=found.clusters,
        p_value=found.p_value,
        test=found.test,
        detectable=found.detectable,
        higher=found.higher,
        lower=found.lower,
    )


def _plain_share(tasks: Tasks) -> bool:
    return all(len(found) == 1 and found[0] in (0.0, 1.0) for found in tasks.values())


# ---- of all models -------------------------------------------------------------------------------------------------


def results(
    findings: Findings, measures: Sequence[Measure], models: Sequence[str], settings: IntervalSettings
) -> list[Result]:
    """Every measure of every model: over all tasks, and in every category."""
    found = []
    for measure in measures:
        for model in models:
            own = [v for v in findings.values if v.measure == measure.key and v.model == model]
            categories = dict.fromkeys(v.category for v in own if v.category is not None)
            for category in (None, *categories) if own else ():
                tasks = _by_task(v for v in own if category is None or v.category == category)
                values = sum(map(len, tasks.values()))
                found.append(
                    Result(
                        model,
                        measure.key,
                        category,
                        *mean_of(tasks, settings)[:3],
                        values=values,
                        prompts=len(tasks),
                        by_definition=(model, measure.key) in findings.by_definition,
                    )
                )
    return found


def differences(
    findings: Findings,
    measures: Sequence[Measure],
    models: Sequence[str],
    settings: IntervalSettings,
    *,
    adjust: bool = True,
) -> list[Difference]:
    """Every later model against the first. ``adjusted_p``: Holm over the headline measures together, and over the others together."""
    found: list[Difference] = []
    for headline in (True, False):
        family = []
        for measure in (one for one in measures if one.headline is headline):
            first, *others = (
                _by_task(v for v in findings.values if v.measure == measure.key and v.model == model)
                for model in models
            )
            for model, other in zip(models[1:], others, strict=True):
                pair = (models[0], model)
                if (one := difference_of(first, other, settings, models=pair, measure=measure.key)) is not None:
                    family.append(one)
        found += adjusted(family) if adjust else family
    order = {measure.key: place for place, measure in enumerate(measures)}
    return sorted(found, key=lambda one: order[one.measure])


def adjusted(family: Sequence[Difference]) -> list[Difference]:
    """The differences with Holm's p-values over all of them that were tested."""
    adjusted = iter(holm([one.p_value for one in family if one.p_value is not None]))
    return [one if one.p_value is None else replace(one, adjusted_p=next(adjusted)) for one in family]


def _by_task(values: Iterable[Value]) -> dict[str, list[float]]:
    return grouped((value.task, float(value.value)) for value in values)
