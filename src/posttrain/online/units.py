"""From scored replies to what a training step computes: groups with advantages, or pairs with labels.

A unit is what is packed together: the replies of a prompt, which share its computation. A task (`posttrain.train.tasks.Task`) turns units
into the arguments of the method's loss; the step itself is that of every other training.

Shapes: R replies, S supervised tokens, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.collate import Batch
from posttrain.model.hardware import to_device
from posttrain.model.score import batch_logps
from posttrain.objectives.base import Metric
from posttrain.objectives.online_dpo import OnlineDpo, wrong_label_shares
from posttrain.objectives.policy_gradient import (
    PolicyGradient,
    Ppo,
    ReplyLogps,
    StepTotals,
    advantages,
    gae,
    kl_estimate,
    token_rewards,
    whiten,
)
from posttrain.online.rollout import Reply, Scored, draw_seed
from posttrain.table import grouped
from posttrain.train.tasks import LossInputs, StepContext, Task, sides_of, sums_of
from posttrain.types import Tokens

Logps = tuple[NDArray[np.float32], ...]
"""Log-probabilities of the supervised tokens of some sequences, each [S]."""


@dataclass(frozen=True, eq=False)
class Group:
    """The scored replies to a prompt."""

    row_id: str
    sequences: tuple[Tokens, ...]
    rewards: tuple[float, ...]
    old: Logps | None = None
    """When they were sampled; None: those of the step itself, which is the first and only one on these replies."""
    reference: Logps | None = None
    advantages: tuple[float, ...] = ()
    """Of every reply; empty where tokens have their own."""
    token_advantages: Logps | None = None
    """Of every token of every reply, where a value head says what was to be expected."""
    values: Logps | None = None
    """What it says before every token, when the replies were sampled."""
    returns: Logps | None = None
    """What it should have said."""

    @property
    def teaches(self) -> bool:
        """Whether any of its advantages is other than 0."""
        return self.token_advantages is not None or any(self.advantages)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two replies to a prompt, the higher score first."""

    row_id: str
    sequences: tuple[Tokens, Tokens]
    wrong: float
    """The weight of "the second is preferred" in its loss."""
    reference: Logps | None = None


class Formed(NamedTuple):
    """What the scored replies of a step became."""

    units: list[Any]
    """Groups, or pairs."""
    equal_groups: int
    """Of all groups with at least two scores: those that say nothing."""
    groups: int
    dropped_pairs: int = 0
    """Prompts without a pair: fewer than two scores, equal scores, or equal replies."""


# ---- policy gradients ----------------------------------------------------------------------------------------------


def form_groups(scored: Sequence[Scored]) -> Formed:
    """The replies that have a score, by prompt, in their order."""
    by_prompt = grouped((one.reply.prompt.row_id, one) for one in scored if isinstance(one.reward, float))
    units = [
        Group(row, tuple(one.reply.tokens for one in own), tuple(float(one.reward) for one in own))  # type: ignore[arg-type]
        for row, own in by_prompt.items()
    ]
    several = [unit for unit in units if len(unit.rewards) > 1]
    return Formed(units, sum(len(set(unit.rewards)) == 1 for unit in several), len(several))


def with_advantages(method: PolicyGradient, groups: Sequence[Group]) -> list[Group]:
    """The groups with the advantages of their replies; the KL is in the rewards where the method says so."""
    assert method.advantage != "gae", "that is of tokens"
    rewards = torch.tensor([reward for group in groups for reward in group.rewards], dtype=torch.float64)
    if method.beta and method.kl_in == "reward":
        rewards = rewards - method.beta * torch.tensor(_kl_of_replies(method, groups), dtype=torch.float64)
    of_R = torch.tensor([place for place, group in enumerate(groups) for _ in group.rewards])
    found = iter(advantages(method.advantage, rewards, of_R).tolist())
    return [replace(group, advantages=tuple(next(found) for _ in group.rewards)) for group in groups]


def with_gae(method: Ppo, groups: Sequence[Group]) -> list[Group]:
    """The groups with advantages and returns of every token; whitened over all of them."""
    counts_R = torch.tensor([tokens.supervised for group in groups for tokens in group.sequences])
    rewards_R = torch.tensor([reward for group in groups for reward in group.rewards], dtype=torch.float64)
    values_S = _wide([group.values for group in groups])
    kl_S = None
    if method.beta and method.kl_in == "reward":
        kl_S = kl_estimate(method.kl, *(_wide([getattr(g, name) for g in groups]) for name in ("old", "reference")))
    rewards_S = token_rewards(rewards_R, kl_S, method.beta, counts_R)
    advantages_S = gae(rewards_S, values_S, counts_R, method.discount, method.trace)
    returns_S = advantages_S + values_S
    advantages_S = whiten(advantages_S) if method.whiten_advantages else advantages_S
    ends_R = np.cumsum(counts_R.numpy())[:-1]
    parts = [iter(np.split(x_S.numpy().astype(np.float32), ends_R)) for x_S in (advantages_S, returns_S)]
    found = []
    for group in groups:
        own, returns = (tuple(next(part) for _ in group.rewards) for part in parts)
        found.append(replace(group, token_advantages=own, returns=returns))
    return found


def _wide(parts: Sequence[Logps | None]) -> Tensor:
    """Numbers of all tokens one after another, in float64 [S]."""
    found = joined(parts, torch.device("cpu"))
    assert found is not None, "computed before the advantages"
    return found.double()


