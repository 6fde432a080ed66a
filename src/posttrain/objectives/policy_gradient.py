"""Policy gradients: raise the probability of replies that scored above what was to be expected, one objective with three choices.

    loss = aggregate over tokens t of replies i of   max(-rho A, -clip(rho, 1 - e_low, 1 + e_high) A)  [+ beta KL]
                                                     (Schulman et al. 2017, arXiv:1707.06347, eq. 7)

    rho  ratio: token      pi(y_t) / pi_old(y_t)
                sequence   (pi(y) / pi_old(y))^(1/|y|), one for a reply   (GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 7)

    A    leave_one_out     r_i - mean of the others of its group          (RLOO, Ahmadian et al. 2024, arXiv:2402.14740)
         group_mean        r_i - mean of the group: (n - 1)/n of the former      (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783)
         group_std         (r_i - mean) / (deviation of the group + 1e-4)        (GRPO, Shao et al. 2024, arXiv:2402.03300)
         batch_whiten      (r_i - mean of all) / (deviation of all + 1e-8)       (REINFORCE++, Hu 2025, arXiv:2501.03262)
         gae               of every token, from a value head              (Schulman et al. 2015, arXiv:1506.02438, eq. 16)

    aggregation: sequence_sum_over_constant   sum over tokens, mean over replies, / the longest reply allowed    (Dr. GRPO)
                 token_mean                   sum over all tokens of the step / their number        (DAPO, arXiv:2503.14476)
                 sequence_mean                mean over the tokens of a reply, mean over replies                     (GRPO)

    KL   of r = log pi_ref(y_t) - log pi(y_t), y ~ pi (Schulman 2020, "Approximating KL divergence"):
         k1 = -r        k2 = r^2 / 2        k3 = exp(r) - 1 - r

Where the KL stands decides what is learned (tests/objectives/test_optima.py shows each on problems that are solved exactly):

    k1 in the reward of the reply     pi* proportional to pi_ref exp(r / beta), exactly
    k3 in the loss                    forward KL: beta pi_ref / (lambda - r) (one token); of replies each token's own term only
    k1 in the loss                    nothing: its gradient is 0 on average
    k3 or k2 in the loss beside group_std   for small beta no optimum but the best reply alone

A group whose rewards are equal says nothing: its advantages are exactly 0. Masks come from lengths; nothing here knows of padding.

Shapes: R replies, G groups, S supervised tokens of the replies one after another, L the longest reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Le

from posttrain.objectives.base import BaseObjective, Curve, Loss, Metric

if TYPE_CHECKING:
    from torch import Tensor

GroupAdvantage = Literal["leave_one_out", "group_mean", "group_std", "batch_whiten"]
Advantage = Literal["leave_one_out", "group_mean", "group_std", "batch_whiten", "gae"]
Aggregation = Literal["sequence_sum_over_constant", "token_mean", "sequence_mean"]
Ratio = Literal["token", "sequence"]
KlEstimator = Literal["k1", "k2", "k3"]

GROUP_STD_EPSILON = 1e-4
WHITEN_EPSILON = 1e-8
LARGEST_LOG_RATIO = 20.0
"""Log-ratios are held within this, so that no exponential overflows; a ratio of 5e8 is clipped whatever the clip is."""
SMALL_BETA = 0.5
"""Below it dividing by the group's deviation beside a KL loss has no optimum but the best reply (bandit, binary rewards)."""


# ---- advantages ----------------------------------------------------------------------------------------------------


def advantages(kind: GroupAdvantage, rewards_R: Tensor, groups_R: Tensor) -> Tensor:
    """How much better each reply is than was to be expected [R]. groups_R: int64, the prompt of each reply.

    A reply that is alone in its group has the advantage 0, but for ``batch_whiten``.
    """
    if kind == "batch_whiten":
        return whiten(rewards_R)
    counts_R, means_R = _group_means(rewards_R, groups_R)
    centred_R = (rewards_R - means_R).masked_fill(~informative(rewards_R, groups_R), 0.0)
    if kind == "group_mean":
        return centred_R
    if kind == "leave_one_out":  # r_i - (n mean - r_i) / (n - 1) = n / (n - 1) (r_i - mean)
        return centred_R * counts_R / (counts_R - 1).clamp(min=1)
    squares_R = _group_means(centred_R.square(), groups_R)[1]
    deviations_R = (squares_R * counts_R / (counts_R - 1).clamp(min=1)).sqrt()
    return centred_R / (deviations_R + GROUP_STD_EPSILON)


