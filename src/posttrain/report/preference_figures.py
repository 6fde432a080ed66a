"""The figures of preference training: small multiples of a stage, held-out preferences, and stages overlaid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from posttrain.report import numbers
from posttrain.report.curves import frame, hover, running_mean, thinned
from posttrain.report.facts import EvalFacts, TrainFacts
from posttrain.report.figure import Figure, file_name
from posttrain.report.preference_comparison import PreferenceStages
from posttrain.report.preferences import Measure, PreferenceTraining
from posttrain.report.records import LengthStatistics, PreferenceRecord
from posttrain.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    SMALL,
    TOP,
    WIDE,
    WIDTH,
    Box,
    Scale,
    axes,
    dot,
    legend,
    legend_widths,
    padded,
    path,
    tag,
    whisker,
)

Points = Sequence[tuple[float, float]]
Value = Callable[[PreferenceRecord], float | None]
COLORS = ("s1", "s2", "s3", "s4", "s5", "s0")


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel."""

    label: str
    color: str
    points: Points
    dots: bool
    """Held-out measurements are drawn with dots, training as a line (faint, with its running mean, where it is long)."""


# ---- one stage -----------------------------------------------------------------------------------------------------


def stage_figures(train: TrainFacts, training: PreferenceTraining) -> tuple[Figure, ...]:
    """Return the small multiples of a preference stage: rewards, margin, accuracy, log-probabilities, distance."""
    point = training.objective == "kto"
    drawn = (
        _sides(
            train,
            training,
            "rewards",
            "Rewards",
            "reward",
            lambda r: r.rewards_chosen,
            lambda r: r.rewards_rejected,
            held_out_alone=training.objective in ("simpo", "orpo"),  # levels of log-probability, other in every batch
        ),
        _measure(train, training, "margin", "Reward margin", "margin", lambda r: r.rewards_margins, line=0.0),
        _measure(train, training, "accuracy", "Reward accuracy", "percent", _percent, line=50.0),
        _sides(
            train,
            training,
            "log-probabilities",
            "Log-probability of the replies",
            "nats a reply",
            lambda r: r.logps_chosen,
            lambda r: r.logps_rejected,
            held_out_alone=True,
        ),
        _measure(
            train,
            training,
            "reference-point" if point else "kl",
            "Reference point" if point else "KL to the reference",
            "nats" if point else "nats a token",
            lambda r: r.kl,
        ),
        _measure(train, training, "nll", "Negative log-likelihood of the chosen", "nats a token", lambda r: r.nll),
    )
    return tuple(figure for figure in drawn if figure is not None)


def _measure(
    train: TrainFacts,
    training: PreferenceTraining,
    name: str,
    title: str,
    unit: str,
    value: Value,
    *,
    line: float | None = None,
) -> Figure | None:
    """Return one quantity, in training and on the held-out rows."""
    curves = [
        Curve("training", "s0", _points(training.steps, value), dots=False),
        Curve("held-out", "s1", _points(training.held_out, value), dots=True),
    ]
    return _panel(file_name(train.stage.name, name), title, unit, curves, SMALL, line=line)


def _sides(
    train: TrainFacts,
    training: PreferenceTraining,
    name: str,
    title: str,
    unit: str,
    better: Value,
    worse: Value,
    *,
    held_out_alone: bool = False,
) -> Figure | None:
    """Return one quantity of both kinds of replies; training is left out where its batches can't be compared."""
    curves = []
    for label, color, value in zip(training.sides, ("s1", "s2"), (better, worse), strict=True):
        held_out, steps = _points(training.held_out, value), _points(training.steps, value)
        if len(steps) and not (held_out_alone and len(held_out) > 1):
            curves.append(Curve(label, color, steps, dots=False))
        curves.append(Curve(label, color, held_out, dots=True))
    caption = ""
    if any(curve.dots and curve.points for curve in curves):
        caption = "Of the held-out rows." if held_out_alone else "Lines with dots: held-out; without: training."
    return _panel(file_name(train.stage.name, name), title, unit, curves, SMALL, caption=caption)


