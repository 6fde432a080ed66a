"""ratings.json of ``posttrain arena`` as frozen values, and the figures drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.report import numbers
from posttrain.report.figure import Figure
from posttrain.report.forest import Lane, forest
from posttrain.report.win_matrix import WinMatrix

MOST_MODELS = 60
"""Models drawn in the rating plot; the table has all of them."""


# ---- ratings.json --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RatedModel:
    """One model's rating in points, and how its comparisons ended."""

    model: str
    rating: float
    low: float
    high: float
    rank: int
    """1 + the number of models that are surely better; models that can't be told apart share one."""
    comparisons: int
    wins: int
    ties: int
    losses: int
    average_win_rate: float
    """Share of wins in [0, 1], averaged over the models it met; a tie is half a win."""


@dataclass(frozen=True, slots=True)
class AnchorFacts:
    """The model whose rating is given."""

    model: str
    rating: float


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The column whose equal values mark comparisons that are not independent."""

    column: str
    clusters: int


@dataclass(frozen=True, slots=True)
class StyleFacts:
    """What one standard deviation of a style difference is worth, in logits of winning."""

    name: str
    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ArenaFacts:
    """All of ratings.json. Shapes: ``M`` models, best first, in ``models`` and on both sides of the matrices."""

    schema: int
    file: str
    method: Literal["bradley_terry", "style_controlled", "elo"]
    interval: Literal["sandwich", "bootstrap"]
    confidence: float
    anchor: AnchorFacts | None
    cluster: ClusterFacts | None
    comparisons: int
    ties: int
    missing: int
    """Rows without a verdict, in none of the numbers."""
    models: tuple[RatedModel, ...]
    win_rates_MM: tuple[tuple[float | None, ...], ...]
    """Share of wins of the row's model against the column's; None where the two never met."""
    counts_MM: tuple[tuple[int, ...], ...]
    style: tuple[StyleFacts, ...]
    """Empty where style is not controlled."""
    warnings: tuple[str, ...]

    @property
    def matrix(self) -> WinMatrix:
        """Who beats whom."""
        return WinMatrix(tuple(one.model for one in self.models), self.win_rates_MM, self.counts_MM)


# ---- figures -------------------------------------------------------------------------------------------------------


def ratings_figure(facts: ArenaFacts) -> Figure:
    """Return the ratings with their intervals, best first."""
    shown = facts.models[:MOST_MODELS]
    lanes = [Lane(one.model, one.rating, one.low, one.high, _rating_words(one, facts.anchor)) for one in shown]
    line = facts.anchor.rating if facts.anchor else 1000.0
    what = f"the anchor, {facts.anchor.model}" if facts.anchor else "the start" if facts.method == "elo" else "the mean"
    caption = f"{numbers.confidence(facts.confidence)} intervals. Dashed: {what}, {numbers.fixed(line, 0)} points."
    if len(facts.models) > len(shown):
        caption += f" The first {len(shown)} of {len(facts.models)} models."
    return forest("ratings", "Ratings and their intervals", lanes, "points", line, caption)


def _rating_words(one: RatedModel, anchor: AnchorFacts | None) -> str:
    if anchor and anchor.model == one.model:
        return f"{numbers.fixed(one.rating, 0)}, the anchor"
    return f"{numbers.fixed(one.rating, 0)} ({numbers.fixed(one.low, 0)} to {numbers.fixed(one.high, 0)})"


def style_figure(facts: ArenaFacts) -> Figure | None:
    """Return what each style feature is worth; None where style is not controlled."""
    if not facts.style:
        return None
    lanes = [
        Lane(
            one.name,
            one.estimate,
            one.low,
            one.high,
            f"{numbers.signed(one.estimate)} ({numbers.interval(one.low, one.high)})",
        )
        for one in facts.style
    ]
    caption = "Right of 0: with everything else equal, more of it wins more often."
    return forest("style", "What style is worth", lanes, "logits of winning per standard deviation", 0.0, caption)
