"""What a run of a sweep gave: the value that decides, row by row, so that two runs are compared on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from posttrain.artifacts import Manifest, StageDir
from posttrain.errors import RunError
from posttrain.report.reading import Gap, Stage, parse
from posttrain.report.values import Better, Unit
from posttrain.stats.intervals import IntervalSettings, compare
from posttrain.table import did_you_mean
from posttrain.tasks.facts import TaskFacts, read_stage
from posttrain.tasks.held_out.preferences import row_measures
from posttrain.train.records import read_losses

HELD_OUT = "held-out loss"
RUNNING_WORSE = 2
"""Measurements running at which a training must be shown to be worse before it is ended."""

Rows = Mapping[str, float]
"""Row or prompt -> value; the value of a run is their mean."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What decides."""

    name: str
    unit: Unit
    better: Better


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value of one run."""

    metric: Metric
    rows: Rows
    curve: tuple[tuple[int, float], ...] = ()
    """(step, held-out loss) of a train stage."""
    seconds: float = 0.0
    """Of the measured stage."""

    @property
    def value(self) -> float:
        """The mean of the rows."""
        return float(np.mean(list(self.rows.values())))


def outcome(out: StageDir, metric: str | None, model: str | None) -> Outcome:
    """What a finished train or eval stage gave. Raises RunError where it does not write the metric, or has no rows of it."""
    manifest = parse(Manifest, out.manifest(), out.file("manifest.json"))
    found = _of_training(out, manifest) if manifest.kind == "train" else _of_evaluation(out, manifest, metric, model)
    if not found.rows:
        raise RunError(f"no row has a value of {found.metric.name}", where=str(out.path), fix="measure on more rows")
    if not all(map(math.isfinite, found.rows.values())):
        raise RunError(f"a value of {found.metric.name} is not finite", where=str(out.path))
    return found


def _of_training(out: StageDir, manifest: Manifest) -> Outcome:
    losses, result = read_losses(out), manifest.result or {}
    if not losses:
        raise RunError("no rows are held out", where=str(out.path), fix="set held_out of the data stage")
    kept = result.get("best_step") if result.get("kept") == "best" else None
    rows = losses[kept if kept in losses else max(losses)]
    return Outcome(Metric(HELD_OUT, "number", "lower"), rows, curve_of(losses), manifest.seconds or 0.0)


def curve_of(losses: Mapping[int, Rows]) -> tuple[tuple[int, float], ...]:
    """(step, mean) of every measurement."""
    return tuple((step, float(np.mean(list(rows.values())))) for step, rows in sorted(losses.items()))


def _of_evaluation(out: StageDir, manifest: Manifest, metric: str | None, model: str | None) -> Outcome:
    gaps: list[Gap] = []
    facts = read_stage(Stage(out.path.name, manifest.kind, "complete", manifest, None, out), gaps)
    if gaps or not facts:
        raise RunError(gaps[0].text if gaps else "nothing was measured", where=str(out.path))
    one, key = _chosen(facts, metric, str(out.path))
    name = model or one.record.models[-1]
    if name not in one.record.models:
        known = ", ".join(one.record.models)
        raise RunError(
            f"{name!r} was not measured{did_you_mean(name, one.record.models)}",
            where=str(out.path),
            fix=f"measured: {known}",
        )
    measure = next(found for found in one.record.measures if found.key == key)
    rows = _values(one, name, key)
    if not rows:
        fix = "name a measure that every prompt has a value of"
        raise RunError(f"{one.record.key}.{key} has no value by row", where=str(out.path), fix=fix)
    return Outcome(
        Metric(f"{one.record.key}.{key} of {name}", measure.unit, measure.better), rows, (), manifest.seconds or 0.0
    )


def _chosen(facts: tuple[TaskFacts, ...], metric: str | None, where: str) -> tuple[TaskFacts, str]:
    """The record and the measure that are meant."""
    if metric is None:
        return facts[0], facts[0].headlines[0].key
    known = {f"{one.record.key}.{measure.key}": (one, measure.key) for one in facts for measure in one.measures}
    if metric not in known:
        raise RunError(
            f"there is no metric {metric!r}{did_you_mean(metric, known)}", where=where, fix=f"known: {', '.join(known)}"
        )
    return known[metric]


def _values(one: TaskFacts, model: str, key: str) -> dict[str, float]:
    """Prompt -> the mean of its values; of a loss of rows so that the mean over rows is the loss of a token."""
    own = [row for row in one.rows if row.model == model]
    if one.record.key == "likelihood" and key == "loss":
        tokens = math.fsum(row.values["tokens"] for row in own)
        return {row.prompt_id: row.values["nll"] * len(own) / tokens for row in own}
    if one.record.task == "preferences":
        return row_measures(one.record, one.rows, model)[key]
    values: dict[str, list[float]] = {}
    for row in own:
        if key in row.values:
            values.setdefault(row.prompt_id, []).append(row.values[key])
    return {prompt: float(np.mean(several)) for prompt, several in values.items()}


# ---- while it trains -------------------------------------------------------------------------------------------------


def dominated(own: Mapping[int, Rows], best: Mapping[int, Rows], step: int, steps: int) -> bool:
    """Whether a training is shown to be worse than the best at the same steps, at the last measurements running, after half of its steps."""
    common = sorted(one for one in own if one in best and 2 * one >= steps and one <= step)[-RUNNING_WORSE:]
    return len(common) == RUNNING_WORSE and common[-1] == step and all(_worse(own[one], best[one]) for one in common)


def _worse(own: Rows, best: Rows) -> bool:
    rows = [row for row in own if row in best]
    if len(rows) < 2:
        return False
    found = compare([best[row] for row in rows], [own[row] for row in rows], settings=IntervalSettings(resamples=2000))
    return found.interval.low > 0
