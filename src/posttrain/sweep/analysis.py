"""Which setting is best, which is good enough, and which differences are more than noise. numpy and scipy only.

Two sources of uncertainty, kept apart: the held-out rows (the same for all runs, so differences are paired row by row) and the seeds
(other initial weights, another order). Shapes: K settings, S seeds, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from posttrain.artifacts import canonical_json
from posttrain.stats.intervals import Floats, mean_difference, student
from posttrain.sweep.records import Effect

FOLDS = 5


class Differences(NamedTuple):
    """Settings against the best of them."""

    best: int
    chosen: int
    means_K: Floats
    errors_K: Floats
    """Standard errors of the difference from the best; 0 of the best itself."""
    freedom: float
    """Degrees of freedom of the intervals."""
    noise: float | None
    """Standard deviation between seeds within a setting."""


def differences(values_KSR: Floats, *, lower: bool) -> Differences:
    """Means, the best setting, and the simplest within one standard error of it (Breiman et al. 1984, section 3.4.3).

    The standard error of a difference (`mean_difference`) is that row by row, of means over seeds, and that of the noise between seeds,
    pooled over settings. Settings stand with the simplest first.
    """
    means_KR = values_KSR.mean(axis=1)
    means_K = means_KR.mean(axis=1)
    best = int(np.argmin(means_K) if lower else np.argmax(means_K))
    settings, seeds, rows = values_KSR.shape
    noise = seed_noise(values_KSR.mean(axis=2))
    errors_K = np.array([mean_difference(means_KR[best], own_R, noise=noise, seeds=seeds).error for own_R in means_KR])
    errors_K[best] = 0.0
    freedom = float(rows - 1) if noise is None else min(float(rows - 1), float(settings * (seeds - 1)))
    chosen = int(np.argmax(np.abs(means_K - means_K[best]) <= errors_K))
    return Differences(best, chosen, means_K, errors_K, max(1.0, freedom), noise)


def seed_noise(values_KS: Floats) -> float | None:
    """Standard deviation between seeds, pooled over settings; None with a single seed."""
    if values_KS.shape[1] < 2:
        return None
    return float(np.sqrt(np.mean(np.var(values_KS, axis=1, ddof=1))))


def expected(values_KSR: Floats, *, lower: bool) -> float:
    """The value of a setting that was chosen like this, on rows it was not chosen on: by folds of rows, chosen on the others.

    The value of the chosen setting itself flatters: the best of several is the luckiest too.
    """
    rows = values_KSR.shape[2]
    folds = np.arange(rows) % min(FOLDS, rows)
    if rows < 2:
        return float(values_KSR[differences(values_KSR, lower=lower).chosen].mean())
    total = 0.0
    for fold in range(min(FOLDS, rows)):
        chosen = differences(values_KSR[:, :, folds != fold], lower=lower).chosen
        total += float(values_KSR[chosen][:, folds == fold].mean(axis=0).sum())
    return float(total / rows)


def effects(settings: Sequence[Mapping[str, Any]], values_KS: Floats, confidence: float) -> tuple[Effect, ...]:
    """What every setting of a full grid does on average over the others; nothing where the grid is not full.

    Each value against the first: the difference of the means over all runs, with the noise between seeds as its error.
    """
    if not settings or any(set(one) != set(settings[0]) for one in settings):
        return ()
    levels = {path: _distinct(one[path] for one in settings) for path in settings[0]}
    points = {canonical_json(list(point)) for point in product(*levels.values())}
    if len(points) != len(settings) or {canonical_json(list(one.values())) for one in settings} != points:
        return ()
    noise, seeds = seed_noise(values_KS), values_KS.shape[1]
    freedom = len(settings) * (seeds - 1)
    found = []
    for path, values in levels.items():
        at = [[k for k, one in enumerate(settings) if one[path] == value] for value in values]
        first = values_KS[at[0]].mean()
        for value, places in zip(values[1:], at[1:], strict=True):
            estimate, runs = float(values_KS[places].mean() - first), len(places) * seeds
            known = None if noise is None else student(estimate, noise * np.sqrt(2 / runs), freedom, confidence)
            shown = None if known is None else known.low > 0 or known.high < 0
            parts = {"difference": known, "estimate": estimate, "runs": runs, "shown": shown}
            found.append(Effect(path=path, value=value, against=values[0], **parts))
    return tuple(found)


def _distinct(values: Any) -> list[Any]:
    return list({canonical_json(value): value for value in values}.values())
