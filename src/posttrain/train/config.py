"""The settings of a training run. No torch here: recipes are parsed without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Discriminator

from posttrain.model.config import FullWeights, LoraAdapter, Shard
from posttrain.objectives import Objective, default_objective
from posttrain.references import NamesFile
from posttrain.train.protocols import Dtype, Schedule

USUAL_TOKENS = 2048
"""``micro_batch_tokens`` where nothing is said, and where ``auto`` can't be planned."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop when the held-out loss has not improved for a while."""

    patience: Annotated[int, Ge(1)] = 3
    """Evaluations without improvement before stopping."""
    min_improvement: Annotated[float, Ge(0)] = 0.0
    """What counts as improvement, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """The optimizer and the machine: what all stages that train have in common."""

    learning_rate: Annotated[float, Gt(0)] | None = None
    """Highest rate; null = that of what is learned (docs/objectives.md, docs/online.md)."""
    schedule: Schedule = "cosine"
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the steps during which the rate rises linearly from 0."""
    learning_rate_floor: Annotated[float, Ge(0), Le(1)] = 0.0
    """Final rate of cosine and linear, as a share of ``learning_rate``."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled decay of matrices; norms, biases and embeddings are never decayed."""
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    adam_epsilon: Annotated[float, Gt(0)] = 1e-8
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    """Clip the global gradient norm to this; null = no clipping."""
    gradient_checkpointing: bool = False
    """Compute each layer twice to keep only its input: less memory, about a quarter slower."""
    dtype: Dtype = "auto"
    """Compute type; ``auto`` measures which one this hardware multiplies faster."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu) or a torch device name."""

    @property
    def peak_learning_rate(self) -> float:
        """The highest rate, whether it is written here or that of what is learned."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """What is learned from which rows (a base of its own: its keys come first)."""

    objective: Objective = field(default_factory=default_objective)
    """What is learned, and from which rows (docs/objectives.md)."""
    adapter: Annotated[LoraAdapter | FullWeights, Discriminator("name")] = field(default_factory=LoraAdapter)
    template: Annotated[str, NamesFile()] | None = None
    """A Jinja chat template file in place of the one that the starting weights were made with; later stages and evaluations go on with it."""
    max_length: Annotated[int, Ge(2)] = 1024
    """Longest example in tokens."""
    over_length: Literal["drop", "truncate"] = "drop"
    """What happens to longer ones; both are counted in the ledger. Replies that are compared are never cut."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the training rows (fractions allowed)."""
    max_steps: Annotated[int, Ge(1)] | None = None
    """Upper limit on optimizer steps."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Examples per optimizer step (the effective batch): conversations, pairs or labelled replies."""
    micro_batch_tokens: Annotated[int, Ge(1)] | Literal["auto"] = USUAL_TOKENS
    """Tokens that are computed at once; longer single examples go alone. ``auto``: what the planner finds to fit, once a run."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StepSettings, _Learned):
    """How one training run goes. The mathematics depends on ``batch_size`` only; ``micro_batch_tokens`` only moves memory."""

    evaluate_every: Annotated[int, Ge(1)] | None = None
    """Held-out loss every so many steps; null = ten times a run. Always before the first and after the last step."""
    early_stopping: EarlyStopping | None = None
    keep: Literal["best", "last"] = "best"
    """Which weights the stage hands on: those with the lowest held-out loss, or the final ones."""
    checkpoint_every: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Steps between checkpoints; ``auto`` = every step while writing costs at most 5% of the time."""
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Also log metrics there (extra ``track``)."""
    shard: Shard | None = None
    """Divide weights, gradients and optimizer among the processes of the run (docs/several-processes.md); null = each has them whole."""

    def __post_init__(self) -> None:
        if self.objective.row_kind != "conversations" and self.over_length == "truncate":
            raise ValueError(
                f"over_length: truncate can't be used with {self.objective.name}: a cut reply is another reply"
            )
        if self.shard is not None and isinstance(self.adapter, LoraAdapter) and self.adapter.quantize is not None:
            raise ValueError(
                "shard can't be used with adapter.quantize: divided, 4-bit weights lose what they are scaled by"
            )
        if self.shard is not None and self.micro_batch_tokens == "auto":
            raise ValueError(
                "micro_batch_tokens: auto can't be used with shard: what fits is not planned; give a number"
            )
        if (problem := self.objective.settings_problem(self.batch_size)) is not None:
            raise ValueError(problem)

    @property
    def peak_learning_rate(self) -> float:
        """The highest rate, whether it is written here or the objective's own."""
        return self.objective.default_learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def token_budget(self) -> int:
        """``micro_batch_tokens`` as a number; `USUAL_TOKENS` while ``auto`` is not settled."""
        return USUAL_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens
