"""Experiment trackers a recipe may ask for: TensorBoard, trackio, Weights & Biases (extra ``track``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import ConfigError


class Tracker(NamedTuple):
    """Receives every metrics record of a run."""

    log: Callable[[Mapping[str, Any]], object]
    """Record the numbers of one record under <split>/<name>."""
    close: Callable[[], object]
    """Flush and end."""


def open_trackers(names: Sequence[str], stage_folder: Path) -> list[Tracker]:
    """One tracker a name; a missing package is a ConfigError."""
    return [_open(name, stage_folder) for name in names]


def _open(name: str, stage_folder: Path) -> Tracker:
    try:
        module = import_module(name)
    except ImportError as error:
        raise ConfigError(f"track: {name} is not installed", fix="pip install 'posttrain[track]'") from error
    if name == "tensorboard":  # event files in <stage>/tensorboard
        writer = import_module("torch.utils.tensorboard").SummaryWriter(str(stage_folder / "tensorboard"))

        def log(record: Mapping[str, Any]) -> None:
            for key, value in numbers(record).items():
                writer.add_scalar(key, value, record["step"])

        return Tracker(log, writer.close)
    # trackio and wandb share one interface
    run = module.init(project=stage_folder.parent.name, name=stage_folder.name)
    return Tracker(lambda record: run.log(numbers(record), step=record["step"]), run.finish)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numeric fields of a metrics record as ``<split>/<name>``."""
    return {
        f"{record['split']}/{name}": float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and name not in ("step", "total_steps")
    }
