"""A recipe: one complete YAML file with a model and named stages that refer to each other. No torch here.

Stages refer to each other by name (``data: prepare``, ``start_from: sft``, ``models: [base, sft]``); ``base`` is the recipe's
model. A report reads everything the run has written, so it comes after all other stages.

Relative paths in a recipe (the model, the sources of rows, templates, prompts): a file or folder of that name beside the recipe is taken;
otherwise the text stays as it is, and means the working folder, a demo asset or a hub name. Paths given by an override never look beside
the recipe: who types them means the working folder. ``~/`` is the home folder in both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le, MinLen

from posttrain import assets
from posttrain.config import Document, Problem, build, dotted, override, read_yaml
from posttrain.references import (
    NamesEntry,
    NamesModel,
    NamesStage,
    Reference,
    is_builtin,
    references,
    with_references,
)
from posttrain.stages import AnyStage
from posttrain.stages.base import BASE
from posttrain.table import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One reproducible experiment."""

    name: str
    """Name of the run folder ``runs/<name>``: letters, digits, ``-``, ``_`` and ``.``."""
    model: Annotated[str, NamesModel()] | None = None
    """The base model: a demo asset, a hub name (``org/name``) or a folder in Hugging Face format. Needed where a stage names ``base``."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of everything random: the split, the order of rows, dropout, bootstrap resamples."""
    stages: Annotated[dict[str, AnyStage], MinLen(1)]
    """The stages by name (letters, digits, ``-`` and ``_``; not ``base``). Order matters only where no reference decides."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``key=value`` overrides, check it and all references in it.

    Raises:
        ConfigError: names file, line and config path of everything that is wrong.

    """
    return recipe_of(override(read_yaml(path), overrides, Recipe, shorthand="stages"))


def recipe_of(document: Document) -> Recipe:
    """The recipe that a document holds, checked. Raises ConfigError as `load_recipe`."""
    recipe = build(Recipe, document)
    problems = [*_name_problems(recipe), *_reference_problems(recipe), *_own_problems(recipe)]
    if problems := problems or _cycle_problems(recipe):
        raise document.error(problems)
    stages = {name: stage.settled() for name, stage in recipe.stages.items()}
    return _with_paths(replace(recipe, stages=stages), document)


# ---- the graph -----------------------------------------------------------------------------------------------------


def named_stage(recipe: Recipe, one: Reference) -> str | None:
    """The stage that a reference of the recipe means, or ``base``; None where it means something else.

    Where a text may also name something from outside, it does so unless another stage has that name.
    """
    if not isinstance(one.marker, NamesStage):
        return None
    if one.marker.unless_in is not None and one.text in getattr(one.owner, one.marker.unless_in):
        return None
    if one.marker.may_be_outside(one.text) and not (one.marker.or_base and one.text == BASE):
        return one.text if one.text in recipe.stages and one.text != one.path[1] else None
    return one.text


def stage_references(recipe: Recipe, name: str) -> list[Reference]:
    """What the configuration of a stage names; paths begin at the recipe."""
    return [one._replace(path=("stages", name, *one.path)) for one in references(recipe.stages[name])]


def stage_inputs(recipe: Recipe, name: str) -> dict[str, str]:
    """What a stage reads: key of the reference -> name of the stage. ``base`` is no stage and is left out.

    The keys are those of the stage's configuration (``data``, ``start_from``, ``models.1``); a report has no references, it reads every
    other stage under that stage's own name.
    """
    if recipe.stages[name].reads_all:
        return {other: other for other, stage in recipe.stages.items() if not stage.reads_all}
    found = ((one, named_stage(recipe, one)) for one in stage_references(recipe, name))
    return {dotted(one.path[2:]): stage for one, stage in found if stage not in (None, BASE)}


