"""Token-by-token decoding of a local model: greedy or sampled, with continuous batching.

A sequence that ends gives its place to the next prompt in the queue, so the batch stays full while there is work, and no
token is computed for the sake of a longer neighbour. ``decode`` is a generator: chat streams from it, evaluation collects it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.errors import ModelError
from posttrain.generate.engine import Sampling
from posttrain.generate.ways import Kind, Way, way_of
from posttrain.model.forward import causal_lm
from posttrain.model.hardware import to_device
from posttrain.model.lengths import Limits, lengths_of, limits_of
from posttrain.model.prepacked_weights import prepack

FinishReason = Literal["stop", "length", "not_finite"]
"""``not_finite``: the model computed NaN or infinity where the next token was to be chosen, so there is none."""
NO_TOKEN = -1
"""Stands where no token could be chosen."""
SLOTS = 64
"""Sequences continued at once."""
PREFILL_TOKENS = 2048
"""Prompt tokens computed at once, unless a single prompt is longer."""
BLOCK = 256
"""Tokens whose probabilities are summed first when sampling from the whole distribution."""
LIKELY = 512
"""Tokens looked at first when sampling from the top of the distribution."""


class Likely(NamedTuple):
    """Log-probabilities of the model (temperature 1) at one place: of the token chosen, and of the most likely tokens, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class NewToken(NamedTuple):
    """One decoded token of one prompt. ``finish`` is set on the last one, ``likely`` where log-probabilities were asked for."""

    prompt: int
    token: int
    finish: FinishReason | None
    likely: Likely | None = None


@dataclass(eq=False)
class _Live:
    """A sequence that is being continued."""

    prompt: int
    sampling: Sampling
    generator: torch.Generator
    read: list[int]
    """The prompt."""
    ids: list[int]
    """The new tokens."""

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.read) + len(self.ids)


@dataclass
class _Pool:
    """Sequences that are continued together; their lengths have equal rotary factors."""

    way: Way
    live: list[_Live]

    def remove(self, place: int) -> None:
        """Let a sequence leave; the last one moves to its place."""
        self.way.remove(place)
        self.live[place] = self.live[-1]
        self.live.pop()


def decode(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    samplings: Sequence[Sampling],
    slots: int = SLOTS,
) -> Iterator[NewToken]:
    """Continue every prompt until one of the ``stops`` (token sequences), or its ``max_tokens``.

    ``samplings``: one for each. Every prompt draws from a generator of its own with its own
    seed (0 where it has none): what it says does not depend on its neighbours' draws. At most ``slots`` prompts are continued at
    once, long ones first; one, where the model is continued by its own code (`posttrain.generate.ways`). Yields tokens step by
    step, those of a step in the order of the prompts; tokens of the stop are yielded as well. Raises ModelError before the first
    token for ids and lengths that the model has no weights for.
    """
    decoding = Decoding(model, stops, min(slots, len(prompts)))
    wanted = list(enumerate(zip(prompts, samplings, strict=True)))
    for prompt, (ids, sampling) in sorted(wanted, key=lambda one: -len(one[1][0])):
        decoding.add(prompt, ids, sampling)
    while decoding.busy:
        yield from decoding.step()


