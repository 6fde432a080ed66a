"""ORPO, worked by hand, and finite up to certainty."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.orpo import OrpoObjective, log_odds

# Two tokens each of 3/4 and 1/4: odds 3 and 1/3, log odds ratio ln 9, sigmoid 9/10.
# With the prompt, 5 tokens of 1/2 each on average.
TWO = torch.tensor([2.0])
POLICY = PairLogps(
    SequenceLogps(torch.tensor([2 * math.log(3 / 4)]), TWO),
    SequenceLogps(torch.tensor([2 * math.log(1 / 4)]), TWO),
    SequenceLogps(torch.tensor([5 * math.log(1 / 2)]), torch.tensor([5.0])),
)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (OrpoObjective(), math.log(4 / 3) + 0.1 * math.log(10 / 9)),
        (OrpoObjective(weight=2.0), math.log(4 / 3) + 2 * math.log(10 / 9)),
        (OrpoObjective(nll="conversation"), math.log(2) + 0.1 * math.log(10 / 9)),
    ],
)
def test_by_hand(objective: OrpoObjective, value: float) -> None:
    assert objective.loss(POLICY, None, 3).share.item() == pytest.approx(value / 3, rel=1e-6)


def test_metrics_by_hand() -> None:
    metrics = OrpoObjective().loss(POLICY, None, 3).metrics
    assert {name: m.total.item() for name, m in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": 0.1 * math.log(3 / 4),
            "rewards/rejected": 0.1 * math.log(1 / 4),
            "rewards/margins": 0.1 * math.log(3),
            "rewards/accuracies": 1.0,
            "logps/chosen": 2 * math.log(3 / 4),
            "logps/rejected": 2 * math.log(1 / 4),
            "nll": math.log(4 / 3),
        }
    )


def test_the_prompt_is_needed_only_where_it_is_imitated() -> None:
    replies_only = POLICY._replace(conversation=None)
    assert not OrpoObjective().supervises_prompt
    OrpoObjective().loss(replies_only, None, 1)
    assert OrpoObjective(nll="conversation").supervises_prompt
    with pytest.raises(ValueError, match="conversation"):
        OrpoObjective(nll="conversation").loss(replies_only, None, 1)


@pytest.mark.parametrize("mean", [0.0, -1e-9, -1e-7, -1e-6, -1e-3, -1.0, -1e4])
@pytest.mark.parametrize("other", [0.0, -1e-6, -1.0, -1e4])
@pytest.mark.parametrize("certain_side", ["chosen", "rejected"])
def test_value_and_gradient_are_finite_up_to_certainty(mean: float, other: float, certain_side: str) -> None:
    sums = {"chosen": torch.tensor([other]), "rejected": torch.tensor([other]), certain_side: torch.tensor([mean])}
    leaves = {side: tensor.requires_grad_() for side, tensor in sums.items()}
    one = torch.ones(1)
    policy = PairLogps(SequenceLogps(leaves["chosen"], one), SequenceLogps(leaves["rejected"], one))
    share = OrpoObjective().loss(policy, None, 1).share
    share.backward()
    assert math.isfinite(share.item())
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves.values())


def test_the_gradient_of_the_log_odds_is_right_where_the_naive_form_has_lost_it() -> None:
    # d log odds / d l = 1 / (1 - P) with 1 - P = 1e-6; log(1 - exp(l)) in fp32 sees 1 - P = 9.54e-7, 5% off.
    mean = torch.tensor([-1e-6], requires_grad=True)
    log_odds(mean).sum().backward()
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(1 / -math.expm1(-1e-6), rel=1e-6)
    naive = torch.tensor([-1e-6], requires_grad=True)
    (naive - (1 - naive.exp()).log()).sum().backward()
    assert naive.grad is not None
    assert abs(naive.grad.item() / mean.grad.item() - 1) > 0.01
