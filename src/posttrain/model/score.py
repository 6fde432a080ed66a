"""Forward passes of packed examples: log-probabilities with gradient for training, likelihoods without for scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.collate import Batch, collate, collate_shared
from posttrain.encode.packing import pack
from posttrain.model.forward import (
    causal_lm,
    computing_in,
    final_hidden,
    output_head,
    own_logps,
    path_of,
    rounds,
    score_head,
    through,
)
from posttrain.model.hardware import to_device
from posttrain.model.logprobs import token_logps
from posttrain.parallel.peers import Peers
from posttrain.types import Tokens


class TokenLogps(NamedTuple):
    """log p [S] of the supervised tokens of a packed batch, and their loss weights [S]."""

    logps_S: Tensor
    weights_S: Tensor


def lay_out(model: nn.Module, sequences: Sequence[Tokens]) -> Batch:
    """The batch in which a model computes these sequences: common prefixes once where that gives the same."""
    return collate_shared(sequences) if path_of(model).shares else collate(sequences)


def packed_length(model: nn.Module, sequences: Sequence[Tokens], computed: int | None = None) -> int:
    """What sequences that stand together count where they are packed: one alone all its tokens, several those that are computed.

    ``computed``: these, where they have been laid out already.
    """
    if len(sequences) == 1:
        return len(sequences[0])
    return len(lay_out(model, sequences).ids_T) if computed is None else computed


def batch_logps(model: nn.Module, batch: Batch, compute_dtype: torch.dtype, temperature: float = 1.0) -> TokenLogps:
    """Log-probabilities of every supervised token of a packed batch, with gradient where the model trains.

    ``compute_dtype``: the type of matrix products; where the weights are fp32 and this is bf16, autocast is used. ``temperature``:
    what the logits are divided by.
    """
    device = causal_lm(model).get_input_embeddings().weight.device
    ids_T, predict_S, targets_S = (to_device(a, device) for a in (batch.ids_T, batch.predict_S, batch.targets_S))

    def logps() -> Tensor:
        head = output_head(model)
        with computing_in(model, compute_dtype):
            if head is None:
                return own_logps(model, ids_T, batch.segments, predict_S, targets_S, temperature)
            hidden_SD = final_hidden(model, ids_T, batch.segments)[predict_S].to(compute_dtype)
            # (cap / t) tanh(scale z / cap) is cap tanh(scale z / cap) / t: both are divided
            cap, scale = head.form.cap, head.form.scale / temperature
            cap = None if cap is None else cap / temperature
            return token_logps(hidden_SD, head.weight_VD, targets_S, cap, head.bias_V, scale)

    logps_S = through(model, logps)
    return TokenLogps(logps_S, to_device(batch.target_weights_S, device))


def batch_rewards(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> Tensor:
    """The reward [B] of every sequence of a batch made of `scored_at_end` sequences, fp32, with gradient where it trains."""
    device = next(model.parameters()).device
    ids_T, scored_B = (to_device(a, device) for a in (batch.ids_T, batch.predict_S))

    def rewards() -> Tensor:
        head = score_head(model)
        assert head is not None, "a reward objective trains a model with a score head"
        with computing_in(model, compute_dtype):
            hidden_TD = final_hidden(model, ids_T, batch.segments)
        found: Tensor = head(hidden_TD[scored_B].float())
        return found[:, 0]

    return through(model, rewards)


def batch_values(model: nn.Module, batch: Batch, head: nn.Module, compute_dtype: torch.dtype) -> Tensor:
    """What a head of one output [D -> 1] says before every supervised token of a packed batch, fp32 [S], with gradient where it trains."""
    device = causal_lm(model).get_input_embeddings().weight.device
    ids_T, predict_S = (to_device(a, device) for a in (batch.ids_T, batch.predict_S))
    with computing_in(model, compute_dtype):
        hidden_SD = final_hidden(model, ids_T, batch.segments)[predict_S]
    values: Tensor = head(hidden_SD.float())
    return values[:, 0]


def idle_batch() -> Batch:
    """What a process computes that has nothing to compute while the others do (`posttrain.model.forward.rounds`)."""
    return collate([Tokens(np.zeros(2, np.int32), np.array([0, 1], np.float32), "")])


def shared_out(
    peers: Peers,
    groups: Sequence[Sequence[Tokens]],
    compute: Callable[[Sequence[Sequence[Tokens]]], list[NDArray[np.float32]]],
) -> list[NDArray[np.float32]]:
    """What ``compute`` gives for every sequence [S] of all groups, each group computed by one process; equal in all. Collective."""
    if peers.size == 1:
        return compute(groups)

    def joined(some: list[Sequence[Tokens]]) -> list[NDArray[np.float32]]:
        parts = iter(compute(some))
        return [np.concatenate([next(parts) for _ in group]) for group in some]

    found = peers.compute(groups, [sum(map(len, group)) for group in groups], joined)
    cuts = [np.cumsum([one.supervised for one in group])[:-1] for group in groups]
    return [part for ends, logps_S in zip(cuts, found, strict=True) for part in np.split(logps_S, ends)]


class Scores(NamedTuple):
    """Per example: the weighted negative log-likelihood in nats [N] and the sum of its weights [N]."""

    nll_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]

    def mean(self) -> float:
        """Token-weighted mean loss in nats per token."""
        return float(self.nll_N.sum() / self.weight_N.sum())


def score(
    model: nn.Module,
    examples: Sequence[Tokens],
    micro_batch_tokens: int,
    compute_dtype: torch.dtype,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Likelihood of every example under the model. ``progress`` is called with the number of examples done."""
    groups = [[example] for example in examples]
    return weigh(examples, sequence_logps(model, groups, micro_batch_tokens, compute_dtype, progress))


