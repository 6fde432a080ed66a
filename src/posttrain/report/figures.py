"""The figures of a report, drawn from facts. Each is one ``Figure``: the same drawing inline in the page and as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from posttrain.artifacts import LedgerStep
from posttrain.report import numbers, preference_figures
from posttrain.report.benchmark_figures import BenchmarkFigures, benchmark_figures
from posttrain.report.curves import gradient_figure, loss_figure, rate_figure, speed_figure
from posttrain.report.facts import EvalFacts, LossComparison, RunFacts, TrainFacts
from posttrain.report.figure import Figure, file_name
from posttrain.report.preference_comparison import PreferenceStages
from posttrain.report.records import LengthStatistics
from posttrain.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    SMALL,
    TOP,
    WIDE,
    WIDTH,
    Scale,
    axes,
    bar,
    dot,
    legend,
    padded,
    tag,
    whisker,
)

# ---- rows ----------------------------------------------------------------------------------------------------------


def rows_figure(facts: RunFacts) -> Figure | None:
    """Return the funnel: one bar for each step of each stage's ledger, kept rows beside dropped ones."""
    lanes = [
        (f"{stage.name} \N{MIDDLE DOT} {step.name}", step)
        for stage in facts.stages
        if stage.ledger
        for step in stage.ledger.steps
    ]
    return funnel_figure(lanes) if lanes else None


def funnel_figure(lanes: Sequence[tuple[str, LedgerStep]], *, shares: bool = False) -> Figure:
    """Return one bar for each (name, step of a ledger), in order; with ``shares`` the kept share of what came in."""
    most = max(step.rows_in + step.added for _, step in lanes) or 1
    x = Scale(0, most, 2, WIDTH - RIGHT)
    parts = [legend([("kept", "swatch s1"), ("dropped", "swatch s2")])]
    top = TOP
    for name, step in lanes:
        dropped = sum(step.dropped.values())
        came = step.rows_in + step.added
        text = f"{numbers.count(came)} \N{RIGHTWARDS ARROW} {numbers.count(step.rows_out)}"
        if shares and came:
            text += f" ({numbers.percent(step.rows_out / came)})"
        parts.append(tag("text", name, class_="label strong", x=2, y=top + 12))
        parts.append(tag("text", text, class_="tick end", x=WIDTH - RIGHT, y=top + 12))
        parts.append(tag("rect", class_="track", x=2, y=top + 19, width=WIDTH - RIGHT - 2, height=12))
        kept_end = x(step.rows_out)
        parts.append(bar(2, top + 19, kept_end - 2, 12, "fill s1", f"{step.rows_out:,} rows kept"))
        reasons = "; ".join(f"{reason}: {number:,}" for reason, number in step.dropped.items())
        if dropped:
            width = max(x(step.rows_out + dropped) - kept_end, 2.5)
            parts.append(bar(min(kept_end, WIDTH - RIGHT - width), top + 19, width, 12, "fill s2", reasons))
        top += 44
    return Figure(
        "rows",
        "Rows, step by step",
        "Rows kept and dropped at each step. "
        + ". ".join(f"{name}: {s.rows_in + s.added:,} to {s.rows_out:,}" for name, s in lanes),
        "Every bar starts with the rows that came into the step; hover over the dropped part for the reasons.",
        top,
        Markup("").join(parts),
    )


# ---- lengths -------------------------------------------------------------------------------------------------------


