"""Plans of runs that show what the data did: each source left out once, or sub-samples of growing size (Tulu 3, section 4.1.2).

Every run of a plan is a complete recipe of its own, made from one recipe by changing the ``mix`` of its data stages and
nothing else: model, seed, training, evaluation and held-out rows stay. Sub-samples are stratified by source and nested (the
5% are among the 10%), and a source that is left out stays in the held-out rows, where its absence shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from posttrain.artifacts import write_text
from posttrain.config import resolved_yaml
from posttrain.data.config import DataSettings
from posttrain.data.mix import MixStep
from posttrain.data.pipeline import source_names
from posttrain.errors import ConfigError
from posttrain.lab.recipe import Recipe, load_recipe, with_whole_paths

Kind = Literal["leave_one_out", "sub_samples"]
Change = Callable[[MixStep], MixStep]
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Planned:
    """One recipe of a plan."""

    path: Path
    name: str
    """Name of its run: ``runs/<name>``."""
    changed: str
    """What is different in it, in words."""


def ablation_recipes(recipe_path: Path, out: Path, kind: Kind) -> list[Planned]:
    """Write the recipes of a plan into ``out``, the unchanged one first; run each with ``posttrain run``.

    ``leave_one_out``: one recipe a source. ``sub_samples``: 5, 10, 25, 50, 75 and 100% of the training rows, where 100% is
    the unchanged recipe. Files are written whole or not at all; equal recipes give equal files.

    Raises ConfigError where the recipe is wrong or there is nothing to leave out, RunError where ``out`` can't be written.
    """
    recipe = with_whole_paths(_with_names(load_recipe(recipe_path)))
    plan = {"leave_one_out": _left_out, "sub_samples": _sub_samples}[kind](recipe, str(recipe_path))
    planned = []
    for name, (changed, variant) in plan.items():
        path = out / f"{name}.yaml"
        head = f"# {recipe.name}: {changed}. Written by posttrain from {recipe_path.name}; run it with: posttrain run {path.name}\n"
        write_text(path, head + resolved_yaml(replace(variant, name=name)))
        load_recipe(path)  # what is written can be run
        planned.append(Planned(path, name, changed))
    return planned


def _left_out(recipe: Recipe, where: str) -> Mapping[str, tuple[str, Recipe]]:
    several = {name: names for name, names in _source_names(recipe).items() if len(names) > 1}
    names = list(dict.fromkeys(name for own in several.values() for name in own))
    if not names:
        raise ConfigError(
            "no data stage has several sources, and leaving the only one out would leave nothing",
            where=where,
            fix="give a recipe with several sources",
        )
    plan = {f"{recipe.name}-all-sources": ("all sources", recipe)}
    for name in names:
        stages = {stage for stage, own in several.items() if name in own}
        variant = _with_mix(recipe, stages, lambda mix, name=name: replace(mix, leave_out=(*mix.leave_out, name)))  # type: ignore[misc]
        plan[f"{recipe.name}-without-{_slug(name, plan)}"] = (f"without the source {name}", variant)
    return plan


def _sub_samples(recipe: Recipe, where: str) -> Mapping[str, tuple[str, Recipe]]:
    stages = set(_source_names(recipe))
    if not stages:
        raise ConfigError("there is no data stage", where=where, fix="give a recipe with a data stage")
    return {
        f"{recipe.name}-{round(100 * share):03}-percent": (
            f"{share:.0%} of the training rows of every source",
            _with_mix(recipe, stages, lambda mix, share=share: replace(mix, share=mix.share * share)),  # type: ignore[misc]
        )
        for share in SHARES
    }


# ---- recipes -------------------------------------------------------------------------------------------------------


def _data_stages(recipe: Recipe) -> dict[str, Any]:
    """Those that read something from outside: what reads other stages is changed with these."""
    data = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, DataSettings)}
    return {name: one for name, one in data.items() if any(s.path not in recipe.stages for s in one.sources)}


def _source_names(recipe: Recipe) -> dict[str, list[str]]:
    """Data stage -> the names of its sources."""
    return {name: source_names(stage.sources) for name, stage in _data_stages(recipe).items()}


def _with_mix(recipe: Recipe, stages: Set[str], change: Change) -> Recipe:
    """The recipe with the mix of these data stages changed."""
    changed = {
        name: replace(stage, mix=change(stage.mix or MixStep(kind="mix")))
        for name, stage in _data_stages(recipe).items()
        if name in stages
    }
    return replace(recipe, stages={**recipe.stages, **changed})


def _with_names(recipe: Recipe) -> Recipe:
    """The recipe with every source named: the default name is the stem of the path as it was written."""
    named = {}
    for name, stage in _data_stages(recipe).items():
        sources = zip(stage.sources, source_names(stage.sources), strict=True)
        own = (s if s.path in recipe.stages else replace(s, name=given) for s, given in sources)
        named[name] = replace(stage, sources=tuple(own))
    return replace(recipe, stages={**recipe.stages, **named})


def _slug(name: str, taken: Mapping[str, object]) -> str:
    """The name of a source as a part of a run's name; a number tells apart what would be the same."""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:60] or "source"
    same = sum(1 for other in taken if other.casefold().endswith(f"-without-{slug}".casefold()))
    return f"{slug}-{same + 1}" if same else slug
