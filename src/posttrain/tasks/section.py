"""What a report says of an evaluation: one section a measurement, alike for benchmarks, held-out rows and fixed prompts, and the replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain.artifacts import plain
from posttrain.judge.pool import MANY_UNREAD
from posttrain.judge.section import fingerprint, interval_text, judge_section, share, unread_text
from posttrain.report import charts, numbers
from posttrain.report.charts import MOST_LANES, Forest, Histogram, Lane, Plane, Radar, Spot, color, radar_range
from posttrain.report.evidence import bounded, evidence
from posttrain.report.figure import file_name
from posttrain.report.reading import Gap, Stage
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
    Unit,
    table_of,
)
from posttrain.report.verdicts import CLAIMS, Verdict
from posttrain.report.words import FEW_ROWS, counted, join, plural, reasons
from posttrain.stats.ratings import Rating
from posttrain.table import grouped
from posttrain.tasks.browser import PAGE_BYTES, replies_section
from posttrain.tasks.facts import Compared, Contest, TaskFacts, read_stage
from posttrain.tasks.records import Measure, Result

AREAS = {
    "helpfulness": "Helpfulness",
    "instructions": "Following instructions",
    "reasoning": "Reasoning",
    "safety": "Safety, both ways",
    "diversity": "Diversity",
    "held_out": "Held-out rows",
    "prompts": "Checked answers",
}
"""Groups of the table of all models, in their order."""
LENGTHS, COSTS = "Length of replies", "Cost of the replies"
COLORS: dict[Verdict, str] = {"improved": "s1", "worse": "s2", "differs": "s4", "not shown": "s0"}
FEWEST_SPOKES, MOST_SPOKES = 3, 14
"""Categories that a radar can show; a table shows any number."""
DIFFERENCES = (
    "On the prompts or rows that both models have a value for, which the interval resamples whole; of rows of one prompt together. A difference is "
    "shown where its interval excludes zero and the test, where there is one, says so too: McNemar's exact one where every prompt has one yes or no, "
    "the sign test of pairs, otherwise one that swaps the models' names prompt by prompt. Adjusted: Holm's method, over the headline measures together "
    "and over the others together. Detectable: the true difference that as many prompts would have shown four times of five. Not shown is not the same as none."
)
PERPLEXITY = (
    " Perplexity is e to the power of the loss: a model with perplexity 6 is as unsure as if it chose between 6 equally likely "
    "tokens. These rows come from the same sources as the training rows, so this says how well a model learned these sources, not "
    "how good it is elsewhere."
)


def evaluation_sections(
    stages: Sequence[Stage], gaps: list[Gap], notes: Mapping[str, Sequence[str]] | None = None
) -> tuple[Section, ...]:
    """The sections of all eval stages, from their artefacts; what is absent or damaged becomes a gap.

    notes: by stage, what a reader must know of its comparisons. Of each headline the last evaluation that has it speaks on the first screen.
    """
    several = [read_stage(stage, gaps) for stage in stages]
    room = PAGE_BYTES // max(1, sum(any(one.is_benchmark for one in found) for found in several))
    sections: list[Section] = []
    for stage, found in zip(stages, several, strict=True):
        suffix = f": {stage.name}" if len(stages) > 1 else ""
        benchmarks = _benchmarks_sentence([one for one in found if one.is_benchmark])
        own = [task_section(one, (notes or {}).get(stage.name, ()), suffix) for one in found]
        if own and benchmarks:
            own[0] = replace(own[0], summary=benchmarks)
        if (replies := replies_section(stage.name, found, suffix, room)) is not None:
            own.append(replace(replies, findings=tuple(_reply_findings(found))))
        sections += own
    headlines: set[str] = set()
    for place in reversed(range(len(sections))):
        kept = tuple(one for one in sections[place].headlines if one.label not in headlines)
        headlines |= {one.label for one in kept}
        sections[place] = replace(sections[place], headlines=kept)
    if sections:
        every = [one for found in several for one in found]
        sections[0] = replace(sections[0], lines=tuple(lines(every, named=len(stages) > 1)))
    return tuple(sections)


# ---- one measurement -----------------------------------------------------------------------------------------------


def task_section(facts: TaskFacts, notes: Sequence[str] = (), suffix: str = "") -> Section:
    """Everything that one measurement says."""
    record = facts.record
    prefix = file_name(facts.stage, record.key)
    known = (*record.notes, *(notes if facts.is_held_out else ()))
    terms = tuple((measure.label, measure.about) for measure in facts.measures if measure.about)
    results = {measure.key: Label(measure.label, better=measure.better) for measure in facts.measures}
    blocks: list[Block | None] = [
        Text(about(facts)),
        Notice("fact", "Worth knowing", known) if known else None,
        _values(
            f"Results of {facts.name}", "Measure", facts, [(one, None, results[one.key]) for one in facts.measures]
        ),
        Facts(terms, terms=True) if terms else None,
        *_charts(facts, prefix),
        *_differences(facts),
        *_row_differences(facts, prefix),
        _contests(facts),
        *_ratings(facts),
        *_length_controlled(facts),
        *_categories(facts),
        _accounts(facts),
        judge_section(record.judge, facts.name, prefix, record.confidence) if record.judge else None,
        Text(f"All rows stand in {facts.rows_file}.", "aside") if facts.rows else None,
        Records("benchmark" if facts.is_benchmark else record.key, plain_record(facts)),
    ]
    title = record.title
    if facts.is_benchmark and _letters(record.key) != _letters(title):
        title += f" ({record.key})"
    warnings = [Finding(facts.stage, "Warning", None, text) for text in judge_warnings(facts)]
    return Section(
        title + suffix,
        file_name(record.key, facts.stage),
        tuple(block for block in blocks if block is not None),
        folded=True,
        gist=f"{_inside(facts.headlines[0].label)}: {', '.join(_of_models(facts))}" if facts.headlines else "",
        summary=_sentence(facts),
        headlines=tuple(_headlines(facts)),
        findings=(*_findings(facts), *warnings),
    )


def about(facts: TaskFacts) -> str:
    """What was asked, of whom, and from which file: ``Helpfulness: 80 prompts from question.jsonl (sha256 ...)``."""
    record = facts.record
    source, models = record.source, join(record.models)
    if facts.is_held_out:
        text = f"{facts.count_of(source.prompts)}, held out from training, under {models}."
        text += f" Rewards are measured from {record.reference}." if record.reference else ""
        text += PERPLEXITY if record.task == "likelihood" else ""
    else:
        own = source.path in (None, "builtin")
        place = "posttrain's own set" if own else str(source.path).replace("\\", "/").rpartition("/")[2]
        inside = f" (sha256 {source.digest[:12]})" if source.digest else ""
        text = f"{AREAS[record.area]}: {plural(source.prompts, 'prompt')} from {place}{inside}, answered by {models}."
    if len(record.models) > 1:
        text += f" {record.baseline} is the baseline."
    judges = [fingerprint(entry) for entry in record.judge.judges] if record.judge else []
    return f"{text} Judged by {join(judges)}." if judges else text


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def judge_warnings(facts: TaskFacts) -> list[str]:
    """A sentence for every judge of which too many calls gave no verdict."""
    return [
        f"{facts.name}: {numbers.percent(entry.calls.unread)} of the calls to {entry.name} gave no verdict ({unread_text(entry.calls)}), more than "
        f"{numbers.percent(MANY_UNREAD, 0)}. What could not be judged may differ from what could: read these numbers with care."
        for entry in facts.unread_judges
    ]


def plain_record(facts: TaskFacts) -> dict[str, object]:
    """The record with a verdict in each difference and the win rates as the page has them, for summary.json."""
    return {
        **plain(facts.record),
        "name": facts.name,
        "stage": facts.stage,
        "differences": [
            {**plain(one.record), "verdict": one.verdict, **_perplexity_change(facts, one)} for one in facts.differences
        ],
        "win_rates": plain(facts.contests),
        "unread_judges": [entry.name for entry in facts.unread_judges],
        "rows_file": facts.rows_file if facts.rows else None,
    }


def _perplexity_change(facts: TaskFacts, one: Compared) -> dict[str, float | None]:
    """Relative change of perplexity, exp(difference of losses) - 1, of held-out likelihood."""
    if facts.record.task != "likelihood" or one.measure.key != "loss":
        return {}
    ends = {"": one.record.difference, "_low": one.record.low, "_high": one.record.high}
    return {f"perplexity_change{end}": None if value is None else math.expm1(value) for end, value in ends.items()}


# ---- tables --------------------------------------------------------------------------------------------------------


def _number(value: float | None, unit: Unit, **more: Any) -> Number | None:
    """A number; None where it is not known."""
    return None if value is None else Number(value, unit, **more)


def _value(result: Result | None, measure: Measure) -> Number | None:
    if result is None or result.estimate is None:
        return None
    if result.by_definition:
        return Number(result.estimate, measure.unit, note="by definition")
    return Number(result.estimate, measure.unit, result.low, result.high)


def _values(
    title: str, first: str, facts: TaskFacts, rows: Iterable[tuple[Measure, str | None, Cell]], *, folded: bool = False
) -> Table:
    """One row a measure (of a category, under a name), one column a model, and how many prompts are behind it."""
    models = facts.record.models
    cells = tuple(
        (
            name,
            *(_value(facts.result(model, measure, category), measure) for model in models),
            counted(facts.prompts(measure.key, category), facts.unit),
        )
        for measure, category, name in rows
    )
    return Table(title, (first, *models, "Measured on"), cells, folded=folded)


def _categories(facts: TaskFacts) -> list[Table]:
    """A table for each measure with two categories or more."""
    several = {measure: facts.categories(measure.key) for measure in facts.measures}
    return [
        _values(
            f"{measure.label} by category", "Category", facts, [(measure, one, one) for one in categories], folded=True
        )
        for measure, categories in several.items()
        if len(categories) > 1
    ]


def _change_of(one: Compared, facts: TaskFacts) -> Number:
    """A difference with its interval; of one or two rows with a word instead."""
    record = one.record
    return bounded(record.difference, record.low, record.high, one.measure.unit, record.prompts, facts.unit)


def _differences(facts: TaskFacts) -> list[Block]:
    if not facts.differences:
        return []
    table = table_of(
        f"Differences on {facts.name} ({_level(facts)} intervals)",
        facts.differences,
        ("Measure", lambda one: one.measure.label),
        ("Comparison", lambda one: one.names),
        ("Difference", lambda one: _change_of(one, facts)),
        ("Test", lambda one: _number(one.record.p_value, "p")),
        ("Adjusted", lambda one: _number(one.record.adjusted_p, "p")),
        (
            "Detectable",
            lambda one: _number(one.record.detectable, "points" if one.measure.unit == "share" else one.measure.unit),
        ),
        ("Higher", lambda one: _number(one.record.higher, "count")),
        ("Lower", lambda one: _number(one.record.lower, "count")),
        ("n", lambda one: Number(one.record.prompts, "count")),
        ("Verdict", lambda one: Mark(one.verdict)),
    )
    return [table.known(), Text(DIFFERENCES, "aside")]


def _contests(facts: TaskFacts) -> Table | None:
    if not facts.contests:
        return None
    return table_of(
        f"Win rates on {facts.name}",
        facts.contests,
        ("Comparison", lambda one: f"{one.model} against {one.against}"),
        ("Won", lambda one: Number(one.wins, "count")),
        ("Tied", lambda one: Number(one.ties, "count")),
        ("Lost", lambda one: Number(one.losses, "count")),
        ("No verdict", lambda one: Number(one.missing, "count")),
        ("Win rate, ties half", lambda one: share(one.rate)),
        ("Sign test", lambda one: Number(one.p_value, "p")),
        ("Adjusted", lambda one: Number(one.adjusted_p, "p")),
        ("Verdict", lambda one: Mark(one.verdict)),
    )


def _ratings(facts: TaskFacts) -> list[Block]:
    ratings = facts.record.ratings
    if ratings is None:
        return []
    blocks: list[Block] = []
    best = sorted(ratings.rows, key=lambda one: -one.rating)
    if best:
        rows = tuple((one.model, Number(one.rank, "count"), _points(one)) for one in best)
        blocks.append(Table(f"Ratings on {facts.name}", ("Model", "Rank", "Rating, points"), rows))
    if len(ratings.models) > 2:
        pairs = [
            list(zip(won, lost, strict=True))
            for won, lost in zip(ratings.wins, zip(*ratings.wins, strict=True), strict=True)
        ]
        counts = tuple(tuple(won + lost for won, lost in row) for row in pairs)
        rates = tuple(tuple(won / (won + lost) if won + lost else None for won, lost in row) for row in pairs)
        blocks.append(Matrix(f"Who beats whom on {facts.name}", ratings.models, rates, counts))
        text = "Share of wins of the model on the left against the one above, ties one half, and the number of comparisons."
        blocks.append(Text(text, "aside"))
    if best:
        method = {"bradley_terry": "Bradley-Terry"}.get(ratings.method, ratings.method)
        text = f"Ratings by {method}. A rank is 1 and the number of models whose whole interval lies above: models that can't be told apart share one."
        blocks.append(Text(text, "aside"))
    return blocks


def _points(one: Rating) -> Number:
    return Number(one.rating, low=one.low, high=one.high, digits=0)


def _length_controlled(facts: TaskFacts) -> list[Block]:
    found = facts.record.length_controlled
    if found is None:
        return []
    table = table_of(
        "Length-controlled win rates",
        found.rows,
        ("Model", lambda one: one.model),
        ("Win rate", lambda one: Number(one.win_rate, digits=2)),
        ("Standard error", lambda one: _number(one.standard_error, "number", digits=2)),
        ("Discrete", lambda one: Number(one.discrete, digits=2)),
        ("At equal length", lambda one: _number(one.length_controlled, "number", low=one.low, high=one.high, digits=1)),
        ("Prompts", lambda one: Number(one.n, "count")),
    )
    text = (
        "Prompts, order and regression are the published ones, so these may stand beside the leaderboard's."
        if found.comparable
        else f"Not comparable with the AlpacaEval leaderboard{f': {found.why_not}' if found.why_not else ''}."
    )
    return [table, Text(f"In percent against {found.baseline}, as AlpacaEval gives them. {text}", "aside")]


def _accounts(facts: TaskFacts) -> Table | None:
    """What became of every model's answers, how long they are, and what they took."""
    record = facts.record
    lengths, costs = record.replies, record.cost

    def number(records: Mapping[str, Any], key: str, unit: Unit) -> Callable[[str], Cell]:
        return lambda model: _number(getattr(records.get(model), key, None), unit)

    if not record.accounting:
        return None
    return table_of(
        "What became of the answers",
        record.accounting,
        ("Model", lambda model: model),
        ("Asked", number(record.accounting, "asked", "count")),
        ("Answered", number(record.accounting, "answered", "count")),
        ("Measured", number(record.accounting, "measured", "count")),
        ("Without a value", lambda model: reasons(record.accounting[model].dropped)),
        ("Tokens a reply", number(lengths, "tokens_mean", "tokens")),
        ("P50", number(lengths, "tokens_p50", "tokens")),
        ("P95", number(lengths, "tokens_p95", "tokens")),
        ("Characters", number(lengths, "characters_mean", "tokens")),
        ("Cut at the limit", number(lengths, "cut", "count")),
        ("Tokens read", number(costs, "prompt_tokens", "count")),
        ("Tokens written", number(costs, "completion_tokens", "count")),
        ("Time", number(costs, "seconds", "seconds")),
        folded=True,
    ).known()


