"""Chunked log-probabilities against full logits in float64: value, both gradients, confident and extreme predictions."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from posttrain.model import logprobs
from posttrain.model.logprobs import token_logps


class Result(NamedTuple):
    logps_S: Tensor
    d_hidden_SD: Tensor
    d_head_VD: Tensor | None


def full_logits(hidden_SD: Tensor, head_VD: Tensor, targets_S: Tensor, upstream_S: Tensor, cap: float | None) -> Result:
    """The definition, in float64 with all logits at once."""
    hidden, head = (x.detach().double().requires_grad_() for x in (hidden_SD, head_VD))
    logits_SV = hidden @ head.T
    if cap is not None:
        logits_SV = cap * torch.tanh(logits_SV / cap)
    logps_S = logits_SV.log_softmax(-1).gather(1, targets_S[:, None])[:, 0]
    (logps_S * upstream_S.double()).sum().backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return Result(logps_S.detach(), hidden.grad, head.grad)


def ours(
    hidden_SD: Tensor, head_VD: Tensor, targets_S: Tensor, upstream_S: Tensor, cap: float | None, *, head_trains: bool
) -> Result:
    hidden, head = hidden_SD.detach().clone().requires_grad_(), head_VD.detach().clone().requires_grad_(head_trains)
    logps_S = token_logps(hidden, head, targets_S, cap)
    logps_S.backward(upstream_S.to(logps_S.dtype))
    assert hidden.grad is not None
    return Result(logps_S.detach(), hidden.grad, head.grad)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest reference value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def problem(
    positions: int, scale: float = 1.0, vocabulary: int = 37, size: int = 11
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(positions)
    hidden, head = torch.randn(positions, size) * scale, torch.randn(vocabulary, size)
    return hidden, head, torch.randint(0, vocabulary, (positions,)), torch.randn(positions)


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("positions", [1, 2, 3, 4, 7, 8, 9, 16, 17, 40])
def test_equals_full_logits_across_chunk_edges(
    positions: int, cap: float | None, head_trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 8)
    monkeypatch.setattr(logprobs, "_STRIP", 3)
    data = problem(positions)
    exact, got = full_logits(*data, cap), ours(*data, cap, head_trains=head_trains)
    assert got.logps_S.dtype == torch.float32
    assert relative(got.logps_S, exact.logps_S) < 2e-6
    assert relative(got.d_hidden_SD, exact.d_hidden_SD) < 2e-6
    if head_trains:
        assert got.d_head_VD is not None
        assert exact.d_head_VD is not None
        assert relative(got.d_head_VD, exact.d_head_VD) < 2e-6
    else:
        assert got.d_head_VD is None


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("positions", [1, 3, 4, 5, 40])
@pytest.mark.parametrize("vocabulary", [36, 37, 40])
def test_without_gradient_equals_full_logits_across_tile_edges(
    positions: int, vocabulary: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_TILE_ROWS", 4)
    monkeypatch.setattr(logprobs, "_TILE_COLUMNS", 12)  # 36 columns are whole tiles, 37 leave one for the last
    hidden, head, targets, upstream = problem(positions, vocabulary=vocabulary)
    targets[0] = vocabulary - 1
    exact = full_logits(hidden, head, targets, upstream, cap).logps_S
    with torch.no_grad():
        found = token_logps(hidden, head, targets, cap)
    assert found.dtype == torch.float32
    assert relative(found, exact) < 2e-6
    assert relative(token_logps(hidden, head, targets, cap), exact) < 2e-6  # nothing here wants a gradient


@pytest.mark.parametrize("rest", [1e-1, 1e-3, 1e-5, 1e-7, 1e-12])
@pytest.mark.parametrize("column", [0, 20, 36])
def test_without_gradient_confident_and_hopeless_predictions(
    rest: float, column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log p of a token whose probability is 1 - rest, and of its 36 alternatives that share the rest."""
    monkeypatch.setattr(logprobs, "_TILE_COLUMNS", 12)
    head = torch.zeros(37, 1)
    head[column] = 1.0
    gap = math.log((1 - rest) / (rest / 36))
    targets = torch.tensor([column, (column + 1) % 37])
    with torch.no_grad():
        found = token_logps(torch.full((2, 1), gap), head, targets)
    exact = torch.tensor([math.log1p(-rest), math.log(rest / 36)], dtype=torch.float64)
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=0)


def test_equals_full_logits_at_the_real_chunk_size() -> None:
    data = problem(logprobs.CHUNK + 65, vocabulary=301)
    exact = full_logits(*data, None)
    for head_trains in (False, True):
        got = ours(*data, None, head_trains=head_trains)
        assert relative(got.logps_S, exact.logps_S) < 2e-6
        assert relative(got.d_hidden_SD, exact.d_hidden_SD) < 2e-6


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_gradcheck_in_float64(cap: float | None, head_trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 4)
    monkeypatch.setattr(logprobs, "_STRIP", 3)
    hidden, head, targets, _ = (x.double() if x.is_floating_point() else x for x in problem(6))
    head.requires_grad_(head_trains)
    assert torch.autograd.gradcheck(lambda h, w: token_logps(h, w, targets, cap), (hidden.requires_grad_(), head))