class Decoding:
    """Sequences that are continued together, at most ``slots`` at once. Between two steps others may join, and any may leave."""

    def __init__(self, model: nn.Module, stops: Sequence[tuple[int, ...]], slots: int) -> None:
        self._model, self._stops, self._slots = model, stops, slots
        inner = causal_lm(model)
        self._limits, self._factors = limits_of(inner), lengths_of(inner.config).factors
        self._waiting: list[_Live] = []
        self._longest = 0
        self._kind: Kind | None = None
        self._pools: dict[tuple[int, ...], _Pool] = {}

    @property
    def busy(self) -> bool:
        """Whether there is anything to continue."""
        return bool(self._waiting or self._pools)

    def add(self, prompt: int, ids: NDArray[np.int32], sampling: Sampling) -> None:
        """Let a sequence join behind those that wait; ``prompt`` is what its tokens are called. Raises ModelError as `decode`."""
        sequence = _waiting(prompt, ids, sampling, self._limits)
        self._waiting.append(sequence)
        if sequence.length + sequence.sampling.max_tokens > self._longest:
            self._longest = sequence.length + sequence.sampling.max_tokens
            self._kind = None  # a longer sequence may reach a switch that nothing is proven of yet

    def drop(self, prompt: int) -> None:
        """Let a sequence leave, wherever it is; nothing happens where it is gone already."""
        self._waiting = [sequence for sequence in self._waiting if sequence.prompt != prompt]
        for pool in self._pools.values():
            for place in reversed(range(len(pool.live))):
                if pool.live[place].prompt == prompt:
                    pool.remove(place)
        self._forget_empty()

    def step(self) -> Iterator[NewToken]:
        """One pass: the first token of sequences that wait, or one more of all that are live."""
        if self._kind is None:
            prepack(self._model)
            self._kind = way_of(self._model, self._longest)
        kind = self._kind
        room = self._slots if kind.most is None else min(kind.most, self._slots)
        live = sum(len(pool.live) for pool in self._pools.values())
        fresh = _admitted(self._waiting, room - live, self._factors)
        del self._waiting[: len(fresh)]
        if fresh:
            length = fresh[0].length
            stays = self._factors(length) == self._factors(length + 1)
            new = _Pool(kind.open(self._model, room if stays else len(fresh)), [])
            pool = self._pools.setdefault(self._factors(length), new)
            logits_BV = pool.way.begin([sequence.read + sequence.ids for sequence in fresh])
            pool.live += fresh
            yield from self._advance(pool, len(pool.live) - len(fresh), logits_BV)
        else:
            for pool in list(self._pools.values()):
                logits_BV = pool.way.step([sequence.ids[-1] for sequence in pool.live])
                yield from self._advance(pool, 0, logits_BV)
        self._forget_empty()

    def _advance(self, pool: _Pool, first: int, logits_BV: Tensor) -> list[NewToken]:
        """Choose a token for the sequences of a pool from place ``first`` on; those that end leave it.

        Those whose length has other rotary factors now leave it as well, to be begun again: all their keys are to be computed anew.
        """
        live = pool.live
        moved = live[first:]
        samplings = [sequence.sampling for sequence in moved]
        finite_B = logits_BV.amax(dim=-1).isfinite().tolist()  # not so: NaN or +inf anywhere, -inf everywhere
        if not all(finite_B):
            logits_BV = logits_BV.nan_to_num()
        tokens = _choose(logits_BV, samplings, [sequence.generator for sequence in moved])
        likely = _likely(logits_BV, tokens, samplings)
        new, outgrown = [], []
        for sequence, token, found, finite in zip(moved, tokens, likely, finite_B, strict=True):
            if not finite:
                new.append(NewToken(sequence.prompt, NO_TOKEN, "not_finite"))
                continue
            sequence.ids.append(token)
            finish: FinishReason | None = None
            if any(tuple(sequence.ids[-len(stop) :]) == stop for stop in self._stops):
                finish = "stop"
            elif len(sequence.ids) == sequence.sampling.max_tokens:
                finish = "length"
            elif self._factors(sequence.length) != self._factors(sequence.length - 1):
                outgrown.append(sequence)
            new.append(NewToken(sequence.prompt, token, finish, found))
        for place in reversed(range(first, len(live))):
            if new[place - first].finish is not None or live[place] in outgrown:
                pool.remove(place)
        self._waiting[:0] = outgrown
        return sorted(new, key=lambda token: token.prompt)

    def _forget_empty(self) -> None:
        self._pools = {key: pool for key, pool in self._pools.items() if pool.live}


def _waiting(prompt: int, ids: NDArray[np.int32], sampling: Sampling, limits: Limits) -> _Live:
    """A sequence that is to be begun, with no more new tokens than the model has positions for."""
    if (problem := limits.problem(ids)) is not None:
        raise ModelError(
            problem, where=f"prompt {prompt + 1}", fix="give a shorter prompt, or the tokenizer of this model"
        )
    if limits.positions is not None:
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, limits.positions - len(ids)))
    return _Live(prompt, sampling, torch.Generator().manual_seed(sampling.seed or 0), ids.tolist(), [])


def _admitted(waiting: Sequence[_Live], free: int, factors: Callable[[int], tuple[int, ...]]) -> list[_Live]:
    """The next sequences to begin: as many as have a slot, equal rotary factors, and fit into one pass."""
    taken: list[_Live] = []
    tokens = 0
    for sequence in waiting[:free]:
        same = bool(taken) and taken[-1].read == sequence.read and taken[-1].ids == sequence.ids
        tokens += 0 if same else sequence.length  # equal ones that follow each other are read once
        if taken and (tokens > PREFILL_TOKENS or factors(sequence.length) != factors(taken[0].length)):
            break
        taken.append(sequence)
    return taken