def length_figure(train: TrainFacts, which: str, statistics: LengthStatistics, limit: int) -> Figure | None:
    """Return the histogram of token lengths with its percentiles and the limit."""
    if not statistics.values:
        return None
    values = np.asarray(statistics.values, dtype=np.float64)
    # A few very long rows would squeeze all others into one bar: beyond four times P95 one last bar takes them all.
    end = float(min(values.max(), 4 * statistics.p95)) if statistics.p95 else float(values.max())
    tail = int((values > end).sum())
    edges = np.linspace(0, max(end, 1.0), _bins(len(values)) + 1)
    heights, _ = np.histogram(values[values <= end], bins=edges)
    heights[-1] += tail
    marks = [("P50", statistics.p50), ("P90", statistics.p90), ("P95", statistics.p95)]
    parts = length_histogram(edges.tolist(), heights.tolist(), marks, limit, tail=tail)
    share = statistics.share_over_limit
    over_text = f"{numbers.percent(share) + ' are' if share else 'none is'} longer than the limit of {limit:,}"
    return Figure(
        file_name(train.stage.name, "lengths", which),
        {"conversation": "Whole conversations", "assistant": "Assistant replies"}[which],
        f"Histogram of token lengths ({which}): median {statistics.p50:,.0f}, P90 {statistics.p90:,.0f}, "
        f"P95 {statistics.p95:,.0f}, longest {statistics.max:,.0f}; {over_text}.",
        f"{statistics.count:,} {'conversations' if which == 'conversation' else 'replies'}; {over_text}."
        + (f" The last bar holds all {tail:,} beyond {edges[-2]:,.0f} tokens." if tail else ""),
        WIDE.height,
        Markup("").join(parts),
    )


def _bins(count: int) -> int:
    """Return how many bars a histogram of so many values gets: few values make no fine picture."""
    return min(40, max(10, round(2 * math.sqrt(count))))


def length_histogram(
    edges: Sequence[float],
    heights: Sequence[int],
    quantiles: Sequence[tuple[str, float]],
    limit: float | None,
    *,
    tail: int,
) -> list[Markup]:
    """Return the drawing of a histogram of token lengths with its quantiles and, where it lies inside, the limit.

    ``tail``: rows beyond the last edge, counted in the last bar. Bars beyond the limit have the colour of what is lost.
    """
    x = Scale(0, float(edges[-1]), LEFT, WIDTH - RIGHT, whole=True)
    y = Scale(0, float(max(heights)) * 1.05, WIDE.height - BOTTOM, TOP - 8, whole=True)
    parts = [axes(x, y, "tokens", "rows")]
    for index, (height, (low, high)) in enumerate(zip(heights, pairwise(edges), strict=True)):
        last = index == len(heights) - 1
        span = f"{low:,.0f} tokens and more" if last and tail else f"{low:,.0f} to {high:,.0f} tokens"
        over = " s2" if limit is not None and low >= limit else " s1"
        parts.append(
            bar(
                x(low) + 0.5,
                y(height),
                x(high) - x(low) - 1,
                y(0) - y(height),
                "fill" + over,
                f"{span}: {height:,} rows",
            )
        )
    marks = [(name, value, "mark") for name, value in quantiles]
    if limit is not None and limit <= edges[-1]:
        marks.append(("limit", float(limit), "mark limit"))
    parts += [tag("line", class_=classes, x1=x(v), x2=x(v), y1=TOP - 8, y2=y(0)) for _, v, classes in marks]
    for row, (name, value, _) in enumerate(marks):
        right = x(value) > WIDTH * 0.72
        parts.append(
            tag(
                "text",
                f"{name} {value:,.0f}",
                class_="halo end" if right else "halo",
                x=x(value) + (-5 if right else 5),
                y=TOP + 6 + 17 * row,
            )
        )
    return parts


# ---- comparisons ---------------------------------------------------------------------------------------------------


def loss_difference_figure(evaluation: EvalFacts) -> Figure | None:
    """Return the differences of held-out loss with their intervals around zero."""
    comparisons = evaluation.loss_comparisons
    if not comparisons:
        return None
    ends = [v for c in comparisons for v in (c.pair.low, c.pair.high, c.pair.difference)]
    x = Scale(*padded([*ends, 0.0], 0.12), LEFT / 4, WIDTH - RIGHT)
    bottom = TOP + 44 * len(comparisons)
    parts = [axes(x, None, "nats per token; left of zero is better", bottom=bottom)]
    parts.append(tag("line", class_="zero", x1=x(0), x2=x(0), y1=TOP - 8, y2=bottom))
    for index, c in enumerate(comparisons):
        pair, y = c.pair, TOP + 44 * index + 28
        text = f"{pair.b} minus {pair.a}: {numbers.signed(pair.difference)}"
        classes = {"improved": "s1", "worse": "s2", "not shown": "s0"}[c.verdict]
        parts.append(tag("text", text, class_="halo strong", x=x.start + 4, y=y - 14))
        parts.append(whisker(x, y, pair.low, pair.high, classes))
        tooltip = f"{text}, interval {numbers.interval(pair.low, pair.high)}"
        parts.append(dot(x(pair.difference), y, f"dot {classes}", tooltip, 5))
    level = numbers.confidence(comparisons[0].pair.confidence)
    return Figure(
        file_name(evaluation.stage.name, "loss-difference"),
        "Difference of held-out loss",
        "Differences of held-out loss: "
        + "; ".join(
            f"{c.pair.b} minus {c.pair.a} {numbers.signed(c.pair.difference)}, "
            f"interval {numbers.interval(c.pair.low, c.pair.high)}"
            for c in comparisons
        ),
        f"Points are differences, bars their {level} paired bootstrap intervals. A bar across zero: no difference shown.",
        bottom + BOTTOM,
        Markup("").join(parts),
    )


