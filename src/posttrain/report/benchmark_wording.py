"""What the report says of benchmarks in sentences. As in ``wording``, a claim needs a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.report import numbers
from posttrain.report.benchmark_records import Measure
from posttrain.report.benchmark_tables import fingerprint, share, unread_text
from posttrain.report.benchmarks import MANY_UNREAD, BenchmarkFacts, Contest, MeasureDifference
from posttrain.report.facts import EvalFacts, RunFacts
from posttrain.report.overview import AREAS, Overview
from posttrain.report.verdicts import Verdict
from posttrain.report.words import FEW_ROWS, Finding, Tile, join, plural
from posttrain.stats.intervals import wilson

CLAIMS: dict[Verdict, str] = {"improved": "better", "worse": "worse", "differs": "different"}
MOST_TILES = 3
"""Headline numbers of benchmarks above the report; the overview has all."""


# ---- all models at a glance ----------------------------------------------------------------------------------------


def overview_sentence(overview: Overview, facts: RunFacts) -> str:
    """Return how many differences are shown, and by which rule."""
    verdicts = overview.verdicts
    shown = sum(verdict != "not shown" for verdict in verdicts)
    if not verdicts:
        return "No two models are compared here."
    if not shown:
        none = "The one difference from the baseline is not shown"
        if len(verdicts) > 1:
            none = f"None of the {len(verdicts)} differences from the baseline is shown"
        text = f"{none}. That is not the same as no difference: with few prompts only large ones can be shown."
    else:
        are = "is" if shown == 1 else "are"
        text = (
            f"{shown} of {plural(len(verdicts), 'difference')} from the baseline {are} shown and marked. Where there is no mark, "
            "no difference is shown, which is not the same as no difference."
        )
    return text + rule(facts)


def rule(facts: RunFacts) -> str:
    """Return when a difference of a benchmark counts, and what that does not cover."""
    benchmarks = [benchmark for evaluation in facts.evaluations for benchmark in evaluation.benchmarks]
    if not benchmarks:
        return ""
    level = benchmarks[0].record.confidence
    text = (
        f" On a benchmark a difference counts where its {numbers.confidence(level)} interval excludes zero and its p-value, adjusted "
        f"for all headline measures and models of that benchmark (Holm), is below {numbers.fixed(1 - level, 2)}."
    )
    if len(benchmarks) > 1:
        text += f" The {len(benchmarks)} benchmarks are not adjusted for one another."
    return text


def judge_warnings(benchmarks: Sequence[BenchmarkFacts]) -> list[str]:
    """Return a sentence for every judge of which too many calls gave no verdict."""
    return [_unread_sentence(facts, place) for facts in benchmarks for place in range(len(facts.unread_judges))]


def _unread_sentence(facts: BenchmarkFacts, place: int) -> str:
    entry = facts.unread_judges[place]
    return (
        f"{facts.name}: {numbers.percent(entry.calls.unread)} of the calls to {entry.name} gave no verdict ({unread_text(entry)}), more than "
        f"{numbers.percent(MANY_UNREAD, 0)}. What could not be judged may differ from what could: read these numbers with care."
    )


def weak_judges(facts: RunFacts) -> dict[str, str]:
    """Return stage -> a sentence for every reward model of this run that judges here and is not shown to know better than a coin."""
    judges = {
        "/" + entry.name.replace("\\", "/")
        for evaluation in facts.evaluations
        for benchmark in evaluation.benchmarks
        if benchmark.record.judge
        for entry in benchmark.record.judge.judges
        if entry.fingerprint.engine == "reward"
    }
    sentences = {}
    for train in facts.training:
        name = train.stage.name
        if not train.preferences or not train.preferences.held_out:
            continue
        last = train.preferences.held_out[-1]
        if last.rewards_accuracies is None or not last.rows:
            continue
        found = wilson(last.rewards_accuracies * last.rows, last.rows)
        if found.low <= 0.5 and any(judge.endswith(f"/{facts.name}/{name}") for judge in judges):
            sentences[name] = (
                f"The judge {name} prefers the chosen reply in {numbers.percent(last.rewards_accuracies)} of {plural(last.rows, 'held-out pair')} "
                f"(95% interval {numbers.percent_interval(found.low, found.high)}): not shown to know better than a coin. Its win rates say what it likes, no more."
            )
    return sentences


# ---- one benchmark -------------------------------------------------------------------------------------------------


def about(facts: BenchmarkFacts) -> str:
    """Return what was asked, of whom, and from which file: ``Helpfulness: 80 prompts from question.jsonl (sha256 ...)``."""
    record = facts.record
    source = record.source
    place = (
        "posttrain's own set" if source.path in (None, "builtin") else source.path.replace("\\", "/").rpartition("/")[2]
    )
    inside = f" (sha256 {source.digest[:12]})" if source.digest else ""
    area = AREAS.get(record.area, record.area.capitalize())
    text = f"{area}: {plural(source.prompts, 'prompt')} from {place}{inside}, answered by {join(record.models)}."
    if len(record.models) > 1:
        text += f" {record.baseline} is the baseline."
    judges = [fingerprint(entry) for entry in record.judge.judges] if record.judge else []
    if judges:
        text += f" Judged by {join(judges)}."
    return text


# ---- findings, the paragraph, tiles --------------------------------------------------------------------------------


def headline_sentence(evaluation: EvalFacts) -> str:
    """Return what was asked, and what the headline measures show of the last model against the baseline; nothing without benchmarks."""
    if not evaluation.benchmarks:
        return ""
    records = [facts.record for facts in evaluation.benchmarks]
    models = [model for model in evaluation.models if any(model in record.models for record in records)]
    asked = (
        f"{plural(len(records), 'benchmark')} with {plural(sum(r.source.prompts for r in records), 'prompt')} "
        f"{'was' if len(records) == 1 else 'were'} answered by {join(models)}."
    )
    clauses: dict[Verdict, list[str]] = {}
    bases = []
    for facts in evaluation.benchmarks:
        keys = {measure.key for measure in facts.headlines}
        for one in facts.differences:
            known = one.record.measure in keys and one.record.b == models[-1]
            if known and one.verdict != "not shown" and one.record.a == facts.record.baseline:
                clauses.setdefault(one.verdict, []).append(
                    f"{one.measure.label} of {facts.name} ({_short(one, facts)})"
                )
                bases.append(one.record.a)
    if not clauses:
        return (
            f"{asked} No headline measure shows a difference of {models[-1]} from {records[0].baseline}."
            if len(models) > 1
            else asked
        )
    parts = [f"{CLAIMS[verdict]} in {join(found)}" for verdict, found in clauses.items()]
    return f"{asked} Compared with {bases[0]}, {models[-1]} is {join(parts)}."


def evaluation_findings(evaluation: EvalFacts) -> list[Finding]:
    """Return the headline differences and win rates that are shown, and judges to be wary of."""
    found = []
    for facts in evaluation.benchmarks:
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
                    found.append(Finding(evaluation.stage.name, facts.name, verdict, _finding(facts, measure, shown)))
        others = [one for one in facts.contests if one.verdict != "not shown" and one.against != facts.record.baseline]
        found += [Finding(evaluation.stage.name, facts.name, one.verdict, _contest(one, facts)) for one in others]
    return found + [
        Finding(evaluation.stage.name, "Warning", None, text) for text in judge_warnings(evaluation.benchmarks)
    ]


def _finding(facts: BenchmarkFacts, measure: Measure, shown: Sequence[MeasureDifference]) -> str:
    parts = [f"{one.record.b} {_numbers(one, facts)}" for one in shown]
    text = f"{measure.label}, compared with {facts.record.baseline}: {'; '.join(parts)}."
    fewest = min(one.record.prompts for one in shown)
    if fewest < FEW_ROWS:
        text += f" With only {plural(fewest, 'prompt')} the interval is rough."
    return text


def _numbers(one: MeasureDifference, facts: BenchmarkFacts) -> str:
    record, unit = one.record, one.measure.unit
    interval = numbers.signed_interval_in_unit(record.low, record.high, unit)
    return (
        f"{numbers.difference_in_unit(record.difference, unit)}, {numbers.confidence(facts.record.confidence)} interval "
        f"{interval}, adjusted {numbers.p_value(record.adjusted_p)}, n = {record.prompts:,}"
    )


def _contest(one: Contest, facts: BenchmarkFacts) -> str:
    wins = {"improved": "wins more often than it loses", "worse": "loses more often than it wins"}[one.verdict]
    return (
        f"{one.model} {wins} against {one.against}: win rate {share(one.rate)} over {plural(one.judged, 'question')}, ties one half, "
        f"sign test adjusted {numbers.p_value(one.adjusted_p)}."
    )


def _short(one: MeasureDifference, facts: BenchmarkFacts) -> str:
    record, unit = one.record, one.measure.unit
    interval = numbers.signed_interval_in_unit(record.low, record.high, unit)
    level = numbers.confidence(facts.record.confidence)
    return f"{numbers.difference_in_unit(record.difference, unit)}, {level} interval {interval}"


def tiles(facts: RunFacts) -> list[Tile]:
    """Return the first headline measures of the last evaluation with benchmarks: its last model against the baseline."""
    evaluation = next((e for e in reversed(facts.evaluations) if e.benchmarks), None)
    if evaluation is None:
        return []
    found = []
    for benchmark in evaluation.benchmarks:
        first = benchmark.headlines[0].key if benchmark.headlines else ""
        for one in benchmark.differences:
            record = one.record
            if (record.a, record.b, record.measure) == (benchmark.record.baseline, evaluation.models[-1], first):
                found.append(_tile(benchmark, one))
    return found[:MOST_TILES]


def _tile(facts: BenchmarkFacts, one: MeasureDifference) -> Tile:
    record, unit = one.record, one.measure.unit
    ends = [facts.results.get((model, record.measure, None)) for model in (record.a, record.b)]
    values = " \N{RIGHTWARDS ARROW} ".join(_rounded(end.estimate if end else None, unit) for end in ends)
    interval = numbers.signed_interval_in_unit(record.low, record.high, unit)
    note = f"{one.measure.label}, {record.a} to {record.b}: {numbers.difference_in_unit(record.difference, unit)}, {numbers.confidence(facts.record.confidence)} interval {interval}"
    return Tile(facts.name, values, note, one.verdict, quality=True)


def _rounded(value: float | None, unit: str) -> str:
    """Return a number for a tile: shares without decimals, so that two stand in a line."""
    return numbers.percent(value, 0) if unit == "share" else numbers.in_unit(value, unit)
