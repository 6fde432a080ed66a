"""The figures of a data profile."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from posttrain.report import numbers
from posttrain.report.data_records import ClusterFacts, Covering, FunnelLine, LengthFacts, ProfileFacts, TurnFacts
from posttrain.report.figure import Figure
from posttrain.report.figures import funnel_figure, length_histogram
from posttrain.report.svg import BOTTOM, LEFT, RIGHT, TOP, WIDE, WIDTH, Scale, axes, bar, dot, legend, path, tag

PARTS = {"whole": "Whole conversations", "user": "User turns", "assistant": "Assistant turns"}
MOST_COLUMNS = 20
"""Bars of a figure of counts; the last one takes all beyond."""
MOST_SOURCES = 16


def steps_figure(lines: Sequence[FunnelLine]) -> Figure | None:
    """Return the rows before and after every step, with the share that stayed."""
    return funnel_figure([(line.step, line.as_step()) for line in lines], shares=True) if lines else None


def lengths_figure(name: str, facts: LengthFacts, limit: int | None) -> Figure:
    """Return the histogram of one part's token lengths."""
    heights = [*facts.histogram.counts]
    heights[-1] += facts.histogram.beyond
    quantiles = [("P50", facts.p50), ("P90", facts.p90), ("P95", facts.p95)]
    drawn = length_histogram(facts.histogram.edges, heights, quantiles, limit, tail=facts.histogram.beyond)
    tail = facts.histogram.beyond
    return Figure(
        f"lengths-{name}",
        PARTS[name],
        f"Histogram of token lengths ({PARTS[name].lower()}): median {facts.p50:,}, P90 {facts.p90:,}, "
        f"P95 {facts.p95:,}, longest {facts.max:,}.",
        f"Mean {numbers.fixed(facts.mean, 1)} tokens, longest {facts.max:,}."
        + (f" The last bar holds all {tail:,} beyond {facts.histogram.edges[-2]:,} tokens." if tail else ""),
        WIDE.height,
        Markup("").join(drawn),
    )


def coverage_figure(facts: LengthFacts, covering: Covering) -> Figure:
    """Return which share of the conversations a sequence length covers."""
    end = max(facts.percentiles[99], covering.rounded, 1)
    x = Scale(0, end, LEFT, WIDTH - RIGHT, whole=True)
    y = Scale(0, 100, WIDE.height - BOTTOM, TOP - 8)
    points = [(length, percent) for percent, length in enumerate(facts.percentiles) if length <= end]
    at_x, at_y = x(covering.length), y(100 * covering.share)
    right = at_x > WIDTH * 0.6
    parts = [
        axes(x, y, "tokens", "% of conversations no longer"),
        path([(x(length), y(percent)) for length, percent in points], "line s1"),
        tag("line", class_="mark limit", x1=at_x, x2=at_x, y1=at_y, y2=y(0)),
        tag("line", class_="mark limit", x1=x(0), x2=at_x, y1=at_y, y2=at_y),
        *(
            dot(x(v), y(p), "hover", f"{p}% have at most {v:,} tokens", 5)
            for v, p in points[:: 5 if len(points) > 40 else 1]
        ),
        dot(at_x, at_y, "dot s2", f"{covering.length:,} tokens cover {numbers.percent(covering.share, 0)}", 5),
        tag(
            "text",
            f"{covering.length:,} tokens cover {numbers.percent(covering.share, 0)}",
            class_="halo end" if right else "halo",
            x=at_x + (-7 if right else 7),
            y=y(0) - 10,
        ),
    ]
    return Figure(
        "coverage",
        "What a sequence length covers",
        f"Share of conversations no longer than a length: half up to {facts.p50:,} tokens, 90% up to {facts.p90:,}, "
        f"{numbers.percent(covering.share, 0)} up to {covering.length:,}.",
        f"{covering.rounded:,}, the next multiple of 64, covers {numbers.percent(covering.rounded_share)}."
        + (" The longest hundredth is not drawn." if end < facts.max else ""),
        WIDE.height,
        Markup("").join(parts),
    )


def turns_figure(facts: TurnFacts) -> Figure:
    """Return how many turns the conversations have."""
    return _columns(
        "turns",
        "Turns of a conversation",
        [(count.turns, count.rows) for count in facts.counts],
        "turns",
        "conversations",
        f"User, assistant and tool turns; {numbers.fixed(facts.mean, 2)} on average, at most {facts.max:,}.",
    )


def clusters_figure(facts: ClusterFacts) -> Figure | None:
    """Return how large the clusters of near-duplicates are."""
    if not facts.sizes:
        return None
    return _columns(
        "clusters",
        "Sizes of the clusters",
        [(size.size, size.clusters) for size in facts.sizes],
        "rows of a cluster",
        "clusters",
        f"{facts.clusters:,} clusters of {facts.rows:,} rows in all.",
    )


