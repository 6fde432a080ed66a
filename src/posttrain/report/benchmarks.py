"""The benchmarks of an eval stage: their files read, and what follows from them (verdicts, sides of a comparison)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.artifacts import StageDir
from posttrain.report.benchmark_records import (
    BenchmarkRecord,
    BenchmarkRow,
    Difference,
    Measure,
    Result,
    WinRates,
)
from posttrain.report.reading import Gap, Stage, json_lines, json_value, optional, parse
from posttrain.report.records import Estimate
from posttrain.report.verdicts import Verdict, measure_verdict, paired_gain_verdict
from posttrain.stats.intervals import holm

FOLDER = "benchmarks"


@dataclass(frozen=True, slots=True)
class MeasureDifference:
    """One measure of two models."""

    record: Difference
    measure: Measure
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Contest:
    """One model against another, the later model of the stage first. Ties count half in ``rate``."""

    model: str
    against: str
    wins: int
    losses: int
    ties: int
    missing: int
    rate: Estimate | None
    p_value: float | None
    """Sign test of wins against losses."""
    adjusted_p: float | None
    """Holm's, over the contests of this benchmark."""
    verdict: Verdict

    @property
    def judged(self) -> int:
        """Questions with an outcome."""
        return self.wins + self.losses + self.ties


@dataclass(frozen=True, slots=True)
class BenchmarkFacts:
    """One benchmark of an eval stage. ``record.models[0]`` is the baseline of differences."""

    stage: str
    name: str
    """The title, with the recipe's name for it where the stage has another of that title."""
    record: BenchmarkRecord
    rows: tuple[BenchmarkRow, ...]
    results: Mapping[tuple[str, str, str | None], Result]
    """By model, measure and category."""
    differences: tuple[MeasureDifference, ...]
    contests: tuple[Contest, ...]

    @property
    def key_says_more(self) -> bool:
        """Whether the recipe's name for it differs from the title in more than its spelling."""
        return _letters(self.record.key) != _letters(self.record.title)

    @property
    def rows_file(self) -> str:
        """The rows file, from the run folder on."""
        return f"{self.stage}/{FOLDER}/{self.record.key}.rows.jsonl"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures with a result, headlines first."""
        known = dict.fromkeys(measure for _, measure, _ in self.results)
        ordered = sorted(self.record.measures, key=lambda measure: not measure.headline)
        return tuple(measure for measure in ordered if measure.key in known)

    @property
    def headlines(self) -> tuple[Measure, ...]:
        """Measures for the overview of all models: those marked so, else the first."""
        return tuple(measure for measure in self.measures if measure.headline) or self.measures[:1]

    def categories(self, measure: str) -> tuple[str, ...]:
        """Categories with a result of a measure, in order of appearance."""
        return tuple(dict.fromkeys(c for _, key, c in self.results if key == measure and c is not None))

    def prompts(self, measure: str, category: str | None = None) -> tuple[int, ...]:
        """Prompts behind a measure: one number a model that has it."""
        found = (self.results.get((model, measure, category)) for model in self.record.models)
        return tuple(result.prompts for result in found if result is not None)

    def against_baseline(self, model: str, measure: str) -> Verdict | None:
        """Whether a model's measure differs from the baseline's; None where the two were not compared."""
        start = self.record.baseline
        for one in self.differences:
            if (one.record.a, one.record.b, one.record.measure) == (start, model, measure):
                return one.verdict
        return None

    def by_definition(self, result: Result) -> bool:
        """Whether a value is one half because the others are compared with the baseline, and it only with itself."""
        start = self.record.baseline
        half = result.model == start and result.estimate == result.low == result.high == 0.5
        return half and bool(self.contests) and all(contest.against == start for contest in self.contests)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_benchmarks(folder: StageDir, stage: Stage, gaps: list[Gap]) -> tuple[BenchmarkFacts, ...]:
    """Return the benchmarks of an eval stage in the recipe's order; one that is due but not there, or damaged, is a gap."""
    config = stage.manifest.config if stage.manifest else {}
    declared = config.get("benchmarks")
    due = [str(key) for key in declared] if isinstance(declared, Mapping) else []
    written = sorted(path.name.removesuffix(".json") for path in (folder.path / FOLDER).glob("*.json"))
    found = []
    for key in dict.fromkeys([*due, *written]):
        record = optional(
            gaps,
            stage,
            folder.file(FOLDER, f"{key}.json"),
            f"the benchmark {key} is not in this report",
            lambda path: parse(BenchmarkRecord, json_value(path), path),
        )
        if record is None:
            continue
        rows = optional(
            gaps,
            stage,
            folder.file(FOLDER, f"{key}.rows.jsonl"),
            f"there are no replies to {key} to read",
            _rows,
        )
        if rows and (problem := contradiction(record, rows)):
            gaps.append(Gap(stage.name, "damaged", f"Stage {stage.name}: {key}.json {problem}"))
        found.append((record, rows or ()))
    titles = Counter(record.title for record, _ in found)
    return tuple(benchmark_facts(stage.name, record, rows, named=titles[record.title] > 1) for record, rows in found)


