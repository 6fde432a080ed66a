"""The critic of PPO: a value for every token, from the same base in memory.

It is a small adapter of its own and a linear head that begins at zero. Its adapter begins as a copy of the policy's and takes the place of it
in the model while values are computed: the parameters are exchanged, nothing is copied or merged, and gradients reach the ones in place.

Shapes: S supervised tokens, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.collate import Batch
from posttrain.model.forward import causal_lm
from posttrain.model.score import batch_values, sequence_outputs
from posttrain.objectives.base import BaseObjective, Loss
from posttrain.objectives.policy_gradient import Ppo, StepTotals, value_loss
from posttrain.online.config import OnlineSettings
from posttrain.online.units import Group, joined
from posttrain.train.loop import Trainee
from posttrain.train.measured import state_bytes
from posttrain.train.optimizer import build_optimizer
from posttrain.train.tasks import LossInputs, StepContext, Task
from posttrain.types import Tokens

PREFIX = "value/"
"""Before the names of its parameters in checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ValueObjective(BaseObjective):
    """What the critic learns: the returns of every token."""

    row_kind = "prompts"
    title = "Value"
    explanation = ""
    name: str = "value"
    value_clip: float = field(default=0.2)

    def loss(self, values_S: Tensor, old_S: Tensor, returns_S: Tensor, totals: StepTotals) -> Loss:
        """This micro-batch's share of the loss of an update."""
        return value_loss(values_S, old_S, returns_S, self.value_clip, totals)


@dataclass(frozen=True)
class Critic:
    """The parameters of the critic, ready to take the place of the policy's, and what trains them."""

    trainee: Trainee
    """The same model, with the critic's parameters as what is trained."""
    head: nn.Linear
    optimizer: torch.optim.Optimizer
    policy: Mapping[str, nn.Parameter]
    """What stands in the model otherwise."""

    @property
    def names(self) -> dict[int, str]:
        """id of a parameter -> its name in checkpoints."""
        return {id(parameter): name for name, parameter in self.weights.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by their names in checkpoints."""
        return {f"{PREFIX}{name}": parameter for name, parameter in self.trainee.trained.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters and of their optimizer's states."""
        return sum(p.nbytes for p in self.weights.values()) + state_bytes(self.optimizer)

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """Inside, the model computes the critic's hidden states."""
        own = {name: p for name, p in self.trainee.trained.items() if name in self.policy}
        _put(self.trainee.model, own)
        try:
            yield
        finally:
            _put(self.trainee.model, self.policy)

    def values(self, groups: Sequence[Sequence[Tokens]], budget: int) -> list[NDArray[np.float32]]:
        """The values of the tokens of every sequence of these groups."""
        model, dtype = self.trainee.model, self.trainee.compute_dtype
        with self.playing(), torch.no_grad():
            forward = partial(batch_values, model, head=self.head, compute_dtype=dtype)
            return sequence_outputs(model, groups, budget, forward)

    def task(self, method: Ppo, totals: StepTotals) -> Task:
        """``loss(values_S, old_S, returns_S, totals)``."""

        def loss_inputs(units: Sequence[Group], batch: Batch, values_S: Tensor, context: StepContext) -> LossInputs:
            old_S, returns_S = (
                joined([getattr(unit, name) for unit in units], values_S.device) for name in ("values", "returns")
            )
            return LossInputs((values_S, old_S, returns_S, totals))

        def forward(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> Tensor:
            return batch_values(model, batch, self.head, compute_dtype)

        objective = ValueObjective(value_clip=method.value_clip)
        return Task(objective, lambda unit: unit.sequences, loss_inputs, forward=forward)


def critic_of(settings: OnlineSettings, method: Ppo, trainee: Trainee) -> Critic:
    """A critic whose adapter is what the policy's is now, and whose head is zero."""
    model = trainee.model
    parameters = dict(model.named_parameters())
    policy = {name: parameters[name] for name in trainee.trained}
    own: dict[str, Tensor] = {name: nn.Parameter(p.detach().clone()) for name, p in policy.items()}
    width = causal_lm(model).get_input_embeddings().weight.shape[-1]
    head = nn.Linear(width, 1, device=trainee.device, dtype=torch.float32)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    own |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}
    optimizer = build_optimizer(model, own, replace(settings, learning_rate=method.value_learning_rate))
    return Critic(replace(trainee, trained=own), head, optimizer, policy)


def _put(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Let parameters stand in a model at their names."""
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, parameter)
