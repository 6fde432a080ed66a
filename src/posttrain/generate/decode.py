"""Token-by-token decoding of a local model with a key/value cache: greedy or sampled, batched, finished rows leave.

``decode`` is a generator: chat streams from it, evaluation collects it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from posttrain.model.load import generating

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 = greedy (the most likely token)."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability exceeds this (Holtzman et al. 2019, arXiv:1904.09751)."""
    seed: int = 0


class NewToken(NamedTuple):
    """One decoded token of one prompt. ``finish`` is set on the last one."""

    prompt: int
    token: int
    finish: FinishReason | None


def decode(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
) -> Iterator[NewToken]:
    """Continue every prompt until one of the ``stops`` (token sequences) or ``max_new_tokens``.

    Yields tokens step by step, for all unfinished prompts in order; tokens of the stop are yielded as well.
    """
    if not prompts:
        return
    with generating(model) as inner:
        device = inner.get_input_embeddings().weight.device
        generator = torch.Generator(device).manual_seed(sampling.seed)
        longest = max(len(p) for p in prompts)
        ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :] = torch.from_numpy(np.asarray(prompt, np.int64))
            mask_BT[row, longest - len(prompt) :] = 1
        live = list(range(len(prompts)))
        tails: list[list[int]] = [[] for _ in prompts]
        cache = DynamicCache(config=inner.config)
        step_ids = ids_BT
        for produced in range(1, max_new_tokens + 1):
            positions = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
            with torch.no_grad():  # here and not around the loop: the caller runs between two tokens
                logits_BV = inner(
                    input_ids=step_ids,
                    attention_mask=mask_BT,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
            tokens = _choose(logits_BV.float(), sampling, generator).tolist()
            keep = []
            for place, (prompt_index, token) in enumerate(zip(live, tokens, strict=True)):
                tails[prompt_index].append(token)
                stopped = any(tuple(tails[prompt_index][-len(stop) :]) == stop for stop in stops)
                finish: FinishReason | None = "stop" if stopped else "length" if produced == max_new_tokens else None
                if finish is None:
                    keep.append(place)
                yield NewToken(prompt_index, token, finish)
            if not keep:
                return
            if len(keep) < len(live):
                rows = torch.tensor(keep, device=device)
                cache.batch_select_indices(rows)
                mask_BT = mask_BT[rows]
                live = [live[place] for place in keep]
            step_ids = torch.tensor([[tokens[place]] for place in keep], device=device)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(keep), 1)], dim=1)


def _choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Next token of every row [B]."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    below_top_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)  # a tiny temperature makes no infinities of it
    p_BV, order_BV = (below_top_BV / sampling.temperature).softmax(-1).sort(dim=-1, descending=True)
    if sampling.top_p < 1:  # a running sum may reach 1 before the last token
        outside = p_BV.cumsum(-1) - p_BV >= sampling.top_p
        outside[:, 0] = False
        p_BV = p_BV.masked_fill(outside, 0.0)
    drawn_B1 = torch.multinomial(p_BV, 1, generator=generator)
    return order_BV.gather(1, drawn_B1)[:, 0]


class Reply(NamedTuple):
    """A finished reply: its token ids without the stop, and why it ended."""

    ids: list[int]
    finish: FinishReason


def replies(
    model: nn.Module, prompts: Sequence[NDArray[np.int32]], stops: Sequence[tuple[int, ...]], max_new_tokens: int
) -> list[Reply]:
    """Greedy replies to all prompts, in their order. The stop is cut off."""
    ids: list[list[int]] = [[] for _ in prompts]
    finish: list[FinishReason] = ["length"] * len(prompts)
    for new in decode(model, prompts, stops, max_new_tokens):
        ids[new.prompt].append(new.token)
        if new.finish is not None:
            finish[new.prompt] = new.finish
    cut = [without_stop(i, stops) if f == "stop" else i for i, f in zip(ids, finish, strict=True)]
    return [Reply(i, f) for i, f in zip(cut, finish, strict=True)]


def without_stop(ids: list[int], stops: Sequence[tuple[int, ...]]) -> list[int]:
    """The ids before the stop they end with (the longest one that fits)."""
    longest = max((len(s) for s in stops if tuple(ids[-len(s) :]) == s), default=0)
    return ids[: len(ids) - longest]
