"""An eval stage as frozen facts: every number the report derives is computed here, once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from posttrain.report.benchmarks import BenchmarkFacts, read_benchmarks
from posttrain.report.feedback import EvalFeedback, holds_feedback, read_feedback
from posttrain.report.preferences import (
    EvalPreferences,
    holds_pairs,
    read_preferences,
)
from posttrain.report.reading import Gap, Stage, json_lines, json_value, optional, parse
from posttrain.report.records import (
    AccuracyFile,
    AccuracyPair,
    Check,
    LikelihoodFile,
    LikelihoodPair,
    LikelihoodRow,
    ModelAccuracy,
    ModelLikelihood,
    Reply,
)
from posttrain.report.verdicts import Verdict, loss_verdict, paired_gain_verdict

T = TypeVar("T")

Outcome = Literal["gained", "lost", "both right", "both wrong", "right", "wrong", "not checked"]


# ---- derived facts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossComparison:
    """One pair of models on the held-out rows. The loss is lower for better, so a negative difference is a gain."""

    pair: LikelihoodPair
    perplexity_change: float
    """Relative change of perplexity, exp(difference) - 1."""
    perplexity_change_low: float
    perplexity_change_high: float
    row_differences: tuple[float, ...]
    """Loss of b minus loss of a for each held-out row, nats per token of that row."""
    verdict: Verdict

    @property
    def rows_better(self) -> int:
        """Rows to which ``b`` gives a higher likelihood than ``a``."""
        return sum(difference < 0 for difference in self.row_differences)


@dataclass(frozen=True, slots=True)
class AccuracyComparison:
    """One pair of models on the checked prompts."""

    pair: AccuracyPair
    verdict: Verdict
    instruments_agree: bool
    """Whether interval and McNemar's test say the same at this confidence."""

    @property
    def checked(self) -> int:
        """Prompts that both models answered and that have a checkable answer."""
        return self.pair.both_right + self.pair.only_a + self.pair.only_b + self.pair.both_wrong


@dataclass(frozen=True, slots=True)
class PromptReplies:
    """One prompt with the replies of all models, in the order of the models."""

    prompt_id: str
    class_name: str
    language: str
    prompt: str
    replies: tuple[Reply, ...]
    outcome: Outcome
    """First model against last model; ``right`` or ``wrong`` where there is one model only."""

    @property
    def check(self) -> Check | None:
        """What the replies were checked for."""
        return next((reply.check for reply in self.replies if reply.check), None)


@dataclass(frozen=True, slots=True)
class EvalFacts:
    """An eval stage. ``models[0]`` is the baseline; ``models[-1]`` is the one the headline is about."""

    stage: Stage
    models: tuple[str, ...]
    likelihood: Mapping[str, ModelLikelihood]
    loss_comparisons: tuple[LossComparison, ...]
    accuracy: Mapping[str, ModelAccuracy]
    accuracy_comparisons: tuple[AccuracyComparison, ...]
    prompts: tuple[PromptReplies, ...]
    preferences: EvalPreferences | None
    """Where the held-out rows are pairs."""
    feedback: EvalFeedback | None
    """Where they are single labelled replies."""
    benchmarks: tuple[BenchmarkFacts, ...]

    @property
    def headline_loss(self) -> LossComparison | None:
        """Baseline against the last model."""
        return _headline(self.loss_comparisons, self.models)

    @property
    def headline_accuracy(self) -> AccuracyComparison | None:
        """Baseline against the last model."""
        return _headline(self.accuracy_comparisons, self.models)

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of prompts in order of appearance."""
        return tuple(dict.fromkeys(prompt.class_name for prompt in self.prompts))

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of prompts in order of appearance."""
        return tuple(dict.fromkeys(prompt.language for prompt in self.prompts))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Outcomes that occur, in order of appearance."""
        return tuple(dict.fromkeys(prompt.outcome for prompt in self.prompts))

    def cut_replies(self, model: str) -> int:
        """Count the replies of a model that ended at the length limit."""
        return sum(r.finish_reason == "length" for p in self.prompts for r in p.replies if r.model == model)

    def failed_replies(self, model: str) -> int:
        """Count the replies of a model that have no end because it computed NaN or infinity."""
        return sum(r.finish_reason == "not_finite" for p in self.prompts for r in p.replies if r.model == model)

    def reply_tokens(self, model: str) -> float | None:
        """Return the mean length of a model's replies in tokens; None where there are none, or a length is missing."""
        lengths = [reply.tokens for prompt in self.prompts for reply in prompt.replies if reply.model == model]
        known = [tokens for tokens in lengths if tokens is not None]
        return sum(known) / len(known) if known and len(known) == len(lengths) else None


