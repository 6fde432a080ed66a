"""The planner's view of a training stage: what of its settings and rows decides memory. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from posttrain.encode.collate import Batch
from posttrain.encode.lengths import Lengths
from posttrain.model.config import LoraAdapter
from posttrain.plan.fit import Rows, Run, changes, largest_tokens
from posttrain.plan.memory import Layout, MemoryPlan, Setup, filled, memory_plan
from posttrain.plan.section import PARTS
from posttrain.plan.shape import ModelShape
from posttrain.report import numbers
from posttrain.report.values import Block, Cell, Number, Table, Text
from posttrain.report.words import plural
from posttrain.train.config import TrainSettings
from posttrain.train.protocols import ModelSettings

SUPERVISED_SHARE, PROMPT_SHARE = 0.6, 0.5
"""Of a sequence the part whose logits are formed, and of a pair's longer side the prompt that both share; where rows are not there to be counted."""


def setup_of(
    settings: ModelSettings,
    shape: ModelShape,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
    reference_tokens: int = 0,
    *,
    second_model: bool = False,
) -> Setup:
    """What of a stage's settings decides its memory. ``second_model``: whether its reference is loaded as a model of its own."""
    adapter, objective = settings.adapter, settings.objective
    if isinstance(adapter, LoraAdapter) and objective.row_kind != "conversations":
        adapter = replace(adapter, dropout=0.0)  # preferences are trained without
    return Setup(
        shape=shape,
        adapter=adapter,
        quantized=getattr(adapter, "quantize", None) is not None,
        dtype=dtype,
        device=device,
        checkpointing=settings.gradient_checkpointing,
        scores=objective.head == "score",
        reference_tokens=reference_tokens,
        other_reference=second_model,
    )


def run_of(settings: TrainSettings, rows: Rows, micro_batch_tokens: int) -> Run:
    """What of a stage's settings decides its time."""
    return Run(
        rows=rows,
        batch_size=settings.batch_size,
        micro_batch_tokens=micro_batch_tokens,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )


def longest_rows(settings: TrainSettings) -> Rows:
    """The rows at their worst: all of ``max_length``."""
    longest, pairs = settings.max_length, settings.objective.row_kind == "pairs"
    prompt = round(PROMPT_SHARE * longest) if pairs else 0
    layout = filled(2 * longest - prompt if pairs else longest, longest, SUPERVISED_SHARE, prompt)
    if settings.objective.head == "score":
        layout = replace(layout, supervised=2)
    return replace(rows_of([layout]), count=None, measured=False)


def measured_rows(settings: TrainSettings, lengths: Lengths) -> Rows:
    """The rows that an earlier run of the stage has encoded, from their lengths; of pairs the prompts are taken to be alike."""
    whole = [n for n in lengths.conversation.values if n <= settings.max_length]
    if not whole:
        return longest_rows(settings)
    replies = [kind.values for _, kind in lengths.sides]
    if settings.objective.row_kind != "pairs" or len(replies) != 2:
        share = sum(lengths.assistant.values) / max(1, sum(lengths.conversation.values))
        return rows_of([filled(n, n, share) for n in whole])
    prompt = max(0, round((sum(whole) - sum(map(sum, replies))) / len(whole)))
    pairs = zip(*replies, strict=False)
    return rows_of([Layout((prompt, a, b), (0, prompt, prompt), a + b) for a, b in pairs])


def rows_of(layouts: Sequence[Layout]) -> Rows:
    """What the planner wants to know of encoded units, each laid out for itself.

    A token stands in a sequence of the mean of squares by the mean: long rows have most tokens.
    """
    lengths = [layout.tokens for layout in layouts]
    ends = [
        depth + length
        for one in layouts
        for length, depth in zip(one.lengths, one.depths, strict=True)
        if depth == max(one.depths)
    ]
    total, usual = sum(lengths), round(sum(n * n for n in ends) / sum(ends))
    return Rows(
        count=len(layouts),
        mean=total / len(layouts),
        longest=max(lengths),
        usual=usual,
        supervised_share=sum(layout.supervised for layout in layouts) / total,
        prompt_share=min(0.95, sum(max(one.depths) for one in layouts) / len(layouts) / usual),
        measured=True,
    )


# ---- plan beside measurement ---------------------------------------------------------------------------------------

