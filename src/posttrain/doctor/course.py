"""How a quantity went over the steps of a training, told from the noise between batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.stats.intervals import Interval, wilson
from posttrain.train.records import Record
from posttrain.train.section import Training

Floats = NDArray[np.float64]
FEWEST_STEPS = 10
"""Fewer steps have no course that could be told from noise. Ours."""


@dataclass(frozen=True, slots=True)
class Course:
    """The means of loss and metrics where a training began and where it ended: of the held-out rows where they were measured twice, else of the
    first and last tenth of the steps.
    """

    held_out: bool
    records: Sequence[Record]
    first: Mapping[str, float]
    last: Mapping[str, float]

    @property
    def rows(self) -> int | None:
        """How many held-out rows the last measurement has."""
        return getattr(self.records[-1], "rows", None)

    def ends(self, key: str) -> tuple[float, float] | None:
        """A metric at both ends; None where it is not logged, or not finite."""
        before, after = self.first.get(key), self.last.get(key)
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            return None
        return before, after


def course_of(training: Training) -> Course | None:
    """The course of a training that has gone at least one step."""
    held_out = len(training.held_out) > 1
    records: Sequence[Record] = training.held_out if held_out else training.steps
    if not records or not records[-1].step:
        return None
    window = 1 if held_out else max(1, len(records) // 10)
    return Course(held_out, records, _means(records[:window]), _means(records[-window:]))


def _means(records: Sequence[Record]) -> Mapping[str, float]:
    each = [{"loss": record.loss, **record.metrics} for record in records]
    known = set(each[0]).intersection(*each)
    return {key: sum(one[key] for one in each) / len(each) for key in known}


def share_right(accuracy: float, rows: int) -> Interval:
    """Wilson's interval of an accuracy over so many pairs."""
    return wilson(min(max(accuracy, 0.0), 1.0) * rows, rows)


def finite(values: Iterable[float | None]) -> Floats:
    """The values that are there and finite."""
    return np.array([value for value in values if value is not None and math.isfinite(value)], np.float64)


def noise(values: Floats) -> float:
    """Standard deviation of a step, without the trend: from the mean deviation of the changes, which outliers move less than their square."""
    changes = np.diff(values)
    return float(np.sqrt(np.pi) / 2 * np.mean(np.abs(changes - np.median(changes)))) if len(changes) else 0.0


def smoothed(values: Floats, window: int) -> Floats:
    """Means over every ``window`` neighbouring values."""
    return np.convolve(values, np.ones(window) / window, "valid")
