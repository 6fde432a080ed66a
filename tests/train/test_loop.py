"""The loop: accumulation, resume to the bit, best and last, early stopping, and what happens when something breaks."""

from __future__ import annotations

import errno
import inspect
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.artifacts import StageDir
from posttrain.errors import CheckpointError, ConfigError, InterruptedRunError, RunError, TrainingError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives import SftObjective
from posttrain.objectives.base import BaseObjective, Loss
from posttrain.train import checkpoint, loop
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.config import EarlyStopping, TrainSettings
from posttrain.train.loop import TrainInputs, optimizer_step, prepare_model, settled_dtype, train
from posttrain.train.optimizer import build_optimizer
from posttrain.train.tasks import make_task
from posttrain.types import Tokens

MakeStage = Callable[..., TrainSettings]
MakeExamples = Callable[..., list[Tokens]]
TIMES = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes")


def weights(folder: Path, name: str = "adapter") -> dict[str, torch.Tensor]:
    file = "adapter_model.safetensors" if name in ("adapter", "last") else "model.safetensors"
    return load_file(folder / name / file)


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or the memory says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def largest_relative(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert got.keys() == expected.keys()
    return max(float((got[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def examples(random_examples: MakeExamples) -> list[Tokens]:
    return random_examples([9, 30, 2, 17, 25, 6, 12, 40, 3, 21, 33, 8])


# ---- batch x accumulation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adapter", [LoraAdapter(rank=4), pytest.param(FullWeights(), marks=pytest.mark.slow)], ids=["lora", "full"]
)
def test_the_micro_batch_only_moves_memory(
    adapter: LoraAdapter | FullWeights, make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    """Three steps of batch 8, from one example at a time to all packed in one row: the same weights."""
    found = {}
    for budget in (1, 45, 100_000):
        out = StageDir(tmp_path / str(budget))
        stage = make_stage(
            adapter=adapter, batch_size=8, micro_batch_tokens=budget, max_steps=3, epochs=2, weight_decay=0.1
        )
        result = train(stage, TrainInputs(small_model, examples), out, seed=0, digest="d")
        assert result["steps"] == 3
        found[budget] = (
            weights(out.path, "adapter" if isinstance(adapter, LoraAdapter) else "model"),
            [(r["loss"], r["grad_norm"], r["tokens"], r["supervised_tokens"]) for r in records(out.path)],
        )
    for budget, (got, steps) in found.items():
        # Adam divides small gradients by their own size, which enlarges their rounding.
        assert largest_relative(got, found[100_000][0]) < 5e-5, budget
        for step, expected in zip(steps, found[100_000][1], strict=True):
            assert step[:2] == pytest.approx(expected[:2], rel=1e-5)
            assert step[2:] == expected[2:]


def test_loss_is_token_weighted_over_the_whole_step(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens]
) -> None:
    """Against one float64 sum over all rows, each alone, and not the mean of the rows' means."""
    from posttrain.model.score import score

    trainee = prepare_model(make_stage(), small_model, None, seed=0)
    scores = score(trainee.model, examples, 1, torch.float32)
    optimizer = build_optimizer(trainee.model, trainee.trained, make_stage())
    step = optimizer_step(
        trainee, optimizer, make_task(SftObjective()), [examples[:5], examples[5:7], examples[7:]], 1e-3, None
    )
    assert step.loss == pytest.approx(scores.nll_N.sum() / scores.weight_N.sum(), rel=1e-6)
    assert abs(step.loss - float(np.mean(scores.nll_N / scores.weight_N))) > 1e-3


def test_gradient_checkpointing_changes_memory_only(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens]
) -> None:
    found = []
    for on in (False, True):
        stage = make_stage(gradient_checkpointing=on)
        trainee = prepare_model(stage, small_model, None, seed=0)
        with torch.no_grad():
            for name, parameter in trainee.trained.items():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        calls: list[int] = []
        layer = trainee.model.get_submodule("base_model.model.model.layers.1.self_attn")
        layer.register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        optimizer = build_optimizer(trainee.model, trainee.trained, stage)
        step = optimizer_step(trainee, optimizer, make_task(SftObjective()), [examples[:3]], 1e-3, None)
        found.append((step.loss, step.grad_norm, {n: p.detach().clone() for n, p in trainee.trained.items()}))
        assert len(calls) == (2 if on else 1)
    assert found[0][:2] == found[1][:2]
    assert same_bits(found[0][2], found[1][2])


def test_full_weights_in_bf16_learn_and_stay_fp32(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    stage = make_stage(
        adapter=FullWeights(), dtype="bf16", batch_size=12, epochs=8, schedule="constant", learning_rate=1e-3
    )
    result = train(stage, TrainInputs(small_model, examples), StageDir(tmp_path), seed=0, digest="d")
    assert result["dtype"] == "bfloat16"
    assert result["last_loss"] < 0.9 * result["first_loss"]
    saved = weights(tmp_path, "model")
    assert {t.dtype for t in saved.values()} == {torch.float32}
    # Fine fp32 steps are there: not everything is a bf16 number.
    assert any(not torch.equal(t, t.bfloat16().float()) for t in saved.values())


def test_a_loss_is_few_calls_away_from_train(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    """train -> optimizer_step -> the objective's loss, which may call one function with its equation."""
    found: list[list[str]] = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(BaseObjective):
        row_kind = "conversations"
        name: str = "watching"

        def loss(self, logps_S: torch.Tensor, weights_S: torch.Tensor, step_weight: float) -> Loss:
            stack = inspect.stack(context=0)
            found.append([frame.function for frame in stack if f"{os.sep}posttrain{os.sep}" in frame.filename])
            return Loss(-(weights_S * logps_S).sum() / step_weight)

    stage = make_stage(objective=Watching(), max_steps=1)
    train(stage, TrainInputs(small_model, examples), StageDir(tmp_path), seed=0, digest="d")
    assert found
    assert all(calls == ["optimizer_step", "train"] for calls in found)


# ---- resume --------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """A crash between two steps."""


def crash_after(step: int) -> Callable[[Any], None]:
    def observer(record: Any) -> None:
        if record["split"] == "train" and record["step"] == step:
            raise Stop

    return observer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"adapter": LoraAdapter(rank=4, dropout=0.3), "checkpoint_every": 3}, marks=pytest.mark.slow),
        pytest.param({"adapter": LoraAdapter(rank=4, dora=True, rslora=True)}, marks=pytest.mark.slow),
        pytest.param(
            {"adapter": LoraAdapter(rank=4, quantize="nf4")},
            marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore:weights in 4 bits")],
        ),
        pytest.param({"adapter": FullWeights(), "dtype": "bf16", "weight_decay": 0.1}, marks=pytest.mark.slow),
        pytest.param(
            {"gradient_checkpointing": True, "micro_batch_tokens": 20, "dtype": "bf16"}, marks=pytest.mark.slow
        ),
    ],
    ids=["lora", "dropout, every third step", "dora", "4 bits", "full bf16", "checkpointing and accumulation"],
)
def test_resumed_is_uninterrupted_to_the_bit(
    changes: dict[str, Any], make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    """Crashes in the middle of epochs (3 steps each) and between checkpoints."""
    stage = make_stage(**{"epochs": 2, "evaluate_every": 2, "checkpoint_every": 1} | changes)
    inputs = TrainInputs(small_model, examples[:10], held_out=examples[10:])
    whole, cut = StageDir(tmp_path / "whole"), StageDir(tmp_path / "cut")
    expected = train(stage, inputs, whole, seed=5, digest="d")
    for step in (1, 4):
        with pytest.raises(Stop):
            train(stage, inputs, cut, seed=5, digest="d", observer=crash_after(step))
    got = train(stage, inputs, cut, seed=5, digest="d")
    for name in ("adapter", "model", "last"):
        for file in sorted(whole.file(name).glob("*")):
            assert file.read_bytes() == cut.file(name, file.name).read_bytes(), file.name
    assert records(cut.path) == records(whole.path)
    same = (
        "steps",
        "tokens",
        "supervised_tokens",
        "first_loss",
        "last_loss",
        "best_step",
        "best_held_out_loss",
        "epochs",
    )
    assert {k: got[k] for k in same} == {k: expected[k] for k in same}


def test_a_finished_run_is_finished_again_without_training(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    """A kill after the last step and before the weights were written."""
    import shutil

    stage, inputs = make_stage(checkpoint_every=1), TrainInputs(small_model, examples)
    train(stage, inputs, StageDir(tmp_path), seed=0, digest="d")
    before, log = weights(tmp_path), records(tmp_path)
    shutil.rmtree(tmp_path / "adapter")
    seen: list[Any] = []
    train(stage, inputs, StageDir(tmp_path), seed=0, digest="d", observer=seen.append)
    assert seen == []
    assert same_bits(weights(tmp_path), before)
    assert records(tmp_path) == log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_step_with_a_checkpoint(
    number: signal.Signals, make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    stage, inputs = make_stage(epochs=2, checkpoint_every=1000), TrainInputs(small_model, examples)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def interrupt(record: Any) -> None:
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(InterruptedRunError, match="step 2"):
        train(stage, inputs, StageDir(tmp_path), seed=0, digest="d", observer=interrupt)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    loaded = Checkpoints(tmp_path / "checkpoints", "d").load()
    assert loaded is not None
    assert loaded[0].step == 2
    train(stage, inputs, StageDir(tmp_path), seed=0, digest="d")
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_asked_to_stop_it_ends_after_that_step_and_loses_nothing(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    """Before the first checkpoint, after every step, also after the last: the bits are those of a run nobody disturbed."""
    stage = make_stage(epochs=1, checkpoint_every=1000, evaluate_every=2)
    inputs = TrainInputs(small_model, examples[:10], held_out=examples[10:])
    whole, cut = StageDir(tmp_path / "whole"), StageDir(tmp_path / "cut")
    steps = train(stage, inputs, whole, seed=5, digest="d")["steps"]
    for step in range(1, steps + 1):
        with pytest.raises(InterruptedRunError, match=f"after step {step}\n"):
            train(stage, inputs, cut, seed=5, digest="d", stop_asked=lambda: True)
        loaded = Checkpoints(cut.file("checkpoints"), "d").load()
        assert loaded is not None
        assert loaded[0].step == step
    train(stage, inputs, cut, seed=5, digest="d", stop_asked=lambda: True)  # nothing is left to stop
    assert records(cut.path) == records(whole.path)
    assert same_bits(weights(cut.path), weights(whole.path))


def test_another_configuration_does_not_resume(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    inputs = TrainInputs(small_model, examples)
    train(make_stage(), inputs, StageDir(tmp_path), seed=0, digest="one")
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        train(make_stage(), inputs, StageDir(tmp_path), seed=0, digest="two")


# ---- best, last, early stopping ------------------------------------------------------------------------------------


@pytest.fixture
def held_out_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Make the held-out evaluations return given losses: before training, then after every step."""

    def use(losses: Sequence[float]) -> None:
        left: Iterator[float] = iter(losses)
        monkeypatch.setattr(
            loop,
            "evaluate",
            lambda trainee, task, units, budget, peers: loop.Evaluation(v := next(left), {}, [v] * len(units)),
        )

    return use


@pytest.mark.slow
def test_best_weights_are_kept_and_last_ones_beside_them(
    make_stage: MakeStage,
    small_model: Path,
    examples: list[Tokens],
    tmp_path: Path,
    held_out_losses: Callable[[Sequence[float]], None],
) -> None:
    inputs = TrainInputs(small_model, examples, held_out=examples[:1])
    options = {"epochs": 2, "evaluate_every": 1, "schedule": "constant", "warmup": 0}
    held_out_losses([0.1, 4.0, 2.0, 3.0, 2.5, 2.0, 2.2])
    result = train(make_stage(**options), inputs, StageDir(tmp_path / "best"), seed=0, digest="d")
    # The loss before training (0.1) is no candidate; of two equal ones the earlier stays.
    assert (result["best_step"], result["best_held_out_loss"], result["kept"]) == (2, 2.0, "best")
    assert [r["step"] for r in records(tmp_path / "best") if r["split"] == "held_out"] == [0, 1, 2, 3, 4, 5, 6]
    held_out_losses([4.0, 2.0, 3.0])
    train(make_stage(**options, max_steps=2, keep="last"), inputs, StageDir(tmp_path / "two"), seed=0, digest="d")
    assert same_bits(weights(tmp_path / "best"), weights(tmp_path / "two"))
    held_out_losses([0.1, 4.0, 2.0, 3.0, 2.5, 2.0, 2.2])
    result = train(make_stage(**options, keep="last"), inputs, StageDir(tmp_path / "all"), seed=0, digest="d")
    assert result["kept"] == "last"
    assert same_bits(weights(tmp_path / "best", "last"), weights(tmp_path / "all"))
    assert not (tmp_path / "all" / "last").exists()


@pytest.mark.parametrize(
    ("stopping", "steps", "best"),
    [
        (EarlyStopping(patience=1), 4, 3),
        (EarlyStopping(patience=2), 6, 6),
        (EarlyStopping(patience=2, min_improvement=0.2), 3, 3),
        (EarlyStopping(patience=3, min_improvement=0.2), 4, 3),
        (None, 6, 6),
    ],
)
def test_early_stopping(
    stopping: EarlyStopping | None,
    steps: int,
    best: int,
    make_stage: MakeStage,
    small_model: Path,
    examples: list[Tokens],
    tmp_path: Path,
    held_out_losses: Callable[[Sequence[float]], None],
) -> None:
    held_out_losses([9.0, 3.0, 2.9, 2.85, 2.95, 2.84, 1.0])
    result = train(
        make_stage(epochs=2, evaluate_every=1, early_stopping=stopping),
        TrainInputs(small_model, examples, held_out=examples[:1]),
        StageDir(tmp_path),
        seed=0,
        digest="d",
    )
    assert (result["steps"], result["stopped_early"], result["planned_steps"]) == (steps, steps < 6, 6)
    # The kept weights have the lowest loss of all, also where it was too little to count as improvement.
    assert result["best_step"] == best


def test_evaluation_is_the_likelihood_of_the_held_out_rows(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    from posttrain.model.score import score

    stage = make_stage(keep="last")
    train(stage, TrainInputs(small_model, examples[:8], held_out=examples[8:]), StageDir(tmp_path), seed=0, digest="d")
    fresh = prepare_model(stage, small_model, None, seed=0)
    trained = prepare_model(stage, small_model, tmp_path / "adapter", seed=0)
    logged = [r for r in records(tmp_path) if r["split"] == "held_out"]
    assert (logged[0]["step"], logged[-1]["step"]) == (0, 2)
    assert logged[0]["loss"] == pytest.approx(score(fresh.model, examples[8:], 64, torch.float32).mean(), rel=1e-6)
    assert logged[-1]["loss"] == pytest.approx(score(trained.model, examples[8:], 64, torch.float32).mean(), rel=1e-6)
    assert logged[0]["supervised_tokens"] == sum(e.supervised for e in examples[8:])


# ---- continuing ----------------------------------------------------------------------------------------------------


def test_a_stage_continues_an_adapter_or_merges_it(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    first = train(
        make_stage(epochs=3), TrainInputs(small_model, examples), StageDir(tmp_path / "a"), seed=0, digest="d"
    )
    adapter = tmp_path / "a" / "adapter"
    for name, changes in (("lora", {}), ("full", {"adapter": FullWeights()})):
        inputs = TrainInputs(small_model, examples, adapter_folder=adapter)
        stage = make_stage(batch_size=12, max_steps=1, **changes)
        result = train(stage, inputs, StageDir(tmp_path / name), seed=0, digest="d")
        assert result["first_loss"] < first["first_loss"] - 0.01
    with pytest.raises(ConfigError, match=r"adapter\.rank is 8, but the adapter to continue has 4"):
        prepare_model(make_stage(adapter=LoraAdapter(rank=8, alpha=8)), small_model, adapter, seed=0)


# ---- things that break ---------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned_model(small_model: Path, tmp_path: Path) -> Path:
    """The small model with a NaN in the embedding of token 77."""
    import shutil

    folder = tmp_path / "poisoned"
    shutil.copytree(small_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][77, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def test_a_non_finite_loss_names_step_and_row_and_leaves_the_weights(
    make_stage: MakeStage, poisoned_model: Path, random_examples: MakeExamples, tmp_path: Path
) -> None:
    examples = random_examples([12] * 12, vocabulary=70)
    poison = 5
    ids_T = examples[poison].ids_T.copy()
    ids_T[2] = 77
    examples[poison] = Tokens(ids_T, examples[poison].weights_T, "bad-row")
    inputs = TrainInputs(
        poisoned_model, examples, origins={e.row_id: f"rows.jsonl:{n + 1}" for n, e in enumerate(examples)}
    )
    stage = make_stage(epochs=1, checkpoint_every=1)
    plan = loop.Plan(tuple(len(e) for e in examples), 4, 64, 1.0, 3, None)
    step = next(s for s in range(3) if poison in plan.step_examples(s))
    assert step > 0, "choose another seed: the bad row must not come first"
    with pytest.raises(TrainingError) as caught:
        train(stage, inputs, StageDir(tmp_path / "run"), seed=3, digest="d")
    message = str(caught.value)
    assert f"step {step + 1}" in message
    assert "rows.jsonl:6" in message
    assert message.count("rows.jsonl") == 1
    loaded = Checkpoints(tmp_path / "run" / "checkpoints", "d").load()
    assert loaded is not None
    assert loaded[0].step == step
    assert all(torch.isfinite(t).all() for t in loaded[1].values())
    assert [r["step"] for r in records(tmp_path / "run")] == list(range(1, step + 1))


def test_a_refused_step_changes_nothing(
    make_stage: MakeStage, poisoned_model: Path, random_examples: MakeExamples
) -> None:
    good = random_examples([12] * 3, vocabulary=70)
    bad = Tokens(np.full(8, 77, np.int32), np.array([0] * 4 + [1] * 4, np.float32), "bad")
    trainee = prepare_model(make_stage(), poisoned_model, None, seed=0)
    optimizer = build_optimizer(trainee.model, trainee.trained, make_stage())
    optimizer_step(trainee, optimizer, make_task(SftObjective()), [good], 1e-3, 1.0)
    weights_before = {n: p.detach().clone() for n, p in trainee.trained.items()}
    moments_before = [{k: v.clone() for k, v in s.items()} for s in optimizer.state.values()]
    with pytest.raises(TrainingError, match="loss nan"):
        optimizer_step(trainee, optimizer, make_task(SftObjective()), [good[:1], [bad]], 1e-3, 1.0)
    assert same_bits({n: p.detach() for n, p in trainee.trained.items()}, weights_before)
    assert all(p.grad is None for p in trainee.trained.values())
    for state, before in zip(optimizer.state.values(), moments_before, strict=True):
        assert same_bits(state, before)
    assert optimizer_step(trainee, optimizer, make_task(SftObjective()), [good], 1e-3, 1.0).loss < 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_is_told_and_the_run_resumes(
    number: int,
    make_stage: MakeStage,
    small_model: Path,
    examples: list[Tokens],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, inputs = make_stage(epochs=2, checkpoint_every=1), TrainInputs(small_model, examples)
    train(stage, inputs, StageDir(tmp_path / "whole"), seed=0, digest="d")
    written = 0

    def save(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            path.write_bytes(b"half of it")
            raise OSError(number, os.strerror(number))
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", save)
    message = "disk is full" if number == errno.ENOSPC else "read-only"
    with pytest.raises(RunError, match=message):
        train(stage, inputs, StageDir(tmp_path / "cut"), seed=0, digest="d")
    train(stage, inputs, StageDir(tmp_path / "cut"), seed=0, digest="d")
    assert same_bits(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert not list((tmp_path / "cut").rglob("*.tmp"))


def test_a_truncated_checkpoint_falls_back_and_ends_in_the_same_bits(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    stage, inputs = make_stage(epochs=2, checkpoint_every=1), TrainInputs(small_model, examples)
    train(stage, inputs, StageDir(tmp_path / "whole"), seed=0, digest="d")
    with pytest.raises(Stop):
        train(stage, inputs, StageDir(tmp_path / "cut"), seed=0, digest="d", observer=crash_after(5))
    newest = max((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.warns(UserWarning, match="going on from the checkpoint before it"):
        train(stage, inputs, StageDir(tmp_path / "cut"), seed=0, digest="d")
    assert same_bits(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_metrics_and_result_say_what_was_done(
    make_stage: MakeStage, small_model: Path, examples: list[Tokens], tmp_path: Path
) -> None:
    seen: list[Any] = []
    stage = make_stage(epochs=1.5, warmup=0.4)
    result = train(
        stage, TrainInputs(small_model, examples), StageDir(tmp_path), seed=0, digest="d", observer=seen.append
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == seen
    assert [r["step"] for r in lines] == [1, 2, 3, 4, 5]
    assert [r["epoch"] for r in lines] == pytest.approx([4 / 12, 8 / 12, 1, 16 / 12, 18 / 12])
    assert [r["learning_rate"] for r in lines[:3]] == pytest.approx([5e-3 / 3, 10e-3 / 3, 5e-3])
    assert sum(r["tokens"] for r in lines[:3]) == sum(len(e) for e in examples)
    assert sum(r["supervised_tokens"] for r in lines[:3]) == sum(e.supervised for e in examples)
    assert result["tokens"] == sum(r["tokens"] for r in lines)
    assert result["epochs"] == 1.5
    assert (result["first_loss"], result["last_loss"]) == (lines[0]["loss"], lines[-1]["loss"])
    assert result["best_step"] is None
    assert result["trainable_parameters"] == sum(t.numel() for t in weights(tmp_path).values())
    share = result["matmul_share"]  # None where the peak was read too low, on a machine that others use
    assert result["matmul_peak_flops"] > 0
    assert share is None or 0 < share <= 1
    assert all(r["tokens_per_second"] > 0 and r["memory_bytes"] > 0 for r in lines)


def test_the_measured_type_is_kept_when_a_run_resumes(
    tmp_path: Path, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, out = make_stage(dtype="auto"), StageDir(tmp_path)
    monkeypatch.setattr("posttrain.model.hardware.choose_dtype", lambda name, device: torch.bfloat16)
    assert settled_dtype(stage.dtype, stage.device, out) == "bf16"
    monkeypatch.setattr("posttrain.model.hardware.choose_dtype", lambda name, device: torch.float32)
    assert settled_dtype(stage.dtype, stage.device, out) == "bf16"
    assert settled_dtype("fp32", "cpu", out) == "fp32"


def test_a_non_finite_held_out_loss_names_the_row(
    make_stage: MakeStage, poisoned_model: Path, random_examples: MakeExamples, tmp_path: Path
) -> None:
    good, held_out = random_examples([12] * 4, vocabulary=70), random_examples([12] * 3, vocabulary=70)
    ids_T = held_out[1].ids_T.copy()
    ids_T[2] = 77
    held_out[1] = Tokens(ids_T, held_out[1].weights_T, "bad-row")
    inputs = TrainInputs(poisoned_model, good, held_out=held_out, origins={"bad-row": "rows.jsonl:7"})
    with pytest.raises(TrainingError, match=r"step 0: held-out loss nan.*rows.jsonl:7"):
        train(make_stage(epochs=1), inputs, StageDir(tmp_path / "run"), seed=0, digest="d")
