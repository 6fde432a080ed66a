"""Weights kept in the order a CPU multiplies them in, for products of few rows.

A step of decoding multiplies a few dozen rows with every weight of the model. The general product puts the weights in order each
time, which costs as much as the product itself. Here oneDNN does it once: `prepack` keeps a reordered copy beside each frozen weight, and
`product` uses it. fp32 on the CPU only: that is what was measured (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.model.quantise import KINDS, Nf4Linear, dense_weight

FEW_ROWS = 256
"""Up to so many rows the prepacked product is used; beyond, the general one is as fast."""
MEMORY_SHARE = 0.5
"""Of the free memory: the copies may take at most this much, otherwise nothing is prepacked."""
_TOLERANCE = 1e-5
_PREPACKED = "prepacked_weight"


def prepack(model: nn.Module) -> int:
    """Prepack every frozen fp32 weight of a linear layer on the CPU; returns how many are prepacked. Does nothing the second time.

    The copies need as much memory as the weights. Where this oneDNN can't do it, or computes something else, all stays as it is.
    """
    layers: list[Any] = [m for m in model.modules() if type(m) in KINDS and _fits(m)]
    fresh = {id(m.weight): m for m in layers if not hasattr(m.weight, _PREPACKED)}
    needed = sum(4 * m.in_features * m.out_features for m in fresh.values())
    if fresh and (needed > MEMORY_SHARE * psutil.virtual_memory().available or not _works()):
        return 0
    for layer in fresh.values():
        weight_OD = dense_weight(layer, torch.float32).detach()
        setattr(layer.weight, _PREPACKED, torch.ops.mkldnn._reorder_linear_weight(weight_OD))
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = _forward(layer)
    return len(layers)


def product(x: Tensor, layer: nn.Linear) -> Tensor:
    """x [..., D] times W^T, plus the bias: by the prepacked weight where there is one, few rows, and no gradient."""
    packed = getattr(layer.weight, _PREPACKED, None)
    if packed is None or torch.is_grad_enabled() or x.numel() > FEW_ROWS * x.shape[-1]:
        return F.linear(x, dense_weight(layer, x.dtype), layer.bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")
    return y


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: product(x, layer)


def _fits(layer: Any) -> bool:
    weight = layer.weight
    kept = torch.uint8 if isinstance(layer, Nf4Linear) else torch.float32
    return bool(weight.device.type == "cpu" and weight.dtype == kept and not weight.requires_grad)


@torch.no_grad()
def _works() -> bool:
    """Whether the prepacked product gives what the general one does, on a probe."""
    generator = torch.Generator().manual_seed(0)
    x_TD, weight_OD = (torch.randn(shape, generator=generator) for shape in ((5, 24), (36, 24)))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OD)
        ours = torch.ops.mkldnn._linear_pointwise(x_TD, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    own = F.linear(x_TD, weight_OD)
    return bool((own - ours).abs().max() <= _TOLERANCE * own.abs().max())
