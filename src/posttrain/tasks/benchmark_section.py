"""What a report says of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from posttrain.judge.section import fingerprint, judge_section, reasons, share, unread_warning
from posttrain.report import numbers
from posttrain.report.benchmark_records import Measure, Result
from posttrain.report.benchmarks import BenchmarkFacts, Contest, MeasureDifference
from posttrain.report.charts import Chart, Forest, Lane, Plane, Radar, Spot, color, radar_range
from posttrain.report.evidence import bounded, evidence
from posttrain.report.figure import file_name
from posttrain.report.values import (
    Block,
    Cell,
    Facts,
    Finding,
    Headline,
    Label,
    Line,
    Mark,
    Matrix,
    Notice,
    Number,
    Records,
    Section,
    Table,
    Text,
    row,
)
from posttrain.report.verdicts import Verdict
from posttrain.report.words import FEW_ROWS, counted, join, plural

AREAS = {
    "helpfulness": "Helpfulness",
    "instructions": "Following instructions",
    "reasoning": "Reasoning",
    "safety": "Safety, both ways",
    "diversity": "Diversity",
}
"""Areas of benchmarks in their order; others come after these under their own name."""
FEWEST_SPOKES, MOST_SPOKES = 3, 14
CLAIMS: tuple[Verdict, ...] = ("improved", "worse", "differs")
ARROW = " \N{RIGHTWARDS ARROW} "


def area_title(area: str) -> str:
    """Return what an area of benchmarks is called."""
    return AREAS.get(area, area.capitalize())


def benchmark_section(facts: BenchmarkFacts, models: Sequence[str], *, several: bool) -> Section:
    """Return all of a benchmark. ``models``: those of the eval stage, the last one is what the headline is about."""
    record = facts.record
    anchor = f"benchmark-{file_name(facts.stage, record.key)}"
    name = f"{facts.name}, {facts.stage}" if several else facts.name
    blocks: list[Block] = [Text(_about(facts))]
    if record.notes:
        blocks.append(Notice("fact", "Worth knowing", record.notes))
    blocks += [_results(facts), *_charts(facts)]
    terms = tuple((measure.label, measure.about) for measure in facts.measures if measure.about)
    blocks += [Facts(terms, terms=True)] if terms else []
    if facts.differences:
        blocks += [_differences(facts), Text(_ABOUT_DIFFERENCES, "aside")]
    if facts.contests:
        blocks.append(_contests(facts))
    blocks += _ratings(facts)
    blocks += _length_controlled(facts)
    blocks += _categories(facts)
    blocks.append(_account(facts))
    warnings: list[str] = []
    if record.judge:
        blocks.append(judge_section(facts.name, anchor, record.judge, record.confidence))
        warnings = [text for entry in record.judge.judges if (text := unread_warning(facts.name, entry))]
    if facts.rows:
        blocks.append(Text(f"All replies stand in {facts.rows_file}.", "aside"))
    blocks.append(Records("benchmark", _record(facts)))
    headline = _headline(facts, models[-1])
    shown = sum(one.verdict != "not shown" for one in facts.differences)
    compared = f", {shown} of {plural(len(facts.differences), 'difference')} shown" if facts.differences else ""
    lines = [_line(facts, measure, name) for measure in facts.headlines]
    return Section(
        facts.name,
        anchor,
        tuple(blocks),
        folded=True,
        gist=f"{plural(record.source.prompts, 'prompt')}{compared}",
        headlines=() if headline is None else (headline,),
        findings=(*_findings(facts), *(Finding(facts.stage, "Warning", None, text) for text in warnings)),
        lines=(*lines, *([line] if (line := length_line(facts, name)) else [])),
    )


def _record(facts: BenchmarkFacts) -> dict[str, Any]:
    """Return the content of the benchmark's file, with a verdict in each difference and the win rates as the page shows them."""
    return {
        "stage": facts.stage,
        "name": facts.name,
        **asdict(facts.record),
        "differences": [{**asdict(one.record), "verdict": one.verdict} for one in facts.differences],
        "win_rates": facts.contests,
    }


