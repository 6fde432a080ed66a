"""The report of a run, composed from what its stages say of themselves: one page, the same as Markdown, charts as files, summary.json.

Works on unfinished runs: what is absent, damaged, failed or still running is named at the top, and the rest is read all the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from rich.console import RenderableType

from posttrain.artifacts import Ledger, LedgerStep, Manifest, RunDir, write_json, write_text
from posttrain.doctor.diagnosis import Diagnosis, alarm_texts, diagnose, diagnosis_section
from posttrain.errors import RunError
from posttrain.report import html, markdown, numbers, plain, terminal, values
from posttrain.report.charts import draw
from posttrain.report.figure import file_name
from posttrain.report.ledger import funnel
from posttrain.report.reading import Gap, Stage, optional, parse, read_ledger
from posttrain.report.verdicts import CLAIMS
from posttrain.report.words import join, plural
from posttrain.stages.base import StageKind
from posttrain.stages.ways import way_lines
from posttrain.table import grouped

REJECT_LIMIT = 50
"""Dropped rows shown in the page for each stage; ledger.json has all of them."""
MOST_ADVICE = 4
MOST_QUALITY = 6
"""Headline numbers of quality on the first screen; all are in the table of all models."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder: what its recipe and its manifests say, and the sections of its stages."""

    name: str
    title: str
    model: str | None
    seed: int | None
    recipe_text: str | None
    stages: tuple[Stage, ...]
    by_kind: tuple[tuple[values.Section, ...], ...]
    """The sections of each kind of stages, in the order of a recipe."""
    gaps: tuple[Gap, ...]
    diagnosis: Diagnosis

    @property
    def sections(self) -> tuple[values.Section, ...]:
        """In the order of the page: what came out first, what went in last."""
        return tuple(section for several in reversed(self.by_kind) for section in several)

    @property
    def status(self) -> Literal["complete", "incomplete", "failed"]:
        """``failed`` where a stage failed, ``complete`` where every stage ended and every artefact is there."""
        if any(stage.status == "failed" for stage in self.stages):
            return "failed"
        return "incomplete" if self.gaps else "complete"

    @property
    def seconds(self) -> float:
        """Time of all stages together."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def started(self) -> float | None:
        """Unix seconds at which the first stage started."""
        return min((s.manifest.started for s in self.stages if s.manifest and s.manifest.started), default=None)

    @property
    def summary(self) -> str:
        """What was done and what came of it, in one paragraph."""
        unfinished = [stage.name for stage in self.stages if stage.status != "complete"]
        last = f"The run is not complete: {join(unfinished)} did not finish." if unfinished else ""
        summaries = [section.summary for several in self.by_kind for section in several]
        return " ".join(text for text in (*summaries, last) if text)

    @property
    def headlines(self) -> tuple[values.Headline, ...]:
        """The numbers of the first screen: quality first, then cost."""
        found = [one for section in self.sections for one in section.headlines]
        return tuple(sorted(found, key=lambda one: not one.quality))

    @property
    def findings(self) -> tuple[values.Finding, ...]:
        """What the stages show."""
        return tuple(one for section in self.sections for one in section.findings)

    @property
    def lines(self) -> tuple[values.Line, ...]:
        """All measures of all models."""
        return tuple(one for section in self.sections for one in section.lines)


def write_report(run: RunDir, kinds: Sequence[type[StageKind]], title: str | None = None) -> Path:
    """Write report/index.html, report/report.md, report/figures/*.svg and summary.json; return the path of the page.

    ``title`` replaces the recipe's name as the heading. Raises RunError where there is no run, no stage has started, or the folder can't
    be written. Equal artefacts give equal bytes.
    """
    page = run_page(read_run(run, kinds, title))
    folder = run.path / "report"
    shutil.rmtree(folder / "figures", ignore_errors=True)
    css = html.package_text("figure.css")
    for chart in values.charts_of(page):
        if figure := draw(chart):
            write_text(folder / "figures" / f"{figure.name}.svg", figure.standalone(css))
    write_text(folder / "report.md", markdown.page(page))
    write_text(folder / "index.html", html.page(page))
    write_json(run.path / "summary.json", plain.page(page))
    return folder / "index.html"


def terminal_summary(run: RunDir, kinds: Sequence[type[StageKind]]) -> RenderableType:
    """Return the first screen of the report for ``rich.print``. Raises RunError as `write_report`."""
    return terminal.page(run_page(read_run(run, kinds)))


# ---- reading -------------------------------------------------------------------------------------------------------


class Declared(NamedTuple):
    """The stages of a run folder, what is missing of them, and the recipe: as it stands there, and as a mapping."""

    stages: list[Stage]
    gaps: list[Gap]
    text: str | None
    recipe: Mapping[str, Any]


def read_stages(run: RunDir, kinds: Sequence[type[StageKind]]) -> Declared:
    """Return the stages of a run folder, as its recipe and its manifests tell of them.

    Raises RunError where the folder does not exist, no stage has started in it, or a manifest can't be read; anything less is a Gap.
    """
    if not run.path.is_dir():
        raise RunError("there is no run folder here", where=str(run.path), fix="run a recipe first, or name its folder")
    table = {kind.kind_name(): kind for kind in kinds}
    text, recipe, gaps = _recipe(run)
    declared = {name: _mapping(config) for name, config in _mapping(recipe.get("stages")).items()}
    stages = []
    for name in dict.fromkeys([*declared, *run.stages()]):
        stage, own = _stage(run, name, str(declared.get(name, {}).get("kind", "unknown")), table)
        known = table.get(stage.kind)
        if known is None or not known.reads_all:  # that one is being written
            stages.append(stage)
            gaps += own
    if not any(stage.manifest for stage in stages):
        raise RunError("no stage has started in this run folder", where=str(run.path), fix="run its recipe first")
    return Declared(stages, gaps, text, recipe)


def read_run(run: RunDir, kinds: Sequence[type[StageKind]], title: str | None = None) -> Run:
    """Return what a run folder holds. Raises RunError as `read_stages`."""
    stages, gaps, text, recipe = read_stages(run, kinds)
    table = {kind.kind_name(): kind for kind in kinds}
    by_kind = []
    for name, kind in table.items():
        begun = [stage for stage in stages if stage.kind == name and stage.manifest]
        by_kind.append(kind.sections(begun, gaps) if begun else ())
    trained = any(stage.folder.file(kept).is_dir() for stage in stages for kept in ("adapter", "model"))
    if trained and not any(table[stage.kind].compares_models for stage in stages if stage.kind in table):
        gaps.append(Gap("", "missing", "The recipe has no stage that compares models, so nothing here does."))
    name, seed = str(recipe.get("name") or run.path.resolve().name), recipe.get("seed")
    titles = (_mapping(config).get("title") for config in _mapping(recipe.get("stages")).values())
    return Run(
        name=name,
        title=title or next((str(own) for own in titles if own), name),
        model=_model_name(recipe.get("model")),
        seed=seed if isinstance(seed, int) else None,
        recipe_text=text,
        stages=tuple(stages),
        by_kind=tuple(by_kind),
        gaps=tuple(gaps),
        diagnosis=diagnose(stages),
    )


def measured_lines(run: RunDir, kinds: Sequence[type[StageKind]]) -> tuple[values.Line, ...]:
    """Return the measures of all models of a run, without reading anything else. Raises RunError as `read_stages`."""
    found = read_stages(run, kinds)
    comparing = [kind for kind in kinds if kind.compares_models]
    begun = {kind: [one for one in found.stages if one.kind == kind.kind_name() and one.manifest] for kind in comparing}
    sections = [kind.sections(several, found.gaps) for kind, several in begun.items() if several]
    return tuple(line for several in sections for section in several for line in section.lines)


def _recipe(run: RunDir) -> tuple[str | None, Mapping[str, Any], list[Gap]]:
    path = run.path / "recipe.yaml"
    text = None
    try:
        text = path.read_text(encoding="utf-8")
        return text, _mapping(yaml.safe_load(text)), []
    except FileNotFoundError:
        return None, {}, [Gap("", "missing", "recipe.yaml is missing, so stages that never started are not known.")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return text, {}, [Gap("", "damaged", f"recipe.yaml can't be read ({' '.join(str(error).split())}).")]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _model_name(model: Any) -> str | None:
    """Return the model as the recipe names it: a plain string, or the ``path`` or ``name`` of a mapping."""
    if isinstance(model, Mapping):
        model = model.get("path") or model.get("name")
    return str(model) if model else None


def _stage(run: RunDir, name: str, declared: str, table: Mapping[str, type[StageKind]]) -> tuple[Stage, list[Gap]]:
    folder = run.stage(name)
    raw = folder.manifest()
    if raw is None:
        gap = Gap(name, "not started", f"Stage {name} ({declared}) has not started.")
        return Stage(name, declared, "not started", None, None, folder), [gap]
    manifest = parse(Manifest, raw, folder.file("manifest.json"))
    stage = Stage(name, manifest.kind, manifest.status, manifest, None, folder)
    gaps: list[Gap] = []
    if manifest.status == "failed":
        gaps.append(Gap(name, "failed", f"Stage {name} failed: {manifest.error or 'no message was recorded'}"))
    if manifest.status == "running":
        gaps.append(Gap(name, "running", f"Stage {name} has not finished: it is still running, or was stopped."))
    kind, path = table.get(manifest.kind), folder.file("ledger.json")
    if kind is None or not (kind.keeps_ledger(manifest.config) or path.exists()):
        return stage, gaps
    return replace(stage, ledger=optional(gaps, stage, path, "its rows can't be accounted for", read_ledger)), gaps


# ---- the page ------------------------------------------------------------------------------------------------------


def run_page(run: Run) -> values.Page:
    """Return the report."""
    facts: tuple[tuple[str, values.Cell], ...] = (
        ("", values.Mark(run.status)),
        ("Model", run.model),
        ("All stages", numbers.duration(run.seconds) if run.seconds else None),
        ("Started", numbers.moment(run.started) if run.started else None),
        ("Seed", None if run.seed is None else str(run.seed)),
    )
    box = diagnosis_section(run.diagnosis) if run.diagnosis.told else None
    own = [_glance(run), _shown(run), box, *run.sections, rows_section(run.stages), _provenance(run)]
    return values.Page(
        kind="posttrain report",
        title=run.title,
        facts=facts,
        headlines=(
            *[one for one in run.headlines if one.quality][:MOST_QUALITY],
            *(one for one in run.headlines if not one.quality),
        ),
        opening=_opening(run),
        sections=tuple(section for section in own if section is not None),
        footer="Every number here was read from the files of this run. The same numbers stand in summary.json, the charts in "
        "report/figures/. 1 GB is 10\N{SUPERSCRIPT NINE} bytes.",
        fields={
            "name": run.name,
            "model": run.model,
            "seed": run.seed,
            "status": run.status,
            "seconds": run.seconds,
            "started": run.started,
            "paragraph": run.summary,
            "gaps": run.gaps,
            "findings": run.findings,
        },
    )


def _opening(run: Run) -> tuple[values.Block, ...]:
    """Return the answers of the first screen: did it help, can it be trusted, what next."""
    gaps = tuple(gap.text for gap in run.gaps)
    warnings = (*alarm_texts(run.diagnosis), *dict.fromkeys(one.text for one in run.findings if one.topic == "Warning"))
    notices = (
        values.Notice("warning", "What this report can't show", gaps),
        values.Notice("warning", "Read with care", warnings),
        values.Notice("fact", "What next", _advice(run)),
    )
    return (values.Text(_answer(run), "lead"), *(notice for notice in notices if notice.texts))


def _answer(run: Run) -> str:
    """Return whether it helped: which headline numbers are better, worse, or show no difference."""
    by_verdict = grouped((one.verdict, one.label) for one in run.headlines if one.verdict)
    if not by_verdict:
        return run.summary or "No two models are compared here."
    claims = [f"{word} in {join(by_verdict[verdict])}" for verdict, word in CLAIMS.items() if verdict in by_verdict]
    if none := by_verdict.get("not shown"):
        claims.append(f"no difference is shown in {join(none)}, which is not the same as no difference")
    text = "; ".join(claims)
    return f"Did it help? {text[:1].upper()}{text[1:]}."


def _advice(run: Run) -> tuple[str, ...]:
    """Return what to do next: finish the run, then what the stages say, then what follows from the verdicts."""
    unfinished = any(stage.status != "complete" for stage in run.stages)
    found = ["Run the same command again: finished stages are kept."] if unfinished else []
    found += [text for section in run.sections for text in section.advice]
    verdicts = [one.verdict for one in run.headlines if one.verdict]
    if "worse" in verdicts:
        found.append("Something became worse: read the replies side by side.")
    elif any(section.anchor.startswith("replies") for section in run.sections):
        found.append("Read the replies side by side: numbers do not tell how a model sounds.")
    if "not shown" in verdicts:
        found.append("Where no difference is shown, more held-out rows or prompts would show a smaller one.")
    return tuple(dict.fromkeys(found))[:MOST_ADVICE]


def _shown(run: Run) -> values.Section | None:
    """Return what was done, and what each part shows; None where the opening has said it all."""
    if not run.findings and not any(one.verdict for one in run.headlines):
        return None
    rows = tuple((one.topic, values.Mark(one.verdict) if one.verdict else "", one.text) for one in run.findings)
    table = values.Table("What each part shows", ("Part", "Verdict", "What the numbers say"), rows)
    return values.Section(
        "What was done, and what it shows", "what", (values.Text(run.summary), *([table] if rows else []))
    )


def _glance(run: Run) -> values.Section | None:
    """Return everything that was measured: a line a measure, a column a model."""
    if not run.lines:
        return None
    models = tuple(dict.fromkeys(model for line in run.lines for model in line.cells))
    lines = (*run.lines, *way_lines(run.stages, models))
    rows: list[tuple[values.Cell, ...] | str] = []
    for group in dict.fromkeys(line.group for line in lines):
        rows.append(group)
        rows += [(line.label, *(line.cells.get(model) for model in models)) for line in lines if line.group == group]
    verdicts = [cell.verdict for line in run.lines for cell in line.cells.values() if cell.verdict]
    marked = sum(verdict != "not shown" for verdict in verdicts)
    text = f"{marked} of {plural(len(verdicts), 'difference')} from the baseline {'is' if marked == 1 else 'are'} shown and marked."
    text = f"{text} Where there is no mark, no difference is shown." if verdicts else "No two models are compared here."
    table = values.Table("Measures by model", ("Measure", *models), tuple(rows), glance=True)
    return values.Section("All models at a glance", "glance", (values.Text(text), table))


def rows_section(stages: Sequence[Stage]) -> values.Section | None:
    """Return the account of rows through all stages; None where none keeps one."""
    kept = [(stage.name, stage.ledger) for stage in stages if stage.ledger and stage.ledger.steps]
    if not kept:
        return None
    steps = [(name, step) for name, ledger in kept for step in ledger.steps]
    why = tuple(
        (reason, name, values.Number(n, "count")) for name, ledger in kept for reason, n in ledger.dropped.items()
    )
    dropped = sum(sum(ledger.dropped.values()) for _, ledger in kept)
    every = values.table_of(
        "Every step with its counts",
        steps,
        ("Stage", lambda one: one[0]),
        ("Step", lambda one: one[1].name),
        ("In", lambda one: values.Number(one[1].rows_in, "count")),
        ("Added", lambda one: values.Number(one[1].added or None, "count")),
        ("Dropped", lambda one: values.Number(sum(one[1].dropped.values()) or None, "count")),
        ("Out", lambda one: values.Number(one[1].rows_out, "count")),
        ("Reasons and notes", lambda one: _reasons(one[1])),
    )
    text = (
        "Every row that was read is accounted for: it was kept, or dropped for a reason that the stage's ledger.json names with file and "
        "line."
    )
    reasons = values.Table("Why rows were dropped", ("Reason", "Stage", "Rows"), why)
    blocks: list[values.Block] = [
        values.Text(text),
        funnel("rows", [(f"{name} \N{MIDDLE DOT} {step.name}", step) for name, step in steps]),
        reasons if why else values.Text("No row was dropped."),
        every,
        *(_rejects(name, ledger) for name, ledger in kept if ledger.rejects),
    ]
    return values.Section("Rows", "rows", tuple(blocks), folded=True, gist=f"{plural(dropped, 'row')} dropped")


def _reasons(step: LedgerStep) -> str:
    reasons = [f"{reason} {number:,}" for reason, number in [*step.dropped.items(), *step.notes.items()]]
    return "; ".join([*reasons, *([f"truncated {step.truncated:,}"] if step.truncated else [])])


def _rejects(stage: str, ledger: Ledger) -> values.Table:
    more = f", the first {REJECT_LIMIT} of {len(ledger.rejects):,}" if len(ledger.rejects) > REJECT_LIMIT else ""
    return values.table_of(
        f"Dropped rows of {stage}{more}",
        ledger.rejects[:REJECT_LIMIT],
        ("Row", lambda one: str(one.origin)),
        ("Step", lambda one: one.step),
        ("Reason", lambda one: one.reason),
        ("Detail", lambda one: one.detail),
        folded=True,
    )


# ---- provenance ----------------------------------------------------------------------------------------------------


def _provenance(run: Run) -> values.Section:
    table = values.table_of(
        "Stages",
        run.stages,
        ("Stage", lambda stage: stage.name),
        ("Kind", lambda stage: stage.kind),
        ("Status", lambda stage: values.Mark(stage.status)),
        ("Time", lambda stage: values.Number(stage.seconds, "seconds") if stage.manifest else None),
        ("Peak memory", lambda s: values.Number(s.manifest.peak_memory_bytes, "bytes") if s.manifest else None),
        ("Device", lambda s: ", ".join(filter(None, (s.manifest.device, s.manifest.dtype))) if s.manifest else None),
        ("Digest", lambda stage: (stage.manifest.digest or "")[:12] if stage.manifest else None),
    )
    blocks: list[values.Block] = [table, *(_stage_section(stage) for stage in run.stages if stage.manifest)]
    if run.recipe_text:
        blocks.append(values.Code("recipe.yaml, as it was resolved for this run", run.recipe_text, "yaml"))
    blocks.append(values.Records("stages", [_stage_record(stage) for stage in run.stages]))
    return values.Section(
        "Configuration and provenance", "provenance", tuple(blocks), folded=True, gist=plural(len(run.stages), "stage")
    )


def _stage_section(stage: Stage) -> values.Section:
    manifest = stage.manifest
    assert manifest is not None
    config = tuple(flattened(manifest.config))
    known = {
        "digest": manifest.digest,
        "started": numbers.moment(manifest.started),
        "finished": numbers.moment(manifest.finished),
    }
    rest = {"input": manifest.inputs, "provenance": manifest.provenance or {}, "result": manifest.result or {}}
    return values.Section(
        stage.name,
        file_name("provenance", stage.name),
        (
            values.Table("Configuration", ("Setting", "Value"), config),
            values.Table("Provenance and result", ("Fact", "Value"), tuple(flattened({**known, **rest}))),
        ),
        folded=True,
        gist="configuration, inputs, versions",
    )


def _stage_record(stage: Stage) -> dict[str, Any]:
    manifest, ledger = stage.manifest, stage.ledger
    kept = ("peak_memory_bytes", "device", "dtype", "digest", "error", "result")
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status,
        "seconds": stage.seconds,
        **{key: getattr(manifest, key) if manifest else None for key in kept},
        "ledger": {key: value for key, value in ledger.as_dict().items() if key not in ("rejects", "schema")}
        if ledger
        else None,
    }


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, text) for every leaf of nested mappings and lists."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, inner in enumerate(value):
            yield from flattened(inner, f"{path}[{index}]")
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
