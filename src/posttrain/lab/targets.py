"""What a user may point at on the command line: a run's stage, a model folder, an adapter, an asset or a hub name."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.artifacts import RunDir
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
        weights = stage_weights(RunDir(path.parent), path.name, model_folder(base or recipe.model))
        return weights, getattr(recipe.stages.get(path.name), "template", None)
    if (path / "recipe.yaml").is_file():
        trained = [
            p.parent.name for p in sorted(path.glob("*/manifest.json")) if json.loads(p.read_text())["kind"] == "train"
        ]
        raise ModelError(
            "this is a run; name one of its train stages",
            where=target,
            fix=", ".join(str(path / t) for t in trained) or "it has none",
        )
    if (path / "adapter_config.json").is_file():
        own = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
        if not (base or own):
            raise ModelError("this adapter does not name its base model", where=target, fix="give it with --base")
        return Weights(model_folder(base or own), path), None
    return Weights(model_folder(target)), None
