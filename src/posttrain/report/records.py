"""The artefacts of a run folder as frozen values, one class for each shape that docs/run-folder.md describes.

Unknown keys are ignored, so a newer run can be read; a missing or mistyped key is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field


@dataclass(frozen=True, slots=True)
class ModelLikelihood:
    """Held-out likelihood of one model: nats per supervised token, and its exponential."""

    loss: float
    perplexity: float
    tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class LikelihoodPair:
    """Loss of ``b`` minus loss of ``a`` on the same rows, with a paired bootstrap interval (nats per token)."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    confidence: float
    resamples: int | None = None


@dataclass(frozen=True, slots=True)
class LikelihoodFile:
    """likelihood.json."""

    models: dict[str, ModelLikelihood]
    pairs: tuple[LikelihoodPair, ...] = ()


@dataclass(frozen=True, slots=True)
class LikelihoodRow:
    """One line of likelihood_rows.jsonl: ``nll`` is the sum over the supervised tokens, in nats."""

    model: str
    row_id: str
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelPreferences:
    """Held-out preferences of one model. Margins in nats, log-probabilities summed over a reply, ``kl`` in nats a reply token."""

    reward_accuracy: Estimate
    reward_margin: Estimate
    ranking_accuracy: Estimate
    logps_chosen: float
    logps_rejected: float
    kl: float


@dataclass(frozen=True, slots=True)
class PreferenceDifference:
    """``b`` minus ``a`` on the same pairs, with paired bootstrap intervals."""

    a: str
    b: str
    reward_accuracy: Estimate
    reward_margin: Estimate
    ranking_accuracy: Estimate


@dataclass(frozen=True, slots=True)
class PreferencesFile:
    """preferences.json."""

    reference: str
    pairs: int
    confidence: float
    models: dict[str, ModelPreferences]
    differences: tuple[PreferenceDifference, ...] = ()
    resamples: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFeedback:
    """Held-out feedback of one model; None where one kind of replies is missing."""

    separation: Estimate | None
    reward_margin: Estimate | None
    reward_desirable: Estimate | None
    reward_undesirable: Estimate | None
    kl: float
    logps_desirable: float | None = None
    logps_undesirable: float | None = None


@dataclass(frozen=True, slots=True)
class FeedbackDifference:
    """``b`` minus ``a`` on the same rows."""

    a: str
    b: str
    separation: Estimate | None
    reward_margin: Estimate | None


@dataclass(frozen=True, slots=True)
class FeedbackFile:
    """feedback.json."""

    reference: str
    rows: int
    desirable: int
    undesirable: int
    confidence: float
    models: dict[str, ModelFeedback]
    differences: tuple[FeedbackDifference, ...] = ()
    resamples: int | None = None


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One line of preference_rows.jsonl: log-probabilities of both replies under one model, summed, in nats."""

    model: str
    row_id: str
    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


@dataclass(frozen=True, slots=True)
class Check:
    """What a reply was checked for, and whether it passed."""

    kind: str
    expected: Any
    passed: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """One line of replies.jsonl."""

    model: str
    prompt_id: str
    class_name: Annotated[str, Field(alias="class")]
    language: str
    prompt: str
    reply: str
    finish_reason: str | None = None
    tokens: int | None = None
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """Checked answers: ``passed`` of ``checked``, with a Wilson interval. No answers checked = no accuracy."""

    passed: int
    checked: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ModelAccuracy:
    """Checked accuracy of one model, overall and by class of prompt."""

    all: Rate
    by_class: dict[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccuracyPair:
    """Accuracy of ``b`` minus accuracy of ``a`` on the same prompts; ``p_value`` is McNemar's exact test."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    confidence: float
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    p_value: float


@dataclass(frozen=True, slots=True)
class AccuracyFile:
    """accuracy.json."""

    models: dict[str, ModelAccuracy]
    pairs: tuple[AccuracyPair, ...] = ()
