"""Lengths at which a model computes something else, and those beyond which it computes nothing, as its configuration says.

A window closes, a chunk of attention ends, a recurrence starts its next chunk: from there on a token sees other keys. Rotary factors may follow
the length of the whole sequence (dynamic NTK, LongRoPE), so that crossing the length changes the keys of all earlier tokens as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from posttrain.errors import ConfigError, ModelError
from posttrain.model.forward import causal_lm
from posttrain.types import Tokens


@dataclass(frozen=True)
class Lengths:
    """The switches of one configuration, in tokens: a sequence of exactly this length is still computed as shorter ones are."""

    windows: tuple[int, ...] = ()
    """Windows and chunks: what a new token sees changes, what was computed before stays as it is."""
    long: tuple[int, ...] = ()
    """LongRoPE: beyond, all tokens of the sequence are rotated by other factors."""
    dynamic: tuple[int, ...] = ()
    """Dynamic NTK: beyond, every length has factors of its own."""

    @property
    def switches(self) -> tuple[int, ...]:
        """All of them, rising."""
        return tuple(sorted({*self.windows, *self.long, *self.dynamic}))

    def factors(self, length: int) -> tuple[int, ...]:
        """Sequences of equal value are rotated by the same factors, so keys that were kept at one such length serve at the other."""
        return (*(int(length > long) for long in self.long), *(max(length, first) for first in self.dynamic))


LONG, DYNAMIC = "longrope", "dynamic"
"""Types of rotary positions, as configurations call them, whose factors follow the length of a sequence."""
_RANGES = ("window", "chunk", "block_size")
"""Words in the names of lengths after which a token sees other keys, or a recurrence begins its next piece."""


def lengths_of(config: PretrainedConfig) -> Lengths:
    """The switches of a model's configuration; those of other parts of it (vision) left aside."""
    text = config.get_text_config()
    settings = text.to_dict()
    windows = {
        value
        for key, value in _leaves(settings)
        if isinstance(value, int) and value > 1 and any(word in key for word in _RANGES) and "layer" not in key
    }
    ropes = list(_ropes(settings.get("rope_parameters") or settings.get("rope_scaling") or {}))
    first = getattr(text, "max_position_embeddings", None)
    original = getattr(text, "original_max_position_embeddings", None)
    long = {rope.get("original_max_position_embeddings") or original or first for rope in ropes if LONG in _kind(rope)}
    dynamic = {first for rope in ropes if DYNAMIC in _kind(rope)}
    return Lengths(*(tuple(sorted(int(n) for n in found if n)) for found in (windows, long, dynamic)))


def is_by_length(kind: object) -> bool:
    """Whether a type of rotary positions (one, or one for each type of layer) looks at the length."""
    return any(name in str(kind) for name in (LONG, DYNAMIC))


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _ropes(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters of a model, or those of each of its kinds of layers."""
    if any(isinstance(value, Mapping) for value in settings.values()):
        yield from (value for value in settings.values() if isinstance(value, Mapping))
    else:
        yield settings


def _leaves(settings: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, str(key))
        else:
            yield str(key) or name, value


def context_of(config: PretrainedConfig) -> int | None:
    """Tokens of the context a model was made for, where its configuration says; with dynamic NTK, what its factor stretches it to."""
    text: Any = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    factors = [float(r.get("factor") or 1) for r in _ropes(rope) if DYNAMIC in _kind(r)]
    return int(limit * max(1.0, *factors)) if factors else int(limit)


@dataclass(frozen=True)
class Limits:
    """What a model has weights for."""

    vocabulary: int
    """Token ids, from 0 on."""
    positions: int | None
    """Tokens of a sequence, where positions are learned or tabulated; None = positions are computed, so there is no last one."""

    def problem(self, ids: NDArray[np.integer[Any]]) -> str | None:
        """Why these ids [T] can't be continued by a token; None where they can."""
        if not len(ids):
            return "the prompt has no tokens"
        outside = ids[(ids < 0) | (ids >= self.vocabulary)]
        if len(outside):
            return f"the prompt has the token {outside[0]}, but the model knows 0 to {self.vocabulary - 1}: is this its tokenizer?"
        if self.positions is not None and len(ids) >= self.positions:
            return f"the prompt has {len(ids)} tokens, the model positions for {self.positions}, its reply included"
        return None


def limits_of(model: PreTrainedModel) -> Limits:
    """The limits of a model. Positions end where a table of them does: one with a row for each that the configuration counts.

    A model without such a table computes a position from its number (rotary frequencies, a recurrence); MPT makes its table on the way.
    """
    text: Any = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    embedding = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not embedding]
    buffers = [buffer for name, buffer in model.named_buffers() if "position" in name and buffer.dim() > 1]
    table_lengths = [len(table.weight) - getattr(table, "offset", 0) for table in tables] + [
        len(buffer) for buffer in buffers
    ]
    if limit is None and not any(name.endswith("inv_freq") for name, _ in model.named_buffers()):
        positions = getattr(text, "max_seq_len", None)
    else:
        positions = limit if limit in table_lengths else None
    return Limits(embedding.num_embeddings, None if positions is None else int(positions))


