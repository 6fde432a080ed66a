"""A difference as it is shown: with its interval, or with a word where so few rows are behind it that an interval says nothing."""

from __future__ import annotations

from posttrain.report import numbers
from posttrain.report.values import Number, Unit
from posttrain.report.words import plural

FEWEST_ROWS = 3
"""Below this many rows an interval says nothing, so none is given."""


def bounded(
    value: float, low: float | None, high: float | None, unit: Unit, rows: int | None, what: str = "row"
) -> Number:
    """Return a difference with its interval; of one or two rows one that includes zero, or has no width, gives way to a word."""
    if rows is None or rows >= FEWEST_ROWS:
        return Number(value, unit, low, high, signed=True)
    if low is not None and high is not None and low != high and (low > 0 or high < 0):
        return Number(value, unit, low, high, signed=True, note=f"of {plural(rows, what)} only")
    return Number(value, unit, signed=True, note=f"{plural(rows, what)}: too few for an interval")


def evidence(number: Number, confidence: float) -> str:
    """``+0.120, 95% interval +0.010 to +0.230``, and how few rows it is of."""
    interval = f"{numbers.confidence(confidence)} interval {number.interval}" if number.interval else ""
    return ", ".join(part for part in (number.text, interval, number.note) if part)
