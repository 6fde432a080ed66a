"""All models at a glance: everything that an eval stage measured, a line a measure, a column a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.report.benchmarks import BenchmarkFacts
from posttrain.report.facts import EvalFacts, RunFacts
from posttrain.report.verdicts import Verdict, gain_verdict
from posttrain.report.words import counted

AREAS = {
    "helpfulness": "Helpfulness",
    "instructions": "Following instructions",
    "reasoning": "Reasoning",
    "safety": "Safety, both ways",
    "diversity": "Diversity",
}
"""Areas of benchmarks in their order; others come after these under their own name."""
FEWEST_MODELS = 3
"""From so many models on there is an overview without benchmarks too."""

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One measure of one model."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None
    """Against the line's baseline; None where the two are not compared."""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One measure."""

    label: str
    of: str
    """What it was measured on: the benchmark, held-out rows."""
    unit: str
    better: Better
    counted: str
    """``80 prompts``; empty where nothing was counted."""
    baseline: str | None
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Group:
    """Measures of one area."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """The table; ``models`` are its columns."""

    models: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines."""
        return tuple(line for group in self.groups for line in group.lines)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of every comparison with a baseline."""
        found = (entry.verdict for line in self.lines for entry in line.entries.values())
        return tuple(verdict for verdict in found if verdict is not None)


def overview(facts: RunFacts) -> Overview | None:
    """Return the table; None for one or two models without any benchmark, which the headline numbers tell all of."""
    models = tuple(dict.fromkeys(model for evaluation in facts.evaluations for model in evaluation.models))
    benchmarks = [benchmark for evaluation in facts.evaluations for benchmark in evaluation.benchmarks]
    if not benchmarks and len(models) < FEWEST_MODELS:
        return None
    several = sum(bool(evaluation.benchmarks) for evaluation in facts.evaluations) > 1
    areas: dict[str, list[Line]] = {area: [] for area in AREAS}
    for benchmark in benchmarks:
        areas.setdefault(benchmark.record.area, []).extend(_benchmark_lines(benchmark, several))
    groups = [(AREAS.get(area, area.capitalize()), lines) for area, lines in areas.items()]
    groups.append(("Held-out rows", [line for e in facts.evaluations for line in _held_out_lines(e)]))
    groups.append(("Checked answers", [line for e in facts.evaluations for line in _checked_lines(e)]))
    lengths = [_length_line(benchmark, several) for benchmark in benchmarks]
    lengths += [line for e in facts.evaluations for line in _reply_lines(e)]
    groups.append(("Length of replies", [line for line in lengths if line is not None]))
    groups.append(("Cost of the benchmarks", _cost_lines(benchmarks, models)))
    kept = tuple(Group(title, tuple(lines)) for title, lines in groups if lines)
    return Overview(models, kept) if kept else None


def _of(benchmark: BenchmarkFacts, several: bool) -> str:
    return f"{benchmark.name}, {benchmark.stage}" if several else benchmark.name


def _benchmark_lines(benchmark: BenchmarkFacts, several: bool) -> list[Line]:
    record, lines = benchmark.record, []
    for measure in benchmark.headlines:
        entries = {}
        for model in record.models:
            result = benchmark.results.get((model, measure.key, None))
            if result is None:
                continue
            if benchmark.by_definition(result):
                entries[model] = Entry(result.estimate, remark="by definition")
                continue
            verdict = benchmark.against_baseline(model, measure.key)
            entries[model] = Entry(result.estimate, result.low, result.high, verdict)
        lines.append(
            Line(
                measure.label,
                _of(benchmark, several),
                measure.unit,
                measure.better,
                counted(benchmark.prompts(measure.key), "prompt"),
                record.baseline,
                entries,
            )
        )
    return lines


def _held_out_lines(evaluation: EvalFacts) -> list[Line]:
    lines = []
    if found := evaluation.likelihood:
        first = evaluation.models[0]
        verdicts = {c.pair.b: c.verdict for c in evaluation.loss_comparisons if c.pair.a == first}
        rows = counted((model.rows for model in found.values()), "row")
        losses = {m: Entry(one.loss, verdict=verdicts.get(m)) for m, one in found.items()}
        perplexities = {m: Entry(one.perplexity) for m, one in found.items()}
        of = f"stage {evaluation.stage.name}"
        lines.append(Line("Loss, nats per token", of, "number", "lower", rows, first, losses))
        lines.append(Line("Perplexity", of, "number", "lower", rows, None, perplexities))
    if preferences := evaluation.preferences:
        against = {c.difference.b: c.verdict("reward_accuracy") for c in preferences.against_reference}
        shares = {}
        for name, one in preferences.models.items():
            share = one.reward_accuracy
            shares[name] = (
                Entry(share.estimate, remark="by definition")
                if preferences.at_chance_by_definition(name)
                else Entry(share.estimate, share.low, share.high, against.get(name))
            )
        pairs = counted([preferences.pairs], "pair")
        of = f"stage {evaluation.stage.name}"
        lines.append(Line("Reward accuracy", of, "share", "higher", pairs, preferences.reference, shares))
    if feedback := evaluation.feedback:
        against = {
            one.b: gain_verdict(one.separation.low, one.separation.high)
            for one in feedback.found.differences
            if one.separation is not None and one.a == feedback.found.reference
        }
        areas = {}
        for name, model in feedback.models.items():
            if (area := model.separation) is not None:
                areas[name] = (
                    Entry(area.estimate, remark="by definition")
                    if name == feedback.found.reference
                    else Entry(area.estimate, area.low, area.high, against.get(name))
                )
        rows = counted([feedback.found.rows], "row")
        of = f"stage {evaluation.stage.name}"
        lines.append(Line("Separation of judged replies", of, "share", "higher", rows, feedback.found.reference, areas))
    return lines


def _checked_lines(evaluation: EvalFacts) -> list[Line]:
    rates = {name: found.all for name, found in evaluation.accuracy.items() if found.all.checked}
    if not rates:
        return []
    first = evaluation.models[0]
    verdicts = {c.pair.b: c.verdict for c in evaluation.accuracy_comparisons if c.pair.a == first}
    entries = {name: Entry(r.accuracy, r.low, r.high, verdicts.get(name)) for name, r in rates.items()}
    prompts = counted((rate.checked for rate in rates.values()), "prompt")
    of = f"fixed prompts, {evaluation.stage.name}"
    return [Line("Right answers", of, "share", "higher", prompts, first, entries)]


def _cut(number: int) -> str:
    return f"{number:,} cut" if number else ""


def _length_line(benchmark: BenchmarkFacts, several: bool) -> Line | None:
    lengths = benchmark.record.replies
    tokens = {name: one.tokens_mean for name, one in lengths.items()}
    in_tokens = any(value is not None for value in tokens.values())
    values = tokens if in_tokens else {name: one.characters_mean for name, one in lengths.items()}
    if all(value is None for value in values.values()):
        return None
    entries = {name: Entry(value, remark=_cut(lengths[name].cut)) for name, value in values.items()}
    of = "tokens a reply" if in_tokens else "characters a reply"
    answers = counted((one.answered for one in benchmark.record.accounting.values()), "answer")
    return Line(_of(benchmark, several), of, "tokens", "neither", answers, None, entries)


def _reply_lines(evaluation: EvalFacts) -> list[Line]:
    entries = {
        model: Entry(tokens, remark=_cut(evaluation.cut_replies(model)))
        for model in evaluation.models
        if (tokens := evaluation.reply_tokens(model)) is not None
    }
    if not entries:
        return []
    prompts = counted([len(evaluation.prompts)], "prompt")
    return [
        Line("Fixed prompts", f"tokens a reply, {evaluation.stage.name}", "tokens", "neither", prompts, None, entries)
    ]


def _cost_lines(benchmarks: Sequence[BenchmarkFacts], models: Sequence[str]) -> list[Line]:
    """Return sums over all benchmarks; of a model for which one of them is not known there is no sum."""
    costs = {m: [b.record.cost[m] for b in benchmarks if m in b.record.cost] for m in models}
    lines = []
    for label, field, unit in (
        ("Tokens read", "prompt_tokens", "count"),
        ("Tokens written", "completion_tokens", "count"),
        ("Time of the replies", "seconds", "seconds"),
    ):
        sums = {}
        for model, own in costs.items():
            values = [getattr(cost, field) for cost in own]
            if values and None not in values:
                sums[model] = Entry(sum(values))
        if sums:
            lines.append(Line(label, "all benchmarks together", unit, "neither", "", None, sums))
    return lines
