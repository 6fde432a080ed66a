"""What training stages say of themselves: how the loss went, what it cost, which rows it learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from posttrain import objectives
from posttrain.encode.lengths import Lengths, LengthStatistics
from posttrain.errors import RunError
from posttrain.objectives.base import BaseObjective, Curve
from posttrain.report import numbers
from posttrain.report.charts import Chart, Histogram, Level, Lines, Points, Series, bins, color, counted, spaced
from posttrain.report.figure import file_name
from posttrain.report.reading import Gap, Stage, json_value, optional, parse
from posttrain.report.values import (
    Block,
    Cell,
    Facts,
    Finding,
    Headline,
    Notice,
    Number,
    Records,
    Section,
    Table,
    Text,
    row,
)
from posttrain.report.words import join, plural
from posttrain.train.records import HeldOutRecord, Record, StepRecord, TrainResult, fields_of

CHOSEN_FALL = 1.0
"""A fall of the chosen replies' mean log-probability is named from here on, in nats a reply."""
NEAR_CHANCE = 0.05
"""A final accuracy this near to one half is called stuck."""
NEAR_START = 0.01
"""A final loss this near to that of an untrained model, as a share of it, is called unchanged."""
MANY_DROPPED = 0.2
"""A share of dropped rows above this is named."""
UNITS = {
    "conversations": ("example", "examples"),
    "pairs": ("pair", "pairs"),
    "feedback": ("judged reply", "judged replies"),
}


@dataclass(frozen=True, slots=True)
class Training:
    """A train stage as its artefacts tell of it."""

    stage: Stage
    objective: BaseObjective | None
    """None where this version does not know it, or its settings."""
    result: TrainResult
    steps: tuple[StepRecord, ...]
    held_out: tuple[HeldOutRecord, ...]
    lengths: Lengths | None

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.stage.name

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration of the stage."""
        return self.stage.config

    @property
    def step_count(self) -> int | None:
        """Steps done: those of the result, else the last one logged."""
        return self.result.steps if self.result.steps is not None else self.steps[-1].step if self.steps else None

    @property
    def seconds(self) -> float | None:
        """Of the stage, sessions that were killed included."""
        return self.stage.seconds

    @property
    def peak_memory_bytes(self) -> int | None:
        """From the result, else from the manifest."""
        manifest = self.stage.manifest
        return self.result.peak_memory_bytes or (manifest.peak_memory_bytes if manifest else None)

    @property
    def learning_rate(self) -> float | None:
        """The highest rate: the one that was set, else the highest that was used."""
        rate = self.config.get("learning_rate")
        if isinstance(rate, int | float):
            return float(rate)
        return max((r.learning_rate for r in self.steps if r.learning_rate is not None), default=None)

    @property
    def lowest(self) -> HeldOutRecord | None:
        """The held-out measurement with the lowest finite loss."""
        return min((r for r in self.held_out if math.isfinite(r.loss)), key=lambda r: r.loss, default=None)

    @property
    def title(self) -> str:
        """The objective as papers write it, with the settings that matter: ``DPO (beta 0.1)``."""
        if self.objective is None:
            settings = self.config.get("objective")
            return str(settings["name"]) if isinstance(settings, Mapping) and "name" in settings else "training"
        settings = self.objective.settings_text
        return f"{self.objective.title} ({settings})" if settings else self.objective.title

    @property
    def reference(self) -> str | None:
        """The weights whose log-probabilities are compared with; None where there are none."""
        if self.objective is None or not self.objective.needs_reference:
            return None
        return str(getattr(self.objective, "reference", None) or self.start)

    @property
    def start(self) -> str:
        """What it starts from: ``base`` or a stage."""
        return str(self.config.get("start_from") or "base")

    @property
    def compares(self) -> bool:
        """Whether it learns from replies that are compared or judged, and so has rewards."""
        return self.objective is not None and self.objective.row_kind != "conversations"

    @property
    def measured(self) -> Sequence[Record]:
        """Where the course of the training is read off: held-out measurements where there are two, else the steps."""
        return self.held_out if len(self.held_out) > 1 else self.steps

    def units(self, number: int) -> str:
        """``270 pairs`` or ``540 judged replies``."""
        return plural(number, *UNITS[self.objective.row_kind if self.objective else "conversations"])


# ---- reading -------------------------------------------------------------------------------------------------------


def read_training(stage: Stage, gaps: list[Gap]) -> Training:
    """Return what a train stage has written; what is absent or damaged becomes a gap."""

    def read_metrics(path: Path) -> tuple[tuple[StepRecord, ...], tuple[HeldOutRecord, ...]]:
        try:
            lines = stage.folder.metrics()
        except ValueError as error:
            raise RunError(f"a line is not JSON: {error}", where=str(path)) from error
        steps = [fields_of(line) for line in lines if line.get("split") == "train"]
        held_out = [fields_of(line) for line in lines if line.get("split") == "held_out"]
        return parse(tuple[StepRecord, ...], steps, path), parse(tuple[HeldOutRecord, ...], held_out, path)

    metrics = optional(
        gaps, stage, stage.folder.file("metrics.jsonl"), "there are no training curves", read_metrics
    ) or ((), ())
    lengths = optional(
        gaps,
        stage,
        stage.folder.file("lengths.json"),
        "there is no distribution of token lengths",
        lambda path: parse(Lengths, json_value(path), path),
    )
    return Training(stage, read_objective(stage.config), stage.result(TrainResult, gaps), *metrics, lengths)


def read_objective(config: Mapping[str, Any]) -> BaseObjective | None:
    """Return the objective of a stage's configuration; None where this version does not know it."""
    try:
        found: BaseObjective = TypeAdapter[Any](objectives.Objective).validate_python(config.get("objective"))
    except ValidationError:
        return None
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
    remarks = _remarks(one)
    title = f"Training: {one.name}" if several else "Training"
    blocks: list[Block] = [Text(_said(one))]
    blocks += [
        Notice(kind, "Worth knowing" if kind == "fact" else "This looks wrong", (text,)) for kind, text in remarks
    ]
    blocks += [_facts(one), *_curves(one)]
    if one.held_out:
        blocks.append(_course_table(one))
    if one.lengths:
        blocks.append(_lengths_section(one, one.lengths))
    blocks.append(Records("training", _record(one)))
    warnings = [Finding(one.name, "Warning", None, text) for kind, text in remarks if kind == "warning"]
    return Section(
        title,
        file_name("train", one.name),
        tuple(blocks),
        folded=True,
        gist=_gist(one),
        summary=_sentence(one, before),
        findings=(*_findings(one), *warnings),
        advice=_advice(one),
    )


