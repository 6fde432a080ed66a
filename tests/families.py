"""Micro models of many families, built from transformers' configurations in code: one table, used by every test of "any model".

A family is a row of `FAMILIES`: transformers' name of the model type, and what its configuration needs beyond `COMMON` to be tiny
and to use every trait the family is known for. ``switches`` are the lengths at which the model begins to compute something else
(a window closes, a chunk ends, rotary factors change); `Family.lengths` lie on both sides of each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

COMMON: Mapping[str, Any] = {
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
WINDOW = 12
"""The switch of families with a window, a chunk or two ranges of rotary factors."""


@dataclass(frozen=True)
class Family:
    """One row: the model type, its changes to `COMMON`, and the lengths at which it computes something else."""

    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    switches: tuple[int, ...] = ()
    towers: Mapping[str, Any] | None = None
    """Of a model that sees as well: the configuration around that of its text."""

    @property
    def plain_class(self) -> Any:
        """What of transformers reads and makes it."""
        return AutoModelForCausalLM if self.towers is None else AutoModelForMultimodalLM

    def config(self, **more: Any) -> PretrainedConfig:
        """The configuration; ``more`` overrides (another vocabulary for a real tokenizer, more positions)."""
        text = {**COMMON, **self.changes, **more}
        return AutoConfig.for_model(
            self.model_type, **(text if self.towers is None else {**self.towers, "text_config": text})
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of test sequences, rising, on both sides of every switch."""
        around = [n for s in self.switches for n in (s - 1, s, s + 1, 2 * s + 5)]
        return tuple(sorted({3, 9, 20, *around}))


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """A configuration whose rotary positions are scaled by ``kind``, from `WINDOW` positions on where that decides."""
    return {
        "max_position_embeddings": WINDOW if kind == "dynamic" else 4 * WINDOW,
        "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **parameters},
    }


_LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 4 * WINDOW,
    "original_max_position_embeddings": WINDOW,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": WINDOW,
    },
}
_MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT: dict[str, Any] = {  # multi-head latent attention: keys are wider than values
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "head_dim": 4,
    "v_head_dim": 6,
}
_HYBRID: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "head_dim": 8,
}
_SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
_GEMMA: dict[str, Any] = {"head_dim": 8}

