"""Which files a model name of a recipe means: the base, or what a train stage has written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from posttrain.artifacts import RunDir
from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.encode.tokens import stop_ids
from posttrain.errors import ModelError, TemplateError
from posttrain.model.load import causal_lm


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