def sides_length_figure(train: TrainFacts, sides: Sequence[tuple[str, LengthStatistics]]) -> Figure | None:
    """Return the token lengths of both kinds of replies as outlines over the same bins."""
    known = [(name, s) for name, s in sides if s.values]
    if not known:
        return None
    everything = np.concatenate([np.asarray(s.values, dtype=np.float64) for _, s in known])
    end = float(min(everything.max(), 4 * max(s.p95 for _, s in known))) or 1.0
    bins = min(30, max(10, round(2 * math.sqrt(min(s.count for _, s in known)))))
    edges = np.linspace(0, end, bins + 1)
    heights = [np.histogram(np.minimum(s.values, end), bins=edges)[0] for _, s in known]
    x = Scale(0, end, LEFT, WIDE.width - RIGHT, whole=True)
    y = Scale(0, float(max(h.max() for h in heights)) * 1.05, WIDE.height - BOTTOM, TOP - 8, whole=True)
    parts = [axes(x, y, "tokens", "replies")]
    for index, ((name, s), height) in enumerate(zip(known, heights, strict=True)):
        corners = [
            (x(at), y(float(h)))
            for (low, high), h in zip(pairwise(edges.tolist()), height, strict=True)
            for at in (low, high)
        ]
        parts.append(path([(x(0), y(0)), *corners, (x(end), y(0))], f"line s{index + 1}"))
        parts.append(tag("line", class_=f"median s{index + 1}", x1=x(s.p50), x2=x(s.p50), y1=TOP - 8, y2=y(0)))
        text = f"median {name} {s.p50:,.0f}"
        right = x(s.p50) > WIDTH * 0.6
        parts.append(
            tag(
                "text",
                text,
                class_="halo end" if right else "halo",
                x=x(s.p50) + (-5 if right else 5),
                y=TOP + 6 + 17 * index,
            )
        )
    parts.append(legend([(name, f"swatch s{index + 1}") for index, (name, _) in enumerate(known)]))
    words = "; ".join(f"{name}: median {s.p50:,.0f}, P95 {s.p95:,.0f}, longest {s.max:,.0f}" for name, s in known)
    beyond = int((everything > end).sum())
    return Figure(
        file_name(train.stage.name, "lengths", "replies"),
        f"Replies: {' and '.join(name for name, _ in known)}",
        f"Histogram of the token lengths of replies by kind. {words}.",
        "How many replies of each kind have which length."
        + (f" The last bin also holds the {beyond:,} beyond {end:,.0f} tokens." if beyond else ""),
        WIDE.height,
        Markup("").join(parts),
    )


# ---- held-out preferences ------------------------------------------------------------------------------------------


def accuracy_figure(evaluation: EvalFacts) -> Figure | None:
    """Return reward accuracy and ranking accuracy of every model with their intervals."""
    found = evaluation.preferences
    if found is None or not found.models:
        return None
    groups: tuple[tuple[str, Measure], ...] = (
        (f"reward accuracy, against {found.reference}", "reward_accuracy"),
        ("ranking accuracy, by log-probability a token", "ranking_accuracy"),
    )
    lane, x = 19, Scale(0, 1, LEFT / 4, WIDTH - RIGHT - 44)
    bottom = TOP + sum(24 + lane * len(found.models) for _ in groups)
    parts = [axes(Scale(0, 100, x.start, x.end), None, "percent of held-out pairs", bottom=bottom)]
    parts.append(tag("line", class_="zero", x1=x(0.5), x2=x(0.5), y1=TOP - 8, y2=bottom))
    top, words = TOP, []
    for title, measure in groups:
        parts.append(tag("text", title, class_="halo strong", x=x.start + 4, y=top + 12))
        for index, (name, model) in enumerate(found.models.items()):
            value = getattr(model, measure)
            y, color = top + 26 + lane * index, f"s{index % 6}"
            text = f"{name}, {title}: {numbers.percent(value.estimate)}"
            words.append(text)
            parts.append(whisker(x, y, value.low, value.high, color))
            tooltip = f"{text}, interval {numbers.percent_interval(value.low, value.high)}"
            parts.append(dot(x(value.estimate), y, f"dot {color}", tooltip, 5))
            parts.append(tag("text", numbers.percent(value.estimate, 0), class_="tick end", x=WIDTH - 2, y=y + 4))
        top += 24 + lane * len(found.models)
    drawn_legend, _ = _legend("", [(m, f"swatch s{i % 6}") for i, m in enumerate(found.models)], WIDE)
    parts.append(drawn_legend)
    return Figure(
        file_name(evaluation.stage.name, "preference-accuracy"),
        "How often the chosen reply is favoured",
        "; ".join(words),
        f"Points are shares of {found.pairs:,} pairs, bars their {numbers.confidence(found.confidence)} bootstrap intervals; "
        f"the line is chance. {found.reference} has 50% reward accuracy by definition.",
        bottom + BOTTOM,
        Markup("").join(parts),
    )


