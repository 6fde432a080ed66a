"""Causal attention over packed sequences: every segment attends to itself only.

Sequences lie side by side in one row of T tokens; ``segment_lengths`` says where they end. There is no [T x T] mask and
no padding, so nothing can leak from one sequence to the next. On a CPU plain matrix products beat
``scaled_dot_product_attention`` in bf16 at a few hundred tokens (docs/log.md); the backward pass recomputes
the probabilities of long segments instead of keeping them. On other devices torch's own attention is used, one segment at a time.

Shapes: H query heads, K key/value heads (H = K * G), T packed tokens, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from transformers import AttentionInterface

from posttrain.errors import ModelError

IMPLEMENTATION = "posttrain_segments"
QUERY_BLOCK = 256
"""Queries handled at once; keys beyond the block's end are never computed."""
KEPT_KEYS = 512
"""Probabilities of blocks with at most so many keys are kept for the backward pass: at most 2 H KEPT_KEYS bytes a token."""


@lru_cache(maxsize=64)
def _causal_bias(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[queries, keys] of 0 and -inf for the last ``queries`` positions of ``keys`` positions."""
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    allowed = column <= row
    if window is not None:
        allowed &= column > row - window
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


def _blocks(lengths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(segment start, block start, block end) for every query block of every segment."""
    blocks, start = [], 0
    for length in lengths:
        for begin in range(start, start + length, QUERY_BLOCK):
            blocks.append((start, begin, min(begin + QUERY_BLOCK, start + length)))
        start += length
    return blocks


def _probabilities(q_KND: Tensor, k_KTD: Tensor, queries: int, window: int | None) -> Tensor:
    """Softmax over keys [K, G * queries, keys]; the score product is in the compute type, the softmax inside fp32."""
    scores = torch.bmm(q_KND, k_KTD.transpose(1, 2))
    keys = k_KTD.shape[1]
    bias = _causal_bias(queries, keys, window, scores.dtype, scores.device)
    scores.view(scores.shape[0], -1, queries, keys).add_(bias)
    return torch.softmax(scores, dim=-1)


class _SegmentAttention(torch.autograd.Function):
    """q [H, T, D], k and v [K, T, D] -> [T, H, D]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q_HTD: Tensor,
        k_KTD: Tensor,
        v_KTD: Tensor,
        lengths: tuple[int, ...],
        scale: float,
        window: int | None,
    ) -> Tensor:
        heads, tokens, size = q_HTD.shape
        groups = heads // k_KTD.shape[0]
        q_KGTD = (q_HTD * scale).view(-1, groups, tokens, size)
        k_KTD, v_KTD = k_KTD.contiguous(), v_KTD.contiguous()
        out_TKGD = torch.empty(tokens, heads // groups, groups, size, dtype=q_HTD.dtype, device=q_HTD.device)
        kept = []
        for start, begin, end in _blocks(lengths):
            q_KND = q_KGTD[:, :, begin:end].reshape(-1, groups * (end - begin), size)
            p = _probabilities(q_KND, k_KTD[:, start:end], end - begin, window)
            if end - start <= KEPT_KEYS:
                kept.append(p)
            out = torch.bmm(p, v_KTD[:, start:end]).view(-1, groups, end - begin, size)
            out_TKGD[begin:end] = out.permute(2, 0, 1, 3)
        ctx.save_for_backward(q_KGTD, k_KTD, v_KTD, *kept)
        ctx.lengths, ctx.scale, ctx.window = lengths, scale, window  # type: ignore[attr-defined]
        return out_TKGD.view(tokens, heads, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_KGTD, k_KTD, v_KTD, *kept_list = ctx.saved_tensors
        kept = iter(kept_list)
        kv_heads, groups, tokens, size = q_KGTD.shape
        d_out_KGTD = grads[0].view(tokens, kv_heads, groups, size).permute(1, 2, 0, 3)
        dq_TKGD = torch.empty(tokens, kv_heads, groups, size, dtype=k_KTD.dtype, device=k_KTD.device)
        dk, dv = torch.zeros_like(k_KTD), torch.zeros_like(v_KTD)
        for start, begin, end in _blocks(ctx.lengths):
            rows = groups * (end - begin)
            q_KND = q_KGTD[:, :, begin:end].reshape(kv_heads, rows, size)
            d_out = d_out_KGTD[:, :, begin:end].reshape(kv_heads, rows, size)
            k, v = k_KTD[:, start:end], v_KTD[:, start:end]
            p = next(kept) if end - start <= KEPT_KEYS else _probabilities(q_KND, k, end - begin, ctx.window)
            dv[:, start:end] += torch.bmm(p.transpose(1, 2), d_out)
            dp = torch.bmm(d_out, v.transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, dp.dtype)
            dk[:, start:end] += torch.bmm(ds.transpose(1, 2), q_KND)
            dq = torch.bmm(ds, k).view(kv_heads, groups, end - begin, size)
            dq_TKGD[begin:end] = dq.permute(2, 0, 1, 3)
        dq_HTD = dq_TKGD.mul_(ctx.scale).view(tokens, kv_heads * groups, size).transpose(0, 1)
        return dq_HTD, dk, dv, None, None, None


def _reference_attention(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The same by autograd, one segment at a time; also the path for score caps, dropout and accelerators."""
    groups = q_HTD.shape[0] // k_KTD.shape[0]
    parts, start = [], 0
    for length in lengths:
        q, k, v = (x[:, start : start + length] for x in (q_HTD, k_KTD, v_KTD))
        if softcap is None:
            causal = window is None or length <= window
            bias = None if causal else _causal_bias(length, length, window, q.dtype, q.device)
            out = F.scaled_dot_product_attention(
                q[None],
                k[None],
                v[None],
                attn_mask=bias,
                is_causal=causal,
                scale=scale,
                dropout_p=dropout,
                enable_gqa=groups > 1,
            )[0]
        else:
            scores = (q @ k.repeat_interleave(groups, 0).transpose(1, 2) * scale).float()
            scores = torch.tanh(scores / softcap) * softcap + _causal_bias(
                length, length, window, torch.float32, q.device
            )
            p = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
            out = p @ v.repeat_interleave(groups, 0)
        parts.append(out.transpose(0, 1))
        start += length
    return torch.cat(parts)


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_lengths: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' AttentionInterface: query [1, H, T, D], key and value [1, K, T, D].

    Returns ([1, T, H, D], None). ``segment_lengths`` sum to T. Raises ModelError for layers this can't compute exactly
    (attention sinks).
    """
    if unused.get("s_aux") is not None:
        raise ModelError("this model uses attention sinks, which packed training does not support")
    # Under autocast rotary positions leave queries and keys in fp32; the backward pass runs outside of autocast.
    q_HTD, k_KTD, v_KTD = query[0].to(value.dtype), key[0].to(value.dtype), value[0]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window if sliding_window is not None and max(segment_lengths) > sliding_window else None
    if query.device.type == "cpu" and softcap is None and dropout == 0.0:
        out = _SegmentAttention.apply(q_HTD, k_KTD, v_KTD, segment_lengths, scale, window)
    else:
        out = _reference_attention(q_HTD, k_KTD, v_KTD, segment_lengths, scale, window, softcap, dropout)
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, segment_attention)
