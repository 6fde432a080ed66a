"""What a report says of judges: who they are, what could be read of them, what order and length did to them."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.report import numbers
from posttrain.report.benchmark_records import Bias, BiasSummary, JudgeEntry, JudgeRecord
from posttrain.report.charts import Forest, Lane
from posttrain.report.figure import file_name
from posttrain.report.records import Estimate
from posttrain.report.values import Block, Cell, Number, Section, Table, Text, row
from posttrain.report.words import LANGUAGES

MANY_UNREAD = 0.1
"""A judge that leaves more than this share of its calls without a verdict is named."""
JUDGE_COLUMNS = ("Benchmark", "Judge", "Prompts", "Verdicts read", "Without a verdict", "Position bias")


def judge_rows(name: str, judge: JudgeRecord) -> tuple[tuple[Cell, ...], ...]:
    """Return a row a judge: who it is, what it was asked with, what could be read, whether its bias is known."""
    return tuple(
        (
            name,
            fingerprint(entry),
            ", ".join(digest[:12] for digest in entry.prompts) or "none",
            _read(entry),
            unread_text(entry),
            _bias_words(judge.bias.get(entry.name)),
        )
        for entry in judge.judges
    )


def judge_section(name: str, anchor: str, judge: JudgeRecord, confidence: float) -> Section:
    """Return who judged the replies to a benchmark, and how."""
    plan = [f"{key.replace('_', ' ')} {value}" for key, value in judge.plan.items() if value not in (None, "")]
    said = f"Prompts in {LANGUAGES.get(judge.language, judge.language)}."
    said += f" Asked with {', '.join(plan)}." if plan else ""
    if spent := judge.spent:
        said += f" Spent: {numbers.count(spent.get('calls'))} calls, {numbers.count(spent.get('prompt_tokens'))} tokens read and "
        said += f"{numbers.count(spent.get('completion_tokens'))} written"
        said += f", price {numbers.fixed(spent['price'], 4)}." if spent.get("price") else "."
    blocks: list[Block] = [Table("Judges", JUDGE_COLUMNS, judge_rows(name, judge)), Text(said, "aside")]
    level = numbers.confidence(confidence)
    for place, (entry, bias) in enumerate(judge.bias.items()):
        blocks.append(_bias_chart(file_name(anchor, "bias", str(place + 1)), entry, bias, level))
        blocks += _bias_tables(entry, bias)
    return Section("Judges", f"{anchor}-judges", tuple(blocks))


def fingerprint(entry: JudgeEntry) -> str:
    """``qwen3-8b (openai, http://localhost:8000/v1)``."""
    found = entry.fingerprint
    parts = [found.engine, found.endpoint, *([found.model] if found.model not in ("", entry.name) else [])]
    inside = ", ".join(part for part in parts if part)
    return f"{entry.name} ({inside})" if inside else entry.name


def reasons(numbers_by_reason: Mapping[str, int]) -> str:
    """``timeout 3, judge: parse 1``, the most frequent first."""
    ordered = sorted(numbers_by_reason.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered if number)


def unread_text(entry: JudgeEntry) -> str:
    """``parse 6; failed calls: timeout 5``: the calls without a verdict by reason."""
    calls = entry.calls
    missing = {reason: number for reason, number in calls.missing.items() if reason != "transport"}
    parts = [reasons(missing), reasons(calls.failures) and f"failed calls: {reasons(calls.failures)}"]
    if not calls.failures and calls.missing.get("transport"):
        parts.append(f"failed calls {calls.missing['transport']:,}")
    if calls.asked_again:
        parts.append(f"asked again {calls.asked_again:,}")
    return "; ".join(part for part in parts if part) or "none"


def unread_warning(name: str, entry: JudgeEntry) -> str:
    """Return what to say of a judge of which too many calls gave no verdict; nothing of others."""
    if entry.calls.unread <= MANY_UNREAD:
        return ""
    return (
        f"{name}: {numbers.percent(entry.calls.unread)} of the calls to {entry.name} gave no verdict ({unread_text(entry)}), more than "
        f"{numbers.percent(MANY_UNREAD, 0)}. What could not be judged may differ from what could: read these numbers with care."
    )


def share(estimate: Estimate | None) -> Number:
    """Return a share with its interval."""
    return Number(None) if estimate is None else Number(estimate.estimate, "share", estimate.low, estimate.high)


def _read(entry: JudgeEntry) -> str:
    calls = entry.calls
    text = f"{calls.parsed:,} of {calls.asked:,}"
    return f"{text} ({numbers.percent(calls.parsed / calls.asked)})" if calls.asked else text


def _bias_words(bias: Bias | None) -> str:
    if bias is None:
        return "not measured: no pairs"
    orders = bias.overall.orders
    if orders is None or orders.consistent is None:
        return "not measured: one order only" if orders is None else "not measured: no verdict in both orders"
    return f"both orders agree in {numbers.percent(orders.consistent.estimate)} of {orders.judged:,}"


def _bias_tables(name: str, bias: Bias) -> list[Block]:
    named = [("all", bias.overall), *(bias.by_category.items() if len(bias.by_category) > 1 else ())]
    columns: tuple[str, ...] = (
        "Questions",
        "Judged",
        "Orders agree",
        "To the first",
        "To the second",
        "Ties",
        "First shown wins",
    )
    columns += ("Longer wins", "Slope on length")
    emphasised = " (emphasised prompt)" if bias.emphasised else ""
    rows = tuple((title, *_bias_cells(one)) for title, one in named)
    blocks: list[Block] = [Table(f"Bias of {name} in numbers{emphasised}", columns, rows, folded=True).known()]
    if bias.mitigations:
        ways = (
            "Way of asking",
            "Questions",
            "Model a wins",
            "Ties",
            "First shown wins",
            "Orders agree",
            "Changed",
            "As labelled",
        )
        tried = tuple(
            row(
                one.name,
                Number(one.questions, "count"),
                *map(share, (one.win_rate_a, one.ties, one.first_shown, one.consistent, one.changed, one.accuracy)),
            )
            for one in bias.mitigations
        )
        blocks.append(Table(f"Ways of asking {name}", ways, tried, folded=True).known())
        said = (
            "The same questions under every way of asking; changed: outcomes that differ from those of the first row."
        )
        blocks.append(Text(said, "aside"))
    return blocks


def _bias_cells(one: BiasSummary) -> tuple[Cell, ...]:
    orders, slope = one.orders, one.length.slope
    by_order = (orders.consistent, orders.to_first, orders.to_second) if orders else (None, None, None)
    shares = (*by_order, one.ties, one.first_shown, one.length.longer)
    last = Number(None) if slope is None else Number(slope.estimate, low=slope.low, high=slope.high, digits=2)
    return (Number(one.judged, "count"), *map(share, shares), last)


def _bias_chart(name: str, judge: str, bias: Bias, level: str) -> Forest:
    """Return what order and length did to a judge."""
    one, orders = bias.overall, bias.overall.orders
    found: list[tuple[str, Estimate | None, str]] = []
    if orders is not None:
        found += [
            ("Both orders agree", orders.consistent, "s3"),
            ("The first shown wins both", orders.to_first, "s2"),
            ("The second shown wins both", orders.to_second, "s2"),
            ("A tie in one order only", orders.half_tie, "s0"),
        ]
    found += [
        ("Ties", one.ties, "s0"),
        ("Games the first shown wins", one.first_shown, "s4"),
        ("Decisions the longer reply wins", one.length.longer, "s4"),
    ]
    lanes = []
    for title, value, kind in found:
        if value is not None:
            cell = share(value)
            ends = (100 * value.estimate, 100 * value.low, 100 * value.high)
            lanes.append(Lane(title, *ends, f"{cell.text} ({cell.interval})", kind))
    return Forest(
        name=name,
        title=f"Bias of {judge}",
        lanes=tuple(lanes),
        unit="percent",
        line=50.0,
        span=(0.0, 100.0),
        caption=f"{level} intervals. Dashed: one half, where the last lines stand for a judge that minds neither order nor length; longer "
        "replies may also be better.",
    )
