"""The training loop: plan -> micro-batches -> log-probabilities -> objective -> optimizer step -> metrics -> checkpoint.

What a step computes depends on (weights, optimizer state, step number) and on nothing else: the data order and the random
numbers are functions of the seed and the step. So a run that is killed and resumed gives the same bits as one that is not.
"""

from __future__ import annotations

import contextlib
import gc
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.artifacts import MetricsLog, StageDir, atomic_path, file_digest, read_json, write_json
from posttrain.encode.collate import Batch, collate
from posttrain.encode.preferences import PairTokens, sequences_of
from posttrain.errors import ConfigError, EndedEarlyError, InterruptedRunError, ModelError, TrainingError
from posttrain.holder import hearing
from posttrain.model import adapters, export, fused, hardware, quantise
from posttrain.model.adapters import frozen_model
from posttrain.model.companions import Companions, read_object
from posttrain.model.config import LoraAdapter
from posttrain.model.forward import beside_text, causal_lm, path_of, rounds, shell_of, step_flops
from posttrain.model.lengths import check_fits
from posttrain.model.proof import prove_products
from posttrain.model.score import idle_batch, lay_out, packed_length, sequence_logps, shared_out
from posttrain.model.sharded import divide, reduce_after, unaveraged, whole_on_cpu
from posttrain.objectives.base import Loss, Metric
from posttrain.parallel.peers import ALONE, Peers, deal
from posttrain.report.reading import parse
from posttrain.train.checkpoint import Checkpoints, Progress, optimizer_tensors, restore_optimizer, share_state
from posttrain.train.config import StepSettings, TrainSettings
from posttrain.train.divided_checkpoint import DividedCheckpoints
from posttrain.train.measured import Gauge, Planner, advised, record_measured, record_plan
from posttrain.train.optimizer import build_optimizer, clip_gradients, learning_rate, sum_gradients
from posttrain.train.plan import Plan, micro_batches
from posttrain.train.planned import Settled, StagePlan, layout_of
from posttrain.train.protocols import Dtype, ModelSettings
from posttrain.train.quantisation import GAP_FILE, quantisation_gap
from posttrain.train.records import (
    HELD_OUT_FILE,
    HeldOutLosses,
    HeldOutRecord,
    QuantisationGap,
    Record,
    StepRecord,
    TrainResult,
    line_of,
    losses_by_row,
)
from posttrain.train.reference import ReferenceLogps, mean_difference, reference_logps, tolerance
from posttrain.train.tasks import LossInputs, StepContext, Task, Unit, make_task
from posttrain.train.track import Tracker, open_trackers
from posttrain.types import Tokens

EVALUATIONS_PER_RUN = 10
CHECKPOINT_TIME_SHARE = 0.05
FRAGMENTED = 1.25
"""Freed memory goes back to the system when a step leaves so many times more of it than the leanest one did."""

Observer = Callable[[Mapping[str, Any]], None]
Settings = TypeVar("Settings", bound=StepSettings)

_NOISE = re.compile(r"dropout|pdrop|jitter_noise")
"""Numbers of transformers' modules that are chances of dropout, or widths of noise, in training."""


@dataclass(frozen=True)
class Reference:
    """Where the reference's log-probabilities are kept, and which model gives them."""

    cache: Path
    identity: str
    """Digest of the model's files and the adapter's."""
    model_folder: Path | None = None
    """None: the weights the stage starts from."""
    adapter_folder: Path | None = None
    adapter_off: bool = False
    """The weights under the adapter that the stage goes on with: no second model."""


@dataclass(frozen=True)
class TrainInputs:
    """What a training stage starts from."""

    model_folder: Path
    examples: Sequence[Unit]
    """Conversations, pairs or labelled replies, as the objective needs them."""
    held_out: Sequence[Unit] = ()
    adapter_folder: Path | None = None
    """The adapter of an earlier stage to continue (or to merge, when all weights are trained)."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """row id -> file:line, to name rows in errors."""
    reference: Reference | None = None
    """None: the weights the stage starts from, kept in the stage's own folder."""
    companions: Companions | None = None
    """What is written beside the weights; None: the tokenizer of the model folder."""

    @property
    def has_second_model(self) -> bool:
        """Whether the reference is another model than the weights the stage starts from."""
        return self.reference is not None and self.reference.model_folder is not None


@dataclass(frozen=True)
class Trainee:
    """A model ready to train: what is trained, and in which type it computes."""

    model: nn.Module
    trained: Mapping[str, Tensor]
    compute_dtype: torch.dtype
    device: torch.device


