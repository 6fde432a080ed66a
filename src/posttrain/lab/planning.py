"""``posttrain plan``: does a recipe, or a model, fit on a device, and with which settings. Reads ``config.json`` only; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from posttrain import assets
from posttrain.config import Document, build, override
from posttrain.encode.lengths import Lengths
from posttrain.errors import AssetError, ConfigError, ModelError, PosttrainError, RunError
from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.model.companions import read_object
from posttrain.model.config import LoraAdapter
from posttrain.model.targets import asset_folder, is_hub_name, model_folder
from posttrain.online.config import OnlineSettings
from posttrain.online.planned import RewardNumbers, longest_prompts, own_run, own_setup, saved_reward, trained_reward
from posttrain.online.scores import RewardModelScore
from posttrain.plan.devices import Device, device_of
from posttrain.plan.fit import Rows, ways
from posttrain.plan.memory import generation_memory, kept_bytes, memory_plan
from posttrain.plan.section import PlannedStage, Traced, as_record, plan_page, speed_note
from posttrain.plan.shape import ModelShape, model_shape
from posttrain.report.reading import json_value, parse
from posttrain.report.values import Number, Page
from posttrain.train.config import TrainSettings
from posttrain.train.planned import (
    MEMORY_FILE,
    MemoryRecord,
    PromptTokens,
    longest_rows,
    measured_rows,
    run_of,
    setup_of,
)

SLOTS = 64
"""Replies that the local engine makes at once (``generate.decode``, which loads torch)."""
PROMPT_TOKENS = 256
"""Of a prompt that is continued, where it is not known."""


Trained = TrainSettings | OnlineSettings
"""Settings of stages that train."""


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
    if recipe.model is None or not trains(recipe):
        raise ConfigError(
            "this recipe trains no model", where=where, fix="give a recipe with a train stage, or a model"
        )
    shape = shape_of(recipe.model)
    if not trace:
        return recipe_plan(recipe, shape, machine, run)
    stages = [traced(stage, recipe.model) for stage in planned_stages(recipe, shape, machine, run)]
    return _answer(recipe.name, shape, machine, stages)


def recipe_plan(recipe: Recipe, shape: ModelShape, machine: Device, run: Path) -> Planned:
    """The plan of a recipe's training stages (it has some), of a model whose sizes are known."""
    return _answer(recipe.name, shape, machine, planned_stages(recipe, shape, machine, run))


def trains(recipe: Recipe) -> bool:
    """Whether a recipe has a model and something to plan."""
    return recipe.model is not None and bool(_trained(recipe))


def _trained(recipe: Recipe) -> dict[str, Trained]:
    return {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainSettings | OnlineSettings)}


def planned_stages(recipe: Recipe, shape: ModelShape, machine: Device, run: Path | None = None) -> list[PlannedStage]:
    """The plans of a recipe's training stages; rows are as long as ``max_length`` where a run has not encoded them yet."""
    trained, stages = _trained(recipe), []
    for name, settings in trained.items():
        if isinstance(settings, OnlineSettings):
            stages.append(_online_stage(recipe, name, settings, shape, machine, run))
            continue
        rows = longest_rows(settings)
        if run is not None and (known := run / name / "lengths.json").is_file():
            rows = _measured(settings, known, rows)
        stages.append(_stage(name, settings, shape, machine, rows, second_model=_second_model(trained, name)))
    others = [stage for stage in recipe.stages.values() if not isinstance(stage, OnlineSettings)]
    if evaluations := [n for s in others if isinstance(n := getattr(s, "max_new_tokens", None), int)]:
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


def _second_model(trained: Mapping[str, Trained], name: str) -> bool:
    """Whether the reference of a stage is loaded as a model of its own: it is neither its start nor the weights under its adapter."""
    stage, start = trained[name], _start(trained[name])
    named = getattr(stage.objective, "reference", None)
    under = _weights_under(trained, start) if isinstance(stage.adapter, LoraAdapter) else None
    return stage.objective.needs_reference and named not in (None, start, under)


def _start(stage: Trained) -> str:
    """What a stage starts from."""
    return str(getattr(stage, "start_from", None))


