"""How far what was written is from what was trained, in logits, on a few texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.segments import Segments
from posttrain.model.forward import causal_lm, path_of


@dataclass(frozen=True)
class Agreement:
    """Two models on the same tokens."""

    texts: int
    tokens: int
    largest: float
    """Largest absolute difference of two logits."""
    relative: float
    """The same, relative to 1 + the largest logit."""
    top1: float
    """Share of tokens behind which both have the same likeliest next one."""

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.largest:.1e} ({self.relative:.1e} of the largest), same likeliest token at {self.top1:.1%} "
            f"of {self.tokens:,} places of {self.texts} texts"
        )


@torch.no_grad()
def all_logits(model: nn.Module, texts: Sequence[NDArray[np.int32]]) -> list[Tensor]:
    """Logits [T, V] in fp32 of every text by itself, on the CPU."""
    device, found = next(model.parameters()).device, []
    for ids_T in texts:
        options = {"segments": Segments([len(ids_T)])} if path_of(model).kind == "packed" else {}
        ids = torch.from_numpy(ids_T.astype(np.int64))[None].to(device)
        found.append(causal_lm(model)(input_ids=ids, use_cache=False, **options).logits[0].float().cpu())
    return found


def agreement(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Agreement:
    """What two lists of logits say of each other. Infinite or undefined numbers count as an infinite difference."""
    largest, scale, same, tokens = 0.0, 0.0, 0, 0
    for ours_TV, theirs_TV in zip(expected, found, strict=True):
        difference = float((ours_TV - theirs_TV).abs().max())
        largest = max(largest, difference if difference == difference else float("inf"))
        scale = max(scale, float(ours_TV.abs().max()))
        same += int((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum())
        tokens += len(ours_TV)
    return Agreement(len(expected), tokens, largest, largest / (1 + scale), same / tokens)
