"""What 4-bit weights cost a model before it is trained. That depends on the model (small ones lose more), so it is measured on its own rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from posttrain.model import quantise
from posttrain.model.adapters import adapter_off
from posttrain.model.score import sequence_logps
from posttrain.stats.intervals import IntervalSettings, ratio
from posttrain.train.records import QuantisationGap
from posttrain.types import Tokens

GAP_FILE = "quantisation.json"
GAP_TOKENS = 4096
"""As many tokens, and the row that goes past them, are measured: about a micro-batch or two."""


def quantisation_gap(
    model: nn.Module, rows: Sequence[Sequence[Tokens]], budget: int, dtype: torch.dtype
) -> QuantisationGap:
    """Measure some rows with the original weights and with the quantised ones, without the adapter."""
    ends = np.cumsum([sum(map(len, row)) for row in rows])
    some = rows[: int(np.searchsorted(ends, GAP_TOKENS)) + 1]
    with adapter_off(model):
        quantised = sequence_logps(model, some, budget, dtype)
        with quantise.originals(model):
            original = sequence_logps(model, some, budget, dtype)
    layers = quantise.layers(model)
    lost = [float(np.sum(a - b)) for a, b in zip(original, quantised, strict=True)]
    tokens = [len(logps_S) for logps_S in original]
    return QuantisationGap(
        rows=len(some),
        tokens=sum(tokens),
        loss=-float(np.mean(np.concatenate(original))),
        quantised_loss=-float(np.mean(np.concatenate(quantised))),
        difference=ratio(lost, tokens, IntervalSettings()),
        weight_bytes=sum(layer.nbytes for layer in layers),
        parameters=sum(layer.in_features * layer.out_features for layer in layers),
    )
