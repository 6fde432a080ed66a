"""The tables of benchmarks as text, one cell a string: the page and the Markdown show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.report import numbers
from posttrain.report.benchmark_records import Bias, BiasSummary, JudgeEntry, JudgeRecord, Measure, Result
from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.numbers import NOTHING
from posttrain.report.preference_tables import Table
from posttrain.report.records import Estimate
from posttrain.report.verdicts import Verdict
from posttrain.report.words import counted

ARROWS = {
    "higher": "\N{NO-BREAK SPACE}\N{UPWARDS ARROW}",
    "lower": "\N{NO-BREAK SPACE}\N{DOWNWARDS ARROW}",
    "neither": "",
}


def measure_name(measure: Measure) -> str:
    """``Mean rating`` with an arrow that says which way is better."""
    return f"{measure.label}{ARROWS[measure.better]}"


def results_table(facts: BenchmarkFacts) -> Table:
    """Return one row a measure, one column a model, and how many prompts are behind it."""
    models = facts.record.models
    rows = [
        [
            measure_name(measure),
            *(_result(facts, facts.results.get((model, measure.key, None)), measure) for model in models),
            counted(facts.prompts(measure.key), "prompt"),
        ]
        for measure in facts.measures
    ]
    return ["Measure", *models, "Measured on"], rows


def category_tables(facts: BenchmarkFacts) -> list[tuple[Measure, Table]]:
    """Return for each measure with two categories or more: one row a category, one column a model."""
    models, found = facts.record.models, []
    for measure in facts.measures:
        categories = facts.categories(measure.key)
        if len(categories) < 2:
            continue
        rows = [
            [
                category,
                *(_result(facts, facts.results.get((model, measure.key, category)), measure) for model in models),
                counted(facts.prompts(measure.key, category), "prompt"),
            ]
            for category in categories
        ]
        found.append((measure, (["Category", *models, "Measured on"], rows)))
    return found


def _result(facts: BenchmarkFacts, result: Result | None, measure: Measure) -> str:
    if result is None or result.estimate is None:
        return NOTHING
    text = numbers.in_unit(result.estimate, measure.unit)
    if facts.by_definition(result):
        return f"{text} by definition"
    interval = numbers.interval_in_unit(result.low, result.high, measure.unit)
    return f"{text} ({interval})" if interval else text


def measure_differences(facts: BenchmarkFacts) -> list[tuple[list[str], Verdict]]:
    """Return measure, comparison, difference, interval, p-value, Holm's, smallest detectable, prompts; and the verdict."""
    rows = []
    for one in facts.differences:
        record, unit = one.record, one.measure.unit
        cells = [
            measure_name(one.measure),
            f"{record.b} minus {record.a}",
            numbers.difference_in_unit(record.difference, unit),
            numbers.signed_interval_in_unit(record.low, record.high, unit),
            numbers.p_value(record.p_value),
            numbers.p_value(record.adjusted_p),
            NOTHING if record.detectable is None else numbers.difference_in_unit(record.detectable, unit).lstrip("+"),
            numbers.count(record.prompts),
        ]
        rows.append((cells, one.verdict))
    return rows


def contest_rows(facts: BenchmarkFacts) -> list[tuple[list[str], Verdict]]:
    """Return comparison, won, tied, lost, without a verdict, win rate, p-value, Holm's; and the verdict."""
    return [
        (
            [
                f"{one.model} against {one.against}",
                numbers.count(one.wins),
                numbers.count(one.ties),
                numbers.count(one.losses),
                numbers.count(one.missing),
                share(one.rate),
                numbers.p_value(one.p_value),
                numbers.p_value(one.adjusted_p),
            ],
            one.verdict,
        )
        for one in facts.contests
    ]


def account_table(facts: BenchmarkFacts) -> Table:
    """Return what became of every model's answers, how long they are, and what they took; columns without a number are left out."""
    header = ["Model", "Asked", "Answered", "Measured", "Without a value", "Tokens a reply", "P50", "P95", "Characters"]
    header += ["Cut at the limit", "Tokens read", "Tokens written", "Time"]
    rows = []
    for model in facts.record.models:
        account, length = facts.record.accounting.get(model), facts.record.replies.get(model)
        cost = facts.record.cost.get(model)
        counts = [NOTHING] * 4
        if account is not None:
            counts = [numbers.count(n) for n in (account.asked, account.answered, account.measured)]
            counts.append(reasons(account.dropped) or "none")
        lengths = [NOTHING] * 5
        if length is not None:
            lengths = [numbers.fixed(length.tokens_mean, 1), numbers.count(length.tokens_p50)]
            lengths += [numbers.count(length.tokens_p95), numbers.count(length.characters_mean), f"{length.cut:,}"]
        costs = [NOTHING] * 3
        if cost is not None:
            costs = [numbers.count(cost.prompt_tokens), numbers.count(cost.completion_tokens)]
            costs.append(numbers.short_duration(cost.seconds))
        rows.append([model, *counts, *lengths, *costs])
    return _known_columns(header, rows)


def reasons(numbers_by_reason: Mapping[str, int]) -> str:
    """``timeout 3, judge: parse 1``, the most frequent first."""
    ordered = sorted(numbers_by_reason.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered if number)


def ratings_table(facts: BenchmarkFacts) -> Table:
    """Return rank, model and rating with its interval."""
    ratings = facts.record.ratings
    rows = [] if ratings is None else sorted(ratings.rows, key=lambda one: -one.rating)
    cells = [[one.model, numbers.count(one.rank), rating_text(one.rating, one.low, one.high)] for one in rows]
    return ["Model", "Rank", "Rating, points"], cells


