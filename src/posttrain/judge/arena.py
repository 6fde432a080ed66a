"""Models rated from judged pairs: the record ``ratings.json``, how it is computed, and what a page says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from posttrain.artifacts import read_json
from posttrain.errors import RunError
from posttrain.report import numbers
from posttrain.report.charts import MOST_LANES, Forest, Lane
from posttrain.report.reading import parse
from posttrain.report.values import Block, Cell, Facts, Matrix, Notice, Number, Section, Table, Text
from posttrain.report.words import join, plural
from posttrain.stats.ratings import Anchor, Comparisons, Rating, RatingTable, average_win_rates, win_matrix, win_rates
from posttrain.stats.style_control import StyleCoefficient

SCHEMA = 1
FEW_GAMES = 30
"""Below this many comparisons a normal interval is a rough guess, and Elo with K = 4 has moved little."""
METHOD_WORDS = {
    "bradley_terry": "Bradley-Terry",
    "style_controlled": "Bradley-Terry at equal style",
    "elo": "Elo (online, median over drawn orders)",
}
INTERVAL_WORDS = {"sandwich": "robust (sandwich)", "bootstrap": "bootstrap"}


@dataclass(frozen=True, slots=True)
class RatedModel(Rating):
    """One model's rating in points, and how its comparisons ended."""

    wins: int
    ties: int
    losses: int
    average_win_rate: float
    """Share of wins in [0, 1], averaged over the models it met; a tie is half a win."""


@dataclass(frozen=True, slots=True)
class ArenaRatings:
    """All of ratings.json. Shapes: ``M`` models, best first, in ``models`` and on both sides of the matrices."""

    schema: int
    file: str
    method: Literal["bradley_terry", "style_controlled", "elo"]
    interval: Literal["sandwich", "bootstrap"]
    confidence: float
    anchor: Anchor | None
    cluster: str | None
    """The column whose equal values mark comparisons that are not independent."""
    clusters: int | None
    """How many different values it has."""
    comparisons: int
    ties: int
    missing: int
    """Rows without a verdict, in none of the numbers."""
    models: tuple[RatedModel, ...]
    win_rates_MM: tuple[tuple[float | None, ...], ...]
    """Share of wins of the row's model against the column's; None where the two never met."""
    counts_MM: tuple[tuple[int, ...], ...]
    style: tuple[StyleCoefficient, ...]
    """Empty where style is not controlled."""
    warnings: tuple[str, ...]

    @property
    def never_met(self) -> int:
        """Pairs of models that were never compared."""
        return sum(row[other] == 0 for place, row in enumerate(self.counts_MM) for other in range(place))


def read_ratings(path: Path) -> ArenaRatings:
    """The content of a ``ratings.json``. Raises RunError where it is missing, damaged, of another shape or of another schema."""
    found = parse(ArenaRatings, read_json(path), path)
    size = len(found.models)
    square = all([len(row) for row in matrix] == [size] * size for matrix in (found.win_rates_MM, found.counts_MM))
    for problem, holds in {
        f"schema {found.schema}, this version reads {SCHEMA}": found.schema == SCHEMA,
        "no models": size > 0,
        f"a matrix is not {size} x {size}": square,
    }.items():
        if not holds:
            raise RunError(problem, where=str(path), fix="run arena again")
    return found


