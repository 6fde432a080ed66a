"""Which files a model name of a recipe means: the base, or what a train stage has written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from posttrain.artifacts import RunDir
from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.encode.tokens import stop_ids
from posttrain.errors import ModelError, TemplateError
from posttrain.model import fused
from posttrain.model.adapters import load_adapter
from posttrain.model.load import causal_lm, load_model


class Weights(NamedTuple):
    """A HF model folder and, where the model is an adapted one, its PEFT adapter."""

    folder: Path
    adapter: Path | None = None


def stage_weights(run: RunDir, stage: str, base: Path) -> Weights:
    """What a finished train stage hands on. Raises ModelError where it has written nothing."""
    out = run.stage(stage)
    if out.file("adapter").is_dir():
        return Weights(base, out.file("adapter"))
    if out.file("model").is_dir():
        return Weights(out.file("model"))
    raise ModelError(
        "this stage has no weights (adapter/ or model/)", where=str(out.path), fix="run it first: posttrain run"
    )


def load_weights(weights: Weights, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model with its adapter where it has one; eval mode, nothing trains.

    All models take the hot path, so that a comparison shows their weights and not two ways of rounding.
    """
    model: nn.Module = load_model(weights.folder, dtype, device).requires_grad_(False)
    if weights.adapter is not None:
        model = load_adapter(model, weights.adapter, trainable=False)
    fused.fuse(model)
    return model


def template_of(folder: Path, file: str | None) -> ChatTemplate:
    """The chat template of a model folder, or the one of a Jinja file with the folder's tokenizer."""
    return load_template(load_tokenizer(folder), Path(file) if file is not None else None)


def stop_sequences(model: nn.Module, template: ChatTemplate) -> list[tuple[int, ...]]:
    """Token sequences that end a reply: the model's own end tokens and the template's stop."""
    own = causal_lm(model).generation_config.eos_token_id
    singles = [] if own is None else own if isinstance(own, list) else [own]
    try:
        written = [tuple(int(i) for i in stop_ids(template))]
    except TemplateError:
        written = []
    return list(dict.fromkeys([(int(i),) for i in singles] + [w for w in written if w]))