def informative(rewards_R: Tensor, groups_R: Tensor) -> Tensor:
    """Whether the rewards of a reply's group differ at all: bool [R]."""
    size = int(groups_R.max()) + 1
    empty_G = rewards_R.new_zeros(size)
    highest_G = empty_G.scatter_reduce(0, groups_R, rewards_R, "amax", include_self=False)
    lowest_G = empty_G.scatter_reduce(0, groups_R, rewards_R, "amin", include_self=False)
    return (highest_G > lowest_G)[groups_R]


def whiten(values_N: Tensor, shift_mean: bool = True) -> Tensor:
    """Values with deviation 1 (unbiased, as ``torch.var``) and mean 0, or with their own mean; equal values become 0, or stay."""
    mean = values_N.mean()
    centred_N = values_N - mean
    if len(values_N) < 2 or bool((values_N == values_N[0]).all()):
        return centred_N * 0 if shift_mean else values_N
    scaled_N = centred_N / (centred_N.square().sum() / (len(values_N) - 1) + WHITEN_EPSILON).sqrt()
    return scaled_N if shift_mean else scaled_N + mean


def _group_means(values_R: Tensor, groups_R: Tensor) -> tuple[Tensor, Tensor]:
    """(size of its group, mean of its group) of every reply [R]."""
    zeros_G = values_R.new_zeros(int(groups_R.max()) + 1)
    counts_G = zeros_G.index_add(0, groups_R, values_R.new_ones(len(values_R)))
    means_G = zeros_G.index_add(0, groups_R, values_R) / counts_G.clamp(min=1)
    return counts_G[groups_R], means_G[groups_R]


def gae(rewards_S: Tensor, values_S: Tensor, counts_R: Tensor, discount: float, trace: float) -> Tensor:
    """Generalised advantages of every token [S]: A_t = delta_t + discount trace A_{t+1}, delta_t = r_t + discount V_{t+1} - V_t.

    V is 0 behind the last token of a reply. What the value head is to learn are the returns A + V. (Schulman et al. 2015, eq. 16.)
    """
    advantages_S = rewards_S * 0
    ends_R = counts_R.cumsum(0)
    following_R, value_after_R = rewards_S.new_zeros(len(counts_R)), values_S.new_zeros(len(counts_R))
    for back in range(int(counts_R.max())):  # from the last token of every reply to its first
        alive_R = counts_R > back
        places_R = (ends_R - 1 - back)[alive_R]
        delta_R = rewards_S[places_R] + discount * value_after_R[alive_R] - values_S[places_R]
        found_R = delta_R + discount * trace * following_R[alive_R]
        advantages_S = advantages_S.index_copy(0, places_R, found_R)
        following_R = following_R.masked_scatter(alive_R, found_R)
        value_after_R = value_after_R.masked_scatter(alive_R, values_S[places_R])
    return advantages_S


# ---- KL ------------------------------------------------------------------------------------------------------------


def kl_estimate(kind: KlEstimator, logps_S: Tensor, reference_S: Tensor) -> Tensor:
    """An estimate of KL(pi || pi_ref) from every token [S], which was sampled from pi."""
    ratio_S = (reference_S - logps_S).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if kind == "k1":
        return -ratio_S
    if kind == "k2":
        return 0.5 * ratio_S.square()
    return ratio_S.expm1() - ratio_S


# ---- ratio, clip, aggregation --------------------------------------------------------------------------------------


def owners(counts_R: Tensor) -> Tensor:
    """The reply of every token, int64 [S]."""
    return counts_R.new_ones(len(counts_R)).cumsum(0).sub(1).repeat_interleave(counts_R)


def log_ratios(kind: Ratio, logps_S: Tensor, old_S: Tensor, counts_R: Tensor) -> Tensor:
    """log rho of every token [S]; of ``sequence`` all tokens of a reply have the same."""
    found_S = logps_S - old_S
    if kind == "sequence":
        of_S = owners(counts_R)
        means_R = found_S.new_zeros(len(counts_R)).index_add(0, of_S, found_S) / counts_R.clamp(min=1)
        found_S = means_R[of_S]
    return found_S.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