def rating_text(rating: float, low: float | None, high: float | None) -> str:
    """``1,042 (1,020 to 1,064)``."""
    text = numbers.fixed(rating, 0)
    return text if low is None or high is None else f"{text} ({numbers.fixed(low, 0)} to {numbers.fixed(high, 0)})"


def length_controlled_table(facts: BenchmarkFacts) -> Table:
    """Return AlpacaEval's win rates, in percent as it publishes them."""
    found = facts.record.length_controlled
    header = ["Model", "Win rate", "Standard error", "Discrete", "At equal length", "Prompts"]
    rows = []
    for row in found.rows if found else ():
        equal = numbers.fixed(row.length_controlled, 1)
        if row.low is not None and row.high is not None:
            equal += f" ({numbers.fixed(row.low, 1)} to {numbers.fixed(row.high, 1)})"
        values = [numbers.fixed(value, 2) for value in (row.win_rate, row.standard_error, row.discrete)]
        rows.append([row.model, *values, equal, numbers.count(row.n)])
    return header, rows


# ---- judges --------------------------------------------------------------------------------------------------------


def judges_table(benchmarks: Sequence[BenchmarkFacts]) -> Table:
    """Return one row a benchmark and judge: who it is, what it was asked with, what could be read, whether its bias is known."""
    header = ["Benchmark", "Judge", "Prompts", "Verdicts read", "Without a verdict", "Position bias"]
    rows = []
    for facts in benchmarks:
        judge = facts.record.judge
        for entry in judge.judges if judge else ():
            digests = ", ".join(digest[:12] for digest in entry.prompts) or "none"
            bias = judge.bias.get(entry.name) if judge else None
            rows.append(
                [facts.name, fingerprint(entry), digests, read_text(entry), unread_text(entry), bias_words(bias)]
            )
    return header, rows


def fingerprint(entry: JudgeEntry) -> str:
    """``qwen3-8b (openai, http://localhost:8000/v1)``."""
    found = entry.fingerprint
    parts = [found.engine, found.endpoint, *([found.model] if found.model not in ("", entry.name) else [])]
    inside = ", ".join(part for part in parts if part)
    return f"{entry.name} ({inside})" if inside else entry.name


def read_text(entry: JudgeEntry) -> str:
    """``312 of 320 (97.5%)``."""
    calls = entry.calls
    text = f"{calls.parsed:,} of {calls.asked:,}"
    return f"{text} ({numbers.percent(calls.parsed / calls.asked)})" if calls.asked else text


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


def plan_text(judge: JudgeRecord) -> str:
    """``Asked with orders both, samples 1, emphasis no.``: what the plan says, without what it leaves open."""
    said = [f"{key.replace('_', ' ')} {value}" for key, value in judge.plan.items() if value not in (None, "")]
    return f"Asked with {', '.join(said)}." if said else ""


def bias_words(bias: Bias | None) -> str:
    """``both orders agree in 71.3% of 80``, or why it is not known."""
    if bias is None:
        return "not measured: no pairs"
    orders = bias.overall.orders
    if orders is None or orders.consistent is None:
        return "not measured: one order only" if orders is None else "not measured: no verdict in both orders"
    return f"both orders agree in {numbers.percent(orders.consistent.estimate)} of {orders.judged:,}"


def share(estimate: Estimate | None) -> str:
    """``62.5% (51.2% to 72.6%)``."""
    if estimate is None:
        return NOTHING
    return f"{numbers.percent(estimate.estimate)} ({numbers.interval_in_unit(estimate.low, estimate.high, 'share')})"


def bias_table(bias: Bias) -> Table:
    """Return all questions and every category: what order and length did to the judge."""
    header = ["Questions", "Judged", "Orders agree", "To the first", "To the second", "Ties", "First shown wins"]
    header += ["Longer wins", "Slope on length"]
    named = [("all", bias.overall), *(bias.by_category.items() if len(bias.by_category) > 1 else ())]
    rows = [[name, *_bias_cells(one)] for name, one in named]
    return _known_columns(header, rows)


def _bias_cells(one: BiasSummary) -> list[str]:
    orders, slope = one.orders, one.length.slope
    return [
        numbers.count(one.judged),
        *(
            share(value)
            for value in ((orders.consistent, orders.to_first, orders.to_second) if orders else (None,) * 3)
        ),
        share(one.ties),
        share(one.first_shown),
        share(one.length.longer),
        NOTHING
        if slope is None
        else f"{numbers.fixed(slope.estimate, 2)} ({numbers.fixed(slope.low, 2)} to {numbers.fixed(slope.high, 2)})",
    ]


def mitigations_table(bias: Bias) -> Table:
    """Return every way of asking that was tried, on the same questions; columns without a number are left out."""
    header = [
        "Asked",
        "Questions",
        "Model a wins",
        "Ties",
        "First shown wins",
        "Orders agree",
        "Changed",
        "As labelled",
    ]
    rows = []
    for one in bias.mitigations:
        shares = (one.win_rate_a, one.ties, one.first_shown, one.consistent, one.changed, one.accuracy)
        rows.append([one.name, numbers.count(one.questions), *map(share, shares)])
    return _known_columns(header, rows)


def _known_columns(header: list[str], rows: list[list[str]]) -> Table:
    """Leave out the columns, other than the first, that have no number in any row."""
    kept = [place for place in range(len(header)) if place == 0 or any(row[place] != NOTHING for row in rows)]
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]
