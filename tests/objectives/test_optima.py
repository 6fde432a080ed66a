"""What each way of learning from one's own replies converges to, on problems that are solved exactly.

A bandit of five arms, and the tree of all sequences of up to three tokens over a vocabulary of three, one of which ends a sequence. Every
pair of replies is enumerated with its probability, so that a step uses the expected gradient of the shipped loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from posttrain.objectives.dpo import dpo_losses
from posttrain.objectives.online_dpo import OnlineDpo, wrong_label_shares
from posttrain.objectives.policy_gradient import (
    Grpo,
    PolicyGradient,
    Ppo,
    ReplyLogps,
    Rloo,
    StepTotals,
    advantages,
    aggregate,
    clipped_losses,
    gae,
    kl_estimate,
    log_ratios,
    owners,
    token_rewards,
)

BETA = 0.5


class Problem(NamedTuple):
    """All sequences as tokens one after another [S]: where each stands in a table of logits [nodes, V], and what they are worth."""

    nodes_S: Tensor
    tokens_S: Tensor
    counts_R: Tensor
    rewards_R: Tensor
    reference_NV: Tensor

    def logps(self, logits_NV: Tensor) -> Tensor:
        return logits_NV.log_softmax(-1)[self.nodes_S, self.tokens_S]

    def sums(self, logps_S: Tensor) -> Tensor:
        return torch.zeros(len(self.counts_R), dtype=logps_S.dtype).index_add(0, owners(self.counts_R), logps_S)

    def law(self, logits_NV: Tensor) -> Tensor:
        return self.sums(self.logps(logits_NV)).exp()

    @property
    def reference_R(self) -> Tensor:
        return self.law(self.reference_NV)

    def optimum(self, beta: float) -> Tensor:
        return (self.reference_R.log() + self.rewards_R / beta).softmax(0)

    def value(self, law_R: Tensor, beta: float) -> float:
        """E r - beta KL(law || reference)."""
        return float((law_R * (self.rewards_R - beta * (law_R / self.reference_R).log())).sum())


def tree(vocabulary: int, longest: int, seed: int) -> Problem:
    """The last token of the vocabulary ends a sequence."""
    end = vocabulary - 1
    prefixes = [p for n in range(longest) for p in itertools.product(range(end), repeat=n)]
    node = {prefix: number for number, prefix in enumerate(prefixes)}
    found = [(*p, end) for p in prefixes] + [
        (*p, t) for p in prefixes if len(p) == longest - 1 for t in range(vocabulary) if t != end
    ]
    nodes = [node[sequence[:place]] for sequence in found for place in range(len(sequence))]
    draw = torch.Generator().manual_seed(seed)
    return Problem(
        torch.tensor(nodes),
        torch.tensor([token for sequence in found for token in sequence]),
        torch.tensor([len(sequence) for sequence in found]),
        torch.rand(len(found), generator=draw, dtype=torch.float64),
        torch.randn(len(prefixes), vocabulary, generator=draw, dtype=torch.float64),
    )


BANDIT, TREE = tree(5, 1, 0), tree(3, 3, 1)
BOTH = pytest.mark.parametrize("problem", [BANDIT, TREE], ids=["bandit", "tree"])


def test_the_tree_holds_all_sequences() -> None:
    assert len(TREE.counts_R) == 1 + 2 + 4 + 8
    for problem in (BANDIT, TREE):
        assert problem.reference_R.sum().item() == pytest.approx(1.0, abs=1e-12)
        best = problem.value(problem.optimum(BETA), BETA)
        assert best == pytest.approx(
            BETA * math.log((problem.reference_R * (problem.rewards_R / BETA).exp()).sum()), abs=1e-12
        )


class Pairs(NamedTuple):
    """Every ordered pair of replies as one rollout of groups of two."""

    replies: Tensor
    """Index of every reply [2 N^2]; pairs stand together."""
    places_S: Tensor
    """Of every token among those of the problem."""
    counts_R: Tensor
    groups_R: Tensor


def all_pairs(problem: Problem) -> Pairs:
    number = len(problem.counts_R)
    replies = torch.tensor(list(itertools.product(range(number), repeat=2))).reshape(-1)
    starts = problem.counts_R.cumsum(0) - problem.counts_R
    places = [torch.arange(int(problem.counts_R[r])) + starts[r] for r in replies.tolist()]
    groups = torch.arange(number * number).repeat_interleave(2)
    return Pairs(replies, torch.cat(places), problem.counts_R[replies], groups)


def expected_loss(objective: PolicyGradient, problem: Problem, pairs: Pairs, logits: Tensor, old: Tensor) -> Tensor:
    """The mean of the shipped loss over all pairs drawn from the law at sampling, in units of one reply's sum of tokens."""
    old_S, reference_S = problem.logps(old), problem.logps(problem.reference_NV)
    rewards_R = problem.rewards_R[pairs.replies]
    if objective.kl_in == "reward":
        kl_R = problem.sums(kl_estimate(objective.kl, old_S, reference_S))
        rewards_R = rewards_R - objective.beta * kl_R[pairs.replies]
    found_R = advantages(objective.advantage, rewards_R, pairs.groups_R)
    law_R = problem.sums(old_S).exp()[pairs.replies].reshape(-1, 2)
    weights_R = law_R.prod(1).repeat_interleave(2)
    logps = ReplyLogps(
        problem.logps(logits)[pairs.places_S], old_S[pairs.places_S], reference_S[pairs.places_S], pairs.counts_R
    )
    totals = StepTotals(2.0, 2.0, 1.0)
    advantages_S = found_R[owners(pairs.counts_R)]
    if objective.kl_in == "reward" or not objective.beta:  # linear in the advantages
        return objective.loss(logps, advantages_S * weights_R[owners(pairs.counts_R)], totals).share
    ratios_S = log_ratios(objective.ratio, logps.policy_S, logps.old_S, logps.counts_R)
    losses_S = clipped_losses(ratios_S, advantages_S, objective.clip_low, objective.clip_high).losses_S
    losses_S = losses_S + objective.beta * kl_estimate(objective.kl, logps.policy_S, reference_S[pairs.places_S])
    return (aggregate(objective.aggregation, losses_S, pairs.counts_R, totals) * weights_R).sum()