def _record(one: Training) -> dict[str, Any]:
    lengths = one.lengths
    kinds = ("conversation", "assistant", *(name for name, _ in lengths.sides)) if lengths else ()
    statistics = {name: asdict(getattr(lengths, name)) for name in kinds}
    return {
        "stage": one.name,
        "objective": one.objective,
        "reference": one.reference,
        "result": one.result,
        "seconds": one.seconds,
        "peak_memory_bytes": one.peak_memory_bytes,
        "first_step": one.steps[0] if one.steps else None,
        "last_step": one.steps[-1] if one.steps else None,
        "held_out": one.held_out,
        "limit": lengths.limit if lengths else None,
        "lengths": {name: {k: v for k, v in found.items() if k != "values"} for name, found in statistics.items()},
    }


def _gist(one: Training) -> str:
    parts = [one.title]
    if one.result.first_loss is not None and one.result.last_loss is not None:
        parts.append(f"loss {numbers.fixed(one.result.first_loss)} to {numbers.fixed(one.result.last_loss)}")
    if one.step_count is not None:
        parts.append(plural(one.step_count, "step"))
    if one.seconds is not None:
        parts.append(numbers.duration(one.seconds))
    return ", ".join(parts)


def _said(one: Training) -> str:
    """Return what was trained and how, and what the objective says of its numbers."""
    how = _method(one)
    if one.compares:
        how = f"{how}, {_reference_text(one)}"
    return f"{how[:1].upper()}{how[1:]}. {one.objective.explanation if one.objective else ''}".strip()


