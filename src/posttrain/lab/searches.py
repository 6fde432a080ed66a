"""``posttrain sweep`` and ``posttrain tune``: a recipe with one stage more that searches, in a run folder of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from posttrain.artifacts import plain
from posttrain.config import parse_yaml, read_yaml
from posttrain.encode.lengths import Lengths
from posttrain.errors import ConfigError, PosttrainError, RunError
from posttrain.lab import planning
from posttrain.lab.options import Keys, configured, options_help, split_arguments
from posttrain.lab.recipe import Recipe, execution_order, load_recipe, recipe_of
from posttrain.lab.variations import changed
from posttrain.report import numbers
from posttrain.report.reading import json_value, parse
from posttrain.report.values import Section, Table, Text
from posttrain.report.words import plural
from posttrain.stages.base import StageKind
from posttrain.stages.sweep import SweepStage
from posttrain.stages.tune import TuneStage
from posttrain.train.config import TrainSettings
from posttrain.train.planned import measured_rows

Kind = Literal["sweep", "tune"]
UNKNOWN_ROWS = 1000
"""Rows that advice is given for where they were not counted: a small set, as most are."""
STAGES: dict[Kind, type[SweepStage] | type[TuneStage]] = {"sweep": SweepStage, "tune": TuneStage}


def options(kind: Kind) -> str:
    """Every option, for ``--help``."""
    return options_help(_keys(kind))


def _keys(kind: Kind) -> tuple[Keys, ...]:
    without = ("over", "settings") if kind == "sweep" else ()
    return (Keys(STAGES[kind], (f"stages.{kind}.",), without=without), Keys(Recipe, ("",), only=("name", "seed")))


def search_recipe(kind: Kind, path: str, words: Sequence[str], runs: Path) -> Recipe:
    """The recipe with the stage ``sweep`` or ``tune``, and of the others those that it needs; its name is ``NAME-sweep`` unless one is given.

    words: ``sft.learning_rate=1e-4,2e-4`` and options; of tune, ``key=value`` changes the recipe. Raises ConfigError.
    """
    where = f"posttrain {kind}"
    given, typed = split_arguments(words)
    varied = {key: text for key, _, text in (one.partition("=") for one in given)}
    if any("=" not in one for one in given):
        wrong = next(one for one in given if "=" not in one)
        raise ConfigError(
            f"{wrong!r} is not KEY=VALUES", where=where, fix=f"{where} {path} sft.learning_rate=1e-4,2e-4"
        )
    recipe = load_recipe(path, given if kind == "tune" else ())
    stages = {
        name: plain(stage) for name, stage in recipe.stages.items() if not (stage.reads_all or stage.goes_through)
    }
    options = [one for one in typed if not one.startswith("stage=")]
    stage = next((one.partition("=")[2] for one in typed if one.startswith("stage=")), None) or _measured(
        recipe, list(varied), where
    )
    search: dict[str, Any] = {"kind": kind, "stage": stage}
    if kind == "sweep":
        search["over"] = {key: _values(key, text, where) for key, text in varied.items()}
    value = {**plain(recipe), "name": f"{recipe.name}-{kind}", "stages": {**stages, kind: search}}
    found = configured(Recipe, recipe_of, where, value, _keys(kind), options)
    order = execution_order(found, [kind])
    found = replace(found, stages={name: found.stages[name] for name in found.stages if name in order})
    stage_of = found.stages[kind]
    for changes in getattr(stage_of, "listed", tuple)():
        changed(found, changes, where)
    _refuse_another(found, kind, runs / found.name)
    return found


def _measured(recipe: Recipe, varied: Sequence[str], where: str) -> str:
    """The stage that is meant: the train stage that is varied, or the only one."""
    trained = [name for name, stage in recipe.stages.items() if stage.kind == "train"]
    among = {path.removeprefix("stages.").partition(".")[0] for path in varied} & set(trained)
    found = list(among) if len(among) == 1 else trained
    if len(found) != 1:
        raise ConfigError("which stage decides?", where=where, fix=f"give --stage, one of {', '.join(recipe.stages)}")
    return found[0]


def _values(key: str, text: str, where: str) -> Any:
    """``1e-4,2e-4`` as a list, a YAML list as it is, ``{low: 1e-5, high: 1e-3}`` as a range."""
    whole = text if text.startswith(("[", "{")) else f"[{text}]"
    return parse_yaml(f"{key}: {whole}", f"{where} {key}={text}").value[key]


def _refuse_another(recipe: Recipe, kind: Kind, folder: Path) -> None:
    """Raise ConfigError where a folder holds a search over something else: its results would be replaced."""
    if not (folder / "recipe.yaml").is_file():
        return
    try:
        before = read_yaml(folder / "recipe.yaml").value["stages"].get(kind, {})
        same = (before.get("stage"), sorted(before.get("over") or ())) == (
            recipe.stages[kind].stage,  # type: ignore[attr-defined]
            sorted(getattr(recipe.stages[kind], "over", ())),
        )
    except (ConfigError, TypeError, KeyError, AttributeError):
        same = False
    if not same:
        fix = "give this one a name of its own: --name NAME"
        raise ConfigError(f"this folder holds another {kind}", where=str(folder), fix=fix)


def cost_section(kind: Kind, recipe: Recipe, path: str, runs: Path) -> Section:
    """What a search tries and about how long it takes, before anything runs."""
    stage = cast("SweepStage | TuneStage", recipe.stages[kind])
    known = _lengths(stage.stage, (runs / recipe.name, runs / recipe.name.removesuffix(f"-{kind}")))
    settings = recipe.stages[stage.stage]
    lines, number = stage.tries(settings, len(known.conversation.values) if known else UNKNOWN_ROWS)
    hours = _hours(recipe, settings, known)
    time = (
        "how long a run takes is not known before the rows were encoded once"
        if hours is None
        else (
            f"a run takes about {numbers.in_unit(3600 * hours, 'seconds')}, all about {numbers.in_unit(3600 * hours * number, 'seconds')}"
        )
    )
    text = (
        f"About {plural(number, 'run')} of {stage.stage}, beside the recipe as it is written; {time}. Nothing was run."
    )
    return Section(f"posttrain {kind} {path}", kind, (Text(text), Table("What is tried", ("", "Values"), lines)))


def _lengths(stage: str, runs: Sequence[Path]) -> Lengths | None:
    """The rows of a stage as an earlier run encoded them."""
    for run in runs:
        path = run / stage / "lengths.json"
        if path.is_file():
            with contextlib.suppress(RunError):
                return parse(Lengths, json_value(path), path)
    return None


def _hours(recipe: Recipe, settings: StageKind, known: Lengths | None) -> float | None:
    """About how long a run takes here, by the planner; None where the rows or the model can't be told."""
    if known is None or recipe.model is None or not isinstance(settings, TrainSettings):
        return None
    try:
        return planning.planned_hours(recipe.model, settings, measured_rows(settings, known))
    except PosttrainError:
        return None
