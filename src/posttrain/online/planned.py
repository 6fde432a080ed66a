"""The planner's view of an online stage: what of its settings, prompts and scores decides memory. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from posttrain.errors import ModelError
from posttrain.judge.reward import BATCH_TOKENS
from posttrain.model.companions import read_object
from posttrain.model.config import LoraAdapter
from posttrain.model.folder import stored_numbers
from posttrain.model.lineage import Lineage
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import Ppo
from posttrain.online.config import OnlineSettings, ServerSampler
from posttrain.plan.fit import Rows, Run
from posttrain.plan.memory import OwnReplies, Setup
from posttrain.plan.shape import ModelShape, adapter_parameters, model_shape
from posttrain.train.planned import PromptTokens, StagePlan, setup_of

SLOTS = 64
"""Replies that are continued at once (``generate.decode``, which loads torch)."""


class RewardNumbers(NamedTuple):
    """Numbers of reward models: of adapters and heads on the policy's base, and of models of their own."""

    adapter: int = 0
    model: int = 0


def own_setup(
    settings: OnlineSettings,
    shape: ModelShape,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
    prompts: PromptTokens,
    rewards: Sequence[RewardNumbers],
    *,
    goes_on: bool,
) -> Setup:
    """What of a stage decides its memory. ``goes_on``: whether the policy begins with an adapter, of which the reference is a copy."""
    adapter = settings.adapter
    at_once = max(settings.prompts * settings.replies, settings.evaluation_prompts)
    length = prompts.longest + settings.max_new_tokens
    own = OwnReplies(
        slots=0 if isinstance(settings.sampler, ServerSampler) else min(SLOTS, at_once),
        length=length,
        scored_tokens=min(BATCH_TOKENS, at_once * length),
        critic=isinstance(settings.method, Ppo),
        copied_start=goes_on or (isinstance(adapter, LoraAdapter) and adapter.dora),
        reward_adapter=sum(one.adapter for one in rewards),
        reward_model=sum(one.model for one in rewards),
    )
    return replace(setup_of(settings, shape, dtype, device), own_replies=own)


def own_run(settings: OnlineSettings, prompts: PromptTokens) -> Run:
    """What of a stage decides its micro-batches and the time of learning: all replies of the longest length."""
    prompt, reply = max(1, round(prompts.mean)), settings.max_new_tokens
    sides = 2 if isinstance(settings.method, OnlineDpo) else settings.replies
    rows = Rows(
        mean=prompt + sides * reply,
        longest=prompts.longest + sides * reply,
        usual=prompt + reply,
        supervised_share=sides * reply / (prompt + sides * reply),
        prompt_share=prompt / (prompt + reply),
        replies=sides,
        measured=True,  # of a whole batch the mean is taken
    )
    return Run(
        rows=rows,
        batch_size=math.ceil(settings.prompts / settings.minibatches),
        micro_batch_tokens=settings.micro_batch_tokens,
        max_steps=settings.steps * settings.updates,
    )


def stage_plan(
    settings: OnlineSettings,
    folder: Path,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
    prompts: PromptTokens,
    rewards: Sequence[RewardNumbers],
    *,
    goes_on: bool,
) -> StagePlan | None:
    """The plan of a stage whose model lies in a folder; None where the model's type is unknown."""
    try:
        shape = model_shape(read_object(folder / "config.json"), str(folder))
    except ModelError:
        return None
    setup = own_setup(settings, shape, dtype, device, prompts, rewards, goes_on=goes_on)
    run = own_run(settings, prompts)
    layout = run.rows.layout(run.tokens_at_once)
    return StagePlan(replace(setup, accumulates=run.micro_batches(layout.tokens) > 1), run, layout)


def longest_prompts(settings: OnlineSettings) -> PromptTokens:
    """The prompts at their worst."""
    return PromptTokens(settings.max_prompt_tokens, settings.max_prompt_tokens)


def trained_reward(adapter: LoraAdapter | None, shape: ModelShape, *, shares: bool) -> RewardNumbers:
    """A reward model that a recipe trains on weights of this shape; ``shares``: on the policy's own."""
    if adapter is None or adapter.dora or not shares:
        return RewardNumbers(model=shape.parameters)
    return RewardNumbers(adapter_parameters(shape, adapter.rank, adapter.targets) + shape.hidden)


def saved_reward(reward: Lineage, policy: Path) -> RewardNumbers:
    """A reward model in files; ``policy``: the folder of the weights under the policy's adapter."""
    numbers = stored_numbers(reward.adapter or reward.folder)
    if reward.adapter is not None and reward.folder.resolve() == policy.resolve():
        return RewardNumbers(numbers)
    return RewardNumbers(model=numbers if reward.adapter is None else numbers + stored_numbers(reward.folder))