def _facts(one: Training) -> Facts:
    result = one.result
    supervised = Number(result.supervised_tokens, "count") if result.supervised_tokens is not None else None
    if supervised and result.tokens:
        supervised = Number(supervised.value, "count", note=numbers.percent((supervised.value or 0) / result.tokens, 0))
    losses = None
    if result.first_loss is not None and result.last_loss is not None:
        losses = f"{numbers.fixed(result.first_loss)} and {numbers.fixed(result.last_loss)}"
    best = None
    if result.best_held_out_loss is not None:
        best = Number(result.best_held_out_loss, digits=3, note=f"at step {numbers.count(result.best_step)}")
    items: tuple[tuple[str, Cell], ...] = (
        ("Steps", Number(one.step_count, "count")),
        ("Epochs", None if result.epochs is None else f"{result.epochs:.3g}"),
        ("Tokens", Number(result.tokens, "count")),
        ("Supervised tokens", supervised),
        ("Training loss, first and last step", losses),
        ("Lowest held-out loss", best),
        ("Highest learning rate", Number(one.learning_rate, "scientific")),
        ("Time", None if one.seconds is None else numbers.duration(one.seconds)),
        (
            "Of it training steps",
            None if result.training_seconds is None else numbers.duration(result.training_seconds),
        ),
        ("Speed, median over steps", _speed(result.tokens_per_second)),
        ("Share of the measured matmul peak", Number(result.matmul_share, "share", digits=0)),
        ("Peak memory", Number(one.peak_memory_bytes, "bytes")),
    )
    return Facts(items)


def _speed(rate: float | None) -> Cell:
    return None if rate is None else Number(rate, "count", note="tokens per second")


def _headlines(trainings: Sequence[Training]) -> tuple[Headline, ...]:
    """Return what training cost: the time of all stages together, the speed of the last one, and the highest memory."""
    several, row = len(trainings) > 1, []
    timed = [(one, one.seconds) for one in trainings if one.seconds is not None]
    if timed:
        known = [(one, one.step_count) for one, _ in timed if one.step_count is not None]
        steps = [plural(count, "step") + (f" of {one.name}" if several else "") for one, count in known]
        row.append(Headline("Training time", Number(sum(seconds for _, seconds in timed), "seconds"), join(steps)))
    if measured := [one for one in trainings if one.result.tokens_per_second is not None]:
        last = measured[-1]
        share = last.result.matmul_share
        note = "tokens per second" + (f", {numbers.percent(share, 0)} of matmul peak" if share is not None else "")
        label = f"Speed of {last.name}" if several else "Speed"
        row.append(Headline(label, Number(last.result.tokens_per_second, "count"), note))
    if peaks := [(one.peak_memory_bytes, one) for one in trainings if one.peak_memory_bytes is not None]:
        peak, most = max(peaks, key=lambda entry: entry[0])
        note = f"while training {f'{most.name} ' if several else ''}on {_device(most)}"
        row.append(Headline("Peak memory", Number(peak, "bytes"), note))
    return tuple(row)


# ---- words ---------------------------------------------------------------------------------------------------------


def _method(one: Training) -> str:
    """``SFT with LoRA of rank 16 (... parameters)``."""
    return one.title + _adapter_text(one)


def _adapter_text(one: Training) -> str:
    adapter, text = one.config.get("adapter"), ""
    if isinstance(adapter, dict) and adapter.get("name") == "lora":
        kind = "DoRA" if adapter.get("dora") else "rsLoRA" if adapter.get("rslora") else "LoRA"
        text += f" with {kind} of rank {adapter['rank']}" if "rank" in adapter else f" with {kind}"
    elif isinstance(adapter, dict) and adapter.get("name") == "full":
        text += " of all weights"
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
    result, manifest, steps = one.result, one.stage.manifest, one.step_count
    if steps is None or manifest is None:
        return ""
    start = "the base model" if one.start == "base" else f"the weights of stage {one.start}"
    how = _method(one)
    if before is not None and _adapter_text(before) == _adapter_text(one):
        how = one.title + (" in the same way" if _adapter_text(one) else "")
    text = f"Stage {one.name} trained {start} by {how}"
    if one.stage.ledger is not None:
        text += f" on {one.units(one.stage.ledger.rows_kept)}"
    text += f", {_reference_text(one)}," if one.compares else ""
    text += f" for {plural(steps, 'step')}"
    details = []
    if batch := one.config.get("batch_size"):
        details.append(f"{batch} {UNITS[one.objective.row_kind if one.objective else 'conversations'][1]} each")
    if result.epochs is not None:
        details.append(f"{result.epochs:.3g} {'epoch' if result.epochs == 1 else 'epochs'}")
    if result.tokens is not None:
        details.append(f"{numbers.count(result.tokens)} tokens, {numbers.count(result.supervised_tokens)} supervised")
    text += f" ({', '.join(details)})" if details else ""
    text += f" in {numbers.duration(one.seconds)}" if one.seconds is not None else ""
    same = before is not None and _device(before) == _device(one)
    return text + ("." if same or not manifest.device else f" on {_device(one)}.")


