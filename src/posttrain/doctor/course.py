"""How a quantity went over the steps of a training, told from the noise between batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Trace:
    """A metric over the steps that log it, where it began and where it ended told from its noise."""

    steps: Sequence[int]
    values_T: Floats
    window: int
    """Steps whose mean is looked at: a tenth, at least three."""

    @property
    def means_T(self) -> Floats:  # noqa: N802 - carries its shape, as the fields do
        """Smoothed."""
        return smoothed(self.values_T, self.window)

    @property
    def first(self) -> float:
        """The mean of the first steps."""
        return float(self.means_T[0])

    @property
    def last(self) -> float:
        """The mean of the last steps."""
        return float(self.means_T[-1])

    @property
    def change(self) -> float:
        """Where it ended less where it began."""
        return self.last - self.first

    @property
    def error(self) -> float:
        """Standard error of the difference of two such means, and no less than what rounding does to them."""
        return max(noise(self.values_T) * math.sqrt(2 / self.window), 1e-9 * float(np.abs(self.values_T).max()))

    def step_at(self, place: int) -> int:
        """The last step of the window at a place of ``means_T``."""
        return self.steps[place + self.window - 1]

    def at(self, step: int) -> float:
        """The mean of the window that ends at a step, or at the last one before it that has it."""
        known = [place for place in range(len(self.means_T)) if self.step_at(place) <= step]
        return float(self.means_T[known[-1] if known else 0])

    def times(self, sign: float) -> Trace:
        """The same, multiplied."""
        return Trace(self.steps, self.values_T * sign, self.window)


def trace(training: Training, value: Callable[[Mapping[str, float]], float | None]) -> Trace | None:
    """What the metrics of every step say of something; None of too few steps."""
    known = [(one.step, found) for one in training.steps if (found := value(one.metrics)) is not None]
    finite_only = [(step, found) for step, found in known if math.isfinite(found)]
    if len(finite_only) < FEWEST_STEPS:
        return None
    steps, values = zip(*finite_only, strict=True)
    return Trace(steps, np.array(values, np.float64), max(3, len(values) // 10))


def logged(training: Training, key: str) -> Trace | None:
    """A metric over the steps."""
    return trace(training, lambda metrics: metrics.get(key))


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
