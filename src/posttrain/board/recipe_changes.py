"""What would change: the settings in which two recipes differ, and what becomes of every stage in a run folder."""

from __future__ import annotations

import contextlib
from typing import Literal, NamedTuple

from posttrain.artifacts import RunDir, digest, plain
from posttrain.errors import PosttrainError
from posttrain.lab.recipe import Recipe, execution_order, load_recipe, named_stage, stage_inputs, stage_references
from posttrain.references import NamesStage
from posttrain.stages.base import BASE
from posttrain.stages.page import flattened

Fate = Literal["kept", "goes_on", "anew", "again", "first"]
"""It is complete and stays; it was cut and goes on; it runs again and what it had is set aside; it runs whatever it had; it has not run."""


class Difference(NamedTuple):
    """A setting that is not the same in two recipes; None where there is none."""

    path: str
    old: str | None
    new: str | None


class StageFate(NamedTuple):
    """What becomes of a stage."""

    name: str
    fate: Fate


def differences(old: Recipe, new: Recipe) -> tuple[Difference, ...]:
    """The settings that differ, with those that hold by default; names of the runs apart."""
    before, after = (dict(flattened(plain(one))) for one in (old, new))
    keys = dict.fromkeys((*after, *before))
    found = (Difference(key, before.get(key), after.get(key)) for key in keys if key != "name")
    return tuple(one for one in found if one.old != one.new)


def fates(recipe: Recipe, run: RunDir) -> tuple[StageFate, ...]:
    """What would become of each stage if this recipe ran in a run folder, by configuration: files that have changed are not looked at."""
    before, keys = {}, work_keys(recipe)
    if (run.path / "recipe.yaml").is_file():
        with contextlib.suppress(PosttrainError):  # of another version: every stage may be another one
            before = work_keys(load_recipe(run.path / "recipe.yaml"))
    return tuple(
        StageFate(name, _fate(recipe, name, _status(run, name), same=keys[name] == before.get(name)))
        for name in execution_order(recipe)
    )


def _fate(recipe: Recipe, name: str, status: str | None, *, same: bool) -> Fate:
    stage = recipe.stages[name]
    if status is None:
        return "first"
    if stage.reads_all or stage.goes_through:
        return "again"
    if not same:
        return "anew"
    return "kept" if status == "complete" else "goes_on"


def _status(run: RunDir, name: str) -> str | None:
    try:
        manifest = run.stage(name).manifest()
    except PosttrainError:
        return None
    return None if manifest is None else str(manifest.get("status"))


def work_keys(recipe: Recipe) -> dict[str, str]:
    """Stage -> digest of all that decides its result, from the recipe alone: as the engine tells stages apart, by names in place of contents."""
    keys: dict[str, str] = {}
    for name in execution_order(recipe):
        inputs = {key: keys[read] for key, read in stage_inputs(recipe, name).items()}
        model = recipe.model if _rests_on_model(recipe, name) else None
        keys[name] = digest([recipe.stages[name], recipe.seed, model, inputs])
    return keys


def _rests_on_model(recipe: Recipe, name: str) -> bool:
    """Whether a stage names the recipe's model, or goes on with an adapter that lies on it."""
    return any(
        named_stage(recipe, one) == BASE
        or (isinstance(one.marker, NamesStage) and one.marker.goes_on and named_stage(recipe, one) is None)
        for one in stage_references(recipe, name)
    )