def _choose(logits_BV: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> list[int]:
    """Next token of every row [B]; each row that samples takes one uniform number from its own generator."""
    rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if len(rows) == len(samplings):  # without a copy of all logits
        return [int(token) for token in _sample(logits_BV, samplings, generators).tolist()]
    chosen_B = logits_BV.argmax(dim=-1)
    if rows:
        places = to_device(np.array(rows), logits_BV.device)
        chosen_B[places] = _sample(logits_BV[places], [samplings[r] for r in rows], [generators[r] for r in rows])
    return [int(token) for token in chosen_B.tolist()]


def _sample(logits_BV: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> Tensor:
    """A draw from every row [B] by its temperature and top_p."""
    device = logits_BV.device
    drawn_B1 = to_device(
        np.array([[float(torch.rand((), generator=g, dtype=torch.float64))] for g in generators]), device
    )
    temperature_B1, top_p_B1 = (
        to_device(np.array([[getattr(s, name)] for s in samplings], np.float64), device)
        for name in ("temperature", "top_p")
    )
    below_top_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)  # a tiny temperature makes no infinities of it
    cut_B = top_p_B1[:, 0] < 1
    if bool(cut_B.all()):
        return _of_the_likeliest(below_top_BV, temperature_B1, top_p_B1, drawn_B1)
    tokens_B = _of_all(below_top_BV, temperature_B1, drawn_B1)
    if bool(cut_B.any()):
        cut = (x[cut_B] for x in (below_top_BV, temperature_B1, top_p_B1, drawn_B1))
        tokens_B[cut_B] = _of_the_likeliest(*cut)
    return tokens_B


def _of_all(below_top_BV: Tensor, temperature_B1: Tensor, drawn_B1: Tensor) -> Tensor:
    """The token [B] at which the probabilities, summed in the order of the vocabulary, pass a uniform number: nothing has to be sorted.

    First the block of the vocabulary in which they do, then the token in it: a running sum over all tokens takes ten times as long as
    their powers.
    """
    scale_B1 = temperature_B1.reciprocal().float().clamp(max=torch.finfo(torch.float32).max)
    p_BV = (below_top_BV * scale_B1).exp_()
    whole = p_BV.shape[1] // BLOCK * BLOCK
    blocks_BN = p_BV[:, :whole].reshape(len(p_BV), -1, BLOCK).sum(-1)
    if whole < p_BV.shape[1]:
        blocks_BN = torch.cat([blocks_BN, p_BV[:, whole:].sum(-1, keepdim=True)], dim=-1)
    up_to_BN = blocks_BN.cumsum(-1, dtype=torch.float64)
    wanted_B1 = drawn_B1 * up_to_BN[:, -1:]
    block_B1 = torch.searchsorted(up_to_BN, wanted_B1, right=True).clamp(max=blocks_BN.shape[1] - 1)
    mass_B1 = blocks_BN.gather(1, block_B1).double()
    share_B1 = ((wanted_B1 - up_to_BN.gather(1, block_B1)) / mass_B1 + 1).clamp(0, 1 - torch.finfo(torch.float64).eps)
    places_BK = block_B1 * BLOCK + torch.arange(BLOCK, device=p_BV.device)
    inside_BK = p_BV.gather(1, places_BK.clamp(max=p_BV.shape[1] - 1)).masked_fill_(places_BK >= p_BV.shape[1], 0)
    up_to_BK = inside_BK.cumsum(-1, dtype=torch.float64)
    # the share is below 1: what is found has more than nothing of the probability
    place_B1 = torch.searchsorted(up_to_BK, share_B1 * up_to_BK[:, -1:], right=True)
    return (block_B1 * BLOCK + place_B1)[:, 0]


def _of_the_likeliest(below_top_BV: Tensor, temperature_B1: Tensor, top_p_B1: Tensor, drawn_B1: Tensor) -> Tensor:
    """The same among the likeliest tokens [B] that hold ``top_p`` of the probability."""
    p_BV = (below_top_BV / temperature_B1).softmax(-1)
    likely_BK = p_BV.topk(min(LIKELY, p_BV.shape[1]), dim=-1)
    tokens_B = _drawn(likely_BK.values, likely_BK.indices, drawn_B1, top_p_B1)
    beyond_B = (likely_BK.values.sum(-1, keepdim=True) < top_p_B1)[:, 0]
    if bool(beyond_B.any()):  # only these rows: sorting a large vocabulary takes longer than computing its logits
        p_BV, order_BV = p_BV[beyond_B].sort(dim=-1, descending=True, stable=True)
        tokens_B[beyond_B] = _drawn(p_BV, order_BV, drawn_B1[beyond_B], top_p_B1[beyond_B])
    return tokens_B


def _drawn(p_BN: Tensor, order_BN: Tensor, drawn_B1: Tensor, top_p_B1: Tensor) -> Tensor:
    """The token [B] that a uniform number picks among the likeliest tokens of every row, the likeliest first."""
    up_to_BN = p_BN.cumsum(-1)
    last = p_BN.shape[1] - 1
    kept_B1 = (
        (up_to_BN < top_p_B1).sum(-1, keepdim=True).clamp(max=last)
    )  # the first that reaches top_p is the last one kept
    mass_B1 = up_to_BN.gather(1, kept_B1)
    place_B1 = torch.searchsorted(up_to_BN, drawn_B1 * mass_B1, right=True).clamp(max=last)
    return order_BN.gather(1, place_B1)[:, 0]


def _likely(logits_BV: Tensor, tokens: Sequence[int], samplings: Sequence[Sampling]) -> list[Likely | None]:
    """What the rows that ask for log-probabilities get."""
    found: list[Likely | None] = [None] * len(tokens)
    for row, (token, sampling) in enumerate(zip(tokens, samplings, strict=True)):
        if sampling.logprobs is not None:
            logps_V = logits_BV[row].log_softmax(-1)
            best = logps_V.topk(min(sampling.logprobs, len(logps_V)))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found[row] = Likely(float(logps_V[token]), top)
    return found


def without_stop(ids: list[int], stops: Sequence[tuple[int, ...]]) -> list[int]:
    """The ids before the stop they end with (the longest one that fits)."""
    longest = max((len(s) for s in stops if tuple(ids[-len(s) :]) == s), default=0)
    return ids[: len(ids) - longest]
