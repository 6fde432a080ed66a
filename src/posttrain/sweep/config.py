"""The settings of a sweep: what is varied, over which seeds, by which search, and what decides. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import Discriminator

from posttrain.artifacts import canonical_json
from posttrain.config import Problem
from posttrain.references import NamesStage

Changes = Mapping[str, Any]
"""Path of a setting (``sft.learning_rate``) -> its value."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that a search draws from."""

    low: float
    high: float
    log: bool = False
    """Whether their logarithms are drawn evenly: for rates."""
    whole: bool = False
    """Whether they are whole numbers."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("a range of logarithms begins above 0")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the values of ``over``, or the list in ``settings``."""

    name: Literal["grid"] = "grid"


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Settings drawn independently (extra ``tune``)."""

    name: Literal["random"]
    trials: Annotated[int, Ge(1)] = 16
    """Settings to draw."""


@dataclass(frozen=True, kw_only=True)
class AshaSearch:
    """Settings drawn independently; at each rung only the best go on (successive halving as arXiv:1810.05934 promotes; extra ``tune``).

    A rung is a measurement of the held-out rows within the whole schedule, so all that reach it are comparable.
    """

    name: Literal["asha"]
    trials: Annotated[int, Ge(1)] = 16
    """Settings to draw."""
    reduction: Annotated[int, Ge(2)] = 4
    """At a rung one of so many goes on."""


def _grid() -> Grid:
    return Grid()


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What is varied, and what decides."""

    stage: Annotated[str, NamesStage(None)]
    """The stage that is measured: a train stage (its held-out loss), or an eval stage. It, and what it reads, is run for each setting."""
    over: dict[str, tuple[Any, ...] | Range] = field(default_factory=dict)
    """Setting -> its values, the simplest first: ``sft.learning_rate: [1e-4, 2e-4]``; a search may draw from ``{low: 1e-5, high: 1e-3, log: true}``."""
    settings: tuple[dict[str, Any], ...] = ()
    """In place of ``over``: the settings one by one, the simplest first."""
    seeds: tuple[Annotated[int, Ge(0), Lt(2**32)], ...] = ()
    """Seeds of the trainings that the settings reach, and of what reads them; empty = the recipe's. Rows, and trainings before these, are the same for all."""
    metric: str | None = None
    """What decides: of an eval stage ``RECORD.MEASURE`` (``gsm8k.accuracy``), null = its first headline; of a train stage its held-out loss."""
    model: str | None = None
    """Of an eval stage: which of its models; null = the last."""
    search: Annotated[Grid | RandomSearch | AshaSearch, Discriminator("name")] = field(default_factory=_grid)
    """How settings are found."""
    end_dominated: bool = False
    """End a training whose held-out loss is shown to be worse than that of the best finished one at the same step, at two measurements running, in the second half of its steps."""
    side_by_side: Annotated[int, Ge(1)] = 1
    """Runs at once, each in a process of its own: fewer where the memory does not hold so many."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Of the intervals."""

    def __post_init__(self) -> None:
        if self.over and self.settings:
            raise ValueError("give over or settings, not both")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is listed twice")

    @property
    def paths(self) -> tuple[str, ...]:
        """Everything that is varied."""
        return tuple(dict.fromkeys([*self.over, *(path for one in self.settings for path in one)]))

    def own_problems(self) -> Iterable[Problem]:
        """What is wrong whatever the recipe; paths begin at the stage."""
        drawn = not isinstance(self.search, Grid)
        for path, values in self.over.items():
            if isinstance(values, Range) and not drawn:
                yield Problem(("over", path), "a range is for search: {name: random} or asha; a grid needs a list")
            elif not isinstance(values, Range) and not values:
                yield Problem(("over", path), "no values: this grid has no points")
            elif not isinstance(values, Range) and len({canonical_json(value) for value in values}) < len(values):
                yield Problem(("over", path), "a value is listed twice")
        if drawn and not self.over:
            yield Problem(("over",), "a search needs something to draw from")
        if not self.over and not self.settings and len(self.seeds) < 2:
            yield Problem(("over",), "nothing is varied: give over, settings, or several seeds")
        if self.side_by_side > 1 and (self.end_dominated or isinstance(self.search, AshaSearch)):
            yield Problem(
                ("side_by_side",), "runs that are ended by what others reached come one after another: set it to 1"
            )

    def listed(self) -> list[Changes]:
        """The settings of a grid or list, in order; one without changes where only seeds are varied."""
        if self.settings:
            return [dict(one) for one in self.settings]
        values = [found for found in self.over.values() if not isinstance(found, Range)]
        return [dict(zip(self.over, point, strict=True)) for point in product(*values)]