MEMORY_FILE = "memory.json"
"""In the stage's folder: what was planned, and what it took."""
USED_SHARE = 0.8
"""Of the memory at hand, what ``micro_batch_tokens: auto`` plans with: plans are within 10%, and others need some too."""
MOST_AT_ONCE = {"cpu": 4096, "cuda": 32768}
"""Tokens above which products grow no faster; ``auto`` takes no more."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A training stage's plan: the setup, the run, and its largest micro-batch as it is laid out."""

    setup: Setup
    run: Run
    layout: Layout

    @property
    def memory(self) -> MemoryPlan:
        """By phase."""
        return memory_plan(self.setup, self.layout)

    @property
    def alone_bytes(self) -> float:
        """What one forward and backward pass takes above what stands before it, where no gradients are there yet."""
        memory = memory_plan(replace(self.setup, accumulates=False), self.layout)
        return memory.step_bytes + memory.held_bytes

    def advice(self, room: float) -> str:
        """What to change first so that the stage fits into so many bytes; a sentence for an error."""
        found = list(changes(self.setup, self.run, room))
        settings = ", then ".join(f"{one.setting} ({numbers.in_unit(one.bytes, 'bytes')})" for one in found)
        peak = self.memory.peak
        return f"planned were {numbers.in_unit(peak.total, 'bytes')} ({peak.name}); change in this order: {settings}"


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """What a stage really took, in bytes. Tensors that are there all the time are counted; the rest is the peak less them."""

    peak_memory_bytes: int
    """On a CPU of the process, above what it had before the model was loaded; on CUDA allocated."""
    other_memory_bytes: int
    """The peak less ``parts``."""
    parts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Probe:
    """One micro-batch, forward and backward, tried before the first step."""

    planned_tokens: int
    """``micro_batch_tokens`` by the plan alone."""
    tokens: int
    """Of the micro-batch."""
    planned_bytes: int
    """What it takes above what stood before."""
    memory_bytes: int

    @property
    def excess(self) -> int:
        """Bytes that it took more than planned."""
        return max(0, self.memory_bytes - self.planned_bytes)


@dataclass(frozen=True, slots=True)
class Settled:
    """What ``micro_batch_tokens: auto`` became (checkpoints/micro_batch.json): written once, so that a resumed run has the same micro-batches."""

    micro_batch_tokens: int
    probe: Probe | None = None
    """None where a number was set, or the planner does not know the type of the model."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of the prompts that are answered."""

    longest: int
    mean: float


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """memory.json of a stage that trains (docs/run-folder.md)."""

    tokens_at_once: int
    """Of the largest micro-batch."""
    segments: int
    """It is made of."""
    planned: Mapping[str, Any] | None
    """None: the planner does not know the type of the model. Its parts by phase, see `posttrain.plan.section.memory_record`."""
    measured: MeasuredMemory | None = None
    """None until the stage has finished."""
    probe: Probe | None = None
    """Of ``micro_batch_tokens: auto``."""
    prompts: PromptTokens | None = None
    """Of a stage that learns from its own replies."""


def layout_of(batch: Batch) -> Layout:
    """The layout of a batch."""
    return Layout(batch.segments.lengths, batch.segments.depths, len(batch.predict_S))


def tokens_that_fit(plan: StagePlan, room: float, lengths: Sequence[int]) -> int | None:
    """What ``micro_batch_tokens: auto`` becomes in so many bytes; None where not even the longest unit fits.

    lengths: of all units, as they are packed. More than the longest batch is never needed.
    """
    whole = sum(sorted(lengths)[-plan.run.batch_size :])
    found = largest_tokens(plan.setup, plan.run, room)
    return None if found is None else max(max(lengths), min(found, whole, MOST_AT_ONCE[plan.setup.device]))


def memory_blocks(record: MemoryRecord) -> list[Block]:
    """Plan and measurement beside each other, by part; what is measured only together stands in one line."""
    planned, measured = record.planned, record.measured
    if planned is None and measured is None:
        return []
    peak = {} if planned is None else planned["phases"][planned["peak_phase"]]
    known = {} if measured is None else measured.parts
    named = [part for part in PARTS if peak.get(part) or known.get(part)]
    rows: list[tuple[Cell, ...]] = [
        (part, Number(peak.get(part) or None, "bytes"), Number(known.get(part) or None, "bytes")) for part in named
    ]
    if measured is not None:
        rest = sum(size for part, size in peak.items() if part not in known) if peak else None
        rows.append(("all the rest", Number(rest, "bytes"), Number(measured.other_memory_bytes, "bytes")))
    total = None if planned is None else planned["peak_bytes"]
    took = None if measured is None else measured.peak_memory_bytes
    rows.append(("peak", Number(total, "bytes"), Number(took, "bytes")))
    text = f"The largest micro-batch has {record.tokens_at_once:,} tokens in {plural(record.segments, 'segment')}."
    if planned is not None:
        text += f" The planned peak is in the phase {planned['peak_phase']}"
        text += (
            "."
            if took is None
            else f"; measured is {numbers.signed_percent(took / planned['peak_bytes'] - 1)} against the plan."
        )
    if (probe := record.probe) is not None:
        text += (
            f" micro_batch_tokens: auto was {probe.planned_tokens:,} by the plan; one micro-batch of {probe.tokens:,} tokens, tried before the "
            f"first step, took {numbers.in_unit(probe.memory_bytes, 'bytes')} of {numbers.in_unit(probe.planned_bytes, 'bytes')} planned."
        )
    table = Table("Memory, planned and measured", ("", "Planned", "Measured"), tuple(rows), folded=True)
    return [table, Text(text, "aside")]
