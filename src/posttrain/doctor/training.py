"""Rules about how the loss and the gradients of a training went."""

from __future__ import annotations

import math

import numpy as np

from posttrain.doctor.course import FEWEST_STEPS, finite, noise, smoothed
from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown

RISE = 0.2
"""The training loss rises when it climbs by this share of where it began. Ours."""
RISE_NOISE = 4.0
"""... and by this many standard errors of the two means that are compared. Ours."""


def loss_rises(seen: TrainEvidence) -> Outcome:
    """The training loss falls and then rises, or rises from the start."""
    values = finite(record.loss for record in seen.training.steps)
    if len(values) < FEWEST_STEPS:
        return Unknown("steps")
    window = max(3, len(values) // 10)
    means = smoothed(values, window)
    climbs = means - np.minimum.accumulate(means)
    top = int(np.argmax(climbs))
    low = int(np.argmin(means[: top + 1]))
    error = noise(values) * math.sqrt(2 / window)
    if climbs[top] <= max(RISE * abs(means[0]), RISE_NOISE * error):
        return None
    numbers = {
        "low": means[low],
        "low_step": low + window,
        "high": means[top],
        "high_step": top + window,
        "error": error,
    }
    return Finding("alarm", too_fast(seen), numbers)


def too_fast(seen: TrainEvidence) -> tuple[Cause, ...]:
    """What lets a loss rise, the likeliest first."""
    rate, found = seen.training.learning_rate, []
    if rate is not None:
        found.append(Cause("rate_high", (seen.setting("learning_rate", rate / 10),)))
    if seen.config.get("max_grad_norm", 1.0) is None:
        found.append(Cause("no_clipping", (seen.setting("max_grad_norm", 1.0),)))
    if not seen.config.get("warmup", 0.05):
        found.append(Cause("no_warmup", (seen.setting("warmup", 0.05),)))
    return (*found, Cause("bad_rows"))
