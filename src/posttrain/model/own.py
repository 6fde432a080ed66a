"""A model's own computation, by its own code and attention, one sequence at a time: the truth that faster ways are measured against.

It is also the way out for models that have no faster one. Proofs compute it in fp32, one layer at a time (`in_fp32`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.model import attention, quantise
from posttrain.model.forward import causal_lm

CACHES = ("past_key_values", "cache_params", "state")
"""What models call the memory they hand from one token to the next."""
Memory = dict[str, Any]
Found = TypeVar("Found")


@contextlib.contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model attends by its own code, not per packed segment."""
    ours = model.config.get_text_config()._attn_implementation == attention.IMPLEMENTATION
    try:
        if ours:
            model.set_attn_implementation("eager")
        yield
    finally:
        if ours:
            model.set_attn_implementation(attention.IMPLEMENTATION)


@torch.no_grad()
def own_logits(model: nn.Module, ids: Sequence[int], last: int = 1) -> Tensor:
    """Logits [last, V] in fp32 after the last tokens of one sequence, computed from all of it."""
    return _pass(model, ids, last, {"use_cache": False})[0]


@torch.no_grad()
def own_cached_logits(model: nn.Module, ids: Sequence[int], memory: Memory | None) -> tuple[Tensor, Memory]:
    """Logits [1, V] in fp32 after one more piece of a sequence, and the model's own memory of all of it, by its name.

    ``memory``: that of the pieces before. Raises LookupError for a model that keeps none.
    """
    logits, output = _pass(model, ids, 1, {"use_cache": True} | (memory or {}))
    for name in CACHES:
        if output.get(name) is not None:
            return logits, {name: output[name]}
    raise LookupError(f"{type(causal_lm(model)).__name__} keeps no memory of earlier tokens")


def _pass(model: nn.Module, ids: Sequence[int], last: int, options: dict[str, Any]) -> tuple[Tensor, Any]:
    inner = causal_lm(model)
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        options = options | {"logits_to_keep": last}
    device = inner.get_input_embeddings().weight.device
    with own_attention(inner):
        output = inner(input_ids=torch.tensor([list(ids)], device=device), **options)
    return output.logits[0, -last:].float(), output


# ---- in fp32 -------------------------------------------------------------------------------------------------------
#
# In bf16 rounding alone moves logits by 1 to 2%, and a wrong mask may move them by no more. So what is to be proven of a
# model is computed in fp32: a layer's weights are widened before its forward pass and given back after it. That needs the
# room of one layer, and of what stands outside of them.

NARROW = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def in_fp32(model: nn.Module) -> Iterator[bool]:
    """Inside, forward passes of a model compute in fp32; yields whether that is so: quantised weights stay as they are."""
    packed = {id(layer.weight) for layer in quantise.layers(model)}  # they are unpacked into whatever is computed in
    kinds = {parameter.dtype for parameter in model.parameters() if id(parameter) not in packed}
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


def proven(model: nn.Module, check: Callable[[float], Found], tolerance: float, coarse: float) -> Found:
    """What a check with this tolerance says of a model in fp32; with the coarse one where it can't compute in fp32.

    ``check`` raises ModelError where the model's code can't compute at all.
    """
    try:
        with in_fp32(model) as exact:
            return check(tolerance if exact else coarse)
    except ModelError:
        if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
            raise
    return check(coarse)  # some code wants the type its weights have


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
        for tensor, narrow in zip(self._tensors, self._kept, strict=False):  # nothing is kept before a layer begins
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