# ---- charts --------------------------------------------------------------------------------------------------------


def _charts(facts: TaskFacts, prefix: str) -> list[Block | None]:
    both_ways = _both_ways(facts, prefix)
    return [
        both_ways,
        *(_measured(facts, measure, prefix) for measure in facts.headlines[:2] if both_ways is None),
        _change(facts, prefix),
        _won(facts, prefix),
        _rated(facts, prefix),
        *(_radar(facts, measure, prefix) for measure in facts.headlines[:2]),
    ]


def _level(facts: TaskFacts) -> str:
    return numbers.confidence(facts.record.confidence)


def _color(facts: TaskFacts, model: str) -> str:
    models = facts.record.models
    return color(models.index(model)) if model in models else "s0"


def _lane(name: str, number: Number, color: str, group: str = "") -> Lane:
    """A number with its interval as one lane of a plot; shares in percent."""
    factor = 100.0 if number.unit == "share" else 1.0
    estimate, low, high = (factor * (end or 0.0) for end in (number.value, number.low, number.high))
    return Lane(name, estimate, low, high, f"{number.text} ({number.interval})", color, group)


def _forest(lanes: Sequence[Lane], name: str, title: str, unit: str, caption: str, **more: Any) -> Forest | None:
    if not lanes:
        return None
    return Forest(name=name, title=title, lanes=tuple(lanes[:MOST_LANES]), unit=unit, caption=caption, **more)


