"""What training stages say of themselves: how the loss went, what it cost, which rows it learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from posttrain import objectives
from posttrain.encode.lengths import Lengths, LengthStatistics
from posttrain.objectives.base import BaseObjective, Curve
from posttrain.report import numbers, values
from posttrain.report.charts import Chart, Histogram, Level, Lines, Points, Series, bins, color, counted, spaced
from posttrain.report.figure import file_name
from posttrain.report.reading import Gap, Stage, json_value, optional, parse
from posttrain.report.values import Block, Cell, Facts, Finding, Headline, Number, Section, Table, Text
from posttrain.report.words import join, plural
from posttrain.train.planned import MEMORY_FILE, MemoryRecord, memory_blocks
from posttrain.train.records import HeldOutRecord, Record, StepRecord, TrainResult, fields_of

UNITS = {
    "prompts": ("prompt", "prompts"),
    "conversations": ("example", "examples"),
    "pairs": ("pair", "pairs"),
    "feedback": ("judged reply", "judged replies"),
}


@dataclass(frozen=True, kw_only=True)
class UnknownObjective(BaseObjective):
    """One that this version does not know, or whose settings it refuses: nothing is said of its numbers."""

    row_kind = "conversations"
    title = ""
    explanation = ""
    curves = ()

    name: str = "training"


@dataclass(frozen=True, slots=True)
class Training:
    """A train stage as its artefacts tell of it."""

    stage: Stage
    objective: BaseObjective
    result: TrainResult
    steps: tuple[StepRecord, ...]
    held_out: tuple[HeldOutRecord, ...]
    lengths: Lengths | None
    memory: MemoryRecord | None = None

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.stage.name

    @property
    def step_count(self) -> int | None:
        """Steps done: those of the result, else the last one logged."""
        return self.result.steps if self.result.steps is not None else self.steps[-1].step if self.steps else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """From the result, else from the manifest."""
        manifest = self.stage.manifest
        return self.result.peak_memory_bytes or (manifest.peak_memory_bytes if manifest else None)

    @property
    def learning_rate(self) -> float | None:
        """The highest rate: the one that was set, else the highest that was used."""
        rate = self.stage.config.get("learning_rate")
        if isinstance(rate, int | float):
            return float(rate)
        return max((r.learning_rate for r in self.steps if r.learning_rate is not None), default=None)

    @property
    def finite(self) -> list[HeldOutRecord]:
        """The held-out measurements with a finite loss."""
        return [record for record in self.held_out if math.isfinite(record.loss)]

    @property
    def lowest(self) -> HeldOutRecord | None:
        """The one of them with the lowest loss."""
        return min(self.finite, key=lambda record: record.loss, default=None)

    @property
    def objective_title(self) -> str:
        """The objective as papers write it, or its name where there is no more."""
        return self.objective.title or self.objective.name

    @property
    def title(self) -> str:
        """With the settings that matter: ``DPO (beta 0.1)``."""
        settings = self.objective.settings_text
        return f"{self.objective_title} ({settings})" if settings else self.objective_title

    @property
    def reference(self) -> str | None:
        """The weights whose log-probabilities are compared with; None where there are none."""
        if not self.objective.needs_reference:
            return None
        return str(getattr(self.objective, "reference", None) or self.start)

    @property
    def start(self) -> str:
        """What it starts from: ``base`` or a stage."""
        return str(self.stage.config.get("start_from") or "base")

    @property
    def compares(self) -> bool:
        """Whether it learns from replies that are compared or judged, and so has rewards."""
        return self.objective.row_kind != "conversations"

    def units(self, number: int) -> str:
        """``270 pairs`` or ``540 judged replies``."""
        return plural(number, *UNITS[self.objective.row_kind])


# ---- reading -------------------------------------------------------------------------------------------------------


def read_training(stage: Stage, gaps: list[Gap]) -> Training:
    """Return what a train stage has written; what is absent or damaged becomes a gap."""

    def read_lengths(path: Path) -> Lengths:
        return parse(Lengths, json_value(path), path)

    lengths = stage.folder.file("lengths.json")
    return Training(
        stage,
        _objective(stage.config.get("objective")),
        stage.result(TrainResult, gaps),
        *read_curves(stage, gaps),
        optional(gaps, stage, lengths, "there is no distribution of token lengths", read_lengths),
        read_memory(stage, gaps),
    )


def read_memory(stage: Stage, gaps: list[Gap]) -> MemoryRecord | None:
    """Return the stage's plan of memory and what it took; None where it wrote none."""

    def read(path: Path) -> MemoryRecord:
        return parse(MemoryRecord, json_value(path), path)

    path = stage.folder.file(MEMORY_FILE)
    return optional(gaps, stage, path, "there is no plan of memory", read) if path.is_file() else None


