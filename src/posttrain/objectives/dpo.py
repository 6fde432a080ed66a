"""Direct Preference Optimization: raise the chosen reply above the rejected one, as seen from a reference.

    h = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)]
    L = - log sigmoid(beta h)                                        (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)

Where a share e of the labels is the wrong way round:

    conservative   L = - (1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
                   (Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO")
    robust         L = [- (1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2 e)
                   (Chowdhury et al. 2024, arXiv:2403.00409, the unbiased loss of section 3)

The conservative loss has its minimum where sigmoid(beta h) = 1 - e and pulls wider margins back. The robust loss is, in
expectation over the flips, the loss of the clean labels; of a single pair it falls without limit as h grows.

    RPO            L + alpha * (- log pi(y_w|x)) / |y_w|             (Pang et al. 2024, arXiv:2404.19733, eq. 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from posttrain.objectives import base
from posttrain.objectives.base import BaseObjective, Loss, PairLogps
from posttrain.references import NamesStage

if TYPE_CHECKING:
    from torch import Tensor


def dpo_losses(margins_P: Tensor, beta: float, label_smoothing: float | Tensor = 0.0, robust: bool = False) -> Tensor:
    """The loss of every pair [P]. margins_P: h above, in nats [P]. label_smoothing: e above, one or that of each pair [P]."""
    as_labelled_P = -base.log_sigmoid(beta * margins_P)
    flipped_P = -base.log_sigmoid(-beta * margins_P)
    if robust:
        return ((1 - label_smoothing) * as_labelled_P - label_smoothing * flipped_P) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * as_labelled_P + label_smoothing * flipped_P


@dataclass(frozen=True, kw_only=True)
class DpoObjective(BaseObjective):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290) and its variants for noisy labels."""

    row_kind = "pairs"
    title = "DPO"
    explanation = (
        "The loss is the negative log-sigmoid of beta times the margin; while the policy still equals its reference it is ln 2 = 0.693. "
        f"The reward of a reply is beta times the log-probability it gained against the reference. {base.PAIR_WORDS} {base.KL_WORDS}"
    )
    setting_words: ClassVar[Mapping[str, str]] = {"sft_weight": "SFT weight"}
    needs_reference = True

    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Gt(0)] = 0.1
    """How strongly the policy is held to the reference; smaller lets it move further."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of pairs whose label is thought to be the wrong way round (conservative DPO)."""
    robust: bool = False
    """Correct for ``label_smoothing`` as Robust DPO does (arXiv:2403.00409) instead of conservatively."""
    sft_weight: Annotated[float, Ge(0)] = 0.0
    """Add this times the chosen reply's negative log-likelihood per token (RPO, arXiv:2404.19733, which uses 1)."""
    reference: Annotated[str, NamesStage("model")] | None = None
    """Weights to compare with: null = those the stage starts from; otherwise ``base`` or a train stage."""

    def __post_init__(self) -> None:
        if self.robust and self.label_smoothing == 0:
            raise ValueError("robust: true needs label_smoothing above 0, the share of wrong labels it corrects for")

    @property
    def untrained_loss(self) -> float | None:
        """ln 2 while policy and reference are one model."""
        return None if self.sft_weight else math.log(2)

    def loss(self, policy: PairLogps, reference: PairLogps | None, step_pairs: int) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs.

        The negative log-likelihood is a mean over each reply's tokens, then over pairs, so no pair counts more for being
        long and the value does not depend on the split. (TRL's ``sft`` term is a mean over all tokens of a micro-batch.)
        """
        ratios = base.log_ratios(policy, reference)
        chosen_P, rejected_P = ratios.chosen.sums_B, ratios.rejected.sums_B
        losses_P = dpo_losses(chosen_P - rejected_P, self.beta, self.label_smoothing, self.robust)
        rounding_P = self.beta * base.log_ratio_rounding(ratios)
        metrics = base.pair_metrics(policy, self.beta * chosen_P, self.beta * rejected_P, rounding_P)
        if self.sft_weight:
            nll_P = -policy.chosen.means_B
            losses_P = losses_P + self.sft_weight * nll_P
            metrics["nll"] = base.metric(nll_P)
        if not self.label_smoothing:  # with it wide margins are pulled back
            metrics |= base.saturation(self.beta * (chosen_P - rejected_P))
        return Loss(losses_P.sum() / step_pairs, metrics)
