"""The Bradley-Terry reward model, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives.reward import RewardObjective

LN_3 = math.log(3)
# Two pairs: rewards 1 + ln 3 over 1, margin ln 3; rewards -2 over -2, margin 0.
CHOSEN, REJECTED = torch.tensor([1 + LN_3, -2.0]), torch.tensor([1.0, -2.0])
MARGINS = torch.tensor([LN_3, 0.0])


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (RewardObjective(), math.log(4 / 3) + math.log(2)),  # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2
        (RewardObjective(use_margin=True), 2 * math.log(2)),  # the first pair has just its margin
        # (2 + ln 3)^2 + (-4)^2 more, a hundredth of it
        (RewardObjective(centering=0.01), math.log(4 / 3) + math.log(2) + 0.01 * ((2 + LN_3) ** 2 + 16)),
    ],
)
def test_by_hand(objective: RewardObjective, value: float) -> None:
    loss = objective.loss(CHOSEN, REJECTED, MARGINS, 5)
    assert loss.share.item() == pytest.approx(value / 5, rel=1e-6)
    assert {name: m.total.item() for name, m in loss.metrics.items()} == pytest.approx(
        {
            "rewards/chosen": LN_3 - 1,
            "rewards/rejected": -1.0,
            "rewards/margins": LN_3,
            "rewards/accuracies": 1.5,
            "rewards/saturated": 0.0,
        }
    )


def test_without_centring_only_differences_count() -> None:
    moved = RewardObjective().loss(CHOSEN + 100, REJECTED + 100, MARGINS, 2).share.item()
    assert moved == pytest.approx(RewardObjective().loss(CHOSEN, REJECTED, MARGINS, 2).share.item(), rel=1e-5)
    centred = RewardObjective(centering=0.01)
    assert centred.loss(CHOSEN + 100, REJECTED + 100, MARGINS, 2).share.item() > 100


def test_gradient_by_hand() -> None:
    chosen, rejected = torch.tensor([1.5], requires_grad=True), torch.tensor([1.5], requires_grad=True)
    RewardObjective(centering=0.1).loss(chosen, rejected, torch.zeros(1), 1).share.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.5 + 2 * 0.1 * 3)  # -sigmoid(0) + 2 c (r_w + r_l)
    assert rejected.grad.item() == pytest.approx(0.5 + 2 * 0.1 * 3)
