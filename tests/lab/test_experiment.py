"""The identity of what a stage reads."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.console import Console

from posttrain.artifacts import RunDir, read_json
from posttrain.encode.clock import stopped_at
from posttrain.lab.display import Display
from posttrain.lab.engine import CLOCK_FILE, Experiment
from posttrain.lab.recipe import Recipe
from posttrain.model.lineage import model_digest


def test_model_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = model_digest(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"2")
    second = model_digest(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    third = model_digest(tmp_path)
    assert len({first, second, third}) == 3
    (tmp_path / "README.md").write_text("not part of the model")
    assert model_digest(tmp_path) == third


def test_the_clock_of_a_run_is_that_of_its_first_start(tmp_path: Path) -> None:
    run = Experiment(Recipe(name="x", model="m", stages={}), RunDir(tmp_path), Display(Console()))
    with stopped_at(datetime(2024, 7, 6, 5, 4, 3)):
        first = run._clock()
    assert first == run._clock() == datetime(2024, 7, 6, 5, 4, 3)
    assert read_json(tmp_path / CLOCK_FILE) == {"now": "2024-07-06T05:04:03"}
