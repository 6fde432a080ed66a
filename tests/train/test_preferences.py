"""Preference objectives in the engine: shared prompts, split steps, references, resume, reward models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from families import micro_folder
from posttrain.artifacts import StageDir
from posttrain.encode.collate import collate
from posttrain.encode.preferences import FeedbackTokens, PairTokens, mismatched
from posttrain.errors import CheckpointError, TrainingError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.score import batch_logps, sequence_logps
from posttrain.objectives import (
    DpoObjective,
    HingeObjective,
    IpoObjective,
    KtoObjective,
    Objective,
    OrpoObjective,
    RewardObjective,
    SimpoObjective,
)
from posttrain.train import loop
from posttrain.train.config import TrainSettings
from posttrain.train.loop import Trainee, TrainInputs, evaluate, optimizer_step, prepare_model, train
from posttrain.train.reference import ReferenceLogps, reference_logps, sequence_key
from posttrain.train.tasks import Task, Unit, make_task
from posttrain.types import Tokens

MakeStage = Callable[..., TrainSettings]
VOCABULARY = 199
CPU = torch.device("cpu")
TIMES = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes")


def tokens(prompt: Sequence[int], reply: Sequence[int], row_id: str) -> Tokens:
    weights_T = np.array([0.0] * len(prompt) + [1.0] * len(reply), np.float32)
    return Tokens(np.array([*prompt, *reply], np.int32), weights_T, row_id)


def make_pairs(count: int = 9, seed: int = 0) -> list[PairTokens]:
    """Prompts of 2 to 40 tokens, replies of 1 to 30."""
    draw = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        prompt = draw.integers(3, VOCABULARY, draw.integers(2, 40)).tolist()
        chosen, rejected = (draw.integers(3, VOCABULARY, draw.integers(1, 30)).tolist() for _ in range(2))
        row_id = f"row-{number}"
        pairs.append(PairTokens(tokens(prompt, chosen, row_id), tokens(prompt, rejected, row_id), row_id, number / 4))
    return pairs


def make_feedback(count: int = 9, seed: int = 0) -> list[FeedbackTokens]:
    return [
        FeedbackTokens(p.chosen if n % 2 else p.rejected, bool(n % 2)) for n, p in enumerate(make_pairs(count, seed))
    ]


def units_for(objective: Objective, count: int = 9) -> Sequence[Unit]:
    return make_feedback(count) if objective.row_kind == "feedback" else make_pairs(count)


PREFERENCES: list[Objective] = [
    DpoObjective(),
    DpoObjective(label_smoothing=0.1, sft_weight=1.0),
    IpoObjective(),
    SimpoObjective(),
    OrpoObjective(),
    OrpoObjective(nll="conversation"),
    HingeObjective(),
    KtoObjective(),
    RewardObjective(use_margin=True, centering=0.01),
]
by_name = pytest.mark.parametrize(
    "objective", PREFERENCES, ids=lambda o: f"{o.name}{'+' if o.supervises_prompt else ''}"
)


def stirred(trainee: Trainee) -> Trainee:
    """A policy that has moved away from its start: B of every adapter is no longer 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainee.trained.items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return trainee


def start_reference(stage: TrainSettings, model: Path, units: Sequence[Unit]) -> ReferenceLogps:
    """The start's log-probabilities of everything a step over these units asks for, each sequence computed alone."""
    if not stage.objective.needs_reference:
        return ReferenceLogps({})
    trainee, task = prepare_model(stage, model, None, seed=0), make_task(stage.objective)
    sequences = [s for unit in units for s in task.sequences(unit)] + task.beside(units)
    with torch.no_grad():
        logps = [batch_logps(trainee.model, collate([s]), torch.float32).logps_S.numpy() for s in sequences]
    return ReferenceLogps(dict(zip(map(sequence_key, sequences), logps, strict=True)))


