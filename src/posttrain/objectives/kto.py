"""Kahneman-Tversky Optimization: learn from single replies marked desirable or not.

    r = log pi(y|x) - log pi_ref(y|x)                                sums over the reply
    z = max(0, mean of log pi(y'|x) - log pi_ref(y'|x))              y' the reply of another row; no gradient
    L = lambda_D (1 - sigmoid(beta (r - z)))                         y desirable
        lambda_U (1 - sigmoid(beta (z - r)))                         y undesirable
                                                                     (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8)

z, the reference point, stands for KL(pi || pi_ref): a reply is a gain only if the policy prefers it by more than it has
drifted in general. It is one number for a whole optimizer step (docs/decisions/008-kto-reference-point-over-the-step.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt

from posttrain.errors import DataError
from posttrain.objectives.base import LOGPS, REWARDS, BaseObjective, Curve, Loss, Metric, SequenceLogps, log_ratio
from posttrain.references import NamesStage

if TYPE_CHECKING:
    from torch import Tensor

LOWEST_BALANCE, HIGHEST_BALANCE = 1.0, 4 / 3
"""Where lambda_D n_D / (lambda_U n_U) should lie (arXiv:2402.01306, first version; the later ones go up to 3/2, eq. 9)."""


def kto_losses(
    ratios_B: Tensor,
    desirable_B: Tensor,
    reference_point: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """The loss of every row [B]. ratios_B: r above, in nats. desirable_B: bool. reference_point: z above (scalar)."""
    gains_B = beta * (ratios_B - reference_point)
    desirable_losses_B = desirable_weight * (-gains_B).sigmoid()  # 1 - sigmoid(a) = sigmoid(-a), without cancellation
    undesirable_losses_B = undesirable_weight * gains_B.sigmoid()
    return desirable_losses_B.where(desirable_B, undesirable_losses_B)


def balance_warning(
    desirable: int, undesirable: int, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> str | None:
    """What to tell a user whose two kinds of rows weigh too differently; None where all is well."""
    if not desirable or not undesirable:
        return f"all {desirable + undesirable} rows are {'desirable' if desirable else 'undesirable'}: KTO needs both kinds"
    ratio = desirable_weight * desirable / (undesirable_weight * undesirable)
    if LOWEST_BALANCE - 1e-9 <= ratio <= HIGHEST_BALANCE + 1e-9:
        return None
    low, high = LOWEST_BALANCE * desirable_weight / ratio, HIGHEST_BALANCE * desirable_weight / ratio
    low_other, high_other = undesirable_weight * ratio / HIGHEST_BALANCE, undesirable_weight * ratio / LOWEST_BALANCE
    return (
        f"{desirable} desirable rows of weight {desirable_weight:g} and {undesirable} undesirable rows of weight "
        f"{undesirable_weight:g} stand {ratio:.3g} to 1; KTO works best from {LOWEST_BALANCE:g} to {HIGHEST_BALANCE:.3g}: "
        f"set desirable_weight from {low:.3g} to {high:.3g}, or undesirable_weight from {low_other:.3g} to {high_other:.3g}"
    )


@dataclass(frozen=True, kw_only=True)
class KtoObjective(BaseObjective):
    """Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306): single replies, desirable or not."""

    row_kind = "feedback"
    title = "KTO"
    explanation = (
        "The loss of a reply lies between 0 and its weight (1 unless set): how far from certain it is that a desirable reply counts as a "
        "gain, and an undesirable one as a loss, measured from the reference point. The reward of a reply is beta times the "
        "log-probability it gained against the reference. The rows are single replies and no pairs, so there is no accuracy. The "
        "reference point is how far the policy has drifted from the reference in general, never below 0."
    )
    sides = ("desirable", "undesirable")
    curves = (
        REWARDS,
        Curve("margin", "Reward margin", "margin", ("rewards/margins",), line=0.0, comparable=True),
        LOGPS,
        Curve("reference-point", "Reference point", "nats", ("kl",)),
    )
    needs_reference = True

    name: Literal["kto"] = "kto"
    beta: Annotated[float, Gt(0)] = 0.1
    """How fast gains and losses saturate; smaller lets the policy move further from the reference."""
    desirable_weight: Annotated[float, Gt(0)] = 1.0
    """The paper's lambda_D: weight of desirable rows."""
    undesirable_weight: Annotated[float, Gt(0)] = 1.0
    """The paper's lambda_U: weight of undesirable rows."""
    reference: Annotated[str, NamesStage("model")] | None = None
    """Weights to compare with: null = those the stage starts from; otherwise ``base`` or a train stage."""

    @property
    def untrained_loss(self) -> float | None:
        """Half a reply's weight while policy and reference are one model."""
        return 0.5 if self.desirable_weight == self.undesirable_weight == 1 else None

    def settings_problem(self, batch_size: int) -> str | None:
        """A batch of one row has no other row to compare with."""
        if batch_size < 2:
            return "kto needs a batch_size of at least 2: its reference point compares rows with each other"
        return None

    def units_warning(self, units: Sequence[Any], where: str) -> str | None:
        """See `balance_warning`. Raises DataError where all rows are of one kind."""
        desirable = sum(unit.desirable for unit in units)
        counts = (desirable, len(units) - desirable)
        warning = balance_warning(*counts, self.desirable_weight, self.undesirable_weight)
        if warning is not None and 0 in counts:
            raise DataError(warning, where=where, fix="add rows of the other kind, or train another objective")
        return warning

    def reference_point(self, policy_mismatched: SequenceLogps, reference_mismatched: SequenceLogps) -> Tensor:
        """z of a step (scalar), without a gradient. The arguments are of all its rows, each with the reply of another row."""
        return log_ratio(policy_mismatched, reference_mismatched).sums_B.detach().mean().clamp(min=0)

    def loss(
        self,
        policy: SequenceLogps,
        reference: SequenceLogps,
        desirable_B: Tensor,
        reference_point: Tensor,
        step_units: int,
    ) -> Loss:
        """This micro-batch's share of the loss of a step of ``step_units`` rows.

        Rewards and log-probabilities are means over the rows of their kind. The mean margin is the difference of the two
        means, no mean over rows, so it is left to whoever adds up the metrics of a step.
        """
        ratios_B, point = log_ratio(policy, reference).sums_B, reference_point.detach()
        losses_B = kto_losses(ratios_B, desirable_B, point, self.beta, self.desirable_weight, self.undesirable_weight)
        rewards_B, count = self.beta * ratios_B, float(len(ratios_B))
        metrics = {
            "rewards/chosen": _metric_of(rewards_B, desirable_B),
            "rewards/rejected": _metric_of(rewards_B, ~desirable_B),
            "logps/chosen": _metric_of(policy.sums_B, desirable_B),
            "logps/rejected": _metric_of(policy.sums_B, ~desirable_B),
            "kl": Metric(point * count, count),
        }
        return Loss(losses_B.sum() / step_units, metrics)


def _metric_of(values_B: Tensor, kind_B: Tensor) -> Metric:
    """The mean of a value [B] over the rows of one kind (bool [B]); the count stays on the device."""
    return Metric((values_B.detach() * kind_B).sum(), kind_B.sum())
