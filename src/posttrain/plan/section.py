"""A plan as values of a report: one table of the three ways side by side, what memory is for as bars, and what to change first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.plan.devices import Device
from posttrain.plan.fit import PEAK_SHARE, Way
from posttrain.plan.memory import MemoryPlan, Phase
from posttrain.report import numbers
from posttrain.report.charts import Bars, Piece
from posttrain.report.values import Block, Cell, Label, Notice, Number, Page, Records, Section, Table, Text

TITLES = {"full": "All weights", "lora": "LoRA", "qlora": "QLoRA (4 bit)"}
PARTS: Mapping[str, str] = {
    "weights": "s0",
    "adapter": "s1",
    "gradients": "s2",
    "optimizer": "s3",
    "activations": "s4",
    "output head": "s5",
    "working memory": "s6",
    "second copy": "s6",
    "reference": "s6",
    "critic": "s1",
    "reward model": "s1",
    "cache of keys and values": "s6",
    "allocator": "s7",
    "runtime": "s6",
}
"""What memory is for, in the order in which it is drawn -> its colour."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A step's bytes by the formulas and by a trace of the step itself."""

    method: str
    kept: float
    """For the backward pass, of one micro-batch."""
    kept_traced: float
    peak: float
    """Besides weights and optimizer, gradients included."""
    peak_traced: float


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A training stage with its three ways on a device; the one that is set is marked by ``chosen``."""

    name: str
    device: Device
    ways: tuple[Way, ...]
    chosen: str
    notes: tuple[str, ...] = ()
    """What was assumed."""
    generation: Phase | None = None
    generation_note: str = ""
    traced: tuple[Traced, ...] = ()


def plan_page(title: str, facts: Sequence[tuple[str, Cell]], stages: Sequence[PlannedStage]) -> Page:
    """The plan of all training stages, one below the other."""
    return Page("posttrain plan", title, tuple(map(stage_section, stages)), tuple(facts))


def stage_section(stage: PlannedStage) -> Section:
    """One stage: does it fit, and with which settings."""
    found = next(way for way in stage.ways if way.setup.method == stage.chosen)
    blocks: list[Block] = [Text(_verdict(stage, found), "lead"), _ways_table(stage)]
    if advice := _advice(stage, found):
        blocks.append(advice)
    blocks += [_bars(stage), _parts_table(stage)]
    if stage.traced:
        blocks.append(_traced_table(stage.traced))
    if stage.generation is not None:
        blocks.append(Text(f"{stage.generation_note}: {_gb(stage.generation.total)}.", "aside"))
    blocks += [Text(note, "aside") for note in stage.notes]
    blocks.append(Records("plan", as_record(stage)))
    return Section(f"Stage {stage.name} on {stage.device.name}", f"plan-{stage.name}", tuple(blocks))


def _verdict(stage: PlannedStage, way: Way) -> str:
    need, room = way.memory.peak.total, stage.device.memory
    what = f"{TITLES[stage.chosen]}: {_gb(need)} at the peak ({way.memory.peak.name})"
    if way.fits:
        return f"It fits. {what}, of {_gb(room)}."
    return f"It does not fit. {what}, but there are {_gb(room)}."


def _advice(stage: PlannedStage, way: Way) -> Table | Notice | None:
    if way.fits:
        return None
    if not any(change.fits for change in way.changes):
        last = way.changes[-1] if way.changes else None
        text = "No setting makes it fit: take a smaller model or a device with more memory."
        least = "" if last is None else f" With all of them it takes {_gb(last.bytes)}."
        return Notice("warning", "It can't be made to fit", (text + least,))
    rows = tuple(
        (Label(change.setting), change.cost, Number(change.bytes, "bytes"), "fits" if change.fits else "not yet")
        for change in way.changes
    )
    return Table("Change in this order", ("Setting", "What it costs", "Peak then", ""), rows)


def _ways_table(stage: PlannedStage) -> Table:
    def limit(value: int | None) -> Cell:
        return "none fits" if value is None else Number(value, "count")

    own = stage.ways[0].setup.own_replies is not None

    def column(way: Way) -> tuple[Cell, ...]:
        speed, hours = way.tokens_per_second, way.hours
        return (
            TITLES[way.setup.method] + (" (as set)" if way.setup.method == stage.chosen else ""),
            Number(way.setup.trained / 1e6, "count"),
            Number(way.memory.peak.total, "bytes"),
            "yes" if way.fits else "no",
            limit(way.largest_tokens),
            None if own else limit(way.largest_length),
            Number(way.accumulation, "count"),
            None if speed is None else Number(float(f"{speed:.2g}"), "count"),
            None if hours is None else numbers.short_duration(3600 * hours),
        )

    run = stage.ways[0].run
    names = (
        "",
        "Trained parameters, million",
        f"Peak at {run.tokens_at_once:,} tokens at once",
        "Fits",
        "Largest micro_batch_tokens",
        "Longest sequence",
        f"Micro-batches for {run.batch_size} prompts" if own else f"Micro-batches for batch_size {run.batch_size}",
        "Tokens a second (estimate)",
        "Time (estimate)",
    )
    titles, *rows = zip(names, *map(column, stage.ways), strict=True)
    known = (row for row in rows if any(cell is not None for cell in row[1:]))
    return Table("", tuple(map(str, titles)), tuple(known))


def _bars(stage: PlannedStage) -> Bars:
    lanes = []
    for way in stage.ways:
        peak = way.memory.peak
        known = [(part, peak.parts[part]) for part in PARTS if peak.parts.get(part)]
        pieces = tuple(Piece(size, PARTS[part], f"{part} {_gb(size)}") for part, size in known)
        lanes.append((TITLES[way.setup.method], f"{_gb(peak.total)} in {peak.name}", (pieces,)))
    used = {part for way in stage.ways for part, size in way.memory.peak.parts.items() if size}
    legend = tuple((part, PARTS[part]) for part in PARTS if part in used)
    return Bars(
        name=f"memory-{stage.name}",
        title="What memory is for at the peak",
        caption=f"The device has {_gb(stage.device.memory)}.",
        lanes=tuple(lanes),
        legend=legend,
        in_terminal=True,
    )


def _parts_table(stage: PlannedStage) -> Table:
    used = [part for part in PARTS if any(way.memory.peak.parts.get(part) for way in stage.ways)]
    rows: list[tuple[Cell, ...]] = [
        (part, *(Number(way.memory.peak.parts.get(part) or None, "bytes") for way in stage.ways)) for part in used
    ]
    return Table("By part, at the peak", ("", *(TITLES[way.setup.method] for way in stage.ways)), tuple(rows))


def _traced_table(several: Sequence[Traced]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in several:
        lines = (("kept for the backward pass", one.kept, one.kept_traced), ("most at once", one.peak, one.peak_traced))
        for name, formula, trace in lines:
            apart = numbers.signed_percent(formula / trace - 1)
            rows.append((f"{TITLES[one.method]}: {name}", Number(formula, "bytes"), Number(trace, "bytes"), apart))
    return Table("A step by the formulas and traced", ("", "Formula", "Trace", "Difference"), tuple(rows))


def _gb(size: float) -> str:
    return numbers.in_unit(size, "bytes")


def speed_note(device: Device) -> str:
    """Where times come from."""
    if device.flops is None:
        return "The speed of this device is not known, so no time is given."
    rate = "measured here" if device.measured else "of its data sheet"
    return (
        f"Times are estimates: {PEAK_SHARE:.0%} of {device.flops / 1e12:,.3g} TFLOP/s {rate}; checkpointing, evaluation "
        "and writing are not in the micro-batch's speed."
    )


# ---- for programs --------------------------------------------------------------------------------------------------


def memory_record(memory: MemoryPlan) -> dict[str, Any]:
    """The phases and parts of a plan in whole bytes, and its peak."""
    return {
        "peak_bytes": round(memory.peak.total),
        "peak_phase": memory.peak.name,
        "phases": {phase.name: {part: round(size) for part, size in phase.parts.items()} for phase in memory.phases},
    }


def as_record(stage: PlannedStage) -> dict[str, Any]:
    """A planned stage as plain values, for ``--json``."""
    return {
        "stage": stage.name,
        "device": stage.device.name,
        "device_bytes": round(stage.device.memory),
        "set": stage.chosen,
        "notes": list(stage.notes),
        "traced": [asdict(one) for one in stage.traced],
        "generation_bytes": None if stage.generation is None else round(stage.generation.total),
        "ways": {
            way.setup.method: {
                "trained_parameters": way.setup.trained,
                "tokens_at_once": way.run.tokens_at_once,
                "fits": way.fits,
                "largest_micro_batch_tokens": way.largest_tokens,
                "longest_sequence": way.largest_length,
                "micro_batches": way.accumulation,
                "tokens_per_second_estimate": way.tokens_per_second,
                "hours_estimate": way.hours,
                "memory": memory_record(way.memory),
                "changes": [asdict(one) | {"bytes": round(one.bytes)} for one in way.changes],
            }
            for way in stage.ways
        },
    }
