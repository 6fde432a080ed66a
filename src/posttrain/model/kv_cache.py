"""Keys and values of the sequences that are being continued, each in a slot of its own: what decoding attends to.

New sequences are computed side by side in one packed pass, without padding, and leave their keys and values in free slots;
afterwards every sequence adds one token a step. A sequence that ends gives its slot to the last one, so slots 0 to B - 1
are always the live ones and one step is one batch of B tokens, whatever the lengths.

Shapes: B sequences, T packed tokens, L tokens a slot can hold, H query heads, K key/value heads (H = K * G), D head size (E of values,
where it differs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from posttrain.model.hardware import to_device

ROOM = 64
"""Slots grow by so many tokens, and keys are read up to a multiple of it: odd lengths multiply slowly."""
TOGETHER = 16
"""Slots whose keys are read to the length of the longest of them."""


@dataclass
class KvCache:
    """The keys [slots, K, L, D] and values of every layer. Mutable: it is the state of a decoding."""

    slots: int
    lengths: list[int] = field(default_factory=list)
    """Tokens in each live slot."""
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def layer(self, index: int, like: tuple[Tensor, Tensor], room: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer with room for so many tokens a slot; ``like``: some of them, which may differ in width."""
        room = -(-room // ROOM) * ROOM
        for store, like_KTD in zip((self.keys, self.values), like, strict=True):
            old = store.get(index)
            if old is None or old.shape[2] < room:
                kv_heads, _, size = like_KTD.shape
                store[index] = like_KTD.new_zeros(self.slots, kv_heads, room, size)
                if old is not None:
                    store[index][:, :, : old.shape[2]] = old
        return self.keys[index], self.values[index]

    def remove(self, slot: int) -> None:
        """End the sequence of a slot; the last live sequence moves there. Nothing is left behind: NaN would count even where it is masked."""
        last = len(self.lengths) - 1
        for store in (self.keys, self.values):
            for tensor in store.values():
                if slot != last:
                    tensor[slot] = tensor[last]
                tensor[last] = 0
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()


class Prefill:
    """A packed pass over new sequences, whose keys and values go to the slots behind the live ones.

    copies: how many slots each of them fills; None: one each.
    """

    def __init__(self, cache: KvCache, lengths: Sequence[int], copies: Sequence[int] | None = None) -> None:
        self.cache, self.new = cache, list(lengths)
        self.copies = [1] * len(self.new) if copies is None else list(copies)
        if len(cache.lengths) + sum(self.copies) > cache.slots:
            raise ValueError(
                f"{sum(self.copies)} sequences are too many: {len(cache.lengths)} of {cache.slots} slots are taken"
            )

    def keep(self, layer: int, k_KTD: Tensor, v_KTD: Tensor) -> None:
        """Store what a layer computed."""
        stored = self.cache.layer(layer, (k_KTD, v_KTD), max(self.new))
        begin, slot = 0, len(self.cache.lengths)
        for length, copies in zip(self.new, self.copies, strict=True):
            for store, x_KTD in zip(stored, (k_KTD, v_KTD), strict=True):
                store[slot : slot + copies, :, :length] = x_KTD[:, begin : begin + length]
            begin, slot = begin + length, slot + copies

    def finish(self) -> None:
        """Count the new sequences as live, after the pass."""
        for length, copies in zip(self.new, self.copies, strict=True):
            self.cache.lengths += [length] * copies


class Step:
    """A pass over one more token of every live sequence, in the order of their slots."""

    def __init__(self, cache: KvCache) -> None:
        self.cache = cache
        self._places: tuple[Tensor, Tensor] | None = None
        self._biases: dict[int | None, list[Tensor]] = {}

    def attend(
        self,
        layer: int,
        q_HBD: Tensor,
        k_KBD: Tensor,
        v_KBD: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """Attention [B, H, E] of the new tokens to their own sequences and to themselves; E: the size of values.

        sinks_H: a score that every head adds to its softmax and that has no value.
        """
        heads, live, size = q_HBD.shape
        kv_heads = k_KBD.shape[0]
        keys, values = self.cache.layer(layer, (k_KBD, v_KBD), max(self.cache.lengths) + 1)
        slots, places = self._place(keys.device)
        keys[slots, :, places] = k_KBD.transpose(0, 1)
        values[slots, :, places] = v_KBD.transpose(0, 1)
        q_NGD = (q_HBD * scale).view(kv_heads, -1, live, size).permute(2, 0, 1, 3).reshape(live * kv_heads, -1, size)
        flat_keys, flat_values = (x.view(-1, *x.shape[2:]) for x in (keys, values))
        out_NGE = q_NGD.new_empty(*q_NGD.shape[:2], values.shape[-1])
        for first, bias_C1L in zip(range(0, live, TOGETHER), self._bias(window, q_HBD), strict=True):
            rows = slice(first * kv_heads, min(first + TOGETHER, live) * kv_heads)
            room = bias_C1L.shape[-1]
            scores = torch.bmm(q_NGD[rows], flat_keys[rows, :room].transpose(1, 2))
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            scores.view(len(bias_C1L), -1, room).add_(bias_C1L)
            if sinks_H is not None:
                sinks_NG1 = sinks_H.to(scores.dtype).view(kv_heads, -1, 1).repeat(len(bias_C1L), 1, 1)
                scores = torch.cat([scores, sinks_NG1], dim=-1)
            p = torch.softmax(scores, dim=-1)[..., :room]
            out_NGE[rows] = torch.bmm(p, flat_values[rows, :room])
        return out_NGE.view(live, heads, -1)

    def finish(self) -> None:
        """Count the new tokens, after the pass."""
        self.cache.lengths = [length + 1 for length in self.cache.lengths]

    def _place(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of every sequence its slot and where its new token stands there; the same in all layers of a pass."""
        if self._places is None:
            lengths = np.array(self.cache.lengths)
            self._places = to_device(np.arange(len(lengths)), device), to_device(lengths, device)
        return self._places

    def _bias(self, window: int | None, like: Tensor) -> list[Tensor]:
        """For every group of slots 0 at the keys a new token sees and -inf elsewhere; the same in all layers of a pass."""
        if window not in self._biases:
            found = []
            for first in range(0, len(self.cache.lengths), TOGETHER):
                lengths = self.cache.lengths[first : first + TOGETHER]
                ends = to_device(np.array(lengths), like.device)[:, None, None]
                room = -(-(max(lengths) + 1) // ROOM) * ROOM
                place = torch.arange(room, device=like.device)
                seen = place <= ends
                if window is not None:
                    seen &= place > ends - window
                found.append(
                    torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)
                )
            self._biases[window] = found
        return self._biases[window]
