"""Sequences laid into one row of tokens as segments, and prefixes that several sequences have in common laid there once.

A causal model computes the same for two sequences as long as their tokens are the same. So a system prompt that all rows
start with, or the prompt of a chosen and a rejected reply, needs to be computed once: its segment is continued by several
others, which do not see each other. Values and gradients are those of the separate sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHORTEST_SHARED = 16
"""Tokens from which a common prefix is worth a segment of its own: each costs a few small matrix products a layer."""


@dataclass(frozen=True, init=False)
class Segments:
    """The layout of T packed tokens: segment i has ``lengths[i]`` tokens and continues segment ``parents[i]``.

    ``parents[i]`` is -1 where a sequence starts and smaller than i elsewhere.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] | None = None) -> None:
        object.__setattr__(self, "lengths", tuple(map(int, lengths)))
        object.__setattr__(self, "parents", (-1,) * len(lengths) if parents is None else tuple(map(int, parents)))
        if len(self.parents) != len(self.lengths) or any(not -1 <= p < i for i, p in enumerate(self.parents)):
            raise ValueError(f"segments of lengths {self.lengths} can't continue {self.parents}")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Place of the first token of each segment."""
        return tuple(int(n) for n in np.cumsum((0, *self.lengths))[:-1])

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Tokens that precede each segment in its sequence."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + self.lengths[parent])
        return tuple(depths)

    @property
    def shared(self) -> bool:
        """Whether a segment continues another."""
        return any(parent >= 0 for parent in self.parents)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of every token in its own sequence."""
        parts = [np.arange(d, d + n) for d, n in zip(self.depths, self.lengths, strict=True)]
        return np.concatenate(parts).astype(np.int64)

    def spans(self, segment: int) -> tuple[tuple[int, int], ...]:
        """Places (start, end) of the sequence up to and with this segment, oldest first; adjoining ones joined."""
        found: list[tuple[int, int]] = []
        while segment >= 0:
            start = self.starts[segment]
            end = start + self.lengths[segment]
            if found and found[-1][0] == end:
                end = found.pop()[1]
            found.append((start, end))
            segment = self.parents[segment]
        return tuple(reversed(found))


class _Piece(NamedTuple):
    """A segment to be: tokens ``begin`` to ``end`` of a sequence."""

    sequence: int
    begin: int
    end: int
    parent: int


def share_prefixes(
    sequences: Sequence[NDArray[np.int32]],
) -> tuple[Segments, list[NDArray[np.int64]], NDArray[np.int64]]:
    """Lay sequences into segments that hold common prefixes once.

    Returns the segments; for every sequence the places [its length] of its tokens; and ids_T, the tokens of all segments.
    A prefix is shared where it has at least `SHORTEST_SHARED` tokens beyond what is shared already.
    """
    pieces: list[_Piece] = []
    last = [-1] * len(sequences)

    def lay(group: list[int], begin: int, parent: int) -> None:
        """Lay the rest from ``begin`` on of sequences that are equal up to there."""
        common = min(len(sequences[i]) for i in group)
        for a, b in pairwise(group):
            differing = np.flatnonzero(sequences[a][begin:common] != sequences[b][begin:common])
            common = begin + int(differing[0]) if len(differing) else common
        if len(group) == 1 or common - begin >= SHORTEST_SHARED:
            pieces.append(_Piece(group[0], begin, common, parent))
            begin, parent = common, len(pieces) - 1
        followers: dict[int, list[int]] = {}
        for i in group:
            if len(sequences[i]) == begin:
                last[i] = parent
            elif len(sequences[i]) == common:
                lay([i], begin, parent)
            else:
                followers.setdefault(int(sequences[i][common]), []).append(i)
        for members in followers.values():
            lay(members, begin, parent)

    lay(list(range(len(sequences))), 0, -1)
    segments = Segments([p.end - p.begin for p in pieces], [p.parent for p in pieces])
    ids_T = np.concatenate([sequences[p.sequence][p.begin : p.end] for p in pieces]).astype(np.int64)
    places = [np.concatenate([np.arange(start, end) for start, end in segments.spans(segment)]) for segment in last]
    return segments, places, ids_T
