"""The charts of a report: what each shows, as values, and how it is drawn.

Each kind is a frozen value with one function that draws it; a chart tells its own alternative text from its data.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, Literal

from markupsafe import Markup

from posttrain.report import numbers, svg
from posttrain.report.figure import Figure
from posttrain.report.svg import BOTTOM, LEFT, RIGHT, SMALL, TOP, WIDE, WIDTH, Scale, padded, path, tag

COLORS = ("s0", "s1", "s2", "s3", "s4", "s5")
MAX_POINTS = 400
"""More steps than this are drawn as means of neighbouring steps (the artefacts keep them all)."""
MOST_LANES = 60
"""Lanes of a plot; the tables have all."""
Points = tuple[tuple[float, float], ...]


def color(place: int) -> str:
    """Return the colour of the model at a place, the same in all charts."""
    return COLORS[place % len(COLORS)]


# ---- the values ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """One line. ``steps``: one value a training step, faint with its running mean where it is long; ``dots``: few measurements."""

    label: str
    points: Points
    color: str = "s0"
    style: Literal["steps", "dots", "outline"] = "steps"
    chosen: float | None = None
    """Where on the horizontal axis a point is ringed."""


@dataclass(frozen=True, slots=True)
class Level:
    """A value that means something: chance, zero, a limit. Drawn dashed, a limit in the colour of what is lost."""

    value: float
    text: str = ""
    limit: bool = False
    color: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Titled:
    """What every chart has."""

    name: str
    """Of its file, without ending."""
    title: str
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines(Titled):
    """Curves over training steps, tokens or any other whole number."""

    series: tuple[Series, ...]
    y_label: str
    x_label: str = "step"
    unit: str = "number"
    """How the values are written (``numbers.in_unit``)."""
    levels: tuple[Level, ...] = ()
    """Horizontal lines; one far outside the data is not drawn."""
    verticals: tuple[Level, ...] = ()
    small: bool = False
    """Three small drawings stand side by side where two wide ones do."""
    from_zero: bool = False
    log_when_wide: bool = False
    """Whether a few values ten times the median make the axis logarithmic."""
    smooth_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram(Titled):
    """Bars between neighbouring edges (``H`` bars, ``H + 1`` edges)."""

    edges: tuple[float, ...]
    heights: tuple[int, ...]
    x_label: str
    y_label: str = "rows"
    tail: int = 0
    """How many of the last bar's values lie beyond the last edge."""
    marks: tuple[Level, ...] = ()
    colors: tuple[str, ...] = ()
    """One a bar; empty = all alike."""
    zero: bool = False
    """Whether the values are differences around zero."""
    whole: bool = False
    """Whether every bar is one whole number, its middle."""
    said: str = ""
    """What the alternative text says of the values."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One estimate with its interval."""

    name: str
    estimate: float
    low: float
    high: float
    text: str
    color: str = "s1"
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest(Titled):
    """Estimates with their intervals, one below the other: ratings, win rates, differences."""

    lanes: tuple[Lane, ...]
    unit: str
    line: float | None = None
    """What to compare with."""
    span: tuple[float, float] | None = None
    """Both ends of the axis; None = as wide as the intervals."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a bar."""

    value: float
    color: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars(Titled):
    """Horizontal bars on tracks: (name, text, bars of that name), each bar made of pieces from left to right."""

    lanes: tuple[tuple[str, str, tuple[tuple[Piece, ...], ...]], ...]
    legend: tuple[tuple[str, str], ...] = ()
    """(text, colour) of the kinds of pieces."""
    in_terminal: bool = False
    """Whether it is drawn in a terminal too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Radar(Titled):
    """One outline a model over several categories, all on one scale."""

    spokes: tuple[str, ...]
    outlines: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    """(model, colour, one value a spoke)."""
    unit: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Spot:
    """One model in the plane, with the intervals of both shares."""

    name: str
    color: str
    x: tuple[float, float, float]
    """Estimate, low and high, as a share."""
    y: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane(Titled):
    """Two shares of every model against each other; upper left is best."""

    spots: tuple[Spot, ...]
    x_label: str
    y_label: str
    corners: tuple[str, str]
    """What stands at the upper right and at the lower left."""


@dataclass(frozen=True, slots=True)
class Strand:
    """One setting through all axes of a parallel plot: the place of its value on each."""

    name: str
    places: tuple[float, ...]
    """One an axis: the number of its level, from 0; of the last axis the value itself."""
    color: str = "s0"
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Titled):
    """Settings as lines through upright axes, one for each thing that is varied, and what they gave on the last."""

    axes: tuple[tuple[str, tuple[str, ...]], ...]
    """(name, its levels from the bottom up) of everything that is varied."""
    y_label: str
    """Of the last axis."""
    strands: tuple[Strand, ...]
    """The strongest last: it lies on top."""
    legend: tuple[tuple[str, str], ...] = ()
    """(text, colour) of the kinds of strands."""


Chart = Lines | Histogram | Forest | Bars | Radar | Plane | Parallel


def draw(chart: Chart) -> Figure | None:
    """Return the drawing; None where there is nothing to draw."""
    return _DRAWN[type(chart)](chart)


def _figure(chart: Chart, alt: str, height: float, parts: Sequence[Markup], width: float = WIDTH) -> Figure:
    return Figure(chart.name, chart.title, alt, chart.caption, height, Markup("").join(parts), width)


# ---- curves --------------------------------------------------------------------------------------------------------


def _lines(chart: Lines) -> Figure | None:
    drawn = [one for one in chart.series if any(math.isfinite(value) for _, value in one.points)]
    if not drawn:
        return None
    finite = [v for one in drawn for _, v in one.points if math.isfinite(v)]
    log = chart.log_when_wide and min(finite) > 0 and max(finite) > 10 * median(finite)
    near = [one for one in chart.levels if not one.limit or min(finite) / 1.5 < one.value < max(finite) * 1.5]
    extent = [*finite, *(one.value for one in near), *([0.0] if chart.from_zero else [])]
    box = SMALL if chart.small else WIDE
    entries = list(dict.fromkeys((one.label, f"swatch {one.color}") for one in drawn))
    several = len({one.label for one in drawn}) > 1
    drawn_legend, extra = _legend(chart.y_label, entries if several else [], box)
    floor = box.height + extra - BOTTOM
    steps = [step for one in drawn for step, _ in one.points]
    low, high = (min(extent) / 1.1, max(extent) * 1.1) if log else padded(extent)
    first, last = min(steps), max(steps)
    x = Scale(first, last if last > first else first + 1, LEFT, box.width - RIGHT, whole=True)
    y = Scale(0.0 if chart.from_zero else low, high, floor, TOP + extra - 8, log)
    parts = [svg.axes(x, y, chart.x_label, chart.y_label + (", logarithmic" if log else ""))]
    for level in near:
        at = y(level.value)
        parts.append(svg.line(x.start, x.end, at, at, "mark limit" if level.limit else "reference"))
        parts.append(svg.words(level.text, x.end, at - 5, "halo end") if level.text else Markup(""))
    dotted = {one.label for one in drawn if one.style == "dots"}
    for one in sorted(drawn, key=lambda one: one.style == "dots"):
        parts += _series(chart, one, x, y, strong=one.label not in dotted)
    parts += [*_verticals(chart.verticals, x, floor, y.end + 14, y.end), drawn_legend]
    said = []
    for one in drawn:
        kind = " (held-out)" if one.style == "dots" and one.label != "held-out" else ""
        begin, end = (_written(chart, one.points[place][1]) for place in (0, -1))
        said.append(f"{one.label}{kind} from {begin} to {end}")
    alt = f"{chart.title}, {chart.y_label} by {chart.x_label}: {'; '.join(said)}."
    return _figure(chart, alt, floor + BOTTOM, parts, box.width)


def _written(chart: Lines, value: float) -> str:
    return numbers.in_unit(value, chart.unit)


def _series(chart: Lines, one: Series, x: Scale, y: Scale, *, strong: bool) -> list[Markup]:
    def tooltip(at: float, value: float) -> str:
        return f"{chart.x_label} {at:,.0f}: {one.label} {_written(chart, value)}"

    def curve(points: Sequence[tuple[float, float]], classes: str = "") -> Markup:
        return path([(x(at), y(value)) for at, value in points], f"line {classes}{one.color}")

    def point(at: float, value: float) -> Markup:
        if at == one.chosen:
            return svg.dot(x(at), y(value), f"dot {one.color} chosen", f"{tooltip(at, value)} (lowest)", 6)
        return svg.dot(x(at), y(value), f"dot {one.color}", tooltip(at, value), 3.4)

    if one.style == "outline":
        return [curve(one.points)]
    if one.style == "dots":
        return [curve(one.points), *(point(at, value) for at, value in one.points if math.isfinite(value))]
    window = max(1, len(one.points) // 20)
    raw, parts = thinned(one.points), []
    if not (chart.smooth_only and window > 1):
        parts.append(curve(raw, "" if strong and window == 1 else "raw "))
    if window > 1:
        parts.append(curve(thinned(running_mean(one.points, window)), "" if strong else "thin "))
    return parts if chart.smooth_only else [*parts, _hover(x, y, raw, tooltip)]


def _verticals(marks: Sequence[Level], x: Scale, floor: float, first: float, top: float | None = None) -> list[Markup]:
    """Return marks on the horizontal axis, their words one below the other from ``first`` on; each line begins at ``top`` or at its words."""
    parts = []
    for row, mark in enumerate(marks):
        at, beside = x(mark.value), first + 17 * row
        classes = f"median {mark.color}" if mark.color else "mark limit" if mark.limit else "mark"
        parts.append(svg.line(at, at, beside - 9 if top is None else top, floor, classes))
        right = at > (WIDTH * 0.72 if top is None else x.start + (x.end - x.start) * 0.72)
        parts.append(svg.words(mark.text, at + (-5 if right else 5), beside, "halo end" if right else "halo"))
    return parts


def _hover(x: Scale, y: Scale, points: Sequence[tuple[float, float]], tooltip: Callable[[float, float], str]) -> Markup:
    """Return hover columns for at most 80 of the points."""
    chosen = points[:: math.ceil(len(points) / 80) or 1]
    return svg.columns([x(at) for at, _ in chosen], y.end, y.start, [tooltip(*point) for point in chosen])


def _legend(unit: str, entries: Sequence[tuple[str, str]], box: svg.Box) -> tuple[Markup, float]:
    """Return a legend, in one line beside the unit or in lines below it, and the height it takes beyond one line."""
    room = box.width - RIGHT - 7 * len(unit) - 12
    if sum(svg.legend_widths(entries)) <= room:
        return svg.legend(entries, width=box.width), 0.0
    lines: list[list[tuple[str, str]]] = [[]]
    for entry in entries:
        if lines[-1] and sum(svg.legend_widths([*lines[-1], entry])) > room:
            lines.append([])
        lines[-1].append(entry)
    drawn = [svg.legend(line, y=14.0 + 17 * place, width=box.width) for place, line in enumerate(lines)]
    return Markup("").join(drawn), 17.0 * (len(lines) - 1)


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the centred mean over ``window`` steps (fewer at the ends); values that are not finite are left out."""
    known = [math.isfinite(value) for _, value in points]
    sums = list(accumulate((v if k else 0.0 for (_, v), k in zip(points, known, strict=True)), initial=0.0))
    counts = list(accumulate(known, initial=0))
    means = []
    for place, (step, _) in enumerate(points):
        low, high = max(place - window // 2, 0), min(place + (window + 1) // 2, len(points))
        count = counts[high] - counts[low]
        means.append((step, (sums[high] - sums[low]) / count if count else math.nan))
    return means


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS points: means of neighbours where there are more."""
    size = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(at for at, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


# ---- bars ----------------------------------------------------------------------------------------------------------


def bins(count: int) -> int:
    """Return how many bars a histogram of so many values gets: few values make no fine picture."""
    return min(40, max(10, round(2 * math.sqrt(count))))


def counted(values: Sequence[float], edges: Sequence[float]) -> tuple[int, ...]:
    """Return how many values lie between neighbouring edges of equal distance; what lies outside counts at the ends."""
    heights, size = [0] * (len(edges) - 1), edges[1] - edges[0]
    for value in values:
        heights[min(max(math.floor((value - edges[0]) / size + 1e-9), 0), len(heights) - 1)] += 1
    return tuple(heights)


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return ``count`` + 1 edges of equal distance."""
    return tuple(low + (high - low) * place / count for place in range(count + 1))


def _histogram(chart: Histogram) -> Figure | None:
    if not any(chart.heights):
        return None
    edges, many = chart.edges, len(chart.heights)
    extra = 17.0 * max(0, len(chart.marks) - 1)  # the words of the marks stand above the bars, not on them
    floor, top = WIDE.height + extra - BOTTOM, TOP + extra - 8 + (10 if chart.marks else 0)
    x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT, whole=not chart.zero)
    y = Scale(0, max(chart.heights) * 1.05, floor, top, whole=True)
    parts = [svg.axes(x, y, chart.x_label, chart.y_label)]
    for place, (height, (low, high)) in enumerate(zip(chart.heights, pairwise(edges), strict=True)):
        left, width = x(low) + 0.5, x(high) - x(low) - 1
        if chart.whole and width > 90:
            left, width = left + (width - 90) / 2, 90.0
        classes = f"fill {chart.colors[place] if chart.colors else 's1'}"
        tooltip = f"{_span(chart, low, high, last=place == many - 1)}: {height:,} {chart.y_label}"
        parts.append(svg.bar(left, y(height), max(width, 0.5), floor - y(height), classes, tooltip))
    if chart.zero:
        parts.append(svg.line(x(0), x(0), y.end, floor, "zero"))
    parts += _verticals(chart.marks, x, floor, 30.0)
    alt = f"Histogram: {chart.title}. {chart.said}" if chart.said else f"Histogram: {chart.title}, {chart.caption}"
    return _figure(chart, alt, floor + BOTTOM, parts)


