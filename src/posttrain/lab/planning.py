"""``posttrain plan``: does a recipe, or a model, fit on a device, and with which settings. Reads ``config.json`` only; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from posttrain import assets
from posttrain.config import Document, build, override
from posttrain.encode.lengths import Lengths
from posttrain.errors import AssetError, ConfigError, ModelError, RunError
from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.model.companions import read_object
from posttrain.model.config import LoraAdapter
from posttrain.model.targets import is_hub_name, model_folder
from posttrain.plan.devices import Device, device_of
from posttrain.plan.fit import Rows, ways
from posttrain.plan.memory import generation_memory, kept_bytes, memory_plan
from posttrain.plan.section import PlannedStage, Traced, as_record, plan_page, speed_note
from posttrain.plan.shape import ModelShape, model_shape
from posttrain.report.reading import json_value, parse
from posttrain.report.values import Number, Page
from posttrain.train.config import TrainSettings
from posttrain.train.planned import longest_rows, measured_rows, run_of, setup_of

SLOTS = 64
"""Replies that the local engine makes at once (``generate.decode``, which loads torch)."""
PROMPT_TOKENS = 256
"""Of a prompt that is continued, where it is not known."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer of ``posttrain plan``."""

    page: Page
    record: dict[str, Any]


def plan(target: str, overrides: Sequence[str], device: str, runs: Path, *, trace: bool = False) -> Planned:
    """The plan of a recipe's training stages, or of a model with the settings of a stage that sets nothing.

    Raises ConfigError for an unknown device or a recipe that trains nothing, ModelError and AssetError for a model that can't be counted.
    """
    machine = device_of(device)
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        recipe = load_recipe(target, overrides)
        return _recipe_plan(recipe, machine, runs / recipe.name, target, trace=trace)
    settings = _settings(overrides)
    shape = shape_of(target)
    stage = _stage("train", settings, shape, machine, longest_rows(settings))
    if trace:
        stage = traced(stage, target)
    return _answer(Path(target).name or target, shape, machine, [stage])


def planned_hours(model: str, settings: TrainSettings, rows: Rows) -> float | None:
    """About how long a training takes on this machine; None where its speed is not known. Raises ModelError and AssetError."""
    stage = _stage("", settings, shape_of(model), device_of("auto"), rows)
    return next(way.hours for way in stage.ways if way.setup.method == stage.chosen)


def _settings(overrides: Sequence[str]) -> TrainSettings:
    """A stage's settings from ``key=value``."""
    where = "posttrain plan"
    return build(TrainSettings, override(Document(where, {}, {(): where}), overrides, TrainSettings))


def _recipe_plan(recipe: Recipe, machine: Device, run: Path, where: str, *, trace: bool) -> Planned:
    if recipe.model is None or not _trained(recipe):
        raise ConfigError(
            "this recipe trains no model", where=where, fix="give a recipe with a train stage, or a model"
        )
    shape = shape_of(recipe.model)
    stages = planned_stages(recipe, shape, machine, run)
    if trace:
        stages = [traced(stage, recipe.model) for stage in stages]
    return _answer(recipe.name, shape, machine, stages)


def _trained(recipe: Recipe) -> dict[str, TrainSettings]:
    return {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainSettings)}


def planned_stages(recipe: Recipe, shape: ModelShape, machine: Device, run: Path | None = None) -> list[PlannedStage]:
    """The plans of a recipe's training stages; rows are as long as ``max_length`` where a run has not encoded them yet."""
    trained, stages = _trained(recipe), []
    for name, settings in trained.items():
        rows = longest_rows(settings)
        if run is not None and (known := run / name / "lengths.json").is_file():
            rows = _measured(settings, known, rows)
        stages.append(_stage(name, settings, shape, machine, rows, second_model=_second_model(trained, name)))
    if evaluations := [n for s in recipe.stages.values() if isinstance(n := getattr(s, "max_new_tokens", None), int)]:
        length = PROMPT_TOKENS + max(evaluations)
        memory = generation_memory(shape, _dtype("auto", machine), machine.kind, SLOTS, length)
        note = f"Generating {SLOTS} replies at once, of {length:,} tokens with their prompts, takes"
        stages[-1] = replace(stages[-1], generation=memory, generation_note=note)
    return stages


def _measured(settings: TrainSettings, path: Path, otherwise: Rows) -> Rows:
    try:
        return measured_rows(settings, parse(Lengths, json_value(path), path))
    except RunError:  # another version's, or damaged: the run itself will write it anew
        return otherwise