def learn(
    loss: Callable[[Tensor, Tensor], Tensor], start: Tensor, rounds: int, rate: float, updates: int = 1
) -> Tensor:
    """Logits after so many rounds, each with some updates from the law at its begin; the rate falls to 0."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate)
    for done in range(rounds):
        old = logits.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - done / rounds)
        for _ in range(updates):
            optimizer.zero_grad()
            loss(logits, old).backward()
            optimizer.step()
    return logits.detach()


def total_variation(a_R: Tensor, b_R: Tensor) -> float:
    return float((a_R - b_R).abs().sum() / 2)


EXACT = Rloo(beta=BETA)


@BOTH
@pytest.mark.parametrize(
    ("objective", "updates"),
    [
        (EXACT, 1),
        (EXACT, 4),
        (replace(EXACT, advantage="group_mean"), 1),
    ],
    ids=["rloo", "clipped, four updates a round", "group mean"],
)
def test_k1_in_the_reward_reaches_the_optimum(problem: Problem, objective: PolicyGradient, updates: int) -> None:
    pairs = all_pairs(problem)
    logits = learn(
        lambda new, old: expected_loss(objective, problem, pairs, new, old),
        problem.reference_NV,
        400 // updates,
        0.05,
        updates,
    )
    law_R = problem.law(logits)
    assert total_variation(problem.reference_R, problem.optimum(BETA)) > 0.1
    assert total_variation(law_R, problem.optimum(BETA)) < 0.02
    assert problem.value(law_R, BETA) == pytest.approx(problem.value(problem.optimum(BETA), BETA), abs=1e-3)


@BOTH
@pytest.mark.parametrize("trace", [1.0, 0.9])
def test_ppo_with_a_value_for_every_prefix_reaches_the_optimum(problem: Problem, trace: float) -> None:
    """Values begin at 0 and move to the mean of their returns, where their loss is least."""
    objective = Ppo(beta=BETA, trace=trace)
    values_N = torch.zeros(len(problem.reference_NV), dtype=torch.float64)

    def loss(logits: Tensor, old: Tensor) -> Tensor:
        old_S, weights_S = problem.logps(old), problem.law(old)[owners(problem.counts_R)]
        kl_S = kl_estimate(objective.kl, old_S, problem.logps(problem.reference_NV))
        rewards_S = token_rewards(problem.rewards_R, kl_S, objective.beta, problem.counts_R)
        values_S = values_N[problem.nodes_S]
        advantages_S = gae(rewards_S, values_S, problem.counts_R, objective.discount, objective.trace)
        visits_N = torch.zeros_like(values_N).index_add(0, problem.nodes_S, weights_S)
        surprise_N = torch.zeros_like(values_N).index_add(0, problem.nodes_S, weights_S * advantages_S) / visits_N
        values_N.add_(0.2 * surprise_N)
        logps = ReplyLogps(problem.logps(logits), old_S, None, problem.counts_R)
        return objective.loss(logps, advantages_S * weights_S, StepTotals(1.0, 1.0, 1.0)).share

    law_R = problem.law(learn(loss, problem.reference_NV, 400, 0.05))
    assert total_variation(law_R, problem.optimum(BETA)) < 0.02
    assert problem.value(law_R, BETA) == pytest.approx(problem.value(problem.optimum(BETA), BETA), abs=1e-3)


@BOTH
def test_leave_one_out_is_the_gradient_of_the_goal(problem: Problem) -> None:
    """The expected gradient of the shipped loss is minus that of E r - beta KL, at laws that are not the optimum."""
    pairs = all_pairs(problem)
    draw = torch.Generator().manual_seed(5)
    moved = torch.randn(problem.reference_NV.shape, generator=draw, dtype=torch.float64)
    logits = (problem.reference_NV + 0.7 * moved).requires_grad_()
    old = logits.detach()
    (found,) = torch.autograd.grad(expected_loss(EXACT, problem, pairs, logits, old), logits)
    law_R = problem.law(logits)
    goal = (law_R * (problem.rewards_R - BETA * (law_R / problem.reference_R).log())).sum()
    (wanted,) = torch.autograd.grad(goal, logits)
    assert torch.allclose(found, -wanted, rtol=0, atol=1e-10)


@BOTH
def test_the_mean_of_the_group_shortens_the_gradient_only(problem: Problem) -> None:
    """Groups of n: (n - 1) / n of the leave-one-out gradient."""
    pairs, logits = all_pairs(problem), problem.reference_NV.clone().requires_grad_()
    grads = [
        torch.autograd.grad(
            expected_loss(replace(EXACT, advantage=kind), problem, pairs, logits, problem.reference_NV), logits
        )[0]
        for kind in ("group_mean", "leave_one_out")
    ]
    assert torch.allclose(grads[0], grads[1] / 2, rtol=0, atol=1e-12)


def test_k3_in_the_loss_reaches_forward_kl() -> None:
    """beta pi_ref / (lambda - r), lambda such that it sums to 1: the optimum of E r - beta KL(pi_ref || pi)."""
    objective, pairs, beta = replace(EXACT, beta=0.2, kl="k3", kl_in="loss"), all_pairs(BANDIT), 0.2
    logits = learn(lambda new, old: expected_loss(objective, BANDIT, pairs, new, old), BANDIT.reference_NV, 800, 0.05)
    low, high = float(BANDIT.rewards_R.max()), float(BANDIT.rewards_R.max()) + beta
    for _ in range(200):
        middle = (low + high) / 2
        total = float((beta * BANDIT.reference_R / (middle - BANDIT.rewards_R)).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    wanted = beta * BANDIT.reference_R / (high - BANDIT.rewards_R)
    assert total_variation(BANDIT.law(logits), wanted) < 0.01
    assert total_variation(wanted, BANDIT.optimum(beta)) > 0.04, "which is another law"


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_a_kl_in_the_loss_of_each_token_alone_misses_the_optimum_of_sequences(kl: Any) -> None:
    """What a token does to the KL of those behind it is left out: of single tokens k2 is exact."""
    objective = replace(EXACT, beta=0.2, kl=kl, kl_in="loss")
    far = {}
    for problem in (BANDIT, TREE):
        pairs = all_pairs(problem)
        learned = learn(
            lambda new, old, p=problem, q=pairs: expected_loss(objective, p, q, new, old),  # type: ignore[misc]
            problem.reference_NV,
            400,
            0.05,
        )
        far[len(problem.counts_R)] = total_variation(problem.law(learned), problem.optimum(0.2))
    assert far[len(TREE.counts_R)] > 0.1
    assert (far[len(BANDIT.counts_R)] < 0.01) == (kl == "k2")


@BOTH
def test_k1_in_the_loss_regularises_nothing(problem: Problem) -> None:
    pairs, logits = all_pairs(problem), problem.reference_NV.clone().requires_grad_()
    old = (problem.reference_NV + 0.3).detach()
    with_it, without = (
        torch.autograd.grad(
            expected_loss(replace(EXACT, kl="k1", kl_in="loss", beta=beta), problem, pairs, logits, old), logits
        )[0]
        for beta in (BETA, 1e-300)
    )
    assert torch.allclose(with_it, without, rtol=0, atol=1e-12)


@BOTH
def test_the_deviation_beside_a_kl_in_the_loss_has_no_optimum_but_the_best_reply(problem: Problem) -> None:
    objective, pairs = replace(Grpo(), beta=0.1, kl="k2"), all_pairs(problem)
    logits = learn(lambda new, old: expected_loss(objective, problem, pairs, new, old), problem.reference_NV, 600, 0.05)
    law_R, best = problem.law(logits), int(problem.rewards_R.argmax())
    assert law_R[best] > 0.97
    assert problem.optimum(0.1)[best] < 0.8, "the optimum of E r - beta KL keeps others"


# ---- online DPO ----------------------------------------------------------------------------------------------------


def expected_dpo(objective: OnlineDpo, problem: Problem, pairs: Pairs, logits: Tensor, old: Tensor) -> Tensor:
    """The mean of the loss over all pairs drawn from the law at sampling and, where labels are drawn, over these."""
    first, second = pairs.replies.reshape(-1, 2).T
    swapped = problem.rewards_R[first] < problem.rewards_R[second]
    chosen, rejected = torch.where(swapped, second, first), torch.where(swapped, first, second)
    ratios_R = problem.sums(problem.logps(logits) - problem.logps(problem.reference_NV))
    margins_P = problem.rewards_R[chosen] - problem.rewards_R[rejected]
    law_R = problem.law(old)
    share_P = torch.sigmoid(-margins_P / objective.label_temperature)
    # just below and above the threshold of every pair: both labels, each as often as it is drawn
    cases = (
        [(share_P - 1e-9, share_P), (share_P + 1e-9, 1 - share_P)] if objective.labels == "drawn" else [(share_P, 1)]
    )
    total = torch.zeros((), dtype=torch.float64)
    for drawn_P, often_P in cases:
        wrong_P = wrong_label_shares(margins_P, objective.labels, objective.label_temperature, drawn_P)
        losses_P = dpo_losses(ratios_R[chosen] - ratios_R[rejected], objective.beta, wrong_P)
        total = total + (losses_P * law_R[chosen] * law_R[rejected] * often_P).sum()
    return total


@BOTH
@pytest.mark.parametrize(("labels", "temperature"), [("soft", 1.0), ("drawn", 1.0), ("soft", 0.5)])
def test_labels_as_sure_as_the_scores_reach_the_optimum(problem: Problem, labels: Any, temperature: float) -> None:
    objective = OnlineDpo(beta=BETA, labels=labels, label_temperature=temperature)
    pairs = all_pairs(problem)
    logits = learn(lambda new, old: expected_dpo(objective, problem, pairs, new, old), problem.reference_NV, 600, 0.05)
    law_R, wanted = problem.law(logits), problem.optimum(BETA * temperature)
    assert total_variation(law_R, wanted) < 0.02
    assert problem.value(law_R, BETA * temperature) == pytest.approx(
        problem.value(wanted, BETA * temperature), abs=1e-3
    )


@BOTH
def test_labels_that_are_always_the_higher_score_have_no_optimum(problem: Problem) -> None:
    """The best reply passes its share in the optimum and goes on; more steps, not beta, decide how far."""
    objective, pairs, best = OnlineDpo(beta=BETA, labels="hard"), all_pairs(problem), int(problem.rewards_R.argmax())
    reached = [
        problem.law(
            learn(
                lambda new, old: expected_dpo(objective, problem, pairs, new, old), problem.reference_NV, rounds, 0.05
            )
        )[best].item()
        for rounds in (50, 200, 800)
    ]
    assert problem.optimum(BETA)[best].item() < reached[0] < reached[1] < reached[2]
    assert reached[2] > 0.97
