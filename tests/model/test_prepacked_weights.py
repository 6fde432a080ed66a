"""Packed weights for products of few rows: the same numbers, used only where they may be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from decoding import replies
from posttrain.generate.engine import Sampling
from posttrain.model import prepacked_weights
from posttrain.model.adapters import frozen_model

CPU = torch.device("cpu")


def frozen(rows: int = 12, columns: int = 20, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(columns, rows, bias=bias)).requires_grad_(False)


def free_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let this machine have so many bytes of free memory."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))


@pytest.mark.parametrize(
    "shape",
    [(20,), (1, 20), (7, 20), (2, 3, 20), (prepacked_weights.FEW_ROWS, 20), (prepacked_weights.FEW_ROWS + 1, 20)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_are_the_same(shape: tuple[int, ...], bias: bool) -> None:
    model, x = frozen(bias=bias), torch.randn(*shape, dtype=torch.float64)
    layer = model[0]
    exact = x @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    assert prepacked_weights.prepack(model) == 1
    with torch.no_grad():
        found = model(x.float())
    assert found.shape == exact.shape
    assert torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_what_it_is_used_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen()
    prepacked_weights.prepack(model)
    used: list[int] = []
    real = torch.nn.functional.linear
    monkeypatch.setattr(prepacked_weights.F, "linear", lambda *given: used.append(len(given[0])) or real(*given))
    with torch.no_grad():
        model(torch.ones(3, 20))
        assert used == []
        model(torch.ones(prepacked_weights.FEW_ROWS + 1, 20))
    assert used == [prepacked_weights.FEW_ROWS + 1]
    model(torch.ones(3, 20))  # a gradient may be wanted
    assert used[-1] == 3


def test_weights_that_are_shared_or_trained_or_of_another_type() -> None:
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8).to(torch.bfloat16)])
    model[1].weight = model[0].weight
    model.requires_grad_(False)
    model[2].weight.requires_grad_(True)
    assert prepacked_weights.prepack(model) == 2  # two layers with one weight
    assert [hasattr(layer.weight, "prepacked_weight") for layer in model] == [True, True, False, False]
    before = model[0].weight.prepacked_weight
    assert prepacked_weights.prepack(model) == 2
    assert model[1].weight.prepacked_weight is before


def test_nothing_is_prepacked_where_memory_is_short_or_the_product_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen()
    free_memory(monkeypatch, 0)
    assert prepacked_weights.prepack(model) == 0
    free_memory(monkeypatch, 1 << 40)
    monkeypatch.setattr(prepacked_weights, "_works", lambda: False)
    assert prepacked_weights.prepack(model) == 0
    assert "forward" not in vars(model[0])


def test_replies_are_the_same(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [np.arange(1, 6, dtype=np.int32), np.arange(3, 12, dtype=np.int32), np.array([7], np.int32)]
    found = []
    for free in (1 << 40, 0):
        free_memory(monkeypatch, free)
        model = frozen_model(small_model, None, torch.float32, CPU)
        found.append(replies(model, prompts, [], Sampling(max_tokens=20)))
        assert any(hasattr(p, "prepacked_weight") for p in model.parameters()) is (free > 0)
    assert found[0] == found[1]
