"""What an objective receives and gives, and the two functions of log-probabilities that need care.

Shapes: P pairs, B sequences. Objectives use methods of tensors only, so that configurations are parsed without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from posttrain.types import LOGP_ROUNDING, RowKind, resolved

if TYPE_CHECKING:
    from torch import Tensor


class SequenceLogps(NamedTuple):
    """Of every sequence: the sum of the log-probabilities of its supervised tokens, and how many these are. Both fp32 [B]."""

    sums_B: Tensor
    counts_B: Tensor

    @property
    def means_B(self) -> Tensor:  # noqa: N802 - carries its shape, as the fields do
        """Mean log-probability of a token."""
        return self.sums_B / self.counts_B


class PairLogps(NamedTuple):
    """Both sides of P pairs."""

    chosen: SequenceLogps
    rejected: SequenceLogps
    conversation: SequenceLogps | None = None
    """Prompt and chosen reply together, every token but the first supervised; only where the objective asks for it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A mean to be: the detached sum over this micro-batch and how many values it is over."""

    total: Tensor
    count: Tensor | float


class Loss(NamedTuple):
    """A micro-batch's share of the step's loss (scalar, differentiable): the shares of a step add up to its loss."""

    share: Tensor
    metrics: Mapping[str, Metric] = {}


@dataclass(frozen=True, slots=True)
class Curve:
    """A chart of what an objective logs while it trains."""

    name: str
    title: str
    unit: str
    metrics: tuple[str, ...]
    """Keys of the metrics records: one, or that of the better and that of the worse kind of replies."""
    written: str = "number"
    """How the values are written (``report.numbers.in_unit``)."""
    from_zero: bool = False
    log_when_wide: bool = False
    scale: float = 1.0
    """What the values are multiplied by."""
    line: float | None = None
    """A value that means something: chance, zero."""
    held_out_alone: bool = False
    """Whether batches can't be compared with each other, so that the held-out rows alone are drawn where there are some."""
    comparable: bool = False
    """Whether it is worth laying over that of another stage."""


REWARDS = Curve("rewards", "Rewards", "reward", ("rewards/chosen", "rewards/rejected"))
LOGPS = Curve(
    "log-probabilities",
    "Log-probability of the replies",
    "nats a reply",
    ("logps/chosen", "logps/rejected"),
    held_out_alone=True,
)
PAIR_CURVES = (
    REWARDS,
    Curve("margin", "Reward margin", "margin", ("rewards/margins",), line=0.0, comparable=True),
    Curve("accuracy", "Reward accuracy", "percent", ("rewards/accuracies",), scale=100.0, line=50.0, comparable=True),
    LOGPS,
    Curve("kl", "KL to the reference", "nats a token", ("kl",), comparable=True),
    Curve("nll", "Negative log-likelihood of the chosen", "nats a token", ("nll",)),
)
"""What objectives that learn from pairs log; one that is not logged is not drawn."""
LEVEL_CURVES = (replace(REWARDS, held_out_alone=True), *PAIR_CURVES[1:])
"""Where rewards are levels of log-probability, other in every batch."""
PAIR_WORDS = (
    "The margin is the chosen reply's reward less the rejected one's; accuracy is the share of pairs with a margin above 0, where a "
    "margin within rounding counts half."
)
KL_WORDS = "KL estimates how far the policy has moved from the reference, in nats a reply token."


