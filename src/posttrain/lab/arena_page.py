"""ratings.json of ``posttrain arena`` and its page, the same in a browser and in a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.artifacts import read_json, write_text
from posttrain.errors import RunError
from posttrain.report import html, numbers
from posttrain.report.charts import MOST_LANES, Forest, Lane
from posttrain.report.reading import parse
from posttrain.report.values import Block, Facts, Headline, Matrix, Notice, Number, Page, Section, Table, Text, row
from posttrain.report.words import join, plural
from posttrain.stats.style_control import StyleCoefficient

SCHEMA = 1
METHOD_WORDS = {
    "bradley_terry": "Bradley-Terry",
    "style_controlled": "Bradley-Terry at equal style",
    "elo": "Elo (online, median over drawn orders)",
}
INTERVAL_WORDS = {"sandwich": "robust (sandwich)", "bootstrap": "bootstrap"}


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
class AnchoredModel:
    """The model whose rating is given."""

    model: str
    rating: float


@dataclass(frozen=True, slots=True)
class ClusterColumn:
    """The column whose equal values mark comparisons that are not independent."""

    column: str
    clusters: int


@dataclass(frozen=True, slots=True)
class ArenaRatings:
    """All of ratings.json. Shapes: ``M`` models, best first, in ``models`` and on both sides of the matrices."""

    schema: int
    file: str
    method: Literal["bradley_terry", "style_controlled", "elo"]
    interval: Literal["sandwich", "bootstrap"]
    confidence: float
    anchor: AnchoredModel | None
    cluster: ClusterColumn | None
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


def read_ratings(folder: Path) -> ArenaRatings:
    """The content of ``ratings.json``. Raises RunError where it is missing, damaged, of another shape or of another schema."""
    path = folder / "ratings.json"
    found = parse(ArenaRatings, read_json(path), path)
    if found.schema != SCHEMA:
        raise RunError(f"schema {found.schema}, this version reads {SCHEMA}", where=str(path), fix="run arena again")
    size = len(found.models)
    for name, matrix in (("win_rates_MM", found.win_rates_MM), ("counts_MM", found.counts_MM)):
        if len(matrix) != size or any(len(row) != size for row in matrix):
            raise RunError(f"{name} is not {size} x {size}", where=str(path), fix="run arena again")
    if not size:
        raise RunError("no models", where=str(path), fix="run arena again")
    return found


def write_arena_page(folder: Path) -> Path:
    """Write ``arena.html`` beside ``ratings.json``; equal ratings give equal bytes."""
    path = folder / "arena.html"
    write_text(path, html.page(arena_page(read_ratings(folder))))
    return path


def arena_page(found: ArenaRatings) -> Page:
    """Return the page."""
    size = len(found.models)
    pairs = size * (size - 1) // 2
    opening: list[Block] = [Text(paragraph(found), "lead")]
    if found.warnings:
        opening.append(Notice("warning", "Read with care", found.warnings))
    return Page(
        kind="posttrain arena",
        title=Path(found.file).name,
        facts=(("", METHOD_WORDS[found.method]), ("", f"{interval_words(found)} intervals")),
        headlines=(
            Headline("Models", Number(size, "count"), f"{pairs - found.never_met:,} of {pairs:,} pairs compared"),
            Headline("Comparisons", Number(found.comparisons, "count"), "with a verdict"),
            Headline("Ties", Number(found.ties / found.comparisons, "share"), f"{found.ties:,}, half a win each"),
            Headline("Without a verdict", Number(found.missing, "count"), "in none of the numbers"),
        ),
        opening=tuple(opening),
        sections=(
            _ratings(found),
            _matrix(found),
            _counts(found),
            *([_style(found)] if found.style else []),
            _how(found),
        ),
        footer="All numbers stand in ratings.json beside this page.",
    )


def paragraph(found: ArenaRatings) -> str:
    """Return who leads, and by how much that is sure."""
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


def interval_words(found: ArenaRatings) -> str:
    """Return the kind of interval: ``95%, robust (sandwich)``."""
    return f"{numbers.confidence(found.confidence)}, {INTERVAL_WORDS[found.interval]}"


def _rating(one: RatedModel, found: ArenaRatings) -> Number:
    if found.anchor and found.anchor.model == one.model:
        return Number(one.rating, digits=0, note="the anchor")
    return Number(one.rating, low=one.low, high=one.high, digits=0)


def _words(number: Number) -> str:
    return f"{number.text} ({number.interval})" if number.interval else f"{number.text}, {number.note}"


def _ratings(found: ArenaRatings) -> Section:
    rows = tuple(
        (one.model, Number(one.rank, "count"), _rating(one, found), Number(one.comparisons, "count"))
        for one in found.models
    )
    lanes = tuple(Lane(one.model, one.rating, one.low, one.high, _words(_rating(one, found))) for one in found.models)
    what = f"the anchor, {found.anchor.model}" if found.anchor else "the start" if found.method == "elo" else "the mean"
    line = found.anchor.rating if found.anchor else 1000.0
    caption = f"{numbers.confidence(found.confidence)} intervals. Dashed: {what}, {numbers.fixed(line, 0)} points."
    if len(lanes) > MOST_LANES:
        caption += f" The first {MOST_LANES} of {len(lanes)} models."
    said = "A rank is 1 and the number of models whose whole interval lies above: models that can't be told apart share one."
    if found.anchor:
        said += f" Intervals here are about the distance to {found.anchor.model}; ranks are not."
    return Section(
        "Ratings",
        "ratings",
        (
            Forest(
                name="ratings",
                title="Ratings and their intervals",
                lanes=lanes,
                unit="points",
                line=line,
                caption=caption,
            ),
            Table("Ratings", ("Model", "Rank", "Rating", "Games"), rows),
            Text(said, "aside"),
        ),
    )


def _matrix(found: ArenaRatings) -> Section:
    blocks: list[Block] = [
        Text(
            "Share of wins of the model on the left against the model above, ties counting one half, and the number of comparisons. The "
            "numbers above are the places on the left."
        ),
        Matrix("Who beats whom", tuple(one.model for one in found.models), found.win_rates_MM, found.counts_MM),
    ]
    if found.never_met:
        were = f"{plural(found.never_met, 'pair')} {'was' if found.never_met == 1 else 'were'} never compared"
        joined = "" if found.method == "elo" else "; their ratings are joined by the models both have met"
        blocks.append(Text(f"{were} ({numbers.NOTHING}){joined}.", "aside"))
    return Section("Who beats whom", "matrix", tuple(blocks))


def _counts(found: ArenaRatings) -> Section:
    rows = tuple(
        row(
            one.model,
            *(Number(count, "count") for count in (one.comparisons, one.wins, one.ties, one.losses)),
            Number(one.average_win_rate, "share"),
        )
        for one in found.models
    )
    columns = ("Model", "Games", "Wins", "Ties", "Losses", "Average win rate")
    said = "The average win rate gives every opponent the same weight. Unlike a rating it depends on who was met."
    return Section("Counts", "counts", (Table("Wins, ties and losses", columns, rows), Text(said, "aside")))


def _style(found: ArenaRatings) -> Section:
    numbers_of = [(one, Number(one.estimate, low=one.low, high=one.high, signed=True)) for one in found.style]
    lanes = tuple(Lane(one.name, one.estimate, one.low, one.high, _words(number)) for one, number in numbers_of)
    return Section(
        "Style",
        "style",
        (
            Text("The ratings above are those at equal style. This is what style itself was worth to whoever judged."),
            Forest(
                name="style",
                title="What style is worth",
                lanes=lanes,
                unit="logits of winning per standard deviation",
                line=0.0,
                caption="Right of 0: with everything else equal, more of it wins more often.",
            ),
            Table(
                "What style is worth",
                ("Feature", "Logits a standard deviation"),
                tuple((one.name, n) for one, n in numbers_of),
            ),
        ),
    )


def _how(found: ArenaRatings) -> Section:
    independence = "every comparison by itself"
    if found.cluster is not None:
        independence = f"{found.cluster.clusters:,} groups of equal {found.cluster.column}"
    anchor = f"{found.anchor.model} = {numbers.fixed(found.anchor.rating, 0)}" if found.anchor else "none"
    items = (
        ("File", found.file),
        ("Ratings", METHOD_WORDS[found.method]),
        ("Intervals", interval_words(found)),
        ("Taken as independent", independence),
        ("Anchor", anchor),
    )
    return Section("How", "how", (Facts(items),))
