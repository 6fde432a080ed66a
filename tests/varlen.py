"""torch's attention for sequences of many lengths as its documentation tells it: in its place where there is no GPU."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor


def documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """The query at place i of n sees the keys from i + m - n - left to i + m - n + right of m; -1: no limit."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.device == cu_seq_k.device == query.device
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = (math.inf if side < 0 else side for side in window_size)
    parts = []
    edges_q, edges_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    for (first_q, end_q), (first_k, end_k) in zip(pairwise(edges_q), pairwise(edges_k), strict=True):
        q, k, v = query[first_q:end_q], key[first_k:end_k], value[first_k:end_k]
        assert len(q) <= max_q
        assert len(k) <= max_k
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        own = torch.arange(len(q), device=q.device) + len(k) - len(q)
        ahead = torch.arange(len(k), device=q.device)[None, :] - own[:, None]
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        scores = scores.masked_fill((ahead > right) | (ahead < -left), -math.inf)
        parts.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v))
    assert edges_q[-1] == len(query)
    assert edges_k[-1] == len(key)
    return torch.cat(parts)
