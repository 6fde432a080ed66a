"""What a report says of an evaluation: one section a measurement, alike for benchmarks, held-out rows and fixed prompts, and the replies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from posttrain.artifacts import plain
from posttrain.judge.section import fingerprint, interval_text, judge_section, unread_text
from posttrain.report import numbers
from posttrain.report.charts import (
    MOST_LANES,
    Forest,
    Histogram,
    Lane,
    Plane,
    Radar,
    Spot,
    bins,
    color,
    radar_range,
)
from posttrain.report.charts import (
    counted as counted_bars,
)
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
)
from posttrain.report.verdicts import Verdict
from posttrain.report.words import FEW_ROWS, counted, join, plural
from posttrain.tasks.browser import PAGE_BYTES, replies_section
from posttrain.tasks.facts import MANY_UNREAD, Compared, Contest, TaskFacts, read_stage
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
CLAIMS: dict[Verdict, str] = {"improved": "better", "worse": "worse", "differs": "different"}
COLORS: dict[Verdict, str] = {"improved": "s1", "worse": "s2", "differs": "s4", "not shown": "s0"}
FEWEST_SPOKES, MOST_SPOKES = 3, 14
"""Categories that a radar can show; a table shows any number."""
DIFFERENCES = (
    "On the prompts or rows that both models have a value for, which the interval resamples whole; of rows of one prompt together. A difference is "
    "shown where its interval excludes zero and the test, where there is one, says so too: McNemar's exact one where every prompt has one yes or no, "
    "the sign test of pairs, otherwise one that swaps the models' names prompt by prompt. Adjusted: Holm's method, over the headline measures together "
    "and over the others together. Detectable: the true difference that as many prompts would have shown four times of five. Not shown is not the same as none."
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
    every = [one for found in several for one in found]
    headlines: set[str] = set()
    for place in reversed(range(len(sections))):
        kept = tuple(one for one in sections[place].headlines if one.label not in headlines)
        headlines |= {one.label for one in sections[place].headlines}
        sections[place] = replace(sections[place], headlines=kept)
    if sections:
        sections[0] = replace(sections[0], lines=tuple(lines(every, named=len(stages) > 1)))
    return tuple(sections)


# ---- one measurement -----------------------------------------------------------------------------------------------


def task_section(facts: TaskFacts, notes: Sequence[str] = (), suffix: str = "") -> Section:
    """Everything that one measurement says."""
    record = facts.record
    prefix = file_name(facts.stage, record.key)
    blocks: list[Block] = [Text(about(facts))]
    if known := (*record.notes, *(notes if record.area == "held_out" else ())):
        blocks.append(Notice("fact", "Worth knowing", known))
    blocks.append(_results(facts))
    if terms := tuple((measure.label, measure.about) for measure in facts.measures if measure.about):
        blocks.append(Facts(terms, terms=True))
    blocks += _charts(facts, prefix)
    if facts.differences:
        blocks += [_differences(facts), Text(DIFFERENCES, "aside")]
    blocks += _row_differences(facts, prefix)
    if facts.contests:
        blocks.append(_contests(facts))
    blocks += _ratings(facts)
    if record.length_controlled:
        blocks += _length_controlled(facts)
    blocks += _categories(facts)
    if record.accounting:
        blocks.append(_accounts(facts))
    if record.judge:
        blocks.append(judge_section(record.judge, facts.name, prefix, record.confidence))
    if facts.rows:
        blocks.append(Text(f"All rows stand in {facts.rows_file}.", "aside"))
    blocks.append(Records("benchmark" if facts.is_benchmark else record.key, plain_record(facts)))
    key_says_more = _letters(record.key) != _letters(record.title) and facts.is_benchmark
    title = f"{record.title} ({record.key})" if key_says_more else record.title
    return Section(
        title + suffix,
        file_name(record.key, facts.stage),
        tuple(blocks),
        folded=True,
        gist=_gist(facts),
        summary=_sentence(facts),
        headlines=tuple(_headlines(facts)),
        findings=(*_findings(facts), *(Finding(facts.stage, "Warning", None, text) for text in judge_warnings(facts))),
    )


def _gist(facts: TaskFacts) -> str:
    measure = facts.headlines[0] if facts.headlines else None
    if measure is None:
        return ""
    found = [(model, facts.results.get((model, measure.key, None))) for model in facts.record.models]
    values = [f"{model} {numbers.in_unit(one.estimate, measure.unit)}" for model, one in found if one is not None]
    return f"{_inside(measure.label)}: {', '.join(values)}"


def about(facts: TaskFacts) -> str:
    """What was asked, of whom, and from which file: ``Helpfulness: 80 prompts from question.jsonl (sha256 ...)``."""
    record = facts.record
    source, models = record.source, join(record.models)
    if record.area == "held_out":
        text = f"{plural(source.prompts, facts.unit, facts.units)}, held out from training, under {models}."
        if record.reference:
            text += f" Rewards are measured from {record.reference}."
        if record.task == "likelihood":
            text += (
                " Perplexity is e to the power of the loss: a model with perplexity 6 is as unsure as if it chose between 6 equally likely "
                "tokens. These rows come from the same sources as the training rows, so this says how well a model learned these sources, not "
                "how good it is elsewhere."
            )
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


def _value(result: Result | None, measure: Measure) -> Number | None:
    if result is None or result.estimate is None:
        return None
    if result.by_definition:
        return Number(result.estimate, measure.unit, note="by definition")
    return Number(result.estimate, measure.unit, result.low, result.high)


def _results(facts: TaskFacts) -> Table:
    """One row a measure, one column a model, and how many prompts are behind it."""
    models = facts.record.models
    rows = tuple(
        (
            Label(measure.label, better=measure.better),
            *(_value(facts.results.get((model, measure.key, None)), measure) for model in models),
            counted(facts.prompts(measure.key), _unit(facts)),
        )
        for measure in facts.measures
    )
    return Table(f"Results of {facts.name}", ("Measure", *models, "Measured on"), rows)


def _unit(facts: TaskFacts) -> str:
    return {"preferences": "pair", "feedback": "row", "likelihood": "row"}.get(facts.record.task, "prompt")


def _change_of(one: Compared, facts: TaskFacts) -> Number:
    """A difference with its interval; of one or two rows with a word instead."""
    record = one.record
    return bounded(record.difference, record.low, record.high, one.measure.unit, record.prompts, _unit(facts))


def _differences(facts: TaskFacts) -> Table:
    columns = (
        "Measure",
        "Comparison",
        "Difference",
        "Test",
        "Adjusted",
        "Detectable",
        "Higher",
        "Lower",
        "n",
        "Verdict",
    )
    rows: list[tuple[Cell, ...]] = []
    for one in facts.differences:
        record, unit = one.record, one.measure.unit
        rows.append(
            (
                one.measure.label,
                f"{record.b} minus {record.a}",
                _change_of(one, facts),
                None if record.p_value is None else Number(record.p_value, "p"),
                None if record.adjusted_p is None else Number(record.adjusted_p, "p"),
                None if record.detectable is None else Number(record.detectable, "points" if unit == "share" else unit),
                None if record.higher is None else Number(record.higher, "count"),
                None if record.lower is None else Number(record.lower, "count"),
                Number(record.prompts, "count"),
                Mark(one.verdict),
            )
        )
    title = f"Differences on {facts.name} ({numbers.confidence(facts.record.confidence)} intervals)"
    return Table(title, columns, tuple(rows)).known()


def _contests(facts: TaskFacts) -> Table:
    rows = tuple(
        (
            f"{one.model} against {one.against}",
            *(Number(value, "count") for value in (one.wins, one.ties, one.losses, one.missing)),
            None if one.rate is None else Number(one.rate.estimate, "share", one.rate.low, one.rate.high),
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
    return Table(f"Win rates on {facts.name}", columns, rows)


def _ratings(facts: TaskFacts) -> list[Block]:
    ratings = facts.record.ratings
    if ratings is None:
        return []
    blocks: list[Block] = []
    best = sorted(ratings.rows, key=lambda one: -one.rating)
    if best:
        rows = tuple(
            (one.model, Number(one.rank, "count"), Number(one.rating, digits=0, low=one.low, high=one.high))
            for one in best
        )
        blocks.append(Table(f"Ratings on {facts.name}", ("Model", "Rank", "Rating, points"), rows))
    if len(ratings.models) > 2:
        size = range(len(ratings.models))
        counts = [[ratings.wins[i][j] + ratings.wins[j][i] for j in size] for i in size]
        rates = [[ratings.wins[i][j] / counts[i][j] if counts[i][j] else None for j in size] for i in size]
        blocks.append(
            Matrix(
                f"Who beats whom on {facts.name}", ratings.models, tuple(map(tuple, rates)), tuple(map(tuple, counts))
            )
        )
        blocks.append(
            Text(
                "Share of wins of the model on the left against the one above, ties one half, and the number of comparisons.",
                "aside",
            )
        )
    if best:
        method = {"bradley_terry": "Bradley-Terry"}.get(ratings.method, ratings.method)
        blocks.append(
            Text(
                f"Ratings by {method}. A rank is 1 and the number of models whose whole interval lies above: models that can't be told apart share one.",
                "aside",
            )
        )
    return blocks


def _length_controlled(facts: TaskFacts) -> list[Block]:
    found = facts.record.length_controlled
    assert found is not None, "the caller looked"
    rows = tuple(
        (
            one.model,
            *(None if v is None else Number(v, digits=2) for v in (one.win_rate, one.standard_error, one.discrete)),
            None
            if one.length_controlled is None
            else Number(one.length_controlled, low=one.low, high=one.high, digits=1),
            Number(one.n, "count"),
        )
        for one in found.rows
    )
    columns = ("Model", "Win rate", "Standard error", "Discrete", "At equal length", "Prompts")
    text = f"In percent against {found.baseline}, as AlpacaEval gives them. "
    text += (
        "Prompts, order and regression are the published ones, so these may stand beside the leaderboard's."
        if found.comparable
        else f"Not comparable with the AlpacaEval leaderboard{f': {found.why_not}' if found.why_not else ''}."
    )
    return [Table("Length-controlled win rates", columns, rows), Text(text, "aside")]


def _categories(facts: TaskFacts) -> list[Block]:
    """A table for each measure with two categories or more: one row a category, one column a model."""
    models, found = facts.record.models, list[Block]()
    for measure in facts.measures:
        categories = facts.categories(measure.key)
        if len(categories) < 2:
            continue
        rows = tuple(
            (
                category,
                *(_value(facts.results.get((model, measure.key, category)), measure) for model in models),
                counted(facts.prompts(measure.key, category), _unit(facts)),
            )
            for category in categories
        )
        found.append(Table(f"{measure.label} by category", ("Category", *models, "Measured on"), rows, folded=True))
    return found


def _accounts(facts: TaskFacts) -> Table:
    """What became of every model's answers, how long they are, and what they took."""
    columns = (
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
    columns += ("Cut at the limit", "Tokens read", "Tokens written", "Time")  # type: ignore[assignment]
    rows: list[tuple[Cell, ...]] = []
    for model, account in facts.record.accounting.items():
        lengths, cost = facts.record.replies.get(model), facts.record.cost.get(model)
        ordered = sorted(account.dropped.items(), key=lambda item: -item[1])
        measured = (
            (lengths.tokens_mean, lengths.tokens_p50, lengths.tokens_p95, lengths.characters_mean)
            if lengths
            else (None,) * 4
        )
        took = (cost.prompt_tokens, cost.completion_tokens) if cost else (None, None)
        rows.append(
            (
                model,
                *(Number(value, "count") for value in (account.asked, account.answered, account.measured)),
                ", ".join(f"{reason} {number:,}" for reason, number in ordered if number),
                *(None if value is None else Number(value, "tokens") for value in measured),
                Number(lengths.cut, "count") if lengths else None,
                *(None if value is None else Number(value, "count") for value in took),
                None if cost is None or cost.seconds is None else Number(cost.seconds, "seconds"),
            )
        )
    return Table("What became of the answers", columns, tuple(rows), folded=True).known()


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


# ---- charts --------------------------------------------------------------------------------------------------------


def _charts(facts: TaskFacts, prefix: str) -> list[Block]:
    both_ways = _both_ways(facts, prefix)
    charts: list[Block | None] = [
        both_ways,
        *(_forest(facts, measure, prefix) for measure in facts.headlines[:2] if both_ways is None),
        _change(facts, prefix),
        _won(facts, prefix),
        _rated(facts, prefix),
        *(_radar(facts, measure, prefix) for measure in facts.headlines[:2]),
    ]
    return [chart for chart in charts if chart is not None]


def _level(facts: TaskFacts) -> str:
    return numbers.confidence(facts.record.confidence)


def _color(facts: TaskFacts, model: str) -> str:
    models = facts.record.models
    return color(models.index(model)) if model in models else "s0"


def _forest(facts: TaskFacts, measure: Measure, prefix: str) -> Forest | None:
    """One measure of every model with its interval; None where there are none."""
    factor = 100.0 if measure.unit == "share" else 1.0
    lanes = []
    for model in facts.record.models:
        result = facts.results.get((model, measure.key, None))
        if (
            result is None
            or result.estimate is None
            or result.by_definition
            or result.low is None
            or result.high is None
        ):
            continue
        text = numbers.in_unit(result.estimate, measure.unit)
        text += f" ({numbers.interval_in_unit(result.low, result.high, measure.unit)})"
        ends = factor * result.estimate, factor * result.low, factor * result.high
        lanes.append(Lane(model, *ends, text, _color(facts, model)))
    if not lanes:
        return None
    better = {"higher": "; higher is better", "lower": "; lower is better", "neither": ""}[measure.better]
    return Forest(
        name=file_name(prefix, measure.key),
        title=measure.label,
        lanes=tuple(lanes[:MOST_LANES]),
        unit=("percent" if measure.unit == "share" else measure.unit) + better,
        caption=f"{_level(facts)} intervals of each model alone. Whether two models differ stands in the table of differences.",
    )


def _change(facts: TaskFacts, prefix: str) -> Forest | None:
    """The headline differences with their intervals around zero, of those of one unit; win rates say the same of contests."""
    found = [one for one in facts.differences if one.measure in facts.headlines]
    unit = found[0].measure.unit if found else "number"
    factor = 100.0 if unit == "share" else 1.0
    lanes = []
    for one in found:
        record = one.record
        if record.low is None or record.high is None or one.measure.unit != unit:
            continue
        text = numbers.difference_in_unit(record.difference, unit)
        text += f" ({numbers.signed_interval_in_unit(record.low, record.high, unit)})"
        ends = factor * record.difference, factor * record.low, factor * record.high
        name = f"{record.b} minus {record.a}"
        lanes.append(Lane(name, *ends, text, COLORS[one.verdict], one.measure.label))
    if not lanes or facts.contests:
        return None
    return Forest(
        name=file_name(prefix, "differences"),
        title=f"Differences: {facts.name}",
        lanes=tuple(lanes[:MOST_LANES]),
        unit="percentage points" if unit == "share" else unit,
        line=0.0,
        caption=f"Points are differences, bars their {_level(facts)} intervals. A bar across zero: no difference shown.",
    )


def _won(facts: TaskFacts, prefix: str) -> Forest | None:
    lanes = []
    for one in facts.contests:
        if (rate := one.rate) is not None:
            name, ends = f"{one.model} against {one.against}", (100 * rate.estimate, 100 * rate.low, 100 * rate.high)
            lanes.append(Lane(name, *ends, interval_text(rate), COLORS[one.verdict]))
    if not lanes:
        return None
    caption = f"Ties count one half. {_level(facts)} intervals over prompts; dashed: as good as the other. Grey: no difference shown."
    if len(lanes) > MOST_LANES:
        caption += f" The first {MOST_LANES} of {len(lanes)} pairs."
    return Forest(
        name=file_name(prefix, "win-rates"),
        title="Win rates",
        lanes=tuple(lanes[:MOST_LANES]),
        unit="percent won",
        line=50.0,
        span=(0.0, 100.0),
        caption=caption,
    )


def _rated(facts: TaskFacts, prefix: str) -> Forest | None:
    ratings = facts.record.ratings
    if ratings is None or not ratings.rows:
        return None
    lanes = []
    for one in sorted(ratings.rows, key=lambda one: -one.rating)[:MOST_LANES]:
        low, high = (one.rating if end is None else end for end in (one.low, one.high))
        text = f"{numbers.fixed(one.rating, 0)} ({numbers.fixed(low, 0)} to {numbers.fixed(high, 0)})"
        lanes.append(Lane(one.model, one.rating, low, high, text, _color(facts, one.model)))
    return Forest(
        name=file_name(prefix, "ratings"),
        title="Ratings",
        lanes=tuple(lanes),
        unit="points",
        line=sum(one.rating for one in ratings.rows) / len(ratings.rows),
        caption=f"{_level(facts)} intervals. Dashed: the mean. 100 points more mean winning about 64 of 100 comparisons.",
    )


def _both_ways(facts: TaskFacts, prefix: str) -> Plane | None:
    """Refusal of harmful prompts against over-refusal of safe ones: the best model is in the upper left corner."""
    shares = [measure for measure in facts.headlines if measure.unit == "share"]
    up = next((measure for measure in shares if measure.better == "higher"), None)
    down = next((measure for measure in shares if measure.better == "lower"), None)
    if facts.record.area != "safety" or up is None or down is None:
        return None
    spots = []
    for model in facts.record.models:
        ends = [_ends(facts.results.get((model, measure.key, None))) for measure in (down, up)]
        if ends[0] is not None and ends[1] is not None:
            spots.append(Spot(model, _color(facts, model), ends[0], ends[1]))
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
        found = [facts.results.get((model, measure.key, spoke)) for spoke in spokes]
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
    losses: dict[str, list[float]] = {}
    for row in facts.rows:
        losses.setdefault(row.model, []).append(row.values["nll"] / row.values["tokens"])
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
    size = (max(high, 0.0) - min(low, 0.0) or 1.0) / bins(len(values))
    first, last = math.floor(min(low, 0.0) / size), math.ceil(max(high, 0.0) / size)
    edges = tuple(place * size for place in range(first, last + 1)) if last > first else (-size, 0.0, size)
    record = one.record
    text = (
        f"{record.lower:,} of {len(values):,} held-out rows became more likely under {record.b} than under {record.a}"
    )
    return Histogram(
        name=name,
        title=f"Row by row: {record.b} minus {record.a}",
        edges=edges,
        heights=counted_bars(values, edges),
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
            for measure in facts.headlines:
                yield _line(facts, measure, title, named=named)
            if facts.record.task == "likelihood":
                yield _line(facts, next(one for one in facts.measures if one.key == "perplexity"), title, named=named)
    for facts in found:
        if (line := _length_line(facts)) is not None:
            yield line
    yield from _cost_lines(found)


def _line(facts: TaskFacts, measure: Measure, group: str, *, named: bool) -> Line:
    cells = {}
    for model in facts.record.models:
        number = _value(facts.results.get((model, measure.key, None)), measure)
        if number is not None:
            one = facts.against_baseline(model, measure.key)
            cells[model] = Number(
                number.value,
                number.unit,
                number.low,
                number.high,
                note=number.note,
                verdict=one.verdict if one else None,
            )
    compared = any(cell.verdict is not None for cell in cells.values())
    said = (facts.name, facts.stage if named else "", counted(facts.prompts(measure.key), _unit(facts)))
    note = ", ".join(text for text in said if text)
    return Line(group, Label(measure.label, note, measure.better), cells, facts.record.baseline if compared else None)


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
    costs: dict[str, list[Mapping[str, float | None]]] = {}
    for facts in (one for one in found if one.is_benchmark):
        for model, cost in facts.record.cost.items():
            costs.setdefault(model, []).append(plain(cost))
    for label, key, unit in (
        ("Tokens read", "prompt_tokens", "count"),
        ("Tokens written", "completion_tokens", "count"),
        ("Time of the replies", "seconds", "seconds"),
    ):
        sums = {}
        for model, own in costs.items():
            values = [cost[key] for cost in own]
            if None not in values:
                sums[model] = Number(sum(value for value in values if value is not None), unit)  # type: ignore[arg-type]
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
    ends = [facts.results.get((model, record.measure, None)) for model in (record.a, record.b)]
    values = " \N{RIGHTWARDS ARROW} ".join(_rounded(end.estimate if end else None, unit) for end in ends)
    note = f"{one.measure.label}, {record.a} to {record.b}, {plural(record.prompts, _unit(facts))}"
    change = _change_of(one, facts)
    label = facts.name if facts.is_benchmark or facts.record.area == "prompts" else one.measure.label
    return [Headline(label, values, note, one.verdict, quality=True, change=change, better=one.measure.better)]


def _rounded(value: float | None, unit: str) -> str:
    """A number for the first screen: shares without decimals, so that two stand in a line."""
    return numbers.percent(value, 0) if unit == "share" else numbers.in_unit(value, unit)


def _sentence(facts: TaskFacts) -> str:
    """What rows and prompts say of the last model, for the paragraph at the top; benchmarks have one sentence together."""
    one = _headline(facts)
    if facts.is_benchmark or not facts.headlines:
        return ""
    measure, models = facts.headlines[0], facts.record.models
    on = f"On {plural(max(facts.prompts(measure.key), default=0), facts.unit, facts.units)}"
    if one is None:
        found = [(model, facts.results.get((model, measure.key, None))) for model in models]
        shares = [f"{model} {numbers.in_unit(r.estimate, measure.unit)}" for model, r in found if r is not None]
        return f"{on}, {_inside(measure.label)}: {join(shares)}." if shares else ""
    ends = [facts.results.get((model, measure.key, None)) for model in (one.record.b, one.record.a)]
    after, before = (numbers.in_unit(end.estimate if end else None, measure.unit) for end in ends)
    verdict = {"improved": "better", "worse": "worse", "differs": "different", "not shown": "no difference shown"}[
        one.verdict
    ]
    measured = f"{on}, {_inside(measure.label)}: {one.record.b} {after}, {one.record.a} {before}"
    return f"{measured}: {verdict} ({_evidence(one, facts)})."


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
    asked = (
        f"{plural(len(found), 'benchmark')} with {plural(sum(one.record.source.prompts for one in found), 'prompt')} "
        f"{'was' if len(found) == 1 else 'were'} answered by {join(models)}."
    )
    if len(models) < 2:
        return asked
    clauses: dict[Verdict, list[str]] = {}
    for facts in found:
        for measure in facts.headlines:
            one = facts.against_baseline(models[-1], measure.key)
            if one is not None and one.verdict != "not shown":
                clauses.setdefault(one.verdict, []).append(f"{measure.label} of {facts.name} ({_evidence(one, facts)})")
    baseline = found[0].record.baseline
    if not clauses:
        return f"{asked} No headline measure shows a difference of {models[-1]} from {baseline}."
    parts = [f"{CLAIMS[verdict]} in {join(texts)}" for verdict, texts in clauses.items()]
    return f"{asked} Compared with {baseline}, {models[-1]} is {join(parts)}."


def _findings(facts: TaskFacts) -> list[Finding]:
    """The headline differences: of benchmarks those that are shown, of held-out rows and prompts all; and win rates against others."""
    found = []
    for measure in facts.headlines:
        of_measure = [one for one in facts.differences if one.measure is measure or one.measure == measure]
        for verdict in ("improved", "worse", "differs", "not shown"):
            shown = [one for one in of_measure if one.verdict == verdict]
            if shown and (verdict != "not shown" or not facts.is_benchmark):
                found.append(Finding(facts.stage, facts.name, shown[0].verdict, _finding(facts, measure, shown)))
    others = [one for one in facts.contests if one.verdict != "not shown" and one.against != facts.record.baseline]
    return found + [Finding(facts.stage, facts.name, one.verdict, _contest(one)) for one in others]


def _finding(facts: TaskFacts, measure: Measure, shown: Sequence[Compared]) -> str:
    parts = []
    for one in shown:
        record = one.record
        p_value = record.p_value if record.adjusted_p is None else record.adjusted_p
        test = (
            ""
            if p_value is None
            else f", {'adjusted ' if record.adjusted_p is not None else ''}{numbers.p_value(p_value)}"
        )
        parts.append(f"{record.b} {_evidence(one, facts)}{test}, n = {record.prompts:,}")
        if facts.record.task == "likelihood":
            change = numbers.signed_percent(math.expm1(record.difference))
            parts[-1] += f" (perplexity {change}; {record.lower:,} rows became more likely)"
    text = f"{measure.label}, compared with {facts.record.baseline}: {'; '.join(parts)}."
    if shown[0].verdict == "not shown":
        text = text.removesuffix(".") + ": no difference shown."
    fewest = min(one.record.prompts for one in shown)
    if fewest < FEW_ROWS:
        text += f" With only {plural(fewest, _unit(facts))} the interval is rough."
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
    for facts in (one for one in found if one.record.area == "prompts"):
        cut = {model: lengths.cut for model, lengths in facts.record.replies.items() if lengths.cut}
        lost = {model: account.asked - account.answered for model, account in facts.record.accounting.items()}
        told = [
            ("ended at the length limit and not by themselves", cut),
            ("failed", {m: n for m, n in lost.items() if n}),
        ]
        replies = f"Of {plural(facts.record.source.prompts, 'reply', 'replies')} for each model, these"
        return [
            Finding(
                facts.stage,
                "Replies",
                None,
                f"{replies} {what}: {join([f'{n} of {m}' for m, n in numbers_of.items()])}.",
            )
            for what, numbers_of in told
            if numbers_of
        ]
    return []
