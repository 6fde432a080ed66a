"""Estimates with their intervals, one below the other: ratings, win rates, shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from posttrain.report.figure import Figure
from posttrain.report.svg import BOTTOM, RIGHT, TOP, WIDTH, Scale, axes, dot, padded, tag, whisker

_TOP, _LANE = 10.0, 38.0
_LONGEST_NAME = 34
"""Characters that leave room for the numbers, also in the larger type on a phone."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the plot."""

    name: str
    estimate: float
    low: float
    high: float
    text: str
    color: str = "s1"


def forest(
    name: str,
    title: str,
    lanes: Sequence[Lane],
    unit: str,
    line: float | None,
    caption: str,
    span: tuple[float, float] | None = None,
) -> Figure:
    """Return the plot with a dashed line to compare with. ``span``: both ends of the axis; None = as wide as the intervals."""
    ends = [end for lane in lanes for end in (lane.low, lane.high, lane.estimate)]
    x = Scale(*(span or padded([*ends, *([] if line is None else [line])])), 6, WIDTH - RIGHT)
    floor = _TOP + _LANE * len(lanes)
    parts = [axes(x, None, unit, bottom=floor)]
    if line is not None:
        parts.append(tag("line", class_="reference", x1=x(line), x2=x(line), y1=TOP - 8, y2=floor))
    for place, lane in enumerate(lanes):
        top = _TOP + _LANE * place
        tooltip = f"{lane.name}: {lane.text}"
        parts += [
            tag("text", short(lane.name), class_="label strong halo", x=2, y=top + 8),
            tag("text", lane.text, class_="tick end halo", x=WIDTH - RIGHT, y=top + 8),
            whisker(x, top + 21, lane.low, lane.high, lane.color),
            dot(x(lane.estimate), top + 21, f"dot {lane.color}", tooltip, 5),
        ]
    alt = f"{title}: " + "; ".join(f"{lane.name} {lane.text}" for lane in lanes) + "."
    return Figure(name, title, alt, caption, floor + BOTTOM, Markup("").join(parts))


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut out the middle: names often differ at their ends (sizes, versions)."""
    if len(name) <= longest:
        return name
    end = longest * 19 // _LONGEST_NAME
    return f"{name[: longest - end - 1]}\N{HORIZONTAL ELLIPSIS}{name[-end:]}"