class Clipped(NamedTuple):
    """The loss of every token [S], and where the clip took its gradient away (bool [S])."""

    losses_S: Tensor
    clipped_S: Tensor


def clipped_losses(log_ratios_S: Tensor, advantages_S: Tensor, clip_low: float, clip_high: float) -> Clipped:
    """max(-rho A, -clip(rho) A) (arXiv:1707.06347, eq. 7, with bounds of their own as in DAPO)."""
    ratios_S = log_ratios_S.exp()
    held_S = ratios_S.clamp(1 - clip_low, 1 + clip_high)
    free_S, bound_S = -ratios_S * advantages_S, -held_S * advantages_S
    return Clipped(free_S.maximum(bound_S), bound_S.detach() > free_S.detach())


class StepTotals(NamedTuple):
    """What all micro-batches of an optimizer step have in common: its loss is divided by these."""

    replies: float
    tokens: float
    longest: float
    """Tokens that a reply may have."""


def aggregate(kind: Aggregation, losses_S: Tensor, counts_R: Tensor, totals: StepTotals) -> Tensor:
    """What each reply adds to the loss of the step [R]."""
    sums_R = losses_S.new_zeros(len(counts_R)).index_add(0, owners(counts_R), losses_S)
    if kind == "token_mean":
        return sums_R / totals.tokens
    if kind == "sequence_mean":
        return sums_R / counts_R.clamp(min=1) / totals.replies
    return sums_R / (totals.replies * totals.longest)


# ---- the objective -------------------------------------------------------------------------------------------------


