"""A stage's plan beside what it took: the micro-batch that fits, settled once, the record, and what an error advises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.artifacts import StageDir, read_json, write_json
from posttrain.encode.collate import Batch
from posttrain.errors import ModelError, TrainingError
from posttrain.model import hardware, quantise
from posttrain.model.companions import read_object
from posttrain.model.config import LoraAdapter
from posttrain.model.score import lay_out, packed_length
from posttrain.model.sharded import local
from posttrain.plan.memory import Layout, Setup
from posttrain.plan.section import memory_record
from posttrain.plan.shape import model_shape
from posttrain.report.reading import parse
from posttrain.train.config import USUAL_TOKENS, TrainSettings
from posttrain.train.plan import Plan
from posttrain.train.planned import (
    MEMORY_FILE,
    USED_SHARE,
    MeasuredMemory,
    MemoryRecord,
    Probe,
    PromptTokens,
    Settled,
    StagePlan,
    layout_of,
    rows_of,
    run_of,
    setup_of,
    tokens_that_fit,
)
from posttrain.train.protocols import ModelSettings
from posttrain.train.tasks import Task, Unit

STEPS_LOOKED_AT = 1000
"""Of a run, to find its largest micro-batch."""
LESS = 0.8
"""Of the planned peak: what advice after running out of memory aims at."""


class Gauge:
    """The peak of a stage's memory, in bytes above what the process had before its model was loaded."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.idle, self._before = device, hardware.current_memory(device), 0

    @property
    def peak(self) -> int:
        """The highest of the stage so far, with what the process had before."""
        return max(self._before, hardware.peak_memory(self.device))

    def of(self, work: Callable[[], object]) -> int:
        """The most that some work takes above what is there before it; 0 where it stays below a peak that can't be reset."""
        hardware.return_freed_memory()
        self._before, standing = self.peak, hardware.current_memory(self.device)
        hardware.reset_peak_memory(self.device)
        former = hardware.peak_memory(self.device)
        work()
        found = hardware.peak_memory(self.device)
        return max(0, found - standing) if found > former else 0


