"""Which models a GGUF file can hold, and what llama.cpp must be told of each to compute the same.

A row of `ARCHITECTURES` is a type of transformers and the llama.cpp code that computes it. What that code would do otherwise than the
model (another activation, a window, factors of rotary positions) is refused by name, or kept out of the file's context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from posttrain.errors import ModelError
from posttrain.model.forward import beside_text, causal_lm
from posttrain.table import Table

SWA_PERIOD = 6
"""Of Gemma 3 in llama.cpp: every sixth layer sees everything, the others a window."""
NEUTRAL_QUERY = "query_pre_attn_scalar"


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes a type of model."""

    key: gguf.MODEL_ARCH
    title: str
    activation: str = "silu"
    permuted: bool = False
    """Whether rotary positions turn neighbouring rows of q and k, where transformers turns the two halves of a head."""
    norm_offset: float = 0.0
    """What is added to the weights of norms: Gemma computes with 1 + weight."""
    windows: bool = False
    """Whether its sliding windows are computed."""
    ropes: tuple[str, ...] = ("default", "linear")


ARCHITECTURES: Table[Architecture] = Table(
    "GGUF architecture",
    {
        "llama": Architecture(
            gguf.MODEL_ARCH.LLAMA, "Llama", permuted=True, ropes=("default", "linear", "llama3", "yarn")
        ),
        "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, "Mistral", permuted=True),
        "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, "Qwen2", ropes=("default", "linear", "yarn")),
        "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, "Qwen3", ropes=("default", "linear", "yarn")),
        "gemma3_text": Architecture(
            gguf.MODEL_ARCH.GEMMA3, "Gemma 3", activation="gelu_pytorch_tanh", norm_offset=1.0, windows=True
        ),
        "phi3": Architecture(gguf.MODEL_ARCH.PHI3, "Phi-3", ropes=("default", "longrope")),
    },
)


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's configuration. Raises ModelError where llama.cpp has none, or computes it otherwise."""
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES:
        known = ", ".join(architecture.title for architecture in ARCHITECTURES.values())
        raise ModelError(
            f"a GGUF file of {config.model_type!r} can't be written; known: {known}",
            fix="export with --to hf, and convert that folder with llama.cpp's own script",
        )
    found = ARCHITECTURES[text.model_type]
    activation = getattr(text, "hidden_activation", None) or text.hidden_act
    kinds = {str(one.get("rope_type", "default")) for one in _ropes(text).values()}
    scalar = getattr(text, NEUTRAL_QUERY, None)
    layers = getattr(text, "layer_types", None)
    otherwise = (
        f"the activation {activation!r}"
        if activation != found.activation
        else f"rotary positions of the type {min(kinds - {*found.ropes})!r}"
        if kinds - {*found.ropes}
        else f"{NEUTRAL_QUERY} {scalar}"
        if found.windows and scalar not in (None, _head_dim(text))
        else f"layer_types of another period than {SWA_PERIOD}"
        if found.windows and layers is not None and layers != _layer_types(len(layers))
        else "logits with a cap"
        if getattr(text, "final_logit_softcapping", None) or getattr(text, "attn_logit_softcapping", None)
        else "attention in both directions"
        if getattr(text, "use_bidirectional_attention", False)
        else None
    )
    if otherwise is not None:
        raise ModelError(
            f"this model has {otherwise}, which llama.cpp does not compute for {found.title}", fix="export with --to hf"
        )
    return found


def _layer_types(count: int) -> list[str]:
    return ["sliding_attention" if (k + 1) % SWA_PERIOD else "full_attention" for k in range(count)]


def _ropes(text: Any) -> dict[str, dict[str, Any]]:
    """Parameters of rotary positions by type of layer; "" = of all."""
    given = dict(text.rope_parameters or {})
    return given if "full_attention" in given else {"": given}


def _head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


# ---- metadata --------------------------------------------------------------------------------------------------------


