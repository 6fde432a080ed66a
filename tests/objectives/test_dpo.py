"""DPO and its variants, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.dpo import DpoObjective, dpo_losses

# The policy gives the chosen reply 3/8 and the rejected one 1/6, the reference 1/8 and 1/2. The log-ratios are ln 3 and -ln 3,
# h = ln 9. With beta = 1/2, beta h = ln 3, and sigmoid(ln 3) = 3 / (3 + 1) = 3/4.
THREE_TOKENS = torch.tensor([3.0])
POLICY = PairLogps(
    SequenceLogps(torch.tensor([math.log(3 / 8)]), THREE_TOKENS),
    SequenceLogps(torch.tensor([math.log(1 / 6)]), THREE_TOKENS),
)
REFERENCE = PairLogps(
    SequenceLogps(torch.tensor([math.log(1 / 8)]), THREE_TOKENS),
    SequenceLogps(torch.tensor([math.log(1 / 2)]), THREE_TOKENS),
)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (DpoObjective(beta=0.5), math.log(4 / 3)),  # -ln 3/4
        (DpoObjective(beta=0.5, label_smoothing=0.25), 3 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4)),
        # (3/4 ln 4/3 - 1/4 ln 4) / (1 - 1/2): below zero, as only robust DPO can be
        (DpoObjective(beta=0.5, label_smoothing=0.25, robust=True), 3 / 2 * math.log(4 / 3) - 1 / 2 * math.log(4)),
        # The chosen reply costs -ln(3/8) over 3 tokens.
        (DpoObjective(beta=0.5, sft_weight=0.2), math.log(4 / 3) + 0.2 * math.log(8 / 3) / 3),
    ],
)
def test_by_hand(objective: DpoObjective, value: float) -> None:
    assert objective.loss(POLICY, REFERENCE, 1).share.item() == pytest.approx(value, rel=1e-6)
    # As one pair of four of a step, it counts a quarter.
    assert objective.loss(POLICY, REFERENCE, 4).share.item() == pytest.approx(value / 4, rel=1e-6)


def test_metrics_by_hand() -> None:
    metrics = DpoObjective(beta=0.5, sft_weight=0.2).loss(POLICY, REFERENCE, 4).metrics
    assert {name: m.total.item() for name, m in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": math.log(3) / 2,
            "rewards/rejected": -math.log(3) / 2,
            "rewards/margins": math.log(3),
            "rewards/accuracies": 1.0,
            "logps/chosen": math.log(3 / 8),
            "logps/rejected": math.log(1 / 6),
            "nll": math.log(8 / 3) / 3,
            "rewards/saturated": 0.0,
        }
    )
    assert "nll" not in DpoObjective().loss(POLICY, REFERENCE, 4).metrics


def test_a_pair_is_saturated_when_its_weight_is_below_a_twentieth() -> None:
    reached = SequenceLogps(
        torch.tensor([2.94, 2.95]), torch.tensor([1.0, 1.0])
    )  # ln 19 = 2.944: sigmoid(-ln 19) = 1/20
    zero = SequenceLogps(torch.zeros(2), torch.ones(2))
    policy, reference = PairLogps(reached, zero), PairLogps(zero, zero)
    assert DpoObjective(beta=1.0).loss(policy, reference, 2).metrics["rewards/saturated"].total.item() == 1.0
    smoothed = DpoObjective(beta=1.0, label_smoothing=0.1).loss(policy, reference, 2)
    assert "rewards/saturated" not in smoothed.metrics, "wide margins are pulled back there"


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_before_the_first_step_the_loss_is_ln_2(label_smoothing: float) -> None:
    chosen, rejected = torch.tensor([-70.0, -3.0], requires_grad=True), torch.tensor([-50.0, -3.0], requires_grad=True)
    counts = torch.tensor([40.0, 2.0])
    policy = PairLogps(SequenceLogps(chosen, counts), SequenceLogps(rejected, counts))
    reference = PairLogps(SequenceLogps(chosen.detach(), counts), SequenceLogps(rejected.detach(), counts))
    loss = DpoObjective(beta=0.3, label_smoothing=label_smoothing).loss(policy, reference, 2)
    assert loss.share.item() == pytest.approx(math.log(2), rel=1e-7)
    assert loss.metrics["rewards/accuracies"].total.item() == 1.0  # two pairs, each half right
    loss.share.backward()
    # d/dh = -beta (1 - e) sigmoid(0) + beta e sigmoid(0) = -beta (1 - 2 e) / 2; half of it, for one pair of two
    slope = -0.3 * (1 - 2 * label_smoothing) / 2 / 2
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([slope, slope], rel=1e-6)
    assert rejected.grad.tolist() == pytest.approx([-slope, -slope], rel=1e-6)


def test_the_conservative_loss_is_least_where_sigmoid_is_the_share_of_right_labels() -> None:
    # e = 1/4: sigmoid(beta h) = 3/4 at beta h = ln 3, so at h = 2 ln 3 for beta = 1/2.
    h = torch.tensor([2 * math.log(3)], requires_grad=True)
    dpo_losses(h, 0.5, 0.25).sum().backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(0, abs=1e-7)


def test_the_robust_loss_is_the_clean_one_on_average() -> None:
    # A label is right with 1 - e and flipped with e: (1 - e) robust(h) + e robust(-h) = clean(h).
    h, e = torch.tensor([-3.0, 0.0, 0.5, 8.0], dtype=torch.float64), 0.2
    mean = (1 - e) * dpo_losses(h, 0.7, e, robust=True) + e * dpo_losses(-h, 0.7, e, robust=True)
    assert mean.tolist() == pytest.approx(dpo_losses(h, 0.7).tolist(), rel=1e-12)


def test_without_noise_there_is_nothing_to_be_robust_against() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        DpoObjective(robust=True)
