"""Nothing here knows a model by name: tiny models of many families train packed and agree with transformers' own loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from families import micro_folder
from posttrain.errors import ModelError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.forward import path_of
from posttrain.model.load import load_model
from posttrain.model.score import score
from posttrain.objectives import SftObjective
from posttrain.train.config import TrainSettings
from posttrain.train.loop import optimizer_step, prepare_model
from posttrain.train.optimizer import build_optimizer
from posttrain.train.tasks import make_task
from posttrain.types import Tokens

TRAINED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "olmo2", "smollm3", "olmo3", "cohere2", "glm4"),
    *("granite", "qwen3-moe", "gpt2", "phi", "gpt-oss", "deepseek-v3", "phi3-longrope", "lfm2", "bloom", "mamba2"),
)
FUSED_MLP = {"llama", "qwen2", "qwen3", "mistral", "olmo2", "olmo3", "smollm3", "cohere2", "granite"}
OTHER_NORM = {"gemma2", "gemma3", "cohere2", "gpt2", "phi", "bloom"}


def stage(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"dtype": "fp32", "device": "cpu", "learning_rate": 3e-3} | changes)


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


@pytest.mark.filterwarnings("ignore")  # notes on the speed, and these models' own
@pytest.mark.parametrize("family", TRAINED)
def test_packed_loss_equals_eager_and_a_step_lowers_it(
    family: str, tmp_path: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    folder = micro_folder(family, tmp_path)
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


@pytest.mark.filterwarnings("ignore")  # notes on the speed, and these models' own
@pytest.mark.parametrize("family", [family for family in TRAINED if family != "bloom"])
def test_which_parts_take_the_hot_path(family: str, tmp_path: Path) -> None:
    model = prepare_model(stage(adapter=LoraAdapter(rank=2)), micro_folder(family, tmp_path), None, seed=0).model
    own = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if "forward" in vars(module)}
    assert ("mlp" in own) == (family in FUSED_MLP)
    assert any("norm" in name for name in own) == (family not in OTHER_NORM)
    assert any(name.endswith("proj") for name in own) == (
        family != "gpt2"
    )  # its layers are transposed: PEFT's own code


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3.5", "lfm2", "mamba", "rwkv", "bloom", "falcon-alibi", "stablelm", "llama4"])
@pytest.mark.filterwarnings("ignore")  # these models' own
def test_models_that_would_leak_between_segments_go_one_by_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = path_of(load_model(micro_folder(family, tmp_path), dtype, torch.device("cpu")))
    assert path.kind == "alone"
    assert path.why


@pytest.mark.filterwarnings("ignore")
def test_a_window_near_the_last_position_is_no_reason_to_refuse(tmp_path: Path) -> None:
    folder = micro_folder("gpt-neo", tmp_path, window_size=64, max_position_embeddings=128)
    assert path_of(load_model(folder, torch.float32, torch.device("cpu"))).kind == "alone"


def test_what_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=32
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="looks at later tokens"):
        load_model(tmp_path, torch.float32, torch.device("cpu"))