def _measured(facts: TaskFacts, measure: Measure, prefix: str) -> Forest | None:
    """One measure of every model with its interval."""
    found = {model: _value(facts.result(model, measure), measure) for model in facts.record.models}
    lanes = [_lane(model, one, _color(facts, model)) for model, one in found.items() if one and one.interval]
    better = {"higher": "; higher is better", "lower": "; lower is better", "neither": ""}[measure.better]
    unit = ("percent" if measure.unit == "share" else measure.unit) + better
    caption = (
        f"{_level(facts)} intervals of each model alone. Whether two models differ stands in the table of differences."
    )
    return _forest(lanes, file_name(prefix, measure.key), measure.label, unit, caption)


def _change(facts: TaskFacts, prefix: str) -> Forest | None:
    """The headline differences with their intervals around zero, of those of one unit; win rates say the same of contests."""
    found = [one for one in facts.differences if one.measure in facts.headlines]
    if not found or facts.contests:
        return None
    unit = found[0].measure.unit
    lanes = [
        _lane(one.names, number, COLORS[one.verdict], one.measure.label)
        for one in found
        if one.measure.unit == unit
        and (number := Number(one.record.difference, unit, one.record.low, one.record.high, signed=True)).interval
    ]
    caption = f"Points are differences, bars their {_level(facts)} intervals. A bar across zero: no difference shown."
    unit_text = "percentage points" if unit == "share" else unit
    name = file_name(prefix, "differences")
    return _forest(lanes, name, f"Differences: {facts.name}", unit_text, caption, line=0.0)