def _findings(one: Training) -> list[Finding]:
    texts = []
    for records, what in ((one.steps, "training"), (one.held_out, "held-out")):
        lost = [record.step for record in records if not math.isfinite(record.loss)]
        if lost:
            texts.append(f"The {what} loss of {one.name} was not finite at step {lost[0]}.")
    if _finite(one) and (course := _loss_course(one)):
        texts.append(course)
    if one.result.stopped_early:
        texts.append(f"Stage {one.name} stopped early: the held-out loss improved no more.")
    if one.compares and len(one.held_out) > 1 and (course := _reward_course(one)):
        texts.append(course)
    return [Finding(one.name, "Training", None, text) for text in texts]


def _finite(one: Training) -> list[HeldOutRecord]:
    return [record for record in one.held_out if math.isfinite(record.loss)]


def _loss_course(one: Training) -> str:
    finite, lowest = _finite(one), one.lowest
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
        kept = "weights of the lowest point" if one.config.get("keep") == "best" else "final weights"
        text += f" The {kept} were handed on."
    return text


def _reward_course(one: Training) -> str:
    """Return how the held-out rewards went: accuracy and margin where they are logged, else both kinds of replies."""
    better, worse = one.objective.sides if one.objective else ("chosen", "rejected")
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
    lowest, finite = one.lowest, _finite(one)
    if one.stage.status != "complete" or lowest is None or len(finite) < 2:
        return ()
    if lowest.step == finite[-1].step and lowest.step != finite[0].step and not one.result.stopped_early:
        return (f"The held-out loss of {one.name} was still falling at its last step: more epochs may help.",)
    if lowest.step == finite[0].step:
        return (
            f"Training {one.name} did not lower the held-out loss: try a lower learning rate, or look at the rows.",
        )
    return ()


# ---- what a reader should look at ----------------------------------------------------------------------------------

Remark = tuple[Any, str]
"""(``fact`` for a known effect or ``warning`` for what looks wrong, the text)."""


def _remarks(one: Training) -> list[Remark]:
    if not one.compares:
        return []
    return [found for check in (_dropped, _unchanged, _chance, _falling) if (found := check(one)) is not None]


def _dropped(one: Training) -> Remark | None:
    ledger = one.stage.ledger
    step = next((s for s in ledger.steps if s.name == "encode"), None) if ledger else None
    if step is None or not step.rows_in or sum(step.dropped.values()) <= MANY_DROPPED * step.rows_in:
        return None
    lost = sum(step.dropped.values())
    reasons = join([f"{reason} {number:,}" for reason, number in step.dropped.items()])
    advice = " A higher max_length keeps more." if step.dropped.get("too_long", 0) > lost / 2 else ""
    return (
        "warning",
        f"{numbers.percent(lost / step.rows_in, 0)} of the {one.units(step.rows_in)} were dropped before training "
        f"{one.name} ({reasons}), so it learned from a selection.{advice}",
    )


def _unchanged(one: Training) -> Remark | None:
    start = one.objective.untrained_loss if one.objective else None
    last = _end(one)
    if start is None or last is None or last[0] == 0 or not abs(last[1]["loss"] - start) <= NEAR_START * start:
        return None
    value = "ln 2 = 0.693" if math.isclose(start, math.log(2)) else f"{start:.3g}"
    scored = one.objective is not None and one.objective.head == "score"
    untrained = "a model that scores both replies alike" if scored else "an untrained policy"
    return (
        "warning",
        f"The {_where(one)} loss of {one.name} stayed at {numbers.fixed(last[1]['loss'])}; {value} is that of "
        f"{untrained}. It has hardly learned from the pairs: too low a learning rate and too few steps are the usual reasons.",
    )