def execution_order(recipe: Recipe, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The stages (or the named ones and all they read), every one after all it reads, otherwise in the order of the file."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for needed in stage_inputs(recipe, name).values():
                visit(needed)
            done[name] = None

    for name in recipe.stages:
        if names is None or name in names:
            visit(name)
    return tuple(done)


# ---- what can be wrong ---------------------------------------------------------------------------------------------


def _name_problems(recipe: Recipe) -> list[Problem]:
    problems = []
    if not re.fullmatch(r"\w[\w.-]{0,99}", recipe.name):
        problems.append(
            Problem(
                ("name",),
                f"{recipe.name!r} can't name a folder; use letters, digits, '-', '_' and '.', starting with a letter or digit",
            )
        )
    folded: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        path = ("stages", name)
        if not re.fullmatch(r"\w[\w-]{0,99}", name):
            problems.append(
                Problem(
                    path,
                    f"the stage name {name!r} can't be used; use letters, digits, '-' and '_', starting with a letter or digit",
                )
            )
        if name == BASE:
            problems.append(Problem(path, "'base' is the name of the recipe's model; give this stage another name"))
        if name == "report" and not stage.reads_all:
            problems.append(
                Problem(
                    path, f"the folder report/ of a run is for the report; give this {stage.kind} stage another name"
                )
            )
        # On file systems that ignore case the two would share one folder.
        if folded.setdefault(name.casefold(), name) != name:
            problems.append(Problem(path, f"the name differs only by case from the stage {folded[name.casefold()]!r}"))
    reports = [name for name, stage in recipe.stages.items() if stage.reads_all]
    problems += [
        Problem(("stages", name), f"a run has one report, and {reports[0]!r} is one already") for name in reports[1:]
    ]
    return problems


def _reference_problems(recipe: Recipe) -> Iterator[Problem]:
    for one in references(recipe):
        stage = named_stage(recipe, one)
        if stage == BASE and recipe.model is None:
            yield Problem(("model",), f"this key is missing: {dotted(one.path)} is the recipe's model")
            return
        if stage is not None and (wrong := _wrong_stage(recipe, stage, one.marker)):
            yield Problem(one.path, wrong)
        if isinstance(one.marker, NamesEntry) and one.text not in (known := getattr(one.owner, one.marker.of)):
            yield Problem(
                one.path, f"{one.text!r} is not one of this stage's {one.marker.of}{did_you_mean(one.text, known)}"
            )


GIVEN = {"rows": "rows", "model": "a model", "reward_model": "a reward model"}
"""What a stage hands on, in words."""


def _wrong_stage(recipe: Recipe, name: str, marker: object) -> str | None:
    """What is wrong with naming this stage."""
    assert isinstance(marker, NamesStage)
    fitting = [
        other
        for other, stage in recipe.stages.items()
        if (not stage.reads_all if marker.gives is None else stage.gives == marker.gives)
    ]
    fitting = [BASE, *fitting] if marker.or_base else fitting
    if name in fitting:
        return None
    given = recipe.stages[name].gives if name in recipe.stages else "model" if name == BASE else None
    if marker.gives == "reward_model" and given == "model":
        return f"{name!r} is not a reward model (a train stage with objective: {{name: reward}})"
    if marker.gives == "model" and given == "reward_model":
        return f"{name!r} is a reward model: it scores replies and can't write or weigh them"
    known = f"; possible here: {', '.join(fitting) or 'none'}"
    due = f"but a stage that gives {GIVEN[marker.gives]} is needed" if marker.gives else "but a stage is needed"
    if name == BASE:
        return f"'base' is the recipe's model, {due}{known}"
    if name in recipe.stages:
        return f"{name!r} is a stage of kind {recipe.stages[name].kind}, {due}{known}"
    return f"there is no stage {name!r}{did_you_mean(name, fitting)}{known}"


def _own_problems(recipe: Recipe) -> Iterator[Problem]:
    for name, stage in recipe.stages.items():
        yield from (Problem(("stages", name, *path), message) for path, message in stage.problems(recipe.stages))


def _cycle_problems(recipe: Recipe) -> list[Problem]:
    """The first circle of references, as the path that leads around it."""
    inputs = {name: dict.fromkeys(stage_inputs(recipe, name).values()) for name in recipe.stages}

    def around(name: str, trail: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in trail:
            return (*trail[trail.index(name) :], name)
        found = (around(needed, (*trail, name)) for needed in inputs[name])
        return next((circle for circle in found if circle), None)

    for start in recipe.stages:
        circle = around(start, ())
        if circle:
            found = (one.path for one in stage_references(recipe, circle[0]) if named_stage(recipe, one) == circle[1])
            return [Problem(next(found), f"the stages start from each other in a circle: {' -> '.join(circle)}")]
    return []


# ---- paths -------------------------------------------------------------------------------------------------------------------


def _with_paths(recipe: Recipe, document: Document) -> Recipe:
    """The recipe with its relative paths resolved (see the module's docstring for the rule)."""
    folder = Path(document.file).parent

    def resolved(one: Reference) -> str:
        if named_stage(recipe, one) is not None or not on_disk(one):
            return one.text
        expanded = os.path.expanduser(one.text) if one.text.startswith("~") else one.text
        if document.is_override(one.path) or os.path.isabs(expanded) or not expanded:
            return expanded
        beside = folder / expanded
        found = os.path.normpath(beside) if beside.exists() else expanded
        goes_on = isinstance(one.marker, NamesStage) and one.marker.goes_on
        return f"./{found}" if goes_on and "/" not in found else found

    return with_references(recipe, resolved)


def with_whole_paths(recipe: Recipe) -> Recipe:
    """Paths that mean something on this disk in full, so that a recipe written elsewhere means the same."""

    def whole(one: Reference) -> str:
        if named_stage(recipe, one) is not None or not on_disk(one) or not Path(one.text).exists():
            return one.text
        return str(Path(one.text).resolve())

    return with_references(recipe, whole)


def on_disk(one: Reference) -> bool:
    """Whether a text that names no stage may be a path."""
    in_mapping = isinstance(one.marker, NamesStage) and one.marker.or_outside is None
    return not (isinstance(one.marker, NamesEntry) or in_mapping or is_builtin(one) or assets.is_hub_file(one.text))
