"""Adapters: the one thing of ours beside PEFT's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from posttrain.encode.collate import collate
from posttrain.errors import ConfigError
from posttrain.model.adapters import attach_lora, fresh_adapter_off, trainable_parameters
from posttrain.model.config import LoraAdapter
from posttrain.model.fused import fuse
from posttrain.model.load import load_model
from posttrain.model.score import batch_logps
from posttrain.types import Tokens

CPU = torch.device("cpu")


def is_off(model: nn.Module) -> bool:
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    states = {bool(layer.disable_adapters) for layer in layers}
    assert len(states) == 1
    return states.pop()


@pytest.mark.parametrize("fused", [False, True])
def test_a_fresh_adapter_is_off_inside_and_trains_again_afterwards(
    fused: bool, small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    model = attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(rank=4), seed=0).train()
    if fused:
        fuse(model)
    batch, trained = collate(random_examples([9, 30])), set(trainable_parameters(model))

    @torch.no_grad()
    def logps() -> Tensor:
        return batch_logps(model, batch, torch.float32).logps_S

    on = logps()
    with fresh_adapter_off(model):
        assert is_off(model)
        torch.testing.assert_close(logps(), on, rtol=1e-6, atol=1e-6)
    assert not is_off(model)
    assert set(trainable_parameters(model)) == trained != set()


def test_an_adapter_that_learned_one_number_stays_on(small_model: Path) -> None:
    model = attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(rank=4), seed=0)
    last = [p for name, p in trainable_parameters(model).items() if "lora_B" in name][-1]
    with torch.no_grad():
        last.view(-1)[-1] = 1e-30
    with fresh_adapter_off(model):
        assert not is_off(model)


def test_dora_and_plain_models_stay_as_they_are(small_model: Path) -> None:
    base = load_model(small_model, torch.float32, CPU)
    with fresh_adapter_off(base):
        pass
    model = attach_lora(base, LoraAdapter(rank=4, dora=True), seed=0)
    with fresh_adapter_off(model):
        assert not is_off(model)


def test_a_rank_above_the_width_is_refused(small_model: Path) -> None:
    with pytest.raises(ConfigError, match="32 wide"):
        attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(rank=33), seed=0)