def arena_ratings(
    file: str,
    cluster: str | None,
    confidence: float,
    anchor: Anchor | None,
    comparisons: Comparisons,
    table: RatingTable,
    style: Sequence[StyleCoefficient],
) -> ArenaRatings:
    """What stands in ratings.json, from comparisons and the ratings made of them."""
    matrix = win_matrix(comparisons)
    order = [matrix.models.index(rating.model) for rating in table.ratings]
    rates_MM = win_rates(matrix)[np.ix_(order, order)]
    averages = average_win_rates(matrix)
    ended_M3 = endings(comparisons)
    clusters = comparisons.clusters_N
    return ArenaRatings(
        schema=SCHEMA,
        file=file,
        method=table.method,
        interval=table.interval,
        confidence=confidence,
        anchor=anchor,
        cluster=cluster,
        clusters=None if clusters is None else len(np.unique(clusters)),
        comparisons=len(comparisons),
        ties=int(np.count_nonzero(comparisons.outcomes_N == 0.5)),
        missing=comparisons.missing,
        models=tuple(
            RatedModel(**asdict(rating), wins=wins, ties=ties, losses=losses, average_win_rate=averages[rating.model])
            for rating, (wins, ties, losses) in zip(table.ratings, ended_M3[order].tolist(), strict=True)
        ),
        win_rates_MM=tuple(tuple(None if math.isnan(rate) else rate for rate in row) for row in rates_MM.tolist()),
        counts_MM=tuple(map(tuple, matrix.counts_MM[np.ix_(order, order)].tolist())),
        style=tuple(style),
        warnings=(*table.warnings, *_few_games(table)),
    )


def endings(comparisons: Comparisons) -> NDArray[np.int64]:
    """Wins, ties and losses [M, 3] of every model, rows counted once whatever they weigh."""
    ended = np.zeros((len(comparisons.models), 3), dtype=np.int64)
    a_N, b_N = comparisons.pairs_N2.T
    for_a_N = np.select([comparisons.outcomes_N == 1, comparisons.outcomes_N == 0.5], [0, 1], 2)
    np.add.at(ended, (a_N, for_a_N), 1)
    np.add.at(ended, (b_N, 2 - for_a_N), 1)
    return ended


def _few_games(table: RatingTable) -> list[str]:
    few = [rating.model for rating in table.ratings if rating.comparisons < FEW_GAMES]
    if not few:
        return []
    names = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
    what = "the rating is still near the start" if table.method == "elo" else "the interval is a rough guess"
    return [f"fewer than {FEW_GAMES} comparisons, so {what}: {names}"]


# ---- what a page says ----------------------------------------------------------------------------------------------


def arena_section(found: ArenaRatings, anchor: str) -> Section:
    """The ratings, who beats whom, the counts, and how it was done."""
    pairs = len(found.models) * (len(found.models) - 1) // 2
    counts = (
        f"{found.comparisons:,} comparisons of {plural(len(found.models), 'model')}, {found.ties:,} of them ties "
        f"(half a win each); {pairs - found.never_met:,} of {pairs:,} pairs compared; {found.missing:,} without a verdict are in none "
        "of the numbers."
    )
    blocks: list[Block] = [Text(counts, "aside")]
    if found.warnings:
        blocks.append(Notice("warning", "Read with care", found.warnings))
    blocks += [*_ratings(found), *_matrix(found), *_counts(found), *(_style(found) if found.style else ()), _how(found)]
    return Section(f"Ratings: {Path(found.file).name}", anchor, tuple(blocks), summary=paragraph(found))


def paragraph(found: ArenaRatings) -> str:
    """Who leads, and by how much that is sure."""
    best = found.models[0]
    tied = [one.model for one in found.models[1:] if one.rank == best.rank]
    text = f"{best.model} has the highest rating, {numbers.fixed(best.rating, 0)} points"
    if found.anchor and found.anchor.model == best.model:
        text += ", to which it is anchored."
    else:
        ends = f"{numbers.fixed(best.low, 0)} to {numbers.fixed(best.high, 0)}"
        text += f" ({numbers.confidence(found.confidence)} interval {ends})."
    if tied:
        names = join(tied) if len(tied) <= 4 else f"{', '.join(tied[:3])} and {len(tied) - 3} more"
        text += f" These comparisons can't tell it apart from {names}: rank {best.rank} is shared."
    else:
        text += " No other model shares its rank."
    if found.method != "elo":
        text += " 100 points more mean winning about 64 of 100 comparisons."
    return text


def _rating(one: RatedModel, found: ArenaRatings) -> Number:
    if found.anchor and found.anchor.model == one.model:
        return Number(one.rating, digits=0, note="the anchor")
    return Number(one.rating, low=one.low, high=one.high, digits=0)


