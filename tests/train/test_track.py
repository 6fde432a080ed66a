"""Experiment trackers get every number of every record; a missing package is told in words."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import StageDir
from posttrain.errors import ConfigError
from posttrain.train.config import TrainSettings
from posttrain.train.loop import TrainInputs, train
from posttrain.train.track import numbers, open_trackers
from posttrain.types import Tokens


def test_numbers_of_a_record() -> None:
    record = {"split": "train", "step": 3, "total_steps": 9, "loss": 1.5, "rows": 2, "note": "x", "nothing": None}
    assert numbers(record) == {"train/loss": 1.5, "train/rows": 2.0}


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed(.|\n)*posttrain\[track\]"):
        open_trackers((name,), tmp_path)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_run_tracker_gets_every_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the interface that trackio and wandb share."""
    calls: list[Any] = []
    module: Any = types.ModuleType(name)
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )
    module.init = lambda project, name: calls.append((project, name)) or run
    monkeypatch.setitem(sys.modules, name, module)
    (tracker,) = open_trackers((name,), tmp_path / "quickstart" / "sft")
    tracker.log({"split": "train", "step": 1, "loss": 2.0})
    tracker.close()
    assert calls == [("quickstart", "sft"), (1, {"train/loss": 2.0}), "finished"]


def test_tensorboard_files_hold_the_run(
    make_stage: Callable[..., TrainSettings],
    small_model: Path,
    random_examples: Callable[..., list[Tokens]],
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra (posttrain[track])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen: list[Any] = []
    examples = random_examples([9, 12, 20, 8, 15])
    inputs = TrainInputs(small_model, examples[:4], held_out=examples[4:])
    train(
        make_stage(track=("tensorboard",), batch_size=2),
        inputs,
        StageDir(tmp_path),
        seed=0,
        digest="d",
        observer=seen.append,
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("train/loss")]
    assert [(r["step"], r["loss"]) for r in seen if r["split"] == "train"] == losses
    assert len(events.Scalars("held_out/loss")) == len([r for r in seen if r["split"] == "held_out"])