def _span(chart: Histogram, low: float, high: float, *, last: bool) -> str:
    text = numbers.signed if chart.zero else numbers.count
    unit, more = chart.x_label.partition(";")[0], " and more" if last and chart.tail else ""
    if chart.whole:
        return f"{(low + high) / 2:,.0f}{more} {unit}"
    return f"{text(low)}{more or f' to {text(high)}'} {unit}"


def _bars(chart: Bars) -> Figure | None:
    if not chart.lanes:
        return None
    most = max(sum(piece.value for piece in pieces) for _, _, bars in chart.lanes for pieces in bars) or 1.0
    x = Scale(0, most, 2, WIDTH - RIGHT)
    drawn, extra = _legend("", [(text, f"swatch {kind}") for text, kind in chart.legend], WIDE)
    parts, top = ([drawn], TOP + extra) if chart.legend else ([], 14.0)
    for name, text, bars in chart.lanes:
        parts.append(svg.words(short(name), 2, top + 12, "label strong"))
        parts.append(svg.words(text, WIDTH - RIGHT, top + 12, "tick end"))
        thick = 12.0 if len(bars) == 1 else 7.0
        for place, pieces in enumerate(bars):
            at, done = top + 19 + (thick + 2) * place, 0.0
            parts.append(tag("rect", class_="track", x=2, y=at, width=WIDTH - RIGHT - 2, height=thick))
            for piece in pieces:
                if piece.value:
                    width = max(x(done + piece.value) - x(done), 2.5)
                    left = min(x(done), WIDTH - RIGHT - width)
                    parts.append(svg.bar(left, at, width, thick, f"fill {piece.color}", piece.text))
                done += piece.value
        top += 30 + (thick + 2) * len(bars)
    alt = f"{chart.title}. " + ". ".join(f"{name}: {text}" for name, text, _ in chart.lanes) + "."
    return _figure(chart, alt, top, parts)


