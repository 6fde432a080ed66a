"""``posttrain export``: an export stage without a recipe, straight into the folder that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from posttrain.config import build
from posttrain.errors import ConfigError
from posttrain.lab.options import Keys, configured, options_help, split_arguments
from posttrain.stages.export import ExportStage, export_section, run_export

__all__ = ["export_section", "options", "run_export", "settings_of"]

_WHERE = "posttrain export"
_KEYS = (Keys(ExportStage, ("",), without=("model",)),)


def options() -> str:
    """Every option, for ``--help``."""
    return options_help(_KEYS)


def settings_of(words: Sequence[str]) -> ExportStage:
    """What a command line says: a model, and options. Raises ConfigError."""
    named, given = split_arguments(words)
    if len(named) != 1:
        raise ConfigError("one model is needed", where=_WHERE, fix=f"{_WHERE} runs/NAME/STAGE --to hf -o DIR")
    if not any(option.startswith("to=") for option in given):
        raise ConfigError("in which form?", where=_WHERE, fix="give --to hf, adapter, gguf, gguf-adapter or ollama")
    value = {"kind": "export", "model": named[0]}
    return configured(ExportStage, partial(build, ExportStage), _WHERE, value, _KEYS, given)