def read_curves(stage: Stage, gaps: list[Gap]) -> tuple[tuple[StepRecord, ...], tuple[HeldOutRecord, ...]]:
    """Return the records of metrics.jsonl; nothing, and a gap, where they are absent or damaged."""

    def read(path: Path) -> tuple[tuple[StepRecord, ...], tuple[HeldOutRecord, ...]]:
        lines = stage.folder.metrics()
        steps = [fields_of(line) for line in lines if line.get("split") == "train"]
        held_out = [fields_of(line) for line in lines if line.get("split") == "held_out"]
        return parse(tuple[StepRecord, ...], steps, path), parse(tuple[HeldOutRecord, ...], held_out, path)

    path = stage.folder.file("metrics.jsonl")
    return optional(gaps, stage, path, "there are no training curves", read) or ((), ())


def _objective(settings: Any) -> BaseObjective:
    try:
        found: BaseObjective = TypeAdapter[Any](objectives.Objective).validate_python(settings)
    except ValidationError:
        known = isinstance(settings, Mapping) and "name" in settings
        return UnknownObjective(name=str(settings["name"])) if known else UnknownObjective()
    return found


# ---- sections ------------------------------------------------------------------------------------------------------


def training_sections(stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
    """Return a section for each train stage, and one that lays several side by side."""
    trainings = [read_training(stage, gaps) for stage in stages]
    several = len(trainings) > 1
    before: list[Training | None] = [None, *trainings[:-1]]
    found = [_section(one, last, several=several) for one, last in zip(trainings, before, strict=False)]
    found[-1] = replace(found[-1], headlines=_headlines(trainings))
    return (*found, *([_side_by_side(trainings)] if several else []))


def _section(one: Training, before: Training | None, *, several: bool) -> Section:
    blocks: list[Block] = [Text(_how(one)), _facts(one), *_curves(one)]
    if one.held_out:
        blocks.append(_course_table(one))
    if one.memory is not None:
        blocks += memory_blocks(one.memory)
    if one.lengths:
        blocks.append(_lengths_section(one, one.lengths))
    blocks.append(values.Records("training", _record(one)))
    return Section(
        f"Training: {one.name}" if several else "Training",
        file_name("train", one.name),
        tuple(blocks),
        folded=True,
        gist=_gist(one),
        summary=_sentence(one, before),
        findings=tuple(_findings(one)),
        advice=_advice(one),
    )


def _record(one: Training) -> dict[str, Any]:
    lengths = one.lengths
    kinds = ("conversation", "assistant", *(name for name, _ in lengths.sides)) if lengths else ()
    statistics = {name: asdict(getattr(lengths, name)) for name in kinds}
    return {
        "stage": one.name,
        "objective": None if isinstance(one.objective, UnknownObjective) else one.objective,
        "reference": one.reference,
        "result": one.result,
        "seconds": one.stage.seconds,
        "peak_memory_bytes": one.peak_memory_bytes,
        "memory": one.memory,
        "first_step": one.steps[0] if one.steps else None,
        "last_step": one.steps[-1] if one.steps else None,
        "held_out": one.held_out,
        "limit": lengths.limit if lengths else None,
        "lengths": {name: {k: v for k, v in found.items() if k != "values"} for name, found in statistics.items()},
    }


def _gist(one: Training) -> str:
    first, last, seconds = one.result.first_loss, one.result.last_loss, one.stage.seconds
    parts = [
        one.title,
        "" if first is None or last is None else f"loss {numbers.fixed(first)} to {numbers.fixed(last)}",
        "" if one.step_count is None else plural(one.step_count, "step"),
        "" if seconds is None else numbers.duration(seconds),
    ]
    return ", ".join(part for part in parts if part)


def _how(one: Training) -> str:
    """Return what was trained and how, and what the objective says of its numbers."""
    method = _method(one) + (f", {_reference_text(one)}" if one.compares else "")
    return f"{method[:1].upper()}{method[1:]}. {one.objective.explanation}".strip()


def _facts(one: Training) -> Facts:
    result, seconds = one.result, one.stage.seconds
    share = numbers.percent((result.supervised_tokens or 0) / result.tokens, 0) if result.tokens else ""
    ends = (result.first_loss, result.last_loss)
    best, speed, gap = result.best_held_out_loss, result.tokens_per_second, result.quantisation
    items: tuple[tuple[str, Cell], ...] = (
        ("Steps", Number(one.step_count, "count")),
        ("Epochs", None if result.epochs is None else f"{result.epochs:.3g}"),
        ("Tokens", Number(result.tokens, "count")),
        (
            "Supervised tokens",
            None if result.supervised_tokens is None else Number(result.supervised_tokens, "count", note=share),
        ),
        ("Training loss, first and last step", None if None in ends else " and ".join(map(numbers.fixed, ends))),
        (
            "Lowest held-out loss",
            None if best is None else Number(best, digits=3, note=f"at step {numbers.count(result.best_step)}"),
        ),
        ("Highest learning rate", Number(one.learning_rate, "scientific")),
        ("Time", None if seconds is None else numbers.duration(seconds)),
        (
            "Of it training steps",
            None if result.training_seconds is None else numbers.duration(result.training_seconds),
        ),
        ("Speed, median over steps", None if speed is None else Number(speed, "count", note="tokens per second")),
        ("Share of the measured matmul peak", Number(result.matmul_share, "share", digits=0)),
        ("Peak memory", Number(one.peak_memory_bytes, "bytes")),
        (
            "Loss on the 4-bit weights before training",
            None if gap is None else Number(gap.quantised_loss, note=gap.against),
        ),
    )
    return Facts(items)


def _headlines(trainings: Sequence[Training]) -> tuple[Headline, ...]:
    """Return what training cost: the time of all stages together, the speed of the last one, and the highest memory."""
    several, found = len(trainings) > 1, []
    if timed := [(one, one.stage.seconds) for one in trainings if one.stage.seconds is not None]:
        known = [(one, one.step_count) for one, _ in timed if one.step_count is not None]
        steps = [plural(count, "step") + (f" of {one.name}" if several else "") for one, count in known]
        found.append(Headline("Training time", Number(sum(seconds for _, seconds in timed), "seconds"), join(steps)))
    if measured := [one for one in trainings if one.result.tokens_per_second is not None]:
        last = measured[-1]
        share = last.result.matmul_share
        note = "tokens per second" + (f", {numbers.percent(share, 0)} of matmul peak" if share is not None else "")
        label = f"Speed of {last.name}" if several else "Speed"
        found.append(Headline(label, Number(last.result.tokens_per_second, "count"), note))
    if peaks := [(one.peak_memory_bytes, one) for one in trainings if one.peak_memory_bytes is not None]:
        peak, most = max(peaks, key=lambda entry: entry[0])
        note = f"while training {f'{most.name} ' if several else ''}on {_device(most)}"
        found.append(Headline("Peak memory", Number(peak, "bytes"), note))
    return tuple(found)


# ---- words ---------------------------------------------------------------------------------------------------------


def _method(one: Training) -> str:
    """``SFT with LoRA of rank 16 (... parameters)``."""
    return one.title + _adapter_text(one)


def _adapter_text(one: Training) -> str:
    adapter, text = one.stage.config.get("adapter"), ""
    if isinstance(adapter, dict) and adapter.get("name") == "lora":
        kind = "DoRA" if adapter.get("dora") else "rsLoRA" if adapter.get("rslora") else "LoRA"
        text = f" with {kind} of rank {adapter['rank']}" if "rank" in adapter else f" with {kind}"
    elif isinstance(adapter, dict) and adapter.get("name") == "full":
        text = " of all weights"
    trainable, total = one.result.trainable_parameters, one.result.total_parameters
    if trainable is not None and total:
        share = numbers.percent(trainable / total)
        text += f" ({numbers.compact(trainable)} of {numbers.compact(total)} parameters, {share})"
    return text


def _reference_text(one: Training) -> str:
    """Return what the policy is compared with: ``with its starting weights (sft) as the reference``."""
    if one.reference is None:
        return "without a reference"
    name = "the base model" if one.reference == "base" else one.reference
    return f"with {f'its starting weights ({name})' if one.reference == one.start else name} as the reference"


def _device(one: Training) -> str:
    manifest = one.stage.manifest
    if manifest is None:
        return ""
    cores = (manifest.provenance or {}).get("cpu_count")
    device = manifest.device or "an unknown device"
    inside = [f"{cores} cores"] if device == "cpu" and cores else []
    inside += [str(manifest.dtype)] if manifest.dtype else []
    name = "a CPU" if device == "cpu" else device
    return f"{name} ({', '.join(inside)})" if inside else name


def _sentence(one: Training, before: Training | None) -> str:
    """Return what was done in a sentence; what is as in the stage before is not said again."""
    result, stage, steps = one.result, one.stage, one.step_count
    if steps is None or stage.manifest is None:
        return ""
    start = (
        "the base model" if one.start == "base" else f"the weights of {'' if '/' in one.start else 'stage '}{one.start}"
    )
    how = _method(one)
    if before is not None and _adapter_text(before) == _adapter_text(one):
        how = one.title + (" in the same way" if _adapter_text(one) else "")
    details = []
    if batch := stage.config.get("batch_size"):
        details.append(f"{batch} {UNITS[one.objective.row_kind][1]} each")
    if result.epochs is not None:
        details.append(f"{result.epochs:.3g} {'epoch' if result.epochs == 1 else 'epochs'}")
    if result.tokens is not None:
        details.append(f"{numbers.count(result.tokens)} tokens, {numbers.count(result.supervised_tokens)} supervised")
    same = before is not None and _device(before) == _device(one)
    parts = [
        f"Stage {one.name} trained {start} by {how}",
        f" on {one.units(stage.ledger.rows_kept)}" if stage.ledger is not None else "",
        f", {_reference_text(one)}," if one.compares else "",
        f" for {plural(steps, 'step')}",
        f" ({', '.join(details)})" if details else "",
        f" in {numbers.duration(stage.seconds)}" if stage.seconds is not None else "",
        "." if same or not stage.manifest.device else f" on {_device(one)}.",
    ]
    return "".join(parts)


def _findings(one: Training) -> list[Finding]:
    several: tuple[tuple[Sequence[Record], str], ...] = ((one.steps, "training"), (one.held_out, "held-out"))
    lost = [(what, [r.step for r in records if not math.isfinite(r.loss)]) for records, what in several]
    texts = [f"The {what} loss of {one.name} was not finite at step {steps[0]}." for what, steps in lost if steps]
    texts.append(_loss_course(one))
    if one.result.stopped_early:
        texts.append(f"Stage {one.name} stopped early: the held-out loss improved no more.")
    if one.compares and len(one.held_out) > 1:
        texts.append(_reward_course(one))
    return [Finding(one.name, "Training", None, text) for text in texts if text]


def _loss_course(one: Training) -> str:
    finite, lowest = one.finite, one.lowest
    if lowest is None or len(finite) < 2:
        return ""
    first, last = finite[0], finite[-1]
    text = f"Held-out loss while training {one.name}: {numbers.fixed(first.loss)} at step {first.step}, "
    if lowest.step == last.step:
        text += f"lowest at the last measurement: {numbers.fixed(last.loss)} at step {last.step}."
    else:
        text += (
            f"lowest {numbers.fixed(lowest.loss)} at step {lowest.step}, {numbers.fixed(last.loss)} at the last "
            f"measurement (step {last.step})."
        )
    if lowest.step == first.step:
        return f"{text} It never went below its starting value: training did not help on these rows."
    if lowest.step == last.step:
        return text
    text += " It rose again after its lowest point (over-fitting, or noise)."
    if one.stage.status == "complete":
        kept = "weights of the lowest point" if one.stage.config.get("keep") == "best" else "final weights"
        text += f" The {kept} were handed on."
    return text


def _reward_course(one: Training) -> str:
    """Return how the held-out rewards went: accuracy and margin where they are logged, else both kinds of replies."""
    better, worse = one.objective.sides
    first, last = one.held_out[0], one.held_out[-1]
    pairs = (("accuracy", "rewards/accuracies", numbers.percent), ("margin", "rewards/margins", numbers.fixed))
    sides = ((better, "rewards/chosen", numbers.fixed), (worse, "rewards/rejected", numbers.fixed))
    for wanted in (pairs, sides):
        parts = [
            f"{label} {text(first.metrics[key])} to {text(last.metrics[key])}"
            for label, key, text in wanted
            if key in first.metrics and key in last.metrics
        ]
        if parts:
            rows = f" on {one.units(last.rows)}" if last.rows else ""
            steps = f"step {first.step:,} to step {last.step:,}"
            return f"Held-out rewards while training {one.name}{rows}, {steps}: {join(parts)}."
    return ""


def _advice(one: Training) -> tuple[str, ...]:
    lowest, finite = one.lowest, one.finite
    if one.stage.status != "complete" or lowest is None or len(finite) < 2:
        return ()
    if lowest.step == finite[0].step:
        text = f"Training {one.name} did not lower the held-out loss: try a lower learning rate, or look at the rows."
    elif lowest.step == finite[-1].step and not one.result.stopped_early:
        text = f"The held-out loss of {one.name} was still falling at its last step: more epochs may help."
    else:
        return ()
    return (text,)


# ---- charts --------------------------------------------------------------------------------------------------------

LOSS = Curve("loss", "Loss", "loss", ("loss",), comparable=True)
RUN_CURVES = (
    Curve("gradient-norm", "Gradient norm", "norm", ("grad_norm",), log_when_wide=True),
    Curve("learning-rate", "Learning rate", "rate", ("learning_rate",), written="scientific", from_zero=True),
    Curve("speed", "Speed", "tokens per second", ("tokens_per_second",), written="count", from_zero=True),
)
"""Of the steps alone: the metrics are fields of their records."""


def _curves(one: Training) -> list[Chart]:
    window = max(1, len(one.steps) // 20)
    faint = f" (faint) and its mean over {window} steps" if window > 1 else ""
    ringed = ", the lowest one ringed." if one.held_out else "."
    lowest = one.lowest.step if one.lowest else None
    loss = curve_chart(one, replace(LOSS, unit=one.objective.loss_unit), chosen=lowest)
    loss = replace(loss, caption=f"Training loss of each step{faint}; held-out loss as points{ringed}")
    norm, rate, speed = (curve_chart(one, curve) for curve in RUN_CURVES)
    limit, norms = one.stage.config.get("max_grad_norm"), [value for _, value in _points(one.steps, "grad_norm")]
    if isinstance(limit, int | float) and norms:
        clipped = f"Clipped to {limit:g} at {sum(value > limit for value in norms):,} of {len(norms):,} steps."
        norm = replace(norm, levels=(Level(limit, f"clipped above {limit:g}", limit=True),), caption=clipped)
    return [loss, *(curve_chart(one, curve) for curve in one.objective.curves), norm, rate, speed]


def curve_chart(one: Training, curve: Curve, chosen: float | None = None) -> Lines:
    """Return one quantity in training and on the held-out rows; training is left out where its batches can't be compared."""
    series, alone = [], len(curve.metrics) == 1
    for place, (label, metric) in enumerate(_named(one, curve)):
        held_out, steps = (_points(records, metric, curve.scale) for records in (one.held_out, one.steps))
        kind = f"s{place + 1}"
        if steps and not (curve.held_out_alone and len(held_out) > 1):
            series.append(Series(label, steps, "s0" if alone else kind))
        series.append(Series("held-out" if alone else label, held_out, kind, "dots", chosen))
    caption = ""
    if not alone and any(one.style == "dots" and one.points for one in series):
        caption = "Of the held-out rows." if curve.held_out_alone else "Lines with dots: held-out; without: training."
    return Lines(
        name=file_name(one.name, curve.name),
        title=curve.title,
        series=tuple(series),
        y_label=curve.unit,
        unit=curve.written,
        levels=() if curve.line is None else (Level(curve.line),),
        small=one.compares,
        from_zero=curve.from_zero,
        log_when_wide=curve.log_when_wide,
        caption=caption,
    )


def _named(one: Training, curve: Curve) -> list[tuple[str, str]]:
    """Return what the lines of a curve are called, with their metrics."""
    labels = ("training",) if len(curve.metrics) == 1 else one.objective.sides
    return list(zip(labels, curve.metrics, strict=True))


def _points(records: Sequence[Record], key: str, scale: float = 1.0) -> Points:
    """Return what a field of the records, or a metric of the objective, was at which step; held-out ones where it was finite."""
    found = [(float(record.step), scale * value) for record in records if (value := _value(record, key)) is not None]
    held_out = bool(records) and isinstance(records[0], HeldOutRecord)
    return tuple(point for point in found if not held_out or math.isfinite(point[1]))


def _value(record: Record, key: str) -> float | None:
    value: float | None = record.metrics[key] if key in record.metrics else getattr(record, key, None)
    return value


def _course_table(one: Training) -> Table:
    """Return the held-out measurements, with what the objective logs; columns without a number are left out."""
    headings, logged = [], []
    for curve in one.objective.curves:
        for label, metric in _named(one, curve):
            headings.append(f"{curve.title}{f', {label}' if len(curve.metrics) > 1 else ''}")
            logged.append((metric, curve.scale))
    rows: list[tuple[Cell, ...]] = []
    for record in one.held_out:
        found = [(_value(record, metric), scale) for metric, scale in logged]
        scaled = [None if value is None else scale * value for value, scale in found]
        perplexity = None if one.compares else _perplexity(record.loss)
        rows.append(
            (
                str(record.step),
                Number(record.loss, digits=4),
                Number(perplexity, digits=2),
                *(Number(value, digits=4 if value is not None and abs(value) < 1 else None) for value in scaled),
            )
        )
    columns = ("Step", "Loss", "Perplexity", *headings)
    return Table(f"Held-out measurements while training {one.name}", columns, tuple(rows), folded=True).known()


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


# ---- lengths -------------------------------------------------------------------------------------------------------


def _lengths_section(one: Training, lengths: Lengths) -> Section:
    charts = [_length_chart(one, "conversation", "Whole conversations", lengths.conversation, lengths.limit)]
    if lengths.sides:
        charts.append(_sides_chart(one, lengths))
    else:
        charts.append(_length_chart(one, "assistant", "Assistant replies", lengths.assistant, lengths.limit))
    kinds = [
        ("Whole conversations", lengths.conversation),
        ("All replies" if lengths.sides else "Assistant replies", lengths.assistant),
        *((f"{name.capitalize()} replies", found) for name, found in lengths.sides),
    ]
    table = values.table_of(
        f"Token lengths of {one.name}",
        kinds,
        ("In tokens", lambda kind: kind[0]),
        ("Count", lambda kind: Number(kind[1].count, "count")),
        ("P50", lambda kind: Number(kind[1].p50, "count")),
        ("P90", lambda kind: Number(kind[1].p90, "count")),
        ("P95", lambda kind: Number(kind[1].p95, "count")),
        ("Max", lambda kind: Number(kind[1].max, "count")),
        (f"Over the limit of {lengths.limit:,}", lambda kind: Number(kind[1].share_over_limit, "share")),
    )
    known = [chart for chart in charts if chart is not None]
    return Section("Token lengths", file_name("lengths", one.name), (*known, table))


def _length_chart(one: Training, name: str, title: str, found: LengthStatistics, limit: int) -> Chart | None:
    """Return the histogram of token lengths with its percentiles and the limit."""
    if not found.values:
        return None
    # A few very long rows would squeeze all others into one bar: beyond four times P95 one last bar takes them all.
    end = float(min(max(found.values), 4 * found.p95)) if found.p95 else float(max(found.values))
    tail = sum(value > end for value in found.values)
    edges = spaced(0.0, max(end, 1.0), bins(len(found.values)))
    marks = [Level(v, f"{text} {v:,.0f}") for text, v in (("P50", found.p50), ("P90", found.p90), ("P95", found.p95))]
    marks += [Level(limit, f"limit {limit:,}", limit=True)] if limit <= edges[-1] else []
    share = found.share_over_limit
    over = f"{numbers.percent(share) + ' are' if share else 'none is'} longer than the limit of {limit:,}"
    beyond = f" The last bar holds all {tail:,} beyond {edges[-2]:,.0f} tokens." if tail else ""
    return Histogram(
        name=file_name(one.name, "lengths", name),
        title=title,
        edges=edges,
        heights=counted(found.values, edges),
        x_label="tokens",
        tail=tail,
        marks=tuple(marks),
        colors=tuple("s2" if low >= limit else "s1" for low in edges[:-1]),
        caption=f"{plural(found.count, 'text')}; {over}.{beyond}",
        said=f"Median {found.p50:,.0f}, P90 {found.p90:,.0f}, P95 {found.p95:,.0f}, longest {found.max:,.0f}; {over}.",
    )


def _sides_chart(one: Training, lengths: Lengths) -> Chart | None:
    """Return the token lengths of both kinds of replies as outlines over the same bins."""
    known = [(name, found) for name, found in lengths.sides if found.values]
    if not known:
        return None
    end = float(min(max(max(found.values) for _, found in known), 4 * max(found.p95 for _, found in known))) or 1.0
    edges = spaced(0.0, end, min(30, bins(min(found.count for _, found in known))))
    series, marks = [], []
    for place, (name, found) in enumerate(known):
        corners = [(0.0, 0.0)]
        for (low, high), height in zip(pairwise(edges), counted(found.values, edges), strict=True):
            corners += [(low, float(height)), (high, float(height))]
        series.append(Series(name, (*corners, (end, 0.0)), color(place + 1), "outline"))
        marks.append(Level(found.p50, f"median {name} {found.p50:,.0f}", color=color(place + 1)))
    beyond = sum(value > end for _, found in known for value in found.values)
    last = f" The last bin also holds the {beyond:,} beyond {end:,.0f} tokens." if beyond else ""
    return Lines(
        name=file_name(one.name, "lengths", "replies"),
        title=f"Replies: {' and '.join(name for name, _ in known)}",
        series=tuple(series),
        y_label="replies",
        x_label="tokens",
        verticals=tuple(marks),
        from_zero=True,
        caption=f"How many replies of each kind have which length.{last}",
    )


# ---- several stages ------------------------------------------------------------------------------------------------


def _side_by_side(trainings: Sequence[Training]) -> Section:
    lines: list[tuple[str, list[Cell]]] = [
        ("Objective", [one.objective_title for one in trainings]),
        ("Settings", [one.objective.settings_text for one in trainings]),
        ("Starts from", [one.start for one in trainings]),
        ("Highest learning rate", [Number(one.learning_rate, "scientific") for one in trainings]),
        ("Trained on", [one.units(one.stage.ledger.rows_kept) if one.stage.ledger else None for one in trainings]),
        ("Steps", [Number(one.step_count, "count") for one in trainings]),
        ("KL from where it starts, nats a token", [Number(_drift(one), digits=4) for one in trainings]),
        ("Time of the stage", [Number(one.stage.seconds, "seconds") for one in trainings]),
        ("Of it training steps", [Number(one.result.training_seconds, "seconds") for one in trainings]),
        ("Tokens per second", [Number(one.result.tokens_per_second, "count") for one in trainings]),
        ("Peak memory", [Number(one.peak_memory_bytes, "bytes") for one in trainings]),
    ]
    note = (
        "The time of a stage includes loading the model and what the reference takes; tokens per second count training steps only. How "
        "good the models are stands in the table of all models at a glance."
    )
    title = "Training stages side by side"
    rows = tuple((name, *cells) for name, cells in lines if any(map(values.is_known, cells)))
    compared = [one for one in trainings if one.compares]
    charts = _overlays(compared) if len(compared) > 1 else []
    blocks: list[Block] = [Text(_comparison_note(compared)), *charts] if charts else []
    blocks += [Table(title, ("", *(one.name for one in trainings)), rows), Text(note, "aside")]
    return Section(title, "stages", tuple(blocks), folded=True, gist=plural(len(trainings), "stage"))


def _drift(one: Training) -> float | None:
    paired = one.objective.row_kind == "pairs" and one.reference == one.start
    return one.held_out[-1].metrics.get("kl") if paired and one.held_out else None


def _overlays(trainings: Sequence[Training]) -> list[Chart]:
    """Return the curves of all stages over one another: the loss, and what their objectives call comparable."""
    curves = {one.name: [c for c in (LOSS, *one.objective.curves) if c.comparable] for one in trainings}
    charts: list[Chart] = []
    for curve in dict.fromkeys(curve for own in curves.values() for curve in own):
        (metric,) = curve.metrics
        logged = [
            (place, one, _points(one.held_out, metric, curve.scale), _points(one.steps, metric, curve.scale))
            for place, one in enumerate(trainings, 1)
            if any(own.metrics == curve.metrics for own in curves[one.name])
        ]
        # Held-out rows are the same for all, batches are not; but one side alone is better than no comparison.
        on_held_out = all(len(held_out) > 1 or not steps for *_, held_out, steps in logged)
        series = [
            Series(one.name, held_out, color(place), "dots") if on_held_out else Series(one.name, steps, color(place))
            for place, one, held_out, steps in logged
            if (held_out if on_held_out else steps)
        ]
        if len(series) > 1:
            charts.append(
                Lines(
                    name=f"preferences-{curve.name}",
                    title=curve.title,
                    series=tuple(series),
                    y_label=curve.unit,
                    levels=() if curve.line is None else (Level(curve.line),),
                    smooth_only=True,
                    caption="On the held-out rows." if on_held_out else "While training, mean over neighbouring steps.",
                )
            )
    return charts


def _comparison_note(trainings: Sequence[Training]) -> str:
    """Return which of the curves of several stages can be compared, and how."""
    if len({repr(one.objective) for one in trainings}) == 1:
        return "All stages have the same objective with the same settings, so their losses, rewards and margins have one scale."
    if len({type(one.objective) for one in trainings}) == 1:
        return (
            "The stages have one objective with different settings. The height of loss, reward and margin depends on the "
            "settings, so of these curves compare the course only; accuracies and KL have one scale."
        )
    text = (
        "Losses of different objectives are different quantities: compare their course, not their height. Rewards and "
        "margins have different units as well."
    )
    if len({one.reference is None for one in trainings if one.objective.row_kind == "pairs"}) > 1:
        text += (
            " Accuracy counts which reply gained more where there is a reference, and which one is likelier where there "
            "is none, so their levels differ too."
        )
    return text
