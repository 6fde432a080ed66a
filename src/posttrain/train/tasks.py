"""What is trained on, as the loop sees it: units of sequences, and how the outputs of a micro-batch become its share of the loss.

A unit is what a step counts: a conversation, a pair, a labelled reply. A task turns a unit into the sequences that are
computed, and what the model says of them into an objective's arguments. The loop is the same for all of them.

Shapes: S supervised tokens, B sequences, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.collate import Batch
from posttrain.encode.preferences import (
    FeedbackTokens,
    PairTokens,
    mismatched,
    scored_at_end,
    sequences_of,
    with_prompt_supervised,
)
from posttrain.model.reward import batch_rewards
from posttrain.model.score import batch_logps
from posttrain.objectives import KtoObjective, Objective, PairObjective, RewardObjective, SftObjective
from posttrain.objectives.base import Loss, Metric, PairLogps, SequenceLogps
from posttrain.objectives.kto import reference_point
from posttrain.objectives.sft import sft_loss
from posttrain.train.reference import NO_REFERENCE, ReferenceLogps
from posttrain.types import Tokens

Unit = Tokens | PairTokens | FeedbackTokens


class StepContext(NamedTuple):
    """What all micro-batches of a step have in common."""

    divisor: float
    """What the loss is divided by: the weight of all supervised tokens, or the number of units."""
    reference_point: float = 0.0
    """KTO's z."""


