"""The loop: prompts -> replies of the live weights -> scores -> advantages or pairs -> optimizer steps -> metrics -> checkpoint.

What a step computes depends on (weights, optimizer state, step number) and on nothing else: its prompts, the seeds of its replies and the
parts it is learned in are functions of the seed and the step. So a run that is killed while it samples, scores or learns, and resumed,
gives the same bits as one that is not.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain.artifacts import MetricsLog, StageDir, json_records
from posttrain.errors import InterruptedRunError, TrainingError
from posttrain.model import adapters, hardware, quantise
from posttrain.model.companions import Companions
from posttrain.model.config import LoraAdapter
from posttrain.model.score import packed_length, sequence_logps, shared_out
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Ppo, explained_variance
from posttrain.online.config import OnlineSettings, ServerSampler
from posttrain.online.critic import Critic, critic_of
from posttrain.online.planned import RewardNumbers, stage_plan
from posttrain.online.prompts import Prompt, step_prompts
from posttrain.online.records import SAMPLES_FILE, SHOWN_SAMPLES, Measured, OnlineResult, Sample, read_measured
from posttrain.online.rollout import Drawing, OneForAll, OwnWeights, Reply, Sampler, Scored, score, written
from posttrain.online.scores import Missing, RewardModelScore, Scorer, open_for_all
from posttrain.online.server import ServedAdapters
from posttrain.online.units import (
    Formed,
    Group,
    Logps,
    form_groups,
    form_pairs,
    group_task,
    pair_task,
    parts_of,
    totals_of,
    with_advantages,
    with_gae,
)
from posttrain.parallel.peers import ALONE, Peers, deal
from posttrain.plan.memory import Layout
from posttrain.stats.intervals import compare
from posttrain.tasks.ngrams import distinct_n
from posttrain.train.checkpoint import Checkpoints, Progress, optimizer_tensors, share_state
from posttrain.train.loop import (
    StepResult,
    Trainee,
    checkpoint_due,
    interruptible,
    opened,
    optimizer_step,
    prepare_model,
    restore,
    write_weights,
)
from posttrain.train.measured import Gauge, advised, record_measured, record_plan
from posttrain.train.optimizer import build_optimizer, learning_rate
from posttrain.train.plan import micro_batches
from posttrain.train.planned import PromptTokens, StagePlan
from posttrain.train.records import HeldOutRecord, Record, StepRecord, line_of
from posttrain.train.tasks import Task

Observer = Callable[[Mapping[str, Any]], None]

HELD_OUT_DRAWS = -1
"""Stands for the step in the seeds of replies to held-out prompts: they draw the same numbers at every measurement."""
WITHOUT_SIGNAL = 5
"""Steps at the begin in which all groups were equal, before a user is told."""


@dataclass(frozen=True)
class OnlineInputs:
    """What an online stage starts from."""

    model_folder: Path
    prompts: Sequence[Prompt]
    drawing: Drawing
    open_scorer: Callable[[Trainee], Scorer]
    """Makes the scores ready, the policy being in memory."""
    held_out: Sequence[Prompt] = ()
    adapter_folder: Path | None = None
    """The adapter of an earlier stage to go on with; what it left is the reference."""
    companions: Companions | None = None
    """What is written beside the weights; None: the tokenizer of the model folder."""
    rewards: Sequence[RewardNumbers] = ()
    """Of reward models among the scores, for the plan of memory."""


def train_online(
    settings: OnlineSettings,
    inputs: OnlineInputs,
    out: StageDir,
    *,
    seed: int,
    digest: str,
    observer: Observer = lambda record: None,
    on_interrupt: Callable[[], None] = lambda: None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    stop_asked: Callable[[], bool] = lambda: False,
    peers: Peers = ALONE,
) -> dict[str, Any]:
    """Run or resume an online stage and return its ``result`` (docs/run-folder.md); empty but for rank 0 of several ``peers``.

    Writes metrics.jsonl, samples.jsonl, checkpoints/, and adapter/ or model/. Ctrl-C and SIGTERM end the run after the current step with
    a checkpoint and an InterruptedRunError.
    """
    run, progress = _begin(settings, inputs, out, seed, digest, observer, on_progress, peers)
    since_checkpoint, write_seconds = 0.0, 0.0
    with contextlib.ExitStack() as open_logs, interruptible(on_interrupt, peers) as interrupted:
        for log in (run.log, run.sample_log):
            open_logs.callback(log.close)
        if progress.step == 0:
            run.measure(progress)
        while progress.step < settings.steps:
            begin = time.perf_counter()
            with advised(out, f"at step {progress.step + 1}", run.stage_plan):
                progress = run.step(progress)
            if run.measurement_due(progress.step):
                run.measure(progress)
            since_checkpoint += time.perf_counter() - begin
            due = checkpoint_due(settings.checkpoint_every, progress.step, since_checkpoint, write_seconds)
            words = peers.gather([interrupted() or stop_asked(), due])
            stopped, due = any(stop for stop, _ in words), words[0][1]
            last = progress.step == settings.steps
            if stopped or last or due:
                write_seconds = run.save(progress)
                since_checkpoint = 0.0
            if stopped and not last:
                raise InterruptedRunError(
                    f"interrupted after step {progress.step}", fix="run the same command again to go on from here"
                )
    return run.finish(progress)


def _begin(
    settings: OnlineSettings,
    inputs: OnlineInputs,
    out: StageDir,
    seed: int,
    digest: str,
    observer: Observer,
    on_progress: Callable[[str, int, int], None],
    peers: Peers,
) -> tuple[_Run, Progress]:
    """The run, ready for its next step."""
    settings, gauge = opened(settings, out, peers)
    checkpoints = Checkpoints(out.file("checkpoints"), digest)
    with advised(out, "while the model is loaded"):
        trainee = prepare_model(settings, inputs.model_folder, inputs.adapter_folder, seed)
        quantise.forget_originals(trainee.model)
        scorer = open_for_all(peers, lambda: inputs.open_scorer(trainee))
    plan = _planned(settings, inputs, trainee, out)
    names = {id(p): name for name, p in trainee.trained.items()}
    optimizer = build_optimizer(trainee.model, trainee.trained, settings)
    reference = reference_of(settings, inputs, trainee)  # before the checkpoint: the weights are still the start
    critic = critic_of(settings, settings.method, trainee) if isinstance(settings.method, Ppo) else None
    trained: dict[str, Tensor] = dict(trainee.trained)
    optimizers: list[torch.optim.Optimizer] = [optimizer]
    if critic is not None:
        names |= critic.names
        trained |= critic.weights
        optimizers.append(critic.optimizer)
    progress = Progress(**peers.decided(lambda: asdict(restore(checkpoints, trained, optimizers, names))))
    share_state(peers, trained, optimizers, names)
    kept = progress.step if progress.step else -1
    log = MetricsLog(out.file("metrics.jsonl"), resume_after=kept)
    sample_log = MetricsLog(out.file(SAMPLES_FILE), resume_after=kept)
    parts = (settings, inputs, scorer, trainee, reference, critic, optimizer, names, checkpoints)
    sampler = _sampler_of(settings, inputs, trainee, out, digest, on_progress, peers)
    return _Run(*parts, sampler, out, log, sample_log, observer, on_progress, seed, gauge, plan, peers), progress


def _sampler_of(
    settings: OnlineSettings,
    inputs: OnlineInputs,
    trainee: Trainee,
    out: StageDir,
    digest: str,
    on_progress: Callable[[str, int, int], None],
    peers: Peers,
) -> Sampler:
    report = partial(on_progress, "sampling replies")
    own = OwnWeights(trainee.model, inputs.drawing, report, peers)
    if not isinstance(settings.sampler, ServerSampler):
        return own
    if not peers.leads:
        return OneForAll(own, peers)  # which is never asked here
    served = ServedAdapters(settings.sampler, trainee.model, trainee.trained, inputs.drawing, out, digest, report)
    return served if peers.size == 1 else OneForAll(served, peers)


def _planned(settings: OnlineSettings, inputs: OnlineInputs, trainee: Trainee, out: StageDir) -> StagePlan | None:
    """What the stage will take, which is written down; None where the model's type is unknown."""
    lengths = [len(prompt.ids_T) for prompt in inputs.prompts]
    prompts = PromptTokens(max(lengths), fmean(lengths))
    dtype: Literal["bf16", "fp32"] = "bf16" if trainee.compute_dtype == torch.bfloat16 else "fp32"
    kind: Literal["cpu", "cuda"] = "cuda" if trainee.device.type == "cuda" else "cpu"
    goes_on = inputs.adapter_folder is not None
    found = stage_plan(settings, inputs.model_folder, dtype, kind, prompts, inputs.rewards, goes_on=goes_on)
    record_plan(out, found, Layout((), (), 0) if found is None else found.layout, prompts=prompts)
    return found


