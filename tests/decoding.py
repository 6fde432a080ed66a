"""Decoding for tests: one sampling for all prompts, each with a seed of its own, and whole replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from posttrain.generate import decode as decoding
from posttrain.generate.decode import SLOTS, FinishReason, NewToken, without_stop
from posttrain.generate.engine import Sampling


def decode(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    sampling: Sampling | Sequence[Sampling],
    slots: int = SLOTS,
) -> Iterator[NewToken]:
    """`posttrain.generate.decode.decode`; where there is one sampling for all, prompt i is drawn with ``seed + i``."""
    if isinstance(sampling, Sampling):
        sampling = [replace(sampling, seed=(sampling.seed or 0) + i) for i in range(len(prompts))]
    return decoding.decode(model, prompts, stops, sampling, slots)


class Reply(NamedTuple):
    """A finished reply: its token ids without the stop, and why it ended. ``not_finite``: the ids before the place where the model failed."""

    ids: list[int]
    finish: FinishReason


def replies(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    stops: Sequence[tuple[int, ...]],
    sampling: Sampling | Sequence[Sampling],
    slots: int = SLOTS,
) -> list[Reply]:
    """Replies to all prompts, in their order. The stop is cut off."""
    ids: list[list[int]] = [[] for _ in prompts]
    finish: list[FinishReason] = ["length"] * len(prompts)
    for new in decode(model, prompts, stops, sampling, slots):
        if new.finish != "not_finite":
            ids[new.prompt].append(new.token)
        if new.finish is not None:
            finish[new.prompt] = new.finish
    cut = [without_stop(i, stops) if f == "stop" else i for i, f in zip(ids, finish, strict=True)]
    return [Reply(i, f) for i, f in zip(cut, finish, strict=True)]