def _won(facts: TaskFacts, prefix: str) -> Forest | None:
    lanes = [
        _lane(f"{one.model} against {one.against}", rate, COLORS[one.verdict])
        for one in facts.contests
        if (rate := share(one.rate)) is not None
    ]
    caption = f"Ties count one half. {_level(facts)} intervals over prompts; dashed: as good as the other. Grey: no difference shown."
    if len(lanes) > MOST_LANES:
        caption += f" The first {MOST_LANES} of {len(lanes)} pairs."
    name = file_name(prefix, "win-rates")
    return _forest(lanes, name, "Win rates", "percent won", caption, line=50.0, span=(0.0, 100.0))


def _rated(facts: TaskFacts, prefix: str) -> Forest | None:
    best = sorted(facts.record.ratings.rows if facts.record.ratings else (), key=lambda one: -one.rating)
    if not best:
        return None
    lanes = [_lane(one.model, _points(one), _color(facts, one.model)) for one in best]
    caption = f"{_level(facts)} intervals. Dashed: the mean. 100 points more mean winning about 64 of 100 comparisons."
    mean = sum(one.rating for one in best) / len(best)
    return _forest(lanes, file_name(prefix, "ratings"), "Ratings", "points", caption, line=mean)


def _both_ways(facts: TaskFacts, prefix: str) -> Plane | None:
    """Refusal of harmful prompts against over-refusal of safe ones: the best model is in the upper left corner."""
    shares = [measure for measure in facts.headlines if measure.unit == "share"]
    up = next((measure for measure in shares if measure.better == "higher"), None)
    down = next((measure for measure in shares if measure.better == "lower"), None)
    if facts.record.area != "safety" or up is None or down is None:
        return None
    spots = []
    for model in facts.record.models:
        x, y = (_ends(facts.result(model, measure)) for measure in (down, up))
        if x is not None and y is not None:
            spots.append(Spot(model, _color(facts, model), x, y))
    if not spots:
        return None
    return Plane(
        name=file_name(prefix, "both-ways"),
        title="Safety both ways",
        spots=tuple(spots),
        x_label=down.label,
        y_label=up.label,
        corners=("refuses everything", "answers everything"),
        caption=f"Upper left is best. Crosses are {_level(facts)} intervals.",
    )


