"""How much arithmetic a training step needs, to say what share of the machine's matrix-product peak it reaches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from posttrain.model.load import causal_lm, output_head


def step_flops(model: nn.Module, lengths: Sequence[int], supervised: int) -> float:
    """Floating-point operations of one step's forward and backward pass over packed sequences.

    Counted are the necessary matrix products only: linear layers (2 per weight and token forward, 2 backward to the
    activations, 2 more where the weight itself trains), causal attention (half of the square, forward once and backward
    twice), and the output head at supervised tokens. Recomputation is not counted: it is not progress.
    """
    tokens = sum(lengths)
    head_VD, _ = output_head(model)
    per_token = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not head_VD:
            per_token += module.weight.numel() * (6 if module.weight.requires_grad else 4)
    config = causal_lm(model).config.get_text_config()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = 6.0 * config.num_hidden_layers * width * sum(length * length for length in lengths)
    head: float = supervised * head_VD.numel() * (6 if head_VD.requires_grad else 4)
    return float(tokens * per_token + attention + head)
