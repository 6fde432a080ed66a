"""The loop of benchmarks that measure every reply by itself: answers of all models -> findings, nothing lost without a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from posttrain.tasks.base import Answer, Counts, Findings, Shown, Value


class Point(NamedTuple):
    """One number of one reply."""

    measure: str
    value: float
    category: str | None = None


class Scored(NamedTuple):
    """What one reply is worth."""

    points: tuple[Point, ...]
    """At least one; a measure may have several (one an instruction)."""
    shown: Shown


def score_each(
    answers: Mapping[str, Sequence[Answer]], score: Callable[[Answer], Scored], notes: Sequence[str] = ()
) -> Findings:
    """Findings of tasks of one turn: ``score`` sees complete answers only; any other is dropped with its reason."""
    values: list[Value] = []
    counts: dict[str, Counts] = {}
    shown: dict[tuple[str, str, int], Shown] = {}
    values_shown: dict[tuple[str, str, int], dict[str, float]] = {}
    for model, own in answers.items():
        for answer in own:
            if not answer.complete:
                continue
            found = score(answer)
            values += [Value(model, answer.task.id, p.measure, p.value, p.category) for p in found.points]
            key = (model, answer.task.id, answer.sample)
            shown[key] = found.shown
            values_shown[key] = _means(found.points)
        counts[model] = counted(own, [why_missing(answer) for answer in own if not answer.complete])
    return Findings(values=values, counts=counts, shown=shown, values_shown=values_shown, notes=notes)


def counted(answers: Sequence[Answer], dropped: Sequence[str]) -> Counts:
    """The accounting of one model. ``dropped``: a reason for every answer that has no value."""
    complete = sum(answer.complete for answer in answers)
    return Counts(len(answers), complete, len(answers) - len(dropped), dict(Counter(dropped)))


def why_missing(answer: Answer) -> str:
    """Why an answer is not complete: the reason of its failed call."""
    return "no_reply" if answer.failure is None else answer.failure.reason


def _means(points: Sequence[Point]) -> dict[str, float]:
    by_measure: dict[str, list[float]] = {}
    for point in points:
        by_measure.setdefault(point.measure, []).append(point.value)
    return {measure: fmean(found) for measure, found in by_measure.items()}
