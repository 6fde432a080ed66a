"""What an online stage writes of itself beside metrics.jsonl (docs/run-folder.md). No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.artifacts import json_records
from posttrain.report.reading import parse
from posttrain.stats.intervals import Interval

SAMPLES_FILE = "samples.jsonl"
"""A line of `Measured` for every measurement of the held-out prompts; the same prompts and the same draws each time."""
SHOWN_SAMPLES = 8
"""Held-out prompts whose replies are kept."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A reply to a held-out prompt."""

    row: str
    prompt: str
    """The last user turn."""
    reply: str
    reward: float | None
    """None = it could not be scored."""
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The held-out prompts answered once each, at a step (0 = before training)."""

    step: int
    rewards: Mapping[str, float]
    """By row; replies that could not be scored are left out."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Mean of every score, unweighed."""
    missing: int = 0
    cut: int = 0
    tokens: int = 0
    samples: Sequence[Sample] = ()
    replies: Mapping[str, str] = field(default_factory=dict)
    """Before training, by row, where a judge of pairs compares later replies with them."""


def read_measured(path: Path) -> tuple[Measured, ...]:
    """The measurements of the held-out prompts; none where none are held out."""
    return tuple(parse(Measured, line, path) for line in json_records(path)) if path.exists() else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineResult:
    """``result`` of an online stage. A stage that is not finished has none of it."""

    steps: int | None = None
    updates: int | None = None
    """Optimizer steps."""
    replies: int | None = None
    """Sampled while learning."""
    tokens: int | None = None
    """Of these replies."""
    missing: int | None = None
    """Replies without a score."""
    cut: int | None = None
    """Replies that reached the limit."""
    first_reward: float | None = None
    """Mean of the first step."""
    last_reward: float | None = None
    """Mean of the last tenth of the steps."""
    held_out_rows: int | None = None
    held_out_before: float | None = None
    held_out_after: float | None = None
    held_out_difference: Interval | None = None
    """After less before on the same prompts; 95%, resampled by prompt."""
    kl: float | None = None
    """Of the last step, nats a token (k3)."""
    largest_gap: float | None = None
    """Between sampler and trainer, the largest of all steps, nats a token (k3)."""
    tokens_per_second: float | None = None
    """Sampled, scored and learned from; median over the steps."""
    training_seconds: float | None = None
    sampling_seconds: float | None = None
    learning_seconds: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    models_in_memory: int | None = None
    """Whole models that were loaded; adapters on the policy's base are none."""
    roles: tuple[str, ...] = ()
    """What they were used as: ``policy``, ``reference``, ``critic``, ``reward model``."""
    peak_memory_bytes: int | None = None
    device: str | None = None
    dtype: str | None = None
