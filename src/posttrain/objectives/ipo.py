"""Identity Preference Optimization: a squared loss with a target for the margin, so that it can't grow for ever.

    h = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)]
    L = (h - 1 / (2 beta))^2                                         (Azar et al. 2023, arXiv:2310.12036, eq. 17)

beta is the paper's tau. The paper writes log pi(y|x) of a whole reply; its authors later told implementers that they had
averaged over the reply's tokens, and that is the default here (docs/decisions/009-ipo-averages-over-tokens.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from posttrain.objectives import base
from posttrain.objectives.base import BaseObjective, Loss, PairLogps
from posttrain.references import NamesStage
from posttrain.types import LOGP_ROUNDING

if TYPE_CHECKING:
    from torch import Tensor


def ipo_losses(margins_P: Tensor, beta: float) -> Tensor:
    """The loss of every pair [P]. margins_P: h above, in nats or nats per token [P]."""
    return (margins_P - 1 / (2 * beta)) ** 2


@dataclass(frozen=True, kw_only=True)
class IpoObjective(BaseObjective):
    """Identity Preference Optimization (Azar et al. 2023, arXiv:2310.12036)."""

    row_kind = "pairs"
    title = "IPO"
    explanation = (
        "The loss is the squared distance of the margin from its target 1 / (2 beta). The reward of a reply is beta times the "
        f"log-probability it gained against the reference, a token or as a sum (see the settings). {base.PAIR_WORDS} {base.KL_WORDS}"
    )
    setting_words: ClassVar[Mapping[str, str]] = {"average": "averaged over"}
    needs_reference = True

    name: Literal["ipo"] = "ipo"
    beta: Annotated[float, Gt(0)] = 0.1
    """The paper's tau: the margin is drawn towards 1 / (2 beta)."""
    average: Literal["tokens", "sum"] = "tokens"
    """Log-ratio of a reply: ``tokens`` = mean over its tokens, ``sum`` = sum over them."""
    reference: Annotated[str, NamesStage("model")] | None = None
    """Weights to compare with: null = those the stage starts from; otherwise ``base`` or a train stage."""

    @property
    def untrained_loss(self) -> float | None:
        """The square of the target while policy and reference are one model."""
        return (1 / (2 * self.beta)) ** 2

    def loss(self, policy: PairLogps, reference: PairLogps | None, step_pairs: int) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs."""
        ratios = base.log_ratios(policy, reference)
        rounding: Tensor | float
        if self.average == "tokens":
            chosen_P, rejected_P = ratios.chosen.means_B, ratios.rejected.means_B
            rounding = 2 * LOGP_ROUNDING  # a token of each side
        else:
            chosen_P, rejected_P = ratios.chosen.sums_B, ratios.rejected.sums_B
            rounding = base.log_ratio_rounding(ratios)
        losses_P = ipo_losses(chosen_P - rejected_P, self.beta)
        metrics = base.pair_metrics(policy, self.beta * chosen_P, self.beta * rejected_P, self.beta * rounding)
        return Loss(losses_P.sum() / step_pairs, metrics)
