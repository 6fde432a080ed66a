"""A model's own computation, by its own code and attention, one sequence at a time: the truth that faster ways are measured against.

It is also the way out for models that have no faster one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.model import attention
from posttrain.model.forward import causal_lm

CACHES = ("past_key_values", "cache_params", "state")
"""What models call the memory they hand from one token to the next."""
Memory = dict[str, Any]


@contextlib.contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model attends by its own code, not per packed segment."""
    if model.config.get_text_config()._attn_implementation != attention.IMPLEMENTATION:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention.IMPLEMENTATION)


@torch.no_grad()
def own_logits(model: nn.Module, ids: Sequence[int], last: int = 1) -> Tensor:
    """Logits [last, V] in fp32 after the last tokens of one sequence, computed from all of it."""
    return _pass(model, ids, last, {"use_cache": False})[0]


@torch.no_grad()
def own_cached_logits(model: nn.Module, ids: Sequence[int], memory: Memory | None = None) -> tuple[Tensor, Memory]:
    """Logits [V] in fp32 after one more piece of a sequence, and the model's own memory of all of it, by its name.

    ``memory``: that of the pieces before. Raises LookupError for a model that keeps none.
    """
    logits, output = _pass(model, ids, 1, {"use_cache": True} | (memory or {}))
    for name in CACHES:
        if output.get(name) is not None:
            return logits[0], {name: output[name]}
    raise LookupError(f"{type(causal_lm(model)).__name__} keeps no memory of earlier tokens")


def _pass(model: nn.Module, ids: Sequence[int], last: int, options: dict[str, Any]) -> tuple[Tensor, Any]:
    inner = causal_lm(model)
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        options = options | {"logits_to_keep": last}
    device = inner.get_input_embeddings().weight.device
    with own_attention(inner):
        output = inner(input_ids=torch.tensor([list(ids)], device=device), **options)
    return output.logits[0, -last:].float(), output
