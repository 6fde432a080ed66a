"""Which examples every optimizer step computes: a pure function of the lengths, the seed and the configuration.

The plan is never stored: a resumed run derives the same one again and goes on at its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from posttrain.encode.packing import pack, shuffled_order
from posttrain.parallel.peers import Peers, deal


@dataclass(frozen=True)
class Plan:
    """The order of a run. Steps take ``batch_size`` examples each from epoch-wise shuffles laid end to end."""

    lengths: tuple[int, ...]
    batch_size: int
    micro_batch_tokens: int
    epochs: float
    seed: int
    max_steps: int | None = None

    @property
    def num_examples(self) -> int:
        """Examples the whole run looks at, repeats counted."""
        return max(1, round(self.epochs * len(self.lengths)))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run; the last one may be smaller."""
        steps = math.ceil(self.num_examples / self.batch_size)
        return min(steps, self.max_steps) if self.max_steps is not None else steps

    def step_examples(self, step: int) -> list[int]:
        """Indices of the examples of a step (0-based)."""
        begin, count = step * self.batch_size, len(self.lengths)
        places = (divmod(place, count) for place in range(begin, min(begin + self.batch_size, self.num_examples)))
        return [int(_epoch_order(count, self.seed, epoch)[place]) for epoch, place in places]

    def micro_batches(self, step: int) -> list[list[int]]:
        """The examples of a step packed into micro-batches of at most ``micro_batch_tokens`` tokens."""
        return micro_batches(self.step_examples(step), self.lengths, self.micro_batch_tokens)

    def share(self, step: int, peers: Peers) -> list[list[int]]:
        """The micro-batches of a step that this process computes: all, or its part of the examples, with about as many tokens as that of the others."""
        examples = self.step_examples(step)
        own = deal([self.lengths[example] for example in examples], peers.size)[peers.rank]
        return micro_batches([examples[place] for place in own], self.lengths, self.micro_batch_tokens)

    def epoch_after(self, step: int) -> float:
        """Epochs done when ``step`` (0-based) is finished."""
        return min((step + 1) * self.batch_size, self.num_examples) / len(self.lengths)


@lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """`shuffled_order`, drawn once an epoch and not once a step."""
    return shuffled_order(count, seed, epoch)


def micro_batches(examples: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack the given examples; an example longer than the budget goes alone."""
    return [[examples[i] for i in group] for group in pack([lengths[e] for e in examples], budget)]