def _ends(result: Result | None) -> tuple[float, float, float] | None:
    if result is None or result.estimate is None:
        return None
    low, high = (result.estimate if end is None else end for end in (result.low, result.high))
    return result.estimate, low, high


def _radar(facts: TaskFacts, measure: Measure, prefix: str) -> Radar | None:
    """One outline a model over the categories; None where there are too few or too many of them."""
    spokes = facts.categories(measure.key)
    if not FEWEST_SPOKES <= len(spokes) <= MOST_SPOKES:
        return None
    outlines = []
    for model in facts.record.models:
        found = [facts.result(model, measure, spoke) for spoke in spokes]
        if any(one is not None and not one.by_definition for one in found):
            outlines.append((model, _color(facts, model), tuple(one.estimate if one else None for one in found)))
    known = [value for _, _, line in outlines for value in line if value is not None]
    if not known:
        return None
    low, high = radar_range(measure.unit, measure.scale, known)
    rim = [numbers.in_unit(end, measure.unit) for end in (low, high)]
    return Radar(
        name=file_name(prefix, measure.key, "categories"),
        title=f"{measure.label} by category",
        spokes=spokes,
        outlines=tuple(outlines),
        unit=measure.unit,
        low=low,
        high=high,
        caption=f"From {rim[0]} in the middle to {rim[1]} at the rim. Single categories hold few prompts: the table has their intervals.",
    )


