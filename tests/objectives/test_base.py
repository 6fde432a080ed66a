"""The functions all objectives share: exact where naive forms are infinite, and metrics that are sums and counts."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives.base import (
    PairLogps,
    SequenceLogps,
    log1mexp,
    log_ratio_rounding,
    log_ratios,
    log_sigmoid,
    pair_metrics,
    reward_metrics,
)


def gradient_at(function: object, x: float) -> float:
    leaf = torch.tensor(x, requires_grad=True)
    function(leaf).backward()  # type: ignore[operator]
    assert leaf.grad is not None
    return leaf.grad.item()


@pytest.mark.parametrize("x", [-1e4, -50.0, -1.0, 0.0, 1e-3, 30.0, 1e4])
def test_log_sigmoid_is_exact_at_both_ends(x: float) -> None:
    # log sigmoid(x) = x - log(1 + e^x) for x < 0, -log(1 + e^-x) for x > 0; its derivative is sigmoid(-x).
    value = x - math.log1p(math.exp(x)) if x < 0 else -math.log1p(math.exp(-x))
    slope = 1 / (1 + math.exp(x)) if x < 0 else math.exp(-x) / (1 + math.exp(-x))
    assert log_sigmoid(torch.tensor(x)).item() == pytest.approx(value, rel=1e-6)
    assert gradient_at(log_sigmoid, x) == pytest.approx(slope, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("x", [-1e4, -100.0, -1.0, -0.7, -0.69, -0.1, -1e-3, -1e-6])
def test_log1mexp_against_float64(x: float) -> None:
    exact = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    slope = -1 / math.expm1(-x) if x > -500 else 0.0  # -e^x / (1 - e^x)
    assert log1mexp(torch.tensor(x)).item() == pytest.approx(exact, rel=1e-6, abs=1e-30)
    assert gradient_at(log1mexp, x) == pytest.approx(slope, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("x", [-5e-8, -1e-9, 0.0])
def test_log1mexp_stays_finite_where_fp32_can_not_tell_from_certainty(x: float) -> None:
    assert log1mexp(torch.tensor(x)).item() == pytest.approx(math.log(1e-7), rel=1e-6)
    assert gradient_at(log1mexp, x) == 0.0


def test_log_ratios_by_hand() -> None:
    three, five = torch.tensor([3.0]), torch.tensor([5.0])
    policy = PairLogps(SequenceLogps(torch.tensor([-4.0]), three), SequenceLogps(torch.tensor([-9.0]), five))
    reference = PairLogps(SequenceLogps(torch.tensor([-10.0]), three), SequenceLogps(torch.tensor([-5.0]), five))
    ratios = log_ratios(policy, reference)
    assert ratios.chosen.sums_B.tolist() == [6.0]  # -4 - -10
    assert ratios.rejected.sums_B.tolist() == [-4.0]  # -9 - -5
    assert ratios.chosen.means_B.tolist() == [2.0]  # 6 / 3 tokens
    with pytest.raises(ValueError, match="reference"):
        log_ratios(policy, None)


def test_rounding_grows_with_the_tokens_of_both_replies() -> None:
    nothing = torch.zeros(2)
    ratios = PairLogps(
        SequenceLogps(nothing, torch.tensor([3.0, 400.0])), SequenceLogps(nothing, torch.tensor([5.0, 100.0]))
    )
    assert log_ratio_rounding(ratios).tolist() == pytest.approx([8e-5, 5e-3])


def test_metrics_by_hand() -> None:
    # Three pairs: won by 2, lost by 1, equal. Accuracy (1 + 0 + 1/2) / 3.
    chosen_P, rejected_P = torch.tensor([3.0, 0.0, 1.0], requires_grad=True), torch.tensor([1.0, 1.0, 1.0])
    metrics = reward_metrics(chosen_P, rejected_P)
    assert {name: m.total.item() for name, m in metrics.items()} == {
        "rewards/chosen": 4.0,
        "rewards/rejected": 3.0,
        "rewards/margins": 1.0,
        "rewards/accuracies": 1.5,
    }
    assert {m.count for m in metrics.values()} == {3.0}
    assert not any(m.total.requires_grad for m in metrics.values())

    # The same where rounding may be as large as 1: only the first pair is told apart.
    assert reward_metrics(chosen_P, rejected_P, 1.0)["rewards/accuracies"].total.item() == 1 + 0.5 + 0.5
    rounding_P = torch.tensor([2.0, 0.5, 0.0])
    assert reward_metrics(chosen_P, rejected_P, rounding_P)["rewards/accuracies"].total.item() == 0.5 + 0 + 0.5

    ones = torch.ones(2)
    policy = PairLogps(SequenceLogps(torch.tensor([-1.0, -2.0]), ones), SequenceLogps(torch.tensor([-4.0, -8.0]), ones))
    found = {name: m.total.item() for name, m in pair_metrics(policy, ones, ones).items()}
    assert (found["logps/chosen"], found["logps/rejected"], found["rewards/margins"]) == (-3.0, -12.0, 0.0)
