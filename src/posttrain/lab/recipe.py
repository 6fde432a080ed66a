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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen
from pydantic import Discriminator

from posttrain.config import ConfigPath, Document, Problem, build, override, read_yaml
from posttrain.data.config import DataStage
from posttrain.judge.config import JudgeSource
from posttrain.objectives import RewardObjective
from posttrain.report.config import ReportStage
from posttrain.stages.eval import EvalStage
from posttrain.stages.train import TrainStage
from posttrain.table import did_you_mean
from posttrain.tasks import benchmark_files, with_files

BASE = "base"
"""The recipe's model, wherever a train stage could be named."""

JUDGE_TARGETS = ("local", "reward")
"""Keys of a judge that may name a train stage of the recipe."""

Stage = Annotated[DataStage | TrainStage | EvalStage | ReportStage, Discriminator("kind")]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One reproducible experiment."""

    name: str
    """Name of the run folder ``runs/<name>``: letters, digits, ``-``, ``_`` and ``.``."""
    model: str
    """The base model: a demo asset, a hub name (``org/name``) or a folder in Hugging Face format."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of everything random: the split, the order of rows, dropout, bootstrap resamples."""
    stages: Annotated[dict[str, Stage], MinLen(1)]
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
    problems = [*_name_problems(recipe), *_reference_problems(recipe)] or _cycle_problems(recipe)
    if problems:
        raise document.error(problems)
    return _settled(recipe, document)


# ---- the graph -----------------------------------------------------------------------------------------------------


def stage_inputs(recipe: Recipe, name: str) -> dict[str, str]:
    """What a stage reads: key of the reference -> name of the stage. ``base`` is no stage and is left out.

    The keys are those of the stage's configuration (``data``, ``start_from``, ``models.1``); a report has no references, it reads every
    other stage under that stage's own name.
    """
    if isinstance(recipe.stages[name], ReportStage):
        return {other: other for other, stage in recipe.stages.items() if not isinstance(stage, ReportStage)}
    return {key: stage for key, (stage, _) in _references(recipe, recipe.stages[name]).items() if stage != BASE}