def row_difference_figure(evaluation: EvalFacts, comparison: LossComparison) -> Figure | None:
    """Return the histogram of the loss differences of single held-out rows."""
    values = np.asarray(comparison.row_differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    # The outermost bars collect what lies beyond the 1st and 99th percentile; one bin edge is exactly zero.
    low, high = (float(v) for v in np.quantile(values, [0.01, 0.99]))
    width = max(high, 0.0) - min(low, 0.0) or 1.0
    size = width / _bins(len(values))
    first, last = math.floor(min(low, 0.0) / size), math.ceil(max(high, 0.0) / size)
    edges = np.arange(first, last + 1) * size
    edges = edges if len(edges) > 1 else np.array([-size, 0.0, size])
    heights, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(0, float(heights.max()) * 1.05, WIDE.height - BOTTOM, TOP - 8, whole=True)
    parts = [axes(x, y, "nats per token; left of zero is better", "rows")]
    for height, (start, end) in zip(heights, pairwise(edges), strict=True):
        classes = "fill s1" if end <= size / 2 else "fill s2"
        tooltip = f"{numbers.signed(float(start))} to {numbers.signed(float(end))} nats per token: {height:,} rows"
        parts.append(bar(x(start) + 0.5, y(height), x(end) - x(start) - 1, y(0) - y(height), classes, tooltip))
    parts.append(tag("line", class_="zero", x1=x(0), x2=x(0), y1=TOP - 8, y2=y(0)))
    pair, rows = comparison.pair, len(comparison.row_differences)
    text = f"{comparison.rows_better:,} of {rows:,} held-out rows became more likely under {pair.b} than under {pair.a}"
    return Figure(
        file_name(evaluation.stage.name, "rows", pair.a, pair.b),
        f"Row by row: {pair.b} minus {pair.a}",
        f"Histogram of the loss difference of each held-out row; {text}.",
        f"{text}. The outermost bars also hold what lies beyond.",
        WIDE.height,
        Markup("").join(parts),
    )


def accuracy_figure(evaluation: EvalFacts) -> Figure | None:
    """Return the checked accuracy of every model, overall and by class, with Wilson intervals."""
    models = [m for m in evaluation.models if m in evaluation.accuracy and evaluation.accuracy[m].all.checked]
    if not models:
        return None
    groups = [("all prompts", [evaluation.accuracy[m].all for m in models])]
    for name in dict.fromkeys(name for m in models for name in evaluation.accuracy[m].by_class):
        known = [r for m in models if (r := evaluation.accuracy[m].by_class.get(name)) is not None and r.checked]
        if len(known) == len(models):
            groups.append((name, known))
    x = Scale(0, 1, LEFT / 4, WIDTH - RIGHT - 44)
    lane = 19
    bottom = TOP + sum(24 + lane * len(models) for _ in groups)
    percent = Scale(0, 100, x.start, x.end)
    parts = [axes(percent, None, "percent of checked answers that are right", bottom=bottom)]
    top = TOP
    for name, rates in groups:
        parts.append(tag("text", name, class_="halo strong", x=x.start + 4, y=top + 12))
        for index, (model, rate) in enumerate(zip(models, rates, strict=True)):
            if rate.accuracy is None or rate.low is None or rate.high is None:
                continue
            y = top + 26 + lane * index
            classes = f"s{index % 6}"
            tooltip = (
                f"{model}, {name}: {rate.passed} of {rate.checked}, {numbers.percent_interval(rate.low, rate.high)}"
            )
            parts.append(whisker(x, y, rate.low, rate.high, classes))
            parts.append(dot(x(rate.accuracy), y, f"dot {classes}", tooltip, 5))
            parts.append(tag("text", f"{rate.passed}/{rate.checked}", class_="tick end", x=WIDTH - 2, y=y + 4))
        top += 24 + lane * len(models)
    parts.append(legend([(model, f"swatch s{index % 6}") for index, model in enumerate(models)]))
    return Figure(
        file_name(evaluation.stage.name, "accuracy"),
        "Checked answers",
        "Share of checked answers that are right. "
        + ". ".join(
            f"{name}: " + ", ".join(f"{m} {r.passed} of {r.checked}" for m, r in zip(models, rates, strict=True))
            for name, rates in groups
        ),
        "Points are accuracies, bars their Wilson intervals. Single classes hold few prompts: read them as description.",
        bottom + BOTTOM,
        Markup("").join(parts),
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a report; the mappings go by stage name."""

    rows: Figure | None
    curves: dict[str, tuple[Figure, ...]]
    lengths: dict[str, tuple[Figure, ...]]
    loss_difference: dict[str, tuple[Figure, ...]]
    row_differences: dict[str, tuple[Figure, ...]]
    accuracy: dict[str, tuple[Figure, ...]]
    preferences: dict[str, tuple[Figure, ...]]
    overlays: tuple[Figure, ...]
    """Of several preference stages."""
    benchmarks: dict[tuple[str, str], BenchmarkFigures]
    """By stage and the recipe's name for the benchmark."""

    def all(self) -> list[Figure]:
        """Return every figure."""
        sections = (
            self.curves,
            self.lengths,
            self.loss_difference,
            self.row_differences,
            self.accuracy,
            self.preferences,
        )
        by_stage = [figure for section in sections for figures in section.values() for figure in figures]
        of_benchmarks = [figure for found in self.benchmarks.values() for figure in (*found.results, *found.judges)]
        return [*([self.rows] if self.rows else []), *by_stage, *self.overlays, *of_benchmarks]


def draw(facts: RunFacts, stages: PreferenceStages | None = None) -> Figures:
    """Draw every figure for which there are facts. ``stages``: the preference stages side by side, where there are several."""
    return Figures(
        rows=rows_figure(facts),
        curves={train.stage.name: curve_figures(train) for train in facts.training},
        lengths={train.stage.name: length_figures(train) for train in facts.training if train.lengths},
        loss_difference={e.stage.name: _drawn(loss_difference_figure(e)) for e in facts.evaluations},
        row_differences={
            e.stage.name: _drawn(*(row_difference_figure(e, c) for c in e.loss_comparisons)) for e in facts.evaluations
        },
        accuracy={e.stage.name: _drawn(accuracy_figure(e)) for e in facts.evaluations},
        preferences={
            e.stage.name: _drawn(preference_figures.accuracy_figure(e), preference_figures.margin_figure(e))
            for e in facts.evaluations
        },
        overlays=preference_figures.overlay_figures(stages) if stages else (),
        benchmarks={(b.stage, b.record.key): benchmark_figures(b) for e in facts.evaluations for b in e.benchmarks},
    )


def curve_figures(train: TrainFacts) -> tuple[Figure, ...]:
    """Return the curves of a train stage: small ones where there are many."""
    if train.preferences is None:
        return _drawn(loss_figure(train), gradient_figure(train), rate_figure(train), speed_figure(train))
    return _drawn(
        loss_figure(train, SMALL),
        *preference_figures.stage_figures(train, train.preferences),
        gradient_figure(train, SMALL),
        rate_figure(train, SMALL),
        speed_figure(train, SMALL),
    )


def length_figures(train: TrainFacts) -> tuple[Figure, ...]:
    """Return the histograms of token lengths; replies of two kinds share one."""
    lengths = train.lengths
    if lengths is None:
        return ()
    conversation = length_figure(train, "conversation", lengths.conversation, lengths.limit)
    if lengths.sides:
        return _drawn(conversation, preference_figures.sides_length_figure(train, lengths.sides))
    return _drawn(conversation, length_figure(train, "assistant", lengths.assistant, lengths.limit))


def _drawn(*figures: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in figures if figure is not None)
