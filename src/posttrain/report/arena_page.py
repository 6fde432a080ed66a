"""Write the page of ``posttrain arena``: ratings.json as one self-contained page.

Like the report of a run, the page makes no request, runs no script, and escapes every name.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from posttrain.artifacts import read_json, write_text
from posttrain.errors import RunError
from posttrain.report import numbers
from posttrain.report.arena_figures import ArenaFacts, ratings_figure, style_figure
from posttrain.report.page import environment, package_text
from posttrain.report.reading import parse

SCHEMA = 1
METHOD_WORDS = {
    "bradley_terry": "Bradley-Terry",
    "style_controlled": "Bradley-Terry at equal style",
    "elo": "Elo (online, median over drawn orders)",
}
INTERVAL_WORDS = {"sandwich": "robust (sandwich)", "bootstrap": "bootstrap"}


def read_ratings(folder: Path) -> ArenaFacts:
    """The facts of ``ratings.json``. Raises RunError where it is missing, damaged, of another shape or of another schema."""
    path = folder / "ratings.json"
    facts = parse(ArenaFacts, read_json(path), path)
    if facts.schema != SCHEMA:
        raise RunError(f"schema {facts.schema}, this version reads {SCHEMA}", where=str(path), fix="run arena again")
    size = len(facts.models)
    for name, matrix in (("win_rates_MM", facts.win_rates_MM), ("counts_MM", facts.counts_MM)):
        if len(matrix) != size or any(len(row) != size for row in matrix):
            raise RunError(f"{name} is not {size} x {size}", where=str(path), fix="run arena again")
    if not size:
        raise RunError("no models", where=str(path), fix="run arena again")
    return facts


def write_arena_page(folder: Path) -> Path:
    """Write ``arena.html`` beside ``ratings.json``; equal facts give equal bytes."""
    path = folder / "arena.html"
    write_text(path, render_arena_page(read_ratings(folder)))
    return path


def render_arena_page(facts: ArenaFacts) -> str:
    """Return the HTML page."""
    page = environment(autoescape=True).get_template("arena_page.html.jinja")
    return page.render(
        facts=facts,
        title=Path(facts.file).name,
        paragraph=paragraph(facts),
        tiles=tiles(facts),
        ratings=ratings_figure(facts),
        style=style_figure(facts),
        method=METHOD_WORDS[facts.method],
        interval=interval_words(facts),
        independence=independence(facts),
        figure_css=Markup(package_text("figure.css")),
        page_css=Markup(package_text("page.css")),
    )


# ---- words ---------------------------------------------------------------------------------------------------------


def paragraph(facts: ArenaFacts) -> str:
    """Return who leads, and by how much that is sure."""
    best = facts.models[0]
    tied = [one.model for one in facts.models[1:] if one.rank == best.rank]
    text = f"{best.model} has the highest rating, {numbers.fixed(best.rating, 0)} points"
    if facts.anchor and facts.anchor.model == best.model:
        text += ", to which it is anchored."
    else:
        ends = f"{numbers.fixed(best.low, 0)} to {numbers.fixed(best.high, 0)}"
        text += f" ({numbers.confidence(facts.confidence)} interval {ends})."
    if tied:
        text += f" These comparisons can't tell it apart from {_listed(tied)}: rank {best.rank} is shared."
    else:
        text += " No other model shares its rank."
    if facts.method != "elo":
        text += " 100 points more mean winning about 64 of 100 comparisons."
    return text


def tiles(facts: ArenaFacts) -> list[tuple[str, str, str]]:
    """Return (label, value, note) of the headline numbers."""
    size = len(facts.models)
    met = size * (size - 1) // 2 - facts.matrix.never_met
    return [
        ("Models", numbers.count(size), f"{met:,} of {size * (size - 1) // 2:,} pairs compared"),
        ("Comparisons", numbers.count(facts.comparisons), "with a verdict"),
        ("Ties", numbers.percent(facts.ties / facts.comparisons), f"{facts.ties:,}, half a win each"),
        ("Without a verdict", numbers.count(facts.missing), "in none of the numbers"),
    ]


def interval_words(facts: ArenaFacts) -> str:
    """Return the kind of interval: ``95%, robust (sandwich)``."""
    return f"{numbers.confidence(facts.confidence)}, {INTERVAL_WORDS[facts.interval]}"


def independence(facts: ArenaFacts) -> str:
    """Return what the intervals take as independent."""
    if facts.cluster is None:
        return "every comparison by itself"
    return f"{facts.cluster.clusters:,} groups of equal {facts.cluster.column}"


def _listed(names: list[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