def margin_figure(evaluation: EvalFacts) -> Figure | None:
    """Return the differences of the mean margin with their intervals around zero."""
    found = evaluation.preferences
    if found is None or not found.comparisons:
        return None
    values = [(c, c.difference.reward_margin) for c in found.comparisons]
    x = Scale(*padded([0.0, *(v for _, i in values for v in (i.low, i.high))], 0.12), LEFT / 4, WIDTH - RIGHT)
    bottom = TOP + 44 * len(values)
    parts = [axes(x, None, "nats; right of zero is better", bottom=bottom)]
    parts.append(tag("line", class_="zero", x1=x(0), x2=x(0), y1=TOP - 8, y2=bottom))
    words = []
    for index, (c, interval) in enumerate(values):
        y = TOP + 44 * index + 28
        color = {"improved": "s1", "worse": "s2", "not shown": "s0"}[c.verdict("reward_margin")]
        text = f"{c.difference.b} minus {c.difference.a}: {numbers.signed(interval.estimate)}"
        words.append(f"{text}, interval {numbers.interval(interval.low, interval.high)}")
        parts.append(tag("text", text, class_="halo strong", x=x.start + 4, y=y - 14))
        parts.append(whisker(x, y, interval.low, interval.high, color))
        parts.append(dot(x(interval.estimate), y, f"dot {color}", words[-1], 5))
    return Figure(
        file_name(evaluation.stage.name, "preference-margin"),
        "Difference of the mean reward margin",
        "Differences of the mean reward margin: " + "; ".join(words),
        f"Points are differences, bars their {numbers.confidence(found.confidence)} paired bootstrap intervals. "
        "A bar across zero: no difference shown.",
        bottom + BOTTOM,
        Markup("").join(parts),
    )


# ---- stages side by side -------------------------------------------------------------------------------------------


def overlay_figures(found: PreferenceStages) -> tuple[Figure, ...]:
    """Return the curves of all preference stages over one another: loss, margin, accuracy, distance."""
    measures: tuple[tuple[str, str, str, Value], ...] = (
        ("loss", "Loss", "loss", lambda r: r.loss),
        ("margin", "Reward margin", "margin", lambda r: r.rewards_margins),
        ("accuracy", "Reward accuracy", "percent", _percent),
        ("kl", "KL to the reference", "nats a token", lambda r: r.kl),
    )
    drawn = []
    for name, title, unit, value in measures:
        shown = [
            (stage.name, COLORS[index % len(COLORS)], stage.training)
            for index, stage in enumerate(found.stages)
            if stage.training is not None and not (name == "kl" and stage.training.objective == "kto")
        ]
        held_out = [(label, color, _points(training.held_out, value)) for label, color, training in shown]
        steps = [(label, color, _points(training.steps, value)) for label, color, training in shown]
        # Held-out rows are the same for all, batches are not; but one side alone is better than no comparison.
        on_held_out = all(len(h) > 1 or not s for (*_, h), (*_, s) in zip(held_out, steps, strict=True))
        chosen = [(*entry, True) for entry in held_out] if on_held_out else [(*entry, False) for entry in steps]
        curves = [Curve(label, color, points, dots) for label, color, points, dots in chosen if points]
        if len(curves) < 2:
            continue
        line = 50.0 if name == "accuracy" else None
        caption = "On the held-out rows." if on_held_out else "While training, mean over neighbouring steps."
        figure = _panel(f"preferences-{name}", title, unit, curves, WIDE, line=line, caption=caption, smooth_only=True)
        drawn.append(figure)
    return tuple(figure for figure in drawn if figure is not None)


