"""What fits, what to change, and devices by name."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.plan.devices import DEVICES, Device, device_of
from posttrain.plan.fit import Rows, Run, changes, largest_tokens, plan_for, way, ways
from posttrain.plan.memory import NF4_BYTES, Layout, Setup, cache_bytes_a_token, filled, memory_plan
from posttrain.plan.shape import ModelShape, model_shape

QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def shape(config: dict[str, Any]) -> ModelShape:
    return model_shape(config, "here")


def run_at(length: int = 2048, tokens: int = 2048, batch_size: int = 16) -> Run:
    return Run(rows=Rows(mean=length, longest=length, usual=length), batch_size=batch_size, micro_batch_tokens=tokens)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_states_have_their_published_bytes_a_parameter() -> None:
    """16 a trained parameter, 2 a frozen one in bf16, 4.127 bits a quantised one."""
    full = memory_plan(Setup(shape=shape(QWEN3_8B), adapter=FullWeights()), filled(2048, 2048)).phases
    step = next(phase for phase in full if phase.name == "optimizer step").parts
    assert sum(step[name] for name in ("weights", "gradients", "optimizer")) == 16 * shape(QWEN3_8B).parameters
    frozen = Setup(shape=shape(QWEN3_8B), adapter=LoraAdapter(rank=16))
    assert frozen.weight_bytes == pytest.approx(16.4e9, rel=0.01)
    assert 16 * frozen.trained == pytest.approx(0.70e9, rel=0.01)
    four_bit = replace(frozen, quantized=True)
    assert NF4_BYTES * shape(QWEN3_8B).linear_weights == pytest.approx(3.58e9, rel=0.01)
    assert four_bit.weight_bytes == pytest.approx(3.58e9 + 2.49e9, rel=0.01)


def test_a_token_of_the_cache_has_its_published_bytes() -> None:
    assert cache_bytes_a_token(shape(QWEN3_8B), 2) == pytest.approx(147e3, rel=0.01)
    assert cache_bytes_a_token(shape(LLAMA_7B), 2) == pytest.approx(524e3, rel=0.01)


def test_the_peak_is_the_largest_phase_and_not_the_sum() -> None:
    found = memory_plan(Setup(shape=shape(QWEN3_8B)), filled(2048, 2048))
    assert found.peak.total == max(phase.total for phase in found.phases)
    assert found.peak.total < sum(phase.total for phase in found.phases)


def test_probabilities_are_kept_of_blocks_with_few_keys() -> None:
    assert Layout((256,), (0,), 1).kept_pairs == 128 * 128 + 128 * 256
    assert Layout((1024,), (0,), 1).kept_pairs == 128 * (128 + 256 + 384 + 512)
    assert Layout((10, 20), (0, 500), 1).kept_pairs == 10 * 10  # 520 keys are too many


def test_pairs_share_their_prompt() -> None:
    found = filled(1000, 200, prompt=100)
    assert found.lengths == (100, 100, 100) * 3
    assert found.depths == (0, 100, 100) * 3


@pytest.mark.parametrize("adapter", [FullWeights(), LoraAdapter(), LoraAdapter(targets=("q_proj", "v_proj"))])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_checkpointing_takes_less_and_more_tokens_take_more(adapter: Any, dtype: Any) -> None:
    setup = Setup(shape=shape(LLAMA_7B), adapter=adapter, dtype=dtype)
    plans = [memory_plan(setup, filled(tokens, 512)).peak.total for tokens in (512, 2048, 8192)]
    assert plans == sorted(plans)
    assert memory_plan(replace(setup, checkpointing=True), filled(8192, 512)).peak.total < plans[-1]


# ---- what fits -----------------------------------------------------------------------------------------------------


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    setup, room = Setup(shape=shape(QWEN3_8B), checkpointing=True), 24e9
    found = largest_tokens(setup, run_at(), room)
    assert found is not None
    assert plan_for(setup, run_at(), found).peak.total <= room < plan_for(setup, run_at(), found + 64).peak.total


def test_full_lora_and_qlora_stand_side_by_side() -> None:
    found = ways(Setup(shape=shape(QWEN3_8B), adapter=LoraAdapter(rank=8)), run_at(), device_of("rtx4090"))
    assert [one.setup.method for one in found] == ["full", "lora", "qlora"]
    totals = [one.memory.peak.total for one in found]
    assert totals == sorted(totals, reverse=True)
    assert {one.setup.lora.rank for one in found if one.setup.lora} == {8}


def test_changes_come_in_the_order_of_what_they_cost_until_it_fits() -> None:
    setup, room = Setup(shape=shape(QWEN3_8B), adapter=FullWeights()), 12e9
    found = list(changes(setup, run_at(tokens=8192), room))
    assert [one.setting.partition(":")[0] for one in found] == [
        "micro_batch_tokens",
        "gradient_checkpointing",
        "adapter",
        "adapter",
    ]
    assert [one.fits for one in found] == [False, False, False, True]
    assert found[-1].bytes <= room
    assert all(a.bytes >= b.bytes for a, b in itertools.pairwise(found))


def test_fewer_tokens_alone_are_advised_where_they_are_enough() -> None:
    setup = Setup(shape=shape(QWEN3_8B), checkpointing=True)
    run = run_at(length=512, tokens=1 << 19, batch_size=1 << 10)
    found = way(setup, run, device_of("24GB"))
    assert not found.fits
    assert [one.setting for one in found.changes] == [f"micro_batch_tokens: {found.largest_tokens}"]
    assert found.accumulation * (found.largest_tokens or 0) >= 512 * 1024


def test_where_nothing_helps_the_model_is_named_last() -> None:
    found = list(changes(Setup(shape=shape(QWEN3_8B)), run_at(), 1e9))
    assert found[-1].setting == "model"
    assert not any(one.fits for one in found)


def test_hours_are_those_of_the_tokens_at_a_share_of_the_peak() -> None:
    rows = Rows(count=1000, mean=100, longest=200, usual=120, measured=True)
    run = Run(rows=rows, batch_size=10, micro_batch_tokens=400, epochs=2)
    device = Device("x", "cuda", 1e12, 1e14)
    one = way(Setup(shape=shape(LLAMA_7B)), run, device)
    assert one.accumulation == 3
    assert one.tokens_per_second is not None
    assert one.hours == pytest.approx(2 * 1000 * 100 / one.tokens_per_second / 3600)


# ---- devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_found_by_its_name(name: str) -> None:
    assert device_of(name) is DEVICES[name]
    assert device_of(f"NVIDIA {name.upper()}") is DEVICES[name]


@pytest.mark.parametrize(("name", "memory"), [("24GB", 24e9), ("80 gib", 80 * 2**30), ("7.5g", 7.5e9)])
def test_a_size_is_a_gpu(name: str, memory: float) -> None:
    assert device_of(name).memory == memory
    assert device_of(name).kind == "cuda"


def test_cpu_is_this_computer() -> None:
    found = device_of("cpu")
    assert (found.kind, found.measured) == ("cpu", True)
    assert found.memory > 0
    assert found.flops is not None


@pytest.mark.parametrize("name", ["rtx4080x", "0GB", "banana", "", "-24GB"])
def test_nonsense_is_one_error_that_lists_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device") as caught:
        device_of(name)
    assert "rtx4090" in str(caught.value)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rtx4090'"):
        device_of("rtx4900")