def _chance(one: Training) -> Remark | None:
    first, last = _start(one), _end(one)
    accuracy = last[1].get("rewards/accuracies") if last else None
    if last is None or last[0] == 0 or accuracy is None or not abs(accuracy - 0.5) <= NEAR_CHANCE:
        return None
    before = first[1].get("rewards/accuracies") if first else None
    if before is not None and accuracy - before > NEAR_CHANCE:
        return None  # without a reference the start may lie well below one half
    rows = one.held_out[-1].rows if _where(one) == "held-out" else None
    return (
        "warning",
        f"The {_where(one)} reward accuracy of {one.name} ended at {numbers.percent(accuracy)}"
        f"{f' of {one.units(rows)}' if rows else ''}, about what tossing a coin gives.",
    )


def _falling(one: Training) -> Remark | None:
    first, last = _start(one), _end(one)
    if one.objective is None or one.objective.row_kind != "pairs" or len(one.measured) < 2 or not first or not last:
        return None
    before, after = (ends[1].get("logps/chosen") for ends in (first, last))
    margins = [ends[1].get("rewards/margins") for ends in (first, last)]
    if before is None or after is None or before - after < CHOSEN_FALL:
        return None
    if margins[0] is None or margins[1] is None or margins[1] <= margins[0]:
        return None
    hold = " A positive sft_weight holds them." if hasattr(one.objective, "sft_weight") else ""
    return (
        "fact",
        f"While the {_where(one)} margin of {one.name} grew from {numbers.fixed(margins[0])} to "
        f"{numbers.fixed(margins[1])}, the chosen replies became less likely themselves: their mean log-probability went "
        f"from {numbers.fixed(before, 1)} to {numbers.fixed(after, 1)} nats. That is a known effect, not an error: the "
        f"objective asks for distance between both replies, and the rejected ones fell further.{hold}",
    )


def _where(one: Training) -> str:
    return "held-out" if one.measured is one.held_out else "training"


def _start(one: Training) -> tuple[int, Mapping[str, float]] | None:
    return _mean(one.measured[: _window(one)])


def _end(one: Training) -> tuple[int, Mapping[str, float]] | None:
    return _mean(one.measured[-_window(one) :])