# ---- estimates -----------------------------------------------------------------------------------------------------

_LANE, _GROUP = 38.0, 24.0
_LONGEST_NAME = 34
"""Characters that leave room for the numbers, also in the larger type on a phone."""


def _forest(chart: Forest) -> Figure | None:
    lanes = chart.lanes[:MOST_LANES]
    if not lanes:
        return None
    ends = [end for lane in lanes for end in (lane.low, lane.high, lane.estimate) if math.isfinite(end)] or [0.0]
    x = Scale(*(chart.span or padded([*ends, *([] if chart.line is None else [chart.line])])), 6, WIDTH - RIGHT)
    groups = len({lane.group for lane in lanes if lane.group})
    floor = 10.0 + _LANE * len(lanes) + _GROUP * groups
    parts = [svg.axes(x, None, chart.unit, bottom=floor)]
    if chart.line is not None:
        parts.append(svg.line(x(chart.line), x(chart.line), 10, floor, "reference"))
    top, group = 10.0, ""
    for lane in lanes:
        if lane.group != group:
            group = lane.group
            parts.append(svg.words(group, 2, top + 12, "label halo"))
            top += _GROUP
        parts += [
            svg.words(short(lane.name), 2, top + 8, "label strong halo"),
            svg.words(lane.text, WIDTH - RIGHT, top + 8, "tick end halo"),
            svg.whisker(x(lane.low), x(lane.high), top + 21, lane.color),
            svg.dot(x(lane.estimate), top + 21, f"dot {lane.color}", f"{lane.name}: {lane.text}", 5),
        ]
        top += _LANE
    said = "; ".join(f"{f'{lane.group}, ' if lane.group else ''}{lane.name} {lane.text}" for lane in lanes)
    return _figure(chart, f"{chart.title}: {said}.", floor + BOTTOM, parts)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut out the middle: names often differ at their ends (sizes, versions)."""
    if len(name) <= longest:
        return name
    end = longest * 19 // _LONGEST_NAME
    return f"{name[: longest - end - 1]}\N{HORIZONTAL ELLIPSIS}{name[-end:]}"


def _plane(chart: Plane) -> Figure | None:
    if not chart.spots:
        return None
    drawn, extra = _legend("", [(short(one.name, 20), f"swatch {one.color}") for one in chart.spots], WIDE)
    top = TOP + extra + 20
    x, y = Scale(0, 100, LEFT, WIDTH - RIGHT), Scale(0, 100, top + 250, top)
    parts = [
        drawn,
        svg.axes(x, y, f"{chart.x_label}, percent"),
        svg.words(f"{chart.y_label}, percent", 2, top - 12, "label"),
        svg.words(chart.corners[0], x(99), y(100) + 14, "tick end"),
        svg.words(chart.corners[1], x(1), y(0) - 6, "tick"),
    ]
    said = []
    for one in chart.spots:
        at_x, left, right = (x(100 * share) for share in one.x)
        at_y, low, high = (y(100 * share) for share in one.y)
        shares = [
            f"{label} {numbers.percent(share[0])}" for label, share in ((chart.y_label, one.y), (chart.x_label, one.x))
        ]
        said.append(f"{one.name}: {', '.join(shares)}")
        parts += [
            svg.whisker(left, right, at_y, one.color),
            svg.whisker(low, high, at_x, one.color, upright=True),
            svg.dot(at_x, at_y, f"dot {one.color}", said[-1], 6),
        ]
    return _figure(chart, f"{chart.title}. {'; '.join(said)}.", top + 250 + BOTTOM, parts)


# ---- categories ----------------------------------------------------------------------------------------------------

_RADIUS, _CENTRE, _RINGS = 134.0, 180.0, 4
_LINE, _LABEL = 13.0, 16
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 4", "1 3")


def _radar(chart: Radar) -> Figure | None:
    if not any(value is not None for *_, line in chart.outlines for value in line):
        return None
    scale = Scale(chart.low, chart.high, 0, _RADIUS)
    drawn, extra = _legend("", [(short(model, 20), f"swatch {kind}") for model, kind, _ in chart.outlines], WIDE)
    middle, many = _CENTRE + 20 + extra, len(chart.spokes)
    angles = [2 * math.pi * place / many - math.pi / 2 for place in range(many)]
    corners = [(math.cos(angle), math.sin(angle)) for angle in angles]

    def point(corner: tuple[float, float], radius: float) -> tuple[float, float]:
        return WIDTH / 2 + radius * corner[0], middle + radius * corner[1]

    parts, rings = [drawn], [_RADIUS * ring / _RINGS for ring in range(1, _RINGS + 1)]
    for radius in rings:
        around = [point(corner, radius) for corner in corners]
        parts.append(path([*around, around[0]], "grid ring"))
    for corner, spoke in zip(corners, chart.spokes, strict=True):
        end = point(corner, _RADIUS)
        parts.append(svg.line(WIDTH / 2, end[0], middle, end[1], "grid"))
        anchor = "middle" if abs(corner[0]) < 0.2 else "" if corner[0] > 0 else "end"
        lines = label_lines(spoke)
        at_x, at_y = point(corner, _RADIUS + 12)
        at_y += 4 + 5 * corner[1] - _LINE * (len(lines) - 1) * (1 - corner[1]) / 2  # grows away from the rim
        parts += [svg.words(text, at_x, at_y + _LINE * k, f"label {anchor}".strip()) for k, text in enumerate(lines)]
    for radius in rings:
        value = chart.low + (chart.high - chart.low) * radius / _RADIUS
        text = f"{100 * value:.3g}%" if chart.unit == "share" else f"{value:.3g}"
        parts.append(svg.words(text, WIDTH / 2 + 4, middle - radius + 12, "tick halo"))
    said = []
    for place, (model, kind, values) in enumerate(chart.outlines):
        at = [(math.nan, math.nan) if v is None else point(c, scale(v)) for v, c in zip(values, corners, strict=True)]
        outline, dash = path([*at, at[0]], f"line {kind}"), _DASHES[place % len(_DASHES)]
        parts.append(tag("g", outline, stroke_dasharray=dash) if dash else outline)
        written = [
            (spot, spoke, numbers.in_unit(value, chart.unit))
            for value, spot, spoke in zip(values, at, chart.spokes, strict=True)
            if value is not None
        ]
        parts += [svg.dot(*spot, f"dot {kind}", f"{model}, {spoke}: {text}", 4) for spot, spoke, text in written]
        said.append(f"{model}: {', '.join(f'{spoke} {text}' for _, spoke, text in written)}")
    height = middle + _RADIUS * max(y for _, y in corners) + 44
    return _figure(chart, f"{chart.title}. {'; '.join(said)}.", height, parts)


def radar_range(unit: str, scale: tuple[float, float] | None, known: Sequence[float]) -> tuple[float, float]:
    """Return the ends of all spokes: from the lowest value possible to a rim at a quarter, half, three quarters or all of the scale."""
    bounds = scale or ((0.0, 1.0) if unit == "share" else None)
    if bounds is None:
        return min(0.0, *known), max(0.0, *known) or 1.0
    low, high = bounds
    quarters = math.ceil(_RINGS * (max(known) - low) / (high - low) - 1e-9)
    return low, low + (high - low) * min(max(quarters, 1), _RINGS) / _RINGS


def label_lines(category: str) -> list[str]:
    """Return the name of a category in one or two lines that fit beside a radar."""
    text = category.replace("_", " ")
    lines = textwrap.wrap(text, _LABEL, break_long_words=False) or [text]
    if len(lines) > 2:
        lines = [lines[0], " ".join(lines[1:])]
    return [short(line, _LABEL + 2) for line in lines]


# ---- settings ------------------------------------------------------------------------------------------------------


def _parallel(chart: Parallel) -> Figure | None:
    if not chart.strands:
        return None
    drawn, extra = _legend("", [(text, f"swatch {kind}") for text, kind in chart.legend], WIDE)
    top, height = TOP + extra + 24, 230.0
    floor = top + height
    values = [one.places[-1] for one in chart.strands]
    last = Scale(*padded(values), floor, top)
    left, right = 70.0, WIDTH - 90.0
    across = [left + (right - left) * place / len(chart.axes) for place in range(len(chart.axes) + 1)]
    heights = [Scale(-0.5, len(levels) - 0.5, floor, top) for _, levels in chart.axes]
    parts = [drawn]
    for at, (name, levels), y in zip(across, chart.axes, heights, strict=False):
        parts += [svg.line(at, at, top, floor, "grid"), svg.words(short(name, 22), at, top - 12, "label middle")]
        parts += [svg.words(short(text, 12), at - 7, y(k) + 4, "tick end halo") for k, text in enumerate(levels)]
    parts += [
        svg.line(right, right, top, floor, "grid"),
        svg.words(short(chart.y_label, 22), right, top - 12, "label middle"),
    ]
    ticks = last.ticks()
    text_of = svg.tick_text(ticks)
    parts += [svg.words(text_of(tick), right + 8, last(tick) + 4, "tick halo") for tick in ticks]
    for one in chart.strands:
        ys = [*(y(place) for y, place in zip(heights, one.places, strict=False)), last(one.places[-1])]
        parts.append(path(list(zip(across, ys, strict=True)), f"line {one.color}"))
        parts.append(svg.dot(right, ys[-1], f"dot {one.color}", f"{one.name}: {one.text}", 4))
    said = "; ".join(f"{one.name}: {one.text}" for one in chart.strands)
    return _figure(chart, f"{chart.title}. {said}.", floor + 14, parts)


_DRAWN: Mapping[type[Titled], Callable[[Any], Figure | None]] = {
    **{Lines: _lines, Histogram: _histogram, Forest: _forest},
    **{Bars: _bars, Radar: _radar, Plane: _plane, Parallel: _parallel},
}
"""How each kind is drawn."""
