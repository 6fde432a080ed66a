"""Online DPO: DPO on pairs of the policy's own replies, labelled while it learns.

    p = sigmoid((s_a - s_b) / tau)                       how likely a is preferred, from the scores of both
    L = p L_DPO(a over b) + (1 - p) L_DPO(b over a)      soft: the mean over labels drawn with p
                                                         (Guo et al. 2024, arXiv:2402.04792, with labels drawn or a judge's)

With soft or drawn labels the optimum is pi* proportional to pi_ref exp(s / (tau beta)), whatever pairs are looked at. A label that is
always that of the higher score has none: every step widens the margin of a pair that is decided already, until the best reply is
alone, and beta is only speed (tests/objectives/test_optima.py).

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt

from posttrain.objectives import base
from posttrain.objectives.base import BaseObjective, Curve, Loss, PairLogps
from posttrain.objectives.dpo import dpo_losses

if TYPE_CHECKING:
    from torch import Tensor

Labels = Literal["soft", "drawn", "hard"]


def wrong_label_shares(margins_P: Tensor, labels: Labels, temperature: float, drawn_P: Tensor) -> Tensor:
    """The weight of "the other reply is preferred" in the loss of each pair [P].

    margins_P: score of the first reply less that of the second, which is not higher. drawn_P: uniform numbers in [0, 1).
    """
    soft_P = (-margins_P / temperature).sigmoid()
    if labels == "soft":
        return soft_P
    if labels == "drawn":
        return (drawn_P < soft_P).to(soft_P.dtype)
    return soft_P * 0


@dataclass(frozen=True, kw_only=True)
class OnlineDpo(BaseObjective):
    """Online DPO (arXiv:2402.04792): pairs of the policy's own replies, labelled while it learns."""

    row_kind = "prompts"
    title = "Online DPO"
    explanation = (
        "Of two replies of its own the policy learns to prefer the one with the higher score, as surely as their scores differ. The loss is "
        f"ln 2 = 0.693 before the first step. {base.PAIR_WORDS}"
    )
    curves = (
        Curve("reward", "Reward", "reward", ("reward",), comparable=True),
        Curve("kl", "KL to the reference", "nats a token", ("kl",), comparable=True),
        Curve("entropy", "Surprise at its own tokens (entropy)", "nats a token", ("entropy",), from_zero=True),
        Curve("length", "Length of the replies", "tokens", ("length",), from_zero=True),
        Curve("signal", "Groups without signal", "percent", ("groups/equal",), scale=100.0, from_zero=True),
        Curve("cut", "Replies cut at the limit", "percent", ("replies/cut",), scale=100.0, from_zero=True),
        Curve("variety", "Distinct pairs of words", "share", ("distinct_2",)),
        *base.PAIR_CURVES[1:3],
    )
    default_learning_rate = 5e-6
    needs_reference = True

    name: Literal["online_dpo"] = "online_dpo"
    beta: Annotated[float, Gt(0)] = 0.1
    """How strongly the policy is held to the reference; smaller lets it move further."""
    labels: Labels = "soft"
    """``soft``: the mean over both labels, weighed by how likely each is; ``drawn``: one of them; ``hard``: the higher score is always
    preferred, which has no optimum."""
    label_temperature: Annotated[float, Gt(0)] = 1.0
    """By how much scores must differ to be sure: a difference of one temperature is preferred in 73% of cases."""
    pairs: Literal["best_worst", "first_two"] = "best_worst"
    """Which two of a prompt's replies are compared: the highest and the lowest score, or the first two. Equal scores and equal replies are dropped and counted."""

    @property
    def untrained_loss(self) -> float:
        """ln 2 while policy and reference are one model, whatever the labels."""
        return 0.6931471805599453

    def warnings(self) -> Iterator[str]:
        """What is known to be wrong with the settings."""
        if self.labels == "hard":
            yield "labels: hard has no optimum: beta is only speed, and the number of steps decides how far it goes"

    def loss(self, policy: PairLogps, reference: PairLogps, wrong_P: Tensor, step_pairs: float) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_pairs`` pairs. wrong_P: see `wrong_label_shares`."""
        ratios = base.log_ratios(policy, reference)
        chosen_P, rejected_P = ratios.chosen.sums_B, ratios.rejected.sums_B
        losses_P = dpo_losses(chosen_P - rejected_P, self.beta, wrong_P)
        rounding_P = self.beta * base.log_ratio_rounding(ratios)
        metrics = base.reward_metrics(self.beta * chosen_P, self.beta * rejected_P, rounding_P)
        return Loss(losses_P.sum() / step_pairs, metrics)
