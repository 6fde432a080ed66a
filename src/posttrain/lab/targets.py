"""What a user may point at on the command line: a run's stage, a model folder, an adapter, an asset or a hub name."""

from __future__ import annotations

from pathlib import Path

from posttrain.artifacts import RunDir, read_json
from posttrain.config import build, read_yaml
from posttrain.errors import ModelError
from posttrain.lab.models import Weights, stage_weights
from posttrain.lab.recipe import Recipe
from posttrain.model.source import model_folder


def resolve_target(target: str, base: str | None = None) -> tuple[Weights, str | None]:
    """The weights of a target and the chat template file it was trained with (None = the tokenizer's own).

    target: ``runs/NAME/STAGE``, a PEFT adapter folder (its base from ``base`` or from its own configuration), a HF model
    folder, a demo asset or a hub name.
    """
    path = Path(target)
    if (path / "manifest.json").is_file() and (path.parent / "recipe.yaml").is_file():
        recipe = build(Recipe, read_yaml(path.parent / "recipe.yaml"))
        kind = read_json(path / "manifest.json")["kind"]
        if kind != "train":
            raise _name_a_train_stage(path.parent, f"this is a {kind} stage, it has no weights", target)
        weights = stage_weights(RunDir(path.parent), path.name, model_folder(base or recipe.model))
        return weights, getattr(recipe.stages.get(path.name), "template", None)
    if (path / "recipe.yaml").is_file():
        raise _name_a_train_stage(path, "this is a run", target)
    if (path / "adapter_config.json").is_file():
        own = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        if not (base or own):
            raise ModelError("this adapter does not name its base model", where=target, fix="give it with --base")
        return Weights(model_folder(base or own), path), None
    return Weights(model_folder(target)), None


def _name_a_train_stage(run: Path, problem: str, target: str) -> ModelError:
    trained = [str(p.parent) for p in sorted(run.glob("*/manifest.json")) if read_json(p)["kind"] == "train"]
    fix = f"name a train stage: {', '.join(trained)}" if trained else "this run has trained nothing yet"
    return ModelError(problem, where=target, fix=fix)
