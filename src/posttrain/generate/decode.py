"""Token-by-token decoding of a local model: greedy or sampled, with continuous batching.

A sequence that ends gives its place to the next prompt in the queue, so the batch stays full while there is work, and no
token is computed for the sake of a longer neighbour. ``decode`` is a generator: chat streams from it, evaluation collects it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.model.load import causal_lm, next_logits
from posttrain.model.slots import Prefill, SlotCache, Step

FinishReason = Literal["stop", "length"]
SLOTS = 64
"""Sequences continued at once."""
PREFILL_TOKENS = 2048
"""Prompt tokens computed at once, unless a single prompt is longer."""
LIKELY = 512
"""Tokens looked at first when sampling from the top of the distribution."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 = greedy (the most likely token)."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability exceeds this (Holtzman et al. 2019, arXiv:1904.09751)."""
    seed: int = 0
    """Prompt number i draws from a generator of its own, seeded with ``seed + i``: what it says does not depend on its neighbours'
    draws."""


class NewToken(NamedTuple):
    """One decoded token of one prompt. ``finish`` is set on the last one."""

    prompt: int
    token: int
    finish: FinishReason | None


@dataclass
class _Live:
    """A sequence that is being continued."""

    prompt: int
    limit: int
    generator: torch.Generator
    ids: list[int]


def decode(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    max_new_tokens: int | Sequence[int],
    sampling: Sampling = Sampling(),
    slots: int = SLOTS,
) -> Iterator[NewToken]:
    """Continue every prompt until one of the ``stops`` (token sequences) or its ``max_new_tokens``.

    At most ``slots`` prompts are continued at once, long ones first. Yields tokens step by step, those of a step in the order
    of the prompts; tokens of the stop are yielded as well.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    device = causal_lm(model).get_input_embeddings().weight.device
    queue = sorted((i for i, limit in enumerate(limits) if limit > 0), key=lambda i: -len(prompts[i]))
    cache, live = SlotCache(min(slots, len(queue))), list[_Live]()
    while queue or live:
        fresh = _admitted(queue, prompts, cache.slots - len(live))
        queue = queue[len(fresh) :]
        if fresh:
            ids = np.concatenate([prompts[i] for i in fresh])
            places = np.concatenate([np.arange(len(prompts[i])) for i in fresh])
            begun = [_Live(i, limits[i], torch.Generator().manual_seed(sampling.seed + i), []) for i in fresh]
            step: Prefill | Step = Prefill(cache, [len(prompts[i]) for i in fresh])
        else:
            ids = np.array([sequence.ids[-1] for sequence in live])
            places = np.array(cache.lengths)
            begun, step = [], Step(cache)
        ids_T, places_T = (torch.from_numpy(x.astype(np.int64)).to(device) for x in (ids, places))
        logits_BV = next_logits(model, ids_T, places_T, step)
        first = len(live) if fresh else 0
        live += begun
        yield from _advance(live, first, logits_BV, stops, sampling, cache)


def _admitted(queue: Sequence[int], prompts: Sequence[NDArray[np.int32]], free: int) -> list[int]:
    """The next prompts to begin: as many as have a slot and fit into one pass."""
    taken: list[int] = []
    tokens = 0
    for index in queue[:free]:
        tokens += len(prompts[index])
        if taken and tokens > PREFILL_TOKENS:
            break
        taken.append(index)
    return taken


def _advance(
    live: list[_Live],
    first: int,
    logits_BV: Tensor,
    stops: Sequence[tuple[int, ...]],
    sampling: Sampling,
    cache: SlotCache,
) -> Iterator[NewToken]:
    """Choose a token for the sequences from slot ``first`` on; those that end leave ``live`` and the cache."""
    moved = live[first:]
    tokens = _choose(logits_BV, sampling, [sequence.generator for sequence in moved])
    new = []
    for sequence, token in zip(moved, tokens, strict=True):
        sequence.ids.append(token)
        stopped = any(tuple(sequence.ids[-len(stop) :]) == stop for stop in stops)
        finish: FinishReason | None = "stop" if stopped else "length" if len(sequence.ids) == sequence.limit else None
        new.append(NewToken(sequence.prompt, token, finish))
    for slot in reversed(range(first, len(live))):
        if new[slot - first].finish is not None:
            cache.remove(slot)
            live[slot] = live[-1]
            live.pop()
    yield from sorted(new)


def _choose(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Next token of every row [B]; each row takes one uniform number from its own generator."""
    if sampling.temperature == 0:
        return [int(token) for token in logits_BV.argmax(dim=-1).tolist()]
    below_top_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)  # a tiny temperature makes no infinities of it
    p_BV = (below_top_BV / sampling.temperature).softmax(-1).double()
    drawn_B1 = torch.tensor([[torch.rand((), generator=g, dtype=torch.float64)] for g in generators]).to(p_BV.device)
    p_BN, order_BN = p_BV.topk(min(LIKELY, p_BV.shape[1]), dim=-1)
    if bool((p_BN.sum(-1) < (sampling.top_p if sampling.top_p < 1 else drawn_B1[:, 0])).any()):
        p_BN, order_BN = p_BV.sort(dim=-1, descending=True, stable=True)
    up_to_BN = p_BN.cumsum(-1)
    mass_B1 = torch.ones_like(drawn_B1)
    if sampling.top_p < 1:  # the first token that reaches top_p is the last one kept
        kept_B1 = (up_to_BN < sampling.top_p).sum(-1, keepdim=True).clamp(max=p_BN.shape[1] - 1)
        mass_B1 = up_to_BN.gather(1, kept_B1)
    place_B1 = torch.searchsorted(up_to_BN, drawn_B1 * mass_B1, right=True).clamp(max=p_BN.shape[1] - 1)
    return [int(token) for token in order_BN.gather(1, place_B1)[:, 0].tolist()]


class Reply(NamedTuple):
    """A finished reply: its token ids without the stop, and why it ended."""

    ids: list[int]
    finish: FinishReason


def replies(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    max_new_tokens: int | Sequence[int],
    sampling: Sampling = Sampling(),
    slots: int = SLOTS,
) -> list[Reply]:
    """Replies to all prompts, in their order. The stop is cut off."""
    ids: list[list[int]] = [[] for _ in prompts]
    finish: list[FinishReason] = ["length"] * len(prompts)
    for new in decode(model, prompts, stops, max_new_tokens, sampling, slots):
        ids[new.prompt].append(new.token)
        if new.finish is not None:
            finish[new.prompt] = new.finish
    cut = [without_stop(i, stops) if f == "stop" else i for i, f in zip(ids, finish, strict=True)]
    return [Reply(i, f) for i, f in zip(cut, finish, strict=True)]


def without_stop(ids: list[int], stops: Sequence[tuple[int, ...]]) -> list[int]:
    """The ids before the stop they end with (the longest one that fits)."""
    longest = max((len(s) for s in stops if tuple(ids[-len(s) :]) == s), default=0)
    return ids[: len(ids) - longest]
