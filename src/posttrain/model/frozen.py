"""A model that nothing trains: for evaluation, generation, and as a reference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from posttrain.model import fused
from posttrain.model.adapters import load_adapter
from posttrain.model.load import load_model


def frozen_model(folder: Path, adapter: Path | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model of a folder with its adapter where it has one; eval mode.

    All models take the hot path, so that a comparison shows their weights and not two ways of rounding.
    """
    model: nn.Module = load_model(folder, dtype, device).requires_grad_(False)
    if adapter is not None:
        model = load_adapter(model, adapter, trainable=False)
    fused.fuse(model)
    return model
