"""What follows from the records of an evaluation: verdicts, the sides of a comparison, and what can't be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.judge.pool import MANY_UNREAD, JudgeEntry
from posttrain.report.reading import Gap, Stage, optional
from posttrain.report.verdicts import Verdict, gain_verdict, paired_gain_verdict
from posttrain.report.words import plural
from posttrain.stats.intervals import Interval, holm
from posttrain.tasks.records import Difference, Measure, Result, TaskRecord, TaskRow, read_record, read_rows

BENCHMARKS = "benchmarks"
"""The folder of those that the recipe names."""
OWN = ("preferences", "feedback", "likelihood", "prompts")
"""The records in the stage's own folder, in the order of the page."""
Outcome = Literal["gained", "lost", "both right", "both wrong", "right", "wrong", "not checked"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of two models, with what its difference shows."""

    record: Difference
    measure: Measure
    verdict: Verdict

    @property
    def names(self) -> str:
        """``sft minus base``."""
        return f"{self.record.b} minus {self.record.a}"


@dataclass(frozen=True, slots=True)
class Contest:
    """One model against another, the later model of the stage first. Ties count half in ``rate``."""

    model: str
    against: str
    wins: int
    losses: int
    ties: int
    missing: int
    rate: Interval | None
    p_value: float
    """Sign test of wins against losses."""
    adjusted_p: float
    """Holm's, over the contests of this record."""
    verdict: Verdict

    @property
    def judged(self) -> int:
        """Questions with an outcome."""
        return self.wins + self.losses + self.ties


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """One measurement of an eval stage."""

    stage: str
    name: str
    """The title, with the recipe's name for it where the stage has another of that title."""
    folder: str
    """Of its files, from the run folder on."""
    record: TaskRecord
    rows: tuple[TaskRow, ...]
    results: Mapping[tuple[str, str, str | None], Result]
    """By model, measure and category."""
    differences: tuple[Compared, ...]
    contests: tuple[Contest, ...]

    @property
    def is_benchmark(self) -> bool:
        """Whether the recipe named it, rather than rows or prompts."""
        return self.record.area not in ("held_out", "prompts")

    @property
    def is_held_out(self) -> bool:
        """Whether rows were scored, rather than replies."""
        return self.record.area == "held_out"

    @property
    def unit(self) -> str:
        """What it was measured on, one of them, in a word."""
        return "pair" if self.record.task == "preferences" else "row" if self.is_held_out else "prompt"

    def count_of(self, number: int) -> str:
        """So many of them: ``98 held-out rows``."""
        if self.record.task == "feedback":
            return plural(number, "held-out judged reply", "held-out judged replies")
        return plural(number, f"held-out {self.unit}" if self.is_held_out else self.unit)

    @property
    def rows_file(self) -> str:
        """The rows file, from the run folder on."""
        return f"{self.folder}/{self.record.key}.rows.jsonl"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures with a result, headlines first."""
        known = {measure for _, measure, _ in self.results}
        ordered = sorted(self.record.measures, key=lambda measure: not measure.headline)
        return tuple(measure for measure in ordered if measure.key in known)

    @property
    def headlines(self) -> tuple[Measure, ...]:
        """Measures for the overview of all models: those marked so, else the first."""
        return tuple(measure for measure in self.measures if measure.headline) or self.measures[:1]

    def result(self, model: str, measure: Measure, category: str | None = None) -> Result | None:
        """A measure of a model, over all prompts or those of a category."""
        return self.results.get((model, measure.key, category))

    def categories(self, measure: str) -> tuple[str, ...]:
        """Categories with a result of a measure, in order of appearance."""
        return tuple(dict.fromkeys(c for _, key, c in self.results if key == measure and c is not None))

    def prompts(self, measure: str, category: str | None = None) -> tuple[int, ...]:
        """Prompts behind a measure: one number a model that has it."""
        found = (self.results.get((model, measure, category)) for model in self.record.models)
        return tuple(result.prompts for result in found if result is not None)

    def against_baseline(self, model: str, measure: str) -> Compared | None:
        """How a model's measure differs from the baseline's; None where the two were not compared."""
        wanted = (self.record.baseline, model, measure)
        return next((c for c in self.differences if (c.record.a, c.record.b, c.record.measure) == wanted), None)

    @property
    def unread_judges(self) -> tuple[JudgeEntry, ...]:
        """Judges of which too many calls gave no verdict."""
        judges = self.record.judge.judges if self.record.judge else ()
        return tuple(judge for judge in judges if judge.calls.unread > MANY_UNREAD)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_stage(stage: Stage, gaps: list[Gap]) -> tuple[TaskFacts, ...]:
    """The measurements of an eval stage; one that is due but not there, or damaged, becomes a gap."""
    folder, declared = stage.folder, stage.config.get("benchmarks")
    due = [str(key) for key in declared] if isinstance(declared, Mapping) else []
    written = sorted(path.name.removesuffix(".json") for path in (folder.path / BENCHMARKS).glob("*.json"))
    places = [(key, BENCHMARKS) for key in dict.fromkeys([*due, *written])]
    places += [(key, "") for key in OWN if folder.file(f"{key}.json").exists() or key in _own(stage)]
    found = []
    for key, room in places:
        lacks = f"{key} is not in this report"
        record = optional(gaps, stage, folder.file(room, f"{key}.json"), lacks, read_record)
        if record is None:
            continue
        lacks = f"there are no rows of {key} to read"
        rows = optional(gaps, stage, folder.file(room, f"{key}.rows.jsonl"), lacks, read_rows)
        if rows and (problem := contradiction(record, rows)):
            gaps.append(Gap(stage.name, "damaged", f"Stage {stage.name}: {key}.json {problem}"))
        found.append((record, rows or (), "/".join(part for part in (stage.name, room) if part)))
    titles = Counter(record.title for record, _, _ in found)
    return tuple(
        facts_of(stage.name, record, rows, where, named=titles[record.title] > 1) for record, rows, where in found
    )


def _own(stage: Stage) -> tuple[str, ...]:
    """The records in its own folder that a finished stage must have, as far as its result tells."""
    result = (stage.manifest.result or {}) if stage.manifest else {}
    measures = {"preferences": "reward_accuracy", "feedback": "roc_area", "likelihood": "loss", "prompts": "accuracy"}
    return tuple(key for key, measure in measures.items() if measure in result)


def facts_of(
    stage: str, record: TaskRecord, rows: Sequence[TaskRow] = (), folder: str = "", *, named: bool = False
) -> TaskFacts:
    """What follows from the files of a measurement. ``named``: its title alone does not tell which one it is."""
    measures = {measure.key: measure for measure in record.measures}
    return TaskFacts(
        stage=stage,
        name=f"{record.title} ({record.key})" if named else record.title,
        folder=folder,
        record=record,
        rows=tuple(rows),
        results={(one.model, one.measure, one.category): one for one in record.results},
        differences=tuple(
            Compared(one, measures[one.measure], difference_verdict(one, measures[one.measure], record.confidence))
            for one in record.differences
            if one.measure in measures
        ),
        contests=contests(record),
    )


def contradiction(record: TaskRecord, rows: Sequence[TaskRow]) -> str | None:
    """Say where a record does not sum up, or counts other answers than its rows hold."""
    held = Counter(row.model for row in rows)
    for model, account in record.accounting.items():
        kept = account.measured + sum(account.dropped.values())
        if account.asked != kept:
            return f"asked {model} for {account.asked} answers and accounts for {kept}."
        if account.asked != held[model]:
            return f"counts {account.asked} answers of {model}, its rows file holds {held[model]}."
    if not record.accounting:
        for model in record.models:
            if held[model] != record.source.prompts:
                return f"counts {record.source.prompts} rows, its rows file holds {held[model]} of {model}."
    return None


def difference_verdict(one: Difference, measure: Measure, confidence: float) -> Verdict:
    """What a difference shows: by its interval, and by its test where it has one."""
    if one.low is None or one.high is None:
        return "not shown"
    p_value = one.p_value if one.adjusted_p is None else one.adjusted_p
    found = gain_verdict(one.low, one.high)
    if p_value is not None:
        found = paired_gain_verdict(one.low, one.high, p_value, confidence)
    if found == "not shown" or measure.better == "higher":
        return found
    if measure.better == "neither":
        return "differs"
    return "worse" if found == "improved" else "improved"


def contests(record: TaskRecord) -> tuple[Contest, ...]:
    """The win rates with the later model of the stage first, p-values adjusted over all of them."""
    adjusted = holm([one.p_value for one in record.win_rates])
    place = {model: number for number, model in enumerate(record.models)}
    found = []
    for one, adjusted_p in zip(record.win_rates, adjusted, strict=True):
        model, against, wins, losses, rate = one.model_a, one.model_b, one.wins, one.losses, one.adjusted
        if place.get(model, -1) < place.get(against, -1):
            model, against, wins, losses = against, model, losses, wins
            rate = rate and Interval(1 - rate.estimate, 1 - rate.high, 1 - rate.low, rate.confidence)
        verdict: Verdict = "not shown"
        if rate is not None:
            verdict = paired_gain_verdict(rate.low - 0.5, rate.high - 0.5, adjusted_p, record.confidence)
        counts = (wins, losses, one.ties, one.missing)
        found.append(Contest(model, against, *counts, rate, one.p_value, adjusted_p, verdict))
    return tuple(found)


def outcome_of(first: bool | None, last: bool | None, *, alone: bool) -> Outcome:
    """What became of a prompt between the first and the last model; None where a verdict is missing."""
    if last is None or (first is None and not alone):
        return "not checked"
    if alone:
        return "right" if last else "wrong"
    if first == last:
        return "both right" if last else "both wrong"
    return "gained" if last else "lost"
