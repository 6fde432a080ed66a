"""Bradley-Terry reward model: a scalar per reply whose difference says how likely the chosen one is preferred.

L = - log sigmoid(r(x, y_w) - r(x, y_l))                         (Bradley and Terry 1952)
L = - log sigmoid(r(x, y_w) - r(x, y_l) - m)                     m the pair's margin: how clearly it was preferred
                                                                 (Touvron et al. 2023, Llama 2, arXiv:2307.09288, eq. 2)
+ c (r(x, y_w) + r(x, y_l))^2                                    rewards stay around 0, which differences alone leave open
                                                                 (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from posttrain.objectives import base
from posttrain.objectives.base import PAIR_WORDS, BaseObjective, Loss, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def reward_losses(
    chosen_P: Tensor, rejected_P: Tensor, margins_P: Tensor | float = 0.0, centering: float = 0.0
) -> Tensor:
    """The loss of every pair [P]. chosen_P, rejected_P: rewards r [P]. margins_P: m above [P]. centering: c above."""
    return -log_sigmoid(chosen_P - rejected_P - margins_P) + centering * (chosen_P + rejected_P) ** 2


@dataclass(frozen=True, kw_only=True)
class RewardObjective(BaseObjective):
    """A Bradley-Terry reward model: the model gets a score head in place of its output head."""

    row_kind = "pairs"
    title = "reward modelling"
    explanation = (
        "The loss is the negative log-sigmoid of the difference of both scores: ln 2 = 0.693 where they are equal. The reward of a reply "
        f"is the model's score. {PAIR_WORDS}"
    )
    setting_words: ClassVar[Mapping[str, str]] = {"use_margin": "margins of the rows"}
    head = "score"
    default_learning_rate = 1e-4

    name: Literal["reward"] = "reward"
    use_margin: bool = False
    """Ask for a difference of at least the pair's ``margin``, where the rows have one (Llama 2, arXiv:2307.09288)."""
    centering: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared sum of both rewards, which keeps rewards around 0 (arXiv:2312.09244; 0.01 is usual)."""

    @property
    def untrained_loss(self) -> float | None:
        """ln 2 while both sides have the same score."""
        return None if self.centering or self.use_margin else math.log(2)

    def loss(self, chosen_P: Tensor, rejected_P: Tensor, margins_P: Tensor, step_pairs: int) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs.

        chosen_P, rejected_P: rewards of both sides [P]. margins_P: the rows' margins, 0 where a row has none [P].
        """
        asked_P = margins_P if self.use_margin else 0.0
        losses_P = reward_losses(chosen_P, rejected_P, asked_P, self.centering)
        metrics = base.reward_metrics(chosen_P, rejected_P) | base.saturation(chosen_P - rejected_P - asked_P)
        return Loss(losses_P.sum() / step_pairs, metrics)
