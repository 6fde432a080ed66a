"""Where a model comes from: a HF folder, a demo asset, or a hub name; always ends as a local HF folder."""

from __future__ import annotations

import re
from pathlib import Path

from posttrain import assets
from posttrain.artifacts import atomic_path
from posttrain.errors import ModelError
from posttrain.table import did_you_mean

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_folder(name: str, progress: assets.Progress | None = None) -> Path:
    """The local HF folder of a model: an existing path, a demo asset (made once in the cache), or ``org/name`` on the hub.

    Raises ModelError where the name is none of these, AssetError where an asset can't be fetched.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name in assets.MODELS:
        return _asset_folder(name, progress)
    if path.exists():
        raise ModelError("this is a file, not a model folder", where=name)
    if _HUB_NAME.fullmatch(name) and not path.parent.is_dir():
        return _hub_folder(name)
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if "/" in name and path.parent.is_dir() else []
    raise ModelError(
        f"no such model{did_you_mean(path.name, [*assets.MODELS, *siblings])}",
        where=name,
        fix=f"give a HF model folder, a hub name like org/name, or a demo asset: {', '.join(assets.MODELS)}",
    )


def _asset_folder(name: str, progress: assets.Progress | None) -> Path:
    asset = assets.MODELS[name]
    folder = assets.cache_folder() / "models" / f"{name}-{asset.package.sha256[:12]}"
    if not (folder / "config.json").exists():
        from posttrain.model.export import convert_gguf  # loads torch; once is enough

        gguf = assets.fetch(asset, progress)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            convert_gguf(gguf, temporary)
    return folder


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
