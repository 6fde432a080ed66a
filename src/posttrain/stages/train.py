"""A training stage: supervised fine-tuning, preference alignment or a reward model, whichever its objective says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.train.config import TrainSettings


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What a training run takes from other stages (a base of its own: its keys come first)."""

    kind: Literal["train"]
    data: str
    """The data stage whose rows are trained on."""
    start_from: str = "base"
    """``base`` (the recipe's model) or an earlier train stage."""


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainSettings, _Inputs):
    """One training run. The mathematics depends on ``batch_size`` only; ``micro_batch_tokens`` only moves memory."""
