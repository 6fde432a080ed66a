"""The three textbook experiments: run them, keep their numbers, and write the pages of docs/experiments from these numbers alone.

    python benchmarks/experiments.py run        every recipes/experiments/*.small.yaml, each where it was left; then the two below
    python benchmarks/experiments.py collect    runs/experiment-* -> docs/experiments/*.json
    python benchmarks/experiments.py write      docs/experiments/*.json -> docs/experiments/*.md and figures

What a textbook claims is held against the numbers by one rule: *seen* where the difference has the claimed sign and its 95% interval excludes
zero, *not seen* where the interval excludes zero on the other side, else *not decidable at this size*, with the interval.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posttrain.artifacts import RunDir, StageDir, plain, read_json, write_json, write_text
from posttrain.report import html, markdown
from posttrain.report.charts import draw
from posttrain.report.reading import Stage, parse
from posttrain.report.values import Block, Label, Number, Page, Section, Table, Text, charts_of
from posttrain.report.words import plural
from posttrain.stats.intervals import IntervalSettings, mean_difference, student
from posttrain.sweep.analysis import differences
from posttrain.sweep.outcome import outcome
from posttrain.sweep.records import SweepRecord, label_of, read_record
from posttrain.sweep.section import sweep_section
from posttrain.tasks.facts import TaskFacts, read_stage
from posttrain.tasks.measures import difference_of
from posttrain.tasks.records import TaskRecord

ROOT = Path(__file__).resolve().parents[1]
RECIPES, DOCS = ROOT / "recipes" / "experiments", ROOT / "docs" / "experiments"
Reading = Literal["seen", "not seen", "not decidable at this size"]
Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """Two settings of a sweep."""

    stage: str
    a: Changes
    b: Changes


@dataclass(frozen=True)
class Models:
    """Two models on one measure of an evaluation."""

    stage: str
    record: str
    measure: str
    a: str
    b: str


@dataclass(frozen=True)
class Claim:
    """What a textbook says, and the difference ``b`` minus ``a`` that would show it."""

    text: str
    source: str
    of: Settings | Models
    sign: Literal["higher", "lower"]
    """Of ``b``, as it is claimed."""


@dataclass(frozen=True)
class Found:
    """The difference behind a claim."""

    claim: str
    source: str
    sign: Literal["higher", "lower"]
    a: str
    b: str
    metric: str
    unit: Any
    estimate: float
    low: float
    high: float
    pairs: int
    """Rows or prompts that both were measured on."""

    @property
    def reading(self) -> Reading:
        """By the interval alone."""
        if self.low <= 0 <= self.high:
            return "not decidable at this size"
        return "seen" if (self.low > 0) == (self.sign == "higher") else "not seen"


@dataclass(frozen=True)
class Summary:
    """What is kept of one experiment: docs/experiments/<name>.json."""

    name: str
    title: str
    model: str
    machine: str
    hours: float
    sweeps: dict[str, SweepRecord]
    evaluations: dict[str, tuple[TaskRecord, ...]]
    found: tuple[Found, ...]


def _rank(rank: int, alpha: int) -> Changes:
    return {"sft.adapter.rank": rank, "sft.adapter.alpha": alpha}


def _share(share: float) -> Changes:
    return {"cleaned.mix": {"kind": "mix", "share": share}, "sft.max_steps": None}


def _data(name: str) -> Changes:
    return {"few.data": name}


COURSE = "the course"
GRAPE = "GRAPE (arXiv:2502.04194)"
TITLES = {"dpo": "DPO", "simpo": "SimPO", "orpo": "ORPO", "kto": "KTO", "ipo": "IPO"}
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "instruction": (
        Claim(
            "a base model that is tuned on instructions answers",
            COURSE,
            Models("evaluate", "prompts", "accuracy", "base", "assistant"),
            "higher",
        ),
        Claim(
            "and fits instructions better",
            COURSE,
            Models("evaluate", "likelihood", "loss", "base", "assistant"),
            "lower",
        ),
        Claim(
            "rank 8 is better than rank 4 (alpha = 2 rank)",
            COURSE,
            Settings("rank_and_alpha", _rank(4, 8), _rank(8, 16)),
            "lower",
        ),
        Claim(
            "rank 16 adds nothing to rank 8 (alpha = 2 rank): it is worse",
            COURSE,
            Settings("rank_and_alpha", _rank(8, 16), _rank(16, 32)),
            "higher",
        ),
        Claim(
            "at one alpha the rank hardly matters: rank 16 is no better than 4",
            "LoRA Without Regret (2025)",
            Settings("rank_and_alpha", _rank(4, 16), _rank(16, 16)),
            "higher",
        ),
        Claim(
            "a larger alpha acts like a larger rate: alpha 32 learns more than 8 in few steps",
            "LoRA Without Regret (2025)",
            Settings("rank_and_alpha", _rank(8, 8), _rank(8, 32)),
            "lower",
        ),
        Claim(
            "rates above 5e-4 are too large for LoRA: 1.5e-3 is worse",
            "Biderman et al. (arXiv:2405.09673)",
            Settings("rates", {"sft.learning_rate": 5e-4}, {"sft.learning_rate": 1.5e-3}),
            "higher",
        ),
        Claim(
            "50 chosen rows beat 50 at random",
            "LIMA (arXiv:2305.11206)",
            Settings("few_or_many", _data("random_50"), _data("chosen_50")),
            "lower",
        ),
        Claim(
            "150 chosen rows beat 150 at random",
            "LIMA (arXiv:2305.11206)",
            Settings("few_or_many", _data("random_150"), _data("chosen_150")),
            "lower",
        ),
        Claim(
            "50 chosen rows beat all of them, at equal steps",
            "LIMA (arXiv:2305.11206)",
            Settings("few_or_many", _data("prepare"), _data("chosen_50")),
            "lower",
        ),
    ),
    "domain": (
        Claim(
            "a model that is tuned on a domain fits it better",
            COURSE,
            Models("evaluate", "likelihood", "loss", "base", "tuned"),
            "lower",
        ),
        Claim(
            "and answers more of the prompts of all kinds",
            COURSE,
            Models("evaluate", "prompts", "accuracy", "base", "tuned"),
            "higher",
        ),
        Claim(
            "half of the rows is better than a quarter",
            COURSE,
            Settings("quantity", _share(0.25), _share(0.5)),
            "lower",
        ),
        Claim("all rows are better than half of them", COURSE, Settings("quantity", _share(0.5), _share(1.0)), "lower"),
        Claim(
            "cleaned rows beat rows as they come, at equal steps",
            COURSE,
            Settings("quality", {"compared.data": "everything"}, {"compared.data": "cleaned"}),
            "lower",
        ),
        Claim(
            "the best quarter beats all of them, at equal steps",
            "LIMA (arXiv:2305.11206)",
            Settings("quality", {"compared.data": "cleaned"}, {"compared.data": "few"}),
            "lower",
        ),
        Claim(
            "of two answers to a prompt the likelier one beats one taken blindly, at equal steps",
            GRAPE,
            Settings("grape", {"taught.data": "either"}, {"taught.data": "likeliest"}),
            "lower",
        ),
        Claim(
            "and both of them",
            GRAPE,
            Settings("grape", {"taught.data": "answers"}, {"taught.data": "likeliest"}),
            "lower",
        ),
        Claim(
            "rank 16 is no better than rank 8 (one alpha)",
            "LoRA Without Regret (2025)",
            Settings("rank", {"sft.adapter.rank": 8}, {"sft.adapter.rank": 16}),
            "higher",
        ),
    ),
    "alignment": (
        *(
            Claim(
                f"{TITLES[name]} favours the better reply of held-out pairs more often than the model it starts from",
                COURSE,
                Models("evaluate", "preferences", "reward_accuracy", "sft", name),
                "higher",
            )
            for name in ("dpo", "simpo", "orpo", "kto", "ipo")
        ),
        *(
            Claim(
                f"{TITLES[name]} learns what the pairs ask for: more replies of at most 25 words",
                COURSE,
                Models("evaluate", "prompts", "accuracy", "sft", name),
                "higher",
            )
            for name in ("dpo", "simpo", "orpo", "kto", "ipo")
        ),
        Claim(
            "SimPO beats DPO",
            "SimPO (arXiv:2405.14734)",
            Models("evaluate", "prompts", "accuracy", "dpo", "simpo"),
            "higher",
        ),
        Claim(
            "preference training costs variety",
            COURSE,
            Models("evaluate", "diversity", "distinct_2", "sft", "dpo"),
            "lower",
        ),
        Claim(
            "and makes over-refusal worse", COURSE, Models("evaluate", "safety", "over_refusal", "sft", "dpo"), "higher"
        ),
        Claim(
            "beta 0.1 is better than 0.05",
            COURSE,
            Settings("beta", {"dpo.objective.beta": 0.05}, {"dpo.objective.beta": 0.1}),
            "higher",
        ),
        Claim(
            "and than 0.5", COURSE, Settings("beta", {"dpo.objective.beta": 0.5}, {"dpo.objective.beta": 0.1}), "higher"
        ),
    ),
}


# ---- collecting ------------------------------------------------------------------------------------------------------


def collect(name: str, run: RunDir) -> Summary:
    """What is kept of a finished run. Raises RunError where a sweep or a record can't be read."""
    sweeps = {path.parent.name: read_record(path) for path in sorted(run.path.glob("*/sweep.json"))}
    evaluated = {path.parent.name for path in run.path.glob("*/manifest.json") if read_json(path)["kind"] == "eval"}
    facts = {
        stage: read_stage(Stage(stage, "eval", "complete", None, None, run.stage(stage)), [])
        for stage in sorted(evaluated)
    }
    manifests = [read_json(path) for path in run.path.rglob("manifest.json")]
    found = (_found(claim, run, sweeps, facts) for claim in CLAIMS[name])
    page = read_json(run.path / "summary.json")
    return Summary(
        name=name,
        title=page["title"],
        model=page["model"],
        machine=f"{platform.machine()}, a CPU",
        hours=sum(one.get("seconds") or 0.0 for one in manifests if one["kind"] not in ("sweep", "report")) / 3600,
        sweeps=sweeps,
        evaluations={stage: tuple(one.record for one in several) for stage, several in facts.items()},
        found=tuple(one for one in found if one is not None),
    )


