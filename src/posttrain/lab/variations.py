"""A recipe with other settings, as values: what changes, what stays the same, and what is shared by whom. Nothing runs here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from posttrain.artifacts import digest, plain
from posttrain.config import Document, override, resolved_yaml
from posttrain.lab.recipe import Recipe, execution_order, recipe_of, stage_inputs


def changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with these settings (``sft.learning_rate``: 1e-4), checked. Raises ConfigError as overrides of a recipe do."""
    document = Document(where, plain(recipe), {(): 1})
    texts = [f"{path}={resolved_yaml([value], inline=True).strip()[1:-1]}" for path, value in changes.items()]
    return recipe_of(override(document, texts, Recipe, shorthand="stages", called=where))


def stage_keys(recipe: Recipe, seeds: Mapping[str, int]) -> dict[str, str]:
    """Stage -> digest of its settings, its seed and all that it reads of this recipe: equal keys, the same work."""
    keys: dict[str, str] = {}
    for name in execution_order(recipe):
        inputs = {key: keys[read] for key, read in stage_inputs(recipe, name).items()}
        keys[name] = digest([recipe.stages[name], seeds.get(name, recipe.seed), recipe.model, inputs])
    return keys


def reseeded(recipe: Recipe, varied: Collection[str]) -> tuple[str, ...]:
    """Stages whose seed a sweep over seeds sets: trainings that what is varied reaches, and whatever reads what they gave.

    Stages that only make rows keep the recipe's seed, and so do trainings before what is varied: all runs learn from the same rows, and
    from the same start, and are measured on the same rows.
    """
    reached: set[str] = set()
    found: dict[str, None] = {}
    for name in execution_order(recipe):
        read = stage_inputs(recipe, name).values()
        if name in varied or reached.intersection(read):
            reached.add(name)
        trains = recipe.stages[name].gives in ("model", "reward_model")
        if (trains and name in reached) or not found.keys().isdisjoint(read):
            found[name] = None
    return tuple(found)