class ReplyLogps(NamedTuple):
    """Log-probabilities of the tokens of some replies: of the policy with gradient, when they were sampled, of the reference [S]."""

    policy_S: Tensor
    old_S: Tensor
    reference_S: Tensor | None
    counts_R: Tensor
    """Tokens of each reply, int64 [R]."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(BaseObjective):
    """What the presets below have in common. Every difference between them is one of these settings."""

    row_kind = "prompts"
    explanation = (
        "Replies that scored above the others of their prompt become more likely, those below less. Where there is one update for each "
        "round of replies the loss is near 0 whatever is learned: look at the reward, the KL and the entropy."
    )
    curves: ClassVar[tuple[Curve, ...]] = (
        Curve("reward", "Reward", "reward", ("reward",), comparable=True),
        Curve("kl", "KL to the reference", "nats a token", ("kl",), comparable=True),
        Curve("entropy", "Surprise at its own tokens (entropy)", "nats a token", ("entropy",), from_zero=True),
        Curve("length", "Length of the replies", "tokens", ("length",), from_zero=True),
        Curve("signal", "Groups without signal", "percent", ("groups/equal",), scale=100.0, from_zero=True),
        Curve("cut", "Replies cut at the limit", "percent", ("replies/cut",), scale=100.0, from_zero=True),
        Curve("variety", "Distinct pairs of words", "share", ("distinct_2",)),
        Curve("clip", "Tokens held by the clip", "percent", ("clip_fraction",), scale=100.0, from_zero=True),
    )
    default_learning_rate = 1e-5

    name: str
    advantage: Advantage = "leave_one_out"
    """What a reply is compared with (docs/online.md). ``gae`` needs the value head of ``ppo``."""
    aggregation: Aggregation = "sequence_sum_over_constant"
    """How the losses of tokens become that of a step."""
    ratio: Ratio = "token"
    """Whether the clip looks at tokens or at whole replies."""
    clip_low: Annotated[float, Gt(0), Le(1)] = 0.2
    """How far the probability may fall below that at sampling before its gradient ends."""
    clip_high: Annotated[float, Gt(0)] = 0.2
    """How far it may rise above."""
    beta: Annotated[float, Ge(0)] = 0.05
    """How strongly the policy is held to its reference; 0 = not at all, and no reference is computed."""
    kl: KlEstimator = "k1"
    """The estimate of the KL that ``beta`` weighs."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where it counts. ``reward`` with k1 is exact."""

    def __post_init__(self) -> None:
        if (self.advantage == "gae") != self.has_critic:
            raise ValueError("advantage: gae and the method ppo go together: it is the value head that both need")

    @property
    def has_critic(self) -> bool:
        """Whether a value head says what was to be expected."""
        return False

    @property
    def compares_all(self) -> bool:
        """Whether a reply is compared with more than the others to its prompt, so that a group of equal scores still teaches."""
        return self.advantage in ("batch_whiten", "gae")

    @property
    def settings_text(self) -> str:
        """The three choices and the KL."""
        held = f"beta {self.beta:g} ({self.kl} in the {self.kl_in})" if self.beta else "no KL"
        clips = f"clip {self.clip_low:g}/{self.clip_high:g} by {self.ratio}"
        return f"{self.advantage}, {self.aggregation}, {clips}, {held}".replace("_", " ")

    def warnings(self) -> Iterator[str]:
        """What is known to be wrong with the settings together."""
        if self.beta and self.kl_in == "loss" and self.kl == "k1":
            yield "kl k1 in the loss regularises nothing: its gradient is 0 on average. Use kl_in: reward, or k3"
        if self.beta and self.kl_in == "loss" and self.kl == "k3":
            yield (
                "kl k3 in the loss is the gradient of the forward KL, of each token's own term alone: the optimum is not "
                "pi_ref exp(r / beta). kl: k1 with kl_in: reward is exact"
            )
        if self.beta and self.kl_in == "loss" and self.kl == "k2":
            yield (
                "kl k2 in the loss takes each token's own term alone: of replies of several tokens it misses pi_ref exp(r / beta). kl: k1 "
                "with kl_in: reward is exact"
            )
        if self.beta and self.kl_in == "reward" and self.kl != "k1":
            yield f"kl {self.kl} in the reward has another expected gradient than the KL itself; k1 there is exact"
        if self.beta and self.kl_in == "loss" and self.advantage == "group_std" and self.beta < SMALL_BETA:
            yield (
                f"group_std beside a KL in the loss: with beta {self.beta:g} (below {SMALL_BETA:g}) the fixed point is the best reply "
                "alone, and beta is only speed. Use advantage: leave_one_out, or kl_in: reward"
            )

    def loss(self, logps: ReplyLogps, advantages_S: Tensor, totals: StepTotals) -> Loss:
        """This micro-batch's share of the loss of a step. advantages_S: that of its reply for every token, or its own [S]."""
        ratios_S = log_ratios(self.ratio, logps.policy_S, logps.old_S, logps.counts_R)
        losses_S, clipped_S = clipped_losses(ratios_S, advantages_S, self.clip_low, self.clip_high)
        count = float(len(losses_S))
        metrics: dict[str, Metric] = {"clip_fraction": Metric(clipped_S.to(losses_S.dtype).sum(), count)}
        if self.beta and self.kl_in == "loss":
            assert logps.reference_S is not None, "a KL needs a reference"
            losses_S = losses_S + self.beta * kl_estimate(self.kl, logps.policy_S, logps.reference_S)
        share = aggregate(self.aggregation, losses_S, logps.counts_R, totals).sum()
        moved_S = ratios_S.detach()
        metrics["ratio/kl"] = Metric((moved_S.exp() - 1 - moved_S).sum(), count)
        return Loss(share, metrics)


@dataclass(frozen=True, kw_only=True)
class Rloo(PolicyGradient):
    """REINFORCE leave-one-out (arXiv:2402.14740): the KL in the reward, the other replies as baseline. Exact, and the default."""

    title = "RLOO"
    name: Literal["rloo"] = "rloo"


@dataclass(frozen=True, kw_only=True)
class Grpo(PolicyGradient):
    """GRPO as in its paper (arXiv:2402.03300), but for beta: 0.04 beside the deviation has no optimum; 0, as TRL and most use it."""

    title = "GRPO"
    name: Literal["grpo"] = "grpo"
    advantage: Advantage = "group_std"
    aggregation: Aggregation = "sequence_mean"
    beta: Annotated[float, Ge(0)] = 0.0
    kl: KlEstimator = "k3"
    kl_in: Literal["reward", "loss"] = "loss"


