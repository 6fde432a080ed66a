"""How much arithmetic a training step needs, to say what share of the machine's matrix-product peak it reaches."""

from __future__ import annotations

from torch import nn

from posttrain.encode.collate import Batch
from posttrain.model.load import causal_lm, output_head
from posttrain.model.reward import score_head


def step_flops(model: nn.Module, batch: Batch) -> float:
    """Floating-point operations of one micro-batch's forward and backward pass.

    Counted are the necessary matrix products only: linear layers (2 per weight and token forward, 2 backward to the
    activations, 2 more where the weight itself trains), causal attention (one product for every query and key at or before it, forward once and backward
    twice), and the output head at supervised tokens. Recomputation is not counted: it is not progress.
    """
    segments, supervised = batch.segments, len(batch.predict_S)
    tokens = sum(segments.lengths)
    head_VD = output_head(model)[0] if score_head(model) is None else None
    per_token = 0.0
    for module in causal_lm(model).get_decoder().modules():
        if isinstance(module, nn.Linear):
            per_token += module.weight.numel() * (6 if module.weight.requires_grad else 4)
    config = causal_lm(model).config.get_text_config()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    pairs = sum(n * (d + n / 2) for n, d in zip(segments.lengths, segments.depths, strict=True))
    attention = 12.0 * config.num_hidden_layers * width * pairs
    # A score head is a few hundred numbers.
    head = 0.0 if head_VD is None else supervised * head_VD.numel() * (6.0 if head_VD.requires_grad else 4.0)
    return float(tokens * per_token + attention + head)
