"""IPO, worked by hand."""

from __future__ import annotations

import pytest
import torch

from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.ipo import IpoObjective, ipo_losses

# Chosen: -4 against -10, log-ratio 6 over 3 tokens, 2 a token. Rejected: -9 against -5, -4 over 4 tokens, -1 a token.
# The margin is 3 a token, 10 in all; with beta 0.1 the target is 1 / 0.2 = 5.
THREE, FOUR = torch.tensor([3.0]), torch.tensor([4.0])
POLICY = PairLogps(SequenceLogps(torch.tensor([-4.0]), THREE), SequenceLogps(torch.tensor([-9.0]), FOUR))
REFERENCE = PairLogps(SequenceLogps(torch.tensor([-10.0]), THREE), SequenceLogps(torch.tensor([-5.0]), FOUR))


@pytest.mark.parametrize(
    ("objective", "value", "rewards"),
    [
        (IpoObjective(), 4.0, [0.2, -0.1, 0.3]),  # (3 - 5)^2
        (IpoObjective(average="sum"), 25.0, [0.6, -0.4, 1.0]),  # (10 - 5)^2
        (IpoObjective(beta=0.25, average="sum"), 64.0, [1.5, -1.0, 2.5]),  # (10 - 2)^2
    ],
)
def test_by_hand(objective: IpoObjective, value: float, rewards: list[float]) -> None:
    loss = objective.loss(POLICY, REFERENCE, 2)
    assert loss.share.item() == pytest.approx(value / 2, rel=1e-6)
    found = [loss.metrics[f"rewards/{name}"].total.item() for name in ("chosen", "rejected", "margins")]
    assert found == pytest.approx(rewards, rel=1e-6)
    assert loss.metrics["logps/chosen"].total.item() == -4.0  # a sum, whatever the objective averages


def test_it_pulls_towards_the_target_from_both_sides() -> None:
    h = torch.tensor([0.0, 5.0, 7.0], requires_grad=True)
    ipo_losses(h, 0.1).sum().backward()
    assert h.grad is not None
    assert h.grad.tolist() == [-10.0, 0.0, 4.0]  # 2 (h - 5)
