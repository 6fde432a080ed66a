"""Every objective against TRL's own loss code, and against the paper in float64 where TRL has no such loss.

    PYTHON benchmarks/objectives_oracle.py        PYTHON: one with trl==1.16.0 and its dependencies; posttrain need not be installed

One seeded batch of replies of 20 to 300 tokens in float32 goes through both. Of TRL's trainers nothing runs but the method
that turns a model's outputs into a loss: the trainer is made without its ``__init__``, the model is a function that returns
the batch's log-probabilities (DPO, KTO, GRPO, RLOO), logits (CPO, ORPO) or scores (reward). Of GRPO and RLOO what makes
advantages of rewards runs as well.

Prints one JSON line: by objective the largest difference of the loss and of the logged rewards, the largest difference of
the gradient as a share of its largest entry, and where TRL differs on purpose, by how much on this batch. Exits with 1 where
a difference is above 1e-5.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_OFFLINE"] = os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from torch import Tensor
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from posttrain.objectives import (
    DpoObjective,
    HingeObjective,
    IpoObjective,
    KtoObjective,
    OrpoObjective,
    RewardObjective,
    SimpoObjective,
)
from posttrain.objectives.base import Loss, PairLogps, SequenceLogps
from posttrain.objectives.policy_gradient import (
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    PolicyGradient,
    ReplyLogps,
    Rloo,
    StepTotals,
    advantages,
    kl_estimate,
)

TOLERANCE = 1e-5
PAIRS, PROMPT, SHORTEST, LONGEST, VOCABULARY = 48, 5, 20, 300, 40
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


# ---- one batch -----------------------------------------------------------------------------------------------------


class Replies(NamedTuple):
    """Sequences of a prompt and a reply, padded on the right; pairs are all chosen sides, then all rejected ones."""

    policy_BT: Tensor
    """Log-probability of every token but the first [B, T]; the leaf of the gradient."""
    reference_BT: Tensor
    replies_BT: Tensor
    """1 where the token is part of the reply."""

    def logps(self, logps_BT: Tensor) -> SequenceLogps:
        return SequenceLogps((logps_BT * self.replies_BT).sum(1), self.replies_BT.sum(1))

    def pairs(self, logps_BT: Tensor) -> PairLogps:
        sums_B, counts_B = self.logps(logps_BT)
        return PairLogps(*(SequenceLogps(*side) for side in zip(sums_B.chunk(2), counts_B.chunk(2), strict=True)))

    def masks(self) -> dict[str, Tensor]:
        """The batch as TRL's collator would give it, one position longer: the first token is never predicted."""
        mask = torch.cat([torch.zeros_like(self.replies_BT[:, :1]), self.replies_BT], 1).long()
        return {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def batch(sequences: int, lengths_B: Tensor, seed: int = 0) -> Replies:
    """Tokens of 1.5 nats on average; the policy is about 0.1 nats a token away from the reference."""
    torch.manual_seed(seed)
    positions_T = torch.arange(PROMPT + LONGEST)
    replies_BT = ((positions_T >= PROMPT) & (positions_T < PROMPT + lengths_B[:, None])).float()
    reference_BT = torch.empty(sequences, len(positions_T)).exponential_(1 / 1.5).neg()
    policy_BT = (reference_BT + 0.1 * torch.randn_like(reference_BT)).clamp(max=0)
    return Replies(policy_BT.requires_grad_(), reference_BT, replies_BT)


def uneven(sequences: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(SHORTEST, LONGEST + 1, (sequences,))


def even(sequences: int) -> Tensor:
    return torch.full((sequences,), 100)


# ---- TRL's loss code on it -----------------------------------------------------------------------------------------


def trainer(kind: type, **attributes: Any) -> Any:
    """A TRL trainer without its ``__init__``: only what its loss code reads."""
    made = object.__new__(kind)
    alone = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    made.__dict__.update(
        accelerator=alone, model=torch.nn.Linear(1, 1), aux_loss_enabled=False, precompute_ref_logps=True
    )
    made.__dict__.update(_metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **attributes)
    return made


def head(logps_BT: Tensor) -> SimpleNamespace:
    """What the model with TRL's fused head returns; the rest is only logged."""
    nothing = torch.zeros_like(logps_BT)
    return SimpleNamespace(log_probs=logps_BT, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


class Theirs(NamedTuple):
    loss: Tensor
    metrics: dict[str, float]


def trl_dpo(
    replies: Replies, *kinds: str, beta: float = 0.1, weights: tuple[float, ...] = (1.0,), **more: Any
) -> Theirs:
    settings = {"label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False}
    made = trainer(DPOTrainer, beta=beta, loss_types=kinds, loss_weights=weights, **{**settings, **more})
    reference = replies.pairs(replies.reference_BT)
    inputs = {
        **replies.masks(),
        "ref_chosen_logps": reference.chosen.sums_B,
        "ref_rejected_logps": reference.rejected.sums_B,
    }
    loss = made._compute_loss(lambda **_: head(replies.policy_BT * replies.replies_BT), inputs, False)
    return Theirs(loss, {name: made._metrics["train"][name][0] for name in REWARDS})


def trl_kto(replies: Replies, other: Replies, desirable_B: Tensor, objective: KtoObjective) -> Theirs:
    """``other``: the mismatched replies."""
    made = trainer(KTOTrainer, beta=objective.beta, loss_type="kto", calculate_KL=True)
    made.__dict__.update(desirable_weight=objective.desirable_weight, undesirable_weight=objective.undesirable_weight)
    masks = other.masks()
    mismatched_ids = masks["input_ids"] + 1
    inputs = {
        **replies.masks(),
        "label": desirable_B,
        "ref_logps": replies.logps(replies.reference_BT).sums_B,
        "KL_input_ids": mismatched_ids,
        "KL_attention_mask": masks["attention_mask"],
        "KL_completion_mask": masks["completion_mask"],
        "ref_KL_logps": other.logps(other.reference_BT).sums_B,
    }

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        asked = other if bool((input_ids == 1).all()) else replies
        return head(asked.policy_BT * asked.replies_BT)

    loss = made._compute_loss(model, inputs, False)
    logged = {name: made._metrics["train"][name][0] for name in (*REWARDS[:2], "kl")}
    return Theirs(loss, logged)


class Written(NamedTuple):
    """Pairs as logits over a small vocabulary, for the trainers that take the log-probabilities themselves."""

    logits_BTV: Tensor
    ids_BT: Tensor
    replies_BT: Tensor

    def pairs(self) -> PairLogps:
        logps_BTV = self.logits_BTV[:, :-1].log_softmax(-1)
        logps_BT = logps_BTV.gather(-1, self.ids_BT[:, 1:, None])[..., 0]
        both_BT = torch.ones_like(self.replies_BT[:, 1:])
        both_BT[:, PROMPT - 1 :] = self.replies_BT[:, 1:][:, PROMPT - 1 :]
        sums_B, counts_B = (logps_BT * self.replies_BT[:, 1:]).sum(1), self.replies_BT.sum(1)
        whole = SequenceLogps((logps_BT * both_BT).sum(1).chunk(2)[0], both_BT.sum(1).chunk(2)[0])
        return PairLogps(
            *(SequenceLogps(*side) for side in zip(sums_B.chunk(2), counts_B.chunk(2), strict=True)), whole
        )


def written(lengths_B: Tensor) -> Written:
    torch.manual_seed(2)
    positions_T = torch.arange(PROMPT + LONGEST)
    replies_BT = ((positions_T >= PROMPT) & (positions_T < PROMPT + lengths_B[:, None])).float()
    shape = (len(lengths_B), len(positions_T))
    ids_BT = torch.randint(VOCABULARY, shape)
    logits_BTV = torch.randn(*shape, VOCABULARY)
    # The token that stands there is usually a likely one: about 1.5 nats.
    logits_BTV.scatter_add_(-1, ids_BT[..., None].roll(-1, 1), torch.full((*shape, 1), 3.0))
    return Written(logits_BTV.requires_grad_(), ids_BT, replies_BT)


def trl_written(kind: type, pairs: Written, **settings: Any) -> Theirs:
    made = trainer(kind, is_encoder_decoder=False, pad_token_id=0, padding_value=0, label_smoothing=0.0, **settings)
    inputs = {}
    for side, ids_PT, replies_PT in zip(
        ("chosen", "rejected"), pairs.ids_BT.chunk(2), pairs.replies_BT.chunk(2), strict=True
    ):
        inputs[f"{side}_input_ids"] = ids_PT
        inputs[f"{side}_labels"] = ids_PT.masked_fill(replies_PT == 0, -100)
        attended_PT = replies_PT.clone()
        attended_PT[:, :PROMPT] = 1
        inputs[f"{side}_attention_mask"] = attended_PT
    loss, metrics = made.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=pairs.logits_BTV), inputs)
    return Theirs(loss, {name: float(metrics[name]) for name in REWARDS})


def trl_reward(scores_B: Tensor, margins_P: Tensor | None, centering: float | None) -> Theirs:
    made = trainer(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=centering))
    inputs = {"attention_mask": torch.ones(1)} | ({} if margins_P is None else {"margin": margins_P})
    loss = made.compute_loss(lambda **_: SimpleNamespace(logits=scores_B[:, None]), inputs)
    logged = made._metrics["train"]
    return Theirs(loss, {"rewards/accuracies": logged["accuracy"][0], "rewards/margins": logged["margin"][0]})


# ---- compared ------------------------------------------------------------------------------------------------------


def compared(ours: Loss, theirs: Theirs, leaf: Tensor, against: str, note: str) -> dict[str, Any]:
    """The differences of one objective."""
    found = [abs(ours.share.item() - theirs.loss.item())]
    for name, value in theirs.metrics.items():
        mean = ours.metrics[name].total.item() / float(ours.metrics[name].count)
        found.append(abs(mean - value))
    mine, other = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (ours.share, theirs.loss))
    gradient = float((mine - other).abs().max() / other.abs().max())
    return {
        "max_abs_difference": max(found),
        "max_gradient_difference": gradient,
        "loss": ours.share.item(),
        "against": against,
        "note": note,
    }


