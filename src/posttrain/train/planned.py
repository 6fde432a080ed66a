"""The planner's view of a training stage: what of its settings and rows decides memory. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from posttrain.encode.collate import Batch
from posttrain.encode.lengths import Lengths
from posttrain.errors import ModelError
from posttrain.model.companions import read_object
from posttrain.model.config import LoraAdapter
from posttrain.plan.fit import Rows, Run, changes, largest_tokens
from posttrain.plan.memory import PARTS, Layout, MemoryPlan, Setup, memory_plan
from posttrain.plan.shape import ModelShape, model_shape
from posttrain.report import numbers
from posttrain.report.values import Block, Cell, Number, Table, Text
from posttrain.report.words import plural
from posttrain.train.config import TrainSettings

SUPERVISED_SHARE = {"conversations": 0.6, "pairs": 0.7, "feedback": 0.6}
"""Of the tokens that go through the model, those whose logits are formed; where rows are not there to be counted."""
PROMPT_SHARE = 0.5
"""Of a pair's longer side, the prompt that both sides share; where rows are not there to be counted."""


def setup_of(
    settings: TrainSettings,
    shape: ModelShape,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
    reference_tokens: int = 0,
) -> Setup:
    """What of a stage's settings decides its memory."""
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
        other_reference=objective.needs_reference and getattr(objective, "reference", None) is not None,
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
    kind, longest = settings.objective.row_kind, settings.max_length
    if kind != "pairs":
        return Rows(mean=longest, longest=longest, usual=longest, supervised_share=SUPERVISED_SHARE[kind])
    prompt = round(PROMPT_SHARE * longest)
    unit = 2 * longest - prompt
    share = SUPERVISED_SHARE[kind] if settings.objective.head == "tokens" else 2 / unit
    return Rows(mean=unit, longest=unit, usual=longest, supervised_share=share, prompt_share=PROMPT_SHARE)


def measured_rows(settings: TrainSettings, lengths: Lengths) -> Rows:
    """The rows that an earlier run of the stage has encoded, from their lengths.

    A token stands in a sequence of the mean of squares by the mean: long rows have most tokens.
    """
    whole = [n for n in lengths.conversation.values if n <= settings.max_length]
    if not whole:
        return longest_rows(settings)
    replies = [kind.values for _, kind in lengths.sides]
    if settings.objective.row_kind == "pairs" and len(replies) == 2:
        return _pair_rows(whole, *replies)
    supervised = sum(lengths.assistant.values) / max(1, sum(lengths.conversation.values))
    return Rows(
        count=len(whole),
        mean=sum(whole) / len(whole),
        longest=max(whole),
        usual=_usual(whole),
        supervised_share=supervised,
        measured=True,
    )


def _pair_rows(whole: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Rows:
    """Pairs: ``whole`` are the conversations of both sides, ``chosen`` and ``rejected`` the replies."""
    pairs, replies = max(1, len(chosen)), sum(chosen) + sum(rejected)
    prompt = max(0.0, (sum(whole) - replies) / max(1, len(whole)))
    mean, usual = prompt + replies / pairs, _usual(whole)
    longest = max(map(sum, zip(chosen, rejected, strict=False)), default=0) + round(prompt)
    return Rows(
        count=pairs,
        mean=mean,
        longest=max(longest, max(whole)),
        usual=usual,
        supervised_share=replies / pairs / mean,
        prompt_share=min(0.95, prompt / usual),
        measured=True,
    )


def _usual(lengths: Sequence[int]) -> int:
    return round(sum(n * n for n in lengths) / sum(lengths))


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
class MemoryRecord:
    """memory.json of a train stage (docs/run-folder.md)."""

    tokens_at_once: int
    """Of the largest micro-batch."""
    segments: int
    """It is made of."""
    planned: Mapping[str, Any] | None
    """None: the planner does not know the type of the model. Its parts by phase, see `posttrain.plan.section.memory_record`."""
    measured: MeasuredMemory | None = None
    """None until the stage has finished."""


def stage_plan(
    settings: TrainSettings,
    folder: Path,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
    rows: Rows,
    layout: Layout,
    reference_tokens: int = 0,
) -> StagePlan | None:
    """The plan of a stage whose rows are known; None where the planner does not know the model's type."""
    try:
        shape = model_shape(read_object(folder / "config.json"), str(folder))
    except ModelError:
        return None
    setup = setup_of(settings, shape, dtype, device, reference_tokens)
    run = run_of(settings, rows, layout.tokens)
    return StagePlan(replace(setup, accumulates=run.micro_batches(layout.tokens) > 1), run, layout)


def layout_of(batch: Batch) -> Layout:
    """The layout of a batch."""
    return Layout(batch.segments.lengths, batch.segments.depths, len(batch.predict_S))


def rows_of(layouts: Sequence[Layout]) -> Rows:
    """What the planner wants to know of encoded units, each laid out for itself."""
    lengths = [layout.tokens for layout in layouts]
    sequences = [d + n for layout in layouts for n, d in zip(layout.lengths, layout.depths, strict=True)]
    total, usual = sum(lengths), _usual(sequences)
    shared = [max(layout.depths) for layout in layouts]
    return Rows(
        count=len(layouts),
        mean=total / len(layouts),
        longest=max(lengths),
        usual=usual,
        supervised_share=sum(layout.supervised for layout in layouts) / total,
        prompt_share=min(0.95, sum(shared) / len(shared) / usual),
        measured=True,
    )


def tokens_that_fit(plan: StagePlan, room: float, lengths: Sequence[int]) -> int | None:
    """What ``micro_batch_tokens: auto`` becomes in so many bytes; None where not even the longest unit fits.

    lengths: of all units, as they are packed. More than the longest batch is never needed.
    """
    whole = sum(sorted(lengths)[-plan.run.batch_size :])
    found = largest_tokens(plan.setup, plan.run, USED_SHARE * room)
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
    table = Table("Memory, planned and measured", ("", "Planned", "Measured"), tuple(rows), folded=True)
    return [table, Text(text, "aside")]
