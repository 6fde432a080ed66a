"""What is trained on, as the loop sees it: units of sequences, and how the outputs of a micro-batch become what a loss receives.

A unit is what a step counts: a conversation, a pair, a labelled reply. A task turns a unit into the sequences that are
computed, and what the model says of them into the arguments of the objective's ``loss``. The loop is the same for all of them.

Shapes: S supervised tokens, B sequences, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from posttrain.model.hardware import to_device
from posttrain.model.score import batch_logps, batch_rewards
from posttrain.objectives.base import BaseObjective, Metric, PairLogps, SequenceLogps
from posttrain.train.reference import NO_REFERENCE, ReferenceLogps
from posttrain.types import Tokens

Unit = Tokens | PairTokens | FeedbackTokens


class StepContext(NamedTuple):
    """What all micro-batches of a step have in common."""

    divisor: float
    """What the loss is divided by: the weight of all supervised tokens, or the number of units."""
    reference_point: float = 0.0
    """Of single labelled replies: how far the policy has drifted in general."""


class LossInputs(NamedTuple):
    """What the objective's ``loss`` receives of a micro-batch, and what is measured whatever the objective."""

    arguments: tuple[Any, ...]
    metrics: Mapping[str, Metric] = {}


def _logps(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> Tensor:
    return batch_logps(model, batch, compute_dtype).logps_S


def _count(units: Sequence[Any], beside_logps: Sequence[NDArray[np.float32]]) -> StepContext:
    return StepContext(len(units))


@dataclass(frozen=True)
class Task:
    """One objective over its units."""

    objective: BaseObjective
    sequences: Callable[[Any], tuple[Tokens, ...]]
    """The sequences of a unit, in the order in which `loss_inputs` expects their outputs."""
    loss_inputs: Callable[[Sequence[Any], Batch, Tensor, StepContext], LossInputs]
    """(units, batch, outputs_S, context) -> what the loss of a micro-batch is made of."""
    context: Callable[[Sequence[Any], Sequence[NDArray[np.float32]]], StepContext] = _count
    """What the micro-batches of a step over some units share, given the log-probabilities of `beside`."""
    beside: Callable[[Sequence[Any]], list[Tokens]] = lambda units: []
    """Sequences whose log-probabilities a step over some units needs first, without gradient."""
    forward: Callable[[nn.Module, Batch, torch.dtype], Tensor] = _logps
    """The outputs [S] of a micro-batch, with gradient where the model trains: log-probabilities, or rewards."""


def make_task(
    objective: BaseObjective,
    reference: ReferenceLogps = NO_REFERENCE,
    pad_id: int | None = None,
    others: Sequence[Any] = (),
) -> Task:
    """The task of an objective.

    ``reference``: empty where the objective needs none. ``pad_id``: see `scored_at_end`. ``others``: all training units, from which a
    step of a single row borrows what it compares with (`mismatched`).
    """
    match objective.row_kind:
        case "conversations":
            return _conversations(objective)
        case "feedback":
            return _feedback(objective, reference, others)
        case _ if objective.head == "score":
            return _rewards(objective, pad_id)
        case _:
            return _pairs(objective, reference)


def _conversations(objective: BaseObjective) -> Task:
    """``loss(logps_S, weights_S, step_weight)``."""

    def context(units: Sequence[Tokens], beside_logps: Sequence[NDArray[np.float32]]) -> StepContext:
        return StepContext(float(sum(unit.weights_T.sum(dtype=np.float64) for unit in units)))

    def loss_inputs(units: Sequence[Tokens], batch: Batch, logps_S: Tensor, context: StepContext) -> LossInputs:
        weights_S = to_device(batch.target_weights_S, logps_S.device)
        return LossInputs((logps_S, weights_S, context.divisor))

    return Task(objective, sequences_of, loss_inputs, context)


def _pairs(objective: BaseObjective, reference: ReferenceLogps) -> Task:
    """``loss(policy, reference, step_pairs)``."""

    def sequences(unit: PairTokens) -> tuple[Tokens, ...]:
        sides = sequences_of(unit)
        return (*sides, with_prompt_supervised(unit.chosen)) if objective.supervises_prompt else sides

    def loss_inputs(units: Sequence[PairTokens], batch: Batch, logps_S: Tensor, context: StepContext) -> LossInputs:
        policy, lengths = sides_of(sums_of(batch, logps_S), len(units)), _pair_lengths(units)
        if not objective.needs_reference:
            return LossInputs((policy, None, int(context.divisor)), lengths)
        reference_S = to_device(reference.of([s for unit in units for s in sequences(unit)]), logps_S.device)
        sides = sides_of(sums_of(batch, reference_S), len(units))
        return LossInputs((policy, sides, int(context.divisor)), lengths | _divergence(logps_S, reference_S))

    return Task(objective, sequences, loss_inputs)


def _feedback(objective: BaseObjective, reference: ReferenceLogps, others: Sequence[FeedbackTokens]) -> Task:
    """``loss(policy, reference, desirable_B, reference_point, step_units)``."""

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
        z = objective.reference_point(SequenceLogps(policy, counts), SequenceLogps(frozen, counts))
        return StepContext(len(units), float(z))

    def loss_inputs(units: Sequence[FeedbackTokens], batch: Batch, logps_S: Tensor, context: StepContext) -> LossInputs:
        reference_S = to_device(reference.of([unit.tokens for unit in units]), logps_S.device)
        desirable_B = to_device(np.array([unit.desirable for unit in units]), logps_S.device)
        z = logps_S.new_full((), context.reference_point)
        arguments = (sums_of(batch, logps_S), sums_of(batch, reference_S), desirable_B, z, int(context.divisor))
        lengths = _reply_lengths([unit.tokens for unit in units if unit.desirable], "chosen")
        lengths |= _reply_lengths([unit.tokens for unit in units if not unit.desirable], "rejected")
        return LossInputs(arguments, lengths)

    return Task(objective, sequences_of, loss_inputs, context, beside=beside)


def _rewards(objective: BaseObjective, pad_id: int | None) -> Task:
    """``loss(chosen_P, rejected_P, margins_P, step_pairs)``."""

    def sequences(unit: PairTokens) -> tuple[Tokens, ...]:
        return scored_at_end(unit.chosen, pad_id), scored_at_end(unit.rejected, pad_id)

    def loss_inputs(units: Sequence[PairTokens], batch: Batch, rewards_B: Tensor, context: StepContext) -> LossInputs:
        margins_P = to_device(np.array([unit.margin for unit in units], np.float32), rewards_B.device)
        return LossInputs((rewards_B[0::2], rewards_B[1::2], margins_P, int(context.divisor)), _pair_lengths(units))

    return Task(objective, sequences, loss_inputs, forward=batch_rewards)


# ---- sums and counts -------------------------------------------------------------------------------------------------


def sums_of(batch: Batch, logps_S: Tensor) -> SequenceLogps:
    """Sums and counts of every sequence of a batch."""
    counts_B = to_device(batch.counts_B, logps_S.device)
    owners_S = torch.repeat_interleave(counts_B, output_size=len(logps_S))
    sums_B = logps_S.new_zeros(len(counts_B)).index_add(0, owners_S, logps_S)
    return SequenceLogps(sums_B, counts_B.to(logps_S.dtype))


def sides_of(logps: SequenceLogps, pairs: int) -> PairLogps:
    """Sequences in the order chosen, rejected (and, where there are three a pair, the whole conversation)."""
    each = len(logps.sums_B) // pairs
    return PairLogps(*(SequenceLogps(logps.sums_B[k::each], logps.counts_B[k::each]) for k in range(each)))


def _pair_lengths(units: Sequence[PairTokens]) -> dict[str, Metric]:
    chosen, rejected = ([getattr(unit, side) for unit in units] for side in ("chosen", "rejected"))
    return _reply_lengths(chosen, "chosen") | _reply_lengths(rejected, "rejected")


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
