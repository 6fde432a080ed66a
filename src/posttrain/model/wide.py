"""Computing in fp32 with weights that are kept in fewer bits, one layer at a time.

In bf16 rounding alone moves logits by 1 to 2%, and a wrong mask may move them by no more. So what is to be proven of a model is computed in
fp32: a layer's weights are widened before its forward pass and given back after it. That needs the room of one layer, and of what stands outside of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def in_fp32(model: nn.Module) -> Iterator[bool]:
    """Inside, forward passes of a model compute in fp32; yields whether that is so: quantised weights stay as they are."""
    kinds = {tensor.dtype for tensor in model.parameters()}
    if not kinds <= {torch.float32, torch.float64, *NARROW}:
        yield False
        return
    if not kinds & set(NARROW):
        yield True
        return
    layers = list(_layers(model))
    inside = {id(tensor) for layer in layers for tensor in _tensors(layer)}
    around = _Swap([tensor for tensor in _tensors(model) if id(tensor) not in inside])
    handles = []
    try:
        around.widen()
        for layer in layers:
            swap = _Swap(_tensors(layer))
            handles.append(layer.register_forward_pre_hook(swap.widen))
            handles.append(layer.register_forward_hook(swap.restore, always_call=True))
        yield True
    finally:
        for handle in handles:
            handle.remove()
        around.restore()


class _Swap:
    """Weights that are widened for some time. Mutable: it keeps the narrow ones."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.dtype in NARROW]
        self._kept: list[Tensor] = []

    def widen(self, *_: Any) -> None:
        self._kept = [tensor.data for tensor in self._tensors]
        for tensor in self._tensors:
            tensor.data = tensor.data.float()

    def restore(self, *_: Any) -> None:
        for tensor, narrow in zip(
            self._tensors, self._kept, strict=False
        ):  # none are kept of a layer that did not begin
            tensor.data = narrow
        self._kept = []


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of a model."""
    if isinstance(module, nn.ModuleList):
        yield from module
    else:
        for child in module.children():
            yield from _layers(child)