def _kl_of_replies(method: PolicyGradient, groups: Sequence[Group]) -> list[float]:
    """The KL of every reply, summed over its tokens."""
    found = []
    for group in groups:
        assert group.old is not None, "computed before the advantages"
        assert group.reference is not None, "a KL needs a reference"
        for old_S, reference_S in zip(group.old, group.reference, strict=True):
            pair = (torch.from_numpy(x.astype(np.float64)) for x in (old_S, reference_S))
            found.append(float(kl_estimate(method.kl, *pair).sum()))
    return found


def totals_of(groups: Sequence[Group], longest: int) -> StepTotals:
    """What the loss of a step over these groups is divided by; those without signal count."""
    tokens = sum(tokens.supervised for group in groups for tokens in group.sequences)
    return StepTotals(float(sum(len(group.rewards) for group in groups)), float(tokens), float(longest))


def group_task(method: PolicyGradient, totals: StepTotals, temperature: float) -> Task:
    """``loss(logps, advantages_S, totals)``."""

    def loss_inputs(units: Sequence[Group], batch: Batch, logps_S: Tensor, context: StepContext) -> LossInputs:
        device = logps_S.device
        counts_R = to_device(batch.counts_B, device)
        old_S = joined([unit.old for unit in units], device)
        reference_S = joined([unit.reference for unit in units], device) if method.beta else None
        advantages_S = joined([unit.token_advantages for unit in units], device)
        if advantages_S is None:
            each = np.array([a for unit in units for a in unit.advantages], np.float32)
            advantages_S = to_device(np.repeat(each, batch.counts_B), device)
        old_S = logps_S.detach() if old_S is None else old_S
        logps = ReplyLogps(logps_S, old_S, reference_S, counts_R)
        return LossInputs((logps, advantages_S, totals), _surprise(logps_S))

    return Task(method, lambda unit: unit.sequences, loss_inputs, forward=partial(_at, temperature))


# ---- pairs ---------------------------------------------------------------------------------------------------------


def form_pairs(method: OnlineDpo, scored: Sequence[Scored], seed: int, step: int) -> Formed:
    """One pair for each prompt whose replies differ, and in their scores."""
    units: list[Any] = []
    equal = several = dropped = 0
    prompts = list(dict.fromkeys(one.reply.prompt.row_id for one in scored))
    by_prompt = grouped((one.reply.prompt.row_id, one) for one in scored if isinstance(one.reward, float))
    for row in prompts:
        own = by_prompt.get(row, [])
        rewards = [float(one.reward) for one in own]  # type: ignore[arg-type]
        several += len(own) > 1
        equal += len(own) > 1 and len(set(rewards)) == 1
        places = range(min(2, len(own))) if method.pairs == "first_two" else range(len(own))
        ordered = sorted(places, key=lambda place: (-rewards[place], place))
        best, worst = (ordered[0], ordered[-1]) if ordered else (0, 0)
        if not ordered or rewards[best] == rewards[worst] or _same(own[best].reply, own[worst].reply):
            dropped += 1
            continue
        margin = torch.tensor([rewards[best] - rewards[worst]], dtype=torch.float64)
        drawn = torch.rand(
            1, generator=torch.Generator().manual_seed(draw_seed(seed, step, row, -1)), dtype=torch.float64
        )
        wrong = float(wrong_label_shares(margin, method.labels, method.label_temperature, drawn))
        units.append(Pair(row, (own[best].reply.tokens, own[worst].reply.tokens), wrong))
    return Formed(units, equal, several, dropped)


def pair_task(method: OnlineDpo, pairs: int, temperature: float) -> Task:
    """``loss(policy, reference, wrong_P, step_pairs)``."""

    def loss_inputs(units: Sequence[Pair], batch: Batch, logps_S: Tensor, context: StepContext) -> LossInputs:
        reference_S = joined([unit.reference for unit in units], logps_S.device)
        assert reference_S is not None, "DPO needs a reference"
        policy, reference = (sides_of(sums_of(batch, x), len(units)) for x in (logps_S, reference_S))
        wrong_P = to_device(np.array([unit.wrong for unit in units], np.float32), logps_S.device)
        return LossInputs((policy, reference, wrong_P, float(pairs)), _surprise(logps_S))

    return Task(method, lambda unit: unit.sequences, loss_inputs, forward=partial(_at, temperature))


# ---- both ----------------------------------------------------------------------------------------------------------


def parts_of(units: Sequence[Any], number: int) -> Iterator[list[Any]]:
    """The units in so many minibatches of nearly one size, in their order; empty ones are left out."""
    for places in np.array_split(np.arange(len(units)), number):
        if len(places):
            yield [units[int(place)] for place in places]


def _at(temperature: float, model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> Tensor:
    return batch_logps(model, batch, compute_dtype, temperature).logps_S


def joined(parts: Sequence[Logps | None], device: torch.device) -> Tensor | None:
    """The log-probabilities of all sequences one after another [S]; None where a unit has none."""
    known = [own for own in parts if own is not None]
    if len(known) < len(parts):
        return None
    return to_device(np.concatenate([logps_S for own in known for logps_S in own]), device)


def _surprise(logps_S: Tensor) -> dict[str, Metric]:
    """``entropy``: minus the mean log-probability of the tokens that were sampled, which has the entropy as its mean."""
    return {"entropy": Metric(-logps_S.detach().sum(), float(len(logps_S)))}


def _same(a: Reply, b: Reply) -> bool:
    return np.array_equal(a.ids_T, b.ids_T)
