"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    schedule: Literal["cosine", "linear", "constant"],
    warmup_steps: int,
    floor: float,
) -> float:
    """The rate used by optimizer step ``step`` (0-based) of ``total_steps``.

    Warm-up rises linearly so that step ``warmup_steps`` is the first at the peak; no step has rate 0. After it, with
    x = (t - T_w) / (T - T_w): cosine = eta_min + (eta_max - eta_min) / 2 (1 + cos(pi x)) (Loshchilov and Hutter 2016,
    arXiv:1608.03983, eq. 5), linear = eta_max - (eta_max - eta_min) x, constant = eta_max. eta_min = floor * peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    x = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    low = floor * peak
    if schedule == "linear":
        return peak - (peak - low) * x
    return low + (peak - low) / 2 * (1 + math.cos(math.pi * x))