def _weights_under(trained: Mapping[str, Trained], name: str) -> str:
    """What the adapter of a model lies on, or the model itself where it has none."""
    while name in trained and isinstance(trained[name].adapter, LoraAdapter):
        name = _start(trained[name])
    return name


# ---- learning from one's own replies -------------------------------------------------------------------------------


def _online_stage(
    recipe: Recipe, name: str, settings: OnlineSettings, shape: ModelShape, machine: Device, run: Path | None
) -> PlannedStage:
    trained, dtype, start = _trained(recipe), _dtype(settings.dtype, machine), _start(settings)
    known = None if run is None else _measured_prompts(run / name / MEMORY_FILE)
    prompts = known or longest_prompts(settings)
    goes_on = start in trained and isinstance(trained[start].adapter, LoraAdapter)
    goes_on |= (Path(start) / "adapter_config.json").is_file()
    scores = [score for score in settings.scores if isinstance(score, RewardModelScore)]
    rewards = [_reward(recipe, score, settings, shape) for score in scores]
    setup = own_setup(settings, shape, dtype, machine.kind, prompts, rewards, goes_on=goes_on)
    own = setup.own_replies
    assert own is not None, "it was just made so"
    read = f"Prompts as an earlier run of this recipe encoded them: the longest {prompts.longest:,} tokens"
    worst = f"Prompts are not read: all are taken to be max_prompt_tokens = {prompts.longest:,} tokens long"
    notes = (
        f"{worst if known is None else read}, replies max_new_tokens = {settings.max_new_tokens:,}.",
        f"{own.slots} replies are continued at once, of {own.length:,} tokens with their prompts.",
        f"Weights and products: {dtype}.",
        f"{speed_note(machine)} Here they are of learning alone: sampling comes on top.",
    )
    return PlannedStage(name, machine, ways(setup, own_run(settings, prompts), machine), setup.method, notes)


def _measured_prompts(path: Path) -> PromptTokens | None:
    try:
        return parse(MemoryRecord, json_value(path), path).prompts if path.is_file() else None
    except RunError:  # another version's, or damaged: the run itself will write it anew
        return None


def _reward(recipe: Recipe, score: RewardModelScore, policy: OnlineSettings, shape: ModelShape) -> RewardNumbers:
    """A reward model, of the recipe or from outside; one that is not at hand is taken for a model of the policy's size."""
    trained = _trained(recipe)
    if (stage := trained.get(score.model)) is not None:
        weights = [_weights_under(trained, _start(one)) for one in (stage, policy)]
        kept = [getattr(one.adapter, "quantize", "full") for one in (stage, policy)]
        adapter = stage.adapter if isinstance(stage.adapter, LoraAdapter) else None
        return trained_reward(adapter, shape, shares=weights[0] == weights[1] and kept[0] == kept[1])
    try:
        return saved_reward(score.lineage, model_folder(recipe.model or ""))
    except PosttrainError:
        return RewardNumbers(model=shape.parameters)


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
        if way.setup.quantized or way.setup.scores or way.setup.own_replies is not None:
            continue  # of weights in 4 bits, score heads and units of several replies there is no trace
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


def shape_at_hand(model: str) -> ModelShape | None:
    """The sizes of a model whose ``config.json`` is on this disk; None where it would have to be fetched or made first.

    Raises ModelError as `shape_of` for a name that can't be a model.
    """
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        config = read_object(path / "config.json")
        return None if config.get("quantization_config") else model_shape(config, model)  # unpacked when it is used
    if path.is_file():  # GGUF, which becomes a folder when it is used
        return None
    if model in assets.MODELS:
        return shape_of(model) if asset_folder(model).is_dir() else None
    if not is_hub_name(model):
        return shape_of(model)  # which says what is wrong
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    return model_shape(read_object(Path(found)), model) if isinstance(found, str) else None


def config_file(model: str) -> Path:
    """The ``config.json`` of a model, fetched where it is on the hub."""
    if Path(model).expanduser().is_dir() or model in assets.MODELS or not is_hub_name(model):
        return model_folder(model) / "config.json"
    try:
        return assets.hub_file(f"hf://{model}/config.json")
    except AssetError as error:
        raise AssetError(error.problem, where=model, fix="connect, or give a folder with its config.json") from error