class BaseObjective:
    """What the engine asks of every objective: each says what is different with it, and how a report explains it."""

    name: str
    title: ClassVar[str]
    """As papers write it."""
    explanation: ClassVar[str]
    """What its loss and the numbers it logs mean."""
    sides: ClassVar[tuple[str, str]] = ("chosen", "rejected")
    """The two kinds of replies, the better one first."""
    curves: ClassVar[tuple[Curve, ...]] = PAIR_CURVES
    setting_words: ClassVar[Mapping[str, str]] = {}
    """How its settings are called, where that is not their key."""
    loss_unit: ClassVar[str] = "loss"

    row_kind: ClassVar[RowKind]
    """The rows it learns from."""
    head: ClassVar[Literal["tokens", "score"]] = "tokens"
    """What the model ends in: its output head, or a score for each sequence."""
    needs_reference: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 5e-6
    loss: ClassVar[Callable[..., Loss]]
    """A micro-batch's share of the loss of a step. What it is called with: `posttrain.train.tasks`, by the kind of rows."""

    reference_point: ClassVar[Callable[..., Any]]
    """Of single labelled replies: (policy, reference) of prompts with the replies of other rows -> how far the policy has drifted."""

    @property
    def supervises_prompt(self) -> bool:
        """Whether ``PairLogps.conversation`` is needed."""
        return False

    @property
    def untrained_loss(self) -> float | None:
        """The loss before anything was learned; None where that depends on the model."""
        return None

    @property
    def settings_text(self) -> str:
        """The settings that matter: ``beta 0.1, SFT weight 1``; without those that are off or weigh nothing."""
        parts = []
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if one.name in ("name", "reference") or (value == one.default and value in (None, False, 0, 1)):
                continue
            words = self.setting_words.get(one.name, one.name.replace("_", " "))
            plain = f"{value:g}" if isinstance(value, int | float) else str(value)
            parts.append(words if value is True else f"{words} {plain}")
        return ", ".join(parts)

    def settings_problem(self, batch_size: int) -> str | None:
        """Why it can't be trained with these settings of the stage; None where it can."""
        return None

    def units_warning(self, units: Sequence[Any], where: str) -> str | None:
        """What to tell the user of the training units; None where all is well.

        Raises DataError, with ``where`` they came from, where they can't be learned from.
        """
        return None


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))), finite with an exact gradient for every finite x."""
    return -(-x).logaddexp(x.new_zeros(()))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, finite with a finite gradient up to x = 0 (Maechler 2012, log1mexp-note, eq. 7).

    x above -1e-7 is taken as -1e-7, the nearest to certainty that fp32 can tell from it, and has the gradient 0.
    """
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    # Each branch sees harmless values where the other is taken: a NaN times 0 would be NaN in the gradient.
    small = x.where(near, x.new_full((), -1.0))
    large = x.where(~near, x.new_full((), -1.0))
    return (-small.expm1()).log().where(near, (-large.exp()).log1p())


def log_ratio(policy: SequenceLogps, reference: SequenceLogps) -> SequenceLogps:
    """log pi(y|x) - log pi_ref(y|x) of every sequence [B]: the sum over its tokens, and how many these are."""
    return SequenceLogps(policy.sums_B - reference.sums_B, policy.counts_B)


def log_ratios(policy: PairLogps, reference: PairLogps | None) -> PairLogps:
    """The log-ratio of both sides of every pair.

    Raises:
        ValueError: there is no reference, and the objective can't do without.

    """
    if reference is None:
        raise ValueError("this objective compares the policy with a reference, and none was given")
    return PairLogps(log_ratio(policy.chosen, reference.chosen), log_ratio(policy.rejected, reference.rejected))


def metric(values_B: Tensor) -> Metric:
    """The mean of one value a row [B]."""
    return Metric(values_B.detach().sum(), float(len(values_B)))


SATURATED = 0.05
"""A pair teaches nothing any more where its weight in the gradient, sigmoid(-x), is below this."""


def saturation(logits_P: Tensor) -> dict[str, Metric]:
    """``rewards/saturated``: share of pairs that teach nothing any more. logits_P: x of a loss -log sigmoid(x) [P]."""
    return {"rewards/saturated": metric(((-logits_P).sigmoid() < SATURATED).to(logits_P.dtype))}


def log_ratio_rounding(ratios: PairLogps) -> Tensor:
    """How far rounding may move the difference of the two log-ratios of a pair, in nats [P]."""
    return LOGP_ROUNDING * (ratios.chosen.counts_B + ratios.rejected.counts_B)


def reward_metrics(chosen_P: Tensor, rejected_P: Tensor, rounding_P: Tensor | float = 0.0) -> dict[str, Metric]:
    """What is logged of the rewards of both sides [P].

    A margin within ``rounding_P`` (in the unit of the rewards [P]) is half a success: the model can't tell the sides
    apart. So a policy that is still its reference is right in exactly half of the pairs.
    """
    margins_P = chosen_P - rejected_P
    return {
        "rewards/chosen": metric(chosen_P),
        "rewards/rejected": metric(rejected_P),
        "rewards/margins": metric(margins_P),
        "rewards/accuracies": metric((resolved(margins_P, rounding_P).sign() + 1) / 2),
    }


def pair_metrics(
    policy: PairLogps, chosen_P: Tensor, rejected_P: Tensor, rounding_P: Tensor | float = 0.0
) -> dict[str, Metric]:
    """What is logged of the rewards of both sides [P], and of the log-probabilities: the sum over a reply, mean over pairs."""
    logps = {"logps/chosen": metric(policy.chosen.sums_B), "logps/rejected": metric(policy.rejected.sums_B)}
    return reward_metrics(chosen_P, rejected_P, rounding_P) | logps
