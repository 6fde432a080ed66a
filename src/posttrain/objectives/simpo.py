"""Simple Preference Optimization: the length-normalised log-probability is the reward; there is no reference.

    L = - log sigmoid(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma)
                                                                     (Meng et al. 2024, arXiv:2405.14734, eq. 6)

gamma, the margin that is asked for, is given as gamma / beta, as the paper tunes it: in nats per token it means the same
whatever beta is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from posttrain.objectives import base
from posttrain.objectives.base import BaseObjective, Loss, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


def simpo_losses(margins_P: Tensor, beta: float, gamma_beta_ratio: float) -> Tensor:
    """The loss of every pair [P]. margins_P: mean log-probability of the chosen reply less that of the rejected one [P]."""
    return -base.log_sigmoid(beta * (margins_P - gamma_beta_ratio))


@dataclass(frozen=True, kw_only=True)
class SimpoObjective(BaseObjective):
    """Simple Preference Optimization (Meng et al. 2024, arXiv:2405.14734). Loads no reference."""

    row_kind = "pairs"
    title = "SimPO"
    explanation = (
        "The loss is the negative log-sigmoid of the margin less gamma. The reward of a reply is beta times its mean log-probability a "
        f"token. {base.PAIR_WORDS}"
    )
    curves = base.LEVEL_CURVES
    setting_words: ClassVar[Mapping[str, str]] = {"gamma_beta_ratio": "gamma/beta", "sft_weight": "SFT weight"}
    default_learning_rate = 1e-6

    name: Literal["simpo"] = "simpo"
    beta: Annotated[float, Gt(0)] = 2.0
    """Scale of the reward; the paper uses 2 to 10 (not DPO's 0.1: rewards are per token)."""
    gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5
    """Margin asked for, gamma / beta, in nats per token; the paper uses 0.3 to 1."""
    sft_weight: Annotated[float, Ge(0)] = 0.0
    """Add this times the chosen reply's negative log-likelihood per token; 0 as in the paper."""

    def loss(self, policy: PairLogps, reference: PairLogps | None, step_pairs: int) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs. ``reference`` is not read."""
        chosen_P, rejected_P = policy.chosen.means_B, policy.rejected.means_B
        losses_P = simpo_losses(chosen_P - rejected_P, self.beta, self.gamma_beta_ratio)
        metrics = base.pair_metrics(policy, self.beta * chosen_P, self.beta * rejected_P)
        if self.sft_weight:
            losses_P = losses_P - self.sft_weight * chosen_P
            metrics["nll"] = base.metric(-chosen_P)
        metrics |= base.saturation(self.beta * (chosen_P - rejected_P - self.gamma_beta_ratio))
        return Loss(losses_P.sum() / step_pairs, metrics)
