"""When a difference counts as shown."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["improved", "worse", "differs", "not shown"]
"""``differs``: a difference is shown of something that is neither better nor worse when it is higher."""
CLAIMS: dict[Verdict, str] = {"improved": "better", "worse": "worse", "differs": "different"}
"""What a model is called in a sentence where a difference is shown."""


def gain_verdict(low: float, high: float) -> Verdict:
    """``improved`` where the whole interval of a difference that is a gain is above zero, ``worse`` where it is below.

    An interval without width is a bootstrap over one row: it shows nothing.
    """
    return "not shown" if low == high else _side_of_zero(low, high)


def paired_gain_verdict(low: float, high: float, p_value: float, confidence: float) -> Verdict:
    """Call a difference of two shares over the same rows shown only where interval and exact test say so.

    The bootstrap interval is too narrow for a handful of rows, hence the test. With the test an interval without width
    may count: where every single row was gained, there is nothing to resample.
    """
    return "not shown" if p_value >= 1 - confidence else _side_of_zero(low, high)


def _side_of_zero(low: float, high: float) -> Verdict:
    return "improved" if low > 0 else "worse" if high < 0 else "not shown"
