"""From what every run gave to the record of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from posttrain.stats.intervals import Floats, mean, student
from posttrain.stats.intervals import IntervalSettings as Intervals
from posttrain.sweep.analysis import differences, effects, expected
from posttrain.sweep.outcome import Outcome
from posttrain.sweep.records import SweepRecord, SweepSetting


def compared(
    settings: Sequence[SweepSetting],
    outcomes: Mapping[tuple[int, int], Outcome],
    seeds: Sequence[int],
    stage: str,
    search: str,
    confidence: float,
) -> SweepRecord:
    """The record: settings that finished with every seed are compared on the rows that all of them have; the others are listed."""
    metric = next(iter(outcomes.values())).metric
    lower = metric.better == "lower"
    whole = [k for k in range(len(settings)) if all((k, seed) in outcomes for seed in seeds)]
    record = SweepRecord(
        stage=stage,
        metric=metric.name,
        unit=metric.unit,
        better=metric.better,
        seeds=tuple(seeds),
        rows=0,
        confidence=confidence,
        search=search,
        settings=tuple(settings),
    )
    if not whole:
        return replace(record, notes=("No setting finished with every seed, so none is compared.",))
    kept = [[outcomes[k, seed].rows for seed in seeds] for k in whole]
    rows = [row for row in kept[0][0] if all(row in found for several in kept for found in several)]
    notes = []
    if not rows:
        return replace(record, notes=("The finished runs have no held-out row in common, so none is compared.",))
    if any(len(found) > len(rows) for several in kept for found in several):
        notes.append("Runs are compared on the rows that all of them measured; some measured more.")
    values_KSR: Floats = np.array([[[found[row] for row in rows] for found in several] for several in kept])
    found = differences(values_KSR, lower=lower)
    drawn = Intervals(confidence=confidence)
    for place, k in enumerate(whole):
        difference = student(
            float(found.means_K[place] - found.means_K[found.best]),
            float(found.errors_K[place]),
            found.freedom,
            confidence,
        )
        best = place == found.best
        settings = [
            *settings[:k],
            replace(
                settings[k],
                value=mean(values_KSR[place].mean(axis=0), settings=drawn),
                difference=None if best else difference,
                standard_error=None if best else float(found.errors_K[place]),
            ),
            *settings[k + 1 :],
        ]
    full = [place for place, k in enumerate(whole) if settings[k].changes]
    shown = (
        effects([settings[whole[place]].changes for place in full], values_KSR[full].mean(axis=2), confidence)
        if full
        else ()
    )
    return replace(
        record,
        settings=tuple(settings),
        rows=len(rows),
        best=whole[found.best],
        chosen=whole[found.chosen],
        expected=expected(values_KSR, lower=lower),
        noise=found.noise,
        effects=shown,
        notes=tuple(notes),
    )