def execution_order(recipe: Recipe) -> tuple[str, ...]:
    """The stages, every one after all it reads, otherwise in the order of the file."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for needed in stage_inputs(recipe, name).values():
                visit(needed)
            done[name] = None

    for name in recipe.stages:
        visit(name)
    return tuple(done)


def _references(recipe: Recipe, stage: Stage) -> dict[str, tuple[str, type]]:
    """Key -> (name, kind of stage it must be). Where a train stage is due, ``base`` is as good."""
    match stage:
        case TrainStage():
            found: dict[str, tuple[str, type]] = {
                "data": (stage.data, DataStage),
                "start_from": (stage.start_from, TrainStage),
            }
            if (reference := getattr(stage.objective, "reference", None)) is not None:
                found["objective.reference"] = (reference, TrainStage)
            return found
        case EvalStage():
            found = {} if stage.data is None else {"data": (stage.data, DataStage)}
            for index, name in enumerate(stage.models):
                if name not in stage.others:
                    found[f"models.{index}"] = (name, TrainStage)
            for index, source in enumerate(stage.judge.judges if stage.judge is not None else ()):
                for key in JUDGE_TARGETS:
                    if (target := getattr(source, key)) in recipe.stages:
                        found[f"judge.judges.{index}.{key}"] = (target, TrainStage)
            return found
        case _:
            return {}


def _path(stage: str, key: str) -> ConfigPath:
    return ("stages", stage, *(int(part) if part.isdigit() else part for part in key.split(".")))


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
        if name == "report" and not isinstance(stage, ReportStage):
            problems.append(
                Problem(
                    path, f"the folder report/ of a run is for the report; give this {stage.kind} stage another name"
                )
            )
        # On file systems that ignore case the two would share one folder.
        if folded.setdefault(name.casefold(), name) != name:
            problems.append(Problem(path, f"the name differs only by case from the stage {folded[name.casefold()]!r}"))
    reports = [name for name, stage in recipe.stages.items() if isinstance(stage, ReportStage)]
    problems += [
        Problem(("stages", name), f"a run has one report, and {reports[0]!r} is one already") for name in reports[1:]
    ]
    return problems


def _reference_problems(recipe: Recipe) -> list[Problem]:
    problems = []
    for name, stage in recipe.stages.items():
        for key, (target, kind) in _references(recipe, stage).items():
            wrong = _wrong_reference(recipe, target, kind, scores=key.endswith(".reward"))
            if wrong:
                problems.append(Problem(_path(name, key), wrong))
        if isinstance(stage, EvalStage):
            seen = stage.models
            if stage.reference is not None and stage.reference not in seen:
                wrong = f"{stage.reference!r} is not one of this stage's models{did_you_mean(stage.reference, seen)}"
                problems.append(Problem(_path(name, "reference"), wrong))
            problems += [
                Problem(_path(name, f"models.{i}"), f"{model!r} is listed twice")
                for i, model in enumerate(seen)
                if model in seen[:i]
            ]
            problems += _eval_problems(recipe, name, stage)
    return problems


def _eval_problems(recipe: Recipe, name: str, stage: EvalStage) -> list[Problem]:
    problems = []
    if stage.data is None and stage.prompts is None and not stage.benchmarks:
        problems.append(Problem(("stages", name), "nothing to measure: give data, prompts or benchmarks"))
    data = None if stage.data is None else recipe.stages.get(stage.data)
    if isinstance(data, DataStage) and data.held_out_amount == 0:
        problems.append(Problem(("stages", name, "data"), f"{stage.data!r} holds out no rows to measure on"))
    for other in stage.others:
        path: ConfigPath = ("stages", name, "others", other)
        if other == BASE or other in recipe.stages:
            problems.append(Problem(path, f"{other!r} is a name of this recipe; give the model another one"))
        elif other not in stage.models:
            problems.append(Problem(path, f"{other!r} is not one of this stage's models; add it to models"))
    for key in (*stage.benchmarks, *stage.others):
        if not re.fullmatch(r"\w[\w.-]{0,99}", key):
            where = "benchmarks" if key in stage.benchmarks else "others"
            wrong = f"the name {key!r} can't be used; use letters, digits, '-', '_' and '.', starting with a letter or digit"
            problems.append(Problem(("stages", name, where, key), wrong))
    return problems


def _wrong_reference(recipe: Recipe, target: str, kind: type, *, scores: bool = False) -> str | None:
    """What is wrong with a reference; ``scores``: a reward model is due."""
    word = {DataStage: "data", TrainStage: "train"}[kind]
    fitting = [name for name, stage in recipe.stages.items() if isinstance(stage, kind)]
    fitting = [BASE, *fitting] if kind is TrainStage else fitting
    if target in fitting:
        stage = recipe.stages.get(target)
        rewards = isinstance(stage, TrainStage) and isinstance(stage.objective, RewardObjective)
        if scores and not rewards:
            return f"{target!r} is no reward model (a train stage with objective: {{name: reward}})"
        if rewards and not scores:
            return f"{target!r} is a reward model: it scores replies and can't write or weigh them"
        return None
    known = (
        f"; {word} stages here: {', '.join(fitting) or 'none'}"
        if kind is DataStage
        else f"; possible here: {', '.join(fitting)}"
    )
    if target == BASE:
        return f"a {word} stage is needed, not the base model{known}"
    if target in recipe.stages:
        return f"{target!r} is a {recipe.stages[target].kind} stage, but a {word} stage is needed{known}"
    return f"there is no stage {target!r}{did_you_mean(target, fitting)}{known}"


def _cycle_problems(recipe: Recipe) -> list[Problem]:
    """The first circle of references, as the path that leads around it."""

    def around(name: str, trail: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in trail:
            return (*trail[trail.index(name) :], name)
        found = (around(needed, (*trail, name)) for needed in stage_inputs(recipe, name).values())
        return next((circle for circle in found if circle), None)

    for start in recipe.stages:
        circle = around(start, ())
        if circle:
            key = next(k for k, target in stage_inputs(recipe, circle[0]).items() if target == circle[1])
            return [
                Problem(_path(circle[0], key), f"the stages start from each other in a circle: {' -> '.join(circle)}")
            ]
    return []


# ---- paths and rates ---------------------------------------------------------------------------------------------------------


def _settled(recipe: Recipe, document: Document) -> Recipe:
    """The recipe with its relative paths resolved (see the module's docstring for the rule) and every learning rate written out."""
    folder = Path(document.file).parent

    def resolved(text: str, path: ConfigPath) -> str:
        expanded = os.path.expanduser(text) if text.startswith("~") else text
        if document.is_override(path) or os.path.isabs(expanded) or not expanded:
            return expanded
        beside = folder / expanded
        return os.path.normpath(beside) if beside.exists() else expanded

    stages: dict[str, Any] = {
        name: _stage_settled(
            stage,
            lambda text, key, name=name: resolved(text, _path(name, key)),  # type: ignore[misc]
            tuple(recipe.stages),
        )
        for name, stage in recipe.stages.items()
    }
    return replace(recipe, model=resolved(recipe.model, ("model",)), stages=stages)


def _source_settled(source: JudgeSource, resolved: Callable[[str, str], str], stages: Sequence[str]) -> JudgeSource:
    given = {key: value for key in ("local", "gguf", "reward", "base") if (value := getattr(source, key)) is not None}
    settled: dict[str, Any] = {key: resolved(value, key) for key, value in given.items() if value not in stages}
    return replace(source, **settled)


def _stage_settled(stage: Stage, resolved: Callable[[str, str], str], stages: Sequence[str]) -> Stage:
    match stage:
        case DataStage():
            sources = (replace(s, path=resolved(s.path, f"sources.{i}.path")) for i, s in enumerate(stage.sources))
            return replace(stage, sources=tuple(sources))
        case TrainStage():
            own = stage.template and resolved(stage.template, "template")
            return replace(stage, template=own, learning_rate=stage.peak_learning_rate)
        case EvalStage():
            own = stage.template and resolved(stage.template, "template")
            prompts = resolved(stage.prompts, "prompts") if stage.prompts not in (None, "builtin") else stage.prompts
            others = {name: resolved(target, f"others.{name}") for name, target in stage.others.items()}
            benchmarks = {
                key: with_files(
                    one, {k: resolved(file, f"benchmarks.{key}.{k}") for k, file in benchmark_files(one).items()}
                )
                for key, one in stage.benchmarks.items()
            }
            judge = stage.judge and replace(
                stage.judge,
                judges=tuple(
                    _source_settled(one, lambda text, key, i=i: resolved(text, f"judge.judges.{i}.{key}"), stages)  # type: ignore[misc]
                    for i, one in enumerate(stage.judge.judges)
                ),
            )
            return replace(stage, template=own, prompts=prompts, others=others, benchmarks=benchmarks, judge=judge)
        case _:
            return stage
