"""Nothing here knows a model by name: tiny models of many families train packed and agree with transformers' own loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import ModelError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.load import causal_lm, load_model
from posttrain.model.score import score
from posttrain.objectives import SftObjective
from posttrain.train.config import TrainStage
from posttrain.train.loop import optimizer_step, prepare_model
from posttrain.train.optimizer import build_optimizer
from posttrain.train.tasks import make_task
from posttrain.types import Tokens

COMMON: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"head_dim": 12},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": 6},
    "olmo2": {},
    "smollm3": {},
    "olmo3": {"sliding_window": 6},
    "cohere2": {"sliding_window": 6, "logit_scale": 1.0},
    "glm4": {"head_dim": 8},
    "granite": {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
FUSED_MLP = {"llama", "qwen2", "qwen3", "mistral", "olmo2", "olmo3", "smollm3", "cohere2", "granite"}
OTHER_NORM = {"gemma2", "gemma3_text", "cohere2", "gpt2"}


def built(family: str, folder: Path, **changes: Any) -> Path:
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES.get(family, {}), **changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases away from their neutral start
                parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def stage(**changes: Any) -> TrainStage:
    return TrainStage(
        **{"kind": "train", "data": "rows", "dtype": "fp32", "device": "cpu", "learning_rate": 3e-3} | changes
    )


def eager_loss(model: transformers.PreTrainedModel, examples: list[Tokens]) -> float:
    """Token-weighted loss by transformers' own eager code, one row at a time."""
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for example in examples:
            logits = model(input_ids=torch.from_numpy(example.ids_T).long()[None]).logits[0].double()
            nll = -logits[:-1].log_softmax(-1).gather(1, torch.from_numpy(example.ids_T).long()[1:, None])[:, 0]
            total += float((nll * torch.from_numpy(example.weights_T[1:])).sum())
            weight += float(example.weights_T.sum())
    return total / weight


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_equals_eager_and_a_step_lowers_it(
    family: str, tmp_path: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    folder = built(family, tmp_path)
    examples = random_examples([9, 2, 23, 14])
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = eager_loss(hf, examples)
    for adapter in (LoraAdapter(rank=4), FullWeights()):
        options = stage(adapter=adapter)
        trainee = prepare_model(options, folder, None, seed=0)
        before = score(trainee.model, examples, 1000, torch.float32).mean()
        assert before == pytest.approx(expected, rel=2e-6)
        optimizer = build_optimizer(trainee.model, trainee.trained, options)
        for _ in range(3):
            result = optimizer_step(
                trainee, optimizer, make_task(SftObjective()), [examples[:3], examples[3:]], 3e-3, 1.0
            )
        assert result.loss < before
        # What was trained is what transformers computes with the same weights.
        after = score(trainee.model, examples, 1000, torch.float32).mean()
        trained = trainee.model.merge_and_unload() if isinstance(adapter, LoraAdapter) else trainee.model  # type: ignore[operator]
        hf.load_state_dict(trained.state_dict())
        assert after == pytest.approx(eager_loss(hf, examples), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_which_parts_take_the_hot_path(family: str, tmp_path: Path) -> None:
    model = prepare_model(stage(adapter=LoraAdapter(rank=2)), built(family, tmp_path), None, seed=0).model
    own = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if "forward" in vars(module)}
    assert ("mlp" in own) == (family in FUSED_MLP)
    assert any("norm" in name for name in own) == (family not in OTHER_NORM)
    assert any(name.endswith("proj") for name in own) == (
        family != "gpt2"
    )  # its layers are transposed: PEFT's own code


HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3_5_text", HYBRID, "mix neighbours"),
        ("qwen3_next", HYBRID | MOE | {"linear_num_value_heads": 4, "linear_num_key_heads": 2}, "mix neighbours"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "mix neighbours"),
        ("mamba", {}, "mix neighbours"),
        ("rwkv", {}, "mix neighbours"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "position biases"),
        ("stablelm", {}, "can't compute packed sequences"),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "can't compute packed sequences"),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, "attention sinks"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # these models' own
def test_models_that_would_leak_between_segments_are_refused(
    family: str, changes: dict[str, Any], message: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(built(family, tmp_path, **changes), dtype, torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("cohere", {"logit_scale": 0.1}, "scales its logits"),
        ("granite", {"logits_scaling": 4.0}, "scales its logits"),
        ("phi", {}, "output head"),
    ],
)
def test_what_can_not_be_computed_exactly_is_refused(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    trainee = prepare_model(stage(adapter=LoraAdapter(rank=2)), built(family, tmp_path, **changes), None, seed=0)
    assert causal_lm(trainee.model) is not trainee.model
    with pytest.raises(ModelError, match=message):
        score(trainee.model, random_examples([5]), 100, torch.float32)
