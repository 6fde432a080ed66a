"""A stage's plan beside what it took: the micro-batch that fits, settled once, the record, and what an error advises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.artifacts import StageDir, read_json, write_json
from posttrain.errors import TrainingError
from posttrain.model import hardware, quantise
from posttrain.model.config import LoraAdapter
from posttrain.model.score import lay_out
from posttrain.plan.memory import Layout
from posttrain.plan.section import memory_record
from posttrain.train.config import USUAL_TOKENS, TrainSettings
from posttrain.train.plan import Plan
from posttrain.train.planned import (
    MEMORY_FILE,
    MeasuredMemory,
    MemoryRecord,
    StagePlan,
    layout_of,
    rows_of,
    stage_plan,
    tokens_that_fit,
)
from posttrain.train.tasks import Task, Unit

STEPS_LOOKED_AT = 1000
"""Of a run, to find its largest micro-batch."""


@dataclass(frozen=True)
class Planner:
    """Plans a stage whose model is loaded. ``idle``: bytes of the process before it was."""

    settings: TrainSettings
    folder: Path
    model: nn.Module
    task: Task
    examples: Sequence[Unit]
    device: torch.device
    dtype: torch.dtype
    idle: int

    @cached_property
    def units(self) -> list[Layout]:
        """All examples, each laid out for itself."""
        return [layout_of(lay_out(self.model, self.task.sequences(unit))) for unit in self.examples]

    def of(self, layout: Layout) -> StagePlan | None:
        """The plan with this largest micro-batch; None where the model's type is unknown."""
        kept = sum(one.supervised for one in self.units) if self.settings.objective.needs_reference else 0
        dtype: Literal["bf16", "fp32"] = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        kind: Literal["cpu", "cuda"] = "cuda" if self.device.type == "cuda" else "cpu"
        return stage_plan(self.settings, self.folder, dtype, kind, rows_of(self.units), layout, kept)

    def largest(self, plan: Plan) -> Layout:
        """How the micro-batch with most tokens is laid out."""
        groups = (group for step in range(min(plan.total_steps, STEPS_LOOKED_AT)) for group in plan.micro_batches(step))
        most = max(groups, key=lambda group: sum(plan.lengths[i] for i in group))
        return layout_of(lay_out(self.model, [s for i in most for s in self.task.sequences(self.examples[i])]))

    @property
    def room(self) -> float:
        """Bytes that the stage can have, those that it has already with them."""
        return hardware.free_memory(self.device) + max(0, hardware.current_memory(self.device) - self.idle)

    def settled(self, out: StageDir, usual: Plan) -> TrainSettings:
        """The settings with ``micro_batch_tokens: auto`` planned, once a run: a resumed run must go on with the same micro-batches.

        Raises TrainingError where not even the longest unit fits.
        """
        if self.settings.micro_batch_tokens != "auto":
            return self.settings
        path = out.file("checkpoints", "micro_batch.json")
        if not path.exists():
            write_json(path, {"micro_batch_tokens": self._tokens(out, usual)})
        return replace(self.settings, micro_batch_tokens=int(read_json(path)["micro_batch_tokens"]))

    def _tokens(self, out: StageDir, usual: Plan) -> int:
        plan = self.of(self.largest(usual))
        if plan is None:
            return USUAL_TOKENS
        found = tokens_that_fit(plan, self.room, usual.lengths)
        if found is None:
            problem = "not even the longest example fits into the memory that is free"
            raise TrainingError(problem, where=str(out.path), fix=plan.advice(self.room))
        return found


def record_plan(out: StageDir, plan: StagePlan | None, layout: Layout) -> None:
    """Write the plan, before the first step."""
    planned = None if plan is None else memory_record(plan.memory)
    write_json(out.file(MEMORY_FILE), asdict(MemoryRecord(layout.tokens, len(layout.lengths), planned)))


def record_measured(
    out: StageDir, settings: TrainSettings, model: nn.Module, optimizer: torch.optim.Optimizer, peak_bytes: int
) -> None:
    """Write what the stage took beside its plan. ``peak_bytes``: above the idle process."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    packed = quantise.layers(model)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    frozen += sum(layer.nbytes - layer.weight.nbytes for layer in packed)
    states = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
    lora = isinstance(settings.adapter, LoraAdapter)
    parts = {"weights": frozen if lora else frozen + trained, "adapter": trained if lora else 0}
    parts |= {"gradients": trained, "optimizer": states}
    measured = MeasuredMemory(peak_bytes, peak_bytes - sum(parts.values()), parts)
    record = read_json(out.file(MEMORY_FILE))
    write_json(out.file(MEMORY_FILE), {**record, "measured": asdict(measured)})


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory is at an end: CUDA's, Python's, or that of torch's allocator on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