def weigh(examples: Sequence[Tokens], logps: Sequence[NDArray[np.float32]]) -> Scores:
    """The scores of examples whose supervised tokens have these log-probabilities."""
    nll_N, weight_N = np.zeros(len(examples)), np.zeros(len(examples))
    for index, (example, logps_S) in enumerate(zip(examples, logps, strict=True)):
        weights_T = example.weights_T.astype(np.float64)
        nll_N[index] = -logps_S @ weights_T[weights_T != 0]
        weight_N[index] = weights_T.sum()
    return Scores(nll_N, weight_N)


def sequence_logps(
    model: nn.Module,
    groups: Sequence[Sequence[Tokens]],
    micro_batch_tokens: int,
    compute_dtype: torch.dtype,
    progress: Callable[[int], None] | None = None,
    *,
    temperature: float = 1.0,
    as_in_training: bool = False,
) -> list[NDArray[np.float32]]:
    """log p [S] of the supervised tokens of every sequence, in the order of the groups.

    The sequences of a group (both sides of a pair) are computed together, so that they share their prefix. ``progress`` is
    called with the number of groups done. ``as_in_training``: by the operations of a training step over the same groups, whose bits
    may be other ones where gradients are asked for.
    """

    def forward(batch: Batch) -> Tensor:
        return batch_logps(model, batch, compute_dtype, temperature).logps_S

    with torch.set_grad_enabled(as_in_training):
        return sequence_outputs(model, groups, micro_batch_tokens, forward, progress)


def sequence_outputs(
    model: nn.Module,
    groups: Sequence[Sequence[Tokens]],
    micro_batch_tokens: int,
    forward: Callable[[Batch], Tensor],
    progress: Callable[[int], None] | None = None,
) -> list[NDArray[np.float32]]:
    """What ``forward`` gives for the supervised tokens [S] of every sequence, in the order of the groups; see `sequence_logps`."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in groups]
    for pack_of in packed_outputs(model, groups, micro_batch_tokens, forward):
        for index, parts in pack_of:
            found[index] = parts
        if progress is not None:
            progress(len(pack_of))
    return [part for parts in found for part in parts]


def packed_outputs(
    model: nn.Module,
    groups: Sequence[Sequence[Tokens]],
    micro_batch_tokens: int,
    forward: Callable[[Batch], Tensor],
) -> Iterator[list[tuple[int, list[NDArray[np.float32]]]]]:
    """The outputs of `sequence_outputs` pack by pack, as they are computed: the place of every group, and its sequences' outputs."""
    lengths = [packed_length(model, group) for group in groups]
    training = model.training
    model.eval()
    packed = pack(lengths, micro_batch_tokens)
    idle = rounds(model, len(packed)) - len(packed)
    for indices in packed:
        batch = lay_out(model, [sequence for index in indices for sequence in groups[index]])
        outputs_S = forward(batch).detach().float().cpu().numpy()
        parts = iter(np.split(outputs_S, np.cumsum(batch.counts_B)[:-1]))
        yield [(index, [next(parts) for _ in groups[index]]) for index in indices]
    for _ in range(idle):
        forward(idle_batch())
    model.train(training)
