"""Reward models: a causal model's body with a score head in place of the output head, in HF's sequence-classification form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posttrain.encode.collate import Batch
from posttrain.model.forward import causal_lm, computing_in, final_hidden


def score_head(model: nn.Module) -> nn.Module | None:
    """The score head of a reward model; None for a language model."""
    head = getattr(causal_lm(model), "score", None)
    return head if isinstance(head, nn.Module) else None


def batch_rewards(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> Tensor:
    """The reward [B] of every sequence of a batch made of `scored_at_end` sequences, fp32, with gradient where it trains."""
    head = score_head(model)
    assert head is not None, "a reward objective trains a model with a score head"
    device = next(model.parameters()).device
    ids_T, scored_B = (torch.from_numpy(a).to(device) for a in (batch.ids_T, batch.predict_S))
    with computing_in(model, compute_dtype):
        hidden_TD = final_hidden(model, ids_T, batch.segments)
    rewards: Tensor = head(hidden_TD[scored_B].float())
    return rewards[:, 0]
