"""Causal attention over packed sequences: every segment attends to itself and to the segments it continues.

Sequences lie in one row of T tokens; `Segments` says where, and which prefixes they share. There is no [T x T] mask and
no padding, so nothing can leak from one sequence to the next. On a CPU plain matrix products beat
``scaled_dot_product_attention`` in bf16 at a few hundred tokens (docs/log.md); the backward pass recomputes
the probabilities of long segments instead of keeping them. On other devices torch's own attention is used, one segment at a time.

Shapes: H query heads, K key/value heads (H = K * G), T packed tokens, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from transformers import AttentionInterface

from posttrain.encode.segments import Segments
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


class _Block(NamedTuple):
    """Queries ``begin`` to ``end``, all in one segment, and the places of the keys up to the last of them."""

    begin: int
    end: int
    key_spans: tuple[tuple[int, int], ...]
    keep: bool
    """Whether probabilities are kept for the backward pass."""


@lru_cache(maxsize=64)
def _blocks(segments: Segments) -> tuple[_Block, ...]:
    blocks = []
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        *before, (first, _) = segments.spans(index)
        for begin in range(start, start + length, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, start + length)
            keys = segments.depths[index] + end - start
            blocks.append(_Block(begin, end, (*before, (first, end)), keys <= KEPT_KEYS))
    return tuple(blocks)


def _gather(x_KTD: Tensor, spans: tuple[tuple[int, int], ...]) -> Tensor:
    """The places of all spans along T; a view where there is one span."""
    parts = [x_KTD[:, start:end] for start, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scatter_add(into_KTD: Tensor, parts_KND: Tensor, spans: tuple[tuple[int, int], ...]) -> None:
    """The adjoint of `_gather`, added up."""
    begin = 0
    for start, end in spans:
        into_KTD[:, start:end] += parts_KND[:, begin : begin + end - start]
        begin += end - start


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
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> Tensor:
        heads, tokens, size = q_HTD.shape
        groups = heads // k_KTD.shape[0]
        q_KGTD = (q_HTD * scale).view(-1, groups, tokens, size)
        k_KTD, v_KTD = k_KTD.contiguous(), v_KTD.contiguous()
        out_TKGD = torch.empty(tokens, heads // groups, groups, size, dtype=q_HTD.dtype, device=q_HTD.device)
        kept = []
        for begin, end, spans, keep in _blocks(segments):
            q_KND = q_KGTD[:, :, begin:end].reshape(-1, groups * (end - begin), size)
            p = _probabilities(q_KND, _gather(k_KTD, spans), end - begin, window)
            if keep:
                kept.append(p)
            out = torch.bmm(p, _gather(v_KTD, spans)).view(-1, groups, end - begin, size)
            out_TKGD[begin:end] = out.permute(2, 0, 1, 3)
        ctx.save_for_backward(q_KGTD, k_KTD, v_KTD, *kept)
        ctx.segments, ctx.scale, ctx.window = segments, scale, window  # type: ignore[attr-defined]
        return out_TKGD.view(tokens, heads, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_KGTD, k_KTD, v_KTD, *kept_list = ctx.saved_tensors
        kept = iter(kept_list)
        kv_heads, groups, tokens, size = q_KGTD.shape
        d_out_KGTD = grads[0].view(tokens, kv_heads, groups, size).permute(1, 2, 0, 3)
        dq_TKGD = torch.empty(tokens, kv_heads, groups, size, dtype=k_KTD.dtype, device=k_KTD.device)
        # A prefix gets the gradients of all that continue it: summed in fp32.
        wide = torch.promote_types(k_KTD.dtype, torch.float32)
        dk_KTD, dv_KTD = torch.zeros_like(k_KTD, dtype=wide), torch.zeros_like(v_KTD, dtype=wide)
        for begin, end, spans, keep in _blocks(ctx.segments):
            rows = groups * (end - begin)
            q_KND = q_KGTD[:, :, begin:end].reshape(kv_heads, rows, size)
            d_out = d_out_KGTD[:, :, begin:end].reshape(kv_heads, rows, size)
            k, v = _gather(k_KTD, spans), _gather(v_KTD, spans)
            p = next(kept) if keep else _probabilities(q_KND, k, end - begin, ctx.window)
            _scatter_add(dv_KTD, torch.bmm(p.transpose(1, 2), d_out), spans)
            dp = torch.bmm(d_out, v.transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, dp.dtype)
            _scatter_add(dk_KTD, torch.bmm(ds.transpose(1, 2), q_KND), spans)
            dq = torch.bmm(ds, k).view(kv_heads, groups, end - begin, size)
            dq_TKGD[begin:end] = dq.permute(2, 0, 1, 3)
        dq_HTD = dq_TKGD.mul_(ctx.scale).view(tokens, kv_heads * groups, size).transpose(0, 1)
        return dq_HTD, dk_KTD.to(k_KTD.dtype), dv_KTD.to(v_KTD.dtype), None, None, None


def _reference_attention(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The same by autograd, one segment at a time; also the path for score caps, dropout and accelerators."""
    groups = q_HTD.shape[0] // k_KTD.shape[0]
    parts = []
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        spans, keys = segments.spans(index), segments.depths[index] + length
        q, k, v = q_HTD[:, start : start + length], _gather(k_KTD, spans), _gather(v_KTD, spans)
        if softcap is None:
            # torch's own causal mask is aligned at the first key, ours at the last
            causal = keys == length and (window is None or keys <= window)
            bias = None if causal else _causal_bias(length, keys, window, q.dtype, q.device)
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
            scores = torch.tanh(scores / softcap) * softcap
            scores = scores + _causal_bias(length, keys, window, torch.float32, q.device)
            p = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
            out = p @ v.repeat_interleave(groups, 0)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' AttentionInterface: query [1, H, T, D], key and value [1, K, T, D].

    Returns ([1, T, H, D], None). The lengths of ``segments`` sum to T. Raises ModelError for layers this can't compute exactly
    (attention sinks).
    """
    if unused.get("s_aux") is not None:
        raise ModelError("this model uses attention sinks, which packed training does not support")
    # Under autocast rotary positions leave queries and keys in fp32; the backward pass runs outside of autocast.
    q_HTD, k_KTD, v_KTD = query[0].to(value.dtype), key[0].to(value.dtype), value[0]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    longest = max(d + n for d, n in zip(segments.depths, segments.lengths, strict=True))
    window = sliding_window if sliding_window is not None and longest > sliding_window else None
    if query.device.type == "cpu" and softcap is None and dropout == 0.0:
        out = _SegmentAttention.apply(q_HTD, k_KTD, v_KTD, segments, scale, window)
    else:
        out = _reference_attention(q_HTD, k_KTD, v_KTD, segments, scale, window, softcap, dropout)
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, segment_attention)