_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_EYES: dict[str, Any] = {"vision_config": _TOWER, "image_token_index": 100, "mm_tokens_per_image": 4}
_QWEN_EYES: dict[str, Any] = {
    "vision_config": {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "num_heads": 2,
        "patch_size": 14,
        "intermediate_size": 24,
        "fullatt_block_indexes": [0],
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
}
_SECTIONS: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
}
_LLAMA4: dict[str, Any] = {
    **_MOE,
    "head_dim": 8,
    "intermediate_size_mlp": 32,
    "attention_chunk_size": WINDOW,
    "num_hidden_layers": 4,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 1, 0],
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", {"tie_word_embeddings": False}),
    "llama-linear": Family("llama", _rope("linear")),
    "llama-dynamic": Family("llama", _rope("dynamic"), (WINDOW,)),
    "llama-yarn": Family("llama", _rope("yarn", original_max_position_embeddings=WINDOW), (WINDOW,)),
    "llama-llama3": Family(
        "llama",
        _rope("llama3", original_max_position_embeddings=WINDOW, low_freq_factor=1.0, high_freq_factor=4.0),
        (WINDOW,),
    ),
    "llama4": Family("llama4_text", _LLAMA4, (WINDOW,)),
    "llama4-images": Family(
        "llama4",
        _LLAMA4,
        (WINDOW,),
        {"vision_config": {**_TOWER, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}},
    ),
    "phi": Family("phi"),
    "phi3": Family("phi3", _SLIDING, (WINDOW,)),
    "phi3-longrope": Family("phi3", _LONGROPE, (WINDOW,)),
    "phimoe": Family(
        "phimoe",
        {
            **_MOE,
            **_LONGROPE,
            "rope_parameters": {**_LONGROPE["rope_parameters"], "short_mscale": 1.1, "long_mscale": 1.2},
        },
        (WINDOW,),
    ),
    "qwen2": Family("qwen2", {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1}, (WINDOW,)),
    "qwen2-moe": Family("qwen2_moe", {**_MOE, "decoder_sparse_step": 1}),
    "qwen3": Family("qwen3", {"head_dim": 12}),
    "qwen3-moe": Family("qwen3_moe", {**_MOE, "head_dim": 12, "decoder_sparse_step": 1}),
    "qwen3-next": Family("qwen3_next", {**_HYBRID, **_MOE, **_DELTA, "head_dim": 8}),
    "qwen2.5-vl": Family("qwen2_5_vl", _SECTIONS, (), _QWEN_EYES),
    "qwen3-vl": Family("qwen3_vl", {**_SECTIONS, "head_dim": 8}, (), _QWEN_EYES),
    "qwen3.5-images": Family("qwen3_5", {**_HYBRID, **_DELTA, "head_dim": 8}, (), _QWEN_EYES),
    "qwen3.5": Family("qwen3_5_text", {**_HYBRID, **_DELTA, "head_dim": 8}),
    "qwen3.5-moe": Family("qwen3_5_moe_text", {**_HYBRID, **_MOE, **_DELTA, "head_dim": 8}),
    "gemma": Family("gemma", _GEMMA),
    "gemma2": Family("gemma2", {**_GEMMA, **_SLIDING, "query_pre_attn_scalar": 8}, (WINDOW,)),
    "gemma3": Family("gemma3_text", {**_GEMMA, **_SLIDING, "sliding_window_pattern": 2}, (WINDOW,)),
    "gemma3-dynamic": Family(
        "gemma3_text",
        {
            **_GEMMA,
            **_SLIDING,
            "sliding_window_pattern": 2,
            "max_position_embeddings": WINDOW,
            "rope_parameters": {
                "full_attention": _rope("dynamic")["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        (WINDOW,),
    ),
    "gemma3-images": Family("gemma3", {**_GEMMA, **_SLIDING, "sliding_window_pattern": 2}, (WINDOW,), _EYES),
    "gemma3n": Family(
        "gemma3n_text",
        {
            **_GEMMA,
            **_SLIDING,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 199,
            "hidden_size_per_layer_input": 8,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "laurel_rank": 4,
        },
        (WINDOW,),
    ),
    "gemma4": Family(
        "gemma4_text",
        {
            **_GEMMA,
            **_SLIDING,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": 199,
            "hidden_size_per_layer_input": 8,
        },
        (WINDOW,),
    ),
    "vaultgemma": Family("vaultgemma", {**_GEMMA, **_SLIDING, "query_pre_attn_scalar": 8}, (WINDOW,)),
    "recurrent-gemma": Family(
        "recurrent_gemma",
        {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "conv1d_width": 4,
            "attention_window_size": WINDOW,
            "num_key_value_heads": 1,
        },
        (WINDOW,),
    ),
    "mistral": Family("mistral", _SLIDING, (WINDOW,)),
    "mistral3": Family("mistral3", {"model_type": "mistral"}, (), _EYES),
    "mixtral": Family("mixtral", {**_MOE, **_SLIDING}, (WINDOW,)),
    "granite": Family(
        "granite",
        {
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
        },
    ),
    "granite-moe": Family("granitemoe", {**_MOE, "logits_scaling": 4.0}),
    "granite-moe-shared": Family("granitemoeshared", {**_MOE, "shared_intermediate_size": 16}),
    "granite-hybrid": Family(
        "granitemoehybrid",
        {**_MOE, **_MAMBA2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    ),
    "cohere": Family("cohere", {"logit_scale": 0.1}),
    "cohere2": Family(
        "cohere2",
        {**_SLIDING, "logit_scale": 0.25, "layer_types": ["sliding_attention", "full_attention"]},
        (WINDOW,),
    ),
    "gpt-oss": Family("gpt_oss", {**_MOE, **_SLIDING, "head_dim": 8}, (WINDOW,)),
    "olmo": Family("olmo", {"clip_qkv": 2.0}),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"]}, (WINDOW,)),
    "olmoe": Family("olmoe", _MOE),
    "olmo-hybrid": Family("olmo_hybrid", {**_HYBRID, **_DELTA}),
    "flex-olmo": Family("flex_olmo", _MOE),
    "deepseek-v2": Family("deepseek_v2", {**_MOE, **_LATENT, "first_k_dense_replace": 1}),
    "deepseek-v3": Family("deepseek_v3", {**_MOE, **_LATENT, "first_k_dense_replace": 1}),
    "longcat": Family(
        "longcat_flash",
        {
            **_MOE,
            **_LATENT,
            "num_layers": 1,
            "zero_expert_num": 1,
            "moe_topk": 2,
            "expert_ffn_hidden_size": 16,
            "ffn_hidden_size": 32,
        },
    ),
    "youtu": Family("youtu", _LATENT),
    "minicpm3": Family("minicpm3", _LATENT),
    "glm": Family("glm", {"head_dim": 8}),
    "glm4": Family("glm4", {"head_dim": 8}),
    "glm4-moe": Family("glm4_moe", {**_MOE, "head_dim": 8, "first_k_dense_replace": 1, "use_qk_norm": True}),
    "glm4-moe-lite": Family("glm4_moe_lite", {**_MOE, **_LATENT, "first_k_dense_replace": 1}),
    "lfm2": Family("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "lfm2-moe": Family("lfm2_moe", {**_MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "falcon": Family("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": Family("falcon", {"alibi": True, "multi_query": False}),
    "falcon-h1": Family("falcon_h1", {**_MAMBA2, "lm_head_multiplier": 0.5}),
    "nemotron": Family("nemotron"),
    "nemotron-h": Family(
        "nemotron_h",
        {
            **_MOE,
            "layers_block_type": ["mamba", "attention", "moe"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "head_dim": 8,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    "mamba": Family("mamba", {"state_size": 8}),
    "mamba2": Family("mamba2", {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "bamba": Family("bamba", {**_MAMBA2, "attn_layer_indices": [1]}),
    "jamba": Family(
        "jamba",
        {
            **_MOE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "bloom": Family("bloom", {"n_head": 4, "n_layer": 2}),
    "mpt": Family("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "stablelm": Family("stablelm"),
    "gptj": Family("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "tie_word_embeddings": False}),
    "codegen": Family("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_ctx": 128}),
    "gpt2": Family("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt-bigcode": Family("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt-neo": Family(
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
        (WINDOW,),
    ),
    "gpt-neox": Family("gpt_neox"),
    "opt": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128}),
    "starcoder2": Family("starcoder2", _SLIDING, (WINDOW,)),
    "smollm3": Family("smollm3", {"no_rope_layer_interval": 2}),
    "exaone4": Family("exaone4", {**_SLIDING, "sliding_window_pattern": 2}, (WINDOW,)),
    "ernie4.5": Family("ernie4_5", {"head_dim": 8}),
    "ernie4.5-moe": Family(
        "ernie4_5_moe", {**_MOE, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "head_dim": 8}
    ),
    "hunyuan": Family("hunyuan_v1_dense", {"head_dim": 8}),
    "hunyuan-moe": Family("hunyuan_v1_moe", {**_MOE, "head_dim": 8, "moe_topk": [2, 2]}),
    "diffllama": Family("diffllama"),
    "arcee": Family("arcee"),
    "apertus": Family("apertus"),
    "seed-oss": Family("seed_oss", {"head_dim": 8}),
    "helium": Family("helium", {"head_dim": 8}),
    "persimmon": Family("persimmon"),
    "nanochat": Family("nanochat"),
    "minimax": Family("minimax", {**_MOE, "layer_types": ["linear_attention", "full_attention"], "block_size": 8}),
    "falcon-mamba": Family("falcon_mamba", {"state_size": 8}),
    "modernbert-decoder": Family(
        "modernbert-decoder", {"global_attn_every_n_layers": 2, "local_attention": WINDOW}, (WINDOW // 2,)
    ),
    "deepseek-v3.2": Family("deepseek_v32", {**_MOE, **_LATENT}),
    "deepseek-v4": Family("deepseek_v4", {**_MOE, **_LATENT}),
    "minimax-m2": Family("minimax_m2", {**_MOE, "head_dim": 8}),
    "ministral3": Family("ministral3", {"head_dim": 8}),
    "dots1": Family("dots1", _MOE),
    "bitnet": Family("bitnet"),
    "dbrx": Family(
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        },
    ),
    "rwkv": Family("rwkv", {"context_length": 128, "attention_hidden_size": 32}),
}

QUICK = [
    "llama",
    "llama-dynamic",
    "phi3-longrope",
    "qwen3",
    "qwen3-moe",
    "qwen3-vl",
    "gemma2",
    "mistral",
    "gpt-oss",
    "deepseek-v3",
    "lfm2",
    "falcon-alibi",
    "mamba2",
    "bloom",
    "gpt2",
]
"""One family for every way of computing: what `make fast` tries."""
EVERY_FAMILY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


def micro_model(name: str, **more: Any) -> PreTrainedModel:
    """The micro model of a family with random weights, the same every time; norms and biases away from their neutral start."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: PreTrainedModel = FAMILIES[name].plain_class.from_config(FAMILIES[name].config(**more))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 199 words (w3 to w198 and three special ones) with a chat template, so that a micro model can chat."""
    words = {"<s>": 1, "</s>": 2, "<pad>": 0} | {f"w{n}": n for n in range(3, 199)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %} w9 {{ m.role and m.content }} </s>{% endfor %}{% if add_generation_prompt %} w9{% endif %}"
    return tokenizer


def micro_folder(name: str, folder: Path, **more: Any) -> Path:
    """The same, saved as a HF model folder (without a tokenizer)."""
    micro_model(name, **more).save_pretrained(folder)
    return folder