def _columns(
    name: str, title: str, counts: Sequence[tuple[int, int]], x_label: str, y_label: str, caption: str
) -> Figure:
    """Return one bar for each whole number; numbers from the last bar on share it."""
    first = counts[0][0]
    last = min(counts[-1][0], first + MOST_COLUMNS - 1)
    heights = dict.fromkeys(range(first, last + 1), 0)
    for number, count in counts:
        heights[min(number, last)] += count
    beyond = counts[-1][0] > last
    x = Scale(first - 0.5, last + 0.5, LEFT, WIDTH - RIGHT)
    y = Scale(0, max(heights.values()) * 1.08, WIDE.height - BOTTOM, TOP - 8, whole=True)
    ticks = Scale(first - 0.5, last + 0.5, LEFT, WIDTH - RIGHT, whole=True)
    parts = [axes(ticks, y, x_label, y_label)]
    width = min((x(first + 1) - x(first)) * 0.8, 90.0)
    for number, count in heights.items():
        text = f"{number:,}{' and more' if beyond and number == last else ''} {x_label}: {count:,} {y_label}"
        parts.append(bar(x(number) - width / 2, y(count), width, y(0) - y(count), "fill s1", text))
    return Figure(
        name,
        title,
        f"{title}: " + ", ".join(f"{number:,}: {count:,}" for number, count in heights.items() if count) + ".",
        caption + (f" The last bar holds all of {last:,} and more." if beyond else ""),
        WIDE.height,
        Markup("").join(parts),
    )


def sources_figure(facts: ProfileFacts) -> Figure | None:
    """Return each source's share of the rows beside its share of the tokens."""
    shown = facts.sources[:MOST_SOURCES]
    if len(shown) < 2:
        return None
    lanes = [(part.name, part.share, part.token_share or 0.0) for part in shown]
    most = max(max(rows, amount) for _, rows, amount in lanes)
    x = Scale(0, most, 2, WIDTH - RIGHT)
    parts, top = [legend([("rows", "swatch s1"), ("tokens", "swatch s3")])], TOP
    for name, rows, amount in lanes:
        parts.append(tag("text", _short(name), class_="label strong", x=2, y=top + 12))
        text = f"{numbers.percent(rows)} of rows, {numbers.percent(amount)} of tokens"
        parts.append(tag("text", text, class_="tick end", x=WIDTH - RIGHT, y=top + 12))
        for place, (share, colour, unit) in enumerate(((rows, "s1", "rows"), (amount, "s3", "tokens"))):
            at = top + 19 + 9 * place
            parts.append(tag("rect", class_="track", x=2, y=at, width=WIDTH - RIGHT - 2, height=7))
            parts.append(bar(2, at, x(share) - 2, 7, f"fill {colour}", f"{name}: {numbers.percent(share)} of {unit}"))
        top += 50
    return Figure(
        "sources",
        "Shares of rows and of tokens",
        "Share of each source in rows and tokens. "
        + ". ".join(f"{n}: {numbers.percent(r)} of rows, {numbers.percent(a)} of tokens" for n, r, a in lanes),
        f"The {len(shown)} largest of {len(facts.sources)} sources." if len(shown) < len(facts.sources) else "",
        top,
        Markup("").join(parts),
    )


def languages_figure(facts: ProfileFacts) -> Figure | None:
    """Return the rows in each language."""
    shown = facts.languages[:MOST_SOURCES]
    if len(shown) < 2:
        return None
    x = Scale(0, max(one.share for one in shown), 2, WIDTH - RIGHT)
    parts, top = [], 14.0
    for one in shown:
        parts.append(tag("text", language_word(one.language), class_="label strong", x=2, y=top + 12))
        text = f"{numbers.count(one.rows)} ({numbers.percent(one.share)})"
        parts.append(tag("text", text, class_="tick end", x=WIDTH - RIGHT, y=top + 12))
        parts.append(tag("rect", class_="track", x=2, y=top + 19, width=WIDTH - RIGHT - 2, height=10))
        parts.append(bar(2, top + 19, max(x(one.share) - 2, 1.0), 10, "fill s1", f"{one.rows:,} rows"))
        top += 42
    return Figure(
        "languages",
        "Languages",
        "Rows in each language. " + ", ".join(f"{language_word(o.language)}: {o.rows:,}" for o in shown) + ".",
        f"The {len(shown)} most frequent of {len(facts.languages)}." if len(shown) < len(facts.languages) else "",
        top,
        Markup("").join(parts),
    )


LANGUAGE_WORDS = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "ru": "Russian",
    "zh": "Chinese",
}


def language_word(code: str) -> str:
    """Return ``English`` for ``en``; codes without a word here stay codes."""
    return LANGUAGE_WORDS.get(code, code)


def _short(text: str, limit: int = 26) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
