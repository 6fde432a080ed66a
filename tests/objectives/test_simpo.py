"""SimPO, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.simpo import SimpoObjective


def pair(chosen: float, rejected: float) -> PairLogps:
    """A pair with these mean log-probabilities; the chosen reply has 4 tokens, the rejected one 10."""
    return PairLogps(
        SequenceLogps(torch.tensor([4 * chosen], requires_grad=True), torch.tensor([4.0])),
        SequenceLogps(torch.tensor([10 * rejected], requires_grad=True), torch.tensor([10.0])),
    )


@pytest.mark.parametrize(
    ("objective", "margin", "value"),
    [
        # beta (margin - gamma/beta) = 2 (1/2 + ln(3)/2 - 1/2) = ln 3, sigmoid 3/4
        (SimpoObjective(), 0.5 + math.log(3) / 2, math.log(4 / 3)),
        # The margin that is asked for, no more: ln 2. Without one to ask for, equal replies: ln 2.
        (SimpoObjective(beta=10.0, gamma_beta_ratio=0.3), 0.3, math.log(2)),
        (SimpoObjective(gamma_beta_ratio=0.0), 0.0, math.log(2)),
        # beta (0 - 1) = -ln 3 for beta = ln 3: sigmoid 1/4
        (SimpoObjective(beta=math.log(3), gamma_beta_ratio=1.0), 0.0, math.log(4)),
        # chosen costs 1 nat a token
        (SimpoObjective(sft_weight=0.5), 0.5, math.log(2) + 0.5),
    ],
)
def test_by_hand(objective: SimpoObjective, margin: float, value: float) -> None:
    assert objective.loss(pair(-1.0, -1.0 - margin), None, 1).share.item() == pytest.approx(value, rel=1e-6)


def test_the_gradient_of_a_token_is_shared_by_the_length_of_its_reply() -> None:
    policy = pair(-1.0, -1.5)
    SimpoObjective().loss(policy, None, 1).share.backward()  # at the margin asked for: sigmoid(0) = 1/2
    assert policy.chosen.sums_B.grad is not None
    assert policy.rejected.sums_B.grad is not None
    assert policy.chosen.sums_B.grad.item() == pytest.approx(-2 / 2 / 4)  # beta / 2 over 4 tokens
    assert policy.rejected.sums_B.grad.item() == pytest.approx(2 / 2 / 10)


def test_metrics_by_hand() -> None:
    metrics = SimpoObjective(beta=2.0, sft_weight=0.5).loss(pair(-1.0, -1.5), None, 1).metrics
    assert {name: m.total.item() for name, m in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": -2.0,
            "rewards/rejected": -3.0,
            "rewards/margins": 1.0,
            "rewards/accuracies": 1.0,
            "logps/chosen": -4.0,
            "logps/rejected": -15.0,
            "nll": 1.0,
            "rewards/saturated": 0.0,
        }
    )