def paper(formula: Callable[[Tensor, Tensor], Tensor], replies: Replies) -> Theirs:
    """A formula of the log-ratios of both sides, in float64 from the float32 sums of the replies."""
    policy, reference = replies.pairs(replies.policy_BT), replies.pairs(replies.reference_BT)
    chosen_P = policy.chosen.sums_B.double() - reference.chosen.sums_B.double()
    losses_P = formula(chosen_P, policy.rejected.sums_B.double() - reference.rejected.sums_B.double())
    return Theirs(losses_P.mean(), {})


def dpo_family() -> dict[str, Any]:
    replies = batch(2 * PAIRS, uneven(2 * PAIRS))
    policy, reference = replies.pairs(replies.policy_BT), replies.pairs(replies.reference_BT)

    def ours(objective: DpoObjective | IpoObjective | HingeObjective) -> Loss:
        return objective.loss(policy, reference, PAIRS)

    def row(objective: Any, theirs: Theirs, against: str, note: str = "") -> dict[str, Any]:
        return compared(ours(objective), theirs, replies.policy_BT, against, note)

    def conservative(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
        right_P = torch.sigmoid(0.1 * (chosen_P - rejected_P))
        return -0.9 * right_P.log() - 0.1 * (1 - right_P).log()

    ignored = abs(trl_dpo(replies, "sigmoid", label_smoothing=0.1).loss - trl_dpo(replies, "sigmoid").loss)
    same = batch(2 * PAIRS, even(2 * PAIRS))
    rpo, pooled = DpoObjective(sft_weight=1.0), {"weights": (1.0, 1.0)}
    apart = ours(rpo).share.item() - trl_dpo(replies, "sigmoid", "sft", **pooled).loss.item()
    return {
        "dpo": row(DpoObjective(), trl_dpo(replies, "sigmoid"), "TRL DPOTrainer sigmoid"),
        "dpo conservative": row(
            DpoObjective(label_smoothing=0.1),
            paper(conservative, replies),
            "float64",
            f"TRL's sigmoid ignores label_smoothing: 0.1 changes its loss by {ignored.item():g}",
        ),
        "dpo robust": row(
            DpoObjective(label_smoothing=0.1, robust=True),
            trl_dpo(replies, "robust", label_smoothing=0.1),
            "TRL DPOTrainer robust",
        ),
        "dpo sft_weight": compared(
            rpo.loss(same.pairs(same.policy_BT), same.pairs(same.reference_BT), PAIRS),
            trl_dpo(same, "sigmoid", "sft", **pooled),
            same.policy_BT,
            "TRL DPOTrainer sigmoid + sft, replies of one length",
            f"uneven replies: TRL's mean over all tokens differs by {-apart:+.4f}",
        ),
        "ipo tokens": row(
            IpoObjective(),
            trl_dpo(replies, "ipo")._replace(metrics={}),
            "TRL DPOTrainer ipo",
            "TRL logs rewards of sums beside a loss of means",
        ),
        "ipo sum": row(
            IpoObjective(average="sum"),
            paper(lambda chosen_P, rejected_P: (chosen_P - rejected_P - 5) ** 2, replies),
            "float64",
            "TRL's ipo always averages over tokens",
        ),
        "hinge": row(HingeObjective(), trl_dpo(replies, "hinge"), "TRL DPOTrainer hinge"),
    }


def written_family() -> dict[str, Any]:
    pairs, same = written(uneven(2 * PAIRS)), written(even(2 * PAIRS))
    simpo, regularised = SimpoObjective(), SimpoObjective(sft_weight=1.0)
    cpo = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "alpha": 0.0}
    defaults = trl_written(CPOTrainer, pairs, **(cpo | {"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0})).loss
    orpo, whole = OrpoObjective(), OrpoObjective(nll="conversation")
    pooled = trl_written(ORPOTrainer, pairs, beta=0.1).loss.item()
    certain = torch.tensor([-1e-8], requires_grad=True)
    losses, *_ = trainer(ORPOTrainer, beta=0.1).odds_ratio_loss(certain, torch.tensor([-1.0]))
    (lost,) = torch.autograd.grad(losses.sum(), certain)
    return {
        "simpo": compared(
            simpo.loss(pairs.pairs(), None, PAIRS),
            trl_written(CPOTrainer, pairs, **cpo, cpo_alpha=0.0),
            pairs.logits_BTV,
            "TRL CPOTrainer simpo with simpo_gamma = beta * gamma_beta_ratio, cpo_alpha = 0",
            f"at TRL's defaults (beta 0.1, gamma 0.5, cpo_alpha 1) the loss is {defaults.item():.4f}",
        ),
        "simpo sft_weight": compared(
            regularised.loss(same.pairs(), None, PAIRS),
            trl_written(CPOTrainer, same, **cpo, cpo_alpha=1.0),
            same.logits_BTV,
            "TRL CPOTrainer simpo with cpo_alpha = sft_weight, replies of one length",
            "TRL's term is a mean over all tokens",
        ),
        "orpo conversation": compared(
            whole.loss(same.pairs(), None, PAIRS),
            trl_written(ORPOTrainer, same, beta=0.1),
            same.logits_BTV,
            "TRL ORPOTrainer, conversations of one length",
            f"uneven replies: TRL's mean over all tokens differs by "
            f"{pooled - whole.loss(pairs.pairs(), None, PAIRS).share.item():+.4f}; "
            f"at a mean log-probability of -1e-8 TRL's gradient is {lost.item():g}",
        ),
        "orpo reply": compared(
            orpo.loss(pairs.pairs(), None, PAIRS),
            Theirs(_odds_ratio_and_reply(pairs), {}),
            pairs.logits_BTV,
            "TRL ORPOTrainer.odds_ratio_loss, uneven lengths, with the reply's NLL",
            "TRL always imitates the prompt as well",
        ),
    }


def _odds_ratio_and_reply(pairs: Written) -> Tensor:
    logps = pairs.pairs()
    losses_P, *_ = trainer(ORPOTrainer, beta=0.1).odds_ratio_loss(logps.chosen.means_B, logps.rejected.means_B)
    return -logps.chosen.means_B.mean() - losses_P.mean()


def kto() -> dict[str, Any]:
    rows = PAIRS
    objective = KtoObjective(desirable_weight=1.2, undesirable_weight=0.9)
    replies, other = batch(rows, uneven(rows)), batch(rows, uneven(rows), seed=3)
    # Drifted towards its own replies, so that the reference point is not clamped.
    other = other._replace(policy_BT=(other.policy_BT + 0.02).clamp(max=0).detach())
    desirable_B = torch.arange(rows) % 5 < 3

    def ours(part: slice, point: Tensor) -> Loss:
        some = Replies(*(tensor[part] for tensor in replies))
        policy, reference = some.logps(some.policy_BT), some.logps(some.reference_BT)
        return objective.loss(policy, reference, desirable_B[part], point, rows)

    def trl_part(part: slice) -> Theirs:
        some, mismatched = (Replies(*(t[part] for t in one)) for one in (replies, other))
        return trl_kto(some, mismatched, desirable_B[part], objective)

    def moved(split: Tensor, whole: Tensor) -> float:
        """By what share of its length the gradient changes."""
        one, two = (torch.autograd.grad(loss, replies.policy_BT, retain_graph=True)[0] for loss in (split, whole))
        return float((one - two).norm() / two.norm())

    point = KtoObjective().reference_point(other.logps(other.policy_BT), other.logps(other.reference_BT))
    everything, whole = ours(slice(None), point), trl_kto(replies, other, desirable_B, objective)
    parts = [slice(start, start + 4) for start in range(0, rows, 4)]
    split = [trl_part(part) for part in parts]
    z = [one.metrics["kl"] for one in split]
    theirs_moved = moved(torch.stack([one.loss for one in split]).mean(), whole.loss)
    ours_moved = moved(torch.stack([ours(part, point).share for part in parts]).sum(), everything.share)
    note = (
        f"z = {point.item():.3f}; in micro-batches of 4 rows TRL takes {min(z):.3f} to {max(z):.3f} instead, which "
        f"changes the step's gradient by {theirs_moved:.1%} of its length; ours changes by {ours_moved:.0e}"
    )
    return {"kto": compared(everything, whole, replies.policy_BT, "TRL KTOTrainer kto", note)}


def reward() -> dict[str, Any]:
    torch.manual_seed(4)
    scores_B, margins_P = (2 * torch.randn(2 * PAIRS)).requires_grad_(), torch.rand(PAIRS)
    found = {}
    for name, objective in {
        "reward": RewardObjective(),
        "reward use_margin": RewardObjective(use_margin=True),
        "reward centering": RewardObjective(use_margin=True, centering=0.01),
    }.items():
        theirs = trl_reward(scores_B, margins_P if objective.use_margin else None, objective.centering or None)
        ours = objective.loss(*scores_B.chunk(2), margins_P, PAIRS)
        found[name] = compared(ours, theirs, scores_B, "TRL RewardTrainer", "")
    return found


# ---- learning from one's own replies -------------------------------------------------------------------------------


GROUP = 6
"""Replies to a prompt."""


class Sampled(NamedTuple):
    """Sampled replies: their log-probabilities at sampling and now, and what they scored."""

    replies: Replies
    old_BT: Tensor
    rewards_B: Tensor
    groups_B: Tensor

    def of_tokens(self, values_BT: Tensor) -> Tensor:
        """The values of the replies' tokens, one reply after another [S]."""
        return values_BT[self.replies.replies_BT == 1]


def sampled() -> Sampled:
    """Two groups have equal rewards; the policy has moved by 0.15 nats a token, so that many a ratio is clipped."""
    replies = batch(PAIRS, uneven(PAIRS), seed=5)
    old_BT = (replies.policy_BT + 0.15 * torch.randn_like(replies.policy_BT)).clamp(max=0).detach()
    groups_B = torch.arange(PAIRS) // GROUP
    rewards_B = torch.rand(PAIRS).masked_fill(groups_B == 1, 1.0).masked_fill(groups_B == 2, 0.1)
    return Sampled(replies, old_BT, rewards_B, groups_B)


def trl_sampling(kind: type, asked: Sampled, beta: float, **settings: Any) -> tuple[Tensor, Theirs]:
    """The advantage of every reply, and the loss. Writing, scoring and the model's forward pass give what is in the batch."""
    made = trainer(kind, beta=beta, **settings)
    made.model.is_gradient_checkpointing = False
    counts = asked.replies.replies_BT.sum(1).long().tolist()
    ids, texts = ([[1] * PROMPT for _ in counts], [[1] * count for count in counts]), [""] * len(counts)
    reference = SimpleNamespace()

    def logps(model: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        policy_BT = asked.replies.policy_BT if torch.is_grad_enabled() else asked.old_BT
        found_BT = (asked.replies.reference_BT if model is reference else policy_BT)[:, PROMPT : PROMPT + max(counts)]
        return found_BT, torch.zeros_like(found_BT), None

    alone = {"num_processes": 1, "process_index": 0, "reduce": lambda x, reduction: x}
    made.__dict__.update(
        accelerator=SimpleNamespace(**vars(made.accelerator), **alone),
        args=SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            per_device_train_batch_size=len(counts),
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
        ),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _logs={"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list), "extra": {}},
        _pending_extra_logs={},
        _pending_metrics={},
        _entropy_bonus_enabled=False,
        _is_vlm=False,
        _generate=lambda _: (*ids, None, texts, None, {}, None, None) if kind is GRPOTrainer else (*ids, texts),
        _calculate_rewards=lambda *_: asked.rewards_B[:, None],
        _get_per_token_logps_and_entropies=logps,
        ref_model=reference,
        reward_funcs=[None],
        reward_func_names=["score"],
        reward_weights=torch.ones(1),
        reward_clip_range=None,
        num_generations=GROUP,
        num_iterations=2,
        top_entropy_quantile=1.0,
        epsilon_low=0.2,
        epsilon_high=0.2,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        multi_objective_aggregation="sum_then_normalize",
        off_policy_mask_threshold=None,
        pad_to_multiple_of=None,
        environment_factories=None,
        environments=None,
        tools=None,
        use_vllm=False,
        mask_truncated_completions=False,
        log_multimodal=False,
    )
    inputs = made._generate_and_score_completions([{"prompt": ""} for _ in counts])
    return inputs["advantages"], Theirs(made._compute_loss(made.model, inputs), {})


def own_replies() -> dict[str, Any]:
    moved = sampled()
    first = moved._replace(old_BT=moved.replies.policy_BT.detach())

    def row(
        method: PolicyGradient, asked: Sampled, theirs: tuple[Tensor, Theirs], against: str, scale: float = 1.0
    ) -> Any:
        policy_S, old_S, reference_S = (
            asked.of_tokens(x) for x in (asked.replies.policy_BT, asked.old_BT, asked.replies.reference_BT)
        )
        counts_B, rewards_B = asked.replies.replies_BT.sum(1).long(), asked.rewards_B
        if method.beta and method.kl_in == "reward":
            kl_S = kl_estimate(method.kl, old_S, reference_S)
            rewards_B = rewards_B - method.beta * torch.stack([own.sum() for own in kl_S.split(counts_B.tolist())])
        assert method.advantage != "gae", "TRL has no such trainer any more"
        own_B = advantages(method.advantage, rewards_B, asked.groups_B)
        totals = StepTotals(float(PAIRS), float(counts_B.sum()), float(LONGEST))
        logps = ReplyLogps(policy_S, old_S, reference_S, counts_B)
        loss = method.loss(logps, own_B.repeat_interleave(counts_B), totals)
        apart = float((own_B - theirs[0]).abs().max())
        found = compared(Loss(scale * loss.share, {}), theirs[1], asked.replies.policy_BT, against, "")
        same_loss = 0.0 if asked is first else found["max_abs_difference"]
        return found | {"max_abs_difference": max(apart, same_loss)}

    def grpo(loss_type: str, scale: str = "group", level: str = "token", beta: float = 0.0) -> tuple[Tensor, Theirs]:
        more = {"loss_type": loss_type, "scale_rewards": scale, "importance_sampling_level": level}
        return trl_sampling(GRPOTrainer, moved, beta, **more)

    rloo = trl_sampling(RLOOTrainer, first, 0.05, normalize_advantages=False)
    return {
        "grpo": row(Grpo(), moved, grpo("grpo"), "TRL GRPOTrainer grpo: advantages and loss"),
        "grpo beta": row(Grpo(beta=0.04), moved, grpo("grpo", beta=0.04), "TRL GRPOTrainer grpo, beta 0.04"),
        "dr_grpo": row(DrGrpo(), moved, grpo("dr_grpo", "none"), "TRL GRPOTrainer dr_grpo, scale_rewards none"),
        "dapo": row(Dapo(clip_high=0.2), moved, grpo("dapo"), "TRL GRPOTrainer dapo, the same clip"),
        "gspo": row(
            Gspo(clip_low=0.2, clip_high=0.2),
            moved,
            grpo("grpo", level="sequence"),
            "TRL GRPOTrainer grpo, importance_sampling_level sequence, the same clip",
        ),
        "rloo": row(Rloo(), first, rloo, "TRL RLOOTrainer: advantages with the KL, first update", LONGEST)
        | {
            "note": "advantages and gradient; TRL's ratio, and so its loss and clip, is that of a whole reply, posttrain's of a token"
        },
    }


def main() -> int:
    torch.set_num_threads(1)
    objectives = dpo_family() | written_family() | kto() | reward() | own_replies()
    versions = {package: importlib.metadata.version(package) for package in ("trl", "torch", "transformers")}
    print(json.dumps({"benchmark": "objectives_oracle", **versions, "tolerance": TOLERANCE, "objectives": objectives}))
    agree = all(
        row[key] <= TOLERANCE
        for row in objectives.values()
        for key in ("max_abs_difference", "max_gradient_difference")
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
