"""The few marks the figures are drawn with. Own SVG rather than matplotlib's, so that one drawing follows the reader's
light or dark setting through CSS variables, keeps its text as text, and carries tooltips.

Coordinates are in user units (about pixels at full width); the origin is the upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from posttrain.report import numbers

WIDTH = 520.0
"""All figures but the small ones have this width, so that their text has one size when they stand side by side."""
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 34.0, 44.0


@dataclass(frozen=True, slots=True)
class Box:
    """The size of a drawing."""

    width: float
    height: float


WIDE = Box(WIDTH, 260.0)
SMALL = Box(340.0, 200.0)
"""Three of these stand side by side where two wide ones do."""


def tag(name: str, /, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """Return one element; text is escaped, numbers are rounded, ``class_`` and ``stroke_width`` become SVG names."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_coordinate(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(map(escape, children))
    # by hand: a page has tens of thousands of these, and Markup's own format took most of its time
    return Markup(f"<{name}{written}>{inside}</{name}>")


def _coordinate(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps data from ``low..high`` to ``start..end``; logarithmic where ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False
    """Whether only whole numbers have a meaning (steps, rows), so that no tick stands between them."""

    def __call__(self, value: float) -> float:
        """Return the position of a value, kept inside the range; not a number stays not a number."""
        if not math.isfinite(value):
            return math.nan
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return at most seven round values inside the range."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, self.whole)


def _linear_ticks(low: float, high: float, whole: bool) -> list[float]:
    if high <= low:
        return [low]
    least = (high - low) / 6
    least = max(least, 1.0) if whole else least
    power = 10.0 ** math.floor(math.log10(least))
    sizes = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(size * power for size in sizes if size * power >= least * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if len(ticks) <= 6:
            break
    return ticks if len(ticks) >= 2 else [low, high]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of the values with a margin on both sides; a single value gets a range around it."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def tick_text(ticks: Sequence[float]) -> Callable[[float], str]:
    """Return a format with as many decimals as the distance of the ticks needs."""
    distance = min((b - a for a, b in pairwise(ticks)), default=1.0)
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest and largest < 0.01:
        return numbers.scientific
    digits = max(0, -math.floor(math.log10(distance) + 1e-9)) if distance > 0 else 0
    digits += int(not math.isclose(distance, round(distance, digits), rel_tol=1e-6))
    return lambda value: f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def axes(x: Scale, y: Scale | None, x_label: str, y_label: str = "", bottom: float | None = None) -> Markup:
    """Return grid lines, tick labels and the names of both axes; without ``y`` only the horizontal axis."""
    floor = y.start if y is not None else bottom
    assert floor is not None, "a vertical scale, or the position of the bottom"
    parts = []
    if y is not None:
        ticks = y.ticks()
        text = tick_text(ticks) if not y.log else (lambda value: f"{value:g}")
        for tick in ticks:
            parts.append(line(x.start, x.end, y(tick), y(tick), "grid"))
            parts.append(words(text(tick), x.start - 8, y(tick) + 4, "tick end"))
        parts.append(words(y_label, 2, 14, "label"))
    ticks = x.ticks()
    text = tick_text(ticks)
    for tick in ticks:
        if y is None:
            parts.append(line(x(tick), x(tick), TOP - 8, floor, "grid"))
        parts.append(line(x(tick), x(tick), floor, floor + 4, "axis"))
        parts.append(words(text(tick), x(tick), floor + 18, "tick middle"))
    parts.append(line(x.start, x.end, floor, floor, "axis"))
    parts.append(words(x_label, x.end, floor + 36, "label end"))
    return Markup("").join(parts)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Return a line through the points; a point that is not finite interrupts it."""
    commands, drawing = [], False
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            commands.append(f"{'L' if drawing else 'M'}{_coordinate(x)} {_coordinate(y)}")
            drawing = True
        else:
            drawing = False
    return tag("path", class_=class_, d=" ".join(commands))


def line(x1: float, x2: float, y1: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return tag("line", class_=class_, x1=x1, x2=x2, y1=y1, y2=y2)


def words(text: str, x: float, y: float, class_: str) -> Markup:
    """Return a text."""
    return tag("text", text, class_=class_, x=x, y=y)


def bar(x: float, y: float, width: float, height: float, class_: str, tooltip: str) -> Markup:
    """Return a rectangle with a tooltip."""
    return tag("rect", tag("title", tooltip), class_=class_, x=x, y=y, width=width, height=max(height, 0.0))


def dot(x: float, y: float, class_: str, tooltip: str, radius: float = 4.0) -> Markup:
    """Return a point with a tooltip."""
    return tag("circle", tag("title", tooltip), class_=class_, cx=x, cy=y, r=radius)


def columns(xs: Sequence[float], top: float, bottom: float, tooltips: Sequence[str]) -> Markup:
    """Return invisible columns around the positions ``xs`` (ascending); hovering one shows its tooltip."""
    edges = [xs[0], *((a + b) / 2 for a, b in pairwise(xs)), xs[-1]]
    return Markup("").join(
        bar(left, top, max(right - left, 2.0), bottom - top, "hover", tooltip)
        for left, right, tooltip in zip(edges, edges[1:], tooltips, strict=False)
    )


def legend(entries: Sequence[tuple[str, str]], y: float = 14.0, width: float = WIDTH) -> Markup:
    """Return a legend at the right end: (text, classes of its swatch) from left to right."""
    widths = legend_widths(entries)
    parts, x = [], width - RIGHT - sum(widths) + 16
    for (text, classes), room in zip(entries, widths, strict=True):
        parts += [line(x, x + 14, y - 4, y - 4, classes), words(text, x + 20, y, "label")]
        x += room
    return Markup("").join(parts)


def legend_widths(entries: Sequence[tuple[str, str]]) -> list[float]:
    """Return the room each entry takes: a generous guess, as the reader's font is not known."""
    return [7.6 * len(text) + 40 for text, _ in entries]


def whisker(low: float, high: float, at: float, color: str, *, upright: bool = False) -> Markup:
    """Return an interval with its ends, lying at the height ``at`` or standing at that place; all are positions."""
    drawn = [(low, high, at, at), *((end, end, at - 5, at + 5) for end in (low, high))]
    turned = [(y1, y2, x1, x2) if upright else (x1, x2, y1, y2) for x1, x2, y1, y2 in drawn]
    return Markup("").join(line(*ends, f"whisker {color}") for ends in turned)
