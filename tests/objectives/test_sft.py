"""The SFT loss: worked by hand, against float64, and the same however a step is split."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.objectives.sft import sft_loss


def test_by_hand() -> None:
    # Three tokens predicted with p = 1/2, 1/4, 1/8 cost 1, 2 and 3 times ln 2; weighted 1, 2, 1/2 that is 6.5 ln 2.
    logps_S = torch.tensor([0.5, 0.25, 0.125]).log()
    weights_S = torch.tensor([1.0, 2.0, 0.5])
    assert sft_loss(logps_S, weights_S, 3.5).item() == pytest.approx(6.5 * math.log(2) / 3.5, rel=1e-7)
    # As a third of a step that weighs 10.5 in all, it counts a third.
    assert sft_loss(logps_S, weights_S, 10.5).item() == pytest.approx(6.5 * math.log(2) / 10.5, rel=1e-7)


def test_gradient_by_hand() -> None:
    logps_S = torch.tensor([-0.1, -2.0, -30.0], requires_grad=True)
    sft_loss(logps_S, torch.tensor([1.0, 0.0, 0.5]), 4.0).backward()
    assert logps_S.grad is not None
    assert logps_S.grad.tolist() == [-0.25, 0.0, -0.125]


def test_against_float64() -> None:
    torch.manual_seed(0)
    logps_S, weights_S = -torch.rand(5000).exp() * 3, torch.rand(5000)
    total = float(weights_S.double().sum())
    exact = -(weights_S.double() * logps_S.double()).sum().item() / total
    assert sft_loss(logps_S, weights_S, total).item() == pytest.approx(exact, rel=1e-6)
    assert sft_loss(logps_S.double(), weights_S.double(), total).item() == pytest.approx(exact, rel=1e-14)


def test_no_supervised_token_is_no_loss() -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss = sft_loss(empty, torch.zeros(0), 7.0)
    loss.backward()
    assert loss.item() == 0.0


@given(
    tokens=st.lists(st.tuples(st.floats(-50, 0), st.floats(0.01, 2)), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_shares_of_any_split_add_up(tokens: list[tuple[float, float]], cuts: list[int]) -> None:
    logps_S = torch.tensor([t[0] for t in tokens], dtype=torch.float64)
    weights_S = torch.tensor([t[1] for t in tokens], dtype=torch.float64)
    total = weights_S.sum().item()
    edges = [0, *sorted(min(c, len(tokens)) for c in cuts), len(tokens)]
    shares = [sft_loss(logps_S[a:b], weights_S[a:b], total) for a, b in itertools.pairwise(edges)]
    whole = sft_loss(logps_S, weights_S, total).item()
    assert float(sum(shares)) == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_five_two_five_is_the_whole_and_not_the_mean_of_means() -> None:
    torch.manual_seed(1)
    logps_S, weights_S = -torch.rand(12) * 4, torch.ones(12)
    parts = [slice(0, 5), slice(5, 7), slice(7, 12)]
    whole = sft_loss(logps_S, weights_S, 12.0).item()
    split = sum(sft_loss(logps_S[p], weights_S[p], 12.0).item() for p in parts)
    mean_of_means = sum(sft_loss(logps_S[p], weights_S[p], float(weights_S[p].sum())).item() for p in parts) / 3
    assert split == pytest.approx(whole, rel=1e-6)
    assert abs(mean_of_means - whole) > 0.01  # what dividing by each micro-batch's own count would give
