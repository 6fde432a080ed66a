"""Rotary positions whose factors depend on how long a sequence is (dynamic NTK, LongRoPE): each sequence by its own length.

transformers takes the length of a pass for the length of the sequence, and keeps the factors of the longest pass it has seen. So
what a packed sequence is told would depend on its neighbours, and what a sequence is told by itself on what came before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.lengths import is_by_length


def follow_lengths(model: nn.Module) -> bool:
    """Make rotary positions follow the length of each sequence of a pass; whether the model has any that depend on it."""
    found = [module for module in model.modules() if is_by_length(getattr(module, "rope_type", ""))]
    for module in found:
        module.forward = _by_sequence(module)
    return bool(found)


def _by_sequence(module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    own = module.forward

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        tokens = position_ids.shape[-1]
        begins = (position_ids.reshape(-1, tokens)[0] == 0).nonzero()[:, 0].tolist()
        edges = sorted({0, *begins, tokens})
        parts = []
        for begin, end in pairwise(edges):
            with _unchanged(module):
                parts.append(own(x, position_ids[..., begin:end], *args, **kwargs))
        return tuple(torch.cat(same, dim=-2) for same in zip(*parts, strict=True))

    forward.permanent = True  # type: ignore[attr-defined]  # not a matter of speed: see `fused.unfuse`
    return forward


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """What a forward pass leaves on the module is undone: the next sequence begins as the first one did."""
    attributes, buffers = dict(vars(module)), {name: b.clone() for name, b in module.named_buffers(recurse=False)}
    try:
        yield
    finally:
        for name in vars(module).keys() - attributes.keys():
            delattr(module, name)
        vars(module).update(attributes)
        module._buffers.update(buffers)
