"""Hinge loss: ask for a margin of 1 / beta and stop pushing once a pair has it.

    h = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)]
    L = max(0, 1 - beta h)

The calibration loss of SLiC-HF is max(0, delta - log pi(y_w|x) + log pi(y_l|x)) (Zhao et al. 2023, arXiv:2305.10425).
Liu et al. (2023, arXiv:2309.06657) put DPO's log-ratios in its place and call that hinge-norm; this is their form, and the
one TRL has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt

from posttrain.objectives import base
from posttrain.objectives.base import BaseObjective, Loss, PairLogps
from posttrain.references import NamesStage

if TYPE_CHECKING:
    from torch import Tensor


def hinge_losses(margins_P: Tensor, beta: float) -> Tensor:
    """The loss of every pair [P]. margins_P: h above, in nats [P]. At the kink the gradient is 0."""
    return (1 - beta * margins_P).relu()


@dataclass(frozen=True, kw_only=True)
class HingeObjective(BaseObjective):
    """Hinge loss on the log-ratios (SLiC, Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657)."""

    row_kind = "pairs"
    title = "the hinge loss (SLiC)"
    explanation = (
        "The loss is 1 less beta times the margin, and 0 from there on; while the policy still equals its reference it is 1. "
        f"The reward of a reply is beta times the log-probability it gained against the reference. {base.PAIR_WORDS} {base.KL_WORDS}"
    )
    needs_reference = True

    name: Literal["hinge"] = "hinge"
    beta: Annotated[float, Gt(0)] = 0.1
    """A pair is left alone once its margin reaches 1 / beta nats."""
    reference: Annotated[str, NamesStage("model")] | None = None
    """Weights to compare with: null = those the stage starts from; otherwise ``base`` or a train stage."""

    @property
    def untrained_loss(self) -> float | None:
        """1 while policy and reference are one model."""
        return 1.0

    def loss(self, policy: PairLogps, reference: PairLogps | None, step_pairs: int) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs."""
        ratios = base.log_ratios(policy, reference)
        chosen_P, rejected_P = ratios.chosen.sums_B, ratios.rejected.sums_B
        losses_P = hinge_losses(chosen_P - rejected_P, self.beta)
        rounding_P = self.beta * base.log_ratio_rounding(ratios)
        metrics = base.pair_metrics(policy, self.beta * chosen_P, self.beta * rejected_P, rounding_P)
        return Loss(losses_P.sum() / step_pairs, metrics)
