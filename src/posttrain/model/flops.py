"""How much arithmetic a training step needs, to say what share of the machine's matrix-product peak it reaches."""

from __future__ import annotations

from torch import nn

from posttrain.encode.collate import Batch
from posttrain.model.forward import body, causal_lm
from posttrain.model.reward import score_head


def step_flops(model: nn.Module, batch: Batch) -> float:
    """Floating-point operations of one micro-batch's forward and backward pass.

    Counted are the necessary matrix products only: linear layers (2 per weight and token forward, 2 backward to the
    activations, 2 more where the weight itself trains), causal attention (one product for every query and key at or before it, forward once and backward
    twice), and the output head at supervised tokens. Recomputation is not counted: it is not progress.
    """
    segments, supervised = batch.segments, len(batch.predict_S)
    tokens, trunk = sum(segments.lengths), body(model)
    per_token = 0.0
    for module in trunk.modules():
        if isinstance(module, nn.Linear):
            per_token += module.weight.numel() * (6 if module.weight.requires_grad else 4)
    config = causal_lm(model).config.get_text_config()
    heads, layers = _number(config, "num_attention_heads"), _number(config, "num_hidden_layers")
    width = heads * (_number(config, "head_dim") or _number(config, "hidden_size") / max(heads, 1))
    pairs = sum(n * (d + n / 2) for n, d in zip(segments.lengths, segments.depths, strict=True))
    attention = 12.0 * layers * width * pairs
    # A score head is a few hundred numbers.
    weight = getattr(causal_lm(model).get_output_embeddings(), "weight", None) if score_head(model) is None else None
    head = 0.0 if weight is None else supervised * weight.numel() * (6.0 if weight.requires_grad else 4.0)
    return float(tokens * per_token + attention + head)


def _number(config: object, name: str) -> float:
    """A number of a configuration; 0 where there is none: this count is for display, so it is never an error.

    A configuration may raise what it likes where a number is one for each layer (Gemma 4).
    """
    try:
        value = getattr(config, name, None)
    except Exception:
        return 0.0
    return float(value) if isinstance(value, int | float) else 0.0
