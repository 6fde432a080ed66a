"""Memory and time of a recipe's trainings, fast enough to stand beside a form that is typed into."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from posttrain.artifacts import digest
from posttrain.errors import PosttrainError
from posttrain.lab.planning import Planned, recipe_plan, shape_at_hand, trains
from posttrain.lab.recipe import Recipe
from posttrain.plan.devices import Device, device_of

KEPT = 64
"""Plans that are remembered."""
MACHINE_SECONDS = 60.0
"""For which the free memory of this machine is taken to be the same, so that a plan does not change under one's hands."""

Missing = Literal["no_training", "model_not_here", "failed"]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one training takes as it is set."""

    name: str
    method: str
    peak: float
    """Bytes."""
    room: float
    """Bytes that the device has."""
    fits: bool
    tokens_per_second: float | None
    hours: float | None
    """None where the rows were not counted yet, or the machine's speed is not known."""
    changes: tuple[str, ...]
    """Settings that would make it fit, in the order in which they should be tried."""


@dataclass(frozen=True, slots=True)
class RecipePlan:
    """The answer: a plan, or why there is none."""

    stages: tuple[StagePlan, ...] = ()
    planned: Planned | None = None
    missing: Missing | None = None
    problem: str = ""


@dataclass
class Plans:
    """Makes plans and remembers them by what they were made from."""

    runs: Path
    _kept: OrderedDict[str, RecipePlan] = field(default_factory=OrderedDict)
    _machine: tuple[float, Device] | None = None

    def of(self, recipe: Recipe) -> RecipePlan:
        """The plan of a recipe. Nothing is fetched for it: a model that is not on this disk is said to be missing."""
        if recipe.model is None or not trains(recipe):
            return RecipePlan(missing="no_training")
        run = self.runs / recipe.name
        counted = {name: _changed(run / name / "lengths.json") for name in recipe.stages}
        machine = self._device()
        key = digest([replace(recipe, name="x"), counted, machine])
        if key not in self._kept:
            self._kept[key] = _planned(recipe, machine, run)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _device(self) -> Device:
        now = time.monotonic()
        if self._machine is None or now - self._machine[0] > MACHINE_SECONDS:
            self._machine = (now, device_of("auto"))
        return self._machine[1]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _planned(recipe: Recipe, machine: Device, run: Path) -> RecipePlan:
    assert recipe.model is not None
    try:
        shape = shape_at_hand(recipe.model)
        if shape is None:
            return RecipePlan(missing="model_not_here", problem=recipe.model)
        planned = recipe_plan(recipe, shape, machine, run)
    except PosttrainError as error:
        return RecipePlan(missing="failed", problem=str(error))
    return RecipePlan(tuple(map(_stage, planned.record["stages"])), planned)


def _stage(record: Mapping[str, Any]) -> StagePlan:
    way = record["ways"][record["set"]]
    return StagePlan(
        name=record["stage"],
        method=record["set"],
        peak=way["memory"]["peak_bytes"],
        room=record["device_bytes"],
        fits=way["fits"],
        tokens_per_second=way["tokens_per_second_estimate"],
        hours=way["hours_estimate"],
        changes=tuple(change["setting"] for change in way["changes"]),
    )