# ---- the reference -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtStart:
    """The policy as it was before the first step, in the same memory: adapter off where it began as nothing, else the start's own values."""

    trainee: Trainee
    start: Mapping[str, Tensor] | None
    """A copy of what is trained; None: the adapter is switched off."""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, the model is the reference."""
        if self.start is None:
            with adapters.adapter_off(self.trainee.model):
                yield
            return
        now = {name: p.detach().clone() for name, p in self.trainee.trained.items()}
        self._put(self.start)
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainee.trained.items():
            parameter.copy_(values[name])


def reference_of(settings: OnlineSettings, inputs: OnlineInputs, trainee: Trainee) -> AtStart:
    """The reference of a policy that stands at its start."""
    adapter = settings.adapter
    fresh = isinstance(adapter, LoraAdapter) and inputs.adapter_folder is None and not adapter.dora
    return AtStart(trainee, None if fresh else {n: p.detach().clone() for n, p in trainee.trained.items()})


# ---- a run ---------------------------------------------------------------------------------------------------------


class Learned(NamedTuple):
    """What the updates of a step gave."""

    results: list[StepResult]
    rate: float
    kl: float | None
    """k3, nats a token, of all replies; None where no reference was computed for them."""
    values: Mapping[str, float] = {}
    """What is said of the value head."""


@dataclass(frozen=True)
class _Run:
    """The parts of one run, fixed while it goes."""

    settings: OnlineSettings
    inputs: OnlineInputs
    scorer: Scorer
    trainee: Trainee
    reference: AtStart
    critic: Critic | None
    optimizer: torch.optim.Optimizer
    names: Mapping[int, str]
    checkpoints: Checkpoints
    sampler: Sampler
    out: StageDir
    log: MetricsLog
    sample_log: MetricsLog
    observer: Observer
    on_progress: Callable[[str, int, int], None]
    seed: int
    gauge: Gauge
    stage_plan: StagePlan | None
    peers: Peers

    # ---- a step ----

    def step(self, progress: Progress) -> Progress:
        """Sample, score and learn once."""
        settings, step, begin = self.settings, progress.step, time.perf_counter()
        torch.manual_seed(self.seed * 1_000_003 + step)
        places = step_prompts(len(self.inputs.prompts), step, settings.prompts, self.seed)
        prompts = [self.inputs.prompts[place] for place in places]
        replies = self._sample(prompts, settings.replies, step, version=step)
        sampled = time.perf_counter()
        scored = score(replies, self.scorer, settings.cut_replies)
        self._check_scored(scored, step)
        formed = self._formed(scored, step)
        probed = self._probe(replies)
        served = isinstance(settings.sampler, ServerSampler)  # what it computes may change at any time
        if (step == 0 or served) and probed["sampler/k3"] > settings.largest_gap:
            raise TrainingError(
                f"sampler and trainer compute different models: {probed['sampler/k3']:.2g} nats a token apart (k3), at most "
                f"{settings.largest_gap:g} is allowed",
                where=str(self.out.path),
                fix="serve the weights that the adapter lies on, in the trainer's dtype, with --logprobs-mode raw_logprobs"
                if served
                else "use dtype: fp32; see posttrain verify",
            )
        tallied = time.perf_counter()
        learned = self._learn(formed, step)
        end = time.perf_counter()
        metrics = _score_metrics(scored, formed) | probed | _update_metrics(learned)
        metrics |= {"seconds/sampling": sampled - begin, "seconds/learning": end - tallied}
        tokens = sum(len(reply.ids_T) for reply in replies)
        progress = replace(
            progress,
            step=step + 1,
            tokens=progress.tokens + sum(len(r.ids_T) + len(r.prompt.ids_T) for r in replies),
            supervised_tokens=progress.supervised_tokens + tokens,
            seconds=progress.seconds + end - begin,
        )
        results = learned.results
        self._record(
            StepRecord(
                step=step + 1,
                total_steps=settings.steps,
                epoch=(step + 1) * settings.prompts / len(self.inputs.prompts),
                loss=fmean(r.loss for r in results) if results else 0.0,
                grad_norm=fmean(r.grad_norm for r in results) if results else 0.0,
                learning_rate=learned.rate,
                tokens=sum(len(r.ids_T) + len(r.prompt.ids_T) for r in replies),
                computed_tokens=sum(r.computed_tokens for r in results),
                supervised_tokens=tokens,
                tokens_per_second=tokens / (end - begin),
                flops_per_second=sum(r.flops for r in results) / max(end - tallied, 1e-9),
                memory_bytes=hardware.current_memory(self.trainee.device),
                seconds=progress.seconds,
                metrics=metrics,
            )
        )
        if step + 1 == WITHOUT_SIGNAL:
            self._tell_without_signal()
        return progress

    def _sample(self, prompts: Sequence[Prompt], replies: int, step: int, version: int) -> list[Reply]:
        found = self.sampler.sample(prompts, replies, self.seed, step, version)
        for reply in found:
            if reply.version != version:
                raise TrainingError(
                    f"a reply to {reply.prompt.row_id} is of the weights after step {reply.version}, not {version}",
                    where=str(self.out.path),
                )
        return found

    def _check_scored(self, scored: Sequence[Scored], step: int) -> None:
        if not any(isinstance(one.reward, float) for one in scored):
            first = next(one.reward for one in scored if isinstance(one.reward, Missing))
            raise TrainingError(
                f"no reply of step {step + 1} could be scored; the first: {first.reason}",
                where=str(self.out.path),
                fix="correct the score, or see whether all replies are cut (max_new_tokens, cut_replies)",
            )

    def _formed(self, scored: Sequence[Scored], step: int) -> Formed:
        method = self.settings.method
        return form_pairs(method, scored, self.seed, step) if isinstance(method, OnlineDpo) else form_groups(scored)

    def _probe(self, replies: Sequence[Reply]) -> dict[str, float]:
        """How far the sampler's log-probabilities lie from the trainer's, and the policy from its reference, on some replies."""
        probes = [reply for reply in replies if reply.sampler_logps_T is not None]
        own = self._logps([(reply.tokens,) for reply in probes], temperature=1.0)
        gaps = np.concatenate([mine[0] - np.asarray(r.sampler_logps_T) for mine, r in zip(own, probes, strict=True)])
        found = {
            "sampler/gap": float(np.abs(gaps).mean()),
            "sampler/largest_gap": float(np.abs(gaps).max()),
            "sampler/k3": float((np.expm1(gaps) - gaps).mean()),
        }
        if not self._kl_in_reward:  # otherwise it is known of all replies
            t = self.settings.temperature
            policy = own if t == 1.0 else self._logps([(reply.tokens,) for reply in probes])
            with self.reference():
                other = self._logps([(reply.tokens,) for reply in probes])
            found["kl"] = _kl(policy, other)
        return found

    @property
    def _needs_reference(self) -> bool:
        method = self.settings.method
        return isinstance(method, OnlineDpo) or bool(method.beta)

    @property
    def _kl_in_reward(self) -> bool:
        method = self.settings.method
        return not isinstance(method, OnlineDpo) and method.beta > 0 and method.kl_in == "reward"

    def _logps(
        self, sequences: Sequence[Sequence[Any]], *, temperature: float | None = None, as_in_training: bool = False
    ) -> list[Logps]:
        """Log-probabilities of the sequences of every unit."""

        def computed(groups: Sequence[Sequence[Any]]) -> list[NDArray[np.float32]]:
            return sequence_logps(
                self.trainee.model,
                groups,
                self.settings.micro_batch_tokens,
                self.trainee.compute_dtype,
                temperature=self.settings.temperature if temperature is None else temperature,
                as_in_training=as_in_training,
            )

        flat = iter(shared_out(self.peers, sequences, computed))
        return [tuple(next(flat) for _ in own) for own in sequences]

    def _learn(self, formed: Formed, step: int) -> Learned:
        """All updates on the replies of a step."""
        settings = self.settings
        total = settings.steps * settings.updates
        parts = list(parts_of(formed.units, settings.minibatches))
        parts, kl = self._known(parts)
        results: list[StepResult] = []
        of_values: list[StepResult] = []
        method = settings.method
        for done in range(settings.passes):
            for place, part in enumerate(parts):
                units = [unit for unit in part if not isinstance(unit, Group) or self._counts(unit)]
                if not units:
                    continue  # nothing to learn from
                self.on_progress("learning", done * len(parts) + place, settings.passes * len(parts))
                groups = self._micro_batches(units)
                own = self._share(units)
                share = learning_rate(step * settings.updates + done * settings.minibatches + place, total, settings)
                limit = settings.max_grad_norm
                if isinstance(method, Ppo) and self.critic is not None:
                    task = self.critic.task(method, totals_of(part, settings.max_new_tokens))
                    rate = share * method.value_learning_rate / settings.peak_learning_rate
                    with self.critic.playing():
                        critic = (self.critic.trainee, self.critic.optimizer)
                        of_values.append(optimizer_step(*critic, task, groups, rate, limit, own, self.peers))
                    if step < method.value_warmup:
                        continue
                task = self._task(part)
                policy = (self.trainee, self.optimizer)
                results.append(optimizer_step(*policy, task, groups, share, limit, own, self.peers))
        rate = learning_rate((step + 1) * settings.updates - 1, total, settings)
        return Learned(results, rate, kl, _value_metrics(parts, of_values))

    def _share(self, units: Sequence[Any]) -> list[list[Any]] | None:
        """The micro-batches of the units that this process computes, where it is not alone."""
        if self.peers.size == 1:
            return None
        lengths = [packed_length(self.trainee.model, unit.sequences) for unit in units]
        return self._micro_batches([units[place] for place in deal(lengths, self.peers.size)[self.peers.rank]])

    def _micro_batches(self, units: Sequence[Any]) -> list[list[Any]]:
        lengths = [packed_length(self.trainee.model, unit.sequences) for unit in units]
        groups = micro_batches(range(len(units)), lengths, self.settings.micro_batch_tokens)
        return [[units[i] for i in group] for group in groups]

    def _counts(self, group: Group) -> bool:
        """Whether a group adds to the gradient."""
        method = self.settings.method
        assert not isinstance(method, OnlineDpo), "groups are learned from by policy gradients"
        return group.teaches or method.beta > 0

    def _known(self, parts: Sequence[Sequence[Any]]) -> tuple[list[list[Any]], float | None]:
        """The units with all that their losses need and the updates do not change, and the KL at sampling where all replies tell it."""
        method, several = self.settings.method, self.settings.updates > 1
        found = [list(part) for part in parts]
        if self._needs_reference:
            with self.reference():
                for part in found:
                    logps = self._logps([unit.sequences for unit in part])
                    part[:] = [replace(unit, reference=own) for unit, own in zip(part, logps, strict=True)]
        if isinstance(method, OnlineDpo):
            return found, None
        if self.critic is not None:
            for part in found:
                values = self._values(part)
                part[:] = [replace(unit, values=own) for unit, own in zip(part, values, strict=True)]
        if not self._kl_in_reward:  # first of all: which groups are learned from decides how they are packed
            found = self._advantaged(found)
        if self._kl_in_reward or several:
            for part in found:
                units = [unit for unit in part if self._counts(unit)]
                logps = self._logps([unit.sequences for unit in units], as_in_training=several)
                olds = {id(unit): own for unit, own in zip(units, logps, strict=True)}
                part[:] = [replace(unit, old=olds.get(id(unit))) for unit in part]
        if not self._kl_in_reward:
            return found, None
        known = [unit for part in found for unit in part]
        kl = _kl([unit.old for unit in known], [unit.reference for unit in known]) if known else None
        found = self._advantaged(found)
        if (
            not several
        ):  # the only update is the first: its own log-probabilities are those at sampling, to the last bit
            found = [[replace(unit, old=None) for unit in part] for part in found]
        return found, kl

    def _values(self, groups: Sequence[Group]) -> list[Logps]:
        """What the critic says of the tokens of every reply."""
        critic, budget = self.critic, self.settings.micro_batch_tokens
        assert critic is not None, "only PPO asks"
        flat = iter(
            shared_out(self.peers, [group.sequences for group in groups], lambda some: critic.values(some, budget))
        )
        return [tuple(next(flat) for _ in group.sequences) for group in groups]

    def _advantaged(self, parts: Sequence[Sequence[Group]]) -> list[list[Any]]:
        """All groups of a step with their advantages; whitening looks at the whole step."""
        method = self.settings.method
        assert not isinstance(method, OnlineDpo), "pairs have labels"
        units = [unit for part in parts for unit in part]
        advantaged = (
            with_gae(method, units) if isinstance(method, Ppo) else with_advantages(method, units) if units else []
        )
        found = iter(advantaged)
        return [[next(found) for _ in part] for part in parts]

    def _task(self, part: Sequence[Any]) -> Task:
        settings, method = self.settings, self.settings.method
        if isinstance(method, OnlineDpo):
            return pair_task(method, len(part), settings.temperature)
        return group_task(method, totals_of(part, settings.max_new_tokens), settings.temperature)

    def _tell_without_signal(self) -> None:
        steps = [line for line in json_records(self.out.file("metrics.jsonl")) if line.get("split") == "train"]
        method = self.settings.method
        all_compared = not isinstance(method, OnlineDpo) and method.compares_all
        if all(line["reward/deviation"] == 0 if all_compared else line["groups/equal"] == 1.0 for line in steps):
            warnings.warn(
                f"in the first {len(steps)} steps all replies of every prompt scored the same: there is nothing to learn from. Look at "
                f"{SAMPLES_FILE}; a score that some replies pass and others fail is needed, or more replies a prompt",
                stacklevel=2,
            )

    # ---- held-out prompts ----

    def measurement_due(self, step: int) -> bool:
        """Whether the held-out prompts are answered after a step."""
        every = self.settings.evaluate_every
        return step == self.settings.steps or (every is not None and step % every == 0)

    def measure(self, progress: Progress) -> None:
        """Answer the held-out prompts once each, with the same draws every time. Nothing without such prompts."""
        prompts = self.inputs.held_out[: self.settings.evaluation_prompts]
        if not prompts:
            return
        replies = self._sample(prompts, 1, HELD_OUT_DRAWS, version=progress.step)
        before = self._said_first(replies, progress.step) if self.scorer.compares else {}
        rivals = [written(reply, before[reply.prompt.row_id]) for reply in replies if reply.prompt.row_id in before]
        scored = score(replies, self.scorer, self.settings.cut_replies, rivals)
        known = {s.reply.prompt.row_id: s.reward for s in scored if isinstance(s.reward, float)}
        names = list(dict.fromkeys(name for one in scored for name in one.parts))
        parts = {name: fmean(one.parts[name] for one in scored if name in one.parts) for name in names}
        shown = [
            Sample(
                one.reply.prompt.row_id,
                one.reply.prompt.messages[-1].content,
                one.reply.text,
                one.reward if isinstance(one.reward, float) else None,
                one.reply.cut,
            )
            for one in scored[:SHOWN_SAMPLES]
        ]
        measured = Measured(
            step=progress.step,
            rewards=known,
            parts=parts,
            missing=len(scored) - len(known),
            cut=sum(reply.cut for reply in replies),
            tokens=sum(len(reply.ids_T) for reply in replies),
            samples=shown,
            replies=before if progress.step == 0 else {},
        )
        self.sample_log.write(**asdict(measured))
        if not known:
            if progress.step:  # before the first step that step itself will tell
                first = next(one.reward for one in scored if isinstance(one.reward, Missing))
                warnings.warn(f"no reply to a held-out prompt has a score; the first: {first.reason}", stacklevel=2)
            return
        reward = fmean(known.values())
        metrics = {
            "reward": reward,
            "length": measured.tokens / len(replies),
            "replies/cut": measured.cut / len(replies),
        }
        self._record(
            HeldOutRecord(
                step=progress.step,
                loss=-reward,
                supervised_tokens=measured.tokens,
                rows=len(replies),
                seconds=progress.seconds,
                metrics=metrics | {f"reward/{name}": value for name, value in parts.items()},
            )
        )

    def _said_first(self, replies: Sequence[Reply], step: int) -> Mapping[str, str]:
        """What the held-out prompts were answered before training, by row: one reply has nothing else to be compared with."""
        if step == 0:
            return {reply.prompt.row_id: reply.text for reply in replies}
        return next((one.replies for one in read_measured(self.out.file(SAMPLES_FILE)) if one.step == 0), {})

    # ---- the end ----

    def save(self, progress: Progress) -> float:
        """Write a checkpoint; returns the seconds it took."""
        weights, state = dict(self.trainee.trained), optimizer_tensors(self.optimizer, self.names)
        if self.critic is not None:
            weights |= self.critic.weights
            state |= optimizer_tensors(self.critic.optimizer, self.names)
        seconds = self.checkpoints.save(progress, weights, state) if self.peers.leads else 0.0
        self.sampler.checkpointed()
        return seconds

    def finish(self, progress: Progress) -> dict[str, Any]:
        """Write the weights in their ecosystem's format and return the result numbers; that is for rank 0 to do."""
        self.sampler.close()
        if not self.peers.leads:
            return {}
        adapted = isinstance(self.settings.adapter, LoraAdapter)
        companions = self.inputs.companions or Companions(self.inputs.model_folder)
        write_weights(self.trainee.model, adapted, companions, self.out.file("adapter" if adapted else "model"))
        peak = self.gauge.peak
        parts = {} if self.critic is None else {"critic": self.critic.nbytes}
        record_measured(self.out, self.settings, self.trainee.model, self.optimizer, peak - self.gauge.idle, parts)
        steps = [r for r in self.out.metrics() if r["split"] == "train"]
        last = steps[-max(1, len(steps) // 10) :]
        measured = read_measured(self.out.file(SAMPLES_FILE))
        rows = [row for row in measured[0].rewards if row in measured[-1].rewards] if measured else []
        ends = [[one.rewards[row] for row in rows] for one in (measured[0], measured[-1])] if rows else []
        result = OnlineResult(
            steps=progress.step,
            updates=progress.step * self.settings.updates,
            replies=sum(r["replies"] for r in steps),
            tokens=progress.supervised_tokens,
            missing=sum(r["replies/missing"] for r in steps),
            cut=round(sum(r["replies/cut"] * r["replies"] for r in steps)),
            first_reward=steps[0]["reward"],
            last_reward=fmean(r["reward"] for r in last),
            held_out_rows=len(rows) or None,
            held_out_before=fmean(ends[0]) if ends else None,
            held_out_after=fmean(ends[1]) if ends else None,
            held_out_difference=compare(*ends).interval if ends else None,
            kl=steps[-1].get("kl"),
            largest_gap=max(r["sampler/k3"] for r in steps),
            tokens_per_second=median(r["tokens_per_second"] for r in steps),
            training_seconds=progress.seconds,
            sampling_seconds=sum(r["seconds/sampling"] for r in steps),
            learning_seconds=sum(r["seconds/learning"] for r in steps),
            trainable_parameters=sum(p.numel() for p in self.trainee.trained.values()),
            total_parameters=quantise.number_of_parameters(self.trainee.model),
            models_in_memory=1 + self.scorer.second_models,
            roles=tuple(self._roles()),
            peak_memory_bytes=peak,
            device=str(self.trainee.device),
            dtype=hardware.precision(self.trainee.compute_dtype, self.trainee.device),
        )
        return asdict(result)

    def _roles(self) -> Iterator[str]:
        """What the weights in memory are used as."""
        yield "policy"
        if self._needs_reference:
            yield "reference"
        if self.critic is not None:
            yield "critic"
        yield from ("reward model" for one in self.settings.scores if isinstance(one, RewardModelScore))

    def _record(self, record: Record) -> None:
        line = line_of(record)
        self.log.write(**line)
        self.observer(line)


def _kl(policy: Sequence[Logps], reference: Sequence[Logps]) -> float:
    """k3, the mean over all tokens, in nats."""
    pairs = [(a, b) for own, other in zip(policy, reference, strict=True) for a, b in zip(own, other, strict=True)]
    ratio = np.concatenate([b.astype(np.float64) - a for a, b in pairs])
    return float((np.expm1(ratio) - ratio).mean())


def _score_metrics(scored: Sequence[Scored], formed: Formed) -> dict[str, float]:
    """What is said of the replies of a step."""
    rewards = [one.reward for one in scored if isinstance(one.reward, float)]
    replies = [one.reply for one in scored]
    found = {
        "reward": fmean(rewards),
        "reward/deviation": pstdev(rewards),
        "length": fmean(len(reply.ids_T) for reply in replies),
        "replies": len(replies),
        "replies/missing": len(replies) - len(rewards),
        "replies/cut": fmean(reply.cut for reply in replies),
        "groups/equal": formed.equal_groups / formed.groups if formed.groups else 1.0,
    }
    for name in dict.fromkeys(name for one in scored for name in one.parts):
        found[f"reward/{name}"] = fmean(one.parts[name] for one in scored if name in one.parts)
    for name in dict.fromkeys(name for one in scored for name in one.besides):
        found[name] = fmean(one.besides[name] for one in scored if name in one.besides)
    variety = distinct_n([reply.text for reply in replies], 2)
    if variety is not None:
        found["distinct_2"] = variety
    if formed.dropped_pairs:
        found["pairs/dropped"] = formed.dropped_pairs
    return found


def _update_metrics(learned: Learned) -> dict[str, float]:
    """Means over the updates of a step."""
    found: dict[str, list[float]] = {}
    for result in learned.results:
        for name, value in result.metrics.items():
            if math.isfinite(value):
                found.setdefault(name, []).append(value)
    means = {name: fmean(values) for name, values in found.items()} | dict(learned.values)
    if learned.results and "ratio/kl" in learned.results[0].metrics:
        means["ratio/first"] = learned.results[0].metrics["ratio/kl"]
    return means if learned.kl is None else means | {"kl": learned.kl}


def _value_metrics(parts: Sequence[Sequence[Any]], results: Sequence[StepResult]) -> dict[str, float]:
    """How well the value head foresaw the returns of a step, and what its updates gave."""
    groups = [unit for part in parts for unit in part if isinstance(unit, Group) and unit.values is not None]
    if not groups or not results:
        return {}
    values_S, returns_S = (
        np.concatenate([x for group in groups for x in (getattr(group, name) or ())]) for name in ("values", "returns")
    )
    return {
        "value/explained_variance": explained_variance(torch.from_numpy(values_S), torch.from_numpy(returns_S)),
        "value/loss": fmean(result.loss for result in results),
        "value/grad_norm": fmean(result.grad_norm for result in results),
        "value/clip_fraction": fmean(result.metrics.get("value/clip_fraction", 0.0) for result in results),
    }
