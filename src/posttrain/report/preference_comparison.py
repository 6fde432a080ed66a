"""Two or more preference stages of a run side by side: what each was, what it reached, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from posttrain.report.facts import EvalFacts, RunFacts, TrainFacts
from posttrain.report.preferences import EvalPreferences, PreferenceTraining
from posttrain.report.records import ModelPreferences


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
    names = [train.stage.name for train, _ in trains]
    # All columns are read from one evaluation each: numbers of different rows or prompts can't be compared.
    pairs = _covering(facts.evaluations, names, lambda e: e.preferences.models if e.preferences else ())
    prompts = _covering(facts.evaluations, names, lambda e: {r.model for p in e.prompts for r in p.replies})
    preferences = pairs.preferences if pairs else None
    start = _column(next(iter(starts)), None, None, preferences, prompts) if len(starts) == 1 else None
    measured = start is not None and (start.held_out is not None or start.replies is not None)
    return PreferenceStages(
        stages=tuple(_column(t.stage.name, t, training, preferences, prompts) for t, training in trains),
        start=start if measured else None,
        one_objective=len({training.objective for _, training in trains}) == 1,
        one_loss=all(_loss_of(training) == _loss_of(trains[0][1]) for _, training in trains),
        reference=preferences.reference if preferences else None,
        confidence=preferences.confidence if preferences else None,
        pairs=preferences.pairs if preferences else None,
    )


def _covering(
    evaluations: Sequence[EvalFacts], names: Sequence[str], models: Callable[[EvalFacts], Collection[str]]
) -> EvalFacts | None:
    """Return the evaluation that has most of the stages, the later one of equals; None where none has any."""
    counted = [(sum(name in models(e) for name in names), index, e) for index, e in enumerate(evaluations)]
    known = [entry for entry in counted if entry[0]]
    return max(known, key=lambda entry: entry[:2])[2] if known else None


def _loss_of(training: PreferenceTraining) -> tuple[str, dict[str, object]]:
    return training.objective, dict(training.settings)


def _column(
    name: str,
    train: TrainFacts | None,
    training: PreferenceTraining | None,
    preferences: EvalPreferences | None,
    prompts: EvalFacts | None,
) -> PreferenceStage:
    held_out = preferences.models.get(name) if preferences else None
    start = train.config.get("start_from", "base") if train else name
    kl = held_out.kl if preferences and held_out and preferences.reference == start else None
    if kl is None and training and training.paired and training.reference == start and training.held_out:
        kl = training.held_out[-1].kl
    return PreferenceStage(
        name=name,
        train=train,
        training=training,
        learning_rate=_learning_rate(train) if train else None,
        held_out=held_out,
        kl=kl,
        replies=_replies(prompts, name) if prompts else None,
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
