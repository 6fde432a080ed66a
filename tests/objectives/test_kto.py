"""KTO, worked by hand: the loss, the reference point, the balance of the two kinds of rows."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives.base import SequenceLogps
from posttrain.objectives.kto import KtoObjective, balance_warning, kto_losses

LN_3 = math.log(3)


def logps(*sums: float) -> SequenceLogps:
    return SequenceLogps(torch.tensor(sums), torch.full((len(sums),), 7.0))


def test_by_hand() -> None:
    # beta = 1/2 and z = 1. Row 1 has r = 1 + 2 ln 3, so beta (r - z) = ln 3 and sigmoid = 3/4; row 2 has r = 1, sigmoid 1/2;
    # row 3 is row 1 again, but undesirable; row 4 has r = 1 - 2 ln 3, undesirable.
    policy = logps(-9 + 2 * LN_3, -9.0, -9 + 2 * LN_3, -9 - 2 * LN_3)
    reference = logps(-10.0, -10.0, -10.0, -10.0)
    desirable_B = torch.tensor([True, True, False, False])
    objective = KtoObjective(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    loss = objective.loss(policy, reference, desirable_B, torch.tensor(1.0), 8)
    # 2 (1 - 3/4) + 2 (1 - 1/2) + 3 (1 - 1/4) + 3 (1 - 3/4) = 1/2 + 1 + 9/4 + 3/4
    assert loss.share.item() == pytest.approx(4.5 / 8, rel=1e-6)
    assert {name: (m.total.item(), float(m.count)) for name, m in loss.metrics.items()} == {
        "rewards/chosen": (pytest.approx(1 + LN_3), 2.0),  # 1/2 (1 + 2 ln 3) + 1/2
        "rewards/rejected": (pytest.approx(1.0), 2.0),  # 1/2 (1 + 2 ln 3 + 1 - 2 ln 3)
        "logps/chosen": (pytest.approx(-18 + 2 * LN_3), 2.0),
        "logps/rejected": (pytest.approx(-18.0), 2.0),
        "kl": (4.0, 4.0),
    }


def test_a_batch_of_one_kind() -> None:
    loss = KtoObjective().loss(logps(-5.0), logps(-5.0), torch.tensor([True]), torch.tensor(0.0), 1)
    assert loss.share.item() == 0.5
    assert float(loss.metrics["rewards/rejected"].count) == 0.0
    assert loss.metrics["rewards/rejected"].total.item() == 0.0


def test_gradient_by_hand() -> None:
    # d/dr of lambda (1 - sigmoid(beta r)) at 0 is -lambda beta / 4; of an undesirable row +lambda beta / 4.
    ratios = torch.zeros(2, requires_grad=True)
    kto_losses(ratios, torch.tensor([True, False]), torch.tensor(0.0), 0.4, 1.0, 2.0).sum().backward()
    assert ratios.grad is not None
    assert ratios.grad.tolist() == pytest.approx([-0.1, 0.2])


def test_reference_point_by_hand() -> None:
    # Log-ratios 1/2, 3/2 and -1/2: mean 1/2. Turned round, the mean is below 0 and 0 is taken.
    policy, reference = logps(-9.5, -18.5, -30.5), logps(-10.0, -20.0, -30.0)
    assert KtoObjective().reference_point(policy, reference).item() == 0.5
    assert KtoObjective().reference_point(reference, policy).item() == 0.0


def test_the_reference_point_has_no_gradient() -> None:
    sums_B = torch.tensor([-9.0, -9.0], requires_grad=True)
    policy, reference = SequenceLogps(sums_B, torch.ones(2)), logps(-10.0, -10.0)
    assert not KtoObjective().reference_point(policy, reference).requires_grad
    # Nor does a point that was left attached reach the policy through the loss.
    attached = (sums_B - reference.sums_B).mean()
    loss = KtoObjective().loss(policy, reference, torch.tensor([True, True]), attached, 2)
    loss.share.backward()
    assert sums_B.grad is not None
    assert sums_B.grad.tolist() == pytest.approx([-0.1 / 4 / 2] * 2)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"),
    [(300, 300, (1.0, 1.0)), (300, 300, (4 / 3, 1.0)), (100, 1000, (10.0, 1.0)), (7, 70, (0.7, 0.07))],
)
def test_balanced_rows_need_no_word(desirable: int, undesirable: int, weights: tuple[float, float]) -> None:
    assert balance_warning(desirable, undesirable, *weights) is None


def test_the_balance_warning_says_what_to_set() -> None:
    # 900 to 100 is 9 to 1. Desirable rows should weigh 1/9 to 4/27 = 0.148, or undesirable ones 9 / (4/3) = 6.75 to 9.
    text = balance_warning(900, 100)
    assert text is not None
    assert "9 to 1" in text
    assert "desirable_weight from 0.111 to 0.148" in text
    assert "undesirable_weight from 6.75 to 9" in text
    assert balance_warning(900, 100, 0.13) is None
    assert balance_warning(900, 100, 1.0, 8.0) is None


@pytest.mark.parametrize(("desirable", "undesirable", "kind"), [(5, 0, "desirable"), (0, 5, "undesirable")])
def test_one_kind_alone_is_told(desirable: int, undesirable: int, kind: str) -> None:
    assert f"all 5 rows are {kind}" in str(balance_warning(desirable, undesirable))