def _about(facts: BenchmarkFacts) -> str:
    """Return what was asked, of whom, and from which file: ``Helpfulness: 80 prompts from question.jsonl (sha256 ...)``."""
    record, source = facts.record, facts.record.source
    own = source.path in (None, "builtin")
    place = "posttrain's own set" if own else str(source.path).replace("\\", "/").rpartition("/")[2]
    inside = f" (sha256 {source.digest[:12]})" if source.digest else ""
    text = f"{area_title(record.area)}: {plural(source.prompts, 'prompt')} from {place}{inside}, answered by {join(record.models)}."
    if len(record.models) > 1:
        text += f" {record.baseline} is the baseline."
    judges = [fingerprint(entry) for entry in record.judge.judges] if record.judge else []
    text += f" Judged by {join(judges)}." if judges else ""
    return text + (f" In the recipe: {record.key}." if facts.key_says_more else "")


# ---- numbers of a model --------------------------------------------------------------------------------------------


def _number(facts: BenchmarkFacts, measure: Measure, model: str, category: str | None = None) -> Number | None:
    result = facts.results.get((model, measure.key, category))
    if result is None or result.estimate is None:
        return None
    if facts.by_definition(result):
        return Number(result.estimate, measure.unit, note="by definition")  # type: ignore[arg-type]
    return Number(result.estimate, measure.unit, result.low, result.high)  # type: ignore[arg-type]


def _results(facts: BenchmarkFacts) -> Table:
    models = facts.record.models
    rows = tuple(
        (
            Label(measure.label, better=measure.better),
            *(_number(facts, measure, model) for model in models),
            counted(facts.prompts(measure.key), "prompt"),
        )
        for measure in facts.measures
    )
    return Table(f"Results of {facts.name}", ("Measure", *models, "Measured on"), rows)


def _categories(facts: BenchmarkFacts) -> list[Block]:
    models, found = facts.record.models, list[Block]()
    for measure in facts.measures:
        categories = facts.categories(measure.key)
        if len(categories) > 1:
            rows = tuple(
                (
                    category,
                    *(_number(facts, measure, model, category) for model in models),
                    counted(facts.prompts(measure.key, category), "prompt"),
                )
                for category in categories
            )
            found.append(Table(f"{measure.label} by category", ("Category", *models, "Measured on"), rows, folded=True))
    return found


def _line(facts: BenchmarkFacts, measure: Measure, name: str) -> Line:
    cells = {}
    for model in facts.record.models:
        number = _number(facts, measure, model)
        if number is not None:
            cells[model] = (
                number if number.note else replace(number, verdict=facts.against_baseline(model, measure.key))
            )
    note = ", ".join(part for part in (name, counted(facts.prompts(measure.key), "prompt")) if part)
    label = Label(measure.label, note, measure.better)
    return Line(area_title(facts.record.area), label, cells, facts.record.baseline)


def length_line(facts: BenchmarkFacts, name: str) -> Line | None:
    """Return how long the replies are; None where that is not known."""
    lengths = facts.record.replies
    in_tokens = any(one.tokens_mean is not None for one in lengths.values())
    values = {model: one.tokens_mean if in_tokens else one.characters_mean for model, one in lengths.items()}
    if all(value is None for value in values.values()):
        return None
    cells = {
        model: Number(value, "tokens", note=f"{cut:,} cut" if (cut := lengths[model].cut) else "")
        for model, value in values.items()
    }
    answers = counted((one.answered for one in facts.record.accounting.values()), "answer")
    note = f"{'tokens' if in_tokens else 'characters'} a reply, {answers}"
    return Line("Length of replies", Label(name, note), cells)


