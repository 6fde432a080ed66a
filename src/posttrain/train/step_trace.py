"""What a training step really takes, traced: the step itself on tensors without values, of one and of two layers.

All layers are alike, so what two layers take more than one is what every further layer takes. The trace counts storages: each once, from
the operation that makes it until nothing holds it. docs/planner.md compares it with the closed formulas, and a test holds them together.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posttrain.encode.collate import Batch
from posttrain.encode.segments import Segments
from posttrain.model import adapters, fused
from posttrain.model.config import LoraAdapter
from posttrain.model.forward import causal_lm
from posttrain.model.hardware import DTYPES
from posttrain.model.outline import outline_model, without_memory
from posttrain.model.score import batch_logps
from posttrain.plan.memory import Layout, Setup


@dataclass(frozen=True, slots=True)
class StepTrace:
    """Bytes of a step besides weights and optimizer: what the forward pass leaves for the backward pass, and the most that is there at once."""

    kept: float
    peak: float
    """Of the second of two micro-batches, so with gradients."""


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it makes."""
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.live -= size
        self._known.discard(key)


def trace_step(config: Mapping[str, Any], setup: Setup, layout: Layout, where: str) -> StepTrace:
    """What a step over micro-batches of this layout takes, extrapolated to all layers of the model.

    Quantised weights can't be traced. Raises ModelError where transformers can't build the model.
    """
    layers = len(setup.shape.layers)
    one, two = (_traced(config, setup, layout, count, where) for count in (1, 2))
    return StepTrace(*(a + (layers - 1) * (b - a) for a, b in ((one.kept, two.kept), (one.peak, two.peak))))


def _traced(config: Mapping[str, Any], setup: Setup, layout: Layout, layers: int, where: str) -> StepTrace:
    with without_memory():
        return measured_step(_trainee(config, setup, layers, where), setup, layout)


def _trainee(config: Mapping[str, Any], setup: Setup, layers: int, where: str) -> nn.Module:
    """The model as `posttrain.train.loop.prepare_model` would hand it to a step."""
    dtype = torch.float32 if setup.lora is None else DTYPES[setup.dtype]
    model: nn.Module = outline_model(config, layers, dtype, where)
    if isinstance(setup.adapter, LoraAdapter):
        model = adapters.attach_lora(model, setup.adapter, seed=0)
        fused.fuse(model)
    if setup.checkpointing:
        inner = causal_lm(model)
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def measured_step(
    model: nn.Module, setup: Setup, layout: Layout, loss: Callable[[Tensor], Tensor] = lambda logps_S: -logps_S.sum()
) -> StepTrace:
    """What two micro-batches take, one after the other, on a model ready for training."""
    batch, dtype = batch_of(layout, setup.shape.vocabulary), DTYPES[setup.dtype]
    with Storages(model) as storages:
        for _ in range(2):
            before = storages.peak = storages.live
            share = loss(batch_logps(model, batch, dtype).logps_S)
            kept = storages.live - before
            torch.autograd.backward(share)
            del share
    return StepTrace(float(kept), float(storages.peak))


def batch_of(layout: Layout, vocabulary: int) -> Batch:
    """A micro-batch of this layout, of any tokens: every segment continues the one before that has its depth."""
    parents, ends = [], {0: -1}
    for index, (length, depth) in enumerate(zip(layout.lengths, layout.depths, strict=True)):
        parents.append(ends[depth])
        ends = ({0: -1} if depth == 0 else ends) | {depth + length: index}
    tokens, supervised = layout.tokens, min(layout.supervised, layout.tokens)
    ids_T = np.arange(tokens, dtype=np.int64) % vocabulary
    return Batch(
        ids_T=ids_T,
        segments=Segments(layout.lengths, parents),
        predict_S=np.linspace(0, tokens - 1, supervised).astype(np.int64),
        targets_S=ids_T[:supervised],
        target_weights_S=np.ones(supervised, np.float32),
        counts_B=np.array([supervised], np.int64),
    )
