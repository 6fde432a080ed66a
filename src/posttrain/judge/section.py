"""What a report says of judges: who they are, what could be read, and what order and length did to them."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.artifacts import plain
from posttrain.generate.cost import by_server
from posttrain.judge.bias import BiasReport, BiasSummary
from posttrain.judge.calibrate import JudgeCalibration, RatingCalibration
from posttrain.judge.pool import MANY_UNREAD, Calls, JudgeEntry, JudgeRecord
from posttrain.judge.summary import JudgeSummary, MeanRating
from posttrain.report import numbers
from posttrain.report.charts import Forest, Lane
from posttrain.report.figure import file_name
from posttrain.report.values import Block, Cell, Number, Section, Table, Text, Unit, table_of
from posttrain.report.words import LANGUAGES, plural, reasons
from posttrain.stats.intervals import Interval


def share(interval: Interval | None, *, bare: bool = False) -> Number | None:
    """A share with its interval; ``bare``: without."""
    return _number(interval, "share", bare=bare)


def _number(
    interval: Interval | None, unit: Unit = "number", digits: int | None = None, *, bare: bool = False
) -> Number | None:
    if interval is None or interval.estimate is None or interval.estimate != interval.estimate:
        return None
    low, high = (None, None) if bare else (interval.low, interval.high)
    return Number(interval.estimate, unit, low, high, digits)


# ---- of any judges -------------------------------------------------------------------------------------------------


def judges_table(name: str, record: JudgeRecord) -> Table:
    """One row a judge: who it is, what it was asked with, what could be read, whether its bias is known."""
    return table_of(
        "Judges",
        record.judges,
        ("Benchmark", lambda _: name),
        ("Judge", fingerprint),
        ("Prompts", lambda entry: ", ".join(digest[:12] for digest in entry.prompts) or "none"),
        ("Verdicts read", lambda entry: read_text(entry.calls)),
        ("Without a verdict", lambda entry: unread_text(entry.calls)),
        ("Position bias", lambda entry: bias_words(record.bias.get(entry.name))),
    )


def fingerprint(entry: JudgeEntry) -> str:
    """``qwen3-8b (openai, http://localhost:8000/v1)``."""
    found = entry.fingerprint
    parts = [found.engine, found.endpoint, *([found.model] if found.model not in ("", entry.name) else [])]
    inside = ", ".join(part for part in parts if part)
    return f"{entry.name} ({inside})" if inside else entry.name


def read_text(calls: Calls) -> str:
    """``312 of 320 (97.5%)``."""
    text = f"{calls.parsed:,} of {calls.asked:,}"
    return f"{text} ({numbers.percent(calls.parsed / calls.asked)})" if calls.asked else text


def unread_text(calls: Calls) -> str:
    """``parse 6; failed calls: timeout 5``: the calls without a verdict by reason."""
    missing: dict[str, int] = {reason: number for reason, number in calls.missing.items() if reason != "transport"}
    parts = [reasons(missing), reasons(calls.failures) and f"failed calls: {reasons(calls.failures)}"]
    if not calls.failures and calls.missing.get("transport"):
        parts.append(f"failed calls {calls.missing['transport']:,}")
    if calls.asked_again:
        parts.append(f"asked again {calls.asked_again:,}")
    return "; ".join(part for part in parts if part) or "none"


def bias_words(bias: BiasReport | None) -> str:
    """``both orders agree in 71.3% of 80``, or why it is not known."""
    if bias is None:
        return "not measured: no pairs"
    orders = bias.overall.orders
    if orders is None or orders.consistent is None:
        return "not measured: one order only" if orders is None else "not measured: no verdict in both orders"
    return f"both orders agree in {numbers.percent(orders.consistent.estimate)} of {orders.judged:,}"


def judge_section(record: JudgeRecord, name: str, prefix: str, confidence: float) -> Section:
    """The judges of one measurement. ``prefix``: of anchors and charts."""
    plan = [f"{k.replace('_', ' ')} {v}" for k, v in plain(record.plan).items() if v not in (None, "")]
    text = f"Prompts in {LANGUAGES[record.language]}. Asked with {', '.join(plan)}."
    if spent := record.spent:
        price = f", price {numbers.fixed(spent.price, 4)}" if spent.price else ""
        tokens = f"{spent.prompt_tokens:,} tokens read and {spent.completion_tokens:,} written"
        answers = f" Answers: {by_server(spent.servers)}." if spent.servers else ""
        text += f" Spent: {spent.calls:,} calls, {tokens}{price}.{answers}"
    blocks: list[Block] = [judges_table(name, record), Text(text, "aside")]
    for place, (judge, bias) in enumerate(record.bias.items()):
        chart = bias_chart(bias, judge, file_name(prefix, "bias", str(place + 1)), confidence)
        if chart.lanes:
            blocks.append(chart)
        blocks.append(bias_section(bias, judge, f"{prefix}-bias-{place + 1}"))
    return Section("Judges", f"{prefix}-judges", tuple(blocks))


# ---- bias ----------------------------------------------------------------------------------------------------------


def bias_chart(bias: BiasReport, judge: str, name: str, confidence: float) -> Forest:
    """What order and length did to a judge."""
    one = bias.overall
    consistent, to_first, to_second, half_tie = _order_shares(one)
    rows = [
        ("Both orders agree", consistent, "s3"),
        ("The first shown wins both", to_first, "s2"),
        ("The second shown wins both", to_second, "s2"),
        ("A tie in one order only", half_tie, "s0"),
        ("Ties", one.ties, "s0"),
        ("Judgments the first shown wins", one.first_shown, "s4"),
        ("Decisions the longer reply wins", one.length.longer, "s4"),
    ]
    lanes = [
        Lane(text, 100 * found.estimate, 100 * found.low, 100 * found.high, interval_text(found), color)
        for text, found, color in rows
        if found is not None
    ]
    caption = (
        f"{numbers.confidence(confidence)} intervals. Dashed: one half, where the last lines stand for a judge that minds neither order nor "
        "length; longer replies may also be better."
    )
    return Forest(
        name=name,
        title=f"Bias of {judge}",
        lanes=tuple(lanes),
        unit="percent",
        line=50.0,
        span=(0.0, 100.0),
        caption=caption,
    )


def interval_text(interval: Interval) -> str:
    """``62.5% (51.2% to 72.6%)``."""
    ends = numbers.interval_in_unit(interval.low, interval.high, "share")
    return f"{numbers.percent(interval.estimate)} ({ends})"


def bias_section(bias: BiasReport, judge: str, anchor: str) -> Section:
    """The bias of a judge in numbers: all questions, every category, every way of asking."""
    named = [("all", bias.overall), *(bias.by_category.items() if len(bias.by_category) > 1 else ())]
    table = table_of(
        f"Bias of {judge}",
        named,
        ("Questions", lambda one: one[0]),
        ("Judged", lambda one: Number(one[1].judged, "count")),
        ("Orders agree", lambda one: share(_order_shares(one[1])[0])),
        ("To the first", lambda one: share(_order_shares(one[1])[1])),
        ("To the second", lambda one: share(_order_shares(one[1])[2])),
        ("Ties", lambda one: share(one[1].ties)),
        ("First shown wins", lambda one: share(one[1].first_shown)),
        ("Longer wins", lambda one: share(one[1].length.longer)),
        ("p of an even split", lambda one: Number(one[1].length.p_value, "p") if one[1].length.decided else None),
        ("Slope on length", lambda one: _number(one[1].length.slope, digits=2)),
        ("Without an outcome", lambda one: Number(one[1].dropped, "count")),
    )
    blocks: list[Block] = [table.known()]
    if bias.mitigations:
        ways = table_of(
            f"Ways of asking {judge}",
            bias.mitigations,
            ("Asked", lambda one: one.name),
            ("Questions", lambda one: Number(one.questions, "count")),
            ("Model a wins", lambda one: share(one.win_rate_a)),
            ("Ties", lambda one: share(one.ties)),
            ("First shown wins", lambda one: share(one.first_shown)),
            ("Orders agree", lambda one: share(one.consistent)),
            ("Changed", lambda one: share(one.changed)),
            ("As labelled", lambda one: share(one.accuracy)),
        )
        what = (
            "The same questions under every way of asking; changed: outcomes that differ from those of the first row."
        )
        blocks += [ways.known(), Text(what, "aside")]
    title = f"Bias of {judge} in numbers" + (" (emphasised prompt)" if bias.emphasised else "")
    return Section(title, anchor, tuple(blocks), folded=True)


def _order_shares(one: BiasSummary) -> tuple[Interval | None, ...]:
    orders = one.orders
    return (orders.consistent, orders.to_first, orders.to_second, orders.half_tie) if orders else (None,) * 4


# ---- posttrain judge -----------------------------------------------------------------------------------------------


def summary_section(summary: JudgeSummary) -> Section:
    """What ``posttrain judge`` found, from summary.json."""
    level = numbers.confidence(summary.confidence)
    blocks: list[Block] = [*_head(summary)]
    if summary.scale and summary.ratings:
        blocks.append(_ratings(summary, *summary.scale, level))
    if summary.win_rates:
        blocks.append(_win_rates(summary, level))
    if (panel := summary.panel) is not None:
        alpha = _number(panel.krippendorff_alpha, digits=2)
        text = (
            f"Panel: {panel.unanimous} of {panel.questions} questions unanimous, {panel.missing} without a verdict, "
            f"Krippendorff's alpha {f'{alpha.text} ({alpha.interval})' if alpha else numbers.NOTHING}."
        )
        blocks.append(Text(text))
    for name, found in summary.calibration.items():
        blocks += _calibration(name, found)
    for name, report in summary.bias.items():
        blocks += bias_section(report, name, f"bias-{file_name(name)}").blocks
    return Section(f"{summary.file}: {summary.items} items, {summary.questions} questions", "judged", tuple(blocks))


def _head(summary: JudgeSummary) -> Iterator[Block]:
    if bad := summary.bad_lines.count:
        first = summary.bad_lines.first[0]
        yield Text(f"! lines left out: {bad}; the first: {first.place}: {first.problem}", "aside")
    if absent := summary.references.needed_but_absent:
        yield Text(
            f"! {plural(absent, 'question')} on maths, reasoning or coding judged without a reference answer", "aside"
        )
    for judge in summary.judges:
        calls = judge.calls
        cached = f"; {calls.cached:,} from the cache" if calls.cached else ""
        yield Text(
            f"Judge {judge.name}: {read_text(calls)} calls have a verdict; without: {unread_text(calls)}{cached}"
        )
        if calls.unread > MANY_UNREAD:
            yield Text(f"! {calls.unread:.0%} of the calls have no verdict", "aside")
    if (spent := summary.spent) is not None:
        money = f", {spent.counted_price:.4g} counted" if spent.counted_price else ""
        tokens = f"{spent.prompt_tokens:,} tokens read, {spent.completion_tokens:,} written"
        answers = f"; answers: {by_server(spent.servers)}" if spent.servers else ""
        yield Text(f"Spent: {spent.calls} calls sent, {tokens}{money}{answers}", "aside")


def _win_rates(summary: JudgeSummary, level: str) -> Table:
    named = [("", one) for one in summary.win_rates]
    named += [(f"{category}: ", one) for category, found in summary.win_rates_by_category.items() for one in found]
    return table_of(
        f"Win rates ({level} intervals)",
        named,
        ("", lambda pair: f"{pair[0]}{pair[1].model_a} against {pair[1].model_b}"),
        ("Won", lambda pair: Number(pair[1].wins, "count")),
        ("Lost", lambda pair: Number(pair[1].losses, "count")),
        ("Tied", lambda pair: Number(pair[1].ties, "count")),
        ("None", lambda pair: Number(pair[1].missing, "count")),
        ("W/n", lambda pair: share(pair[1].win_rate, bare=True)),
        ("(W+T/2)/n", lambda pair: share(pair[1].adjusted)),
        ("Sign test", lambda pair: Number(pair[1].p_value, "p")),
    )


def _ratings(summary: JudgeSummary, low: float, high: float, level: str) -> Table:
    named: list[tuple[str, MeanRating]] = []
    for model, found in summary.ratings.items():
        named.append((model, found.overall))
        named += [(f"  turn {turn}", one) for turn, one in found.by_turn.items() if len(found.by_turn) > 1]
        named += [(f"  {category}", one) for category, one in found.by_category.items()]
    return table_of(
        f"Mean ratings from {low:g} to {high:g} ({level} intervals)",
        named,
        ("", lambda one: one[0]),
        ("Mean", lambda one: _number(one[1].mean, "rating")),
        ("Parsed", lambda one: Number(one[1].calls.parsed, "count")),
        ("Asked", lambda one: Number(one[1].calls.asked, "count")),
    )


def _calibration(name: str, found: JudgeCalibration | RatingCalibration) -> Iterator[Block]:
    rows: tuple[tuple[Cell, ...], ...]
    if isinstance(found, RatingCalibration):
        title = f"{name} against people's ratings of {found.replies} replies, {found.rated} of them rated by it"
        rows = (
            ("Rank correlation (Spearman)", _number(found.spearman, digits=2)),
            ("Correlation (Pearson)", _number(found.pearson, digits=2)),
            ("Quadratic kappa", _number(found.kappa, digits=2)),
            ("Points off on average", _number(found.error, digits=2)),
            ("Points off, of a constant answer", Number(found.constant_error, digits=2)),
            ("Milder than people by", _number(found.shift, digits=2)),
            ("Less than half a point off", share(found.exact)),
            ("At most one point off", share(found.within_one)),
        )
    else:
        title = f"{name} against the labels of {found.pairs} pairs"
        rows = (
            ("Accuracy, both orders agree", share(found.measured.both_orders)),
            ("Accuracy, one order", share(found.measured.one_order)),
            ("Accuracy of a constant answer", Number(found.chance, "share")),
            ("Cohen's kappa", _number(found.measured.kappa, digits=2)),
            ("Consistency", share(found.measured.orders.consistent)),
        )
    yield Table(title, ("", "Estimate and interval"), rows)
    yield Text(f"{name}: {found.decision}", "lead")
    for reason in found.reasons:
        yield Text(f"  {reason}")
