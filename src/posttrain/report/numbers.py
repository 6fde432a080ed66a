"""Numbers as readers see them. The page, the Markdown and the terminal all use these, so they never disagree."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
"""Shown where there is no number."""


def fixed(value: float | None, digits: int = 3) -> str:
    """``1.823``; more digits where rounding would show a number that is not zero as zero."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("infinite" if value > 0 else f"{MINUS}infinite")
    if value and abs(value) < 0.5 * 10**-digits:
        return (f"{value:.1g}" if abs(value) >= 1e-4 else f"{value:.1e}").replace("-", MINUS)
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """``+0.120`` or a true minus sign; zero has no sign."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def count(value: float | None) -> str:
    """``1,999``."""
    return NOTHING if value is None else f"{value:,.0f}"


def compact(value: float | None) -> str:
    """``134.5 million``, ``4.88 million``, ``950,000``: three or four significant digits above a million."""
    if value is None or value < 1e6:
        return count(value)
    size, word = (1e9, "billion") if value >= 1e9 else (1e6, "million")
    scaled = value / size
    return f"{scaled:.{1 if scaled >= 100 else 2}f} {word}"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as ``12.5%``."""
    return NOTHING if share is None else f"{fixed(100 * share, digits)}%"


def signed_percent(share: float | None, digits: int = 1) -> str:
    """Format a relative change as ``+12.5%``."""
    return NOTHING if share is None else f"{signed(100 * share, digits)}%"


def p_value(value: float | None) -> str:
    """``p = 0.69``, ``p < 0.001``."""
    if value is None:
        return NOTHING
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def duration(seconds: float | None) -> str:
    """``42 seconds``, ``3.9 minutes``, ``2 h 05 min``."""
    if seconds is None:
        return NOTHING
    if seconds < 90:
        return f"{seconds:.1f} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def short_duration(seconds: float | None) -> str:
    """``42 s``, ``3.9 min``, ``2 h 05 min``."""
    return duration(seconds).replace("minutes", "min").replace("seconds", "s")


def memory(value: float | None) -> str:
    """Bytes as ``3.12 GB`` (1 GB = 10^9 bytes)."""
    if value is None:
        return NOTHING
    if value < 1e6:
        return f"{value / 1e3:,.0f} kB"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def scientific(value: float | None) -> str:
    """``2e-4``: the shortest scientific form, at most three significant digits."""
    if value is None:
        return NOTHING
    if not value:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", MINUS)


def moment(seconds: float | None) -> str:
    """Unix seconds as ``2026-11-03 14:05 UTC``; nothing for what no calendar has."""
    if seconds is None or not abs(seconds) < 1e11:
        return NOTHING
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def confidence(level: float) -> str:
    """``95%``."""
    return f"{100 * level:g}%"


# ---- by unit -------------------------------------------------------------------------------------------------------


def in_unit(value: float | None, unit: str, digits: int | None = None) -> str:
    """``62.5%`` of a ``share``, ``6.32`` of a ``rating``, ``1,234`` of a ``count``, ``42 s`` of ``seconds``, else a plain number.

    ``digits``: decimals, None = what the unit and the size ask for.
    """
    if value is None:
        return NOTHING
    if written := _WRITTEN.get(unit):
        return written(value)
    if unit in ("share", "points"):
        return f"{fixed(100 * value, 1 if digits is None else digits)}{'%' if unit == 'share' else ''}"
    if digits is None:
        digits = _DIGITS.get(unit, 3 if abs(value) < 10 else 1)
    return fixed(value, digits)


_WRITTEN: dict[str, Callable[[float | None], str]] = {
    "count": count,
    "compact": compact,
    "seconds": short_duration,
    "bytes": memory,
    "p": p_value,
    "scientific": scientific,
    "moment": moment,
}
_DIGITS = {"rating": 2, "tokens": 1}


def interval_in_unit(low: float | None, high: float | None, unit: str, digits: int | None = None) -> str:
    """``55.0% to 70.1%``; nothing where there is no interval."""
    return "" if low is None or high is None else f"{in_unit(low, unit, digits)} to {in_unit(high, unit, digits)}"


def signed_in_unit(value: float | None, unit: str, digits: int | None = None) -> str:
    """Format a difference: ``+8.3`` percentage points of a ``share``, ``+0.52`` of a ``rating``."""
    text = in_unit(value, "points" if unit == "share" else unit, digits)
    return f"+{text}" if value is not None and value > 0 else text


def signed_interval_in_unit(low: float | None, high: float | None, unit: str, digits: int | None = None) -> str:
    """``+1.2 to +9.8``; a dash where there is no interval."""
    known = low is not None and high is not None
    return f"{signed_in_unit(low, unit, digits)} to {signed_in_unit(high, unit, digits)}" if known else NOTHING


def difference_in_unit(value: float | None, unit: str, digits: int | None = None) -> str:
    """``+8.3 points`` of a ``share``; other units have no word."""
    text = signed_in_unit(value, unit, digits)
    return f"{text} points" if unit == "share" and value is not None else text