def _rows(path: Path) -> tuple[BenchmarkRow, ...]:
    return parse(tuple[BenchmarkRow, ...], json_lines(path), path)


def benchmark_facts(
    stage: str, record: BenchmarkRecord, rows: Sequence[BenchmarkRow] = (), *, named: bool = False
) -> BenchmarkFacts:
    """Return what follows from the files of a benchmark. ``named``: its title alone does not tell which one it is."""
    measures = {measure.key: measure for measure in record.measures}
    return BenchmarkFacts(
        stage=stage,
        name=f"{record.title} ({record.key})" if named else record.title,
        record=record,
        rows=tuple(rows),
        results={(one.model, one.measure, one.category): one for one in record.results},
        differences=tuple(
            MeasureDifference(one, measure, _difference_verdict(one, measure, record.confidence))
            for one in record.differences
            if (measure := measures.get(one.measure)) is not None
        ),
        contests=contests(record),
    )


def contradiction(record: BenchmarkRecord, rows: Sequence[BenchmarkRow]) -> str | None:
    """Say where a record does not sum up, or counts other answers than its rows hold."""
    held = Counter(row.model for row in rows)
    for model, account in record.accounting.items():
        kept = account.measured + sum(account.dropped.values())
        if account.asked != kept:
            return f"asked {model} for {account.asked} answers and accounts for {kept}."
        if account.asked != held[model]:
            return f"counts {account.asked} answers of {model}, its rows file holds {held[model]}."
    return None


def _difference_verdict(one: Difference, measure: Measure, confidence: float) -> Verdict:
    if one.low is None or one.high is None or one.adjusted_p is None:
        return "not shown"
    return measure_verdict(one.low, one.high, one.adjusted_p, confidence, measure.better)


def contests(record: BenchmarkRecord) -> tuple[Contest, ...]:
    """Return the win rates with the later model of the stage first, p-values adjusted over all of them."""
    tested = [one.p_value for one in record.win_rates if one.p_value is not None]
    adjusted = iter(holm(tested))
    place = {model: number for number, model in enumerate(record.models)}
    return tuple(
        _contest(one, next(adjusted) if one.p_value is not None else None, place, record.confidence)
        for one in record.win_rates
    )


def _contest(one: WinRates, adjusted_p: float | None, place: Mapping[str, int], confidence: float) -> Contest:
    turned = place.get(one.model_a, -1) < place.get(one.model_b, -1)
    rate = one.adjusted
    if rate is not None and turned:
        rate = Estimate(1 - rate.estimate, 1 - rate.high, 1 - rate.low)
    verdict: Verdict = "not shown"
    if rate is not None and adjusted_p is not None:
        verdict = paired_gain_verdict(rate.low - 0.5, rate.high - 0.5, adjusted_p, confidence)
    return Contest(
        model=one.model_b if turned else one.model_a,
        against=one.model_a if turned else one.model_b,
        wins=one.losses if turned else one.wins,
        losses=one.wins if turned else one.losses,
        ties=one.ties,
        missing=one.missing,
        rate=rate,
        p_value=one.p_value,
        adjusted_p=adjusted_p,
        verdict=verdict,
    )


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
