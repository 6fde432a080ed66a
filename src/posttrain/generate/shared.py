"""Replies of a local model that several processes make: what `posttrain.generate.decode.decode` gives, from all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from posttrain.generate.decode import Likely, NewToken, decode
from posttrain.generate.engine import Sampling
from posttrain.model.shared import SharedModel, share_out

REPLIES = "replies"
"""Kind of an order for `replies`."""


def replies(model: nn.Module, items: Sequence[Any], settings: Mapping[str, Any]) -> Iterator[tuple[int, Any] | None]:
    """Prompts with their samplings -> the tokens of their replies. A `posttrain.model.shared.Work`."""
    prompts = [np.array(ids, np.int32) for ids, _ in items]
    samplings = [Sampling(**sampling) for _, sampling in items]
    stops = [tuple(stop) for stop in settings["stops"]]
    made: list[list[Any]] = [[] for _ in prompts]
    for new in decode(model, prompts, stops, samplings, settings["slots"]):
        made[new.prompt].append(new[1:])
        yield None if new.finish is None else (new.prompt, made[new.prompt])


def shared_decode(
    shared: SharedModel,
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    samplings: Sequence[Sampling],
    slots: int,
) -> Iterator[NewToken]:
    """See `posttrain.generate.decode.decode`: the same tokens, those of a reply together when it has ended. ``slots``: of every process."""
    items = [[ids.tolist(), asdict(sampling)] for ids, sampling in zip(prompts, samplings, strict=True)]
    cost = [len(ids) + sampling.max_tokens for ids, sampling in zip(prompts, samplings, strict=True)]
    settings = {"stops": stops, "slots": slots}
    for prompt, tokens in share_out(shared, model, REPLIES, replies, items, cost, settings):
        for token, finish, likely in tokens:
            yield NewToken(prompt, token, finish, None if likely is None else _likely(likely))


def _likely(record: Sequence[Any]) -> Likely:
    """Log-probabilities as they were before they were JSON."""
    logprob, top = record
    return Likely(logprob, tuple((token, value) for token, value in top))
