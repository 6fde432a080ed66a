"""A reward model over the base of a policy in memory: the same scores as a model of its own, and a policy that is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posttrain.encode.preferences import scored_at_end
from posttrain.model.adapters import attach_lora, load_adapter, save_adapter, saved_model, trainable_parameters
from posttrain.model.config import LoraAdapter
from posttrain.model.export import merge_adapter
from posttrain.model.forward import score_head
from posttrain.model.fused import fuse
from posttrain.model.load import load_model
from posttrain.model.score import batch_logps, batch_rewards, batch_values, lay_out
from posttrain.model.second_adapter import Apart, InMemory, SecondAdapter, second_adapter
from posttrain.types import Tokens

CPU = torch.device("cpu")
Examples = Callable[..., list[Tokens]]


@torch.no_grad()
def learned(model: nn.Module, seed: int) -> nn.Module:
    """The model as if it had learned something: every B drawn."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def reward_adapter(base: Path, out: Path, adapter: LoraAdapter) -> Path:
    """The folder of a reward model's adapter."""
    out.mkdir()
    scored = load_model(base, torch.float32, CPU, head="score", seed=3)
    save_adapter(learned(attach_lora(scored, adapter, seed=1), 1), out)  # type: ignore[arg-type]
    return out


def policy_on(
    base: Path, adapter: LoraAdapter, start: Path | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A policy ready to train, fused, with an adapter that has learned something else."""
    loaded = load_model(base, dtype, CPU).requires_grad_(False)
    model = attach_lora(loaded, adapter, seed=2) if start is None else load_adapter(loaded, start, trainable=True)
    fuse(learned(model, 2))
    return model.train()


def rewards_of(model: nn.Module, head: Any, examples: list[Tokens]) -> np.ndarray:
    batch = lay_out(model, [scored_at_end(one, None) for one in examples])
    with torch.no_grad():
        return batch_values(model, batch, head, torch.float32).numpy()


ATTENTION = LoraAdapter(rank=3, alpha=9, targets=("q_proj", "v_proj"))
DIFFERENT = {
    "as the policy's": (LoraAdapter(rank=4), LoraAdapter(rank=4)),
    "another rank and scale": (LoraAdapter(rank=2, alpha=64, rslora=True), LoraAdapter(rank=8)),
    "fewer layers": (ATTENTION, LoraAdapter(rank=4)),
    "more layers": (LoraAdapter(rank=4), ATTENTION),
    "other layers": (LoraAdapter(rank=5, targets=("up_proj", "o_proj")), ATTENTION),
}


@pytest.mark.parametrize(("reward", "policy"), DIFFERENT.values(), ids=DIFFERENT)
def test_it_scores_as_a_model_of_its_own(
    reward: LoraAdapter, policy: LoraAdapter, small_model: Path, tmp_path: Path, random_examples: Examples
) -> None:
    adapter, examples = reward_adapter(small_model, tmp_path / "reward", reward), random_examples([9, 30, 14])
    model = policy_on(small_model, policy)
    batch, trained = lay_out(model, examples), set(trainable_parameters(model))

    def policy_logps() -> torch.Tensor:
        return batch_logps(model, batch, torch.float32).logps_S.detach()

    before = policy_logps()
    shared = second_adapter(InMemory(model, small_model, torch.float32), small_model, adapter)
    assert isinstance(shared, SecondAdapter)
    with shared.playing():
        found = rewards_of(model, shared.head, examples)
    own = saved_model(small_model, adapter, torch.float32, CPU, head="score")
    with torch.no_grad():
        wanted = batch_rewards(own, lay_out(own, [scored_at_end(one, None) for one in examples]), torch.float32)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert np.ptp(found) > 1e-2, "scores that differ"
    assert torch.equal(policy_logps(), before), "the policy is as it was, to the last bit"
    assert model.training
    assert set(trainable_parameters(model)) == trained


def test_both_may_have_begun_from_one_adapter(small_model: Path, tmp_path: Path, random_examples: Examples) -> None:
    """What each began from is inside its own adapter: nothing is added twice."""
    start = tmp_path / "start"
    start.mkdir()
    save_adapter(learned(attach_lora(load_model(small_model, torch.float32, CPU), ATTENTION, 0), 5), start)  # type: ignore[arg-type]
    scored = load_adapter(load_model(small_model, torch.float32, CPU, head="score", seed=3), start, trainable=True)
    with torch.no_grad():
        for parameter in trainable_parameters(scored).values():
            parameter.add_(0.05)
    (tmp_path / "reward").mkdir()
    save_adapter(scored, tmp_path / "reward")
    model, examples = policy_on(small_model, ATTENTION, start), random_examples([9, 30])
    shared = second_adapter(InMemory(model, small_model, torch.float32), small_model, tmp_path / "reward")
    assert isinstance(shared, SecondAdapter)
    with shared.playing():
        found = rewards_of(model, shared.head, examples)
    np.testing.assert_allclose(found, rewards_of(scored, score_head(scored), examples), atol=1e-5)


def test_in_bf16_it_is_near(small_model: Path, tmp_path: Path, random_examples: Examples) -> None:
    adapter, examples = reward_adapter(small_model, tmp_path / "reward", ATTENTION), random_examples([9, 30, 14])
    model = policy_on(small_model, LoraAdapter(rank=4), dtype=torch.bfloat16)
    shared = second_adapter(InMemory(model, small_model, torch.bfloat16), small_model, adapter)
    assert isinstance(shared, SecondAdapter)
    assert {lora.a_RD.dtype for _, lora in shared.layers} == {torch.bfloat16}
    with shared.playing():
        found = rewards_of(model, shared.head, examples)
    own = saved_model(small_model, adapter, torch.float32, CPU, head="score")
    np.testing.assert_allclose(found, rewards_of(own, score_head(own), examples), atol=0.05)


def test_what_is_not_the_same_is_a_model_of_its_own(small_model: Path, tmp_path: Path) -> None:
    adapter = reward_adapter(small_model, tmp_path / "reward", LoraAdapter(rank=4))
    weighed = reward_adapter(small_model, tmp_path / "dora", LoraAdapter(rank=4, dora=True))
    other = tmp_path / "other"
    load_model(small_model, torch.float32, CPU).save_pretrained(other)
    (other / "note.json").write_text("{}")
    policy = InMemory(policy_on(small_model, LoraAdapter(rank=4)), small_model, torch.float32)
    full = policy._replace(model=merge_adapter(policy_on(small_model, LoraAdapter(rank=4))))

    def why(on: InMemory, folder: Path, adapter: Path | None) -> str:
        found = second_adapter(on, folder, adapter)
        assert isinstance(found, Apart)
        return found.why

    assert "all weights of the reward model" in why(policy, small_model, None)
    assert "all weights of the policy" in why(full, small_model, adapter)
    assert "other weights" in why(policy, other, adapter)
    assert "plain LoRA" in why(policy, small_model, weighed)
