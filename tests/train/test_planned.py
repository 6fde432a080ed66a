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
from posttrain.encode.preferences import PairTokens
from posttrain.errors import TrainingError
from posttrain.model import hardware
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives import DpoObjective
from posttrain.plan.fit import plan_for
from posttrain.train import loop
from posttrain.train.config import USUAL_TOKENS, TrainSettings
from posttrain.train.loop import TrainInputs, prepare_model, train
from posttrain.train.measured import Gauge, Planner
from posttrain.train.plan import Plan
from posttrain.train.planned import (
    USED_SHARE,
    MeasuredMemory,
    MemoryRecord,
    layout_of,
    longest_rows,
    measured_rows,
    memory_blocks,
)
from posttrain.train.tasks import make_task

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


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoraAdapter(rank=4, dropout=0.2), FullWeights()])
def test_auto_is_tried_once_and_gives_the_same_as_its_number(
    adapter: Any,
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = TrainInputs(small_model, random_examples([12] * 8, vocabulary=70))
    auto = make_stage(adapter=adapter, micro_batch_tokens="auto", checkpoint_every=1)
    probe = trained(auto, inputs, tmp_path / "auto")["probe"]
    settled = json.loads((tmp_path / "auto" / "checkpoints" / "micro_batch.json").read_text())
    assert settled == {"micro_batch_tokens": 4 * 12, "probe": probe}  # the whole batch fits
    assert probe["planned_tokens"] == 4 * 12
    assert 0 < probe["tokens"] <= 4 * 12  # nothing behind the last prediction
    trained(make_stage(adapter=adapter, micro_batch_tokens=4 * 12), inputs, tmp_path / "number")
    assert steps(tmp_path / "auto") == steps(tmp_path / "number")
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1)  # a resumed run does not ask again
    monkeypatch.setattr(hardware, "current_memory", lambda device: 0)
    assert trained(auto, inputs, tmp_path / "auto")["probe"] == probe


def steps(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if line["split"] == "train"]


def planner_of(settings: TrainSettings, folder: Path, examples: Any) -> tuple[Planner, Plan]:
    """A planner of a fresh model, and the plan of a run."""
    model = prepare_model(settings, folder, None, seed=0).model
    device = torch.device("cpu")
    task, gauge = make_task(settings.objective), Gauge(device)
    planner = Planner(settings, folder, model, task, examples, device, torch.float32, gauge, False)
    return planner, Plan(planner.lengths, settings.batch_size, settings.token_budget, settings.epochs, seed=0)


def test_a_probe_leaves_nothing_behind(
    make_stage: MakeStage, small_model: Path, random_examples: MakeExamples, tmp_path: Path
) -> None:
    settings = make_stage(adapter=LoraAdapter(rank=4, dropout=0.5), micro_batch_tokens="auto")
    planner, plan = planner_of(settings, small_model, random_examples([12] * 8, vocabulary=70))
    planner.model.train()
    weights = {name: tensor.clone() for name, tensor in planner.model.state_dict().items()}
    before = torch.get_rng_state()
    assert planner.settle(StageDir(tmp_path), plan).probe is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in planner.model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in planner.model.state_dict().items())


def test_a_probe_that_takes_more_than_planned_makes_it_smaller_and_never_larger(
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_stage(micro_batch_tokens="auto", batch_size=64)
    planner, plan = planner_of(settings, small_model, random_examples([12] * 64, vocabulary=70))
    stage_plan = planner.of(layout_of(planner.largest(plan)))
    assert stage_plan is not None
    room = plan_for(stage_plan.setup, stage_plan.run, 512).peak.total / USED_SHARE
    monkeypatch.setattr(hardware, "free_memory", lambda device: room)
    monkeypatch.setattr(hardware, "current_memory", lambda device: 0)
    found = []
    for number, took in enumerate((0, 10**12)):
        monkeypatch.setattr(Gauge, "of", lambda self, work, took=took: took)
        found.append(planner.settle(StageDir(tmp_path / str(number)), plan).micro_batch_tokens)
    assert found == [512, 12]  # the longest example alone goes on, whatever a probe says

    def exhausted(self: Gauge, work: Callable[[], object]) -> int:
        tried.append(1)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("x")
        return 0

    tried: list[int] = []
    monkeypatch.setattr(Gauge, "of", exhausted)
    settled = planner.settle(StageDir(tmp_path / "exhausted"), plan)
    assert (settled.micro_batch_tokens, settled.probe and settled.probe.planned_tokens) == (512 // 4, 512)


def test_a_peak_is_measured_above_what_stood_before() -> None:
    gauge = Gauge(torch.device("cpu"))
    assert gauge.of(lambda: torch.ones(16_000_000).sum()) == pytest.approx(64e6, rel=0.2)
    assert gauge.peak >= gauge.idle + 50e6


ON_CUDA = torch.OutOfMemoryError("CUDA out of memory")
ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: y")


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
    ("part", "error", "when"),
    [
        ("prepare_model", ON_CUDA, "while the model is loaded.*gradient_checkpointing"),
        ("_reference", MemoryError(), "before the first step.*planned were .*micro_batch_tokens: \\d+"),
        ("evaluate", ON_CPU, "in the evaluation after step 0.*planned were .*micro_batch_tokens: \\d+"),
        ("optimizer_step", ON_CUDA, "at step 1.*planned were .*micro_batch_tokens: \\d+"),
    ],
)
def test_memory_that_runs_out_is_told_with_the_plan(
    part: str,
    error: Exception,
    when: str,
    make_stage: MakeStage,
    small_model: Path,
    random_examples: MakeExamples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(loop, part, exhausted)
    sides = random_examples([12] * 8)
    pairs = [PairTokens(a, b, a.row_id, 0.0) for a, b in zip(sides[::2], sides[1::2], strict=True)]
    inputs = TrainInputs(small_model, pairs, held_out=pairs[:1])
    with pytest.raises(TrainingError, match=f"(?s)out of memory {when}"):
        trained(make_stage(objective=DpoObjective()), inputs, tmp_path / "run")


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
