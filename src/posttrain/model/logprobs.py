"""Log-probabilities of given next tokens: the only place where logits exist (but for a head that only the model's code knows, `forward.own_logps`).

``token_logps(hidden_SD, head_VD, targets_S)`` returns log p(target) for S supervised positions, computed in chunks so
that never more than ``CHUNK`` rows of the vocabulary are in memory. The product with the output head runs in the compute
type; log-sum-exp and the gathered logit are fp32. One primitive serves every objective.

With a frozen head the gradient of each log-probability with respect to its hidden state,
``d logp_s / d hidden_s = head[target_s] - softmax(logits_s) @ head``, does not depend on what comes after, so it is
formed in the forward pass while the logits are at hand and only scaled in the backward pass: two large products a token
instead of three, and no logits kept.

Shapes: S positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Positions whose logits exist at once. Smaller chunks read the head's weights more often."""
_TILE_ROWS, _TILE_COLUMNS = 1024, 2048
"""Logits at once where only log-probabilities are wanted: 8 MB of fp32, which stay in a processor's cache."""
_WIDE_COLUMNS = 32768
"""The same on accelerators, where small operations cost as much as large ones: 128 MB."""
_STRIP = 64
"""Rows turned from logits into probabilities at once: their fp32 copy stays in the processor's cache."""


def _accurate(dtype: torch.dtype) -> torch.dtype:
    """The type of log-sum-exp: fp32, or fp64 for fp64 logits (so that gradients can be checked numerically)."""
    return torch.promote_types(dtype, torch.float32)


def _logps_and_residual(logits_CV: Tensor, targets_C: Tensor, cap: float | None) -> Tensor:
    """fp32 log-probabilities [C] of the targets; overwrites the logits with the residual d(-log p) / d logits.

    The residual is softmax - onehot(target), times the slope of the cap where there is one. ``1 - p`` of the
    target is the sum of all other probabilities, not a difference, so it keeps all its digits at confident predictions.
    """
    logps_C = torch.empty(len(logits_CV), dtype=_accurate(logits_CV.dtype), device=logits_CV.device)
    for begin in range(0, len(logits_CV), _STRIP):
        strip = slice(begin, begin + _STRIP)
        z = logits_CV[strip].to(logps_C.dtype)
        if cap is not None:
            z = torch.tanh(z / cap).mul_(cap)
        index = targets_C[strip, None]
        target_logit = z.gather(1, index)
        top = z.amax(dim=1, keepdim=True)
        slope = 1 - (z / cap).square() if cap is not None else None
        z = z.sub_(top).exp_()
        own = z.gather(1, index)
        rest = z.scatter_(1, index, 0.0).sum(dim=1, keepdim=True)
        total = rest + own
        # Where the target is the likeliest token, log p = -log1p(rest): exact also when rest is lost beside 1.
        logps_C[strip] = torch.where(own == 1, -torch.log1p(rest), target_logit - top - total.log())[:, 0]
        residual = z.div_(total).scatter_(1, index, -rest / total)
        logits_CV[strip] = residual if slope is None else residual.mul_(slope)
    return logps_C


