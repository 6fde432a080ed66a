"""The closed formulas and the traced step say the same, so that neither can rot; and a trace without values equals one with values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives import DpoObjective
from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.plan.memory import Layout, Setup, filled, kept_bytes, memory_plan
from posttrain.plan.shape import model_shape
from posttrain.train.config import TrainSettings
from posttrain.train.loop import prepare_model
from posttrain.train.step_trace import measured_step, trace_step

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "tie_word_embeddings": True},
    "qwen3": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 512, "head_dim": 96},
    "qwen2": {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512},
    "gemma3_text": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 512, "head_dim": 128},
    "phi3": {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512, "pad_token_id": 0},
}
ADAPTERS = {
    "full": FullWeights(),
    "lora": LoraAdapter(rank=8),
    "attention only": LoraAdapter(targets=("q_proj", "v_proj")),
}
LAYOUTS = {"sft": filled(768, 192), "pairs": filled(768, 256, 0.7, prompt=128)}


def config_of(kind: str) -> dict[str, Any]:
    sizes = {"vocab_size": 8192, "intermediate_size": 1408, "num_hidden_layers": 6, **SIZES[kind]}
    found: dict[str, Any] = AutoConfig.for_model(kind, **sizes).to_dict()
    return found


def both(kind: str, adapter: Any, layout: Layout, **more: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """(formula, trace) of what is kept, and of the peak."""
    config = config_of(kind)
    setup = Setup(shape=model_shape(config, kind), adapter=adapter, device="cpu", **{"dtype": "fp32", **more})
    trace = trace_step(config, setup, layout, kind)
    return (kept_bytes(setup, layout), trace.kept), (memory_plan(setup, layout).step_bytes, trace.peak)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize(("kind", "layout"), [("llama", "sft"), pytest.param("qwen3", "pairs", marks=pytest.mark.slow)])
def test_formulas_and_trace_agree_within_five_percent(
    kind: str, adapter: str, checkpointing: bool, layout: str
) -> None:
    kept, peak = both(kind, ADAPTERS[adapter], LAYOUTS[layout], checkpointing=checkpointing)
    assert kept[0] == pytest.approx(kept[1], rel=0.005)
    assert peak[0] == pytest.approx(peak[1], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "adapter"), [("qwen2", "lora"), ("gemma3_text", "full"), ("gemma3_text", "lora"), ("phi3", "full")]
)
def test_other_families_keep_what_the_formulas_say(kind: str, adapter: str) -> None:
    kept, peak = both(kind, ADAPTERS[adapter], LAYOUTS["sft"])
    assert kept[0] == pytest.approx(kept[1], rel=0.05)
    assert peak[0] == pytest.approx(peak[1], rel=0.07)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", "attention only"])
def test_narrow_products_are_counted_too(adapter: str) -> None:
    kept, peak = both("llama", ADAPTERS[adapter], LAYOUTS["sft"], dtype="bf16")
    assert kept[0] == pytest.approx(kept[1], rel=0.01)
    assert peak[0] == pytest.approx(peak[1], rel=0.05)


@pytest.mark.parametrize("adapter", [FullWeights(), LoraAdapter(rank=4)])
def test_a_trace_without_values_is_that_of_a_real_step(adapter: Any, tiny_model: Path) -> None:
    """The real model, as the loop prepares it, byte for byte; the loss of DPO takes a few numbers a pair."""
    import json

    config = json.loads((tiny_model / "config.json").read_text())
    setup = Setup(shape=model_shape(config, "tiny"), adapter=adapter, dtype="fp32", device="cpu")
    settings = TrainSettings(adapter=adapter, dtype="fp32", device="cpu")
    trainee = prepare_model(settings, tiny_model, None, seed=0)
    layout = filled(300, 60)
    real = measured_step(trainee.model, setup, layout)
    traced = trace_step(config, setup, layout, "tiny")
    assert traced.kept == pytest.approx(real.kept, rel=0.001)
    assert traced.peak == pytest.approx(real.peak, rel=0.01)

    def dpo(logps_S: torch.Tensor) -> torch.Tensor:
        sides = [SequenceLogps(part.sum()[None], torch.ones(1)) for part in logps_S.chunk(2)]
        found: torch.Tensor = DpoObjective().loss(PairLogps(*sides), PairLogps(*(_still(s) for s in sides)), 1).share
        return found

    pairs = measured_step(trainee.model, setup, layout, dpo)
    assert pairs.kept == pytest.approx(real.kept, rel=0.02)


def _still(side: SequenceLogps) -> SequenceLogps:
    return SequenceLogps(side.sums_B.detach(), side.counts_B)


def test_nothing_is_left_behind_for_real_tensors(tiny_model: Path) -> None:
    """Masks are kept from pass to pass; those of a trace have no values."""
    config = config_of("llama")
    setup = Setup(shape=model_shape(config, "x"), dtype="fp32", device="cpu")
    trace_step(config, setup, filled(300, 60), "x")
    trainee = prepare_model(TrainSettings(dtype="fp32", device="cpu"), tiny_model, None, seed=0)
    own = replace(setup, shape=model_shape({**config, "vocab_size": 100}, "x"))
    assert measured_step(trainee.model, own, filled(300, 60)).kept > 0