def _second_model(trained: Mapping[str, TrainSettings], name: str) -> bool:
    """Whether the reference of a stage is loaded as a model of its own: it is neither its start nor the weights under its adapter."""
    starts = {one: str(getattr(stage, "start_from", None)) for one, stage in trained.items()}
    stage, weights = trained[name], starts[name]
    while weights in trained and isinstance(trained[weights].adapter, LoraAdapter):
        weights = starts[weights]
    named = getattr(stage.objective, "reference", None)
    under = weights if isinstance(stage.adapter, LoraAdapter) else None
    return stage.objective.needs_reference and named not in (None, starts[name], under)


def _stage(
    name: str, settings: TrainSettings, shape: ModelShape, machine: Device, rows: Rows, *, second_model: bool = False
) -> PlannedStage:
    dtype = _dtype(settings.dtype, machine)
    tokens = settings.token_budget
    setup = setup_of(settings, shape, dtype, machine.kind, second_model=second_model)
    run = run_of(settings, rows, tokens)
    notes = [_rows_note(rows, settings), f"Weights and products: {dtype}.", speed_note(machine)]
    if machine.kind == "cuda" and not machine.multiplies_bf16:
        notes.append(f"{machine.name} has no bf16: fp32 is planned.")
    return PlannedStage(name, machine, ways(setup, run, machine), setup.method, tuple(notes))


def _rows_note(rows: Rows, settings: TrainSettings) -> str:
    if not rows.measured:
        return (
            f"Rows are not read: all are taken to be max_length = {settings.max_length:,} tokens long, the worst case."
        )
    return (
        f"Rows as an earlier run of this recipe encoded them: {rows.count:,}, {rows.mean:,.0f} tokens on average, "
        f"the longest {rows.longest:,}."
    )


def _dtype(name: str, machine: Device) -> Literal["bf16", "fp32"]:
    """The compute type, as it is set or as ``auto`` will find it."""
    if name != "auto":
        return "bf16" if name == "bf16" else "fp32"
    return "bf16" if machine.multiplies_bf16 else "fp32"


def _answer(title: str, shape: ModelShape, machine: Device, stages: Sequence[PlannedStage]) -> Planned:
    facts = (
        ("", shape.model_type),
        ("parameters", Number(shape.parameters, "compact")),
        ("layers", Number(len(shape.layers), "count")),
        ("device", machine.name),
    )
    record = {
        "model_type": shape.model_type,
        "parameters": shape.parameters,
        "stages": [as_record(stage) for stage in stages],
    }
    return Planned(plan_page(title, facts, stages), record)


def traced(stage: PlannedStage, model: str) -> PlannedStage:
    """The stage with what its step takes by a trace, beside the formulas; of weights in 4 bits there is none."""
    from posttrain.train.step_trace import trace_step  # torch: seconds that the formulas need not wait

    config, found = read_object(config_file(model)), []
    for way in stage.ways:
        if way.setup.quantized or way.setup.scores:
            continue
        layout = way.run.rows.layout(way.run.tokens_at_once)
        setup = replace(way.setup, accumulates=True, device="cpu")  # a trace is of the code that runs on a CPU
        memory, step = memory_plan(setup, layout), trace_step(config, setup, layout, model)
        found.append(Traced(way.setup.method, kept_bytes(setup, layout), step.kept, memory.step_bytes, step.peak))
    return replace(stage, traced=tuple(found))


# ---- the configuration of a model ----------------------------------------------------------------------------------


def shape_of(model: str) -> ModelShape:
    """The sizes of a model: a folder, a demo asset, or a hub name, of which ``config.json`` alone is fetched.

    Raises ModelError and AssetError.
    """
    path = config_file(model)
    if not path.is_file():
        raise ModelError(
            "no config.json here: this is not a HF model folder",
            where=model,
            fix="give a folder with config.json, a recipe, a demo asset or a hub name like org/name",
        )
    return model_shape(read_object(path), model)


def config_file(model: str) -> Path:
    """The ``config.json`` of a model, fetched where it is on the hub."""
    if Path(model).expanduser().is_dir() or model in assets.MODELS or not is_hub_name(model):
        return model_folder(model) / "config.json"
    try:
        return assets.hub_file(f"hf://{model}/config.json")
    except AssetError as error:
        raise AssetError(error.problem, where=model, fix="connect, or give a folder with its config.json") from error
