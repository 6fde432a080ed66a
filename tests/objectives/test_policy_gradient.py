"""The parts of policy gradients, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from posttrain.objectives.base import PairLogps, SequenceLogps
from posttrain.objectives.online_dpo import OnlineDpo, wrong_label_shares
from posttrain.objectives.policy_gradient import (
    Aggregation,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    KlEstimator,
    PolicyGradient,
    Ppo,
    Ratio,
    ReplyLogps,
    Rloo,
    StepTotals,
    advantages,
    aggregate,
    clipped_losses,
    explained_variance,
    gae,
    informative,
    kl_estimate,
    log_ratios,
    token_rewards,
    value_loss,
    whiten,
)

PRESETS = (Rloo(), Grpo(), DrGrpo(), Dapo(), Gspo(), Ppo())


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- advantages ----------------------------------------------------------------------------------------------------

# Rewards 1, 0, 0, 1, 1 of prompt 0 (mean 3/5, sum of squares about it 6/5, deviation sqrt(3/10)), 4 and 2 of prompt 1.
REWARDS = f64(1, 0, 4, 0, 1, 2, 1)
GROUPS = torch.tensor([0, 0, 1, 0, 0, 1, 0])


def test_advantages_by_hand() -> None:
    leave_one_out = advantages("leave_one_out", REWARDS, GROUPS)
    assert leave_one_out.tolist() == pytest.approx([1 / 2, -3 / 4, 2, -3 / 4, 1 / 2, -2, 1 / 2])
    assert advantages("group_mean", REWARDS, GROUPS).tolist() == pytest.approx([0.4, -0.6, 1, -0.6, 0.4, -1, 0.4])
    deviations = [math.sqrt(3 / 10), math.sqrt(2)]
    wanted = [
        a / (deviations[g] + 1e-4) for a, g in zip([0.4, -0.6, 1, -0.6, 0.4, -1, 0.4], GROUPS.tolist(), strict=True)
    ]
    assert advantages("group_std", REWARDS, GROUPS).tolist() == pytest.approx(wanted)
    # mean 9/7, sum of squares about it 23 - 81/7 = 80/7, divided by 6
    whitened = advantages("batch_whiten", REWARDS, GROUPS)
    assert whitened.tolist() == pytest.approx([(r - 9 / 7) / math.sqrt(80 / 42) for r in REWARDS.tolist()])


@pytest.mark.parametrize("kind", ["leave_one_out", "group_mean", "group_std"])
def test_equal_rewards_say_exactly_nothing(kind: Any) -> None:
    """0.1 thrice is not 3 times 0.1 in floating point; and a reply alone has nothing to be compared with."""
    rewards, groups = torch.tensor([0.1, 0.1, 0.1, 0.7, 5.0, 6.0]), torch.tensor([0, 0, 0, 1, 2, 2])
    found = advantages(kind, rewards, groups)
    assert found[:4].tolist() == [0.0] * 4
    assert found[4] < 0 < found[5]
    assert informative(rewards, groups).tolist() == [False] * 4 + [True] * 2


def test_equal_rewards_whitened_are_nothing() -> None:
    assert advantages("batch_whiten", torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int64)).tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", ["leave_one_out", "group_mean", "group_std", "batch_whiten"])
def test_the_order_of_replies_changes_nothing(kind: Any) -> None:
    order = torch.randperm(len(REWARDS), generator=torch.Generator().manual_seed(3))
    straight = advantages(kind, REWARDS, GROUPS)
    assert torch.equal(advantages(kind, REWARDS[order], GROUPS[order]), straight[order])


def test_whitening_without_shifting_keeps_the_mean() -> None:
    values = f64(1, 2, 3, 6)  # mean 3, variance 14/3
    assert whiten(values).tolist() == pytest.approx([v / math.sqrt(14 / 3) for v in (-2, -1, 0, 3)])
    assert whiten(values, shift_mean=False).tolist() == pytest.approx(
        [3 + v / math.sqrt(14 / 3) for v in (-2, -1, 0, 3)]
    )


def test_generalised_advantages_by_hand() -> None:
    """Discount 1/2, trace 1/2. Of (rewards 1, 0, 2; values 1, 2, 4): deltas 1 + 1 - 1, 0 + 2 - 2, 2 - 4; of one token: 3 - 1."""
    found = gae(f64(1, 0, 2, 3), f64(1, 2, 4, 1), torch.tensor([3, 1]), 0.5, 0.5)
    last, middle = -2.0, 0 + 0.25 * -2.0
    assert found.tolist() == pytest.approx([1 + 0.25 * middle, middle, last, 2.0])


def test_generalised_advantages_at_the_ends_of_the_trace() -> None:
    """Trace 1: what is still to come less the value. Trace 0: one step."""
    rewards, values, counts = f64(0.5, -1, 2, 1, 1), f64(0.1, 0.2, 0.3, 0.4, 0.5), torch.tensor([3, 2])
    to_come = f64(1.5, 1, 2, 2, 1)
    assert torch.allclose(gae(rewards, values, counts, 1.0, 1.0), to_come - values)
    following = f64(0.2, 0.3, 0, 0.5, 0)
    assert torch.allclose(gae(rewards, values, counts, 0.9, 0.0), rewards + 0.9 * following - values)


def test_a_reply_without_tokens_does_not_shift_its_neighbours() -> None:
    with_it = gae(f64(1, 2, 3), f64(0, 1, 0), torch.tensor([2, 0, 1]), 1.0, 0.9)
    assert torch.equal(with_it, gae(f64(1, 2, 3), f64(0, 1, 0), torch.tensor([2, 1]), 1.0, 0.9))


# ---- KL, ratio, clip, aggregation ----------------------------------------------------------------------------------


def test_kl_estimators_by_hand() -> None:
    """The policy gives 1/2, the reference 1/4 and 1: r = -ln 2 and ln 2."""
    policy, reference = f64(math.log(1 / 2), math.log(1 / 2)), f64(math.log(1 / 4), 0.0)
    assert kl_estimate("k1", policy, reference).tolist() == pytest.approx([math.log(2), -math.log(2)])
    assert kl_estimate("k2", policy, reference).tolist() == pytest.approx([math.log(2) ** 2 / 2] * 2)
    assert kl_estimate("k3", policy, reference).tolist() == pytest.approx(
        [1 / 2 - 1 + math.log(2), 2 - 1 - math.log(2)]
    )


def test_k3_of_a_tiny_ratio_keeps_its_digits() -> None:
    found = kl_estimate("k3", torch.tensor([-1.0]), torch.tensor([-1.0 + 2.0**-12]))  # r^2 / 2 + r^3 / 6
    assert found.item() == pytest.approx(2.0**-25, rel=1e-3)


@pytest.mark.parametrize("kind", get_args(KlEstimator))
def test_estimators_agree_on_average_and_only_k1_is_ever_negative(kind: KlEstimator) -> None:
    """Exact means over a law of three tokens; k2 is biased, in third order."""
    policy, reference = f64(0.5, 0.3, 0.2).log(), f64(0.48, 0.31, 0.21).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    estimates = kl_estimate(kind, policy, reference)
    assert float((policy.exp() * estimates).sum()) == pytest.approx(exact, rel=0.05 if kind == "k2" else 1e-9)
    assert bool((estimates < 0).any()) == (kind == "k1")


def test_ratios_by_hand() -> None:
    logps, old, counts = f64(-1, -2, -3), f64(-1.5, -1, -3), torch.tensor([2, 1])
    assert log_ratios("token", logps, old, counts).tolist() == [0.5, -1, 0]
    assert log_ratios("sequence", logps, old, counts).tolist() == [-0.25, -0.25, 0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # above the upper bound, 1.3: held
        (0.5, 2.0, -1.0, -1.0),  # a good reply that lost probability is always brought back
        (0.5, -2.0, 1.6, 0.0),  # below the lower bound, 0.8: held
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clip_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logs = f64(math.log(ratio)).requires_grad_()
    found = clipped_losses(logs, f64(advantage), 0.2, 0.3)
    (gradient,) = torch.autograd.grad(found.losses_S.sum(), logs)
    assert found.losses_S.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    assert found.clipped_S.item() == (slope == 0.0)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("sequence_sum_over_constant", [3 / (2 * 8), 6 / (2 * 8)]),
        ("token_mean", [3 / 5, 6 / 5]),
        ("sequence_mean", [1 / 2, 3 / 2]),
    ],
)
def test_aggregation_by_hand(kind: Aggregation, wanted: list[float]) -> None:
    """Replies of 3 and 2 tokens with losses 1, 1, 1 and 2, 4; a reply may have 8."""
    found = aggregate(kind, f64(1, 1, 1, 2, 4), torch.tensor([3, 2]), StepTotals(2, 5, 8))
    assert found.tolist() == pytest.approx(wanted)


# ---- objectives ----------------------------------------------------------------------------------------------------

COUNTS = torch.tensor([3, 1, 2])
OLD = f64(-1.0, -0.5, -2.0, -1.5, -0.7, -0.2)
MOVED = f64(-0.9, -1.0, -1.6, -1.45, -0.7001, -0.3)
REFERENCE = f64(-1.2, -0.6, -1.9, -1.0, -0.75, -0.4)
ADVANTAGES = f64(1.0, 1.0, 1.0, -2.0, 0.5, 0.5)
TOTALS = StepTotals(3, 6, 8)

EVERY = [
    *PRESETS,
    Rloo(kl="k2", kl_in="loss"),
    Grpo(beta=0.5),
    *(Rloo(ratio=ratio, aggregation=how) for ratio in get_args(Ratio) for how in get_args(Aggregation)),
]


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: f"{o.name} {o.settings_text}")
def test_gradients_are_those_of_the_values(objective: PolicyGradient) -> None:
    def value(policy: Tensor) -> Tensor:
        return objective.loss(ReplyLogps(policy, OLD, REFERENCE, COUNTS), ADVANTAGES, TOTALS).share

    assert torch.autograd.gradcheck(value, (MOVED.clone().requires_grad_(),), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: f"{o.name} {o.settings_text}")
def test_before_the_first_update_the_gradient_is_that_of_reinforce(objective: PolicyGradient) -> None:
    """Ratio 1, reference = policy: -A grad log pi, by the weights of the aggregation; of a sequence ratio |y| times less a token."""
    policy = OLD.clone().requires_grad_()
    loss = objective.loss(ReplyLogps(policy, OLD, OLD, COUNTS), ADVANTAGES, TOTALS)
    (found,) = torch.autograd.grad(loss.share, policy)
    by_reply = aggregate(objective.aggregation, ADVANTAGES, COUNTS, TOTALS) / COUNTS
    assert torch.allclose(found, -by_reply.repeat_interleave(COUNTS), rtol=1e-12)
    assert loss.metrics["clip_fraction"].total.item() == 0


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: f"{o.name} {o.settings_text}")
def test_micro_batches_and_the_order_of_replies_change_nothing(objective: PolicyGradient) -> None:
    def share(replies: Sequence[int]) -> float:
        starts = (COUNTS.cumsum(0) - COUNTS).tolist()
        places = [s for r in replies for s in range(starts[r], starts[r] + int(COUNTS[r]))]
        logps = ReplyLogps(MOVED[places], OLD[places], REFERENCE[places], COUNTS[list(replies)])
        return objective.loss(logps, ADVANTAGES[places], TOTALS).share.item()

    whole = share([0, 1, 2])
    assert share([2, 0, 1]) == pytest.approx(whole, rel=1e-12)
    assert share([0]) + share([2, 1]) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("objective", "warned"),
    [
        *((preset, 0) for preset in PRESETS),
        (Rloo(kl_in="loss"), 1),
        (Grpo(beta=0.04), 2),  # forward KL, and the deviation beside it
        (Grpo(beta=1.0), 1),
        (Rloo(kl="k3"), 1),
        (Rloo(kl="k2", kl_in="loss"), 1),
    ],
)
def test_what_is_known_to_be_wrong_is_warned_of(objective: PolicyGradient, warned: int) -> None:
    assert len(list(objective.warnings())) == warned


@pytest.mark.parametrize("wrong", [lambda: Rloo(advantage="gae"), lambda: Ppo(advantage="group_mean")])
def test_advantages_of_tokens_and_a_value_head_go_together(wrong: Any) -> None:
    with pytest.raises(ValueError, match="value head"):
        wrong()


# ---- the value head ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        (0.1, 0.5 * 0.9**2, -0.9),  # within 0.2 of the old value, 0
        (0.5, 0.5 * 0.8**2, 0.0),  # moved too far towards the return, 1: as if it stood at 0.2
        (-0.5, 0.5 * 1.5**2, -1.5),  # moved away from it: the larger loss is its own
    ],
)
def test_the_value_loss_by_hand(value: float, loss: float, slope: float) -> None:
    values = f64(value).requires_grad_()
    found = value_loss(values, f64(0.0), f64(1.0), 0.2, StepTotals(1, 4, 8))
    assert found.share.item() == pytest.approx(loss / 4)
    assert torch.autograd.grad(found.share, values)[0].item() == pytest.approx(slope / 4)


def test_rewards_of_tokens_by_hand() -> None:
    """The score is the reward of the last token, the KL that of each."""
    found = token_rewards(f64(1.0, 2.0), f64(0.5, -1.0, 2.0), 0.1, torch.tensor([2, 1]))
    assert found.tolist() == pytest.approx([-0.05, 1.1, 1.8])
    assert token_rewards(f64(1.0), None, 0.0, torch.tensor([2])).tolist() == [0.0, 1.0]


def test_explained_variance_by_hand() -> None:
    returns = f64(1, 2, 3)
    assert explained_variance(returns + 5, returns) == 1.0
    assert explained_variance(f64(0, 0, 0), returns) == 0.0
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, f64(2, 2, 2)) == 0.0


# ---- online DPO ----------------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    """A margin of ln 3 at temperature 1: preferred in 3 of 4 cases; at 1/2 in 9 of 10."""
    margins, drawn = f64(math.log(3), math.log(3), 0.0), f64(0.2, 0.3, 0.49)
    assert wrong_label_shares(margins, "soft", 1.0, drawn).tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert wrong_label_shares(margins, "soft", 0.5, drawn).tolist() == pytest.approx([1 / 10, 1 / 10, 1 / 2])
    assert wrong_label_shares(margins, "drawn", 1.0, drawn).tolist() == [1, 0, 1]
    assert wrong_label_shares(margins, "hard", 1.0, drawn).tolist() == [0, 0, 0]


def test_online_dpo_by_hand() -> None:
    """beta h = ln 3 where the first is preferred in 3 of 4 cases: 3/4 ln(4/3) + 1/4 ln 4, as one of two pairs; there is its optimum."""
    sums = f64(0.0).requires_grad_()
    zero, counts = f64(-2 * math.log(3)), f64(2.0)
    reference = PairLogps(SequenceLogps(zero, counts), SequenceLogps(f64(0.0), counts))
    policy = PairLogps(SequenceLogps(sums, counts), SequenceLogps(f64(0.0), counts))
    loss = OnlineDpo(beta=0.5).loss(policy, reference, f64(1 / 4), 2)
    assert loss.share.item() == pytest.approx((3 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4)) / 2)
    assert torch.autograd.grad(loss.share, sums)[0].item() == pytest.approx(0.0, abs=1e-12)


def test_exchanging_the_labels_exchanges_the_sides() -> None:
    counts, a, b, zero = f64(3.0), f64(-4.0), f64(-5.0), f64(-4.5)
    sides = [PairLogps(SequenceLogps(x, counts), SequenceLogps(y, counts)) for x, y in ((a, b), (b, a))]
    reference, objective = PairLogps(SequenceLogps(zero, counts), SequenceLogps(zero, counts)), OnlineDpo()
    losses = [objective.loss(s, reference, f64(w), 1).share.item() for s, w in zip(sides, (0.2, 0.8), strict=True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
