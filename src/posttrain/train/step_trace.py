"""What a training step really takes, traced: the step itself on tensors without values, of one and of two layers.

All layers are alike, so what two layers take more than one is what every further layer takes. The trace counts storages: each once, from
the operation that makes it until nothing holds it. docs/planner.md compares it with the closed formulas, and a test holds them together.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
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
from posttrain.model.forward import body, causal_lm
from posttrain.model.hardware import DTYPES
from posttrain.model.outline import on_no_memory, outline_model, without_memory
from posttrain.model.score import batch_logps
from posttrain.plan.memory import Layout, Setup


@dataclass(frozen=True, slots=True)
class StepTrace:
    """Bytes of a step besides weights and optimizer. The peaks are those of the second of two micro-batches, so with gradients."""

    kept: float
    """What the forward pass leaves for the backward pass."""
    forward: float
    head: float
    """Peak of the backward pass until the last hidden states have their gradient."""
    layers: float
    """Peak of the backward pass from then on, to the input of the first layer."""
    end: float

    @property
    def peak(self) -> float:
        """The most that is there at once."""
        return max(self.forward, self.head, self.layers, self.end)

    def extended(self, two: StepTrace, layers: int) -> StepTrace:
        """From one layer (this) and two: each further one takes what the second took more. Each part is linear; their maximum is not."""
        pairs = ((getattr(self, name), getattr(two, name)) for name in self.__slots__)
        return StepTrace(*(a + (layers - 1) * (b - a) for a, b in pairs))


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.peaks: list[int] = []
        """Of the parts that have ended."""
        self._known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def begin(self) -> None:
        """Begin anew with the highest values."""
        self.peak, self.peaks = self.live, []

    def end(self) -> None:
        """End a part."""
        self.peaks.append(self.peak)
        self.peak = self.live

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
    one, two = (_traced(config, setup, layout, count, where) for count in (1, 2))
    return one.extended(two, len(setup.shape.layers))


def _traced(config: Mapping[str, Any], setup: Setup, layout: Layout, layers: int, where: str) -> StepTrace:
    model = _adapted(config, setup, layers, where)
    with without_memory():
        return measured_step(_ready(on_no_memory(model), setup), setup, layout)


def _adapted(config: Mapping[str, Any], setup: Setup, layers: int, where: str) -> nn.Module:
    """The model with its adapter, on the meta device."""
    dtype = torch.float32 if setup.lora is None else DTYPES[setup.dtype]
    model = outline_model(config, layers, dtype, where)
    adapted: nn.Module = model if setup.lora is None else adapters.attach_lora(model, setup.lora, seed=0)
    return adapted


def _ready(model: nn.Module, setup: Setup) -> nn.Module:
    """The model as `posttrain.train.loop.prepare_model` would hand it to a step."""
    if setup.lora is not None:
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
    with Storages(model) as storages, _marked(model, storages):
        for _ in range(2):
            before = storages.live
            storages.begin()
            share = loss(batch_logps(model, batch, dtype).logps_S)
            kept, forward = storages.live - before, storages.peak
            storages.begin()
            torch.autograd.backward(share)
            del share
    head, layers, end = (*storages.peaks, storages.peak, 0, 0)[
        :3
    ]  # the first layer's input has a gradient only where all trains
    return StepTrace(float(kept), float(forward), float(head), float(layers), float(end))


@contextlib.contextmanager
def _marked(model: nn.Module, storages: Storages) -> Iterator[None]:
    """Inside, gradients of the last hidden states and of the first layer's input each end a part of the backward pass."""

    def mark(module: nn.Module, arguments: Any, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: storages.end())

    hooks = [part.register_forward_hook(mark) for part in (body(model), causal_lm(model).get_input_embeddings())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