def accuracy_verdict(pair: AccuracyPair) -> AccuracyComparison:
    """Call a difference shown only where the interval excludes zero and McNemar's test rejects at that level.

    The bootstrap interval is too narrow for a handful of prompts (4 gained and 0 lost of 24: interval above zero,
    exact p = 0.125), hence both.
    """
    excludes_zero = pair.low > 0 or pair.high < 0
    rejects = pair.p_value < 1 - pair.confidence
    verdict = paired_gain_verdict(pair.low, pair.high, pair.p_value, pair.confidence)
    return AccuracyComparison(pair, verdict, instruments_agree=excludes_zero == rejects)


def prompt_outcome(replies: Sequence[Reply], models: Sequence[str]) -> Outcome:
    """Say what became of one prompt between the first and the last model."""
    passed = {reply.model: reply.check.passed for reply in replies if reply.check}
    return outcome_of(passed.get(models[0]), passed.get(models[-1]), alone=len(models) == 1)


def outcome_of(first: bool | None, last: bool | None, *, alone: bool) -> Outcome:
    """Say what became of a prompt: whether the first and the last model got it right, None where it is not known; ``alone``: they are one."""
    if first is None or last is None:
        return "not checked"
    if alone:
        return "right" if last else "wrong"
    table: dict[tuple[bool, bool], Outcome] = {
        (True, True): "both right",
        (False, True): "gained",
        (True, False): "lost",
        (False, False): "both wrong",
    }
    return table[first, last]


def check_words(kind: str, expected: Any) -> str:
    """Return what a check asks for: ``contains any: 7, seven``; parts of a combined check are joined by ``; ``."""
    if isinstance(expected, list) and expected and all(isinstance(part, Mapping) for part in expected):
        return "; ".join(check_words(str(part.get("kind", kind)), part.get("expected")) for part in expected)
    values = expected if isinstance(expected, list) else [expected]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return f"{kind.replace('_', ' ')}: {', '.join(texts)}"


# ---- reading -------------------------------------------------------------------------------------------------------


def scores_rows(config: Mapping[str, Any]) -> bool:
    """Whether an eval stage scores held-out rows; it may ask for benchmarks or prompts only."""
    return config.get("data", "") is not None


def read_evaluation(stage: Stage, gaps: list[Gap]) -> EvalFacts:
    """Return what an eval stage has measured."""
    folder, config = stage.folder, stage.config
    preferences = read_preferences(folder, stage, gaps)
    feedback = read_feedback(folder, stage, gaps)
    likelihood = LikelihoodFile({})
    if folder.file("likelihood.json").exists() or (
        scores_rows(config) and not holds_pairs(folder, stage) and not holds_feedback(folder, stage)
    ):
        likelihood = (
            optional(
                gaps,
                stage,
                folder.file("likelihood.json"),
                "held-out loss and perplexity are not known",
                lambda path: parse(LikelihoodFile, json_value(path), path),
            )
            or likelihood
        )
    rows: tuple[LikelihoodRow, ...] = ()
    if likelihood.models:
        rows = (
            optional(
                gaps,
                stage,
                folder.file("likelihood_rows.jsonl"),
                "the change of each held-out row is not known",
                lambda path: parse(tuple[LikelihoodRow, ...], json_lines(path), path),
            )
            or ()
        )
    replies: tuple[Reply, ...] = ()
    accuracy = AccuracyFile({})
    if "prompts" not in config or config["prompts"] is not None:
        replies = (
            optional(
                gaps,
                stage,
                folder.file("replies.jsonl"),
                "there are no replies to read",
                lambda path: parse(tuple[Reply, ...], json_lines(path), path),
            )
            or ()
        )
        if not replies or any(reply.check for reply in replies):
            accuracy = optional(
                gaps,
                stage,
                folder.file("accuracy.json"),
                "the accuracy of checked answers is not known",
                lambda path: parse(AccuracyFile, json_value(path), path),
            ) or AccuracyFile({})
    benchmarks = read_benchmarks(folder, stage, gaps)
    compared = [*(preferences.models if preferences else ()), *(feedback.models if feedback else ())]
    asked = [model for benchmark in benchmarks for model in benchmark.record.models]
    seen = [*likelihood.models, *compared, *accuracy.models, *(reply.model for reply in replies), *asked]
    declared = [name for name in config.get("models") or () if name in seen]
    models = tuple(dict.fromkeys([*declared, *seen]))
    gaps += _contradictions(stage, accuracy.models, replies)
    return EvalFacts(
        stage=stage,
        models=models,
        likelihood={m: likelihood.models[m] for m in models if m in likelihood.models},
        loss_comparisons=tuple(_loss_comparison(pair, rows) for pair in likelihood.pairs),
        accuracy={m: accuracy.models[m] for m in models if m in accuracy.models},
        accuracy_comparisons=tuple(accuracy_verdict(pair) for pair in accuracy.pairs),
        prompts=_prompts(replies, models),
        preferences=preferences,
        feedback=feedback,
        benchmarks=benchmarks,
    )