def _logps(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> Tensor:
    return batch_logps(model, batch, compute_dtype).logps_S


def _count(units: Sequence[Any], beside_logps: Sequence[NDArray[np.float32]]) -> StepContext:
    return StepContext(len(units))


@dataclass(frozen=True)
class Task:
    """One objective over its units."""

    sequences: Callable[[Any], tuple[Tokens, ...]]
    """The sequences of a unit, in the order in which `loss` expects their outputs."""
    loss: Callable[[Sequence[Any], Batch, Tensor, StepContext], Loss]
    """(units, batch, outputs_S, context) -> the micro-batch's share of the step's loss, and its metrics."""
    context: Callable[[Sequence[Any], Sequence[NDArray[np.float32]]], StepContext] = _count
    """What the micro-batches of a step over some units share, given the log-probabilities of `beside`."""
    beside: Callable[[Sequence[Any]], list[Tokens]] = lambda units: []
    """Sequences whose log-probabilities a step over some units needs first, without gradient."""
    forward: Callable[[nn.Module, Batch, torch.dtype], Tensor] = _logps
    """The outputs [S] of a micro-batch, with gradient where the model trains: log-probabilities, or rewards."""


def make_task(
    objective: Objective,
    reference: ReferenceLogps = NO_REFERENCE,
    pad_id: int | None = None,
    others: Sequence[Any] = (),
) -> Task:
    """The task of an objective.

    ``reference``: empty where the objective needs none. ``pad_id``: see `scored_at_end`. ``others``: all training units, from which a
    step of a single row borrows what it compares with (`mismatched`).
    """
    match objective:
        case SftObjective():
            return _conversations()
        case KtoObjective():
            return _feedback(objective, reference, others)
        case RewardObjective():
            return _rewards(objective, pad_id)
        case _:
            return _pairs(objective, reference)


def _conversations() -> Task:
    def context(units: Sequence[Tokens], beside_logps: Sequence[NDArray[np.float32]]) -> StepContext:
        return StepContext(float(sum(unit.weights_T.sum(dtype=np.float64) for unit in units)))

    def loss(units: Sequence[Tokens], batch: Batch, logps_S: Tensor, context: StepContext) -> Loss:
        weights_S = torch.from_numpy(batch.target_weights_S).to(logps_S.device)
        return Loss(sft_loss(logps_S, weights_S, context.divisor))

    return Task(sequences_of, loss, context)


def _pairs(objective: PairObjective, reference: ReferenceLogps) -> Task:
    def sequences(unit: PairTokens) -> tuple[Tokens, ...]:
        sides = sequences_of(unit)
        return (*sides, with_prompt_supervised(unit.chosen)) if objective.supervises_prompt else sides

    def loss(units: Sequence[PairTokens], batch: Batch, logps_S: Tensor, context: StepContext) -> Loss:
        policy, pairs = _sides(_sums(batch, logps_S), len(units)), int(context.divisor)
        if objective.needs_reference:
            reference_S = reference.of([s for unit in units for s in sequences(unit)]).to(logps_S.device)
            found = objective.loss(policy, _sides(_sums(batch, reference_S), len(units)), pairs)
            extra = _divergence(logps_S, reference_S)
        else:
            found, extra = objective.loss(policy, None, pairs), {}
        lengths = _reply_lengths([unit.chosen for unit in units], "chosen")
        lengths |= _reply_lengths([unit.rejected for unit in units], "rejected")
        return Loss(found.share, {**found.metrics, **lengths, **extra})

    return Task(sequences, loss)


def _feedback(objective: KtoObjective, reference: ReferenceLogps, others: Sequence[FeedbackTokens]) -> Task:
    def beside(units: Sequence[FeedbackTokens]) -> list[Tokens]:
        return mismatched(units, others)

    def context(units: Sequence[FeedbackTokens], beside_logps: Sequence[NDArray[np.float32]]) -> StepContext:
        sequences = beside(units)
        alone = len({unit.row_id for unit in units}) == 1
        if not sequences or (alone and sequences[0] not in reference):
            return StepContext(len(units))  # nothing tells of a drift: z is 0, where it starts
        counts = torch.tensor([float(len(logps)) for logps in beside_logps])
        policy = torch.tensor([float(logps.sum(dtype=np.float64)) for logps in beside_logps])
        frozen = torch.tensor([float(reference[s].sum(dtype=np.float64)) for s in sequences])
        z = reference_point(SequenceLogps(policy, counts), SequenceLogps(frozen, counts))
        return StepContext(len(units), float(z))

    def loss(units: Sequence[FeedbackTokens], batch: Batch, logps_S: Tensor, context: StepContext) -> Loss:
        reference_S = reference.of([unit.tokens for unit in units]).to(logps_S.device)
        desirable_B = torch.tensor([unit.desirable for unit in units], device=logps_S.device)
        z = logps_S.new_tensor(context.reference_point)
        found = objective.loss(_sums(batch, logps_S), _sums(batch, reference_S), desirable_B, z, int(context.divisor))
        lengths = _reply_lengths([unit.tokens for unit in units if unit.desirable], "chosen")
        lengths |= _reply_lengths([unit.tokens for unit in units if not unit.desirable], "rejected")
        return Loss(found.share, {**found.metrics, **lengths})

    return Task(sequences_of, loss, context, beside=beside)


def _rewards(objective: RewardObjective, pad_id: int | None) -> Task:
    def sequences(unit: PairTokens) -> tuple[Tokens, ...]:
        return scored_at_end(unit.chosen, pad_id), scored_at_end(unit.rejected, pad_id)

    def loss(units: Sequence[PairTokens], batch: Batch, rewards_B: Tensor, context: StepContext) -> Loss:
        margins_P = torch.tensor([unit.margin for unit in units], device=rewards_B.device, dtype=rewards_B.dtype)
        found = objective.loss(rewards_B[0::2], rewards_B[1::2], margins_P, int(context.divisor))
        lengths = _reply_lengths([unit.chosen for unit in units], "chosen")
        lengths |= _reply_lengths([unit.rejected for unit in units], "rejected")
        return Loss(found.share, {**found.metrics, **lengths})

    return Task(sequences, loss, forward=batch_rewards)


# ---- sums and counts -------------------------------------------------------------------------------------------------


def _sums(batch: Batch, logps_S: Tensor) -> SequenceLogps:
    """Sums and counts of every sequence of a batch."""
    counts_B = torch.from_numpy(batch.counts_B).to(logps_S.device)
    owners_S = torch.repeat_interleave(counts_B)
    sums_B = logps_S.new_zeros(len(counts_B)).index_add(0, owners_S, logps_S)
    return SequenceLogps(sums_B, counts_B.to(logps_S.dtype))


def _sides(logps: SequenceLogps, pairs: int) -> PairLogps:
    """Sequences in the order chosen, rejected (and, where there are three a pair, the whole conversation)."""
    each = len(logps.sums_B) // pairs
    return PairLogps(*(SequenceLogps(logps.sums_B[k::each], logps.counts_B[k::each]) for k in range(each)))


def _reply_lengths(replies: Sequence[Tokens], side: str) -> dict[str, Metric]:
    """Mean tokens of the replies, their stop included."""
    if not replies:
        return {}
    return {f"lengths/{side}": Metric(torch.tensor(float(sum(t.supervised for t in replies))), len(replies))}


def _divergence(logps_S: Tensor, reference_S: Tensor) -> dict[str, Metric]:
    """``kl``: half the mean square of the log-ratio of a reply's token, the second-order estimate of KL(policy || reference).

    It is never negative, and right to second order also where the replies were not sampled from the policy (Schulman
    2020, "Approximating KL divergence", k2).
    """
    ratio_S = logps_S.detach() - reference_S
    return {"kl": Metric(0.5 * ratio_S.square().sum(), len(ratio_S))}