def prepare_model(settings: ModelSettings, model_folder: Path, adapter_folder: Path | None, seed: int) -> Trainee:
    """Load the model, attach or continue the adapter, put the hot path in place.

    Preference objectives train without dropout: its noise would stand between the policy and its reference.
    """
    device = hardware.resolve_device(settings.device)
    compute_dtype = hardware.choose_dtype(settings.dtype, device)
    head = settings.objective.head
    preferences = settings.objective.row_kind != "conversations"
    if isinstance(settings.adapter, LoraAdapter):
        lora = replace(settings.adapter, dropout=0.0) if preferences else settings.adapter
        if lora != settings.adapter:
            warnings.warn(f"adapter.dropout is off: {settings.objective.name} is trained without it", stacklevel=2)
        base = adapters.load_base(
            model_folder, compute_dtype, device, lora.quantize, head=head, seed=seed, keep_originals=head == "tokens"
        )
        if adapter_folder is None:
            model: nn.Module = adapters.attach_lora(base, lora, seed)
        else:
            mismatch = adapters.adapter_mismatch(adapter_folder, lora)
            if mismatch is not None:
                raise ConfigError(
                    mismatch, where=str(adapter_folder), fix="use the same adapter settings, or start_from: base"
                )
            model = adapters.load_adapter(base, adapter_folder, trainable=True)
        fused.fuse(model)
    else:
        if read_object(model_folder / "config.json").get("quantization_config") is not None:
            raise ModelError(
                "the weights of this model are quantised, and all of them can't be trained and written in that form",
                where=str(model_folder),
                fix="train an adapter (adapter: {name: lora}), or give the model in full precision",
            )
        model = export.merge_adapter(
            adapters.saved_model(model_folder, adapter_folder, torch.float32, device, head=head, seed=seed)
        )
        towers = tuple(f"{name}." for name in beside_text(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not f"{name}.".startswith(towers))
    prove_products(model, compute_dtype)
    for note in _notes(model, settings):
        warnings.warn(note, stacklevel=2)
    if settings.gradient_checkpointing:
        inner = causal_lm(model)
        # transformers renamed this method in 5.2x and warns about the old name
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if preferences:
        _still(model)
    return Trainee(model.train(), adapters.trainable_parameters(model), compute_dtype, device)


def _divided(settings: TrainSettings, inputs: TrainInputs, seed: int, peers: Peers) -> Trainee:
    """A model whose weights are divided among the processes, made in the computer's memory: no device has to hold it whole."""
    assert settings.shard is not None
    device = hardware.resolve_device(settings.device)
    model = prepare_model(replace(settings, device="cpu"), inputs.model_folder, inputs.adapter_folder, seed).model
    dtype = hardware.DTYPES[settings.dtype]
    divide(model, settings.shard, dtype, device, peers, adapter=isinstance(settings.adapter, LoraAdapter))
    return Trainee(model, adapters.trainable_parameters(model), dtype, device)


def _still(model: nn.Module) -> None:
    """Switch off what is random in training: layers of dropout, dropout inside attention, noise of routers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        noise = [name for name, value in vars(module).items() if isinstance(value, float) and _NOISE.search(name)]
        vars(module).update(dict.fromkeys(noise, 0.0))


def _notes(model: nn.Module, settings: ModelSettings) -> Iterator[str]:
    """What is worth knowing of how this model is trained."""
    path = path_of(model)
    if path.kind == "alone":
        yield f"sequences are computed one at a time, by the model's own code, which is slower: {path.why}"
    if towers := beside_text(model):
        yield f"no text goes through {', '.join(towers)}; they stay as they are"
    everywhere = isinstance(settings.adapter, LoraAdapter) and settings.adapter.targets == "all-linear"
    if everywhere and (missed := adapters.not_reached(model)):
        yield f"adapter.targets all-linear does not reach {', '.join(missed)}; they stay as they are"


def settled_dtype(name: Dtype, device: str, out: StageDir) -> Dtype:
    """The compute type, ``auto`` measured, once a run: a resumed run must compute in the type it began with."""
    if name != "auto":
        return name
    path = out.file("checkpoints", "compute.json")
    if not path.exists():
        measured = hardware.choose_dtype("auto", hardware.resolve_device(device))
        write_json(path, {"dtype": next(name for name, dtype in hardware.DTYPES.items() if dtype == measured)})
    found: Dtype = read_json(path)["dtype"]
    return found


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gives, already on the host."""

    loss: float
    grad_norm: float
    tokens: int
    """Of the examples, as rendered."""
    computed_tokens: int
    """That went through the model: common prefixes once, nothing behind the last prediction."""
    supervised_tokens: int
    flops: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the rows of the step, by the objective's names."""


def optimizer_step(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    task: Task,
    micro_batches: Sequence[Sequence[Any]],
    rate: float,
    max_grad_norm: float | None,
    share: Sequence[Sequence[Any]] | None = None,
    peers: Peers = ALONE,
) -> StepResult:
    """One optimizer step over all micro-batches of the effective batch. Raises TrainingError on a non-finite loss.

    ``share``: the micro-batches that this process computes, where several share the step; None = all.
    """
    sizes = [sum(len(sequence) for unit in group for sequence in task.sequences(unit)) for group in micro_batches]
    context = step_context(trainee, task, [unit for group in micro_batches for unit in group], max(sizes), peers)
    sums = _Sums(trainee.device)
    own = micro_batches if share is None else share
    turns = rounds(trainee.model, len(own))
    for turn in range(turns):
        reduce_after(trainee.model, last=turn == turns - 1)
        if turn >= len(own):  # the others compute, and need this process's part of the weights
            torch.autograd.backward(0.0 * task.forward(trainee.model, idle_batch(), trainee.compute_dtype).sum())
            continue
        batch, _, given = _compute(trainee, task, own[turn], context)
        found = task.objective.loss(*given.arguments)
        torch.autograd.backward(unaveraged(trainee.model, found.share))
        sums.add(found, given.metrics, _Work(step_flops(trainee.model, batch), len(batch.ids_T), len(batch.targets_S)))
    parameters = list(trainee.trained.values())
    if shell_of(trainee.model) is None:
        sum_gradients(parameters, peers)
    norm = clip_gradients(parameters, max_grad_norm)
    # The one host synchronisation of a step: without it a NaN would reach the weights.
    loss_value, metrics, norm_value, work = sums.host(norm, peers)
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(f"loss {loss_value}, gradient norm {norm_value}")
    for group_options in optimizer.param_groups:
        group_options["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_value, norm_value, sum(sizes), work.tokens, work.supervised, work.flops, metrics)


class _Computed(NamedTuple):
    """A micro-batch, what the model says of its S supervised tokens, and what the loss receives."""

    batch: Batch
    outputs_S: Tensor
    given: LossInputs


def _compute(trainee: Trainee, task: Task, units: Sequence[Any], context: StepContext) -> _Computed:
    """One forward pass over some units; the loss is left to the caller, so that it is as near to `train` as it can be."""
    batch = lay_out(trainee.model, [sequence for unit in units for sequence in task.sequences(unit)])
    outputs_S = task.forward(trainee.model, batch, trainee.compute_dtype)
    return _Computed(batch, outputs_S, task.loss_inputs(units, batch, outputs_S, context))


def step_context(trainee: Trainee, task: Task, units: Sequence[Any], budget: int, peers: Peers = ALONE) -> StepContext:
    """What the micro-batches of a step share; computes what the task wants to know beforehand, without gradient."""

    def logps(groups: Sequence[Sequence[Tokens]]) -> list[NDArray[np.float32]]:
        return sequence_logps(trainee.model, groups, budget, trainee.compute_dtype)

    beside = [[sequence] for sequence in task.beside(units)]
    return task.context(units, shared_out(peers, beside, logps) if beside else [])


class Evaluation(NamedTuple):
    """What some units give without training on them."""

    loss: float
    metrics: dict[str, float]
    losses: list[float]
    """By unit, in their order; ``loss`` is their mean. A conversation counts by its tokens, as it does in the loss."""
    margins: Sequence[float] = ()
    """By pair its reward margin; nothing where the units are no pairs."""


@torch.no_grad()
def evaluate(trainee: Trainee, task: Task, units: Sequence[Unit], budget: int, peers: Peers = ALONE) -> Evaluation:
    """Loss and metrics over some units, as one step would give them."""
    context = step_context(trainee, task, units, budget, peers)
    sums = _Sums(trainee.device)
    order: list[int] = []
    shares: list[Tensor] = []
    margins: list[Tensor] = []
    training = trainee.model.training
    trainee.model.eval()
    lengths = [packed_length(trainee.model, task.sequences(unit)) for unit in units]
    groups = micro_batches(deal(lengths, peers.size)[peers.rank], lengths, budget)
    idle = rounds(trainee.model, len(groups)) - len(groups)
    for indices in groups:
        some = [units[i] for i in indices]
        _, outputs_S, given = _compute(trainee, task, some, context)
        sums.add(task.objective.loss(*given.arguments), given.metrics)
        order += indices
        for found in _by_unit(task, some, outputs_S, context):
            shares.append(found.share)
            margins += [found.metrics[key].total for key in ("rewards/margins",) if key in found.metrics]
    for _ in range(idle):
        task.forward(trainee.model, idle_batch(), trainee.compute_dtype)
    trainee.model.train(training)
    loss, metrics, _, _ = sums.host(torch.zeros((), device=trainee.device), peers)
    losses = [len(units) * share for share in _in_order(shares, order, peers)]
    return Evaluation(loss, metrics, losses, _in_order(margins, order, peers))


def _in_order(values: Sequence[Tensor], order: Sequence[int], peers: Peers) -> list[float]:
    """The values of all processes in the order of the units, in one transfer; nothing where there are none."""
    own = list(zip(order, torch.stack(list(values)).tolist(), strict=True)) if values else []
    return [value for _, value in sorted(tuple(one) for part in peers.gather(own) for one in part)]


def _by_unit(task: Task, units: Sequence[Unit], outputs_S: Tensor, context: StepContext) -> Iterator[Loss]:
    """What each unit of a micro-batch adds to the loss, from the outputs that stand in the order of the units."""
    start = 0
    for unit in units:
        batch = collate(task.sequences(unit))
        end = start + int(batch.counts_B.sum())
        yield task.objective.loss(*task.loss_inputs([unit], batch, outputs_S[start:end], context).arguments)
        start = end


class _Work(NamedTuple):
    """What was computed."""

    flops: float = 0.0
    tokens: int = 0
    supervised: int = 0

    def and_also(self, more: Sequence[float]) -> _Work:
        """This and more of it."""
        flops, tokens, supervised = more
        return _Work(self.flops + flops, self.tokens + int(tokens), self.supervised + int(supervised))


class _Sums:
    """Losses and metrics of micro-batches added up on the device."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64 if device.type != "mps" else torch.float32)
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.work = _Work()

    def add(self, found: Loss, more: Mapping[str, Metric], work: _Work = _Work()) -> None:  # noqa: B008 (a value)
        self.loss += found.share.detach()
        self.work = self.work.and_also(work)
        for name, metric in {**found.metrics, **more}.items():
            for into, value in ((self.totals, metric.total), (self.counts, metric.count)):
                into[name] = into.get(name, self.loss.new_zeros(())) + value

    def host(self, norm: Tensor, peers: Peers) -> tuple[float, dict[str, float], float, _Work]:
        """(loss, mean of every metric that has a value, norm, work) of all processes, in one transfer from the device."""
        names = list(self.totals)
        stacked = [self.loss, norm.to(self.loss.dtype), *self.totals.values(), *(self.counts[name] for name in names)]
        own_loss, norm_value, *rest = torch.stack(stacked).tolist()
        own = dict(zip(names, zip(rest[: len(names)], rest[len(names) :], strict=True), strict=True))
        loss, work, found = 0.0, _Work(), dict[str, tuple[float, float]]()
        for share, done, metrics in peers.gather([own_loss, self.work, own]):
            loss, work = loss + share, work.and_also(done)
            for name, (total, number) in metrics.items():
                before = found.get(name, (0.0, 0.0))
                found[name] = before[0] + total, before[1] + number
        means = {name: total / number for name, (total, number) in found.items() if number > 0}
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():  # of single replies it is no mean over rows
            means.setdefault("rewards/margins", means["rewards/chosen"] - means["rewards/rejected"])
        return loss, means, norm_value, work


def train(
    settings: TrainSettings,
    inputs: TrainInputs,
    out: StageDir,
    *,
    seed: int,
    digest: str,
    observer: Observer = lambda record: None,
    on_interrupt: Callable[[], None] = lambda: None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    go_on: Callable[[StageDir, int], bool] = lambda out, step: True,
    stop_asked: Callable[[], bool] = lambda: False,
    peers: Peers = ALONE,
) -> dict[str, Any]:
    """Run or resume a training stage and return its ``result`` (docs/run-folder.md); empty but for rank 0 of several ``peers``.

    ``go_on`` is asked after every measurement of the held-out rows whether the run is worth going on with; where it is not, the run ends
    with a checkpoint and an EndedEarlyError. Writes metrics.jsonl, held_out.jsonl, checkpoints/, and adapter/ or model/ (and last/ where the best weights are not the last).
    ``observer`` gets every metrics record. Ctrl-C and SIGTERM end the run after the current step with a checkpoint
    and an InterruptedRunError; ``on_interrupt`` is called at once, because a step may take a while. ``stop_asked`` is asked after every
    step whether the run should end there in the same way.
    """
    run, progress = _begin(settings, inputs, out, seed, digest, observer, on_progress, peers)
    since_checkpoint, write_seconds, leanest = 0.0, 0.0, math.inf
    with contextlib.ExitStack() as open_logs, interruptible(on_interrupt, peers) as interrupted:
        for close in (*(tracker.close for tracker in run.trackers), run.log.close, run.row_log.close):
            open_logs.callback(close)
        if progress.step == 0:
            run.evaluate(progress)
        while not run.finished(progress):
            begin = time.perf_counter()
            # Dropout draws from (seed, step, rank): a resumed step draws what the interrupted one would have drawn.
            torch.manual_seed(seed * 1_000_003 + progress.step + peers.rank * 1_000_000_007)
            groups = run.units_of(progress.step)
            rate = learning_rate(progress.step, run.plan.total_steps, settings)
            with run.explained(progress.step, groups):
                parts = (run.trainee, run.optimizer, run.task, groups, rate, settings.max_grad_norm)
                result = optimizer_step(*parts, run.share_of(progress.step), peers)
            progress = run.record_step(progress, result, rate, time.perf_counter() - begin)
            memory = hardware.current_memory(run.trainee.device)
            leanest = min(leanest, memory)
            if memory > FRAGMENTED * leanest:  # micro-batches of many sizes leave holes behind
                hardware.return_freed_memory()
            ended = False
            if run.evaluation_due(progress.step):
                progress = run.evaluate(progress)
                ended = not run.finished(progress) and not go_on(out, progress.step)
            since_checkpoint += time.perf_counter() - begin
            due = run.checkpoint_due(progress, since_checkpoint, write_seconds)
            # asked once: what is said to have ended has its checkpoint
            words = peers.gather([interrupted() or stop_asked(), ended, due])
            stopped, (_, ended, due) = any(stop for stop, _, _ in words), words[0]
            if ended or stopped or due:
                write_seconds = run.save(progress)
                since_checkpoint = 0.0
            if ended:
                raise EndedEarlyError(f"ended after step {progress.step}", where=str(out.path))
            if stopped:
                raise InterruptedRunError(
                    f"interrupted after step {progress.step}", fix="run the same command again to go on from here"
                )
    return run.finish(progress)


def opened(settings: Settings, out: StageDir, peers: Peers = ALONE) -> tuple[Settings, Gauge]:
    """What every training begins with: the memory of stages before given back, the type it computes in, and its gauge."""
    hardware.keep_freed_memory()
    gc.collect()
    hardware.return_freed_memory()
    gauge = Gauge(hardware.resolve_device(settings.device))
    dtype = peers.decided(lambda: settled_dtype(settings.dtype, settings.device, out))
    return replace(settings, dtype=dtype), gauge


def _begin(
    settings: TrainSettings,
    inputs: TrainInputs,
    out: StageDir,
    seed: int,
    digest: str,
    observer: Observer,
    on_progress: Callable[[str, int, int], None],
    peers: Peers,
) -> tuple[_Run, Progress]:
    """The run, ready for its next step: model, reference, plan, and the newest checkpoint restored."""
    settings, gauge = opened(settings, out, peers)
    folder = Path(peers.said(str(out.file("checkpoints").absolute())))
    whole, divided = Checkpoints(folder, digest), DividedCheckpoints(folder, digest, peers)
    checkpoints = whole if settings.shard is None else divided
    begun = peers.said(checkpoints.exist())
    with advised(out, "while the model is loaded"):
        if settings.shard is not None and peers.size > 1:
            trainee = _divided(settings, inputs, seed, peers)
        else:
            trainee = prepare_model(settings, inputs.model_folder, inputs.adapter_folder, seed)
        sequences = [s for unit in (*inputs.examples, *inputs.held_out) for s in sequences_of(unit)]
        check_fits(trainee.model, sequences, f"stages.{out.path.name}.max_length")
        if quantise.layers(trainee.model):
            if settings.objective.head == "tokens" and not begun and peers.leads:
                rows = [sequences_of(unit) for unit in (*inputs.held_out, *inputs.examples)]
                gap = quantisation_gap(trainee.model, rows, settings.token_budget, trainee.compute_dtype)
                write_json(out.file(GAP_FILE), asdict(gap))
                warnings.warn(gap.sentence, stacklevel=2)
            quantise.forget_originals(trainee.model)
    names = {id(p): name for name, p in trainee.trained.items()}
    optimizer = build_optimizer(trainee.model, trainee.trained, settings)
    pad_id = causal_lm(trainee.model).config.get_text_config().pad_token_id
    objective = settings.objective
    task = make_task(objective, pad_id=pad_id, others=inputs.examples)  # lengths do not depend on the reference
    device, dtype = trainee.device, trainee.compute_dtype
    second = inputs.has_second_model
    planner = Planner(settings, inputs.model_folder, trainee.model, task, inputs.examples, device, dtype, gauge, second)
    plan = Plan(planner.lengths, settings.batch_size, settings.token_budget, settings.epochs, seed, settings.max_steps)
    settled = parse(Settled, peers.decided(lambda: asdict(planner.settle(out, plan))), out.path)
    settings = replace(settings, micro_batch_tokens=settled.micro_batch_tokens)
    plan = replace(plan, micro_batch_tokens=settings.token_budget)
    largest = layout_of(planner.largest(plan))
    stage_plan = planner.of(largest) if settings.shard is None else None  # of what is divided nothing is planned
    record_plan(out, stage_plan, largest, settled.probe)
    # before the checkpoint is restored: the policy is still where it started
    with advised(out, "before the first step", stage_plan):
        if objective.needs_reference:
            source = inputs.reference or Reference(out.file("reference.safetensors"), digest)
            steps = [[inputs.examples[i] for i in plan.step_examples(step)] for step in range(plan.total_steps)]
            reference = _reference(settings, source, trainee, task, [*steps, inputs.held_out], on_progress, peers)
            if source.model_folder is None and not source.adapter_off and not begun:
                _starts_at_reference(trainee, task, steps[0], reference, settings.token_budget)
            task = make_task(objective, reference, pad_id, inputs.examples)
    if settings.shard is None:
        progress = Progress(**peers.decided(lambda: asdict(restore(whole, trainee.trained, [optimizer], names))))
        share_state(peers, trainee.trained, [optimizer], names)
    else:
        progress = divided.restore(trainee.trained, optimizer, names)
    kept = progress.step if progress.step else -1
    log = MetricsLog(out.file("metrics.jsonl"), resume_after=kept)
    row_log = MetricsLog(out.file(HELD_OUT_FILE), resume_after=kept)
    trackers = open_trackers(settings.track if peers.leads else (), out.path)
    parts = (
        settings,
        inputs,
        task,
        plan,
        trainee,
        optimizer,
        names,
        checkpoints,
        out,
        log,
        row_log,
        trackers,
        observer,
    )
    return _Run(*parts, stage_plan, gauge, peers), progress


@dataclass(frozen=True)
class _Run:
    """The parts of one training run, fixed while it goes; what changes is `Progress` and the tensors themselves."""

    settings: TrainSettings
    inputs: TrainInputs
    task: Task
    plan: Plan
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    names: Mapping[int, str]
    checkpoints: Checkpoints | DividedCheckpoints
    out: StageDir
    log: MetricsLog
    row_log: MetricsLog
    trackers: Sequence[Tracker]
    observer: Observer
    stage_plan: StagePlan | None
    gauge: Gauge
    peers: Peers

    @property
    def best_weights(self) -> Path:
        return self.out.file("checkpoints", "best.safetensors")

    def finished(self, progress: Progress) -> bool:
        return progress.step >= self.plan.total_steps or progress.stopped_early

    def units_of(self, step: int) -> list[list[Unit]]:
        """The micro-batches of a step (0-based)."""
        return [[self.inputs.examples[i] for i in group] for group in self.plan.micro_batches(step)]

    def share_of(self, step: int) -> list[list[Unit]] | None:
        """Those of them that this process computes, where it is not alone."""
        if self.peers.size == 1:
            return None
        return [[self.inputs.examples[i] for i in group] for group in self.plan.share(step, self.peers)]

    @contextlib.contextmanager
    def explained(self, step: int, groups: Sequence[Sequence[Unit]]) -> Iterator[None]:
        """Inside, an error of a step says which step and rows it comes from, and what to do."""
        with advised(self.out, f"at step {step + 1}", self.stage_plan):
            try:
                yield
            except TrainingError as error:
                raise self._diagnosed(error, step, [unit for group in groups for unit in group]) from None

    def record_step(self, progress: Progress, result: StepResult, rate: float, seconds: float) -> Progress:
        """Count a step and write its metrics record."""
        step = progress.step
        progress = replace(
            progress,
            step=step + 1,
            tokens=progress.tokens + result.tokens,
            supervised_tokens=progress.supervised_tokens + result.supervised_tokens,
            seconds=progress.seconds + seconds,
        )
        self._record(
            StepRecord(
                step=step + 1,
                total_steps=self.plan.total_steps,
                epoch=self.plan.epoch_after(step),
                loss=result.loss,
                grad_norm=result.grad_norm,
                learning_rate=rate,
                tokens=result.tokens,
                computed_tokens=result.computed_tokens,
                supervised_tokens=result.supervised_tokens,
                tokens_per_second=result.tokens / seconds,
                flops_per_second=result.flops / seconds,
                memory_bytes=hardware.current_memory(self.trainee.device),
                seconds=progress.seconds,
                metrics=result.metrics,
            )
        )
        return progress

    def evaluate(self, progress: Progress) -> Progress:
        """Held-out loss; keeps the best weights and counts towards early stopping. Nothing without held-out rows."""
        if not self.inputs.held_out:
            return progress
        trainee, stopping = self.trainee, self.settings.early_stopping
        with advised(self.out, f"in the evaluation after step {progress.step}", self.stage_plan):
            loss, metrics, losses, margins = evaluate(
                trainee, self.task, self.inputs.held_out, self.settings.token_budget, self.peers
            )
        if not math.isfinite(loss):
            error = TrainingError(f"held-out loss {loss}")
            raise self._diagnosed(error, progress.step - 1, self.inputs.held_out)
        self._record(
            HeldOutRecord(
                step=progress.step,
                loss=loss,
                supervised_tokens=sum(s.supervised for unit in self.inputs.held_out for s in self.task.sequences(unit)),
                rows=len(self.inputs.held_out),
                seconds=progress.seconds,
                metrics=metrics,
            )
        )
        names = [unit.row_id for unit in self.inputs.held_out]
        pairs = [unit for unit in self.inputs.held_out if isinstance(unit, PairTokens)]
        longer = {pair.row_id: pair.chosen.supervised - pair.rejected.supervised for pair in pairs}
        by_pair = dict(zip(names, margins, strict=True)) if margins else {}
        self.row_log.write(**asdict(HeldOutLosses(progress.step, losses_by_row(names, losses), by_pair, longer)))
        if progress.step == 0:
            return progress
        if loss < progress.best_loss:
            tensors = whole_on_cpu(trainee.trained, keeps=self.peers.leads)
            if self.peers.leads:
                with atomic_path(self.best_weights) as temporary:
                    save_file(tensors, temporary)
            progress = replace(progress, best_loss=loss, best_step=progress.step)
        if loss < progress.loss_to_beat - (stopping.min_improvement if stopping is not None else 0.0):
            return replace(progress, loss_to_beat=loss, evaluations_without_improvement=0)
        waited = progress.evaluations_without_improvement + 1
        stop = stopping is not None and waited >= stopping.patience
        return replace(progress, evaluations_without_improvement=waited, stopped_early=stop)

    def save(self, progress: Progress) -> float:
        """Write a checkpoint; returns the seconds it took."""
        if not self.peers.leads and self.settings.shard is None:
            return 0.0
        return self.checkpoints.save(progress, self.trainee.trained, optimizer_tensors(self.optimizer, self.names))

    def finish(self, progress: Progress) -> dict[str, Any]:
        """Write the final weights in their ecosystem format and return the result numbers; that is for rank 0 to do."""
        model = self._whole_model()
        if not self.peers.leads:
            return {}
        keep_best = self.settings.keep == "best" and progress.best_step > 0
        chosen = "adapter" if isinstance(self.settings.adapter, LoraAdapter) else "model"
        if keep_best and progress.best_step != progress.step:
            self._write_weights(model, "last")
            _put(adapters.trainable_parameters(model), load_file(self.best_weights))
        self._write_weights(model, chosen)
        records = self.out.metrics()
        steps = [r for r in records if r["split"] == "train"]
        rates, flops = [r["tokens_per_second"] for r in steps], [r["flops_per_second"] for r in steps]
        measured = self.gauge.peak
        peak = hardware.matmul_flops(self.trainee.compute_dtype, self.trainee.device)
        gap = self.out.file(GAP_FILE)
        record_measured(self.out, self.settings, self.trainee.model, self.optimizer, measured - self.gauge.idle)
        result = TrainResult(
            quantisation=parse(QuantisationGap, read_json(gap), gap) if gap.exists() else None,
            steps=progress.step,
            planned_steps=self.plan.total_steps,
            epochs=self.plan.epoch_after(progress.step - 1),
            tokens=progress.tokens,
            supervised_tokens=progress.supervised_tokens,
            tokens_per_second=median(rates),
            training_seconds=progress.seconds,
            first_loss=steps[0]["loss"],
            last_loss=steps[-1]["loss"],
            best_step=progress.best_step if progress.best_step > 0 else None,
            best_held_out_loss=progress.best_loss if progress.best_step > 0 else None,
            kept="best" if keep_best else "last",
            stopped_early=progress.stopped_early,
            trainable_parameters=sum(p.numel() for p in self.trainee.trained.values()),
            total_parameters=quantise.number_of_parameters(model),
            models_in_memory=1 + self.inputs.has_second_model,
            roles=("policy", "reference") if self.settings.objective.needs_reference else ("model",),
            peak_memory_bytes=measured,
            # A peak measured while others used the machine may lie below what the training itself reached.
            matmul_share=median(flops) / peak if median(flops) <= peak else None,
            matmul_peak_flops=peak,
            device=str(self.trainee.device),
            dtype=hardware.precision(self.trainee.compute_dtype, self.trainee.device),
        )
        return asdict(result)

    def _whole_model(self) -> nn.Module:
        """What is trained, in one piece: the model itself, or, where it is divided, another one in the computer's memory of rank 0. Collective."""
        if shell_of(self.trainee.model) is None:
            return self.trainee.model
        tensors = whole_on_cpu(self.trainee.trained, keeps=self.peers.leads)
        if not self.peers.leads:
            return self.trainee.model
        settings = replace(self.settings, device="cpu")
        model = prepare_model(settings, self.inputs.model_folder, self.inputs.adapter_folder, 0).model
        _put(adapters.trainable_parameters(model), tensors)
        return model

    def _write_weights(self, model: nn.Module, folder: str) -> None:
        companions = self.inputs.companions or Companions(self.inputs.model_folder)
        adapted = isinstance(self.settings.adapter, LoraAdapter)
        write_weights(model, adapted, companions, self.out.file(folder))

    def _record(self, record: Record) -> None:
        line = line_of(record)
        self.log.write(**line)
        for tracker in self.trackers:
            tracker.log(line)
        self.observer(line)

    def evaluation_due(self, step: int) -> bool:
        every = self.settings.evaluate_every or max(1, math.ceil(self.plan.total_steps / EVALUATIONS_PER_RUN))
        return step % every == 0 or step == self.plan.total_steps

    def checkpoint_due(self, progress: Progress, since_checkpoint: float, write_seconds: float) -> bool:
        if self.finished(progress):
            return True
        return checkpoint_due(self.settings.checkpoint_every, progress.step, since_checkpoint, write_seconds)

    def _diagnosed(self, error: TrainingError, step: int, examples: Sequence[Unit]) -> TrainingError:
        """The error with the step and the rows whose own loss is not finite."""
        bad = [unit for unit in examples if not math.isfinite(evaluate(self.trainee, self.task, [unit], 1).loss)]
        rows = ", ".join(self.inputs.origins.get(e.row_id, e.row_id) for e in (bad or examples))
        what = (
            f"rows with a non-finite loss of their own: {rows}"
            if bad
            else f"no single row is at fault; rows of the step: {rows}"
        )
        return TrainingError(
            f"non-finite training at step {step + 1}: {error.problem}; {what}",
            where=str(self.out.path),
            fix="lower learning_rate, use dtype: fp32, or remove the rows; the last checkpoint is intact",
        )


def _reference(
    settings: TrainSettings,
    source: Reference,
    trainee: Trainee,
    task: Task,
    steps: Sequence[Sequence[Unit]],
    on_progress: Callable[[str, int, int], None],
    peers: Peers,
) -> ReferenceLogps:
    """The reference's log-probabilities of everything the given steps will ask for, computed or read."""
    dtype, budget = trainee.compute_dtype, settings.token_budget
    model = trainee.model
    if source.model_folder is not None:
        model = frozen_model(source.model_folder, source.adapter_folder, dtype, trainee.device)
    units = {id(unit): task.sequences(unit) for step in steps for unit in step}  # epochs repeat them
    beside = [(sequence,) for step in steps if step for sequence in task.beside(step)]

    def computed(groups: Sequence[Sequence[Tokens]]) -> list[NDArray[np.float32]]:
        return sequence_logps(model, groups, budget, dtype)

    if peers.size > 1:
        kept = file_digest(source.cache) if source.cache.exists() else "none"
        peers.check_same("kept reference log-probabilities", kept)
    with adapters.adapter_off(model) if source.adapter_off else adapters.fresh_adapter_off(model):
        return reference_logps(
            source.cache,
            f"{source.identity} {dtype}",
            [*units.values(), *beside],
            lambda groups: shared_out(peers, groups, computed),
            dtype,
            lambda done, total: on_progress("reference log-probabilities", done, total),
            keeps=peers.leads,
        )


def _starts_at_reference(
    trainee: Trainee, task: Task, units: Sequence[Unit], reference: ReferenceLogps, budget: int
) -> None:
    """Before the first step policy and reference are one model: every log-ratio is 0, and the loss of DPO ln 2.

    Raises TrainingError where they are not: then every later number would be measured from the wrong place.
    """
    groups = [task.sequences(unit) for unit in units]
    own = sequence_logps(trainee.model, groups, budget, trainee.compute_dtype)
    ratio = mean_difference(own, [reference[sequence] for group in groups for sequence in group])
    if not abs(ratio) <= tolerance(trainee.compute_dtype):
        raise TrainingError(
            f"before the first step the policy is not its reference: the log-ratio of the first step's {len(units)} rows is "
            f"{ratio:.2g} nats a token where it must be 0",
            fix="the model computes something else each time (dropout, or weights changed on disk); see posttrain verify",
        )


def write_weights(model: nn.Module, adapted: bool, companions: Companions, folder: Path) -> None:
    """Write what was trained in its ecosystem's format, the adapter or all weights in fp32, with what belongs beside it."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if adapted:
            adapters.save_adapter(model, temporary)
        else:
            export.save_model(model, temporary, torch.float32)
        companions.write(temporary)


def _put(trained: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Give what is trained these values."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])


def restore(
    checkpoints: Checkpoints,
    trained: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    names: Mapping[int, str],
) -> Progress:
    """Put the newest checkpoint into what is trained and the optimizers; a fresh Progress where there is none."""
    loaded = checkpoints.load()
    if loaded is None:
        return Progress()
    progress, weights, state = loaded
    _put(trained, weights)
    for optimizer in optimizers:
        restore_optimizer(optimizer, state, names)
    return progress


def checkpoint_due(every: int | Literal["auto"], step: int, since_checkpoint: float, write_seconds: float) -> bool:
    """Whether to write a checkpoint after a step: every so many, or as often as writing costs at most `CHECKPOINT_TIME_SHARE`."""
    if every != "auto":
        return step % every == 0
    return write_seconds <= CHECKPOINT_TIME_SHARE * since_checkpoint


@contextlib.contextmanager
def interruptible(on_interrupt: Callable[[], None], peers: Peers) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current step; a second one ends at once, by rank 0's word."""
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested and peers.leads:
            raise KeyboardInterrupt
        requested = True
        on_interrupt()

    with hearing(request):
        yield lambda: requested