def _window(one: Training) -> int:
    """Return how many records make one point: held-out measurements speak alone, steps as a tenth of all."""
    return 1 if one.measured is one.held_out else max(1, len(one.steps) // 10)


def _mean(records: Sequence[Record]) -> tuple[int, Mapping[str, float]] | None:
    """Return the last step of the records, and the means of their loss and metrics."""
    if not records:
        return None
    each = [{"loss": record.loss, **record.metrics} for record in records]
    known = set(each[0]).intersection(*each)
    return records[-1].step, {key: sum(one[key] for one in each) / len(each) for key in known}


# ---- charts --------------------------------------------------------------------------------------------------------


def _curves(one: Training) -> list[Chart]:
    small = one.compares
    objective = one.objective
    drawn: list[Chart] = [_loss_chart(one, small=small)]
    drawn += [_curve_chart(one, curve) for curve in (objective.curves if objective else ())]
    limit = one.config.get("max_grad_norm")
    norms = [record.grad_norm for record in one.steps if record.grad_norm is not None]
    levels: tuple[Level, ...] = ()
    caption = ""
    if isinstance(limit, int | float) and norms:
        levels = (Level(limit, f"clipped above {limit:g}", limit=True),)
        caption = f"Clipped to {limit:g} at {sum(norm > limit for norm in norms):,} of {len(norms):,} steps."
    run = (
        ("gradient-norm", "Gradient norm", "norm", "number", lambda r: r.grad_norm),
        ("learning-rate", "Learning rate", "rate", "scientific", lambda r: r.learning_rate),
        ("speed", "Speed", "tokens per second", "count", lambda r: r.tokens_per_second),
    )
    for name, title, label, unit, value in run:
        norm = name == "gradient-norm"
        drawn.append(
            Lines(
                name=file_name(one.name, name),
                title=title,
                series=(Series("training", _points(one.steps, value)),),
                y_label=label,
                unit=unit,
                levels=levels if norm else (),
                small=small,
                from_zero=not norm,
                log_when_wide=norm,
                caption=caption if norm else "",
            )
        )
    return drawn


def _loss_chart(one: Training, *, small: bool) -> Chart:
    window = max(1, len(one.steps) // 20)
    faint = f" (faint) and its mean over {window} steps" if window > 1 else ""
    ringed = ", the lowest one ringed." if one.held_out else "."
    return Lines(
        name=file_name(one.name, "loss"),
        title="Loss",
        series=(
            Series("training", tuple((float(r.step), r.loss) for r in one.steps)),
            Series("held-out", _losses(one.held_out), "s1", "dots", chosen=one.lowest.step if one.lowest else None),
        ),
        y_label=one.objective.loss_unit if one.objective else "loss",
        small=small,
        caption=f"Training loss of each step{faint}; held-out loss as points{ringed}",
    )


def _losses(records: Sequence[Record]) -> Points:
    return tuple((float(r.step), r.loss) for r in records if math.isfinite(r.loss))


def _curve_chart(one: Training, curve: Curve) -> Chart:
    """Return one quantity of the objective, in training and on the held-out rows; training is left out where its batches can't be compared."""
    series = []
    for place, (label, metric) in enumerate(zip(_labels(one, curve), curve.metrics, strict=True)):
        held_out, steps = _metric(one.held_out, curve, metric), _metric(one.steps, curve, metric)
        alone = len(curve.metrics) == 1
        kind = f"s{place + 1}"
        if steps and not (curve.held_out_alone and len(held_out) > 1):
            series.append(Series(label, steps, "s0" if alone else kind))
        series.append(Series("held-out" if alone else label, held_out, kind, "dots"))
    caption = ""
    if len(curve.metrics) > 1 and any(one.style == "dots" and one.points for one in series):
        caption = "Of the held-out rows." if curve.held_out_alone else "Lines with dots: held-out; without: training."
    return Lines(
        name=file_name(one.name, curve.name),
        title=curve.title,
        series=tuple(series),
        y_label=curve.unit,
        levels=() if curve.line is None else (Level(curve.line),),
        small=True,
        caption=caption,
    )


def _metric(records: Sequence[Record], curve: Curve, metric: str) -> Points:
    found = ((float(r.step), curve.scale * r.metrics[metric]) for r in records if metric in r.metrics)
    return tuple(point for point in found if math.isfinite(point[1]))


def _points(records: Sequence[StepRecord], value: Callable[[StepRecord], float | None]) -> Points:
    return tuple((float(record.step), found) for record in records if (found := value(record)) is not None)


def _course_table(one: Training) -> Table:
    """Return the held-out measurements, with what the objective logs; columns without a number are left out."""
    curves = one.objective.curves if one.objective else ()
    named = [
        (curve, label, metric)
        for curve in curves
        for label, metric in zip(_labels(one, curve), curve.metrics, strict=True)
    ]
    rows = []
    for record in one.held_out:
        found = (record.metrics.get(metric) for _, _, metric in named)
        logged = (
            None if value is None else curve.scale * value for value, (curve, _, _) in zip(found, named, strict=True)
        )
        perplexity = None if one.compares else _perplexity(record.loss)
        numbers_of = [
            Number(record.loss, digits=4),
            Number(perplexity, digits=2),
            *map(_logged, logged),
        ]
        rows.append(row(str(record.step), *numbers_of))
    headings = [f"{curve.title}{f', {label}' if len(curve.metrics) > 1 else ''}" for curve, label, _ in named]
    columns = ("Step", "Loss", "Perplexity", *headings)
    return Table(f"Held-out measurements while training {one.name}", columns, tuple(rows), folded=True).known()


def _logged(value: float | None) -> Number:
    return Number(value, digits=4 if value is not None and abs(value) < 1 else None)


def _labels(one: Training, curve: Curve) -> tuple[str, ...]:
    """Return what the lines of a curve are called."""
    return ("training",) if len(curve.metrics) == 1 else (one.objective.sides if one.objective else curve.metrics)


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


# ---- lengths -------------------------------------------------------------------------------------------------------


def _lengths_section(one: Training, lengths: Lengths) -> Section:
    charts: list[Chart | None] = [
        _length_chart(one, "conversation", "Whole conversations", lengths.conversation, lengths.limit)
    ]
    if lengths.sides:
        charts.append(_sides_chart(one, lengths))
    else:
        charts.append(_length_chart(one, "assistant", "Assistant replies", lengths.assistant, lengths.limit))
    kinds = [
        ("Whole conversations", lengths.conversation),
        ("All replies" if lengths.sides else "Assistant replies", lengths.assistant),
        *((f"{name.capitalize()} replies", found) for name, found in lengths.sides),
    ]
    rows = tuple(
        row(
            name,
            *(Number(value, "count") for value in (found.count, found.p50, found.p90, found.p95, found.max)),
            Number(found.share_over_limit, "share"),
        )
        for name, found in kinds
    )
    columns = ("In tokens", "Count", "P50", "P90", "P95", "Max", f"Over the limit of {lengths.limit:,}")
    known = [chart for chart in charts if chart is not None]
    table = Table(f"Token lengths of {one.name}", columns, rows)
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
    lines: list[tuple[str, Callable[[Training], Cell]]] = [
        ("Objective", lambda t: t.objective.title if t.objective else t.title),
        ("Settings", lambda t: t.objective.settings_text if t.objective else None),
        ("Starts from", lambda t: t.start),
        ("Highest learning rate", lambda t: Number(t.learning_rate, "scientific")),
        ("Trained on", lambda t: t.units(t.stage.ledger.rows_kept) if t.stage.ledger else None),
        ("Steps", lambda t: Number(t.step_count, "count")),
        ("KL from where it starts, nats a token", lambda t: Number(_drift(t), digits=4)),
        ("Time of the stage", lambda t: Number(t.seconds, "seconds")),
        ("Of it training steps", lambda t: Number(t.result.training_seconds, "seconds")),
        ("Tokens per second", lambda t: Number(t.result.tokens_per_second, "count")),
        ("Peak memory", lambda t: Number(t.peak_memory_bytes, "bytes")),
    ]
    rows = [(name, *(value(one) for one in trainings)) for name, value in lines]
    known = tuple(
        row
        for row in rows
        if any(cell not in (None, "") and not (isinstance(cell, Number) and cell.value is None) for cell in row[1:])
    )
    note = (
        "The time of a stage includes loading the model and what the reference takes; tokens per second count training steps only. How "
        "good the models are stands in the table of all models at a glance."
    )
    table = Table("Training stages side by side", ("", *(one.name for one in trainings)), known)
    compared = [one for one in trainings if one.compares]
    charts = _overlays(compared) if len(compared) > 1 else []
    blocks: list[Block] = [Text(_comparison_note(compared)), *charts] if charts else []
    return Section(
        "Training stages side by side",
        "stages",
        (*blocks, table, Text(note, "aside")),
        folded=True,
        gist=plural(len(trainings), "stage"),
    )


def _drift(one: Training) -> float | None:
    paired = one.objective is not None and one.objective.row_kind == "pairs" and one.reference == one.start
    return one.held_out[-1].metrics.get("kl") if paired and one.held_out else None


def _overlays(trainings: Sequence[Training]) -> list[Chart]:
    """Return the curves of all stages over one another: the loss, and what their objectives call comparable."""
    curves = [Curve("loss", "Loss", "loss", ())]
    for one in trainings:
        curves += [c for c in (one.objective.curves if one.objective else ()) if c.comparable and c not in curves]
    drawn: list[Chart] = []
    for curve in curves:
        own = [
            (place, one)
            for place, one in enumerate(trainings)
            if not curve.metrics
            or (one.objective and any(c.metrics == curve.metrics and c.comparable for c in one.objective.curves))
        ]

        def points(records: Sequence[Record], curve: Curve = curve) -> Points:
            return _metric(records, curve, curve.metrics[0]) if curve.metrics else _losses(records)

        held_out = [(place, one, points(one.held_out)) for place, one in own]
        steps = [(place, one, points(one.steps)) for place, one in own]
        # Held-out rows are the same for all, batches are not; but one side alone is better than no comparison.
        on_held_out = all(len(h) > 1 or not s for (*_, h), (*_, s) in zip(held_out, steps, strict=True))
        series = [
            Series(one.name, found, color(place + 1), "dots" if on_held_out else "steps")
            for place, one, found in (held_out if on_held_out else steps)
            if found
        ]
        if len(series) > 1:
            drawn.append(
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
    return drawn


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
    if len({one.reference is None for one in trainings if one.objective and one.objective.row_kind == "pairs"}) > 1:
        text += (
            " Accuracy counts which reply gained more where there is a reference, and which one is likelier where there "
            "is none, so their levels differ too."
        )
    return text