def _lane(name: str, number: Number) -> Lane:
    words = f"{number.text} ({number.interval})" if number.interval else f"{number.text}, {number.note}"
    assert number.value is not None
    low, high = (number.value if end is None else end for end in (number.low, number.high))
    return Lane(name, number.value, low, high, words)


def _ratings(found: ArenaRatings) -> tuple[Block, ...]:
    rated = [(one, _rating(one, found)) for one in found.models]
    what = f"the anchor, {found.anchor.model}" if found.anchor else "the start" if found.method == "elo" else "the mean"
    line = found.anchor.rating if found.anchor else 1000.0
    caption = f"{numbers.confidence(found.confidence)} intervals. Dashed: {what}, {numbers.fixed(line, 0)} points."
    if len(rated) > MOST_LANES:
        caption += f" The first {MOST_LANES} of {len(rated)} models."
    said = "A rank is 1 and the number of models whose whole interval lies above: models that can't be told apart share one."
    if found.anchor:
        said += f" Intervals here are about the distance to {found.anchor.model}; ranks are not."
    lanes = tuple(_lane(one.model, number) for one, number in rated)
    rows = tuple((one.model, Number(one.rank, "count"), n, Number(one.comparisons, "count")) for one, n in rated)
    return (
        Forest(
            name="ratings", title="Ratings and their intervals", lanes=lanes, unit="points", line=line, caption=caption
        ),
        Table("Ratings", ("Model", "Rank", "Rating", "Games"), rows),
        Text(said, "aside"),
    )


def _matrix(found: ArenaRatings) -> tuple[Block, ...]:
    names = tuple(one.model for one in found.models)
    title = (
        "Who beats whom: share of wins of the model on the left against the one above, by its place, and comparisons"
    )
    blocks: tuple[Block, ...] = (Matrix(title, names, found.win_rates_MM, found.counts_MM),)
    if found.never_met:
        were = f"{plural(found.never_met, 'pair')} {'was' if found.never_met == 1 else 'were'} never compared"
        joined = "" if found.method == "elo" else "; their ratings are joined by the models both have met"
        blocks += (Text(f"{were} ({numbers.NOTHING}){joined}.", "aside"),)
    return blocks


def _counts(found: ArenaRatings) -> tuple[Block, ...]:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            one.model,
            *(Number(count, "count") for count in (one.comparisons, one.wins, one.ties, one.losses)),
            Number(one.average_win_rate, "share"),
        )
        for one in found.models
    )
    columns = ("Model", "Games", "Wins", "Ties", "Losses", "Average win rate")
    said = "The average win rate gives every opponent the same weight. Unlike a rating it depends on who was met."
    return Table("Wins, ties and losses", columns, rows), Text(said, "aside")


def _style(found: ArenaRatings) -> tuple[Block, ...]:
    rows = tuple((one.name, Number(one.estimate, low=one.low, high=one.high, signed=True)) for one in found.style)
    return (
        Text("The ratings above are those at equal style. This is what style itself was worth to whoever judged."),
        Forest(
            name="style",
            title="What style is worth",
            lanes=tuple(_lane(name, number) for name, number in rows),
            unit="logits of winning per standard deviation",
            line=0.0,
            caption="Right of 0: with everything else equal, more of it wins more often.",
        ),
        Table("What style is worth", ("Feature", "Logits a standard deviation"), rows),
    )


def _how(found: ArenaRatings) -> Facts:
    grouped = found.cluster is not None and found.clusters is not None
    independence = f"{found.clusters:,} groups of equal {found.cluster}" if grouped else "every comparison by itself"
    return Facts(
        (
            ("File", found.file),
            ("Ratings", METHOD_WORDS[found.method]),
            ("Intervals", f"{numbers.confidence(found.confidence)}, {INTERVAL_WORDS[found.interval]}"),
            ("Taken as independent", independence),
            ("Anchor", f"{found.anchor.model} = {numbers.fixed(found.anchor.rating, 0)}" if found.anchor else "none"),
        )
    )