@pytest.mark.parametrize("rest", [1e-1, 1e-3, 1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize("head_trains", [False, True])
def test_confident_predictions(rest: float, head_trains: bool) -> None:
    """p(target) = 1 - rest. The head is the identity, so the hidden state is the row of logits."""
    vocabulary = 60
    torch.manual_seed(0)
    others = torch.rand(8, vocabulary - 1, dtype=torch.float64) + 0.1
    others = (others / others.sum(1, keepdim=True) * rest / (1 - rest)).log()
    logits = torch.cat([torch.zeros(8, 1, dtype=torch.float64), others], dim=1).float() + 3.0
    targets, upstream = torch.zeros(8, dtype=torch.int64), torch.ones(8)
    exact = full_logits(logits, torch.eye(vocabulary), targets, upstream, None)
    got = ours(logits, torch.eye(vocabulary), targets, upstream, None, head_trains=head_trains)
    assert float((-exact.logps_S).min()) == pytest.approx(-math.log1p(-rest), rel=1e-3)
    # Relative to numbers as small as 1e-7; fp32 log-softmax over all logits is wrong by 3% at 1e-5 and by 100% at 1e-7.
    assert float(((got.logps_S - exact.logps_S) / exact.logps_S).abs().max()) < 1e-6
    # In float64 the reference itself keeps nine digits of 1 - p.
    assert float(((got.d_hidden_SD - exact.d_hidden_SD) / exact.d_hidden_SD).abs().max()) < 2e-6


@pytest.mark.parametrize("cap", [None, 30.0])
def test_bf16_within_its_rounding(cap: float | None) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(100, 64).bfloat16(), (torch.randn(500, 64) / 4).bfloat16()
    targets, upstream = torch.randint(0, 500, (100,)), torch.rand(100)
    exact = full_logits(hidden, head, targets, upstream, cap)
    largest = float((hidden.double() @ head.double().T).abs().max())
    for head_trains in (False, True):
        got = ours(hidden, head, targets, upstream, cap, head_trains=head_trains)
        assert got.logps_S.dtype == torch.float32
        # A logit z is rounded by at most 2^-9 |z|; it enters once as target and once in the log-sum-exp.
        assert float((got.logps_S - exact.logps_S).abs().max()) < 2 * 2**-9 * largest
        for approximate, reference in ((got.d_hidden_SD, exact.d_hidden_SD), (got.d_head_VD, exact.d_head_VD)):
            if approximate is not None and reference is not None:
                assert float((approximate.double() - reference).norm() / reference.norm()) < 1e-2


def test_bf16_head_gradient_is_not_biased_by_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The partial sums of the head's gradient are added in fp32: 200 chunks are as good as one."""
    torch.manual_seed(0)
    hidden, head = torch.randn(800, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    targets, upstream = torch.randint(0, 50, (800,)), torch.full((800,), 0.001)
    exact = full_logits(hidden, head, targets, upstream, None).d_head_VD
    assert exact is not None
    error = {}
    for chunk in (4, 800):
        monkeypatch.setattr(logprobs, "CHUNK", chunk)
        got = ours(hidden, head, targets, upstream, None, head_trains=True).d_head_VD
        assert got is not None
        error[chunk] = float((got.double() - exact).norm() / exact.norm())
    assert error[4] < 1.5 * error[800] + 1e-3


@pytest.mark.parametrize("scale", [1e3, 1e10, 1e30])
def test_extreme_logits_stay_finite(scale: float) -> None:
    data = problem(9, scale=scale)
    got = ours(*data, None, head_trains=False)
    exact = full_logits(*data, None)
    assert torch.isfinite(got.logps_S).all()
    assert torch.isfinite(got.d_hidden_SD).all()
    assert relative(got.logps_S, exact.logps_S) < 2e-6


def test_impossible_tokens_and_overflow_are_told_apart() -> None:
    """A logit of -inf is a token of probability 0; +inf or NaN must not be hidden."""
    hidden = torch.ones(3, 1)
    head = torch.tensor([[0.0], [float("-inf")], [0.0], [0.0]])
    got = token_logps(hidden, head, torch.tensor([0, 1, 2]))
    assert got[[0, 2]].tolist() == pytest.approx([-math.log(3)] * 2)
    assert got[1] == float("-inf")
    assert torch.isnan(token_logps(torch.full((1, 1), float("nan")), torch.ones(4, 1), torch.tensor([0]))).all()
    assert not torch.isfinite(token_logps(torch.full((1, 1), 1e38), torch.full((4, 1), 1e5), torch.tensor([0]))).any()


def test_nothing_supervised() -> None:
    hidden, head = torch.randn(0, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    logps = token_logps(hidden, head, torch.zeros(0, dtype=torch.int64))
    logps.sum().backward()
    assert logps.shape == (0,)
    assert head.grad is not None
    assert head.grad.abs().sum() == 0


def test_never_more_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of [positions x vocabulary] is made, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    monkeypatch.setattr(logprobs, "CHUNK", 16)
    data = problem(160, vocabulary=1000)
    for head_trains in (False, True):
        with Watch():
            ours(*data, None, head_trains=head_trains)
    assert largest <= 16 * 1000
