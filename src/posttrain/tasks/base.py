"""What a benchmark is: tasks for a model, answers back, findings out.

    tasks -> answers of every model -> findings (values, verdicts, accounting) -> record (`measures.py`)

A benchmark is a configuration with ``name``, ``title``, ``area``, ``needs``, ``tasks`` and ``score``, in one file
of its own; it is named in the union of ``__init__.py`` and recipes accept it. It asks no model itself: who answers and who judges
is handed in, so tests use scripted engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from posttrain.generate.engine import Failure, FinishReason, Sampling, Usage
from posttrain.judge.pool import Judges
from posttrain.stats.intervals import IntervalSettings

Area = Literal["helpfulness", "instructions", "reasoning", "safety", "diversity"]
"""What a benchmark is about; the report groups by it."""

Unit = Literal["share", "rating", "tokens", "number"]
"""``share`` is shown as a percentage; ``rating`` has a scale."""


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


class Measure(NamedTuple):
    """One number that a benchmark reports."""

    key: str
    """Column of values and of the record."""
    label: str
    unit: Unit
    better: Literal["higher", "lower", "neither"]
    about: str
    """One sentence for readers who don't know it."""
    headline: bool = False
    """Shown in the overview of all models."""
    scale: tuple[float, float] | None = None
    """Lowest and highest value, where there are such."""


class Value(NamedTuple):
    """A measure of one model on one task (several per task where it has turns, samples or instructions)."""

    model: str
    task: str
    """The task's id: the unit that is resampled."""
    measure: str
    value: float
    category: str | None = None


class Shown(NamedTuple):
    """What the page shows beside one reply."""

    label: str
    """In a word or two: ``passed``, ``7 of 10``, ``full refusal``, ``wins``."""
    good: bool | None
    """None = neither good nor bad."""
    detail: str = ""
    """Why: failed instructions, the expected answer, the judge's own words."""


class Counts(NamedTuple):
    """What became of one model's answers: asked = measured + the sum of ``dropped``. Nothing is lost without a reason."""

    asked: int
    answered: int
    """Answers that are complete."""
    measured: int
    """Answers that have a value."""
    dropped: dict[str, int]
    """Reason -> answers without a value."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a benchmark found. Everything else of its record is computed from this."""

    values: Sequence[Value]
    counts: Mapping[str, Counts]
    """By model."""
    shown: Mapping[tuple[str, str, int], Shown] = field(default_factory=dict)
    """(model, task id, sample) -> what stands beside the reply."""
    values_shown: Mapping[tuple[str, str, int], Mapping[str, float]] = field(default_factory=dict)
    """(model, task id, sample) -> numbers of that reply, for the rows file."""
    notes: Sequence[str] = ()
    """What a reader must know: a set that is not comparable with a leaderboard, a rule that is rough."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Parts of the record with a form of their own: ``win_rates``, ``ratings``, ``length_controlled`` (docs/run-folder.md)."""


class Benchmark(Protocol):
    """A benchmark's configuration; see the files beside this one."""

    title: ClassVar[str]
    area: ClassVar[Area]

    @property
    def name(self) -> str:
        """The tag in recipes."""
        ...

    @property
    def needs(self) -> Needs:
        """What must be there before a reply is made."""
        ...

    def measures(self) -> tuple[Measure, ...]:
        """The numbers it reports, headline first."""
        ...

    def tasks(self) -> tuple[Task, ...]:
        """Its prompts. Raises DataError that names file and row where they can't be read."""
        ...

    def score(
        self, answers: Mapping[str, Sequence[Answer]], judges: Judges | None, settings: IntervalSettings
    ) -> Findings:
        """Measure the answers of every model (models in the recipe's order, the first is the baseline)."""
        ...
