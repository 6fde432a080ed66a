"""Two or more preference stages of a run side by side: what each was, what it reached, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from posttrain.report.facts import EvalFacts, RunFacts, TrainFacts
from posttrain.report.preferences import PreferenceTraining
from posttrain.report.records import ModelPreferences

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReplyLengths:
    """The mean length of a model's replies to prompts."""

    mean_tokens: float
    prompts: int
    cut: int
    """Replies that ended at the length limit, which makes the mean too short."""


@dataclass(frozen=True, slots=True)
class PreferenceStage:
    """One column of the comparison: a preference stage, or the model all of them start from."""

    name: str
    train: TrainFacts | None
    training: PreferenceTraining | None
    learning_rate: float | None
    held_out: ModelPreferences | None
    """From the last eval stage over pairs that has this model."""
    kl: float | None
    """Distance from the start model, nats a reply token; None where it was measured from another model, or not at all."""
    replies: ReplyLengths | None


@dataclass(frozen=True, slots=True)
class PreferenceStages:
    """All preference stages of a run, where there are at least two."""

    stages: tuple[PreferenceStage, ...]
    start: PreferenceStage | None
    """The model they all start from, where there is one and something was measured of it."""
    one_objective: bool
    """Whether all have the same objective (its settings may differ)."""
    one_loss: bool
    """Whether all have the same objective with the same settings, so that losses and rewards have one scale."""
    reference: str | None
    """What held-out rewards are measured from."""
    confidence: float | None
    pairs: int | None

    @property
    def columns(self) -> tuple[PreferenceStage, ...]:
        """The start model and the stages."""
        return (*((self.start,) if self.start else ()), *self.stages)


def preference_stages(facts: RunFacts) -> PreferenceStages | None:
    """Return the preference stages of a run side by side; None where there are fewer than two."""
    trains = [(train, train.preferences) for train in facts.training if train.preferences is not None]
    if len(trains) < 2:
        return None
    starts = {str(train.config.get("start_from", "base")) for train, _ in trains}
    start = _column(facts, next(iter(starts)), None, None) if len(starts) == 1 else None
    columns = tuple(_column(facts, train.stage.name, train, training) for train, training in trains)
    measured = start is not None and (start.held_out is not None or start.replies is not None)
    evaluation = _latest(facts, lambda e: e.preferences if e.preferences and _of_any(e, columns) else None)
    return PreferenceStages(
        stages=columns,
        start=start if measured else None,
        one_objective=len({training.objective for _, training in trains}) == 1,
        one_loss=all(_loss_of(training) == _loss_of(trains[0][1]) for _, training in trains),
        reference=evaluation.reference if evaluation else None,
        confidence=evaluation.confidence if evaluation else None,
        pairs=evaluation.pairs if evaluation else None,
    )


def _loss_of(training: PreferenceTraining) -> tuple[str, dict[str, object]]:
    return training.objective, dict(training.settings)


def _of_any(evaluation: EvalFacts, columns: tuple[PreferenceStage, ...]) -> bool:
    compared = evaluation.preferences.models if evaluation.preferences else {}
    return any(column.name in compared for column in columns)


def _column(
    facts: RunFacts, name: str, train: TrainFacts | None, training: PreferenceTraining | None
) -> PreferenceStage:
    found = _latest(facts, lambda e: e.preferences if e.preferences and name in e.preferences.models else None)
    held_out = found.models[name] if found else None
    start = train.config.get("start_from", "base") if train else name
    kl = held_out.kl if found and held_out and found.reference == start else None
    if kl is None and training and training.paired and training.reference == start and training.held_out:
        kl = training.held_out[-1].kl
    return PreferenceStage(
        name=name,
        train=train,
        training=training,
        learning_rate=_learning_rate(train) if train else None,
        held_out=held_out,
        kl=kl,
        replies=_latest(facts, lambda evaluation: _replies(evaluation, name)),
    )


def _learning_rate(train: TrainFacts) -> float | None:
    """Return the highest rate: the one that was set, else the highest that was used."""
    rate = train.config.get("learning_rate")
    if isinstance(rate, int | float):
        return float(rate)
    return max((r.learning_rate for r in train.steps if r.learning_rate is not None), default=None)


def _replies(evaluation: EvalFacts, name: str) -> ReplyLengths | None:
    mean = evaluation.reply_tokens(name)
    if mean is None:
        return None
    prompts = sum(any(reply.model == name for reply in prompt.replies) for prompt in evaluation.prompts)
    return ReplyLengths(mean, prompts, evaluation.cut_replies(name))


def _latest(facts: RunFacts, find: Callable[[EvalFacts], T | None]) -> T | None:
    """Return what is found in the last eval stage that has it."""
    return next((found for e in reversed(facts.evaluations) if (found := find(e)) is not None), None)