def check_fits(model: nn.Module, sequences: Sequence[Tokens], where: str) -> None:
    """Raise ModelError for an id the model has no vector for, ConfigError for a length it has no positions for.

    where: the config path or option that limits the length.
    """
    inner = causal_lm(model)
    known = limits_of(inner)
    for sequence in sequences:
        if (largest := int(sequence.ids_T.max(initial=0))) >= known.vocabulary:
            raise ModelError(
                f"row {sequence.row_id} holds the token id {largest}, but the model knows 0 to {known.vocabulary - 1}: the tokenizer "
                "is larger than the embedding",
                where=str(getattr(inner.config, "_name_or_path", "")) or None,
                fix="give the model the tokenizer it was made with (the chat template may use tokens that were added later)",
            )
    longest = max(map(len, sequences), default=0)
    if known.positions is not None and longest > known.positions:
        raise ConfigError(
            f"the longest example has {longest:,} tokens, but the model has learned {known.positions:,} positions",
            where=where,
            fix=f"set it to {known.positions} or less",
        )


# ---- rotary positions by length ------------------------------------------------------------------------------------
#
# transformers takes the length of a pass for the length of the sequence, and keeps the factors of the longest pass it
# has seen. So packed sequences would depend on their neighbours, and a sequence by itself on what came before it.


def follow_lengths(model: nn.Module) -> bool:
    """Make rotary positions follow the length of each sequence of a pass; whether the model has any that depend on it."""
    found = [module for module in model.modules() if is_by_length(getattr(module, "rope_type", ""))]
    for module in found:
        module.forward = _by_sequence(module)
    return bool(found)


def _by_sequence(module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    own = module.forward

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        tokens = position_ids.shape[-1]
        begins = (position_ids.reshape(-1, tokens)[0] == 0).nonzero()[:, 0].tolist()
        edges = sorted({0, *begins, tokens})
        parts = []
        for begin, end in pairwise(edges):
            with _unchanged(module):
                parts.append(own(x, position_ids[..., begin:end], *args, **kwargs))
        return tuple(torch.cat(same, dim=-2) for same in zip(*parts, strict=True))

    forward.permanent = True  # type: ignore[attr-defined]  # not a matter of speed: see `fused.unfuse`
    return forward


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """What a forward pass leaves on the module is undone: the next sequence begins as the first one did."""
    attributes, buffers = dict(vars(module)), {name: b.clone() for name, b in module.named_buffers(recurse=False)}
    try:
        yield
    finally:
        for name in vars(module).keys() - attributes.keys():
            delattr(module, name)
        vars(module).update(attributes)
        module._buffers.update(buffers)
