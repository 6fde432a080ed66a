"""Supervised fine-tuning: token-weighted negative log-likelihood.

    L = - sum_s w_s log p(y_s | y_<s)  /  sum over the whole optimizer step of w

The divisor is the weight of *all* micro-batches (and ranks) of the step, known before the first forward pass, so the
loss and its gradient do not depend on how the step is split. Dividing each micro-batch by its own count instead, as
gradient accumulation long did in the field, weights tokens of short micro-batches too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.objectives.base import BaseObjective, Loss

if TYPE_CHECKING:
    from torch import Tensor


def sft_loss(logps_S: Tensor, weights_S: Tensor, step_weight: float) -> Tensor:
    """This micro-batch's share of the step's loss (scalar). Sum the shares of a step to get its loss.

    logps_S: log-probabilities of the supervised tokens [S], fp32. weights_S: their loss weights [S].
    step_weight: sum of the weights of the whole optimizer step.
    """
    return -(weights_S * logps_S).sum() / step_weight


@dataclass(frozen=True, kw_only=True)
class SftObjective(BaseObjective):
    """Imitate the assistant turns: mean negative log-likelihood over all supervised tokens of a step."""

    row_kind = "conversations"
    title = "SFT"
    explanation = "Losses are in nats per supervised token."
    curves = ()
    loss_unit = "nats per token"
    default_learning_rate = 2e-4

    name: Literal["sft"] = "sft"

    def loss(self, logps_S: Tensor, weights_S: Tensor, step_weight: float) -> Loss:
        """This micro-batch's share of the loss of a step (see `sft_loss`)."""
        return Loss(sft_loss(logps_S, weights_S, step_weight))
