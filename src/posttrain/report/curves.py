"""Curves over the steps of a train stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from posttrain.report import numbers
from posttrain.report.facts import TrainFacts
from posttrain.report.figure import Figure, file_name
from posttrain.report.records import TrainRecord
from posttrain.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDE,
    Box,
    Scale,
    axes,
    columns,
    dot,
    legend,
    padded,
    path,
    tag,
)

MAX_POINTS = 400
"""More steps than this are drawn as means of neighbouring steps (the table and metrics.jsonl keep them all)."""


def loss_figure(train: TrainFacts, box: Box = WIDE) -> Figure | None:
    """Return training and held-out loss over the steps."""
    losses = [(record.step, record.loss) for record in train.steps]
    held_out = [(r.step, r.loss) for r in train.held_out if math.isfinite(r.loss)]
    finite = [loss for _, loss in [*losses, *held_out] if math.isfinite(loss)]
    if not finite:
        return None
    x, y = frame([*losses, *held_out], finite, box)
    raw = thinned(losses)
    window = max(1, len(losses) // 20)
    smooth = thinned(running_mean(losses, window))
    parts = [
        axes(x, y, "step", "nats per token" if train.preferences is None else "loss"),
        path([(x(s), y(v)) for s, v in raw], "line raw s0" if window > 1 else "line s0"),
    ]
    if window > 1:
        parts.append(path([(x(s), y(v)) for s, v in smooth], "line s0"))
    parts.append(hover(x, y, raw, lambda s, v: f"step {s:,.0f}: training loss {v:.3f}"))
    parts.append(path([(x(s), y(v)) for s, v in held_out], "line s1"))
    lowest = train.lowest_held_out
    for step, loss in held_out:
        chosen = lowest is not None and step == lowest.step
        note = f"step {step:,}: held-out loss {loss:.4f}" + (" (lowest)" if chosen else "")
        parts.append(dot(x(step), y(loss), "dot s1" + (" chosen" if chosen else ""), note, 6 if chosen else 3.5))
    parts.append(legend([("training", "swatch s0"), ("held-out", "swatch s1")], width=box.width))
    caption = (
        f"Training loss of each step{f' (faint) and its mean over {window} steps' if window > 1 else ''}; held-out loss as points"
        + (", the lowest one ringed." if held_out else ".")
    )
    return Figure(
        file_name(train.stage.name, "loss"),
        "Loss",
        f"Loss{' in nats per supervised token' if train.preferences is None else ''} over {len(losses):,} steps"
        + (f"; training from {losses[0][1]:.3f} to {losses[-1][1]:.3f}" if losses else "")
        + (f"; held-out from {held_out[0][1]:.3f} to {held_out[-1][1]:.3f}" if held_out else "")
        + ".",
        caption,
        box.height,
        Markup("").join(parts),
        box.width,
    )


def gradient_figure(train: TrainFacts, box: Box = WIDE) -> Figure | None:
    """Return the gradient norm before clipping, with the clipping limit."""
    limit = train.config.get("max_grad_norm")
    figure = _one_curve(
        train,
        box,
        "gradient-norm",
        "Gradient norm",
        "norm",
        lambda record: record.grad_norm,
        lambda value: f"gradient norm {value:.3g}",
        log_when_wide=True,
        threshold=float(limit) if isinstance(limit, int | float) else None,
    )
    return figure


def rate_figure(train: TrainFacts, box: Box = WIDE) -> Figure | None:
    """Return the learning rate over the steps."""
    return _one_curve(
        train,
        box,
        "learning-rate",
        "Learning rate",
        "rate",
        lambda record: record.learning_rate,
        lambda value: f"learning rate {numbers.scientific(value)}",
        from_zero=True,
    )


def speed_figure(train: TrainFacts, box: Box = WIDE) -> Figure | None:
    """Return tokens per second over the steps."""
    return _one_curve(
        train,
        box,
        "speed",
        "Speed",
        "tokens per second",
        lambda record: record.tokens_per_second,
        lambda value: f"{value:,.0f} tokens per second",
        from_zero=True,
    )


def _one_curve(
    train: TrainFacts,
    box: Box,
    name: str,
    title: str,
    unit: str,
    value_of: Callable[[TrainRecord], float | None],
    tooltip: Callable[[float], str],
    *,
    from_zero: bool = False,
    log_when_wide: bool = False,
    threshold: float | None = None,
) -> Figure | None:
    points = [(r.step, v) for r in train.steps if (v := value_of(r)) is not None]
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return None
    positive = [value for value in finite if value > 0]
    log = log_when_wide and len(positive) == len(finite) and max(finite) > 10 * float(np.median(finite))
    extent = [*finite, *([0.0] if from_zero else [])]
    drawn_threshold = threshold is not None and min(finite) / 1.5 < threshold < max(finite) * 1.5
    if drawn_threshold and threshold is not None:
        extent.append(threshold)
    x, y = frame(points, extent, box, log=log, from_zero=from_zero)
    drawn = thinned(points)
    parts = [
        axes(x, y, "step", unit + (", logarithmic" if log else "")),
        path([(x(s), y(v)) for s, v in drawn], "line s0"),
        hover(x, y, drawn, lambda step, value: f"step {step:,.0f}: {tooltip(value)}"),
    ]
    caption = ""
    if threshold is not None:
        clipped = sum(value > threshold for value in finite)
        caption = f"Clipped to {threshold:g} at {clipped:,} of {len(finite):,} steps."
        if drawn_threshold:
            parts.append(tag("line", class_="mark limit", x1=x.start, x2=x.end, y1=y(threshold), y2=y(threshold)))
            parts.append(tag("text", f"clipped above {threshold:g}", class_="halo end", x=x.end, y=y(threshold) - 5))
    return Figure(
        file_name(train.stage.name, name),
        title,
        f"{title} over {len(points):,} steps: first {tooltip(points[0][1])}, last {tooltip(points[-1][1])}, "
        f"highest {tooltip(max(finite))}.",
        caption,
        box.height,
        Markup("").join(parts),
        box.width,
    )


def frame(
    points: Sequence[tuple[float, float]],
    values: Sequence[float],
    box: Box = WIDE,
    *,
    top: float = TOP,
    log: bool = False,
    from_zero: bool = False,
) -> tuple[Scale, Scale]:
    """Return the scales of a curve over the steps whose values lie in the range of ``values``."""
    steps = [step for step, _ in points]
    first, last = min(steps), max(steps)
    low, high = (min(values) / 1.1, max(values) * 1.1) if log else padded(values)
    low = 0.0 if from_zero else low
    x = Scale(first, last if last > first else first + 1, LEFT, box.width - RIGHT, whole=True)
    return x, Scale(low, high, box.height - BOTTOM, top - 8, log)


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the centred mean over ``window`` steps (fewer at the ends); values that are not finite are left out."""
    values = np.array([value for _, value in points], dtype=np.float64)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + (window + 1) // 2, len(values))
    with np.errstate(invalid="ignore"):
        means = (sums[high] - sums[low]) / (counts[high] - counts[low])
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS points: means of neighbours where there are more."""
    size = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups
    ]


def hover(x: Scale, y: Scale, points: Sequence[tuple[float, float]], tooltip: Callable[[float, float], str]) -> Markup:
    """Return hover columns for at most 80 of the points."""
    chosen = points[:: math.ceil(len(points) / 80) or 1]
    if not chosen:
        return Markup("")
    return columns([x(step) for step, _ in chosen], y.end, y.start, [tooltip(*point) for point in chosen])
