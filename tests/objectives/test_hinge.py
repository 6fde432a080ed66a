"""The hinge loss, worked by hand."""

from __future__ import annotations

import pytest
import torch

from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.hinge import HingeObjective, hinge_losses


def test_by_hand() -> None:
    # Log-ratios: chosen -7 - -9 = 2 and -20 - -8 = -12; rejected -5 - -3 = -2 and -2 - -2 = 0. Margins 4 and -12.
    # With beta 0.1: 1 - 0.4 = 0.6 and 1 + 1.2 = 2.2, 2.8 in all, over a step of 4 pairs 0.7.
    counts = torch.tensor([5.0, 6.0])
    policy = PairLogps(
        SequenceLogps(torch.tensor([-7.0, -20.0]), counts), SequenceLogps(torch.tensor([-5.0, -2.0]), counts)
    )
    reference = PairLogps(
        SequenceLogps(torch.tensor([-9.0, -8.0]), counts), SequenceLogps(torch.tensor([-3.0, -2.0]), counts)
    )
    loss = HingeObjective().loss(policy, reference, 4)
    assert loss.share.item() == pytest.approx(0.7, rel=1e-6)
    assert {name: m.total.item() for name, m in loss.metrics.items()} == pytest.approx(
        {
            "rewards/chosen": -1.0,  # 0.1 (2 - 12)
            "rewards/rejected": -0.2,  # 0.1 (-2 + 0)
            "rewards/margins": -0.8,
            "rewards/accuracies": 1.0,
            "logps/chosen": -27.0,
            "logps/rejected": -7.0,
        }
    )


def test_a_pair_with_its_margin_is_left_alone() -> None:
    # beta = 1/4 asks for 4 nats. Below: slope -1/4; at the kink and above: nothing.
    h = torch.tensor([-8.0, 3.5, 4.0, 9.0], requires_grad=True)
    losses = hinge_losses(h, 0.25)
    losses.sum().backward()
    assert losses.tolist() == [3.0, 0.125, 0.0, 0.0]
    assert h.grad is not None
    assert h.grad.tolist() == [-0.25, -0.25, 0.0, 0.0]