# ---- drawing -------------------------------------------------------------------------------------------------------


def _percent(record: PreferenceRecord) -> float | None:
    return None if record.rewards_accuracies is None else 100 * record.rewards_accuracies


def _points(records: Sequence[PreferenceRecord], value: Value) -> Points:
    return [(record.step, v) for record in records if (v := value(record)) is not None and math.isfinite(v)]


def _panel(
    name: str,
    title: str,
    unit: str,
    curves: Sequence[Curve],
    box: Box,
    *,
    line: float | None = None,
    caption: str = "",
    smooth_only: bool = False,
) -> Figure | None:
    """Return curves over the steps; ``line`` is a value that means something (chance, zero)."""
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return None
    entries = list(dict.fromkeys((curve.label, f"swatch {curve.color}") for curve in drawn))
    drawn_legend, extra = _legend(unit, entries, box)
    box = Box(box.width, box.height + extra)
    points = [point for curve in drawn for point in curve.points]
    values = [value for _, value in points] + ([line] if line is not None else [])
    x, y = frame(points, values, box, top=TOP + extra)
    parts = [axes(x, y, "step", unit)]
    if line is not None:
        parts.append(tag("line", class_="reference", x1=x.start, x2=x.end, y1=y(line), y2=y(line)))
    alone = {label for label, _ in entries} - {curve.label for curve in drawn if curve.dots}
    for curve in drawn:
        if not curve.dots:
            parts += _training_lines(x, y, curve, strong=curve.label in alone, smooth_only=smooth_only)
    for curve in (c for c in drawn if c.dots):
        parts.append(path([(x(s), y(v)) for s, v in curve.points], f"line {curve.color}"))
        parts += [
            dot(x(s), y(v), f"dot {curve.color}", f"step {s:,.0f}: {curve.label} {numbers.fixed(v)}", 3.2)
            for s, v in curve.points
        ]
    parts.append(drawn_legend)
    words = [
        f"{curve.label}{' (held-out)' if curve.dots and curve.label != 'held-out' else ''} from "
        f"{numbers.fixed(curve.points[0][1])} to {numbers.fixed(curve.points[-1][1])}"
        for curve in drawn
    ]
    alt = f"{title} over the steps, {unit}: {'; '.join(words)}."
    return Figure(name, title, alt, caption, box.height, Markup("").join(parts), box.width)


def _training_lines(x: Scale, y: Scale, curve: Curve, *, strong: bool, smooth_only: bool) -> list[Markup]:
    """Return the line of the training steps: where they are many, faint with its running mean."""
    window = max(1, len(curve.points) // 20)
    raw, parts = thinned(curve.points), []
    if not (smooth_only and window > 1):
        parts.append(
            path([(x(s), y(v)) for s, v in raw], f"line {'' if strong and window == 1 else 'raw '}{curve.color}")
        )
    if window > 1:
        smooth = thinned(running_mean(curve.points, window))
        parts.append(path([(x(s), y(v)) for s, v in smooth], f"line {'' if strong else 'thin '}{curve.color}"))
    if not smooth_only:
        parts.append(hover(x, y, raw, lambda step, value: f"step {step:,.0f}: {curve.label} {numbers.fixed(value)}"))
    return parts


def _legend(unit: str, entries: Sequence[tuple[str, str]], box: Box) -> tuple[Markup, float]:
    """Return a legend, in one line beside the unit or in lines below it, and the height it takes beyond one line."""
    room = box.width - RIGHT - 7 * len(unit) - 12
    if sum(legend_widths(entries)) <= room:
        return legend(entries, width=box.width), 0.0
    lines = [legend([entry], y=14.0 + 17 * index, width=box.width) for index, entry in enumerate(entries)]
    return Markup("").join(lines), 17.0 * (len(entries) - 1)
