"""Causal attention over packed sequences: every segment attends to itself and to the segments it continues.

Sequences lie in one row of T tokens; `Segments` says where, and which prefixes they share. There is no [T x T] mask and
no padding, so nothing can leak from one sequence to the next. On a CPU plain matrix products beat
``scaled_dot_product_attention`` in bf16 at a few hundred tokens (docs/log.md); the backward pass recomputes
the probabilities of long segments instead of keeping them. On other devices one of torch's kernels is used (`posttrain.model.packed_kernels`).

Shapes: H query heads, K key/value heads (H = K * G), L = lanes * K products of a batch, T packed tokens, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface

from posttrain.encode.segments import Segments
from posttrain.model import packed_kernels
from posttrain.model.kv_cache import Prefill, Step
from posttrain.model.packed_kernels import Request, by_segment, causal_bias, gather

IMPLEMENTATION = "posttrain_segments"
QUERY_BLOCK = 128
"""Queries handled at once; keys beyond the block's end are never computed. Smaller blocks waste less, larger ones multiply faster."""
KEPT_KEYS = 512
"""Probabilities of blocks with at most so many keys are kept for the backward pass: at most 2 H KEPT_KEYS bytes a token."""


def forget() -> None:
    """Drop the masks that are kept from one pass to the next: they must not be used where tensors have no values."""
    causal_bias.cache_clear()