def cost_lines(benchmarks: Sequence[BenchmarkFacts], models: Sequence[str], *, several: bool) -> tuple[Line, ...]:
    """Return sums over all benchmarks of a stage; of a model for which one of them is not known there is no sum."""
    costs = {m: [b.record.cost[m] for b in benchmarks if m in b.record.cost] for m in models}
    lines = []
    note = f"all benchmarks of {benchmarks[0].stage} together" if several else "all benchmarks together"
    for label, field, unit in (
        ("Tokens read", "prompt_tokens", "count"),
        ("Tokens written", "completion_tokens", "count"),
        ("Time of the replies", "seconds", "seconds"),
    ):
        cells = {}
        for model, own in costs.items():
            values = [getattr(cost, field) for cost in own]
            if values and None not in values:
                cells[model] = Number(sum(values), unit)  # type: ignore[arg-type]
        if cells:
            lines.append(Line("Cost of the benchmarks", Label(label, note), cells))
    return tuple(lines)


# ---- differences ---------------------------------------------------------------------------------------------------

_ABOUT_DIFFERENCES = (
    "On the prompts that both models have a value for. The interval resamples whole prompts; the test is McNemar's exact one where every "
    "prompt has one yes or no, otherwise it swaps the models' names prompt by prompt. Adjusted: Holm's method, over the headline measures "
    "together and over the others together; a difference counts where the interval excludes zero and the adjusted p-value is small enough. "
    "Benchmarks are not adjusted for one another. Detectable: the true difference that as many prompts would have shown four times of five."
)


def _difference(one: MeasureDifference) -> Number:
    return bounded(
        one.record.difference, one.record.low, one.record.high, one.measure.unit, one.record.prompts, "prompt"
    )


def _differences(facts: BenchmarkFacts) -> Table:
    rows = []
    for one in facts.differences:
        record, unit = one.record, one.measure.unit
        detectable = (
            None if record.detectable is None else numbers.difference_in_unit(record.detectable, unit).lstrip("+")
        )
        rows.append(
            (
                one.measure.label,
                f"{record.b} minus {record.a}",
                _difference(one),
                Number(record.p_value, "p"),
                Number(record.adjusted_p, "p"),
                detectable,
                Number(record.prompts, "count"),
                Mark(one.verdict),
            )
        )
    columns = ("Measure", "Comparison", "Difference", "Test", "Adjusted", "Detectable", "n", "Verdict")
    return Table(
        f"Differences on {facts.name}, {numbers.confidence(facts.record.confidence)} intervals", columns, tuple(rows)
    )


def _contests(facts: BenchmarkFacts) -> Table:
    rows = tuple(
        row(
            f"{one.model} against {one.against}",
            *(Number(count, "count") for count in (one.wins, one.ties, one.losses, one.missing)),
            share(one.rate),
            Number(one.p_value, "p"),
            Number(one.adjusted_p, "p"),
            Mark(one.verdict),
        )
        for one in facts.contests
    )
    columns = (
        "Comparison",
        "Won",
        "Tied",
        "Lost",
        "No verdict",
        "Win rate, ties half",
        "Sign test",
        "Adjusted",
        "Verdict",
    )
    return Table(f"Model against model on {facts.name}", columns, rows)


def _ratings(facts: BenchmarkFacts) -> list[Block]:
    ratings = facts.record.ratings
    if ratings is None:
        return []
    blocks: list[Block] = []
    if ratings.rows:
        rows = tuple(
            (one.model, Number(one.rank, "count"), Number(one.rating, low=one.low, high=one.high, digits=0))
            for one in sorted(ratings.rows, key=lambda one: -one.rating)
        )
        method = {"bradley_terry": "Bradley-Terry"}.get(ratings.method, ratings.method)
        blocks.append(Table(f"Ratings on {facts.name}", ("Model", "Rank", "Rating, points"), rows))
        said = (
            f"Ratings by {method}. A rank is 1 and the number of models whose whole interval lies above: models that can't be told apart "
            "share one."
        )
        blocks.append(Text(said, "aside"))
    if len(ratings.models) > 2:
        counts = tuple(
            tuple(own + ratings.wins[j][i] for j, own in enumerate(row)) for i, row in enumerate(ratings.wins)
        )
        rates = tuple(
            tuple(own / count if count else None for own, count in zip(row, each, strict=True))
            for row, each in zip(ratings.wins, counts, strict=True)
        )
        blocks.append(Matrix("Share of wins of the row's model against the column's", ratings.models, rates, counts))
    return blocks


