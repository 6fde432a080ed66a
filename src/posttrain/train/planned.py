"""The planner's view of a training stage: what of its settings and rows decides memory. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from posttrain.encode.lengths import Lengths
from posttrain.model.config import LoraAdapter
from posttrain.plan.fit import Rows, Run
from posttrain.plan.memory import Setup
from posttrain.plan.shape import ModelShape
from posttrain.train.config import TrainSettings

SUPERVISED_SHARE = {"conversations": 0.6, "pairs": 0.7, "feedback": 0.6}
"""Of the tokens that go through the model, those whose logits are formed; where rows are not there to be counted."""
PROMPT_SHARE = 0.5
"""Of a pair's longer side, the prompt that both sides share; where rows are not there to be counted."""


def setup_of(
    settings: TrainSettings,
    shape: ModelShape,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
    reference_tokens: int = 0,
) -> Setup:
    """What of a stage's settings decides its memory."""
    adapter, objective = settings.adapter, settings.objective
    if isinstance(adapter, LoraAdapter) and objective.row_kind != "conversations":
        adapter = replace(adapter, dropout=0.0)  # preferences are trained without
    return Setup(
        shape=shape,
        adapter=adapter,
        quantized=getattr(adapter, "quantize", None) is not None,
        dtype=dtype,
        device=device,
        checkpointing=settings.gradient_checkpointing,
        scores=objective.head == "score",
        reference_tokens=reference_tokens,
        other_reference=objective.needs_reference and getattr(objective, "reference", None) is not None,
    )


def run_of(settings: TrainSettings, rows: Rows, micro_batch_tokens: int) -> Run:
    """What of a stage's settings decides its time."""
    return Run(
        rows=rows,
        batch_size=settings.batch_size,
        micro_batch_tokens=micro_batch_tokens,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )


def longest_rows(settings: TrainSettings) -> Rows:
    """The rows at their worst: all of ``max_length``."""
    kind, longest = settings.objective.row_kind, settings.max_length
    if kind != "pairs":
        return Rows(mean=longest, longest=longest, usual=longest, supervised_share=SUPERVISED_SHARE[kind])
    prompt = round(PROMPT_SHARE * longest)
    unit = 2 * longest - prompt
    share = SUPERVISED_SHARE[kind] if settings.objective.head == "tokens" else 2 / unit
    return Rows(mean=unit, longest=unit, usual=longest, supervised_share=share, prompt_share=PROMPT_SHARE)


def measured_rows(settings: TrainSettings, lengths: Lengths) -> Rows:
    """The rows that an earlier run of the stage has encoded, from their lengths.

    A token stands in a sequence of the mean of squares by the mean: long rows have most tokens.
    """
    whole = [n for n in lengths.conversation.values if n <= settings.max_length]
    if not whole:
        return longest_rows(settings)
    replies = [kind.values for _, kind in lengths.sides]
    if settings.objective.row_kind == "pairs" and len(replies) == 2:
        return _pair_rows(whole, *replies)
    supervised = sum(lengths.assistant.values) / max(1, sum(lengths.conversation.values))
    return Rows(
        count=len(whole),
        mean=sum(whole) / len(whole),
        longest=max(whole),
        usual=_usual(whole),
        supervised_share=supervised,
        measured=True,
    )


def _pair_rows(whole: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Rows:
    """Pairs: ``whole`` are the conversations of both sides, ``chosen`` and ``rejected`` the replies."""
    pairs, replies = max(1, len(chosen)), sum(chosen) + sum(rejected)
    prompt = max(0.0, (sum(whole) - replies) / max(1, len(whole)))
    mean, usual = prompt + replies / pairs, _usual(whole)
    longest = max(map(sum, zip(chosen, rejected, strict=False)), default=0) + round(prompt)
    return Rows(
        count=pairs,
        mean=mean,
        longest=max(longest, max(whole)),
        usual=usual,
        supervised_share=replies / pairs / mean,
        prompt_share=min(0.95, prompt / usual),
        measured=True,
    )


def _usual(lengths: Sequence[int]) -> int:
    return round(sum(n * n for n in lengths) / sum(lengths))
