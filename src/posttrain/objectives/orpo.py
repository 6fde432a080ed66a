"""Odds Ratio Preference Optimization: imitate the chosen reply and push its odds above the rejected one's, in one step.

    P(y|x)   = exp(log pi(y|x) / |y|)                                the geometric mean over the tokens
    odds(y)  = P(y|x) / (1 - P(y|x))
    L        = NLL(y_w) - lambda log sigmoid(log odds(y_w) - log odds(y_l))
                                                                     (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7)

log odds = l - log(1 - exp(l)) with l <= 0 the mean log-probability; ``log1mexp`` keeps it and its gradient finite for a
reply the model is certain of (l -> 0), where the naive form is infinite.

The paper's NLL is that of the reply. Its code can train on the prompt as well, and TRL always does: ``nll`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from posttrain.objectives import base
from posttrain.objectives.base import BaseObjective, Loss, PairLogps

if TYPE_CHECKING:
    from torch import Tensor


def log_odds(means_P: Tensor) -> Tensor:
    """log(P / (1 - P)) of P = exp(means_P) [P], finite up to P = 1."""
    return means_P - base.log1mexp(means_P)


def orpo_losses(chosen_P: Tensor, rejected_P: Tensor, weight: float) -> Tensor:
    """The odds-ratio term of every pair [P], without the NLL. chosen_P, rejected_P: mean log-probability of a token [P]."""
    return -weight * base.log_sigmoid(log_odds(chosen_P) - log_odds(rejected_P))


@dataclass(frozen=True, kw_only=True)
class OrpoObjective(BaseObjective):
    """Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691). Loads no reference."""

    row_kind = "pairs"
    title = "ORPO"
    explanation = (
        "The loss is the chosen reply's negative log-likelihood plus a penalty where its odds are not above those of the rejected one. "
        f"The reward of a reply is the weight times its mean log-probability a token. {base.PAIR_WORDS}"
    )
    curves = base.LEVEL_CURVES
    setting_words: ClassVar[Mapping[str, str]] = {"nll": "NLL of the"}

    name: Literal["orpo"] = "orpo"
    weight: Annotated[float, Gt(0)] = 0.1
    """The paper's lambda: weight of the odds-ratio term beside the negative log-likelihood."""
    nll: Literal["reply", "conversation"] = "reply"
    """What is imitated: the chosen ``reply``, or the ``conversation``, prompt and chosen reply, as TRL does."""

    @property
    def supervises_prompt(self) -> bool:
        """Whether ``PairLogps.conversation`` is needed."""
        return self.nll == "conversation"

    def loss(self, policy: PairLogps, reference: PairLogps | None, step_pairs: int) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs. ``reference`` is not read."""
        imitated = policy.conversation if self.supervises_prompt else policy.chosen
        if imitated is None:
            raise ValueError("nll: conversation needs the log-probabilities of prompt and chosen reply together")
        chosen_P, rejected_P, nll_P = policy.chosen.means_B, policy.rejected.means_B, -imitated.means_B
        losses_P = nll_P + orpo_losses(chosen_P, rejected_P, self.weight)
        metrics = base.pair_metrics(policy, self.weight * chosen_P, self.weight * rejected_P)
        return Loss(losses_P.sum() / step_pairs, {**metrics, "nll": base.metric(nll_P)})