def _length_controlled(facts: BenchmarkFacts) -> list[Block]:
    found = facts.record.length_controlled
    if found is None:
        return []
    rows = tuple(
        row(
            one.model,
            *(Number(value, digits=2) for value in (one.win_rate, one.standard_error, one.discrete)),
            Number(one.length_controlled, low=one.low, high=one.high, digits=1),
            Number(one.n, "count"),
        )
        for one in found.rows
    )
    columns = ("Model", "Win rate", "Standard error", "Discrete", "At equal length", "Prompts")
    said = f"In percent against {found.baseline}, as AlpacaEval gives them. "
    if found.comparable:
        said += "Prompts, order and regression are the published ones, so these may stand beside the leaderboard's."
    else:
        said += f"Not comparable with the AlpacaEval leaderboard{f': {found.why_not}' if found.why_not else ''}."
    return [Table("At equal length", columns, rows), Text(said, "aside")]


def _account(facts: BenchmarkFacts) -> Table:
    """Return what became of every model's answers, how long they are, and what they took."""
    rows = []
    for model in facts.record.models:
        account, length = facts.record.accounting.get(model), facts.record.replies.get(model)
        cost = facts.record.cost.get(model)
        cells: list[Cell] = [None] * 12
        if account is not None:
            cells[:3] = [Number(n, "count") for n in (account.asked, account.answered, account.measured)]
            cells[3] = reasons(account.dropped) or "none"
        if length is not None:
            cells[4] = Number(length.tokens_mean, "tokens")
            sizes = (length.tokens_p50, length.tokens_p95, length.characters_mean, length.cut)
            cells[5:9] = [Number(n, "count") for n in sizes]
        if cost is not None:
            cells[9:11] = [Number(n, "count") for n in (cost.prompt_tokens, cost.completion_tokens)]
            cells[11] = Number(cost.seconds, "seconds")
        rows.append(row(model, *cells))
    columns: tuple[str, ...] = (
        "Model",
        "Asked",
        "Answered",
        "Measured",
        "Without a value",
        "Tokens a reply",
        "P50",
        "P95",
        "Characters",
    )
    columns += ("Cut at the limit", "Tokens read", "Tokens written", "Time")
    return Table("What became of the answers", columns, tuple(rows), folded=True).known()


# ---- the first screen ----------------------------------------------------------------------------------------------


def _headline(facts: BenchmarkFacts, last: str) -> Headline | None:
    """Return the first headline measure: the last model of the stage against the baseline."""
    first = facts.headlines[0] if facts.headlines else None
    for one in facts.differences:
        record = one.record
        if first is not None and (record.a, record.b, record.measure) == (facts.record.baseline, last, first.key):
            change = _difference(one)
            values = [_number(facts, one.measure, model) for model in (record.a, record.b)]
            rounded = [
                numbers.NOTHING if v is None else numbers.percent(v.value, 0) if v.unit == "share" else v.text
                for v in values
            ]
            note = f"{one.measure.label}, {record.a} to {record.b}: {evidence(change, facts.record.confidence)}"
            better = one.measure.better
            return Headline(
                facts.name, ARROW.join(rounded), note, one.verdict, quality=True, change=change, better=better
            )
    return None


