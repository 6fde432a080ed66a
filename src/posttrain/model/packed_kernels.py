"""Attention over packed segments on accelerators: a table of kernels, and which of them a setting gets.

    varlen   torch's kernel for sequences of many lengths (FlashAttention): all segments in one call, in 16 bits
    flex     flex attention, compiled for a mask of blocks: all segments in one call, any type, capped scores too
    sdpa     scaled_dot_product_attention, one call a segment: takes everything, and is what the others are held to

Nothing is taken on trust: the first time a setting is met, every kernel that says it can computes a probe with shared prefixes, forward and
backward. One that fails, or differs from ``sdpa``, is left out with a warning; of the others the fastest is kept.

Shapes: H query heads, K key/value heads, T packed tokens, N segments, D head size, E size of values. Kernels take q [H, T, D], k [K, T, D],
v [K, T, E] and give [T, H, E].
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.encode.segments import Segments
from posttrain.model.hardware import to_device, wait_for

SMALL = 512
"""Fewer tokens are computed one call a segment: proofs at loading, short prompts. Nothing is compiled for them."""
BLOCK = 128
"""Tokens on both sides of a block of flex attention's mask."""
PROBE = Segments((256, 300, 77, 512, 400, 503), (-1, 0, 0, -1, -1, 3))
PROBE_WINDOW = 100
REPEATS = 3
RECOMPILES = 64
_TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.01, torch.bfloat16: 0.03}
"""Of the 2-norm. Two ways to compute in bf16 are 0.005 apart; fp32 products may be in TF32. A key too many or too few moves it by 0.05 and more."""
_FLASH_SIZE = 256


class Request(NamedTuple):
    """What an attention layer asks for."""

    segments: Segments
    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    sinks_H: Tensor | None = None
    """A score that every head adds to its softmax and that has no value (gpt-oss; Xiao et al. 2023, arXiv:2309.17453)."""

    @property
    def plain(self) -> bool:
        """Whether it is a softmax of scores and nothing else."""
        return self.softcap is None and self.sinks_H is None and self.dropout == 0.0


Inputs = tuple[Tensor, Tensor, Tensor]
Attention = Callable[[Tensor, Tensor, Tensor, Request], Tensor]


class Kernel(NamedTuple):
    """One way to compute, and which inputs it says it takes."""

    attend: Attention
    takes: Callable[[Inputs, Request], bool]


def attention(q_HTD: Tensor, k_KTD: Tensor, v_KTE: Tensor, request: Request) -> Tensor:
    """Attention per segment [T, H, E] by the kernel that this setting gets."""
    return KERNELS[chosen((q_HTD, k_KTD, v_KTE), request)].attend(q_HTD, k_KTD, v_KTE, request)


# ---- one call a segment ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def causal_bias(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[queries, keys] of 0 and -inf for the last ``queries`` positions of ``keys`` positions."""
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    allowed = column <= row
    if window is not None:
        allowed &= column > row - window
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