def _product(hidden_CD: Tensor, head_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logits [C, V], in memory of their own."""
    return hidden_CD @ head_VD.T if bias_V is None else torch.addmm(bias_V, hidden_CD, head_VD.T)


def _logps_alone(
    hidden_SD: Tensor, head_VD: Tensor, targets_S: Tensor, cap: float | None, bias_V: Tensor | None
) -> Tensor:
    """fp32 log-probabilities [S] of the targets where no gradient is wanted: logits exist in tiles that stay in the cache.

    A running maximum and sum, as in online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), with the target left out of the
    sum for the reason given above.
    """
    wide = _accurate(hidden_SD.dtype)
    width = _TILE_COLUMNS if hidden_SD.device.type == "cpu" else _WIDE_COLUMNS
    logps_S = torch.empty(len(hidden_SD), dtype=wide, device=hidden_SD.device)
    for begin in range(0, len(hidden_SD), _TILE_ROWS):
        rows = slice(begin, begin + _TILE_ROWS)
        hidden_CD, targets_C = hidden_SD[rows], targets_S[rows]
        target_C = torch.empty(len(targets_C), dtype=wide, device=hidden_SD.device)
        top_C, rest_C = torch.full_like(target_C, -torch.inf), torch.zeros_like(target_C)
        for first in range(0, len(head_VD), width):
            columns = slice(first, first + width)
            z = _product(hidden_CD, head_VD[columns], None if bias_V is None else bias_V[columns]).to(wide)
            if cap is not None:
                z = torch.tanh(z / cap).mul_(cap)
            # without asking which targets are in this tile: a GPU would wait for the answer
            place_C1 = (targets_C[:, None] - first).clamp(0, z.shape[1] - 1)
            here_C1 = place_C1 == targets_C[:, None] - first
            own_C1 = z.gather(1, place_C1)
            target_C = torch.where(here_C1, own_C1, target_C[:, None])[:, 0]
            z.scatter_(1, place_C1, own_C1.masked_fill_(here_C1, -torch.inf))
            tile_top_C = torch.maximum(top_C, z.amax(dim=1))
            rest_C.mul_((top_C - tile_top_C).exp_())
            top_C = tile_top_C
            rest_C += z.sub_(top_C[:, None]).exp_().sum(dim=1)
        # Both terms relative to the larger of the target and the rest: exact where either is lost beside the other.
        ahead_C = (target_C - top_C).clamp(min=0)
        rest_C *= (-ahead_C).exp()
        behind_C = (target_C - top_C).clamp(max=0)
        logps_S[rows] = torch.where(behind_C == 0, -torch.log1p(rest_C), behind_C - (rest_C + behind_C.exp()).log())
    return logps_S


class _TokenLogps(torch.autograd.Function):
    """hidden [S, D], head [V, D], bias [V] or None, targets [S] -> log p [S] in fp32."""

    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, head_VD: Tensor, bias_V: Tensor | None, targets_S: Tensor, cap: float | None
    ) -> Tensor:
        logps_S = torch.empty(len(hidden_SD), dtype=_accurate(hidden_SD.dtype), device=hidden_SD.device)
        hidden_trains, head_trains = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        unit_gradient_SD = torch.empty_like(hidden_SD) if hidden_trains and not head_trains else None
        for begin in range(0, len(hidden_SD), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            residual_CV = _product(hidden_SD[chunk], head_VD, bias_V)
            logps_S[chunk] = _logps_and_residual(residual_CV, targets_S[chunk], cap)
            if unit_gradient_SD is not None:
                torch.mm(residual_CV, head_VD, out=unit_gradient_SD[chunk])
            del residual_CV  # before the next chunk is made
        if unit_gradient_SD is not None:
            ctx.save_for_backward(unit_gradient_SD)
        else:
            ctx.save_for_backward(hidden_SD, head_VD, bias_V, targets_S)
        ctx.head_trains, ctx.cap = head_trains, cap
        return logps_S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        upstream_S1 = -grads[0][:, None]
        if not ctx.head_trains:
            (unit_gradient_SD,) = ctx.saved_tensors
            return unit_gradient_SD * upstream_S1.to(unit_gradient_SD.dtype), None, None, None, None
        hidden_SD, head_VD, bias_V, targets_S = ctx.saved_tensors
        d_hidden_SD = torch.empty_like(hidden_SD)
        d_head_VD = torch.zeros(head_VD.shape, dtype=_accurate(head_VD.dtype), device=head_VD.device)
        d_bias_V = d_head_VD.new_zeros(len(head_VD))
        for begin in range(0, len(hidden_SD), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            residual_CV = _product(hidden_SD[chunk], head_VD, bias_V)
            _logps_and_residual(residual_CV, targets_S[chunk], ctx.cap)
            residual_CV *= upstream_S1[chunk].to(residual_CV.dtype)
            torch.mm(residual_CV, head_VD, out=d_hidden_SD[chunk])
            # Chunks are summed in fp32: rounding every partial sum to bf16 would bias the head.
            d_head_VD += residual_CV.T @ hidden_SD[chunk]
            if bias_V is not None:
                d_bias_V += residual_CV.sum(dim=0, dtype=d_bias_V.dtype)
            del residual_CV
        return (
            d_hidden_SD,
            d_head_VD.to(head_VD.dtype),
            None if bias_V is None else d_bias_V.to(bias_V.dtype),
            None,
            None,
        )


def token_logps(
    hidden_SD: Tensor,
    head_VD: Tensor,
    targets_S: Tensor,
    cap: float | None = None,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """log p(targets_S) in fp32 [S] from final hidden states and the output head.

    hidden_SD: [S, D] in the compute type. head_VD: [V, D], cast to the compute type, as is bias_V: [V], which few models have.
    targets_S: int64 [S]. scale, cap: what some models do to their logits z (Granite, Cohere; Gemma 2):
    logits = cap * tanh(scale * z / cap), or scale * z without a cap. Differentiable in hidden_SD, head_VD and bias_V.
    """
    head_VD = head_VD.to(hidden_SD.dtype)
    bias_V = None if bias_V is None else bias_V.to(hidden_SD.dtype)
    if scale != 1.0:
        hidden_SD, bias_V = hidden_SD * scale, None if bias_V is None else bias_V * scale
    trained = hidden_SD.requires_grad or head_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
    if not (torch.is_grad_enabled() and trained):
        return _logps_alone(hidden_SD, head_VD, targets_S, cap, bias_V)
    result: Tensor = _TokenLogps.apply(hidden_SD, head_VD, bias_V, targets_S, cap)
    return result