def _even_lanes(kv_heads: int, threads: int) -> int:
    """Into how many lanes the queries of a block are split, so that the products of a batch keep all threads busy to the end.

    A batch of matrix products gives whole products to threads: three key/value heads on two threads leave one of them idle for a quarter of the time, six do not.
    """
    return min((1, 2, 4), key=lambda lanes: (-(-lanes * kv_heads // threads) / lanes, lanes))


class _Block(NamedTuple):
    """Queries ``begin`` to ``end``, all in one segment, and the places of the keys up to the last of them."""

    begin: int
    end: int
    key_spans: tuple[tuple[int, int], ...]
    lanes: int
    keep: bool
    """Whether probabilities are kept for the backward pass."""

    def split(self, x_KGTD: Tensor) -> Tensor:
        """The block's queries of [K, G, T, D] as [lanes * K, G * queries / lanes, D]: lane 0 has the first of them."""
        kv_heads, groups, _, size = x_KGTD.shape
        x = x_KGTD[:, :, self.begin : self.end].reshape(kv_heads, groups, self.lanes, -1, size)
        return x.permute(2, 0, 1, 3, 4).reshape(self.lanes * kv_heads, -1, size)

    def join(self, x_LND: Tensor, out_TKGD: Tensor) -> None:
        """The adjoint of `split`, written to its place in [T, K, G, D]."""
        _, kv_heads, groups, size = out_TKGD.shape
        x = x_LND.view(self.lanes, kv_heads, groups, -1, size)
        out_TKGD[self.begin : self.end].view(self.lanes, -1, kv_heads, groups, size).copy_(x.permute(0, 3, 1, 2, 4))


@lru_cache(maxsize=64)
def _blocks(segments: Segments, lanes: int) -> tuple[_Block, ...]:
    blocks = []
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        *before, (first, _) = segments.spans(index)
        for begin in range(start, start + length, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, start + length)
            keys = segments.depths[index] + end - start
            split = lanes if (end - begin) % lanes == 0 else 1
            blocks.append(_Block(begin, end, (*before, (first, end)), split, keys <= KEPT_KEYS))
    return tuple(blocks)


def _scatter_add(into_KTD: Tensor, parts_KND: Tensor, spans: tuple[tuple[int, int], ...]) -> None:
    """The adjoint of `packed_kernels.gather`, added up."""
    begin = 0
    for start, end in spans:
        into_KTD[:, start:end] += parts_KND[:, begin : begin + end - start]
        begin += end - start


def _probabilities(q_LND: Tensor, k_LTD: Tensor, block: _Block, window: int | None) -> Tensor:
    """Softmax over keys [L, G * queries / lanes, keys]; the score product is in the compute type, the softmax inside fp32."""
    scores = torch.bmm(q_LND, k_LTD.transpose(1, 2))
    queries, keys = block.end - block.begin, k_LTD.shape[1]
    masked = queries if window is None else keys  # without a window every query sees all keys before the block
    bias = causal_bias(queries, masked, window, scores.dtype, scores.device)
    by_lane = scores.view(block.lanes, -1, queries // block.lanes, keys)
    by_lane[..., keys - masked :].add_(bias.view(block.lanes, 1, -1, masked))
    return torch.softmax(scores, dim=-1)


def _rotate(x: Tensor, cos_TD: Tensor, sin_TD: Tensor, out: Tensor) -> Tensor:
    """out = x cos + rotate_half(x) sin over the last axis, x and out [..., T, D] (RoFormer, arXiv 2104.09864, eq. 34)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out[..., :half].copy_(first).mul_(cos_TD[:, :half]).addcmul_(second, sin_TD[:, :half], value=-1)
    out[..., half:].copy_(second).mul_(cos_TD[:, half:]).addcmul_(first, sin_TD[:, half:])
    return out


def _rotate_back(d: Tensor, cos_TD: Tensor, sin_TD: Tensor, out: Tensor) -> Tensor:
    """The adjoint of `_rotate`."""
    return _rotate(d, cos_TD, torch.cat(sin_TD.chunk(2, dim=-1)[::-1], dim=-1).neg_(), out)


class _SegmentAttention(torch.autograd.Function):
    """q [T, H, D], k [T, K, D], v [T, K, E] -> [T, H, E]; q and k are rotated by cos and sin [T, D] where these are given."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cos_TD: Tensor | None,
        sin_TD: Tensor | None,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> Tensor:
        tokens, heads, size = q_THD.shape
        kv_heads, width = v_TKD.shape[1:]
        groups = heads // kv_heads
        q_KGTD = q_THD.new_empty(kv_heads, groups, tokens, size)
        k_KTD = k_TKD.new_empty(kv_heads, tokens, size)
        q_source, k_source = q_THD.view(tokens, kv_heads, groups, size).permute(1, 2, 0, 3), k_TKD.transpose(0, 1)
        if cos_TD is None or sin_TD is None:
            q_KGTD.copy_(q_source)
            k_KTD.copy_(k_source)
        else:
            _rotate(q_source, cos_TD, sin_TD, q_KGTD)
            _rotate(k_source, cos_TD, sin_TD, k_KTD)
        q_KGTD.mul_(scale)
        v_KTD = v_TKD.transpose(0, 1)
        lanes = _even_lanes(kv_heads, torch.get_num_threads())
        k_LTD, v_LTD = k_KTD.repeat(lanes, 1, 1), v_KTD.repeat(lanes, 1, 1)
        out_TKGD = q_THD.new_empty(tokens, kv_heads, groups, width)
        kept = []
        for block in _blocks(segments, lanes):
            batch = block.lanes * kv_heads
            p = _probabilities(block.split(q_KGTD), gather(k_LTD[:batch], block.key_spans), block, window)
            if block.keep:
                kept.append(p)
            block.join(torch.bmm(p, gather(v_LTD[:batch], block.key_spans)), out_TKGD)
        ctx.save_for_backward(q_KGTD, k_KTD, v_KTD, cos_TD, sin_TD, *kept)  # type: ignore[arg-type]
        ctx.segments, ctx.lanes, ctx.scale, ctx.window = segments, lanes, scale, window  # type: ignore[attr-defined]
        return out_TKGD.view(tokens, heads, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_KGTD, k_KTD, v_KTD, cos_TD, sin_TD, *kept_list = ctx.saved_tensors
        kept = iter(kept_list)
        kv_heads, groups, tokens, size = q_KGTD.shape
        d_out_KGTD = grads[0].view(tokens, kv_heads, groups, -1).permute(1, 2, 0, 3)
        dq_TKGD = torch.empty(tokens, kv_heads, groups, size, dtype=k_KTD.dtype, device=k_KTD.device)
        k_LTD, v_LTD = k_KTD.repeat(ctx.lanes, 1, 1), v_KTD.repeat(ctx.lanes, 1, 1)
        # A prefix gets the gradients of all that continue it: summed in fp32.
        wide = torch.promote_types(k_KTD.dtype, torch.float32)
        dk_LTD, dv_LTD = (torch.zeros_like(x, dtype=wide) for x in (k_LTD, v_LTD))
        for block in _blocks(ctx.segments, ctx.lanes):
            batch, spans = block.lanes * kv_heads, block.key_spans
            q, d_out = block.split(q_KGTD), block.split(d_out_KGTD)
            k, v = gather(k_LTD[:batch], spans), gather(v_LTD[:batch], spans)
            p = next(kept) if block.keep else _probabilities(q, k, block, ctx.window)
            _scatter_add(dv_LTD[:batch], torch.bmm(p.transpose(1, 2), d_out), spans)
            dp = torch.bmm(d_out, v.transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, dp.dtype)
            _scatter_add(dk_LTD[:batch], torch.bmm(ds.transpose(1, 2), q), spans)
            block.join(torch.bmm(ds, k), dq_TKGD)
        dk_KTD, dv_KTD = (d.view(ctx.lanes, kv_heads, tokens, -1).sum(0) for d in (dk_LTD, dv_LTD))
        dq_TKGD.mul_(ctx.scale)
        if cos_TD is not None:
            by_token = dq_TKGD.view(tokens, -1, size).transpose(0, 1)
            dq_TKGD = _rotate_back(
                by_token, cos_TD, sin_TD, torch.empty_like(dq_TKGD).view(tokens, -1, size).transpose(0, 1)
            ).transpose(0, 1)
            dk_KTD = _rotate_back(dk_KTD, cos_TD, sin_TD, torch.empty_like(dk_KTD))
        dq_THD = dq_TKGD.reshape(tokens, kv_heads * groups, size)
        d_keys, d_values = (d.to(k_KTD.dtype).transpose(0, 1) for d in (dk_KTD, dv_KTD))
        return dq_THD, d_keys, d_values, None, None, None, None, None


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    kv_cache: Prefill | Step | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    observed: dict[str, Any] | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' AttentionInterface: query [1, H, T, D], key and value [1, K, T, D].

    Returns ([1, T, H, width of a value], None). The lengths of ``segments`` sum to T. With ``kv_cache`` keys and values are kept for decoding, or
    the T tokens are the next ones of as many sequences. ``s_aux``: attention sinks [H], as transformers calls them. Raises
    TypeError for calls that say neither.
    """
    if observed is not None:  # what a layer really asks for, whatever its attributes are called
        observed |= {"scaling": scaling, "sliding_window": sliding_window, "plain": softcap is None and s_aux is None}
    # Under autocast rotary positions leave queries and keys in fp32; the backward pass runs outside of autocast.
    q_HTD, k_KTD, v_KTD = query[0].to(value.dtype), key[0].to(value.dtype), value[0]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(kv_cache, Step):
        out = kv_cache.attend(module.layer_idx, q_HTD, k_KTD, v_KTD, scale, sliding_window, softcap, s_aux)  # type: ignore[arg-type]
        return out[None], None
    if segments is None:
        raise TypeError("this model is loaded for packed passes: `segments` must say where sequences begin")
    if kv_cache is not None:
        kv_cache.keep(module.layer_idx, k_KTD, v_KTD)  # type: ignore[arg-type]
    window = _effective_window(sliding_window, segments)
    request = Request(segments, scale, window, softcap, dropout, s_aux)
    if query.device.type != "cpu":
        out = packed_kernels.attention(q_HTD, k_KTD, v_KTD, request)
    elif request.plain:
        by_token = (x.transpose(0, 1) for x in (q_HTD, k_KTD, v_KTD))
        out = _SegmentAttention.apply(*by_token, None, None, segments, scale, window)
    else:
        out = by_segment(q_HTD, k_KTD, v_KTD, request)
    return out[None], None


def rotary_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    segments: Segments,
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    """Rotary positions and attention per segment in one function on a CPU: [T, H, D]. All in one type."""
    window = _effective_window(sliding_window, segments)
    out: Tensor = _SegmentAttention.apply(q_THD, k_TKD, v_TKD, cos_TD, sin_TD, segments, scale, window)
    return out


def _effective_window(sliding_window: int | None, segments: Segments) -> int | None:
    """The window where a sequence is longer than it."""
    longest = max(d + n for d, n in zip(segments.depths, segments.lengths, strict=True))
    return sliding_window if sliding_window is not None and longest > sliding_window else None


AttentionInterface.register(IMPLEMENTATION, segment_attention)
