"""Experiment trackers a recipe may ask for: TensorBoard, trackio, Weights & Biases (extra ``track``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from posttrain.errors import ConfigError


class Tracker(Protocol):
    """Receives every metrics record of a run."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Record the numbers of one metrics record."""

    def close(self) -> None:
        """Flush and end."""


class TensorBoardTracker:
    """Event files in <stage>/tensorboard."""

    def __init__(self, stage_folder: Path) -> None:
        _need("tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(stage_folder / "tensorboard"))

    def log(self, record: Mapping[str, Any]) -> None:
        """Write every number under <split>/<name>."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class RunTracker:
    """trackio or wandb, which share one interface: ``init`` gives a run, ``run.log`` takes a dict."""

    def __init__(self, module_name: str, stage_folder: Path) -> None:
        _need(module_name)
        module = import_module(module_name)
        self._run = module.init(project=stage_folder.parent.name, name=stage_folder.name)

    def log(self, record: Mapping[str, Any]) -> None:
        """Log every number under <split>/<name>."""
        self._run.log(numbers(record), step=record["step"])

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numeric fields of a metrics record as ``<split>/<name>``."""
    return {
        f"{record['split']}/{name}": float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and name not in ("step", "total_steps")
    }


def open_trackers(names: Sequence[str], stage_folder: Path) -> list[Tracker]:
    """One tracker a name; a missing package is a ConfigError."""
    return [
        TensorBoardTracker(stage_folder) if name == "tensorboard" else RunTracker(name, stage_folder) for name in names
    ]


def _need(package: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise ConfigError(f"track: {package} is not installed", fix="pip install 'posttrain[track]'") from error