def _row_differences(facts: TaskFacts, prefix: str) -> list[Block]:
    """Of held-out losses: a histogram of the differences of single rows, for each comparison."""
    if facts.record.task != "likelihood":
        return []
    losses = grouped((row.model, row.values["nll"] / row.values["tokens"]) for row in facts.rows)
    found: list[Block] = []
    for one in facts.differences:
        a, b = losses.get(one.record.a, []), losses.get(one.record.b, [])
        values = [y - x for x, y in zip(a, b, strict=False) if math.isfinite(y - x)]
        if values:
            found.append(_row_histogram(values, one, file_name(prefix, "rows", one.record.a, one.record.b)))
    return found


def _row_histogram(values: Sequence[float], one: Compared, name: str) -> Histogram:
    # The outermost bars collect what lies beyond the 1st and 99th percentile; one bin edge is exactly zero.
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.01, 0.99))
    size = (max(high, 0.0) - min(low, 0.0) or 1.0) / charts.bins(len(values))
    first, last = math.floor(min(low, 0.0) / size), math.ceil(max(high, 0.0) / size)
    edges = tuple(place * size for place in range(first, last + 1)) if last > first else (-size, 0.0, size)
    record = one.record
    text = (
        f"{record.lower:,} of {len(values):,} held-out rows became more likely under {record.b} than under {record.a}"
    )
    return Histogram(
        name=name,
        title=f"Row by row: {one.names}",
        edges=edges,
        heights=charts.counted(values, edges),
        x_label="nats per token; left of zero is better",
        colors=tuple("s1" if end <= size / 2 else "s2" for end in edges[1:]),
        zero=True,
        caption=f"{text}. The outermost bars also hold what lies beyond.",
        said=text,
    )


# ---- the first screen ----------------------------------------------------------------------------------------------


def lines(found: Sequence[TaskFacts], *, named: bool = False) -> Iterable[Line]:
    """A line a headline measure, in the order of the areas; then how long the replies are and what they took. ``named``: with the stage."""
    for area, title in AREAS.items():
        for facts in (one for one in found if one.record.area == area):
            perplexity = [one for one in facts.measures if one.key == "perplexity"]
            for measure in (*facts.headlines, *perplexity):
                yield _line(facts, measure, title, named=named)
    for facts in found:
        if (line := _length_line(facts)) is not None:
            yield line
    yield from _cost_lines(found)


def _line(facts: TaskFacts, measure: Measure, group: str, *, named: bool) -> Line:
    cells = {}
    for model in facts.record.models:
        number = _value(facts.result(model, measure), measure)
        if number is not None:
            one = facts.against_baseline(model, measure.key)
            cells[model] = replace(number, verdict=one.verdict if one else None)
    compared = any(cell.verdict is not None for cell in cells.values())
    parts = (facts.name, facts.stage if named else "", counted(facts.prompts(measure.key), facts.unit))
    label = Label(measure.label, ", ".join(part for part in parts if part), measure.better)
    return Line(group, label, cells, facts.record.baseline if compared else None)