@dataclass(frozen=True, kw_only=True)
class DrGrpo(PolicyGradient):
    """Dr. GRPO (arXiv:2503.20783): no deviation, no length in the divisor."""

    title = "Dr. GRPO"
    name: Literal["dr_grpo"] = "dr_grpo"
    advantage: Advantage = "group_mean"
    beta: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Dapo(PolicyGradient):
    """DAPO (arXiv:2503.14476): a higher upper clip, all tokens count alike. Groups without signal are counted, not replaced."""

    title = "DAPO"
    name: Literal["dapo"] = "dapo"
    advantage: Advantage = "group_std"
    aggregation: Aggregation = "token_mean"
    clip_high: Annotated[float, Gt(0)] = 0.28
    beta: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Gspo(PolicyGradient):
    """GSPO (arXiv:2507.18071): ratio and clip of whole replies."""

    title = "GSPO"
    name: Literal["gspo"] = "gspo"
    advantage: Advantage = "group_std"
    aggregation: Aggregation = "sequence_mean"
    ratio: Ratio = "sequence"
    clip_low: Annotated[float, Gt(0), Le(1)] = 3e-4
    clip_high: Annotated[float, Gt(0)] = 4e-4
    beta: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Ppo(PolicyGradient):
    """PPO (arXiv:1707.06347) with a value head: what was to be expected is learned, token by token.

    The KL is k1 in the reward of its token, the score is the reward of the last one. Constants as in the published RLHF recipe (Huang et al.
    2024, arXiv:2403.17031), but for two updates of the value head before the first of the policy.
    """

    title = "PPO"
    curves = (
        *PolicyGradient.curves,
        Curve("explained", "Explained variance of the returns", "share", ("value/explained_variance",), line=0.0),
    )

    name: Literal["ppo"] = "ppo"
    advantage: Advantage = "gae"
    aggregation: Aggregation = "token_mean"
    discount: Annotated[float, Gt(0), Le(1)] = 1.0
    """The paper's gamma: what a reward is worth a token later."""
    trace: Annotated[float, Ge(0), Le(1)] = 0.95
    """The paper's lambda: 1 = returns less values, 0 = one step."""
    whiten_advantages: bool = True
    """Give the advantages of a step mean 0 and deviation 1."""
    value_clip: Annotated[float, Gt(0)] = 0.2
    """How far a value may move in a step before its gradient ends."""
    value_learning_rate: Annotated[float, Gt(0)] = 1e-4
    """Highest rate of the value head and its adapter."""
    value_warmup: Annotated[int, Ge(0)] = 2
    """Steps at the beginning in which only the value head learns."""

    @property
    def has_critic(self) -> bool:
        """Yes."""
        return True


def value_loss(values_S: Tensor, old_S: Tensor, returns_S: Tensor, clip: float, totals: StepTotals) -> Loss:
    """max((V - R)^2, (V_clipped - R)^2) / 2, the mean over the tokens of an update; V_clipped is within ``clip`` of what it was (arXiv:1707.06347)."""
    held_S = old_S + (values_S - old_S).clamp(-clip, clip)
    free_S, bound_S = (values_S - returns_S).square(), (held_S - returns_S).square()
    losses_S = 0.5 * free_S.maximum(bound_S)
    count = float(len(losses_S))
    clipped = (bound_S > free_S).to(losses_S.dtype).detach().sum()
    return Loss(losses_S.sum() / totals.tokens, {"value/clip_fraction": Metric(clipped, count)})


def token_rewards(rewards_R: Tensor, kl_S: Tensor | None, beta: float, counts_R: Tensor) -> Tensor:
    """The reward of every token [S]: minus beta times its KL, and at the last token of a reply its score."""
    last_R = counts_R.cumsum(0) - 1
    zeros_S = rewards_R.new_zeros(int(counts_R.sum()))
    found_S = zeros_S if kl_S is None else -beta * kl_S
    return found_S.index_add(0, last_R, rewards_R)


def explained_variance(values_S: Tensor, returns_S: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 0 where the returns are all the same."""
    total = float(returns_S.var(correction=0))
    return 1 - float((returns_S - values_S).var(correction=0)) / total if total > 0 else 0.0
