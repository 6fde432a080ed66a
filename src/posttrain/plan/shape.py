"""What a ``config.json`` says of a model's size: its matrices by name, and with them every parameter.

Only decoders of the usual form are known: attention and a gated MLP between RMS norms, or experts in the MLP's place. A model of another
form is refused by name, for a wrong count would be worse than none. Of a model that sees or hears as well the language model is counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.errors import ModelError
from posttrain.table import did_you_mean


@dataclass(frozen=True, slots=True)
class Family:
    """What ``config.json`` leaves unsaid of a model type."""

    head_dim: int | None = None
    """Where the configuration has none; None: hidden size by heads."""
    kv_heads: int | None = None
    """Where the configuration has none; None: as many as query heads."""
    tied: bool = False
    """Whether input and output embedding are one where the configuration does not say."""
    qkv_bias: bool = False
    """Whether query, key and value have a bias whatever the configuration says."""
    attention_bias: bool = False
    """Whether ``attention_bias`` of the configuration counts: all four projections have a bias then."""
    mlp_bias: bool = False
    """Whether ``mlp_bias`` does."""
    head_norms: bool = False
    """Whether queries and keys are normed in every head."""
    wide_norms: bool = False
    """Whether queries and keys are normed over all heads at once."""
    norms: int = 2
    """Norms of the hidden size in a layer."""
    own_norm: bool = False
    """Whether its norm is of another form than weight * x / rms(x), so that the hot path leaves it alone."""
    joined: bool = False
    """Whether query, key and value are one matrix, and gate and up are another."""
    activation: str = "silu"
    """Where the configuration has none."""
    experts: str = ""
    """The configuration's word for the number of experts."""
    expert_width: str = "intermediate_size"
    """Its word for their width."""
    shared_gate: bool = False
    """Whether a shared expert stands beside the others, with a gate of its own."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(attention_bias=True, mlp_bias=True),
    "mistral": Family(),
    "granite": Family(attention_bias=True, mlp_bias=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(attention_bias=True, head_dim=128, head_norms=True),
    "gemma": Family(attention_bias=True, head_dim=256, tied=True, own_norm=True, activation="gelu"),
    "gemma2": Family(attention_bias=True, head_dim=256, tied=True, norms=4, own_norm=True, activation="gelu"),
    "gemma3_text": Family(
        attention_bias=True, head_dim=256, tied=True, head_norms=True, norms=4, own_norm=True, activation="gelu"
    ),
    "phi3": Family(joined=True),
    "olmo2": Family(attention_bias=True, wide_norms=True),
    "mixtral": Family(experts="num_local_experts"),
    "olmoe": Family(attention_bias=True, wide_norms=True, experts="num_experts"),
    "qwen2_moe": Family(
        qkv_bias=True,
        experts="num_experts",
        expert_width="moe_intermediate_size",
        shared_gate=True,
    ),
    "qwen3_moe": Family(
        attention_bias=True, head_norms=True, experts="num_experts", expert_width="moe_intermediate_size"
    ),
}
"""Model types whose parameters are counted; tests hold every one against the real model."""
PUBLISHED = "put the config.json there that the model was published with"


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [outputs, inputs] of a layer."""

    name: str
    """Within the layer: ``self_attn.q_proj``."""
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Numbers in the matrix."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """With the bias."""
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    linears: tuple[Linear, ...]
    """Those that an adapter reaches by ``all-linear``."""
    norms: int
    """Parameters of its norms."""
    inner: int
    """Width of the gated product that a token goes through: of the MLP, or of all experts that it is sent to."""
    experts: int = 0
    """Parameters of stacked experts, which are no linear layers."""
    active_experts: int = 0
    """Of these the ones that one token goes through."""
    gates: int = 0
    """Parameters of routers."""

    @property
    def parameters(self) -> int:
        """All of the layer."""
        return sum(one.parameters for one in self.linears) + self.norms + self.experts + self.gates

    @property
    def active(self) -> int:
        """Weights of matrix products that one token goes through."""
        return sum(one.weights for one in self.linears) + self.active_experts + self.gates


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A language model's sizes. ``query``: heads * head_dim; ``key``: key/value heads * head_dim, of keys and values each."""

    model_type: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    layers: tuple[Layer, ...]
    family: Family
    silu: bool
    """Whether the gated product is SiLU's, the only one the hot path has."""
    positions: int | None = None
    """Longest sequence of the configuration."""
    quantized: str | None = None
    """How the folder's weights are quantised already."""

    @property
    def query(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys of a token."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary * self.hidden

    @property
    def ends(self) -> int:
        """Parameters of embedding and output head; once where they are tied."""
        return self.embedding * (1 if self.tied else 2)

    @property
    def linear_weights(self) -> int:
        """Numbers in all linear layers of the blocks: what 4-bit training quantises."""
        return sum(one.weights for layer in self.layers for one in layer.linears)

    @property
    def parameters(self) -> int:
        """All of the language model."""
        return self.ends + self.hidden + sum(layer.parameters for layer in self.layers)

    @property
    def active(self) -> int:
        """Weights of matrix products that one token goes through, output head apart."""
        return sum(layer.active for layer in self.layers)

    def first_layers(self, count: int) -> ModelShape:
        """The same model with fewer layers."""
        return replace(self, layers=self.layers[:count])


def adapted(shape: ModelShape, targets: str | tuple[str, ...]) -> tuple[tuple[Linear, ...], ...]:
    """The linear layers that an adapter with these targets lies on, by layer, as PEFT chooses them."""
    return tuple(adapted_in(shape, number, targets) for number in range(len(shape.layers)))


def adapted_in(shape: ModelShape, number: int, targets: str | tuple[str, ...]) -> tuple[Linear, ...]:
    """Those of one layer.

    ``all-linear``: all of the blocks; another text: a regular expression for the whole name; several: endings of names.
    """

    def chosen(name: str) -> bool:
        if targets == "all-linear":
            return True
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    return tuple(one for one in shape.layers[number].linears if chosen(f"model.layers.{number}.{one.name}"))


def adapter_parameters(shape: ModelShape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> int:
    """Parameters of a LoRA adapter: rank * (inputs + outputs) of every layer it lies on."""
    return sum(rank * (one.inputs + one.outputs) for layer in adapted(shape, targets) for one in layer)


# ---- reading a configuration ---------------------------------------------------------------------------------------


def model_shape(config: Mapping[str, Any], where: str) -> ModelShape:
    """The sizes that a ``config.json`` tells. Raises ModelError, with ``where`` it lies, for an unknown type or a missing field."""
    text = _text_config(config)
    kind = text.get("model_type", config.get("model_type"))
    if kind is None:
        raise ModelError("config.json has no model_type", where=where, fix=PUBLISHED)
    family = FAMILIES.get(str(kind))
    if family is None:
        problem = f"the planner can't count a model of the type {kind!r}{did_you_mean(str(kind), FAMILIES)}"
        raise ModelError(problem, where=where, fix=f"it knows {', '.join(FAMILIES)}")

    def number(name: str, default: int | None = None) -> int:
        value = text.get(name, text.get("num_local_experts") if name == "num_experts" else None)
        if value is None and default is not None:
            return default
        if value is None:
            raise ModelError(f"config.json has no {name}", where=where, fix=PUBLISHED)
        if type(value) is not int or value < 1:
            raise ModelError(f"{name} of config.json must be a positive whole number, not {value!r}", where=where)
        return value

    hidden, heads, depth = number("hidden_size"), number("num_attention_heads"), number("num_hidden_layers")
    kv_heads = number("num_key_value_heads", family.kv_heads or heads)
    head_dim = number("head_dim", family.head_dim or max(1, hidden // heads))
    attention = _attention(
        family,
        hidden,
        heads * head_dim,
        kv_heads * head_dim,
        family.attention_bias and bool(text.get("attention_bias")),
    )
    norms = family.norms * hidden
    norms += 2 * head_dim if family.head_norms else 0
    norms += (heads + kv_heads) * head_dim if family.wide_norms else 0
    dense = _dense(family, hidden, family.mlp_bias and bool(text.get("mlp_bias")))
    layers = tuple(
        _expert_layer(family, attention, norms, hidden, number)
        if family.experts and _has_experts(text, index)
        else Layer((*attention, *dense(number("intermediate_size"))), norms, number("intermediate_size"))
        for index in range(depth)
    )
    activation = str(text.get("hidden_activation") or text.get("hidden_act") or family.activation)
    quantization = config.get("quantization_config")
    return ModelShape(
        str(kind),
        hidden,
        heads,
        kv_heads,
        head_dim,
        number("vocab_size"),
        bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", family.tied))),
        layers,
        family,
        activation in ("silu", "swish"),
        text.get("max_position_embeddings") if isinstance(text.get("max_position_embeddings"), int) else None,
        str(quantization.get("quant_method", "?")) if isinstance(quantization, Mapping) else None,
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, of a model of several senses."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return config
    outer = str(config.get("model_type"))
    inner = {"gemma3": "gemma3_text", "mistral3": "mistral"}.get(outer)
    return {"model_type": inner, **text} if inner else text


def _attention(family: Family, hidden: int, query: int, key: int, bias: bool) -> tuple[Linear, ...]:
    inward = bias or family.qkv_bias
    output = Linear("self_attn.o_proj", query, hidden, bias)
    if family.joined:
        return Linear("self_attn.qkv_proj", hidden, query + 2 * key), output
    sizes = {"q": query, "k": key, "v": key}
    return (*(Linear(f"self_attn.{name}_proj", hidden, size, inward) for name, size in sizes.items()), output)


def _dense(family: Family, hidden: int, bias: bool) -> Any:
    """Width -> the matrices of a gated MLP."""

    def matrices(width: int, under: str = "mlp") -> tuple[Linear, ...]:
        down = Linear(f"{under}.down_proj", width, hidden, bias)
        if family.joined:
            return Linear(f"{under}.gate_up_proj", hidden, 2 * width), down
        return (*(Linear(f"{under}.{name}_proj", hidden, width, bias) for name in ("gate", "up")), down)

    return matrices


def _has_experts(text: Mapping[str, Any], index: int) -> bool:
    """Whether a layer has experts: those of the sparse step that the configuration does not name as dense."""
    step = text.get("decoder_sparse_step") or 1
    return index not in (text.get("mlp_only_layers") or ()) and (index + 1) % step == 0


def _expert_layer(family: Family, attention: tuple[Linear, ...], norms: int, hidden: int, number: Any) -> Layer:
    count, used = number(family.experts), number("num_experts_per_tok", 2)
    width, beside = number(family.expert_width), number("shared_expert_intermediate_size") if family.shared_gate else 0
    shared = _dense(family, hidden, False)(beside, "mlp.shared_expert") if family.shared_gate else ()
    return Layer(
        (*attention, *shared),
        norms,
        width * used + beside,
        experts=3 * count * hidden * width,
        active_experts=3 * used * hidden * width,
        gates=count * hidden + (hidden if family.shared_gate else 0),
    )
