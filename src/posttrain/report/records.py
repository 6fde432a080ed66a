"""The artefacts of a run folder as frozen values, one class for each shape that docs/run-folder.md describes.

Unknown keys are ignored, so a newer run can be read; a missing or mistyped key is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from posttrain.artifacts import LedgerStep


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json. Only ``kind`` and ``status`` are needed; a stage that was killed may lack the rest."""

    kind: str
    status: Literal["running", "complete", "failed"]
    config: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    device: str | None = None
    dtype: str | None = None
    provenance: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One dropped row of a ledger."""

    file: str
    line: int
    step: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """ledger.json: the account of rows through one stage."""

    rows_in: int
    rows_kept: int
    steps: tuple[LedgerStep, ...]
    added: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejects: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Token lengths of one kind of text; ``share_over_limit`` is a share of ``count``."""

    values: tuple[int, ...]
    count: int
    p50: float
    p90: float
    p95: float
    max: float
    share_over_limit: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """lengths.json of a train stage, in tokens, before over-length rows are dropped."""

    limit: int
    conversation: LengthStatistics
    assistant: LengthStatistics
    chosen: LengthStatistics | None = None
    rejected: LengthStatistics | None = None
    desirable: LengthStatistics | None = None
    undesirable: LengthStatistics | None = None

    @property
    def sides(self) -> tuple[tuple[str, LengthStatistics], ...]:
        """The replies of pairs or of feedback by kind, the better kind first; empty for conversations."""
        kinds = (
            ("chosen", self.chosen),
            ("rejected", self.rejected),
            ("desirable", self.desirable),
            ("undesirable", self.undesirable),
        )
        return tuple((name, statistics) for name, statistics in kinds if statistics is not None)


@dataclass(frozen=True, slots=True)
class TrainRecord:
    """One training step of metrics.jsonl. ``loss`` is in nats per supervised token."""

    step: int
    loss: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class HeldOutRecord:
    """One held-out measurement of metrics.jsonl; step 0 is before training."""

    step: int
    loss: float
    supervised_tokens: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """One step or held-out measurement of preference training: means over the pairs (or rows), None where not logged."""

    step: int
    loss: float
    rows: int | None = None
    rewards_chosen: Annotated[float | None, Field(alias="rewards/chosen")] = None
    rewards_rejected: Annotated[float | None, Field(alias="rewards/rejected")] = None
    rewards_margins: Annotated[float | None, Field(alias="rewards/margins")] = None
    rewards_accuracies: Annotated[float | None, Field(alias="rewards/accuracies")] = None
    logps_chosen: Annotated[float | None, Field(alias="logps/chosen")] = None
    logps_rejected: Annotated[float | None, Field(alias="logps/rejected")] = None
    kl: float | None = None
    nll: float | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """``result`` of a train stage. All optional: a stage that is not finished has none of it."""

    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    supervised_tokens: int | None = None
    tokens_per_second: float | None = None
    training_seconds: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    best_step: int | None = None
    best_held_out_loss: float | None = None
    stopped_early: bool | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory_bytes: int | None = None
    matmul_share: float | None = None


@dataclass(frozen=True, slots=True)
class DataResult:
    """``result`` of a data stage."""

    train_rows: int | None = None
    held_out_rows: int | None = None
    sources: dict[str, int] = field(default_factory=dict)


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