def _found(
    claim: Claim, run: RunDir, sweeps: Mapping[str, SweepRecord], facts: Mapping[str, tuple[TaskFacts, ...]]
) -> Found | None:
    of = claim.of
    words: dict[str, Any] = {"claim": claim.text, "source": claim.source, "sign": claim.sign}
    if isinstance(of, Settings):
        record = sweeps.get(of.stage)
        return None if record is None else _of_settings(words, of, run, record)
    facts_of = next((one for one in facts.get(of.stage, ()) if one.record.key == of.record), None)
    if facts_of is None:
        return None
    measure = next(one for one in facts_of.record.measures if one.key == of.measure)
    written = next((d for d in facts_of.record.differences if (d.a, d.b, d.measure) == (of.a, of.b, of.measure)), None)
    if written is None:  # neither is the baseline
        a, b = (
            {
                row.prompt_id: [row.values[of.measure]]
                for row in facts_of.rows
                if row.model == name and of.measure in row.values
            }
            for name in (of.a, of.b)
        )
        written = difference_of(a, b, IntervalSettings(), models=(of.a, of.b), measure=of.measure)
    if written is None or written.low is None or written.high is None:
        return None
    return Found(
        **words,
        a=of.a,
        b=of.b,
        metric=measure.label,
        unit=measure.unit,
        estimate=written.difference,
        low=written.low,
        high=written.high,
        pairs=written.prompts,
    )


