"""A difference as it is shown: with its interval, or with a word where so few rows are behind it that an interval says nothing."""

from __future__ import annotations

from posttrain.report import numbers
from posttrain.report.values import Number
from posttrain.report.words import plural

FEWEST_ROWS = 3
"""Below this many rows an interval says nothing, so none is given."""


def bounded(
    value: float,
    low: float | None,
    high: float | None,
    unit: str,
    rows: int | None,
    what: str = "row",
    digits: int | None = None,
) -> Number:
    """Return a difference with its interval; of one or two rows with a word instead, as an interval of so few says nothing."""
    if rows is not None and rows < FEWEST_ROWS:
        return Number(value, unit, digits=digits, signed=True, note=f"{plural(rows, what)}: too few for an interval")  # type: ignore[arg-type]
    return Number(value, unit, low, high, digits, signed=True)  # type: ignore[arg-type]


def evidence(number: Number, confidence: float) -> str:
    """``+0.120, 95% interval +0.010 to +0.230``."""
    bounds = f"{numbers.confidence(confidence)} interval {number.interval}" if number.interval else number.note
    return f"{number.text}, {bounds}" if bounds else number.text
