"""The four-step search as values: what each step tries and which of it is kept. Nothing runs here.

The learning rate with the rest fixed, then the number of epochs, then the rank of an adapter at one alpha, then the effective batch; each
step goes on from what the steps before have kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from posttrain.plan.guidance import Advice, Guidance
from posttrain.stats.intervals import mean_difference
from posttrain.sweep.outcome import Rows
from posttrain.sweep.records import SweepRecord

StepName = Literal["learning_rate", "epochs", "rank", "batch_size"]
STEPS: tuple[StepName, ...] = ("learning_rate", "epochs", "rank", "batch_size")
RATIO = math.sqrt(10)
"""Between neighbouring rates of the first grid; what is tried beside the best of it lies half as far in logarithms."""
MOST_EXTENSIONS = 3
"""Rates tried beyond an end of the range where the best one stands there."""
FEWEST_STEPS = 8
"""Effective batches that leave fewer optimizer steps are not tried."""

TUNE_FILE = "tune.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneStep:
    """One step: what was tried, what was kept, and why."""

    name: StepName
    record: SweepRecord
    kept: dict[str, Any]
    """All settings after this step."""
    why: str
    beside: SweepRecord | None = None
    """What was shown without choosing by it: ranks with alpha = 2 rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRecord:
    """tune.json."""

    schema: int = SCHEMA
    stage: str
    steps: tuple[TuneStep, ...]
    final: SweepRecord
    """The recipe as written beside what was found."""
    kept: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse a file of another schema."""
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema}, this version reads {SCHEMA}")


def rates(advice: Advice) -> tuple[float, ...]:
    """The rates of the first grid: from the low to the high end of what is advised, about `RATIO` apart, two significant digits."""
    count = max(2, round(math.log(advice.high / advice.low) / math.log(RATIO)) + 1)
    return tuple(_rounded(float(rate)) for rate in np.geomspace(advice.low, advice.high, count))


def more_rates(tried: Sequence[float], best: float, extensions: int) -> tuple[float, ...]:
    """Rates to try next: one beyond where the best is the last at an end, else those halfway to its neighbours; none once these were tried."""
    known = sorted(tried)
    place = known.index(best)
    if place == len(known) - 1 and extensions < MOST_EXTENSIONS:
        return (_rounded(best * RATIO),)
    if place == 0 and extensions < MOST_EXTENSIONS:
        return (_rounded(best / RATIO),)
    half, near = math.sqrt(RATIO), 0.75 * math.log(RATIO)
    beside = [(best / half, known[place - 1])] if place else []
    beside += [(best * half, known[place + 1])] if place + 1 < len(known) else []
    return tuple(_rounded(rate) for rate, neighbour in beside if abs(math.log(neighbour / best)) > near)


def turn(losses: Mapping[int, Rows]) -> int:
    """The step from which on the held-out loss is not shown to fall any more: the first within one standard error of the lowest.

    The standard error is that of the difference row by row (`mean_difference`). Needs a measurement after the first step.
    """
    steps = sorted(step for step in losses if step > 0)
    lowest = min(steps, key=lambda step: np.mean(list(losses[step].values())))
    for step in steps:
        rows = [row for row in losses[step] if row in losses[lowest]]
        above = mean_difference([losses[lowest][row] for row in rows], [losses[step][row] for row in rows])
        if above.estimate <= above.error:
            return step
    return lowest


def epochs_at(step: int, steps: int, epochs: float) -> float:
    """The epochs after so many of all steps, as whole ones: a schedule is planned to end with one."""
    return float(max(1, math.ceil(epochs * step / steps - 1e-9)))


def batches(wanted: Sequence[int], rows: int, epochs: float) -> tuple[int, ...]:
    """Effective batches that leave enough optimizer steps."""
    return tuple(size for size in wanted if rows * epochs / size >= FEWEST_STEPS)


def ranks_of(guidance: Guidance) -> tuple[int, ...]:
    """Ranks within what is advised: powers of two."""
    return _powers(guidance.rank.low, guidance.rank.high)


def batches_of(guidance: Guidance) -> tuple[int, ...]:
    """Effective batches from half to twice what is advised: powers of two."""
    return _powers(guidance.batch_size.low / 2, guidance.batch_size.high * 2)


def _powers(low: float, high: float) -> tuple[int, ...]:
    return tuple(1 << k for k in range(1, 12) if low <= 1 << k <= high)


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