@dataclass(frozen=True)
class Planner:
    """Plans a stage whose model is loaded. ``second_model``: whether its reference is loaded as a model of its own."""

    settings: TrainSettings
    folder: Path
    model: nn.Module
    task: Task
    examples: Sequence[Unit]
    device: torch.device
    dtype: torch.dtype
    gauge: Gauge
    second_model: bool

    @cached_property
    def units(self) -> list[Layout]:
        """All examples, each laid out for itself."""
        return [layout_of(lay_out(self.model, self.task.sequences(unit))) for unit in self.examples]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of all examples as they are packed."""
        pairs = zip(self.examples, self.units, strict=True)
        return tuple(packed_length(self.model, self.task.sequences(unit), layout.tokens) for unit, layout in pairs)

    @cached_property
    def setup(self) -> Setup | None:
        """What of the stage decides its memory; None where the model's type is unknown."""
        try:
            shape = model_shape(read_object(self.folder / "config.json"), str(self.folder))
        except ModelError:
            return None
        kept = sum(one.supervised for one in self.units) if self.settings.objective.needs_reference else 0
        dtype: Literal["bf16", "fp32"] = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        kind: Literal["cpu", "cuda"] = "cuda" if self.device.type == "cuda" else "cpu"
        return setup_of(self.settings, shape, dtype, kind, kept, second_model=self.second_model)

    def of(self, layout: Layout) -> StagePlan | None:
        """The plan with this largest micro-batch; None where the model's type is unknown."""
        if self.setup is None:
            return None
        run = run_of(self.settings, rows_of(self.units), layout.tokens)
        return StagePlan(replace(self.setup, accumulates=run.micro_batches(layout.tokens) > 1), run, layout)

    def largest(self, plan: Plan) -> Batch:
        """The micro-batch with most tokens."""
        groups = (group for step in range(min(plan.total_steps, STEPS_LOOKED_AT)) for group in plan.micro_batches(step))
        most = max(groups, key=lambda group: sum(plan.lengths[i] for i in group))
        return lay_out(self.model, [s for i in most for s in self.task.sequences(self.examples[i])])

    @property
    def room(self) -> float:
        """Bytes that ``auto`` plans with: a share of what the stage can have, what it has already included."""
        own = max(0, hardware.current_memory(self.device) - self.gauge.idle)
        return USED_SHARE * (hardware.free_memory(self.device) + own)

    def settle(self, out: StageDir, usual: Plan) -> Settled:
        """``micro_batch_tokens`` as a number, ``auto`` planned and tried once a run: a resumed run must go on with the same micro-batches.

        Raises TrainingError where not even the longest unit fits.
        """
        if self.settings.micro_batch_tokens != "auto":
            return Settled(self.settings.micro_batch_tokens)
        path = out.file("checkpoints", "micro_batch.json")
        if not path.exists():
            write_json(path, asdict(self._settled(out, usual)))
        return parse(Settled, read_json(path), path)

    def _settled(self, out: StageDir, usual: Plan) -> Settled:
        plan, room, longest = self.of(layout_of(self.largest(usual))), self.room, max(usual.lengths)
        if plan is None:
            return Settled(USUAL_TOKENS)
        planned = tried = tokens_that_fit(plan, room, usual.lengths)
        while tried is not None:
            batch = self.largest(replace(usual, micro_batch_tokens=tried))
            took = self._take(batch)
            if took is not None:
                alone = replace(plan, layout=layout_of(batch)).alone_bytes
                probe = Probe(planned or 0, len(batch.ids_T), round(alone), took)
                fits = tokens_that_fit(plan, room - probe.excess, usual.lengths)
                return Settled(min(tried, fits or longest), probe)
            tried = max(longest, tried // 2) if tried > longest else None
        problem = "not even the longest example fits into the memory that is free"
        raise TrainingError(problem, where=str(out.path), fix=plan.advice(room))

    def _take(self, batch: Batch) -> int | None:
        """The bytes that one micro-batch takes, forward and backward; None where memory runs out. Gradients and random numbers stay as they were."""

        def work() -> None:
            torch.autograd.backward(self.task.forward(self.model, batch, self.dtype).sum())

        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                return self.gauge.of(work)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            self.model.zero_grad(set_to_none=True)


def record_plan(
    out: StageDir,
    plan: StagePlan | None,
    layout: Layout,
    probe: Probe | None = None,
    prompts: PromptTokens | None = None,
) -> None:
    """Write the plan, before the first step."""
    planned = None if plan is None else memory_record(plan.memory)
    record = MemoryRecord(layout.tokens, len(layout.lengths), planned, probe=probe, prompts=prompts)
    write_json(out.file(MEMORY_FILE), asdict(record))


def record_measured(
    out: StageDir,
    settings: ModelSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    peak_bytes: int,
    beside: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write what the stage took beside its plan. ``peak_bytes``: above the idle process. ``beside``: bytes of other parts that are always there."""
    trained = sum(local(p).nbytes for p in model.parameters() if p.requires_grad)
    packed = quantise.layers(model)
    frozen = sum(local(p).nbytes for p in model.parameters() if not p.requires_grad)
    frozen += sum(layer.nbytes - layer.weight.nbytes for layer in packed)
    lora = isinstance(settings.adapter, LoraAdapter)
    parts = {"weights": frozen if lora else frozen + trained, "adapter": trained if lora else 0}
    parts |= {"gradients": trained, "optimizer": state_bytes(optimizer), **beside}
    measured = MeasuredMemory(peak_bytes, peak_bytes - sum(parts.values()), parts)
    record = read_json(out.file(MEMORY_FILE))
    write_json(out.file(MEMORY_FILE), {**record, "measured": asdict(measured)})


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of an optimizer's states."""
    return sum(local(v).nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory is at an end: CUDA's, Python's, or that of torch's allocator on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def advised(out: StageDir, when: str, plan: StagePlan | None = None) -> Iterator[None]:
    """Inside, memory that runs out is one TrainingError, with what the plan says to change first."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fix = "lower micro_batch_tokens (the result stays the same), or set gradient_checkpointing: true"
        if plan is not None:
            fix = plan.advice(LESS * plan.memory.peak.total)
        raise TrainingError(f"the device is out of memory {when}", where=str(out.path), fix=fix) from error
