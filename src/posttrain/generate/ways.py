"""How a model is continued by one more token: our key-value cache where it is proven to be the model's own computation, its own code elsewhere.

    BATCHED     keys and values of many sequences side by side (`posttrain.model.kv_cache`)
    OWN_CACHE   the model's own cache, one sequence at a time
    RECOMPUTED  no cache: every token is computed from all before it

The proof is made when a model begins to generate. A few tokens are computed at the start, on both sides of every switch of its configuration made short
for that time (`posttrain.model.proof`), and where a switch really is if a reply may reach it; each is compared with the model's own forward
pass over the whole sequence. A way that differs, or can't run, is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.errors import ModelError, PosttrainError
from posttrain.model.forward import causal_lm
from posttrain.model.hardware import to_device
from posttrain.model.kv_cache import KvCache, Prefill, Step
from posttrain.model.lengths import Lengths, lengths_of, limits_of
from posttrain.model.load import next_logits
from posttrain.model.own import own_cached_logits, own_logits, proven
from posttrain.model.proof import CROSSED, switches_crossed

TOLERANCE = 1e-4
"""Largest relative difference of logits from the model's own: rounding gives 1e-6 in fp32, in which the proof is computed."""
ROUGH_TOLERANCE = 0.1
"""The same where a model can't compute in fp32, because its weights are quantised: rounding gives 0.01 to 0.02 in bf16."""
PROBED = 4
"""Lengths compared around a switch: the one before it, its own, and two beyond."""


class Way(Protocol):
    """Live sequences and the logits of their next tokens. Mutable: it is the state of a decoding."""

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] after B new sequences, which become live behind the others."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token of each of all B live sequences, in their order."""

    def remove(self, place: int) -> None:
        """End a live sequence; the last one moves to its place."""


class _Batched:
    """Many sequences at once, keys and values in a cache of our own."""

    def __init__(self, model: nn.Module, room: int) -> None:
        self._model, self._cache = model, KvCache(room)
        self._device = causal_lm(model).get_input_embeddings().weight.device

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        runs = [
            (sequence, len(list(run))) for sequence, run in groupby(sequences)
        ]  # several replies to a prompt: read once
        ids = np.concatenate([np.asarray(sequence, np.int64) for sequence, _ in runs])
        places = np.concatenate([np.arange(len(sequence)) for sequence, _ in runs])
        copies = [count for _, count in runs]
        logits_BV = self._logits(ids, places, Prefill(self._cache, [len(sequence) for sequence, _ in runs], copies))
        if len(runs) == len(sequences):
            return logits_BV
        return logits_BV.repeat_interleave(to_device(np.array(copies), self._device), dim=0)

    def step(self, tokens: Sequence[int]) -> Tensor:
        return self._logits(np.array(tokens, np.int64), np.array(self._cache.lengths), Step(self._cache))

    def remove(self, place: int) -> None:
        self._cache.remove(place)

    def _logits(self, ids: NDArray[np.int64], places: NDArray[np.int64], cache: Prefill | Step) -> Tensor:
        ids_T, places_T = (to_device(x, self._device) for x in (ids, places))
        return next_logits(self._model, ids_T, places_T, cache)


class _OneAtATime:
    """The model's own code. ``more``: logits [1, V] after further tokens, and the memory of all, from the memory of those before."""

    def __init__(self, model: nn.Module, more: Callable[[nn.Module, Sequence[int], Any], tuple[Tensor, Any]]) -> None:
        self._model, self._more, self._memory = model, more, None

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        (ids,) = sequences
        self._memory = None
        return self.step(ids)

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits_1V, self._memory = self._more(self._model, tokens, self._memory)
        return logits_1V

    def remove(self, place: int) -> None:
        self._memory = None


def _recomputed(model: nn.Module, tokens: Sequence[int], seen: Sequence[int] | None) -> tuple[Tensor, Sequence[int]]:
    ids = [*(seen or ()), *tokens]
    return own_logits(model, ids), ids


class Kind(NamedTuple):
    """A way of continuing models."""

    open: Callable[[nn.Module, int], Way]
    """For a model and so many sequences."""
    most: int | None = None
    """Sequences at once; None = as many as wanted."""
    note: str | None = None
    """What to tell of it, where it is slow."""


BATCHED = Kind(_Batched)
OWN_CACHE = Kind(
    lambda model, room: _OneAtATime(model, own_cached_logits),
    1,
    "its replies are made one at a time, by its own code and cache, which is slow",
)
RECOMPUTED = Kind(
    lambda model, room: _OneAtATime(model, _recomputed),
    1,
    "its replies are made one at a time and every token is computed from all before it, which is very slow",
)
WAYS = (BATCHED, OWN_CACHE, RECOMPUTED)
"""Fast ones first; the last needs no proof, because it is what the others are compared with."""


