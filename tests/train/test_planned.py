"""A stage's plan beside what it took; micro-batches that the planner settles; memory that runs out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.artifacts import StageDir
from posttrain.encode.lengths import Lengths, LengthStatistics
from posttrain.errors import TrainingError
from posttrain.model import hardware
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives import DpoObjective
from posttrain.train import loop
from posttrain.train.config import USUAL_TOKENS, TrainSettings
from posttrain.train.loop import TrainInputs, train
from posttrain.train.planned import (
    MeasuredMemory,
    MemoryRecord,
    longest_rows,
    measured_rows,
    memory_blocks,
)

MakeStage = Callable[..., TrainSettings]
MakeExamples = Callable[..., Any]


def trained(stage: TrainSettings, inputs: TrainInputs, folder: Path) -> dict[str, Any]:
    train(stage, inputs, StageDir(folder), seed=0, digest="d")
    found: dict[str, Any] = json.loads((folder / "memory.json").read_text())
    return found


def known_model(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("adapter", [LoraAdapter(rank=4), FullWeights()])
def test_plan_and_measurement_stand_beside_each_other(
    adapter: Any, make_stage: MakeStage, small_model: Path, random_examples: MakeExamples, tmp_path: Path
) -> None:
    inputs = TrainInputs(small_model, random_examples([12] * 8, vocabulary=70))
    found = trained(make_stage(adapter=adapter, max_steps=2), inputs, tmp_path / "run")
    assert known_model(small_model)
    assert found["tokens_at_once"] <= 64
    planned, measured = found["planned"], found["measured"]
    peak = planned["phases"][planned["peak_phase"]]
    assert planned["peak_bytes"] == pytest.approx(sum(peak.values()), abs=len(peak))
    step = planned["phases"]["optimizer step"]
    for part in ("weights", "gradients"):
        assert measured["parts"][part] == step[part]
    assert measured["parts"]["optimizer"] == pytest.approx(step["optimizer"], rel=0.01)  # with a count of steps each
    assert measured["peak_memory_bytes"] == measured["other_memory_bytes"] + sum(measured["parts"].values())


def test_auto_is_settled_once_and_gives_the_same_as_its_number(
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = TrainInputs(small_model, random_examples([12] * 8, vocabulary=70))
    auto = make_stage(micro_batch_tokens="auto", checkpoint_every=1)
    trained(auto, inputs, tmp_path / "auto")
    settled = json.loads((tmp_path / "auto" / "checkpoints" / "micro_batch.json").read_text())["micro_batch_tokens"]
    assert settled == 4 * 12  # the whole batch fits
    trained(make_stage(micro_batch_tokens=settled), inputs, tmp_path / "number")
    names = ("auto", "number")
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in names]
    assert weights[0] == weights[1]
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1)  # a resumed run does not ask again
    monkeypatch.setattr(hardware, "current_memory", lambda device: 0)
    trained(auto, inputs, tmp_path / "auto")


def test_auto_says_where_not_even_one_example_fits(
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = TrainInputs(small_model, random_examples([12] * 8, vocabulary=70))
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1)
    monkeypatch.setattr(hardware, "current_memory", lambda device: 0)
    with pytest.raises(TrainingError, match=r"(?s)not even the longest example fits.*change in this order"):
        trained(make_stage(micro_batch_tokens="auto"), inputs, tmp_path / "run")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: y")]
)
def test_memory_that_runs_out_is_told_with_the_plan(
    error: Exception,
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(loop, "optimizer_step", exhausted)
    inputs = TrainInputs(small_model, random_examples([12] * 4, vocabulary=70))
    with pytest.raises(TrainingError, match=r"(?s)out of memory at step 1.*planned were .*micro_batch_tokens: \d+"):
        trained(make_stage(), inputs, tmp_path / "run")


def test_an_error_that_is_not_about_memory_stays_itself(
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(loop, "optimizer_step", broken)
    inputs = TrainInputs(small_model, random_examples([12] * 4, vocabulary=70))
    with pytest.raises(RuntimeError, match="something else"):
        trained(make_stage(), inputs, tmp_path / "run")


def test_rows_are_those_of_an_earlier_run_or_the_longest_that_may_come() -> None:
    settings = TrainSettings(max_length=500)
    assert longest_rows(settings).longest == 500
    pairs = TrainSettings(objective=DpoObjective(), max_length=500)
    assert longest_rows(pairs).longest == 750  # the prompt is computed once
    assert TrainSettings(micro_batch_tokens="auto").token_budget == USUAL_TOKENS

    def kind(values: tuple[int, ...]) -> LengthStatistics:
        return LengthStatistics(values, len(values), 0, 0, 0, max(values), 0.0)

    found = measured_rows(settings, Lengths(500, kind((100, 200, 900)), kind((60, 60, 60))))
    assert (found.count, found.mean, found.longest, found.usual) == (2, 150, 200, 167)
    both = measured_rows(
        pairs, Lengths(500, kind((100, 120)), kind((50, 70)), chosen=kind((50,)), rejected=kind((70,)))
    )
    assert (both.count, both.mean) == (1, 50 + 120)
    assert both.prompt_share == pytest.approx(50 / both.usual)


def test_a_report_says_how_far_plan_and_measurement_are_apart() -> None:
    planned = {"peak_bytes": 150, "peak_phase": "forward", "phases": {"forward": {"weights": 100, "activations": 50}}}
    measured = MeasuredMemory(165, 65, {"weights": 100})
    table, text = memory_blocks(MemoryRecord(64, 2, planned, measured))
    assert "+10.0% against the plan" in str(text)
    assert "all the rest" in str(table)
    assert memory_blocks(MemoryRecord(64, 2, None)) == []