def _findings(facts: BenchmarkFacts) -> list[Finding]:
    """Return the headline differences and win rates that are shown."""
    found = []
    for measure in facts.headlines:
        for verdict in CLAIMS:
            shown = [
                one
                for one in facts.differences
                if one.verdict == verdict
                and one.record.measure == measure.key
                and one.record.a == facts.record.baseline
            ]
            if shown:
                found.append(Finding(facts.stage, facts.name, verdict, _finding(facts, measure, shown)))
    others = [one for one in facts.contests if one.verdict != "not shown" and one.against != facts.record.baseline]
    return found + [Finding(facts.stage, facts.name, one.verdict, _contest_text(one)) for one in others]


def _finding(facts: BenchmarkFacts, measure: Measure, shown: Sequence[MeasureDifference]) -> str:
    parts = [
        f"{one.record.b} {evidence(_difference(one), facts.record.confidence)}, adjusted {numbers.p_value(one.record.adjusted_p)}, "
        f"n = {one.record.prompts:,}"
        for one in shown
    ]
    text = f"{measure.label}, compared with {facts.record.baseline}: {'; '.join(parts)}."
    fewest = min(one.record.prompts for one in shown)
    return text + (f" With only {plural(fewest, 'prompt')} the interval is rough." if fewest < FEW_ROWS else "")


def _contest_text(one: Contest) -> str:
    wins = "wins more often than it loses" if one.verdict == "improved" else "loses more often than it wins"
    rate = share(one.rate)
    return (
        f"{one.model} {wins} against {one.against}: win rate {rate.text} ({rate.interval}) over {plural(one.judged, 'question')}, ties one "
        f"half, sign test adjusted {numbers.p_value(one.adjusted_p)}."
    )


# ---- charts --------------------------------------------------------------------------------------------------------


def _color(facts: BenchmarkFacts, model: str) -> str:
    models = facts.record.models
    return color(models.index(model)) if model in models else "s0"


def _charts(facts: BenchmarkFacts) -> list[Chart]:
    both, headlines = _both_ways(facts), facts.headlines[:2]
    found = (
        [both] if both else [chart for measure in headlines if (chart := _headline_chart(facts, measure)) is not None]
    )
    return [
        *found,
        _win_rates(facts),
        _rating_chart(facts),
        *(chart for m in headlines if (chart := _radar(facts, m)) is not None),
    ]


def _name(facts: BenchmarkFacts, *parts: str) -> str:
    return file_name(facts.stage, facts.record.key, *parts)


def _level(facts: BenchmarkFacts) -> str:
    return numbers.confidence(facts.record.confidence)


def _ends(result: Result) -> tuple[float, float, float]:
    estimate = result.estimate or 0.0
    return estimate, estimate if result.low is None else result.low, estimate if result.high is None else result.high


def _headline_chart(facts: BenchmarkFacts, measure: Measure) -> Chart | None:
    """Return one measure of every model with its interval; None of a win rate that the plot of win rates shows too."""
    start = facts.results.get((facts.record.baseline, measure.key, None))
    if start is not None and facts.by_definition(start) and facts.contests:
        return None
    factor = 100.0 if measure.unit == "share" else 1.0
    lanes = []
    for model in facts.record.models:
        result, number = facts.results.get((model, measure.key, None)), _number(facts, measure, model)
        if result is not None and number is not None and not number.note:
            text = number.text + (f" ({number.interval})" if number.interval else "")
            estimate, low, high = (factor * end for end in _ends(result))
            lanes.append(Lane(model, estimate, low, high, text, _color(facts, model)))
    better = {"higher": "; higher is better", "lower": "; lower is better", "neither": ""}[measure.better]
    return Forest(
        name=_name(facts, measure.key),
        title=measure.label,
        lanes=tuple(lanes),
        unit=("percent" if measure.unit == "share" else measure.unit) + better,
        caption=f"{_level(facts)} intervals of each model alone. Whether two models differ stands in the table of differences.",
    )


