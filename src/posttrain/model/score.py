"""Forward passes of packed examples: log-probabilities with gradient for training, likelihoods without for scoring."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.collate import Batch, collate_shared
from posttrain.encode.packing import pack
from posttrain.model.load import final_hidden, output_head
from posttrain.model.logprobs import token_logps
from posttrain.types import Tokens


class TokenLogps(NamedTuple):
    """log p [S] of the supervised tokens of a packed batch, and their loss weights [S]."""

    logps_S: Tensor
    weights_S: Tensor


def batch_logps(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> TokenLogps:
    """Log-probabilities of every supervised token of a packed batch, with gradient where the model trains.

    ``compute_dtype``: the type of matrix products; where the weights are fp32 and this is bf16, autocast is used.
    """
    head_VD, cap = output_head(model)
    device = head_VD.device
    ids_T, predict_S, targets_S = (
        torch.from_numpy(a).to(device) for a in (batch.ids_T, batch.predict_S, batch.targets_S)
    )
    mixed = head_VD.dtype == torch.float32 and compute_dtype != torch.float32
    with torch.autocast(device.type, compute_dtype) if mixed else contextlib.nullcontext():
        hidden_TD = final_hidden(model, ids_T, batch.segments)
        logps_S = token_logps(hidden_TD[predict_S].to(compute_dtype), head_VD, targets_S, cap)
    return TokenLogps(logps_S, torch.from_numpy(batch.target_weights_S).to(device))


class Scores(NamedTuple):
    """Per example: the weighted negative log-likelihood in nats [N] and the sum of its weights [N]."""

    nll_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]

    def mean(self) -> float:
        """Token-weighted mean loss in nats per token."""
        return float(self.nll_N.sum() / self.weight_N.sum())


@torch.no_grad()
def score(
    model: nn.Module,
    examples: Sequence[Tokens],
    micro_batch_tokens: int,
    compute_dtype: torch.dtype,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Likelihood of every example under the model. ``progress`` is called with the number of examples done."""
    nll_N, weight_N = np.zeros(len(examples)), np.zeros(len(examples))
    training = model.training
    model.eval()
    for group in pack([len(e) for e in examples], micro_batch_tokens):
        members = [examples[i] for i in group]
        logps_S, weights_S = batch_logps(model, collate_shared(members), compute_dtype)
        weighted = (-logps_S * weights_S).double().cpu().numpy()
        begin = 0
        for index, member in zip(group, members, strict=True):
            end = begin + member.supervised
            nll_N[index] = weighted[begin:end].sum()
            weight_N[index] = float(member.weights_T.sum(dtype=np.float64))
            begin = end
        if progress is not None:
            progress(len(group))
    model.train(training)
    return Scores(nll_N, weight_N)
