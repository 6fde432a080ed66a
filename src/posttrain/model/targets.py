"""What a user may point at on the command line: a run's stage, a model folder, an adapter, an asset or a hub name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain import assets
from posttrain.artifacts import StageDir, atomic_path, file_digest, read_json
from posttrain.errors import ModelError
from posttrain.model.companions import read_object
from posttrain.model.lineage import TRAINED, Lineage, model_digest, stage_lineage
from posttrain.table import did_you_mean

EXPORTED = "files"
"""The folder of an export stage with what it has written."""


def gguf_file(target: str) -> Path | None:
    """The GGUF model that a target means: a file, a folder that was exported in this form, or the stage that did; None where it is none."""
    path = Path(target)
    if path.is_file() and path.suffix == ".gguf":
        return path
    inside = path / EXPORTED if (path / EXPORTED).is_dir() else path
    found = inside / "model.gguf"
    return found if found.is_file() and not (inside / "config.json").is_file() else None


def resolve_target(target: str, base: str | None = None) -> Lineage:
    """What a target means.

    target: ``runs/NAME/STAGE``, a PEFT adapter folder, a HF model folder, a demo asset or a hub name. base: the weights an adapter
    lies on, where they are not those that the stage or the adapter's own configuration names.
    """
    path = Path(target)
    file = gguf_file(target)
    if file is not None and file != path:
        return resolve_target(str(file), base)
    if (path / "manifest.json").is_file() and (path.parent / "recipe.yaml").is_file():
        kind = _kind(path / "manifest.json")
        if kind == "export":
            return resolve_target(str(path / EXPORTED), base)
        if kind not in TRAINED:
            raise _name_a_train_stage(path.parent, f"a stage of kind {kind} has no weights", target)
        recipe, template = _recipe(path)
        found = stage_lineage(StageDir(path), lambda: model_folder(base or recipe), template)
        return found if base is None or found.adapter is None else replace(found, folder=model_folder(base))
    if (path / "recipe.yaml").is_file():
        raise _name_a_train_stage(path, "this is a run", target)
    if (path / "adapter_config.json").is_file():
        own = read_object(path / "adapter_config.json").get("base_model_name_or_path")
        named = base or (own if isinstance(own, str) else None)
        if not named:
            raise ModelError("this adapter does not name its base model", where=target, fix="give it with --base")
        return Lineage(model_folder(named), path)
    return Lineage(model_folder(target))


def continued(target: str, model: str) -> Lineage:
    """What a recipe with this model goes on with: an adapter folder lies on the recipe's model, whatever it calls its own."""
    return resolve_target(target, model if (Path(target) / "adapter_config.json").is_file() else None)


def _recipe(stage: Path) -> tuple[str, str | None]:
    """(the model of the recipe that a stage was made from, the stage's own template file)."""
    from posttrain.config import read_yaml  # a second to import: only where a run is named

    recipe = read_yaml(stage.parent / "recipe.yaml").value
    try:
        own = recipe["stages"].get(stage.name, {}).get("template")
        return str(recipe["model"]), own if isinstance(own, str) else None
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"recipe.yaml of this run is damaged: {error!r}", where=str(stage.parent), fix="run the recipe again"
        ) from error


def _kind(manifest: Path) -> Any:
    """What a stage's manifest says it is; None where it is damaged."""
    found = read_json(manifest)
    return found.get("kind") if isinstance(found, dict) else None


def _name_a_train_stage(run: Path, problem: str, target: str) -> ModelError:
    trained = [str(p.parent) for p in sorted(run.glob("*/manifest.json")) if _kind(p) in TRAINED]
    fix = f"name a train stage: {', '.join(trained)}" if trained else "this run has trained nothing yet"
    return ModelError(problem, where=target, fix=fix)


# ---- the folder of a name ------------------------------------------------------------------------------------------

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(name: str) -> bool:
    """Whether a name that is no folder can be one on the hub: ``org/name``, and no folder ``org`` is here."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).expanduser().parent.is_dir()


def model_folder(name: str, progress: assets.Progress | None = None) -> Path:
    """The local HF folder of a model: an existing path, a demo asset (made once in the cache), or ``org/name`` on the hub.

    Raises ModelError where the name is none of these, AssetError where an asset can't be fetched.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _unpacked(path)
    if name in assets.MODELS:
        return _converted(asset_folder(name), lambda: assets.fetch(assets.MODELS[name], progress))
    if path.suffix == ".gguf" and path.is_file():
        return _converted(_cached(f"{path.stem}-{file_digest(path)[:12]}"), lambda: path)
    if path.exists():
        raise ModelError("this is a file, neither a model folder nor GGUF", where=name)
    if is_hub_name(name):
        return _hub_folder(name)
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if "/" in name and path.parent.is_dir() else []
    raise ModelError(
        f"no such model{did_you_mean(path.name, [*assets.MODELS, *siblings])}",
        where=name,
        fix=f"give a HF model folder, a hub name like org/name, or a demo asset: {', '.join(assets.MODELS)}",
    )


def asset_folder(name: str) -> Path:
    """The folder in the cache that a demo model is, once it was used."""
    return _cached(f"{name}-{assets.MODELS[name].identity}")


def _cached(name: str) -> Path:
    return assets.cache_folder() / "models" / name


def _converted(folder: Path, gguf: Callable[[], Path]) -> Path:
    """The folder that a GGUF file becomes."""

    def convert(folder: Path) -> None:
        from posttrain.model.export import convert_gguf  # loads torch; once is enough

        convert_gguf(gguf(), folder)

    return _made_once(folder, convert)


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A model folder of the cache, made where it is not there yet."""
    if not (folder / "config.json").exists():
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            make(temporary)
    return folder


def _unpacked(folder: Path) -> Path:
    """A model folder as it is, or written out in the cache where bitsandbytes has packed its weights."""
    settings = (
        read_object(folder / "config.json").get("quantization_config") if (folder / "config.json").is_file() else None
    )
    if not (isinstance(settings, dict) and settings.get("quant_method") == "bitsandbytes"):
        return folder

    def make(into: Path) -> None:
        from posttrain.model.quantise import unpack

        unpack(folder, into)

    return _made_once(_cached(f"{folder.resolve().name}-{model_digest(folder)[:12]}"), make)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise ModelError(
            "the hub has no such model (or it needs a token)",
            where=name,
            fix="check the name; hf auth login for gated models",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            "can't reach the hub and the model is not in its cache", where=name, fix="connect, or give a local folder"
        ) from error
