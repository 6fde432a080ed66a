"""What a task is: prompts, and what one reply to one of them is worth.

    prompts -> answers of every model -> findings (values, remarks, accounting) -> record (`records.py`)

A benchmark is a configuration with ``name``, ``title``, ``area``, ``needs``, ``measures`` and ``tasks``, in one file of its own; it is named
in the union of ``__init__.py`` and recipes accept it. Beside these it has one or more of

    score(task, reply)    the values of one reply, by itself: it needs no engine and no judge, so selection of data and rewards use it too
    judge(answers, ...)   replies that a judge reads or compares
    corpus(answers, ...)  what is no mean over replies: of all samples of a prompt, or of all replies together

`measuring.py` goes over the answers. A benchmark asks no model itself: who answers and who judges is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from posttrain.generate.engine import Failure, FinishReason, Sampling, Usage
from posttrain.judge.pool import Judges
from posttrain.judge.win_rates import WinRates
from posttrain.stats.intervals import IntervalSettings
from posttrain.table import grouped
from posttrain.tasks.records import (
    Account,
    Area,
    Difference,
    LengthControlled,
    Measure,
    Ratings,
    Remark,
    Result,
)

Key = tuple[str, str, int]
"""(model, task id, sample)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt of a benchmark."""

    id: str
    """Unique in the benchmark: values of one task belong together when resampled."""
    turns: tuple[str, ...]
    """The user's turns; a later one is asked after the reply to the one before."""
    sampling: Sampling
    samples: int = 1
    """Replies drawn for it."""
    category: str | None = None
    language: str | None = None
    """``en``, ``zh``; None = not known."""
    system: str = ""
    expected: Any = None
    """What the benchmark needs to score a reply: its own business."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said to one sample of a task. Complete where there is a reply a turn."""

    task: Task
    sample: int
    replies: tuple[str, ...]
    """Without think blocks. Fewer than turns where a call failed."""
    finishes: tuple[FinishReason, ...]
    """One a reply; ``length`` = cut at the limit of tokens."""
    usages: tuple[Usage | None, ...]
    failure: Failure | None = None
    """Why there is no further reply."""
    cached: bool = False
    """Part of it was read from the request cache: an earlier life of the job took the time."""

    @property
    def complete(self) -> bool:
        """A reply to every turn."""
        return len(self.replies) == len(self.task.turns)


class Needs(NamedTuple):
    """What a benchmark can't do without."""

    judge: bool = False
    """A judge reads the replies."""
    ratings: bool = False
    """It reads one reply at a time, which a reward model can't."""
    two_models: bool = False
    """Models are compared with each other."""


class Value(NamedTuple):
    """A measure of one model on one task (several per task where it has turns, samples or instructions)."""

    model: str
    task: str
    """The task's id: the unit that is resampled."""
    measure: str
    value: float
    category: str | None = None


class Point(NamedTuple):
    """One number of one reply."""

    measure: str
    value: float
    category: str | None = None


def means(points: Iterable[Point | Value]) -> dict[str, float]:
    """The mean of every measure."""
    by_measure = grouped((point.measure, point.value) for point in points)
    return {measure: fmean(found) for measure, found in by_measure.items()}


class Score(NamedTuple):
    """What one reply is worth."""

    points: tuple[Point, ...]
    """At least one; a measure may have several (one an instruction)."""
    remark: Remark

    @property
    def values(self) -> dict[str, float]:
        """The mean of every measure."""
        return means(self.points)


class Unscored(NamedTuple):
    """A reply without a value, and why."""

    reason: str
    remark: Remark


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found of all models. Everything else of the record is computed from this."""

    values: Sequence[Value] = ()
    accounting: Mapping[str, Account] = field(default_factory=dict)
    """By model."""
    remarks: Mapping[Key, Remark] = field(default_factory=dict)
    reply_values: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)
    """Numbers of a reply, for the rows file."""
    notes: Sequence[str] = ()
    """What a reader must know: a set that is not comparable with a leaderboard, a rule that is rough."""
    results: Sequence[Result] = ()
    """Those that are no means of values, with intervals of their own."""
    differences: Sequence[Difference] = ()
    """Likewise."""
    win_rates: tuple[WinRates, ...] = ()
    ratings: Ratings | None = None
    length_controlled: LengthControlled | None = None
    by_definition: frozenset[tuple[str, str]] = frozenset()
    """(model, measure) whose values are not measured: the baseline compared with itself."""


class Benchmark(Protocol):
    """A benchmark's configuration; see the files beside this one."""

    title: ClassVar[str]
    area: ClassVar[Area]

    @property
    def name(self) -> str:
        """The tag in recipes."""

    @property
    def needs(self) -> Needs:
        """What must be there before a reply is made."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The numbers it reports, headline first."""

    def tasks(self) -> tuple[Task, ...]:
        """Its prompts. Raises DataError that names file and row where they can't be read."""


@runtime_checkable
class ScoresReplies(Protocol):
    """A benchmark that can tell what one reply is worth."""

    def score(self, task: Task, reply: str) -> Score | Unscored:
        """The values of one reply to a task of one turn."""


@runtime_checkable
class JudgesReplies(Protocol):
    """A benchmark whose replies are judged."""

    def judge(self, answers: Mapping[str, Sequence[Answer]], judges: Judges, settings: IntervalSettings) -> Findings:
        """What the judges say of the answers of every model (in the recipe's order, the first is the baseline)."""


@runtime_checkable
class MeasuresCorpus(Protocol):
    """A benchmark that measures answers together."""

    def corpus(self, answers: Mapping[str, Sequence[Answer]], settings: IntervalSettings) -> Findings:
        """What all answers that count say together; it is added to what single replies say."""


@runtime_checkable
class HasNotes(Protocol):
    """A benchmark whose readers must know something."""

    def notes(self, answers: Mapping[str, Sequence[Answer]]) -> list[str]:
        """Sentences for the report."""
