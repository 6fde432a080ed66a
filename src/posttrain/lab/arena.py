"""``posttrain arena FILE``: read comparisons -> rate -> ratings.json -> arena.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from posttrain.artifacts import RunDir, write_json
from posttrain.errors import ConfigError, DataError
from posttrain.judge.votes import read_comparisons, read_style_counts
from posttrain.lab.arena_page import (
    SCHEMA,
    AnchoredModel,
    ArenaRatings,
    ClusterColumn,
    RatedModel,
    arena_page,
    write_arena_page,
)
from posttrain.report import terminal
from posttrain.stats.elo import elo_table
from posttrain.stats.ratings import (
    Anchor,
    Comparisons,
    RatingTable,
    average_win_rates,
    bradley_terry,
    win_matrix,
    win_rates,
)
from posttrain.stats.style_control import StyleCoefficient, style_controlled, style_features

Floats = NDArray[np.float64]

ARENA_STYLE = "tokens,headers,lists,bold"
"""Chatbot Arena's style features: the columns ``tokens_a``, ``tokens_b``, ``headers_a``, ..."""
FEW_GAMES = 30
"""Below this many comparisons a normal interval is a rough guess, and Elo with K = 4 has moved little."""


# ---- options ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArenaCommand:
    """What the command line says. Columns are those of the file."""

    file: Path
    out: Path
    method: Literal["bt", "elo"] = "bt"
    interval: Literal["sandwich", "bootstrap"] | None = None
    """None: sandwich for Bradley-Terry, bootstrap for Elo."""
    anchor: Anchor | None = None
    style: tuple[str, ...] = ()
    cluster: str | None = None
    model_a: str = "model_a"
    model_b: str = "model_b"
    winner: str = "winner"
    weight: str | None = None
    confidence: float = 0.95


def parse_anchor(text: str) -> Anchor:
    """``gpt-4=1000`` as an anchor; without a number it is 1000.

    >>> parse_anchor("gpt-4=1114")
    Anchor(model='gpt-4', rating=1114.0)
    """
    model, equals, value = text.rpartition("=")
    if not equals:
        return Anchor(text)
    try:
        rating = float(value)
    except ValueError:
        rating = math.nan
    if not model or not math.isfinite(rating):
        raise ConfigError(f"{text!r} is no anchor", where="--anchor", fix="write MODEL=1000")
    return Anchor(model, rating)


def _check(command: ArenaCommand) -> None:
    """Refuse options that the chosen method has no use for, rather than ignore them."""
    if not 0 < command.confidence < 1:
        raise ConfigError(f"confidence is {command.confidence}", where="--confidence", fix="between 0 and 1, like 0.95")
    if command.method == "elo":
        unused = {
            "--interval sandwich": command.interval == "sandwich",
            "--anchor": command.anchor is not None,
            "--style": bool(command.style),
            "--cluster": command.cluster is not None,
        }
        for option, given in unused.items():
            if given:
                raise ConfigError("Elo has no use for this", where=option, fix="leave it out, or use --method bt")
    if command.style and command.interval == "bootstrap":
        raise ConfigError("ratings at equal style have sandwich intervals only", where="--interval", fix="leave it out")


# ---- rate ---------------------------------------------------------------------------------------------------


def run_arena(command: ArenaCommand) -> ArenaRatings:
    """Rate the models of a file of comparisons; write ratings.json and arena.html into the folder and return them.

    Raises:
        ConfigError: options that don't go together.
        DataError: the file can't be used, or there are no ratings (the message says between which groups no game decides).
        RunError: the folder can't be written, or another command holds it.

    """
    _check(command)
    comparisons = read_comparisons(
        command.file,
        model_a=command.model_a,
        model_b=command.model_b,
        winner=command.winner,
        weight=command.weight,
        cluster=command.cluster,
    )
    try:
        table, style = _rate(command, comparisons)
    except DataError as error:
        if error.where is not None:
            raise
        raise DataError(error.problem, where=str(command.file), fix=error.fix) from error
    with RunDir(command.out).lock():
        found = _ratings(command, comparisons, table, style)
        write_json(command.out / "ratings.json", asdict(found))
        write_arena_page(command.out)
    return found