def _of_settings(words: Mapping[str, Any], of: Settings, run: RunDir, record: SweepRecord) -> Found | None:
    """Over the same rows and, with several seeds, the noise between seeds of the whole sweep."""
    chosen = [
        one
        for wanted in (of.a, of.b)
        for one in record.settings
        if dict(one.changes) == dict(wanted) and one.value is not None
    ]
    if len(chosen) != 2:
        return None
    config = read_json(run.stage(of.stage).file("manifest.json"))["config"]
    found = [
        [outcome(StageDir(run.path / each.folder), config["metric"], config["model"]).rows for each in one.runs]
        for one in chosen
    ]
    rows = [row for row in found[0][0] if all(row in each for several in found for each in several)]
    values_2SR = np.array([[[each[row] for row in rows] for each in several] for several in found])
    gap = mean_difference(*values_2SR.mean(axis=1), noise=record.noise, seeds=values_2SR.shape[1])
    seen = student(*gap, differences(values_2SR, lower=True).freedom, record.confidence)
    return Found(
        **words,
        a=label_of(of.a),
        b=label_of(of.b),
        metric=record.metric,
        unit=record.unit,
        estimate=seen.estimate,
        low=seen.low,
        high=seen.high,
        pairs=len(rows),
    )


# ---- the pages -------------------------------------------------------------------------------------------------------