class Recorder(torch.optim.Optimizer):
    """Changes nothing and keeps the gradients."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__(list(trainee.trained.values()), {"lr": 0.0})
        self.trained = trainee.trained
        self.gradients: dict[str, torch.Tensor] = {}

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.gradients = {n: p.grad.clone() for n, p in self.trained.items() if p.grad is not None}


def one_step(trainee: Trainee, task: Task, groups: Sequence[Sequence[Unit]]) -> tuple[Any, dict[str, torch.Tensor]]:
    recorder = Recorder(trainee)
    return optimizer_step(trainee, recorder, task, groups, 0.0, None), recorder.gradients


def close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert float((got[name] - expected[name]).norm()) <= tolerance * float(expected[name].norm()) + 1e-9, name


# ---- one step, however it is computed --------------------------------------------------------------------------------


@by_name
def test_a_step_does_not_depend_on_its_split(objective: Objective, make_stage: MakeStage, small_model: Path) -> None:
    """Nine units at once; split 5, 2, 2; each alone: one loss, one set of metrics, one gradient."""
    stage, units = make_stage(objective=objective), units_for(objective)
    task = make_task(objective, start_reference(stage, small_model, units))
    trainee = stirred(prepare_model(stage, small_model, None, seed=0))
    whole, expected = one_step(trainee, task, [units])
    for groups in ([units[:5], units[5:7], units[7:]], [[unit] for unit in units]):
        result, gradients = one_step(trainee, task, groups)
        assert result.loss == pytest.approx(whole.loss, rel=1e-5)
        assert result.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-5)
        close(gradients, expected)
    found = evaluate(trainee, task, units, 64)
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert found.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-5)
    assert sum(found.losses) / len(units) == pytest.approx(whole.loss, rel=1e-5)
    if found.margins:
        assert sum(found.margins) / len(units) == pytest.approx(whole.metrics["rewards/margins"], rel=1e-4, abs=1e-5)
        alone = [evaluate(trainee, task, [unit], 1).margins[0] for unit in units]
        assert found.margins == pytest.approx(alone, rel=1e-4, abs=1e-5)


@by_name
def test_shared_prompts_are_separate_sequences(
    objective: Objective, make_stage: MakeStage, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, units = make_stage(objective=objective), units_for(objective)
    task = make_task(objective, start_reference(stage, small_model, units))
    trainee = stirred(prepare_model(stage, small_model, None, seed=0))
    shared, gradients = one_step(trainee, task, [units])
    monkeypatch.setattr(loop, "lay_out", lambda model, sequences: collate(sequences))
    separate, expected = one_step(trainee, task, [units])
    if objective.row_kind == "pairs":
        assert shared.computed_tokens < 0.8 * separate.computed_tokens
    assert shared.loss == pytest.approx(separate.loss, rel=1e-5)
    close(gradients, expected)


def test_dpo_against_its_equation_in_float64(make_stage: MakeStage, small_model: Path) -> None:
    """Loss and metrics of a step from log-probabilities of plain forward passes in float64."""
    from transformers import AutoModelForCausalLM

    stage, units = make_stage(objective=DpoObjective(beta=0.3)), make_pairs()
    task = make_task(stage.objective, start_reference(stage, small_model, units))
    trainee = stirred(prepare_model(stage, small_model, None, seed=0))
    result, _ = one_step(trainee, task, [units])
    from posttrain.model.export import merge_adapter

    policy = merge_adapter(trainee.model).double()
    reference = AutoModelForCausalLM.from_pretrained(small_model).double()

    def total(model: Any, sequence: Tokens) -> float:
        model.set_attn_implementation("eager")
        ids = torch.from_numpy(sequence.ids_T.astype(np.int64))
        with torch.no_grad():
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        return float(logps[torch.from_numpy(sequence.weights_T[1:] != 0)].sum())

    margins = np.array(
        [
            sum(sign * (total(policy, s) - total(reference, s)) for sign, s in ((1, p.chosen), (-1, p.rejected)))
            for p in units
        ]
    )
    assert result.loss == pytest.approx(np.mean(np.log1p(np.exp(-0.3 * margins))), rel=1e-5)
    assert result.metrics["rewards/margins"] == pytest.approx(0.3 * margins.mean(), abs=1e-5)
    assert result.metrics["rewards/accuracies"] == pytest.approx((margins > 0).mean())
    assert result.metrics["lengths/chosen"] == np.mean([p.chosen.supervised for p in units])
    assert result.metrics["kl"] > 0


def test_at_the_start_dpo_is_ln_2(make_stage: MakeStage, small_model: Path, tmp_path: Path) -> None:
    stage = make_stage(objective=DpoObjective(), max_steps=2)
    train(stage, TrainInputs(small_model, make_pairs(), make_pairs(3, seed=1)), StageDir(tmp_path), seed=0, digest="d")
    held_out, first = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]]
    for record in (held_out, first):
        assert record["loss"] == pytest.approx(math.log(2), rel=1e-5)
        assert record["rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert record["kl"] == pytest.approx(0, abs=1e-9)
        assert record["rewards/accuracies"] == 0.5


@pytest.mark.parametrize(
    "objective", [DpoObjective(), IpoObjective(), IpoObjective(average="sum"), HingeObjective()], ids=lambda o: o.name
)
def test_before_the_first_step_half_of_all_pairs_are_right(
    objective: Objective, make_stage: MakeStage, small_model: Path
) -> None:
    """Batches cut in another way round otherwise; a pair that only rounding decides is half right."""
    stage, units = make_stage(objective=objective), make_pairs(24)
    reference = start_reference(stage, small_model, units)  # each sequence alone
    trainee, task = prepare_model(stage, small_model, None, seed=0), make_task(objective, reference)
    found = [evaluate(trainee, task, units, budget)[1] for budget in (1, 128, 10_000)]
    found.append(one_step(trainee, task, [units[:5], units[5:]])[0].metrics)
    assert [metrics["rewards/accuracies"] for metrics in found] == [0.5] * 4
    assert any(metrics["rewards/margins"] != 0 for metrics in found), "nothing was rounded: the test shows nothing"
    stirred(trainee)
    assert {evaluate(trainee, task, [unit], 1)[1]["rewards/accuracies"] for unit in units} == {0.0, 1.0}


def test_kto_rows_meet_the_reply_of_the_next_row() -> None:
    units = make_feedback(4)
    found = mismatched(units)
    assert [t.row_id for t in found] == ["row-0+row-1", "row-1+row-2", "row-2+row-3", "row-3+row-0"]
    first, second = units[0].tokens, units[1].tokens
    prompt, reply = first.ids_T[first.weights_T == 0], second.ids_T[second.weights_T == 1]
    assert found[0].ids_T.tolist() == [*prompt.tolist(), *reply.tolist()]
    assert found[0].supervised == second.supervised
    assert [t.row_id for t in mismatched(units[::-1])] == [t.row_id for t in found]


def test_a_last_step_of_one_row_is_not_its_own_reference_point() -> None:
    """It borrows the reply of the next row of the data: z = 2 nats here, whatever its own reply gained. Copies of a row are one row."""
    units = make_feedback(4)
    for lone, lender in ((0, 1), (3, 0)):
        (borrowed,) = mismatched([units[lone]], units)
        assert borrowed.row_id == f"row-{lone}+row-{lender}"
        known = ReferenceLogps({sequence_key(borrowed): np.full(borrowed.supervised, -1.0, np.float32)})
        task = make_task(KtoObjective(), known, others=units)
        gained = np.full(borrowed.supervised, -1.0 + 2.0 / borrowed.supervised, np.float32)
        assert task.beside([units[lone]])[0].row_id == borrowed.row_id
        assert task.context([units[lone]], [gained]).reference_point == pytest.approx(2.0, rel=1e-6)
    assert [t.row_id for t in mismatched([units[0], units[0]], units)] == ["row-0+row-1"] * 2
    assert [t.row_id for t in mismatched([units[0], units[0], units[2]])] == ["row-0+row-2"] * 2 + ["row-2+row-0"]
    assert mismatched([units[0]], [units[0]]) == []
    assert make_task(KtoObjective()).context([units[0]], []).reference_point == 0.0


def test_kto_reference_point_is_clamped_and_shared(make_stage: MakeStage, small_model: Path) -> None:
    stage, units = make_stage(objective=KtoObjective()), make_feedback()
    task = make_task(stage.objective, start_reference(stage, small_model, units))
    trainee = stirred(prepare_model(stage, small_model, None, seed=0))
    z = loop.step_context(trainee, task, units, 64).reference_point
    beside = task.beside(units)
    policy = sequence_logps(trainee.model, [[s] for s in beside], 64, torch.float32)
    reference = start_reference(stage, small_model, units)
    expected = np.mean([p.sum() - reference[s].sum() for p, s in zip(policy, beside, strict=True)])
    assert z == pytest.approx(max(0.0, float(expected)), rel=1e-4, abs=1e-5)


def test_kto_margin_is_the_difference_of_the_mean_rewards(make_stage: MakeStage, small_model: Path) -> None:
    stage, units = make_stage(objective=KtoObjective()), make_feedback()
    task = make_task(stage.objective, start_reference(stage, small_model, units))
    trainee = stirred(prepare_model(stage, small_model, None, seed=0))
    _, metrics, *_ = loop.evaluate(trainee, task, units, 64)
    assert metrics["rewards/margins"] == metrics["rewards/chosen"] - metrics["rewards/rejected"] != 0
    good = [unit for unit in units if unit.desirable]
    _, one_kind, *_ = loop.evaluate(
        trainee, make_task(stage.objective, start_reference(stage, small_model, good)), good, 64
    )
    assert "rewards/chosen" in one_kind
    assert "rewards/margins" not in one_kind


# ---- whole runs ------------------------------------------------------------------------------------------------------


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


class _KilledError(Exception):
    """Stands in for kill -9."""


@pytest.mark.parametrize(
    ("objective", "adapter"),
    [
        (DpoObjective(), LoraAdapter(rank=4)),
        pytest.param(DpoObjective(), FullWeights(), marks=pytest.mark.slow),
        pytest.param(KtoObjective(), LoraAdapter(rank=4), marks=pytest.mark.slow),
        pytest.param(RewardObjective(), FullWeights(), marks=pytest.mark.slow),
    ],
    ids=lambda one: one.name,
)
def test_resumed_is_uninterrupted_bitwise(
    objective: Objective, adapter: Any, make_stage: MakeStage, small_model: Path, tmp_path: Path
) -> None:
    stage = make_stage(objective=objective, adapter=adapter, epochs=2, checkpoint_every=1, learning_rate=1e-3)
    inputs = TrainInputs(small_model, units_for(objective, 10), held_out=units_for(objective, 4))

    def kill(record: Any) -> None:
        if record["step"] in (2, 5) and record["split"] == "train" and not (cut.path / str(record["step"])).exists():
            (cut.path / str(record["step"])).touch()
            raise _KilledError

    whole, cut = StageDir(tmp_path / "whole"), StageDir(tmp_path / "cut")
    train(stage, inputs, whole, seed=0, digest="d")
    for _ in range(2):
        with pytest.raises(_KilledError):
            train(stage, inputs, cut, seed=0, digest="d", observer=kill)
    (cut.file("reference.safetensors")).unlink(missing_ok=True)  # the start is computed again, not the policy of step 5
    train(stage, inputs, cut, seed=0, digest="d")
    assert records(cut.path) == records(whole.path)
    name = "adapter/adapter_model.safetensors" if isinstance(adapter, LoraAdapter) else "model/model.safetensors"
    assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.slow
@by_name
def test_every_objective_learns_its_pairs(
    objective: Objective, make_stage: MakeStage, small_model: Path, tmp_path: Path
) -> None:
    stage = make_stage(objective=objective, epochs=4, learning_rate=1e-2, schedule="constant", keep="last")
    train(stage, TrainInputs(small_model, units_for(objective, 8)), StageDir(tmp_path), seed=0, digest="d")
    steps = records(tmp_path)
    assert steps[-1]["loss"] < steps[0]["loss"]
    if objective.row_kind == "pairs":
        assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's, not ours
@pytest.mark.parametrize("adapter", [LoraAdapter(rank=4), FullWeights()], ids=["lora", "full"])
def test_a_reward_model_scores_the_same_in_transformers(
    adapter: Any, make_stage: MakeStage, small_model: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    stage = make_stage(objective=RewardObjective(), adapter=adapter, max_steps=3, learning_rate=1e-3, keep="last")
    pairs = make_pairs(8)
    train(stage, TrainInputs(small_model, pairs, held_out=pairs), StageDir(tmp_path), seed=0, digest="d")
    if isinstance(adapter, LoraAdapter):
        theirs = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1)
    else:
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")

    @torch.no_grad()
    def score(sequence: Tokens) -> float:
        return float(theirs(torch.from_numpy(sequence.ids_T.astype(np.int64))[None]).logits[0, 0])

    chosen, rejected = ([score(getattr(p, side)) for p in pairs] for side in ("chosen", "rejected"))
    assert np.std(chosen) > 0.01
    last = records(tmp_path)[-1]
    assert last["split"] == "held_out"
    assert last["rewards/chosen"] == pytest.approx(np.mean(chosen), rel=1e-4, abs=1e-6)
    assert last["rewards/rejected"] == pytest.approx(np.mean(rejected), rel=1e-4, abs=1e-6)
    assert last["loss"] == pytest.approx(np.mean(np.log1p(np.exp(np.subtract(rejected, chosen)))), rel=1e-5)


@pytest.mark.parametrize("adapter", [LoraAdapter(rank=4, alpha=8), FullWeights()], ids=["lora", "full"])
def test_a_reward_model_goes_on_from_an_adapter(
    adapter: Any, make_stage: MakeStage, small_model: Path, sft_adapter: Path
) -> None:
    """Its scores are those of the adapted body, not of the base; with LoRA the adapter it saves is one to the base."""
    stage = make_stage(objective=RewardObjective(), adapter=adapter)
    task, pairs = make_task(stage.objective), make_pairs(4)
    found, base = (prepare_model(stage, small_model, folder, seed=0) for folder in (sft_adapter, None))
    merged = prepare_model(
        make_stage(objective=RewardObjective(), adapter=FullWeights()), small_model, sft_adapter, seed=0
    )
    rewards = [evaluate(trainee, task, pairs, 64)[1]["rewards/chosen"] for trainee in (found, base, merged)]
    assert rewards[0] == pytest.approx(rewards[2], rel=1e-4, abs=1e-6)
    assert abs(rewards[0] - rewards[1]) > 1e-4
    assert any("score" in name for name in found.trained)
    assert {p.dtype for p in found.trained.values()} == {torch.float32}


@pytest.fixture
def sft_adapter(make_stage: MakeStage, small_model: Path, tmp_path: Path) -> Path:
    """The adapter that an SFT stage leaves."""
    stage = make_stage(epochs=4, learning_rate=2e-2)
    train(stage, TrainInputs(small_model, [p.chosen for p in make_pairs(8)]), StageDir(tmp_path), seed=0, digest="d")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore")  # these models' own
@pytest.mark.parametrize(
    ("family", "noise"),
    [
        ("phi3", {"attention_dropout": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}),
        ("mixtral", {"router_jitter_noise": 0.3}),
        ("bloom", {"attention_dropout": 0.3, "hidden_dropout": 0.3}),
    ],
)
def test_a_model_of_its_own_dropout_is_its_reference(
    family: str, noise: dict[str, float], make_stage: MakeStage, tmp_path: Path
) -> None:
    """Whatever of the model itself is random in training is off, in layers, in attention and in routers: the first loss is ln 2."""
    folder, units = micro_folder(family, tmp_path, **noise), make_pairs(3)
    trainee = prepare_model(make_stage(objective=DpoObjective()), folder, None, seed=0)
    task = make_task(DpoObjective(), start_reference(make_stage(objective=DpoObjective()), folder, units))
    assert trainee.model.training
    assert one_step(trainee, task, [units])[0].loss == pytest.approx(math.log(2), rel=1e-6)


def test_dropout_is_off_and_the_user_is_told(make_stage: MakeStage, small_model: Path) -> None:
    stage = make_stage(objective=DpoObjective(), adapter=LoraAdapter(rank=4, dropout=0.2))
    with pytest.warns(UserWarning, match="dropout is off"):
        trainee = prepare_model(stage, small_model, None, seed=0)
    assert all(m.p == 0 for m in trainee.model.modules() if isinstance(m, torch.nn.Dropout))
    units = make_pairs(3)
    task = make_task(stage.objective, start_reference(make_stage(objective=DpoObjective()), small_model, units))
    assert one_step(trainee, task, [units])[0].loss == pytest.approx(math.log(2), rel=1e-6)


def test_a_policy_that_is_not_its_reference_is_stopped(
    make_stage: MakeStage, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.prepare_model
    calls: list[int] = []

    def noisy(*arguments: Any) -> Trainee:
        trainee = real(*arguments)
        head = trainee.model.get_submodule("base_model.model.model.norm")

        def drift(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return output * (1 + 0.01 * len(calls))

        head.register_forward_hook(drift)
        return trainee

    monkeypatch.setattr(loop, "prepare_model", noisy)
    with pytest.raises(TrainingError, match="the policy is not its reference"):
        train(
            make_stage(objective=DpoObjective()),
            TrainInputs(small_model, make_pairs()),
            StageDir(tmp_path),
            seed=0,
            digest="d",
        )


# ---- the kept reference ----------------------------------------------------------------------------------------------


def test_precomputed_is_live(make_stage: MakeStage, small_model: Path, tmp_path: Path) -> None:
    """What the file gives after a round trip, against the adapter switched off in the live policy."""
    stage, units = make_stage(objective=DpoObjective()), make_pairs()
    trainee = prepare_model(stage, small_model, None, seed=0)
    task = make_task(stage.objective)
    groups = [task.sequences(unit) for unit in units]

    def compute(parts: Sequence[Sequence[Tokens]]) -> list[Any]:
        return sequence_logps(trainee.model, parts, 64, torch.float32)

    reference_logps(tmp_path / "r.safetensors", "m", groups, compute, torch.float32)
    kept = reference_logps(tmp_path / "r.safetensors", "m", groups, compute, torch.float32)
    stirred(trainee)
    with trainee.model.disable_adapter(), torch.no_grad():
        for unit in units:
            for sequence in (unit.chosen, unit.rejected):
                live = batch_logps(trainee.model, collate([sequence]), torch.float32).logps_S.numpy()
                assert kept[sequence] == pytest.approx(live, rel=1e-5)


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    asked: list[str] = []

    def compute(parts: Sequence[Sequence[Tokens]]) -> list[Any]:
        asked.extend(s.row_id for group in parts for s in group)
        return [np.full(s.supervised, -1.0, np.float32) for group in parts for s in group]

    groups = [[p.chosen, p.rejected] for p in make_pairs(6)]
    path = tmp_path / "deep" / "r.safetensors"
    reference_logps(path, "m", groups[:4], compute, torch.float32)
    assert len(asked) == 8
    asked.clear()
    found = reference_logps(path, "m", groups, compute, torch.float32)
    assert asked[-4:] == ["row-4", "row-4", "row-5", "row-5"]
    assert set(asked[:-4]) <= {f"row-{k}" for k in range(4)}, "some that were kept are verified"
    assert all(s in found for group in groups for s in group)


def test_one_token_that_is_rounded_otherwise_is_no_other_model(tmp_path: Path) -> None:
    """In bf16 a token is up to 0.3 nats apart where another one stands beside it; a short reply is the mean of few."""
    groups, path = [[p.chosen, p.rejected] for p in make_pairs(40)], tmp_path / "r.safetensors"
    shortest = min((s for group in groups for s in group), key=len)

    def compute(parts: Sequence[Sequence[Tokens]], rounding: float = 0.0, all_of: float = 0.0) -> list[Any]:
        logps = [np.full(s.supervised, -1.0 + all_of, np.float32) for group in parts for s in group]
        for found, sequence in zip(logps, (s for group in parts for s in group), strict=True):
            found[0] += rounding if sequence is shortest else 0.0
        return logps

    reference_logps(path, "m", groups, compute, torch.bfloat16)
    reference_logps(path, "m", groups, lambda parts: compute(parts, rounding=0.3), torch.bfloat16)
    with pytest.raises(CheckpointError, match="not those of this model"):
        reference_logps(path, "m", groups, lambda parts: compute(parts, all_of=0.06), torch.bfloat16)


def test_a_reference_of_another_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    def constant(value: float) -> Callable[[Sequence[Sequence[Tokens]]], list[Any]]:
        return lambda parts: [np.full(s.supervised, value, np.float32) for group in parts for s in group]

    groups, path = [[p.chosen, p.rejected] for p in make_pairs(3)], tmp_path / "r.safetensors"
    reference_logps(path, "one", groups, constant(-1.0), torch.float32)
    with pytest.raises(CheckpointError, match="those of another model"):
        reference_logps(path, "two", groups, constant(-1.0), torch.float32)
    with pytest.raises(CheckpointError, match="not those of this model"):
        reference_logps(path, "one", groups, constant(-1.1), torch.float32)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        reference_logps(path, "one", groups, constant(-1.0), torch.float32)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        reference_logps(path, "one", groups, constant(-1.0), torch.float32)