@dataclass
class _Known:
    """What is proven of a model: the first way that was right at all of ``lengths``."""

    ways: list[Kind] = field(default_factory=lambda: list(WAYS))
    lengths: set[int] = field(default_factory=set)
    """Far switches that were crossed, and `START`."""


START = 0
"""The proof of the first tokens and of all switches that are near or can be made so."""
_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def way_of(model: nn.Module, longest: int = 1) -> Kind:
    """The fastest way of continuing a model that is proven for sequences of up to ``longest`` tokens.

    Proves what has not been proven of this model yet. Raises ModelError for a model that can't compute a sequence alone.
    """
    inner = causal_lm(model)
    known = _known.setdefault(inner, _Known())
    reached = min(longest, limits_of(inner).positions or longest)
    wanted = {START, *(switch for switch in lengths_of(inner.config).switches if CROSSED < switch < reached)}
    while len(known.ways) > 1:
        way = known.ways[0]
        checks = [partial(_right, way, model, length) for length in sorted(wanted - known.lengths)]
        if all(proven(inner, check, TOLERANCE, ROUGH_TOLERANCE) for check in checks):
            known.lengths |= wanted
            break
        known.ways.pop(0)
        known.lengths.clear()
    return known.ways[0]


def speed_note(model: nn.Module) -> str | None:
    """What to tell of a model that is not continued in the fast way, as far as it is known; None for one that is."""
    way = way_of(model)
    return None if way.note is None else f"{type(causal_lm(model)).__name__}: {way.note}"


def _right(way: Kind, model: nn.Module, length: int, tolerance: float) -> bool:
    """Whether a way gives the model's own logits at the start, or on both sides of a switch."""
    if length != START:
        return _agrees(way, model, [length - 1], tolerance)
    inner = causal_lm(model)
    with switches_crossed(inner):  # where few keys are seen, a wrong one weighs much
        near = [switch for switch in lengths_of(inner.config).switches if switch <= CROSSED]
        starts = [[2, PROBED], *([start] for switch in near for start in (max(1, switch - 1), 2 * switch + PROBED))]
        return all(_agrees(way, model, some, tolerance) for some in starts)


def _agrees(way: Kind, model: nn.Module, starts: Sequence[int], tolerance: float) -> bool:
    """Whether a way gives the model's own logits after so many tokens of some sequences side by side, and after a few more."""
    inner = causal_lm(model)
    lengths, last = lengths_of(inner.config), limits_of(inner).positions
    if way.most is not None or len({lengths.factors(n) for start in starts for n in (start, start + PROBED)}) > 1:
        starts = [max(starts)]  # one at a time
    if last is not None:
        starts = [min(start, last - 1) for start in starts]
    count = PROBED if last is None else min(PROBED, last - max(starts))
    vocabulary = causal_lm(model).get_input_embeddings().num_embeddings
    texts = [
        [(7 + 31 * place + place * place) % vocabulary for place in range(index, index + start + count - 1)]
        for index, start in enumerate(starts)
    ]
    own = [_own(model, text, count, lengths) for text in texts]
    try:
        found = _walked(way, model, texts, count, lengths)
    except (PosttrainError, RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False
    return all(_close(own_NV, found_NV, tolerance) for own_NV, found_NV in zip(own, found, strict=True))


def _walked(
    way: Kind, model: nn.Module, texts: Sequence[Sequence[int]], count: int, lengths: Lengths
) -> Iterator[Tensor]:
    """Logits [count, V] before each of the last tokens of every text and after all of it, in a way."""
    rows = []
    for after in range(count):
        seen = [text[: len(text) - count + 1 + after] for text in texts]
        factors = lengths.factors(len(seen[0]))
        if not after or factors != lengths.factors(len(seen[0]) - 1):
            state = way.open(model, len(texts))
            rows.append(state.begin(seen))
        else:
            rows.append(state.step([text[-1] for text in seen]))
    return iter(torch.stack(rows, dim=1))


def _own(model: nn.Module, text: Sequence[int], count: int, lengths: Lengths) -> Tensor:
    """The same for one text by the model's own code without a cache, from all tokens at once as far as these have equal rotary factors."""
    ends = range(len(text) - count + 1, len(text) + 1)
    runs = [list(run) for _, run in groupby(ends, key=lengths.factors)]
    try:
        return torch.cat([own_logits(model, text[: run[-1]], last=len(run)) for run in runs])
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ModelError(
            f"the code of this model ({type(causal_lm(model)).__name__}) can't compute a sequence: {error}"
        ) from error


def _close(own_NV: Tensor, found_NV: Tensor, tolerance: float) -> bool:
    """Whether logits are the model's own; where these are not finite nothing can be said, and the decoding will tell."""
    if not bool(own_NV.isfinite().all()):
        return True
    off = (found_NV - own_NV).norm() / (own_NV - own_NV.mean(dim=-1, keepdim=True)).norm()
    return bool(off <= tolerance)