def gather(x_KTD: Tensor, spans: tuple[tuple[int, int], ...]) -> Tensor:
    """The places of all spans along T; a view where there is one span."""
    parts = [x_KTD[:, start:end] for start, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def by_segment(q_HTD: Tensor, k_KTD: Tensor, v_KTE: Tensor, request: Request) -> Tensor:
    """One segment after the other, by autograd; on a CPU the path for score caps, sinks and dropout."""
    segments, scale, window, softcap, dropout, sinks_H = request
    groups = q_HTD.shape[0] // k_KTD.shape[0]
    parts = []
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        spans, keys = segments.spans(index), segments.depths[index] + length
        q, k, v = q_HTD[:, start : start + length], gather(k_KTD, spans), gather(v_KTE, spans)
        if softcap is None and sinks_H is None:
            # torch's own causal mask is aligned at the first key, ours at the last
            causal = keys == length and (window is None or keys <= window)
            bias = None if causal else causal_bias(length, keys, window, q.dtype, q.device)
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
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            scores = scores + causal_bias(length, keys, window, torch.float32, q.device)
            if sinks_H is not None:
                scores = torch.cat([scores, sinks_H.float()[:, None, None].expand(-1, length, 1)], dim=-1)
            p = F.dropout(scores.softmax(-1)[..., :keys].to(v.dtype), dropout)
            out = p @ v.repeat_interleave(groups, 0)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


# ---- all segments in one call ----------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Segments as sequences of queries and of keys, which begin at ``queries`` and ``keys`` [N + 1]."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int
    places: Tensor | None
    """Where the keys of all segments stand, those of what they continue with them; None: as they lie."""


@lru_cache(maxsize=64)
def _layout(segments: Segments, device: torch.device) -> _Layout:
    keys = [d + n for d, n in zip(segments.depths, segments.lengths, strict=True)]
    spans = [span for index in range(len(keys)) for span in segments.spans(index)]
    places = np.concatenate([np.arange(*span) for span in spans]) if segments.shared else None
    edges = (np.cumsum([0, *lengths]).astype(np.int32) for lengths in (segments.lengths, keys))
    queries_N, keys_N = (to_device(x, device) for x in edges)
    most = max(segments.lengths), max(keys)
    return _Layout(queries_N, keys_N, *most, None if places is None else to_device(places, device))


class _Repeated(torch.autograd.Function):
    """The given places of x [T, K, D]; the gradients of a place that stands there more than once are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x_TKD: Tensor, places_X: Tensor) -> Tensor:
        ctx.save_for_backward(places_X)
        ctx.tokens = len(x_TKD)
        return x_TKD.index_select(0, places_X)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places_X,) = ctx.saved_tensors
        wide = torch.promote_types(grads[0].dtype, torch.float32)
        summed_TKD = grads[0].new_zeros(ctx.tokens, *grads[0].shape[1:], dtype=wide)
        return summed_TKD.index_add_(0, places_X, grads[0].to(wide)).to(grads[0].dtype), None


def _varlen_attn(*arguments: Any, **options: Any) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # it loads torch's compiler

    return varlen_attn(*arguments, **options)  # type: ignore[return-value]


def _varlen(q_HTD: Tensor, k_KTD: Tensor, v_KTE: Tensor, request: Request) -> Tensor:
    """Queries of a segment are the last of its keys, which is how this kernel aligns its mask; a window counts the keys before the own."""
    layout = _layout(request.segments, q_HTD.device)
    q_THD, k_TKD, v_TKE = (x.transpose(0, 1) for x in (q_HTD, k_KTD, v_KTE))
    if layout.places is not None:
        k_TKD, v_TKE = (_Repeated.apply(x, layout.places) for x in (k_TKD, v_TKE))
    return _varlen_attn(
        q_THD,
        k_TKD,
        v_TKE,
        layout.queries,
        layout.keys,
        layout.most_queries,
        layout.most_keys,
        scale=request.scale,
        window_size=(-1 if request.window is None else request.window - 1, 0),
        enable_gqa=len(q_HTD) != len(k_KTD),
    )


def _varlen_takes(inputs: Inputs, request: Request) -> bool:
    q, _, v = inputs
    size = q.shape[-1]
    fits = size == v.shape[-1] and size % 8 == 0 and size <= _FLASH_SIZE
    return request.plain and fits and q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16)


@lru_cache(maxsize=64)
def _block_mask(segments: Segments, window: int | None, device: torch.device) -> Any:
    """flex attention's mask: a block is computed where a segment of its queries has keys in it, and there token by token."""
    from torch.nn.attention.flex_attention import BlockMask

    count, tokens = len(segments.lengths), sum(segments.lengths)
    sides = -(-tokens // BLOCK)
    continued_NN, seen = np.eye(count, dtype=bool), np.zeros((sides, sides), bool)
    for index, parent in enumerate(segments.parents):
        if parent >= 0:
            continued_NN[index] |= continued_NN[parent]
        start = segments.starts[index]
        rows = slice(start // BLOCK, (start + segments.lengths[index] - 1) // BLOCK + 1)
        for first, end in segments.spans(index):
            seen[rows, first // BLOCK : (end - 1) // BLOCK + 1] = True
    seen = np.tril(seen)
    owner_T = to_device(np.repeat(np.arange(count), segments.lengths), device)
    position_T, continued = to_device(segments.positions, device), to_device(continued_NN, device)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = (key <= query) & continued[owner_T[query], owner_T[key]]
        return allowed if window is None else allowed & (position_T[query] - position_T[key] < window)

    counts = to_device(seen.sum(-1).astype(np.int32)[None, None], device)
    order = to_device(np.argsort(~seen, axis=-1, kind="stable").astype(np.int32)[None, None], device)
    return BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(tokens, tokens))


@cache
def _flex_attention() -> Callable[..., Tensor]:
    """flex attention compiled: once for the first layout of a setting, once more for all others.

    Not ``dynamic=True``: then a cap is no constant, and torch 2.13 has no gradient for it. Beyond the limit of compilations it would run uncompiled,
    with all scores in memory, so the limit is more than a run needs.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def attend(*arguments: Any, **options: Any) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
            out: Tensor = compiled(*arguments, **options)
        return out

    return attend


def _flex(q_HTD: Tensor, k_KTD: Tensor, v_KTE: Tensor, request: Request) -> Tensor:
    cap = request.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score if cap is None else torch.tanh(score / cap) * cap

    out = _flex_attention()(
        q_HTD[None],
        k_KTD[None],
        v_KTE[None],
        score_mod=None if cap is None else capped,
        block_mask=_block_mask(request.segments, request.window, q_HTD.device),
        scale=request.scale,
        enable_gqa=len(q_HTD) != len(k_KTD),
    )
    return out[0].transpose(0, 1)


def _flex_takes(inputs: Inputs, request: Request) -> bool:
    return inputs[0].device.type == "cuda" and request.sinks_H is None and request.dropout == 0.0


KERNELS = {
    "varlen": Kernel(_varlen, _varlen_takes),
    "flex": Kernel(_flex, _flex_takes),
    "sdpa": Kernel(by_segment, lambda inputs, request: True),
}


# ---- which one -------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What decides which kernel is fastest, and whether it works."""

    names: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    heads: tuple[int, int]
    sizes: tuple[int, int]
    windowed: bool
    softcap: float | None


def chosen(inputs: Inputs, request: Request) -> str:
    """The name of the kernel for these inputs."""
    q, k, v = inputs
    names = tuple(name for name, kernel in KERNELS.items() if kernel.takes(inputs, request))
    if len(names) == 1 or q.shape[1] < SMALL:
        return "sdpa"
    heads, sizes = (len(q), len(k)), (q.shape[-1], v.shape[-1])
    return fastest(Setting(names, q.device, q.dtype, heads, sizes, request.window is not None, request.softcap))


@cache
def fastest(setting: Setting) -> str:
    """The fastest of ``names`` that computes what ``sdpa`` does."""
    inputs, request = probe(setting)
    own, seconds = tried("sdpa", inputs, request)
    best, least = "sdpa", seconds
    for name in setting.names[:-1]:
        try:
            found, seconds = tried(name, inputs, request)
            apart = difference(found, own)
        except Exception as error:  # whatever it raises here (no compiler, no such kernel), there is another
            warnings.warn(f"attention kernel {name} is left out on {setting.device}: {_line(error)}", stacklevel=2)
            continue
        if not apart <= tolerance(setting.dtype):
            warnings.warn(
                f"attention kernel {name} is left out on {setting.device}: it is {apart:.2g} from sdpa", stacklevel=2
            )
        elif seconds < least:
            best, least = name, seconds
    return best


def probe(setting: Setting) -> tuple[Inputs, Request]:
    """Random inputs of a setting and what is asked of them."""
    generator, tokens = torch.Generator().manual_seed(0), sum(PROBE.lengths)
    shapes = zip((setting.heads[0], *2 * setting.heads[1:]), (setting.sizes[0], *setting.sizes), strict=True)
    q, k, v = (
        torch.randn(tokens, heads, size, generator=generator).to(setting.device, setting.dtype).transpose(0, 1)
        for heads, size in shapes
    )
    window = PROBE_WINDOW if setting.windowed else None
    return (q, k, v), Request(PROBE, setting.sizes[0] ** -0.5, window, setting.softcap)


def tried(name: str, inputs: Inputs, request: Request, repeats: int = REPEATS) -> tuple[list[Tensor], float]:
    """Output and gradients [q, k, v] of a kernel, and the seconds both passes take: the least of a few, after the first."""
    device, least = inputs[0].device, math.inf
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for repeat in range(repeats + 1):
            q, k, v = leaves = [x.detach().requires_grad_() for x in inputs]
            wait_for(device)
            begin = time.perf_counter()
            out = KERNELS[name].attend(q, k, v, request)
            gradients = torch.autograd.grad(out, leaves, torch.ones_like(out) + out.detach())
            wait_for(device)
            if repeat:
                least = min(least, time.perf_counter() - begin)
    return [out.detach(), *gradients], least


def tolerance(dtype: torch.dtype) -> float:
    """How far two kernels may be apart in this type: see `difference`."""
    return _TOLERANCE.get(dtype, 2e-3)


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of the 2-norms of the differences relative to the 2-norm."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