def page(summary: Summary) -> Page:
    """The page of an experiment, from its summary alone."""
    counted = {
        reading: sum(one.reading == reading for one in summary.found)
        for reading in ("seen", "not seen", "not decidable at this size")
    }
    runs = sum(len(one.runs) for sweep in summary.sweeps.values() for one in sweep.settings)
    opening = (
        f"Of {plural(len(summary.found), 'claim')}, "
        + ", ".join(f"{count} {reading}" for reading, count in counted.items())
        + ". "
        "The difference decides: a claim is seen where it has the claimed sign and its 95% interval excludes zero."
    )
    claims = Table(
        "",
        ("Claim", "Source", "Difference", "b - a", "Reading"),
        tuple(
            (
                one.claim,
                one.source,
                Label(one.metric, f"a: {one.a}; b: {one.b}; {one.pairs} pairs"),
                _difference(one),
                one.reading,
            )
            for one in summary.found
        ),
    )
    sections = [Section("What the textbook says, and what was seen", "claims", (Text(opening), claims))]
    sections += [
        _evaluation(stage, records)
        for stage, records in summary.evaluations.items()
        if len(records) > 1 or len(records[0].models) > 2
    ]
    sections += [
        _sweep(sweep_section(record, f"{summary.name}-{name}"), name) for name, record in summary.sweeps.items()
    ]
    facts = (
        ("model", summary.model),
        ("runs of sweeps", Number(runs, "count")),
        ("time of all runs", Number(3600 * summary.hours, "seconds")),
        ("", summary.machine),
    )
    footer = "Written by benchmarks/experiments.py from the numbers beside it (make experiments)."
    return Page("Experiment, small form", summary.title, tuple(sections), facts=facts, footer=footer)


def _difference(one: Found) -> Number:
    return Number(one.estimate, one.unit, one.low, one.high, digits=None if one.unit == "share" else 3, signed=True)


def _sweep(section: Section, name: str) -> Section:
    return Section(f"Sweep: {name.replace('_', ' ')}", section.anchor, section.blocks)


def _evaluation(stage: str, records: tuple[TaskRecord, ...]) -> Section:
    blocks: list[Block] = []
    for record in records:
        headline = [one for one in record.measures if one.headline] or list(record.measures[:1])
        results = {(one.model, one.measure): one for one in record.results if one.category is None}
        shown = [one for one in headline if any((model, one.key) in results for model in record.models)]
        rows = tuple(
            (
                model,
                *(
                    Number(r.estimate, measure.unit, r.low, r.high)
                    if (r := results.get((model, measure.key)))
                    else None
                    for measure in shown
                ),
            )
            for model in record.models
        )
        blocks.append(Table(record.title, ("Model", *(one.label for one in shown)), rows))
    return Section(f"Evaluation: {stage}", stage, tuple(blocks))


def write(folder: Path = DOCS) -> dict[str, str]:
    """The pages of all summaries in a folder: file name -> text, figures included."""
    css, found = html.package_text("figure.css"), {}
    for path in sorted(folder.glob("*.json")):
        one = page(parse(Summary, read_json(path), path))
        found[f"{path.stem}.md"] = markdown.page(one)
        for chart in charts_of(one):
            if figure := draw(chart):
                found[f"figures/{figure.name}.svg"] = figure.standalone(css)
    return found


def main(verb: str) -> None:
    """Run, collect or write."""
    if verb == "run":
        for name in CLAIMS:
            subprocess.run([sys.executable, "-m", "posttrain", "run", str(RECIPES / f"{name}.small.yaml")], check=True)
    if verb in ("run", "collect"):
        for name in CLAIMS:
            run = RunDir(Path("runs") / f"experiment-{name}")
            if (run.path / "summary.json").is_file():
                write_json(DOCS / f"{name}.json", plain(collect(name, run)))
    for file, text in write().items():
        write_text(DOCS / file, text)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("run", "collect", "write"):
        raise SystemExit(__doc__)
    main(sys.argv[1])