def _length_line(facts: TaskFacts) -> Line | None:
    lengths = facts.record.replies
    in_tokens = any(one.tokens_mean is not None for one in lengths.values())
    values = {name: one.tokens_mean if in_tokens else one.characters_mean for name, one in lengths.items()}
    if all(value is None for value in values.values()):
        return None
    cells = {
        name: Number(value, "tokens", note=f"{lengths[name].cut:,} cut" if lengths[name].cut else "")
        for name, value in values.items()
    }
    answers = counted((one.answered for one in facts.record.accounting.values()), "answer")
    label = Label(facts.name, f"{'tokens' if in_tokens else 'characters'} a reply, {answers}")
    return Line(LENGTHS, label, cells)


def _cost_lines(found: Sequence[TaskFacts]) -> Iterable[Line]:
    """Sums over all benchmarks; of a model for which one of them is not known there is no sum."""
    costs = grouped(of_model for facts in found if facts.is_benchmark for of_model in facts.record.cost.items())
    units: dict[str, tuple[str, Unit]] = {
        "Tokens read": ("prompt_tokens", "count"),
        "Tokens written": ("completion_tokens", "count"),
        "Time of the replies": ("seconds", "seconds"),
    }
    for label, (key, unit) in units.items():
        of_models = {model: [getattr(cost, key) for cost in own] for model, own in costs.items()}
        sums = {model: Number(sum(values), unit) for model, values in of_models.items() if None not in values}
        if sums:
            yield Line(COSTS, Label(label, "all benchmarks together"), sums)


def _headline(facts: TaskFacts) -> Compared | None:
    """The first headline measure of the last model against the baseline."""
    return facts.against_baseline(facts.record.models[-1], facts.headlines[0].key) if facts.headlines else None


def _headlines(facts: TaskFacts) -> list[Headline]:
    one = _headline(facts)
    if one is None:
        return []
    record, unit = one.record, one.measure.unit
    # shares without decimals, so that two stand in a line
    ends = [
        numbers.in_unit(found.estimate if found else None, unit, 0 if unit == "share" else None)
        for found in (facts.result(model, one.measure) for model in (record.a, record.b))
    ]
    note = f"{one.measure.label}, {record.a} to {record.b}, {plural(record.prompts, facts.unit)}"
    change = _change_of(one, facts)
    label = one.measure.label if facts.is_held_out else facts.name
    values = " \N{RIGHTWARDS ARROW} ".join(ends)
    return [Headline(label, values, note, one.verdict, quality=True, change=change, better=one.measure.better)]


def _of_models(facts: TaskFacts) -> list[str]:
    """The first headline measure of every model that has it: ``sft 62.5%``."""
    measure = facts.headlines[0]
    found = [(model, facts.result(model, measure)) for model in facts.record.models]
    return [f"{model} {numbers.in_unit(one.estimate, measure.unit)}" for model, one in found if one is not None]


def _sentence(facts: TaskFacts) -> str:
    """What rows and prompts say of the last model, for the paragraph at the top; benchmarks have one sentence together."""
    one = _headline(facts)
    if facts.is_benchmark or not facts.headlines:
        return ""
    measure = facts.headlines[0]
    text = f"On {facts.count_of(max(facts.prompts(measure.key), default=0))}, {_inside(measure.label)}: "
    if one is None:
        shares = _of_models(facts)
        return f"{text}{join(shares)}." if shares else ""
    ends = [facts.result(model, measure) for model in (one.record.b, one.record.a)]
    after, before = (numbers.in_unit(end.estimate if end else None, measure.unit) for end in ends)
    verdict = {**CLAIMS, "not shown": "no difference shown"}[one.verdict]
    return f"{text}{one.record.b} {after}, {one.record.a} {before}: {verdict} ({_evidence(one, facts)})."


def _inside(label: str) -> str:
    """A label inside a sentence: its first letter is small unless the word is one of capitals."""
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


def _evidence(one: Compared, facts: TaskFacts) -> str:
    return evidence(_change_of(one, facts), facts.record.confidence)


