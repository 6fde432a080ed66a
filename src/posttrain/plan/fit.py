"""What fits on a device: the largest micro-batch and sequence, how long it takes, and which setting to change first where nothing does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.plan.devices import Device
from posttrain.plan.memory import Layout, MemoryPlan, Setup, filled, memory_plan

PEAK_SHARE = 0.4
"""Of the rate of a matrix product, what a training step reaches: 43% on a CPU (docs/log.md), 35 to 45% usual on GPUs. An estimate."""
CHECKPOINTED = 4 / 3
"""Time of a step that computes its forward pass twice."""
DEQUANTISING = 1.15
"""Time of a step whose weights are turned from 4 bit twice: 7% at 512 tokens and 28% at 128, measured on a CPU."""
GRANULE = 64
"""Micro-batches are tried in multiples of so many tokens."""
MOST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is known of the rows that are trained on; lengths in tokens that go through the model, of one unit (a pair counts once)."""

    count: int | None = None
    """Units of an epoch; None: not known."""
    mean: float
    longest: int
    usual: int
    """The length that a token's sequence typically has."""
    supervised_share: float = 0.6
    prompt_share: float = 0.0
    """Of pairs, or of replies to a prompt: the part of a sequence that all sides share."""
    replies: int | None = None
    """How many share it, where these are replies of the model's own; None: two."""
    measured: bool = False
    """Whether rows were counted; otherwise the longest that may come is assumed."""

    def layout(self, tokens: int) -> Layout:
        """A micro-batch of so many tokens, of usual sequences."""
        return filled(tokens, self.usual, self.supervised_share, round(self.prompt_share * self.usual), self.replies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What of a run decides its time."""

    rows: Rows
    batch_size: int
    micro_batch_tokens: int
    epochs: float = 1.0
    max_steps: int | None = None

    @property
    def tokens_at_once(self) -> int:
        """Of the largest micro-batch: the budget, the longest unit alone where it is longer, the whole batch where it is shorter."""
        whole = math.ceil(self.batch_size * (self.rows.mean if self.rows.measured else self.rows.longest))
        return max(self.rows.longest, min(self.micro_batch_tokens, whole))

    @property
    def total_tokens(self) -> float | None:
        """Of all steps; None where the rows are not known."""
        if self.rows.count is None:
            return None if self.max_steps is None else self.max_steps * self.batch_size * self.rows.mean
        units = self.epochs * self.rows.count
        return self.rows.mean * (units if self.max_steps is None else min(units, self.max_steps * self.batch_size))

    def micro_batches(self, tokens: int) -> int:
        """How many a step has at so many tokens each."""
        return max(1, math.ceil(self.batch_size * self.rows.mean / tokens))


@dataclass(frozen=True, slots=True)
class Change:
    """A setting to change, what that costs, and what the run takes with it and all changes before it."""

    setting: str
    cost: str
    bytes: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train the model on a device."""

    setup: Setup
    run: Run
    memory: MemoryPlan
    """At the run's own micro-batch."""
    fits: bool
    largest_tokens: int | None
    """The largest micro-batch; None: not even the longest unit fits."""
    largest_length: int | None
    """The longest sequence, alone in its micro-batch."""
    accumulation: int
    """Micro-batches that keep the effective batch, of the run's size where it fits, else of the largest."""
    tokens_per_second: float | None
    """An estimate; None where the machine's speed is not known."""
    changes: tuple[Change, ...] = ()

    @property
    def hours(self) -> float | None:
        """An estimate of the whole run."""
        total = self.run.total_tokens
        if total is None or self.tokens_per_second is None:
            return None
        return total / self.tokens_per_second / 3600


def plan_for(setup: Setup, run: Run, tokens: int | None = None) -> MemoryPlan:
    """The memory of a run, at its own micro-batch or at another one."""
    tokens = run.tokens_at_once if tokens is None else tokens
    return memory_plan(replace(setup, accumulates=run.micro_batches(tokens) > 1), run.rows.layout(tokens))


@lru_cache(maxsize=256)
def ways(setup: Setup, run: Run, device: Device) -> tuple[Way, ...]:
    """The run as it is set, and the other two of full, LoRA and QLoRA beside it; in this order."""
    lora = setup.adapter if isinstance(setup.adapter, LoraAdapter) else LoraAdapter()
    kinds = (
        replace(setup, adapter=FullWeights(), quantized=False),
        replace(setup, adapter=lora, quantized=False),
        replace(setup, adapter=lora, quantized=True),
    )
    adapted = setup.own_replies is not None and setup.own_replies.critic  # a critic is one more adapter
    return tuple(way(kind, run, device) for kind in kinds if kind.lora is not None or not adapted)


def way(setup: Setup, run: Run, device: Device) -> Way:
    """How a run goes on a device."""
    memory, room = plan_for(setup, run), device.memory
    tokens = run.tokens_at_once
    largest = largest_tokens(setup, run, room)
    fits = memory.peak.total <= room
    used = tokens if fits else largest or tokens
    positions = setup.shape.positions or MOST_TOKENS
    alone = replace(run.rows, prompt_share=0.0)
    longest = _largest(lambda n: plan_for(setup, replace(run, rows=replace(alone, usual=n)), n), room, 1, positions)
    return Way(
        setup,
        run,
        memory,
        fits,
        largest,
        longest,
        run.micro_batches(used),
        estimated_speed(setup, run.rows, device),
        () if fits else tuple(changes(setup, run, room)),
    )


def largest_tokens(setup: Setup, run: Run, room: float) -> int | None:
    """The largest micro-batch, in tokens, of a run that fits into so many bytes; None where the longest unit alone does not fit."""
    return _largest(lambda tokens: plan_for(setup, run, tokens), room, run.rows.longest, MOST_TOKENS)


def _largest(plan: Callable[[int], MemoryPlan], room: float, least: int, most: int) -> int | None:
    """The largest number of tokens whose plan fits, by bisection; a multiple of `GRANULE` above ``least``."""

    def fits(tokens: int) -> bool:
        return plan(tokens).peak.total <= room

    if not fits(least):
        return None
    low, high = least // GRANULE, max(least, most) // GRANULE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * GRANULE) else (low, middle - 1)
    return max(least, low * GRANULE)


# ---- what to change ------------------------------------------------------------------------------------------------


def changes(setup: Setup, run: Run, room: float) -> Iterator[Change]:
    """Yield the settings to change, the cheapest first, until the run fits; each with those before it."""
    steps: list[tuple[str, str, Setup, Run]] = []
    least = run.rows.longest

    def try_tokens(setup: Setup, run: Run, reason: str) -> tuple[Setup, Run]:
        found = largest_tokens(setup, run, room) or least
        if found < run.micro_batch_tokens:
            run = replace(run, micro_batch_tokens=found)
            steps.append((f"micro_batch_tokens: {found}", reason, setup, run))
        return setup, run

    setup, run = try_tokens(
        setup, run, "nothing in quality: the result is the same; small products are a little slower"
    )
    if not setup.checkpointing:
        setup = replace(setup, checkpointing=True)
        steps.append(("gradient_checkpointing: true", "about a quarter more time, nothing in quality", setup, run))
    if setup.lora is None:
        setup = replace(setup, adapter=LoraAdapter())
        cost = "an adapter in place of all weights: about as good on instructions, at ten times the learning rate"
        steps.append(("adapter: {name: lora}", cost, setup, run))
    if not setup.quantized:
        setup = replace(setup, quantized=True)
        cost = "some quality on small models, and 10 to 30% more time"
        steps.append(("adapter: {name: lora, quantize: nf4}", cost, setup, run))
    length = run.rows.longest if setup.own_replies is None else 0  # of replies it is no setting
    while length > 256 and plan_for(setup, run).peak.total > room:
        length //= 2
        rows = replace(run.rows, longest=length, usual=min(run.rows.usual, length), mean=min(run.rows.mean, length))
        run = replace(run, rows=rows, micro_batch_tokens=min(run.micro_batch_tokens, length))
    if 0 < length < least:
        steps.append((f"max_length: {length}", "longer rows are dropped", setup, run))
    for setting, cost, changed, so in steps:
        needed = plan_for(changed, so).peak.total
        yield Change(setting, cost, needed, needed <= room)
        if needed <= room:
            return
    yield Change("model", "a smaller one, or a device with more memory", needed, False)


# ---- time ----------------------------------------------------------------------------------------------------------


def flops_a_token(setup: Setup, rows: Rows) -> float:
    """Operations of the necessary matrix products a token, forward and backward, as ``model.forward.step_flops`` counts them."""
    shape, layers = setup.shape, len(setup.shape.layers)
    factor = 6.0 if setup.lora is None else 4.0
    head = 0.0 if setup.scores else factor * rows.supervised_share * shape.embedding
    return factor * shape.active + head + 12.0 * layers * shape.query * rows.usual / 2


def estimated_speed(setup: Setup, rows: Rows, device: Device) -> float | None:
    """Tokens a second, as an estimate: a usual share of the machine's rate of products."""
    if device.flops is None:
        return None
    slower = (CHECKPOINTED if setup.checkpointing else 1.0) * (DEQUANTISING if setup.quantized else 1.0)
    return PEAK_SHARE * device.flops / flops_a_token(setup, rows) / slower
