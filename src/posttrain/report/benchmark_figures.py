"""The figures of benchmarks: results, categories on a radar, win rates, ratings, safety both ways, and the bias of judges."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from posttrain.report import numbers
from posttrain.report.benchmark_records import Bias, Measure, Result
from posttrain.report.benchmark_tables import measure_name, rating_text, share
from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.figure import Figure, file_name
from posttrain.report.forest import Lane, forest, short
from posttrain.report.records import Estimate
from posttrain.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    axes,
    dot,
    legend,
    legend_widths,
    path,
    tag,
    whisker,
)

COLORS = ("s0", "s1", "s2", "s3", "s4", "s5")
"""Of models in the order of the stage: the baseline is grey."""
FEWEST_SPOKES, MOST_SPOKES = 3, 14
"""Categories that a radar can show; a table shows any number."""
MOST_LANES = 60
"""Lines of one plot; the tables have all."""
_RADIUS, _CENTRE, _RINGS = 134.0, 180.0, 4
_LINE, _LABEL = 13.0, 16
"""Height of a line of a label, and its length in characters."""
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 4", "1 3")
"""Outlines differ without colour too."""


@dataclass(frozen=True, slots=True)
class BenchmarkFigures:
    """The figures of one benchmark."""

    results: tuple[Figure, ...]
    judges: tuple[Figure, ...]


def benchmark_figures(facts: BenchmarkFacts) -> BenchmarkFigures:
    """Draw every figure for which a benchmark has numbers."""
    headlines, both_ways = facts.headlines, safety_figure(facts)
    results = [
        both_ways,
        *(headline_figure(facts, measure) for measure in headlines[:2] if both_ways is None),
        win_rate_figure(facts),
        rating_figure(facts),
        *(radar_figure(facts, measure) for measure in headlines[:2]),
    ]
    bias = facts.record.judge.bias if facts.record.judge else {}
    judges = [bias_figure(facts, place, name, found) for place, (name, found) in enumerate(bias.items())]
    return BenchmarkFigures(tuple(f for f in results if f is not None), tuple(f for f in judges if f is not None))


def color(facts: BenchmarkFacts, model: str) -> str:
    """Return the colour of a model, which is the same in all figures of a benchmark."""
    models = facts.record.models
    return COLORS[models.index(model) % len(COLORS)] if model in models else "s0"


def _name(facts: BenchmarkFacts, *parts: str) -> str:
    return file_name(facts.stage, facts.record.key, *parts)


def _level(facts: BenchmarkFacts) -> str:
    return numbers.confidence(facts.record.confidence)


# ---- results -------------------------------------------------------------------------------------------------------


def headline_figure(facts: BenchmarkFacts, measure: Measure) -> Figure | None:
    """Return one measure of every model with its interval; None of a win rate that the plot of win rates shows too."""
    start = facts.results.get((facts.record.baseline, measure.key, None))
    if start is not None and facts.by_definition(start) and facts.contests:
        return None
    factor = 100.0 if measure.unit == "share" else 1.0
    lanes = []
    for model in facts.record.models:
        result = facts.results.get((model, measure.key, None))
        if result is None or result.estimate is None or facts.by_definition(result):
            continue
        low, high = _ends(result)
        interval = numbers.interval_in_unit(result.low, result.high, measure.unit)
        text = numbers.in_unit(result.estimate, measure.unit) + (f" ({interval})" if interval else "")
        lanes.append(Lane(model, factor * result.estimate, factor * low, factor * high, text, color(facts, model)))
    if not lanes:
        return None
    better = {"higher": "; higher is better", "lower": "; lower is better", "neither": ""}[measure.better]
    unit = ("percent" if measure.unit == "share" else measure.unit) + better
    caption = (
        f"{_level(facts)} intervals of each model alone. Whether two models differ stands in the table of differences."
    )
    return forest(_name(facts, measure.key), measure.label, lanes[:MOST_LANES], unit, None, caption)


def _ends(result: Result) -> tuple[float, float]:
    estimate = result.estimate or 0.0
    return (
        estimate if result.low is None else result.low,
        estimate if result.high is None else result.high,
    )


def safety_figure(facts: BenchmarkFacts) -> Figure | None:
    """Return refusal of harmful prompts against over-refusal of safe ones: the best model is in the upper left corner."""
    shares = [measure for measure in facts.headlines if measure.unit == "share"]
    up = next((measure for measure in shares if measure.better == "higher"), None)
    down = next((measure for measure in shares if measure.better == "lower"), None)
    if facts.record.area != "safety" or up is None or down is None:
        return None
    points = []
    for model in facts.record.models:
        good, bad = facts.results.get((model, up.key, None)), facts.results.get((model, down.key, None))
        if good is not None and bad is not None and good.estimate is not None and bad.estimate is not None:
            points.append((model, bad.estimate, _ends(bad), good.estimate, _ends(good)))
    if not points:
        return None
    entries = [(short(model, 20), f"swatch {color(facts, model)}") for model, *_ in points]
    drawn, extra = _wrapped_legend(entries)
    top = TOP + extra + 20
    x = Scale(0, 100, LEFT, WIDTH - RIGHT)
    y = Scale(0, 100, top + 250, top)
    parts = [
        drawn,
        axes(x, y, f"{down.label}, percent"),
        tag("text", f"{up.label}, percent", class_="label", x=2, y=top - 12),
        tag("text", "refuses everything", class_="tick end", x=x(99), y=y(100) + 14),
        tag("text", "answers everything", class_="tick", x=x(1), y=y(0) - 6),
    ]
    for model, bad_share, bad_ends, good_share, good_ends in points:
        classes = color(facts, model)
        at_x, at_y = x(100 * bad_share), y(100 * good_share)
        low, high = (y(100 * end) for end in good_ends)
        text = f"{model}: {up.label} {numbers.percent(good_share)}, {down.label} {numbers.percent(bad_share)}"
        parts += [
            whisker(x, at_y, 100 * bad_ends[0], 100 * bad_ends[1], classes),
            tag("line", class_=f"whisker {classes}", x1=at_x, x2=at_x, y1=low, y2=high),
            *(
                tag("line", class_=f"whisker {classes}", x1=at_x - 5, x2=at_x + 5, y1=end, y2=end)
                for end in (low, high)
            ),
            dot(at_x, at_y, f"dot {classes}", text, 6),
        ]
    said = "; ".join(
        f"{model} {up.label} {numbers.percent(good_share)}, {down.label} {numbers.percent(bad_share)}"
        for model, bad_share, _, good_share, _ in points
    )
    return Figure(
        _name(facts, "both-ways"),
        "Safety both ways",
        f"Refusals of harmful prompts against refusals of safe ones: {said}.",
        f"Upper left is best. Crosses are {_level(facts)} intervals.",
        top + 250 + BOTTOM,
        Markup("").join(parts),
    )


# ---- categories ----------------------------------------------------------------------------------------------------


def radar_figure(facts: BenchmarkFacts, measure: Measure) -> Figure | None:
    """Return one outline a model over the categories; None where there are too few or too many of them."""
    spokes = facts.categories(measure.key)
    if not FEWEST_SPOKES <= len(spokes) <= MOST_SPOKES:
        return None
    found = {
        model: [facts.results.get((model, measure.key, spoke)) for spoke in spokes] for model in facts.record.models
    }
    values = {
        model: [one.estimate if one is not None else None for one in results]
        for model, results in found.items()
        if any(one is not None and not facts.by_definition(one) for one in results)
    }
    known = [value for line in values.values() for value in line if value is not None]
    if not known:
        return None
    scale = Scale(*_radar_range(measure, known), 0, _RADIUS)
    drawn, extra = _wrapped_legend([(short(model, 20), f"swatch {color(facts, model)}") for model in values])
    middle = _CENTRE + 20 + extra
    corners = [_corner(place, len(spokes)) for place in range(len(spokes))]
    parts = [drawn, *_radar_grid(scale, spokes, corners, middle, measure.unit)]
    for place, (model, line) in enumerate(values.items()):
        classes = color(facts, model)
        points = [
            (math.nan, math.nan) if value is None else _point(corner, scale(value), middle)
            for value, corner in zip(line, corners, strict=True)
        ]
        parts.append(_outline(points, classes, _DASHES[place % len(_DASHES)]))
        for value, point, spoke in zip(line, points, spokes, strict=True):
            if value is not None:
                text = f"{model}, {spoke}: {numbers.in_unit(value, measure.unit)}"
                parts.append(dot(*point, f"dot {classes}", text, 4))
    said = "; ".join(
        f"{model}: "
        + ", ".join(
            f"{spoke} {numbers.in_unit(value, measure.unit)}"
            for spoke, value in zip(spokes, line, strict=True)
            if value is not None
        )
        for model, line in values.items()
    )
    low, high = (numbers.in_unit(end, measure.unit) for end in (scale.low, scale.high))
    return Figure(
        _name(facts, measure.key, "categories"),
        f"{measure.label} by category",
        f"{measure_name(measure).strip()} by category. {said}.",
        f"From {low} in the middle to {high} at the rim. Single categories hold few prompts: the table has their intervals.",
        middle + _RADIUS * max(y for _, y in corners) + 44,
        Markup("").join(parts),
    )


def _radar_range(measure: Measure, known: Sequence[float]) -> tuple[float, float]:
    """Return the ends of all spokes: from the lowest value possible to a rim at a quarter, half, three quarters or all of the scale."""
    bounds = measure.scale or ((0.0, 1.0) if measure.unit == "share" else None)
    if bounds is None:
        return min(0.0, *known), max(0.0, *known) or 1.0
    low, high = bounds
    quarters = math.ceil(_RINGS * (max(known) - low) / (high - low) - 1e-9)
    return low, low + (high - low) * min(max(quarters, 1), _RINGS) / _RINGS


def _corner(place: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * place / count - math.pi / 2
    return math.cos(angle), math.sin(angle)


def _point(corner: tuple[float, float], radius: float, middle: float) -> tuple[float, float]:
    return WIDTH / 2 + radius * corner[0], middle + radius * corner[1]


def _radar_grid(
    scale: Scale, spokes: Sequence[str], corners: Sequence[tuple[float, float]], middle: float, unit: str
) -> list[Markup]:
    parts = []
    for ring in range(1, _RINGS + 1):
        points = [_point(corner, _RADIUS * ring / _RINGS, middle) for corner in corners]
        parts.append(path([*points, points[0]], "grid ring"))
    for corner, spoke in zip(corners, spokes, strict=True):
        x, y = _point(corner, _RADIUS, middle)
        parts.append(tag("line", class_="grid", x1=WIDTH / 2, x2=x, y1=middle, y2=y))
        anchor = "middle" if abs(corner[0]) < 0.2 else "" if corner[0] > 0 else "end"
        lines = label_lines(spoke)
        at_x, at_y = _point(corner, _RADIUS + 12, middle)
        at_y += 4 + 5 * corner[1] - _LINE * (len(lines) - 1) * (1 - corner[1]) / 2  # grows away from the rim
        classes = f"label {anchor}".strip()
        parts += [tag("text", line, class_=classes, x=at_x, y=at_y + _LINE * k) for k, line in enumerate(lines)]
    for ring in range(1, _RINGS + 1):
        value = scale.low + (scale.high - scale.low) * ring / _RINGS
        text = f"{100 * value:.3g}%" if unit == "share" else f"{value:.3g}"
        parts.append(tag("text", text, class_="tick halo", x=WIDTH / 2 + 4, y=middle - _RADIUS * ring / _RINGS + 12))
    return parts


def label_lines(category: str) -> list[str]:
    """Return the name of a category in one or two lines that fit beside a radar."""
    text = category.replace("_", " ")
    lines = textwrap.wrap(text, _LABEL, break_long_words=False) or [text]
    if len(lines) > 2:
        lines = [lines[0], " ".join(lines[1:])]
    return [short(line, _LABEL + 2) for line in lines]


def _outline(points: Sequence[tuple[float, float]], classes: str, dash: str | None) -> Markup:
    """Return the line around; where a category has no number it is open there."""
    drawn = path([*points, points[0]], f"line {classes}")
    return tag("g", drawn, stroke_dasharray=dash) if dash else drawn


def _wrapped_legend(entries: Sequence[tuple[str, str]]) -> tuple[Markup, float]:
    """Return a legend in as many lines as it needs, and the height it takes beyond one line."""
    lines: list[list[tuple[str, str]]] = [[]]
    for entry in entries:
        if lines[-1] and sum(legend_widths([*lines[-1], entry])) > WIDTH - RIGHT:
            lines.append([])
        lines[-1].append(entry)
    drawn = [legend(line, y=14.0 + 17 * place) for place, line in enumerate(lines)]
    return Markup("").join(drawn), 17.0 * (len(lines) - 1)


# ---- one model against another -------------------------------------------------------------------------------------


def win_rate_figure(facts: BenchmarkFacts) -> Figure | None:
    """Return the win rate of every two models around one half."""
    lanes = [
        Lane(
            f"{one.model} against {one.against}",
            100 * one.rate.estimate,
            100 * one.rate.low,
            100 * one.rate.high,
            share(one.rate),
            {"improved": "s1", "worse": "s2"}.get(one.verdict, "s0"),
        )
        for one in facts.contests
        if one.rate is not None
    ]
    if not lanes:
        return None
    caption = (
        f"Ties count one half. {_level(facts)} intervals over prompts; dashed: as good as the other. "
        "Grey: no difference shown."
    )
    if len(lanes) > MOST_LANES:
        caption += f" The first {MOST_LANES} of {len(lanes)} pairs."
    shown, span = lanes[:MOST_LANES], (0.0, 100.0)
    return forest(_name(facts, "win-rates"), "Win rates", shown, "percent won", 50.0, caption, span)


def rating_figure(facts: BenchmarkFacts) -> Figure | None:
    """Return the ratings of all models, best first."""
    ratings = facts.record.ratings
    if ratings is None or not ratings.rows:
        return None
    rows = sorted(ratings.rows, key=lambda one: -one.rating)[:MOST_LANES]
    lanes = [
        Lane(
            one.model,
            one.rating,
            one.rating if one.low is None else one.low,
            one.rating if one.high is None else one.high,
            rating_text(one.rating, one.low, one.high),
            color(facts, one.model),
        )
        for one in rows
    ]
    mean = sum(one.rating for one in ratings.rows) / len(ratings.rows)
    caption = f"{_level(facts)} intervals. Dashed: the mean. 100 points more mean winning about 64 of 100 comparisons."
    return forest(_name(facts, "ratings"), "Ratings", lanes, "points", mean, caption)


# ---- judges --------------------------------------------------------------------------------------------------------


def bias_figure(facts: BenchmarkFacts, place: int, judge: str, bias: Bias) -> Figure | None:
    """Return what order and length did to a judge; None where nothing is known."""
    one, orders = bias.overall, bias.overall.orders
    rows: list[tuple[str, Estimate | None, str]] = []
    if orders is not None:
        rows += [
            ("Both orders agree", orders.consistent, "s3"),
            ("The first shown wins both", orders.to_first, "s2"),
            ("The second shown wins both", orders.to_second, "s2"),
            ("A tie in one order only", orders.half_tie, "s0"),
        ]
    rows += [
        ("Ties", one.ties, "s0"),
        ("Games the first shown wins", one.first_shown, "s4"),
        ("Decisions the longer reply wins", one.length.longer, "s4"),
    ]
    lanes = [
        Lane(name, 100 * value.estimate, 100 * value.low, 100 * value.high, share(value), classes)
        for name, value, classes in rows
        if value is not None
    ]
    if not lanes:
        return None
    caption = (
        f"{_level(facts)} intervals. Dashed: one half, where the last lines stand for a judge that minds neither order nor "
        "length; longer replies may also be better."
    )
    title = f"Bias of {judge}"
    name = _name(facts, "bias", str(place + 1))
    return forest(name, title, lanes, "percent", 50.0, caption, (0.0, 100.0))