def describe(writer: gguf.GGUFWriter, config: Any) -> tuple[str, ...]:
    """Write what llama.cpp must know of a model beside its tensors; returns what a user must know of it."""
    architecture, text = architecture_of(config), config.get_text_config()
    head_dim, heads = _head_dim(text), text.num_attention_heads
    window, context = _window(text), text.max_position_embeddings
    notes = []
    if window is not None and not architecture.windows and window < context:
        notes.append(
            f"llama.cpp computes no sliding window for {architecture.title}: the file says {window:,} tokens of context, up to which there is no difference"
        )
        context = window
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(text, "num_key_value_heads", None) or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    if window is not None and architecture.windows:
        writer.add_sliding_window(window)
    elif architecture.key == gguf.MODEL_ARCH.PHI3:
        writer.add_sliding_window(0)
    ropes = _ropes(text)
    rope = ropes.get("full_attention", ropes.get("", {}))
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    original = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
    match rope.get("rope_type", "default"):
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(original or text.max_position_embeddings)
            writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
            writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
        case "longrope":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(float(ROPE_INIT_FUNCTIONS["longrope"](text, torch.device("cpu"))[1]))
            notes.append(
                f"llama.cpp takes the long rotary factors when its context is larger than {original:,} tokens, transformers when the text is"
            )
    return tuple(notes)


def _window(text: Any) -> int | None:
    """The sliding window of some layer; None where there is none."""
    window, layers = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    return int(window) if window and (layers is None or "sliding_attention" in layers) else None


# ---- tensors ---------------------------------------------------------------------------------------------------------


class Names:
    """From names of tensors in transformers to those in a GGUF file."""

    def __init__(self, config: Any) -> None:
        self._map = gguf.get_tensor_name_map(architecture_of(config).key, config.get_text_config().num_hidden_layers)

    def __call__(self, name: str) -> str:
        """The name in the file. Raises ModelError for a tensor that llama.cpp has no name for."""
        plain = name.replace(".language_model.", ".")
        found: str | None = self._map.get_name(plain, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"llama.cpp has no tensor for {name}", fix="export with --to hf")
        return found


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a GGUF file by name, still in memory of the model; those that are laid out anew are in `laid_out`."""
    inner = causal_lm(model)
    names, beside = Names(inner.config), tuple(f"{name}." for name in beside_text(inner))
    found = {}
    for name, tensor in inner.state_dict().items():
        head = name == "lm_head.weight" and inner.config.get_text_config().tie_word_embeddings
        if not (head or name.startswith(beside or "/")):
            found[names(name)] = tensor
    return found


def laid_out(name: str, tensor: Tensor, config: Any) -> Tensor:
    """A tensor as llama.cpp wants it, by its name in the file, in fp32."""
    architecture, text = architecture_of(config), config.get_text_config()
    tensor = tensor.detach().to("cpu", torch.float32)
    if architecture.permuted and (heads := _rotated_heads(name, text)):
        return interleaved(tensor, heads)
    return tensor + architecture.norm_offset if name.endswith("_norm.weight") else tensor


def _rotated_heads(name: str, text: Any) -> int:
    """The heads whose rows rotary positions turn; 0 where they turn none."""
    if ".attn_q." in name:
        return int(text.num_attention_heads)
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) if ".attn_k." in name else 0


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads * d, ...] whose two halves of a head are rotated together, as rows whose neighbours are: 0, d/2, 1, d/2 + 1, ..."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def rotary_factors(config: Any) -> dict[str, Tensor]:
    """Tensors with what divides the frequencies of rotary positions, where they are not those of a formula llama.cpp knows."""
    text = config.get_text_config()
    rope = _ropes(text).get("", {})
    if rope.get("rope_type") == "llama3":
        frequencies = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))[0].double()
        steps = torch.arange(0, 2 * len(frequencies), 2, dtype=torch.float64) / (2 * len(frequencies))
        return {"rope_freqs.weight": (rope["rope_theta"] ** -steps / frequencies).float()}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"]) for kind in ("long", "short")}
    return {}