def _rate(command: ArenaCommand, comparisons: Comparisons) -> tuple[RatingTable, tuple[StyleCoefficient, ...]]:
    if command.method == "elo":
        return elo_table(comparisons, confidence=command.confidence), ()
    if command.style:
        features_NF = _style(command)
        found = style_controlled(
            comparisons, features_NF, command.style, confidence=command.confidence, anchor=command.anchor
        )
        return found.table, found.coefficients
    interval = command.interval or "sandwich"
    return bradley_terry(comparisons, interval=interval, confidence=command.confidence, anchor=command.anchor), ()


def _style(command: ArenaCommand) -> Floats:
    """Style features [N, F]; one by one, so that an error names the column."""
    counts_a_NF, counts_b_NF = read_style_counts(command.file, command.style, winner=command.winner)
    columns = []
    for place, name in enumerate(command.style):
        try:
            columns.append(style_features(counts_a_NF[:, place : place + 1], counts_b_NF[:, place : place + 1]))
        except DataError as error:
            raise DataError(
                f"columns {name}_a and {name}_b: {error.problem}", where=str(command.file), fix=error.fix
            ) from error
    return np.hstack(columns)


def _ratings(
    command: ArenaCommand, comparisons: Comparisons, table: RatingTable, style: Sequence[StyleCoefficient]
) -> ArenaRatings:
    """What stands in ratings.json."""
    matrix = win_matrix(comparisons)
    order = [matrix.models.index(rating.model) for rating in table.ratings]
    rates_MM = win_rates(matrix)[np.ix_(order, order)]
    averages = average_win_rates(matrix)
    ended_M3 = _endings(comparisons)
    clusters = comparisons.clusters_N
    return ArenaRatings(
        schema=SCHEMA,
        file=str(command.file),
        method=table.method,
        interval=table.interval,
        confidence=command.confidence,
        anchor=None if command.anchor is None else AnchoredModel(*command.anchor),
        cluster=None if clusters is None else ClusterColumn(str(command.cluster), len(np.unique(clusters))),
        comparisons=len(comparisons),
        ties=int(np.count_nonzero(comparisons.outcomes_N == 0.5)),
        missing=comparisons.missing,
        models=tuple(
            RatedModel(
                **rating._asdict(),
                wins=int(ended_M3[place][0]),
                ties=int(ended_M3[place][1]),
                losses=int(ended_M3[place][2]),
                average_win_rate=averages[rating.model],
            )
            for rating, place in zip(table.ratings, order, strict=True)
        ),
        win_rates_MM=tuple(tuple(None if math.isnan(rate) else rate for rate in row) for row in rates_MM.tolist()),
        counts_MM=tuple(map(tuple, matrix.counts_MM[np.ix_(order, order)].tolist())),
        style=tuple(style),
        warnings=(*table.warnings, *_warnings(table)),
    )


def _endings(comparisons: Comparisons) -> NDArray[np.int64]:
    """Wins, ties and losses [M, 3] of every model, rows counted once whatever they weigh."""
    ended = np.zeros((len(comparisons.models), 3), dtype=np.int64)
    a_N, b_N = comparisons.pairs_N2.T
    for_a_N = np.select([comparisons.outcomes_N == 1, comparisons.outcomes_N == 0.5], [0, 1], 2)
    np.add.at(ended, (a_N, for_a_N), 1)
    np.add.at(ended, (b_N, 2 - for_a_N), 1)
    return ended


def _warnings(table: RatingTable) -> list[str]:
    few = [rating.model for rating in table.ratings if rating.comparisons < FEW_GAMES]
    if not few:
        return []
    names = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
    what = "the rating is still near the start" if table.method == "elo" else "the interval is a rough guess"
    return [f"fewer than {FEW_GAMES} comparisons, so {what}: {names}"]


def arena_summary(found: ArenaRatings, out: Path) -> RenderableType:
    """The first screen of the page and the ratings, for the terminal."""
    page = arena_page(found)
    shown = [terminal.section(section) for section in page.sections if section.anchor in ("ratings", "style")]
    end = Text(f"\nOpen {out / 'arena.html'}; the numbers are in {out / 'ratings.json'}")
    return Group(terminal.page(page), *shown, end)
