"""What the parts of a training loop ask of settings, whichever kind of stage these belong to. No torch here."""

from __future__ import annotations

from typing import Literal, Protocol

from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives.base import BaseObjective

Dtype = Literal["auto", "bf16", "fp32"]
Schedule = Literal["cosine", "linear", "constant"]


class ModelSettings(Protocol):
    """What has to be known to make a model ready to train."""

    @property
    def objective(self) -> BaseObjective:
        """What is learned."""

    @property
    def adapter(self) -> LoraAdapter | FullWeights:
        """What of the weights trains."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are computed twice."""

    @property
    def dtype(self) -> Dtype:
        """Compute type."""

    @property
    def device(self) -> str:
        """Where it computes."""