def _both_ways(facts: BenchmarkFacts) -> Chart | None:
    """Return refusal of harmful prompts against over-refusal of safe ones: the best model is in the upper left corner."""
    shares = [measure for measure in facts.headlines if measure.unit == "share"]
    up = next((measure for measure in shares if measure.better == "higher"), None)
    down = next((measure for measure in shares if measure.better == "lower"), None)
    if facts.record.area != "safety" or up is None or down is None:
        return None
    spots = []
    for model in facts.record.models:
        good, bad = facts.results.get((model, up.key, None)), facts.results.get((model, down.key, None))
        if good is not None and bad is not None and good.estimate is not None and bad.estimate is not None:
            spots.append(Spot(model, _color(facts, model), _ends(bad), _ends(good)))
    return Plane(
        name=_name(facts, "both-ways"),
        title="Safety both ways",
        spots=tuple(spots),
        x_label=down.label,
        y_label=up.label,
        corners=("refuses everything", "answers everything"),
        caption=f"Upper left is best. Crosses are {_level(facts)} intervals.",
    )


def _radar(facts: BenchmarkFacts, measure: Measure) -> Chart | None:
    """Return one outline a model over the categories; None where there are too few or too many of them."""
    spokes = facts.categories(measure.key)
    if not FEWEST_SPOKES <= len(spokes) <= MOST_SPOKES:
        return None
    outlines = []
    for model in facts.record.models:
        results = [facts.results.get((model, measure.key, spoke)) for spoke in spokes]
        if any(one is not None and not facts.by_definition(one) for one in results):
            values = tuple(one.estimate if one is not None else None for one in results)
            outlines.append((model, _color(facts, model), values))
    known = [value for *_, line in outlines for value in line if value is not None]
    if not known:
        return None
    low, high = radar_range(measure.unit, measure.scale, known)
    ends = [numbers.in_unit(end, measure.unit) for end in (low, high)]
    return Radar(
        name=_name(facts, measure.key, "categories"),
        title=f"{measure.label} by category",
        spokes=spokes,
        outlines=tuple(outlines),
        unit=measure.unit,
        low=low,
        high=high,
        caption=f"From {ends[0]} in the middle to {ends[1]} at the rim. Single categories hold few prompts: the table has their intervals.",
    )


def _win_rates(facts: BenchmarkFacts) -> Chart:
    lanes = []
    for one in facts.contests:
        if one.rate is not None:
            number, ends = share(one.rate), (100 * one.rate.estimate, 100 * one.rate.low, 100 * one.rate.high)
            kind = {"improved": "s1", "worse": "s2"}.get(one.verdict, "s0")
            lanes.append(Lane(f"{one.model} against {one.against}", *ends, f"{number.text} ({number.interval})", kind))
    return Forest(
        name=_name(facts, "win-rates"),
        title="Win rates",
        lanes=tuple(lanes),
        unit="percent won",
        line=50.0,
        span=(0.0, 100.0),
        caption=f"Ties count one half. {_level(facts)} intervals over prompts; dashed: as good as the other. Grey: no difference shown.",
    )


def _rating_chart(facts: BenchmarkFacts) -> Chart:
    rows = sorted(facts.record.ratings.rows if facts.record.ratings else (), key=lambda one: -one.rating)
    lanes = []
    for one in rows:
        number = Number(one.rating, low=one.low, high=one.high, digits=0)
        low, high = (one.rating if end is None else end for end in (one.low, one.high))
        text = number.text + (f" ({number.interval})" if number.interval else "")
        lanes.append(Lane(one.model, one.rating, low, high, text, _color(facts, one.model)))
    return Forest(
        name=_name(facts, "ratings"),
        title="Ratings",
        lanes=tuple(lanes),
        unit="points",
        line=sum(one.rating for one in rows) / len(rows) if rows else None,
        caption=f"{_level(facts)} intervals. Dashed: the mean. 100 points more mean winning about 64 of 100 comparisons.",
    )
