"""What a sweep says of itself: the settings side by side, their curves over one another, and what exceeds the noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posttrain.artifacts import canonical_json, plain
from posttrain.report import numbers
from posttrain.report.charts import Chart, Lines, Parallel, Series, Strand, color
from posttrain.report.values import (
    Block,
    Cell,
    Code,
    Facts,
    Finding,
    Headline,
    Label,
    Mark,
    Notice,
    Number,
    Records,
    Section,
    Table,
    Text,
)
from posttrain.report.words import FEW_ROWS, plural
from posttrain.stats.intervals import Interval
from posttrain.sweep.records import Effect, SweepRecord, SweepSetting, label_of, short_names, written
from posttrain.sweep.steps import TuneRecord, TuneStep

MOST_CURVES = 6
"""Curves over one another that can be told apart by colour."""


def sweep_section(record: SweepRecord, name: str) -> Section:
    """The section of a sweep."""
    chosen = _at(record, record.chosen)
    blocks: list[Block] = [
        Text(_sentence(record), "lead"),
        *(Notice("fact", "What was compared", (note,)) for note in record.notes),
    ]
    blocks += [_facts(record), _settings_table(record)]
    blocks += [chart for chart in (_parallel(record, name), _curves(record, name)) if chart is not None]
    if record.effects:
        blocks += [_effects_table(record), Text(_effects_note(record), "aside")]
    blocks.append(Records(f"sweep of {record.stage}", plain(record)))
    headlines: tuple[Headline, ...] = ()
    findings: tuple[Finding, ...] = ()
    if chosen is not None and chosen.value is not None:
        headlines = (
            Headline(
                f"{name}: {record.metric}",
                _number(record, chosen.value),
                chosen.label,
                quality=True,
                better=record.better,
            ),
        )
        findings = (Finding(name, "Settings", None, _sentence(record)),)
    return Section(
        f"Sweep: {name}",
        f"sweep-{name}",
        tuple(blocks),
        headlines=headlines,
        findings=findings,
        summary=_sentence(record),
        advice=_advice(record),
    )


def _digits(record: SweepRecord) -> int | None:
    """Decimals of its metric: a loss needs four."""
    return None if record.unit == "share" else 4


def _at(record: SweepRecord, place: int | None) -> SweepSetting | None:
    return None if place is None else record.settings[place]


def _number(record: SweepRecord, found: Interval | None, *, signed: bool = False) -> Number:
    if found is None:
        return Number(None)
    return Number(found.estimate, record.unit, found.low, found.high, digits=_digits(record), signed=signed)


def _sentence(record: SweepRecord) -> str:
    best, chosen = _at(record, record.best), _at(record, record.chosen)
    runs = [run for one in record.settings for run in one.runs]
    failed = sum(run.status == "failed" for run in runs)
    ended = sum(run.status == "ended" for run in runs)
    more = [plural(count, "run") + f" {what}" for count, what in ((ended, "ended early"), (failed, "failed")) if count]
    tail = f" {'; '.join(more)}." if more else ""
    if best is None or chosen is None or best.value is None or chosen.value is None:
        return f"{plural(len(runs), 'run')} of {record.stage}; none can be compared.{tail}"
    value = numbers.in_unit(best.value.estimate, record.unit, _digits(record))
    found = f"Of {plural(len(record.settings), 'setting')}, {best.label} has the best {record.metric} ({value})."
    if chosen is not best:
        found += f" {chosen.label} is simpler and within one standard error of it, so it is chosen."
    rivals = sum(
        1 for one in record.settings if one.difference is not None and one.difference.low <= 0 <= one.difference.high
    )
    if rivals:
        found += f" {plural(rivals, 'other setting is', 'other settings are')} not shown to differ from the best."
    return found + tail


def _facts(record: SweepRecord) -> Facts:
    noise = (
        "not known: one seed" if record.noise is None else numbers.in_unit(record.noise, record.unit, _digits(record))
    )
    expected = None if record.expected is None else Number(record.expected, record.unit, digits=_digits(record))
    return Facts(
        (
            ("Decides", f"{record.metric}, {record.better} is better"),
            ("Measured on", plural(record.rows, "row or prompt", "rows or prompts") + " that all have in common"),
            ("Seeds", ", ".join(map(str, record.seeds))),
            ("Standard deviation between seeds", noise),
            ("Expected of a setting chosen like this, on other rows", expected),
            ("Time of all runs", Number(sum(run.seconds for one in record.settings for run in one.runs), "seconds")),
        )
    )


def _settings_table(record: SweepRecord) -> Table:
    rows = []
    for place, one in enumerate(record.settings):
        mark = "chosen" if place == record.chosen else "best" if place == record.best else ""
        rows.append(
            (
                Label(one.label, _run_note(one)),
                _number(record, one.value),
                _number(record, one.difference, signed=True),
                _verdict(record, one),
                mark,
            )
        )
    columns = ("Setting", record.metric, "Against the best", "Shown", "")
    return Table("Settings, the simplest first", columns, tuple(rows)).known()


def _run_note(one: SweepSetting) -> str:
    """What became of runs that did not finish."""
    return "; ".join(
        f"seed {run.seed} {run.status}: {run.error.splitlines()[0]}" for run in one.runs if run.status != "complete"
    )


def _verdict(record: SweepRecord, one: SweepSetting) -> Cell:
    if one.difference is None:
        return None
    if one.difference.low <= 0 <= one.difference.high:
        return Mark("not shown")
    return Mark("worse")


def _levels(record: SweepRecord) -> dict[str, list[Any]]:
    """What is varied -> its values, numbers in their order, other values in that of the settings."""
    found: dict[str, dict[str, Any]] = {}
    for one in record.settings:
        for path, value in one.changes.items():
            found.setdefault(path, {}).setdefault(canonical_json(value), value)
    plain_numbers = {
        path
        for path, values in found.items()
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values())
    }
    return {
        path: sorted(values.values()) if path in plain_numbers else list(values.values())
        for path, values in found.items()
    }


def _parallel(record: SweepRecord, name: str) -> Chart | None:
    levels = _levels(record)
    names = short_names(tuple(levels))
    strands = []
    for place, one in enumerate(record.settings):
        if one.value is None or set(one.changes) != set(levels) or not levels:
            continue
        kind = "s1" if place == record.chosen else "s2" if place == record.best else "s0"
        places = [float(levels[path].index(one.changes[path])) for path in levels]
        text = f"{record.metric} {numbers.in_unit(one.value.estimate, record.unit, _digits(record))}"
        strands.append(Strand(one.label, (*places, one.value.estimate), kind, text))
    if len(strands) < 2:
        return None
    strands.sort(key=lambda one: ("s0", "s2", "s1").index(one.color))
    legend = [("chosen", "s1")] + ([("best", "s2")] if record.best != record.chosen else [])
    axes = tuple((names[path], tuple(written(value) for value in levels[path])) for path in levels)
    return Parallel(
        name=f"{name}-settings",
        title="Every setting and what it gave",
        axes=axes,
        y_label=record.metric,
        strands=tuple(strands),
        legend=tuple(legend),
        caption=f"{record.better.capitalize()} is better.",
    )


def _curves(record: SweepRecord, name: str) -> Chart | None:
    """Held-out losses over one another: of the settings with the best values, and of those that were ended."""
    ranked = sorted((one for one in record.settings if any(run.curve for run in one.runs)), key=_rank(record))
    shown = ranked[: MOST_CURVES - 1] + ranked[MOST_CURVES - 1 :][-1:]
    series = [
        Series(one.label, tuple((float(step), value) for step, value in run.curve), color(place), "dots")
        for place, one in enumerate(shown)
        for run in one.runs[:1]
    ]
    if not series:
        return None
    less = f"The {len(shown) - 1} best of {len(ranked)} and the last; " if len(shown) < len(ranked) else ""
    return Lines(
        name=f"{name}-curves",
        title="Held-out loss of the settings",
        caption=f"{less}seed {record.seeds[0]}.",
        series=tuple(series),
        y_label="held-out loss",
        log_when_wide=True,
    )


def _rank(record: SweepRecord) -> Any:
    sign = 1 if record.better == "lower" else -1
    return lambda one: (one.value is None, sign * one.value.estimate if one.value else 0.0)


def _effects_table(record: SweepRecord) -> Table:
    names = short_names(tuple(dict.fromkeys(one.path for one in record.effects)))
    rows = tuple(
        (
            f"{names[one.path]}: {written(one.value)} against {written(one.against)}",
            _effect(record, one),
            Number(one.runs, "count"),
            _exceeds(one),
        )
        for one in record.effects
    )
    return Table(
        "What each setting does, on average over the others",
        ("Change", f"Difference in {record.metric}", "Runs", "Exceeds the noise"),
        rows,
    )


def _effect(record: SweepRecord, one: Effect) -> Number:
    known = one.difference
    return Number(
        one.estimate,
        record.unit,
        None if known is None else known.low,
        None if known is None else known.high,
        digits=_digits(record),
        signed=True,
    )


def _exceeds(one: Effect) -> Cell:
    return "not known" if one.shown is None else "yes" if one.shown else "no"


def _effects_note(record: SweepRecord) -> str:
    if record.noise is None:
        return "With one seed the noise between seeds is not known, so no difference can be held against it: give several seeds."
    return (
        f"Runs of one setting differ by {numbers.in_unit(record.noise, record.unit, _digits(record))} (standard deviation between {len(record.seeds)} seeds). A difference exceeds the noise where its "
        f"{record.confidence:.0%} interval, from this noise alone, excludes zero."
    )


def _advice(record: SweepRecord) -> tuple[str, ...]:
    advice = []
    chosen = _at(record, record.chosen)
    if chosen is not None and chosen.changes:
        changes = " ".join(f"{path}={written(value)}" for path, value in chosen.changes.items())
        advice.append(f"Use the chosen setting: {changes}")
        advice += [
            f"The chosen {path} is at the end of what was tried ({written(chosen.changes[path])}): try further values there."
            for path, values in _levels(record).items()
            if len(values) > 2
            and path in chosen.changes
            and isinstance(values[0], int | float)
            and chosen.changes[path] in (values[0], values[-1])
        ]
    if record.noise is None:
        advice.append("Repeat with three seeds: without them a difference can't be told from luck.")
    if 0 < record.rows < FEW_ROWS:
        advice.append(f"{record.rows} held-out rows are few to choose by: hold out more.")
    return tuple(advice)


# ---- the four-step search --------------------------------------------------------------------------------------------


def tune_section(record: TuneRecord, name: str) -> Section:
    """The section of a search: what was found beside what was written, and each step with what it kept and why."""
    final = record.final
    written_one = next((one for one in final.settings if one.as_written), None)
    found = next((one for one in final.settings if not one.as_written), None)
    lines = tuple((step.name.replace("_", " "), _kept(step), step.why) for step in record.steps)
    command = "posttrain run RECIPE " + " ".join(f"{path}={written(value)}" for path, value in record.kept.items())
    blocks: list[Block] = [Text(_tune_sentence(record), "lead"), Table("The steps", ("Step", "Kept", "Why"), lines)]
    blocks.append(Code("The recipe with what was found", command, "sh", folded=False))
    blocks.append(Notice("fact", "Chosen on these rows", (CHOSEN_HERE,)))
    for step in record.steps:
        inside = sweep_section(step.record, f"{name}-{step.name}")
        more: tuple[Block, ...] = ()
        if step.beside is not None:
            more = (
                Text(ALPHA_WORDS, "aside"),
                replace(_settings_table(step.beside), title="The same ranks at alpha = 2 rank"),
            )
        blocks.append(
            Section(
                f"Step: {step.name.replace('_', ' ')}",
                inside.anchor,
                (*inside.blocks[1:], *more),
                folded=True,
                gist=step.why,
            )
        )
    headlines: tuple[Headline, ...] = ()
    if found is not None and found.value is not None:
        note = (
            f"as written {numbers.in_unit(written_one.value.estimate, final.unit, 4)}"
            if written_one and written_one.value
            else ""
        )
        headlines = (
            Headline(
                f"{name}: {final.metric} found", _number(final, found.value), note, quality=True, better=final.better
            ),
        )
    return Section(
        f"Search: {name}",
        f"tune-{name}",
        tuple(blocks),
        headlines=headlines,
        summary=_tune_sentence(record),
        findings=(Finding(name, "Settings", None, _tune_sentence(record)),),
    )


CHOSEN_HERE = "Settings were chosen on these very rows, so what was found looks a little better than it is: an evaluation on rows that were not used here says how much is left."
ALPHA_WORDS = (
    "At one alpha the first steps change the weights by as much at every rank; at alpha = 2 rank by an amount that grows with the rank, so that table partly "
    "measures the learning rate (LoRA Without Regret, 2025). Nothing was chosen by it."
)


def _kept(step: TuneStep) -> str:
    value = next((value for path, value in step.kept.items() if path.endswith(f".{step.name}")), None)
    return written(value)


def _tune_sentence(record: TuneRecord) -> str:
    final = record.final
    best = _at(final, final.best)
    kept = label_of(record.kept)
    if best is None or best.value is None:
        return f"The search kept {kept}."
    value = numbers.in_unit(best.value.estimate, final.unit, 4)
    other = next((one for one in final.settings if one is not best and one.difference is not None), None)
    if other is None or other.difference is None:
        return f"The search kept {kept}: {final.metric} {value}."
    shown = "not shown to differ" if other.difference.low <= 0 <= other.difference.high else "shown to differ"
    whose = "the recipe as written" if other.as_written else "what was found"
    ends = numbers.signed_interval_in_unit(other.difference.low, other.difference.high, final.unit, 4)
    return f"The search kept {kept}: {final.metric} {value}; {whose} has {numbers.difference_in_unit(other.difference.estimate, final.unit, 4)} more ({final.confidence:.0%} interval {ends}), {shown}."
