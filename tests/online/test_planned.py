"""The plan of an online stage: what stands beside the policy, and which phase takes most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from own_replies import learn, make_settings
from posttrain.artifacts import read_json
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Grpo, Ppo
from posttrain.online.config import ServerSampler
from posttrain.online.planned import RewardNumbers, own_run, own_setup, trained_reward
from posttrain.plan.devices import device_of
from posttrain.plan.fit import plan_for, ways
from posttrain.plan.memory import Phase, Setup, cache_bytes_a_token
from posttrain.plan.shape import ModelShape, model_shape
from posttrain.report.reading import parse
from posttrain.train.planned import MemoryRecord, PromptTokens, memory_blocks

PROMPTS = PromptTokens(longest=100, mean=60.0)
SHAPE: ModelShape = model_shape(
    {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "here",
)


def setup_of(*rewards: RewardNumbers, goes_on: bool = False, dtype: Any = "bf16", **changes: Any) -> Setup:
    settings = make_settings(**({"prompts": 8, "replies": 4, "max_new_tokens": 40} | changes))
    return own_setup(settings, SHAPE, dtype, "cpu", PROMPTS, rewards, goes_on=goes_on)


def phases(setup: Setup, **changes: Any) -> dict[str, Phase]:
    run = own_run(make_settings(**({"prompts": 8, "replies": 4, "max_new_tokens": 40} | changes)), PROMPTS)
    return {phase.name: phase for phase in plan_for(setup, run).phases}


def test_the_replies_of_a_prompt_are_packed_with_it() -> None:
    """4 replies of 40 tokens to a prompt of 60 are 220 tokens: 4 such groups in 1,000, and one of shorter replies. Of pairs there are two."""
    run = own_run(make_settings(prompts=8, replies=4, max_new_tokens=40, micro_batch_tokens=1000), PROMPTS)
    layout = run.rows.layout(run.tokens_at_once)
    assert layout.lengths == (60, 40, 40, 40, 40) * 4 + (60, 15, 15, 15, 15)
    assert layout.depths == (0, 60, 60, 60, 60) * 5
    assert layout.supervised == 4 * 160 + 60
    assert run.micro_batches(layout.tokens) == 2
    pairs = own_run(make_settings(method=OnlineDpo(), prompts=2, replies=4, max_new_tokens=40), PROMPTS)
    assert pairs.rows.layout(140).lengths == (60, 40, 40)
    parted = own_run(make_settings(prompts=8, replies=4, passes=2, minibatches=4), PROMPTS)
    assert (parted.batch_size, parted.max_steps) == (2, 3 * 8)


def test_sampling_takes_a_cache_for_all_replies_at_once() -> None:
    """Of the longest prompt and reply, in rooms of 64 tokens; as many as the decoder continues."""
    for replies, slots in ((4, 128), (3, 24)):
        setup = setup_of(replies=replies, evaluation_prompts=slots)
        cache = phases(setup)["sampling"].parts["cache of keys and values"]
        assert cache == cache_bytes_a_token(SHAPE, 2) * 192 * min(64, slots)
    served = setup_of(sampler=ServerSampler(name="server", url="http://127.0.0.1:9"))
    assert phases(served)["sampling"].parts["cache of keys and values"] == 0.0


def test_what_sampling_took_is_held_in_bf16() -> None:
    """By the C library, beside what a training with these micro-batches holds: the cache once more, and the probabilities."""
    held = {
        (device, dtype): phases(replace(setup_of(dtype=dtype), device=device))
        for device, dtype in (("cpu", "bf16"), ("cpu", "fp32"), ("cuda", "bf16"))
    }
    sampling = held["cpu", "bf16"]["sampling"].parts
    more = sampling["cache of keys and values"] + sampling["working memory"]
    plain = phases(replace(setup_of(dtype="bf16"), own_replies=None))["forward"].parts["allocator"]
    assert held["cpu", "bf16"]["forward"].parts["allocator"] == pytest.approx(plain + more)
    assert held["cpu", "fp32"]["forward"].parts["allocator"] < 0.5 * more
    assert held["cuda", "bf16"]["forward"].parts["allocator"] == 0.0


def test_a_critic_is_one_more_adapter_with_its_states() -> None:
    policy, both = (phases(setup_of(method=method)) for method in (Grpo(), Ppo()))
    trained = 4 * setup_of().trained
    for name, phase in both.items():
        if name != "load":
            assert phase.parts["critic"] == 3 * trained
            assert phase.total == pytest.approx(policy[name].total + 3 * trained)


def test_a_reward_model_of_the_base_is_its_adapter_and_another_one_is_a_model() -> None:
    lora = LoraAdapter(rank=16)
    shared, alone = (trained_reward(lora, SHAPE, shares=shares) for shares in (True, False))
    assert shared.model == alone.adapter == 0
    assert shared.adapter == setup_of(adapter=lora).trained + SHAPE.hidden
    assert alone.model == SHAPE.parameters == trained_reward(None, SHAPE, shares=True).model
    for reward, bytes_ in ((shared, 2 * shared.adapter), (alone, 2 * SHAPE.parameters)):
        assert phases(setup_of(reward))["scoring"].parts["reward model"] == bytes_
    assert "scoring" not in phases(setup_of())


def test_the_reference_is_a_copy_of_what_trains_where_it_does_not_begin_as_nothing() -> None:
    fresh, going_on = phases(setup_of()), phases(setup_of(goes_on=True))
    trained = 4 * setup_of().trained
    assert fresh["sampling"].parts["reference"] == 0
    assert going_on["sampling"].parts["reference"] == trained
    assert going_on["reference of replies"].total == pytest.approx(fresh["reference of replies"].total + 2 * trained)
    full = phases(setup_of(adapter=FullWeights()))
    assert full["sampling"].parts["reference"] == 4 * SHAPE.parameters


def test_in_fp32_frozen_weights_are_there_twice_on_a_cpu() -> None:
    both = {dtype: phases(setup_of(dtype=dtype))["forward"].parts.get("second copy", 0.0) for dtype in ("fp32", "bf16")}
    assert both == {"fp32": 4.0 * (SHAPE.linear_weights + SHAPE.embedding), "bf16": 0.0}


def test_all_weights_are_no_way_of_ppo() -> None:
    found = {
        method.name: [
            way.setup.method
            for way in ways(setup_of(method=method), own_run(make_settings(), PROMPTS), device_of("24GB"))
        ]
        for method in (Grpo(), Ppo())
    }
    assert found == {"grpo": ["full", "lora", "qlora"], "ppo": ["lora", "qlora"]}


def test_a_run_writes_its_plan_beside_what_it_took(small_model: Path, tmp_path: Path) -> None:
    learn(small_model, tmp_path / "own", method=Ppo())
    path = tmp_path / "own" / "memory.json"
    record = parse(MemoryRecord, read_json(path), path)
    assert record.planned is not None
    assert {"sampling", "reference of replies", "forward"} <= {*record.planned["phases"]}
    assert record.measured is not None
    planned = record.planned["phases"]["optimizer step"]
    parts = record.measured.parts
    assert {name: parts[name] for name in ("weights", "adapter", "optimizer")} == pytest.approx(
        {name: planned[name] for name in ("weights", "adapter", "optimizer")}, rel=0.01
    )
    assert parts["critic"] == pytest.approx(planned["critic"], rel=0.05)
    assert record.prompts is not None
    assert record.prompts.longest <= 12
    assert memory_blocks(record)