def _benchmarks_sentence(found: Sequence[TaskFacts]) -> str:
    """What was asked, and what the headline measures show of the last model against the baseline; nothing without benchmarks."""
    if not found:
        return ""
    models = list(dict.fromkeys(model for one in found for model in one.record.models))
    opening = (
        f"{plural(len(found), 'benchmark')} with {plural(sum(one.record.source.prompts for one in found), 'prompt')} "
        f"{'was' if len(found) == 1 else 'were'} answered by {join(models)}."
    )
    if len(models) < 2:
        return opening
    clauses: dict[Verdict, list[str]] = {}
    for facts in found:
        for measure in facts.headlines:
            one = facts.against_baseline(models[-1], measure.key)
            if one is not None and one.verdict != "not shown":
                clauses.setdefault(one.verdict, []).append(f"{measure.label} of {facts.name} ({_evidence(one, facts)})")
    baseline = found[0].record.baseline
    if not clauses:
        return f"{opening} No headline measure shows a difference of {models[-1]} from {baseline}."
    parts = [f"{CLAIMS[verdict]} in {join(texts)}" for verdict, texts in clauses.items()]
    return f"{opening} Compared with {baseline}, {models[-1]} is {join(parts)}."


def _findings(facts: TaskFacts) -> list[Finding]:
    """The headline differences: of benchmarks those that are shown, of held-out rows and prompts all; and win rates against others."""
    found = []
    for measure in facts.headlines:
        for verdict in COLORS:
            several = [one for one in facts.differences if one.measure == measure and one.verdict == verdict]
            if several and (verdict != "not shown" or not facts.is_benchmark):
                found.append(Finding(facts.stage, facts.name, verdict, _finding(facts, measure, several)))
    others = [one for one in facts.contests if one.verdict != "not shown" and one.against != facts.record.baseline]
    return found + [Finding(facts.stage, facts.name, one.verdict, _contest(one)) for one in others]


def _finding(facts: TaskFacts, measure: Measure, several: Sequence[Compared]) -> str:
    parts = []
    for one in several:
        record = one.record
        test = ""
        if record.adjusted_p is not None:
            test = f", adjusted {numbers.p_value(record.adjusted_p)}"
        elif record.p_value is not None:
            test = f", {numbers.p_value(record.p_value)}"
        parts.append(f"{record.b} {_evidence(one, facts)}{test}, n = {record.prompts:,}")
        if facts.record.task == "likelihood":
            change = numbers.signed_percent(math.expm1(record.difference))
            parts[-1] += f" (perplexity {change}; {record.lower:,} rows became more likely)"
    end = ": no difference shown." if several[0].verdict == "not shown" else "."
    text = f"{measure.label}, compared with {facts.record.baseline}: {'; '.join(parts)}{end}"
    fewest = min(one.record.prompts for one in several)
    if fewest < FEW_ROWS:
        text += f" With only {plural(fewest, facts.unit)} the interval is rough."
    return text


def _contest(one: Contest) -> str:
    wins = "wins more often than it loses" if one.verdict == "improved" else "loses more often than it wins"
    rate = interval_text(one.rate) if one.rate else numbers.NOTHING
    return (
        f"{one.model} {wins} against {one.against}: win rate {rate} over {plural(one.judged, 'question')}, ties one half, "
        f"sign test adjusted {numbers.p_value(one.adjusted_p)}."
    )


def _reply_findings(found: Sequence[TaskFacts]) -> list[Finding]:
    """Replies to the fixed prompts that were cut, or that a model could not give."""
    findings = []
    for facts in (one for one in found if one.record.area == "prompts"):
        cut = {model: lengths.cut for model, lengths in facts.record.replies.items()}
        lost = {model: account.asked - account.answered for model, account in facts.record.accounting.items()}
        replies = f"Of {plural(facts.record.source.prompts, 'reply', 'replies')} for each model, these"
        for what, counts in (("ended at the length limit and not by themselves", cut), ("failed", lost)):
            if of_models := [f"{number} of {model}" for model, number in counts.items() if number]:
                findings.append(Finding(facts.stage, "Replies", None, f"{replies} {what}: {join(of_models)}."))
    return findings