def _contradictions(stage: Stage, accuracy: Mapping[str, ModelAccuracy], replies: Iterable[Reply]) -> list[Gap]:
    """Return a gap for each model whose accuracy.json does not count what replies.jsonl holds."""
    passed: dict[str, list[bool]] = {}
    for reply in replies:
        if reply.check is not None:
            passed.setdefault(reply.model, []).append(reply.check.passed)
    return [
        Gap(
            stage.name,
            "damaged",
            f"Stage {stage.name}: accuracy.json counts {rate.all.passed} of {rate.all.checked} for {model}, "
            f"replies.jsonl holds {sum(passed[model])} of {len(passed[model])}.",
        )
        for model, rate in accuracy.items()
        if model in passed and (rate.all.passed, rate.all.checked) != (sum(passed[model]), len(passed[model]))
    ]


def _loss_comparison(pair: LikelihoodPair, rows: Iterable[LikelihoodRow]) -> LossComparison:
    sums: dict[str, dict[str, tuple[float, int]]] = {pair.a: {}, pair.b: {}}
    for row in rows:
        if row.model in sums:  # a row expanded into several examples stands several times
            nll, tokens = sums[row.model].get(row.row_id, (0.0, 0))
            sums[row.model][row.row_id] = (nll + row.nll, tokens + row.tokens)
    first, second = sums[pair.a], sums[pair.b]
    return LossComparison(
        pair=pair,
        perplexity_change=math.expm1(pair.difference),
        perplexity_change_low=math.expm1(pair.low),
        perplexity_change_high=math.expm1(pair.high),
        row_differences=tuple(
            (second[row_id][0] - nll) / tokens
            for row_id, (nll, tokens) in first.items()
            if tokens and row_id in second and pair.a != pair.b
        ),
        verdict=loss_verdict(pair.low, pair.high),
    )


def _prompts(replies: Sequence[Reply], models: Sequence[str]) -> tuple[PromptReplies, ...]:
    grouped: dict[str, list[Reply]] = {}
    for reply in replies:
        grouped.setdefault(reply.prompt_id, []).append(reply)
    prompts = []
    for prompt_id, group in grouped.items():
        ordered = tuple(sorted(group, key=lambda reply: models.index(reply.model)))
        first = ordered[0]
        prompts.append(
            PromptReplies(
                prompt_id,
                first.class_name,
                first.language,
                first.prompt,
                ordered,
                prompt_outcome(ordered, models),
            )
        )
    classes = list(dict.fromkeys(prompt.class_name for prompt in prompts))
    return tuple(sorted(prompts, key=lambda prompt: classes.index(prompt.class_name)))


C = TypeVar("C", LossComparison, AccuracyComparison)


def _headline(comparisons: Sequence[C], models: Sequence[str]) -> C | None:
    """Return the comparison of the first model with the last one, else the last comparison with the first one."""
    from_baseline = [c for c in comparisons if c.pair.a == models[0]]
    exact = [c for c in from_baseline if c.pair.b == models[-1]]
    return next(iter(exact or from_baseline[-1:]), None)
