"""Parameters counted from ``config.json`` alone are those of the real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import FAMILIES
from posttrain.errors import ModelError
from posttrain.model import adapters
from posttrain.model.config import LoraAdapter
from posttrain.model.forward import beside_text
from posttrain.plan import shape
from posttrain.plan.shape import adapter_parameters, model_shape

COUNTED = {
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen2-moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3-moe": "qwen3_moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gemma3-images": "gemma3_text",
    "phi3": "phi3",
    "granite": "granite",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
}
"""Row of tests/families.py -> the model type that is counted."""
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def outline(config: Any, plain_class: Any) -> Any:
    with torch.device("meta"):
        return plain_class.from_config(config)


def text_parameters(model: Any) -> int:
    towers = tuple(f"{name}." for name in beside_text(model))
    return sum(p.numel() for name, p in model.named_parameters() if not f"{name}.".startswith(towers))


def test_every_counted_type_is_held_against_its_model() -> None:
    assert {*COUNTED.values()} == shape.FAMILIES.keys()


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_parameters_are_those_of_the_model(name: str, changes: dict[str, Any]) -> None:
    family = FAMILIES[name]
    config = family.config(**changes)
    if "text_config" in config.to_dict():
        changes = {} if "tie_word_embeddings" in changes else changes  # the outer configuration decides
        config = family.config(**changes)
    found = model_shape(config.to_dict(), name)
    assert found.model_type == COUNTED[name]
    assert found.parameters == text_parameters(outline(config, family.plain_class))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "mistral"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("o_proj",), r".*\.1\.mlp\..*_proj"])
def test_adapter_parameters_are_those_that_peft_makes(name: str, targets: Any) -> None:
    family = FAMILIES[name]
    config = family.config()
    expected = adapter_parameters(model_shape(config.to_dict(), name), 3, targets)
    if expected == 0:  # phi3 has no q_proj
        pytest.skip("no such layer")
    model = adapters.attach_lora(outline(config, family.plain_class), LoraAdapter(rank=3, targets=targets), seed=0)
    assert expected == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


PUBLISHED: dict[str, tuple[dict[str, Any], float, int]] = {
    "Qwen3-8B": (
        {
            "model_type": "qwen3",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 151936,
        },
        8.191e9,
        1_769_472 + 958_464,
    ),
    "Llama-3.1-8B": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        8.030e9,
        1_769_472 + 851_968,
    ),
    "Llama-3.2-1B": (
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
        1.236e9,
        491_520 + 212_992,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_sizes(name: str) -> None:
    config, parameters, per_rank = PUBLISHED[name]
    found = model_shape(config, name)
    assert found.parameters == pytest.approx(parameters, rel=1e-3)
    assert adapter_parameters(found, 1) == per_rank


def test_missing_numbers_mean_what_transformers_means_by_them() -> None:
    found = model_shape(LLAMA, "here")
    assert (found.head_dim, found.kv_heads, found.tied) == (16, 4, False)


@pytest.mark.parametrize(
    "lost", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_field_that_is_not_there_is_named(lost: str) -> None:
    with pytest.raises(ModelError, match=f"here: config.json has no {lost}"):
        model_shape({key: value for key, value in LLAMA.items() if key != lost}, "here")


@pytest.mark.parametrize("value", ["many", 0, -3, 1.5, True])
def test_a_field_that_is_no_size_is_named(value: Any) -> None:
    with pytest.raises(ModelError, match=r"hidden_size of config\.json must be a positive whole number"):
        model_shape({**LLAMA, "hidden_size": value}, "here")


def test_an_unknown_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"of the type 'qwen33' \(did you mean 'qwen3'\?\)"):
        model_shape({**LLAMA, "model_type": "qwen33"}, "here")
