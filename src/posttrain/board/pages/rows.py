"""Rows of any file or stage: a table, one whole row with its tokens, why a row was dropped, lengths, near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from posttrain.artifacts import RunDir
from posttrain.board import row_clusters
from posttrain.board.pages.runs import listing_of
from posttrain.board.row_readers import source_of
from posttrain.board.row_sets import RowSet, find, sets_of_folders, sets_of_run, votes_of
from posttrain.board.row_source import Shown, Sieve, Source
from posttrain.board.row_table import (
    PATIENCE,
    Choices,
    RowLine,
    RowPage,
    choices_of,
    lengths_of,
    line_of,
    original_of,
    page,
    row_at,
    rows_from,
    texts_in_run,
)
from posttrain.board.row_view import Say, row_blocks
from posttrain.board.tokens import TokenProcess
from posttrain.board.web import draw, is_run, language_of, render, settings_of, word
from posttrain.data.section import length_histogram, read_profile, sections
from posttrain.errors import PosttrainError
from posttrain.report import html
from posttrain.report.values import Block, Text
from posttrain.types import PromptRow

AT_ONCE = 50
"""Rows of a page."""
CLUSTERS_AT_ONCE = 20
LONGEST_TOKENISED = 150_000
"""Characters of a row whose tokens are shown: a page of forty thousand tokens is what browsers bear."""
COUNTED_AT_ONCE = 64_000_000
"""Bytes of a file whose rows are counted before the page is shown."""
SIEVE = ("text", "split", "reason", "model", "language")
LANGUAGES = ("en", "zh", "code", "undetermined")
"""Offered beside those on the page."""


@dataclass(frozen=True)
class Place:
    """What an address is about."""

    run: str
    """Empty: the folders of data."""
    sets: Sequence[RowSet]
    rows: RowSet | None
    """The file that is asked for, or the first one of a run."""
    at: int
    sieve: Sieve

    def query(self, **more: str | int) -> str:
        """The query of an address about this file, with other values."""
        known = {"run": self.run, "file": self.rows.name if self.rows else "", "at": self.at}
        wanted = known | {name: getattr(self.sieve, name) for name in SIEVE} | more
        return urlencode({key: value for key, value in wanted.items() if value not in ("", None)})


def place_of(request: Request) -> Place:
    """The files of the run that an address names, or of the folders of data, and the one that is asked for.

    Raises HTTPException 404 where there is no such run or file.
    """
    asked, settings = request.query_params, settings_of(request)
    run, name = asked.get("run", ""), asked.get("file", "")
    if run and not is_run(settings.runs, run):
        raise HTTPException(404, f"there is no run {run!r}")
    sets = sets_of_run(settings.runs / run) if run else [*sets_of_folders(settings.data), *votes_of(settings.runs)]
    try:
        rows = find(sets, name) if name else next(iter(sets), None) if run else None
    except PosttrainError as error:
        raise HTTPException(404, str(error)) from error
    at = _whole(asked.get("at", "")) if "row" not in asked else max(0, _whole(asked["row"]) - 1)
    sieve = Sieve(**{key: asked.get(key, "")[:500] for key in SIEVE})
    return Place(run, sets, rows, at, sieve)


def _whole(text: str) -> int:
    """A whole number of an address, 0 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _chosen(request: Request) -> tuple[Place, RowSet, Source]:
    """The place with its file, which must be there."""
    place = place_of(request)
    if place.rows is None:
        raise HTTPException(404, word(language_of(request), "rows.choose_file"))
    return place, place.rows, source_of(place.rows)


def _say(request: Request) -> Say:
    language = language_of(request)
    return lambda key, **values: word(language, f"rows.{key}", **values)


# ---- the table -----------------------------------------------------------------------------------------------------


def table(request: Request) -> Response:
    """The files to choose from, and the rows of the chosen one; for a search only its rows."""
    place = place_of(request)
    problem, found, choices, total = "", None, Choices(), None
    if place.rows is not None:
        try:
            source = source_of(place.rows)
            found, choices = (
                _with_texts(place, page(source, place.at, AT_ONCE, place.sieve, PATIENCE)),
                choices_of(place.rows),
            )
            total = source.count() if place.rows.size <= COUNTED_AT_ONCE else None
        except (PosttrainError, OSError) as error:
            problem = str(error)
    lines = found.lines if found else ()
    shown: dict[str, Any] = {
        "place": place,
        "page": found,
        "lines": lines,
        "total": total,
        "problem": problem,
        "at_once": AT_ONCE,
        "columns": _columns(lines),
        "left": AT_ONCE - len(lines),
    }
    if "hx-request" in request.headers:
        return HTMLResponse(draw(request, "rows_table.html", **shown))
    languages = dict.fromkeys([*LANGUAGES, *(line.language for line in lines if line.language)])
    return render(
        request,
        "rows.html",
        runs=[one.name for one in listing_of(request).all()],
        folders=settings_of(request).data,
        choices=choices,
        languages=languages,
        clusters=_clusters(place),
        **shown,
    )


def _columns(lines: Sequence[RowLine]) -> set[str]:
    """The columns that some line has anything in."""
    names = ("reply", "rejected", "language", "reason", "detail", "tokens")
    facts = ("model", "split")
    found = {name for name in names if any(getattr(line, name) for line in lines)}
    return found | {name for name in facts if any(line.facts.get(name) for line in lines)}


def _with_texts(place: Place, found: RowPage) -> RowPage:
    """The page, with the text of entries that have none of their own where the run still has it."""
    bare = [one for one in found.rows if one.bare]
    if not place.run or not bare:
        return found
    texts = texts_in_run(bare, place.sets)
    return replace(
        found, rows=tuple(replace(one, row=texts[one.at].row) if one.at in texts else one for one in found.rows)
    )


def more(request: Request) -> Response:
    """The next rows that a search finds, for the end of its table."""
    place, _, source = _chosen(request)
    wanted = min(_whole(request.query_params.get("left", "")) or AT_ONCE, AT_ONCE)
    found = _with_texts(place, page(source, place.at, wanted, place.sieve, PATIENCE))
    columns = set(request.query_params.get("columns", "").split(","))
    left_over = wanted - len(found.rows)
    return HTMLResponse(
        draw(request, "rows_lines.html", place=place, page=found, lines=found.lines, columns=columns, left=left_over)
    )


def count(request: Request) -> Response:
    """How many rows a large file has."""
    total = _chosen(request)[2].count()
    key = "rows.of_unknown" if total is None else "rows.of"
    return HTMLResponse(Markup.escape(word(language_of(request), key, total=f"{total or 0:,}")))


# ---- one row -------------------------------------------------------------------------------------------------------


def row(request: Request) -> Response:
    """A whole row: what it says, why it went, what was measured of it; its tokens follow."""
    place, _, source = _chosen(request)
    several = rows_from(source, place.at, 2)
    if not several:
        raise HTTPException(404, word(language_of(request), "rows.no_row"))
    where, found = _completed(place, settings_of(request).data, settings_of(request).runs, several[0])
    line = line_of(found)
    models = _models(request, place.run)
    asked = request.query_params.get("model_of", "")
    trained = line.kind is not None and not isinstance(found.row, PromptRow)
    return render(
        request,
        "rows_row.html",
        place=place,
        one=found,
        line=line,
        where=where,
        blocks_of_row=row_blocks(found, _say(request)),
        cluster=_cluster(place, found),
        models=models if trained else {},
        model=asked if asked in models else next(iter(models), ""),
        before=found.at - 1 if found.at else None,
        after=several[1].at if len(several) > 1 else None,
    )


def _completed(place: Place, data: Sequence[Path], runs: Path, one: Shown) -> tuple[str, Shown]:
    """(where its text is, the row with it): of an entry without a text that of a file of the run, or of the file it was read from."""
    if not one.bare:
        return "", one
    if place.run and (found := texts_in_run([one], place.sets).get(one.at)) is not None:
        return found.file, replace(one, row=found.row)
    if one.record is None and (original := original_of(one, [*data, runs])) is not None:
        return one.origin.file, replace(one, row=original.row, record=original.record)
    return "", one


def _cluster(place: Place, one: Shown) -> tuple[RowSet, int] | None:
    """The near-duplicates of a row: their table and the number of their cluster."""
    row_id = one.facts.get("id") or (one.row.id if one.row is not None else "")
    for table in _clusters(place):
        if (number := row_clusters.cluster_of(table.path, str(row_id))) is not None:
            return table, number
    return None


def _models(request: Request, run: str) -> dict[str, str]:
    """The models whose tokens can be looked at, by a name: those of the run, trained ones first; without a run those of all."""
    listing, runs = listing_of(request).all(), settings_of(request).runs
    found = {}
    if run:
        for stage in RunDir(runs / run).stages():
            if (runs / run / stage / "model.json").is_file():
                found[f"{run}/{stage}"] = str(runs / run / stage)
    found |= {one.model: one.model for one in listing if one.model and (not run or one.name == run)}
    return found


def tokens(request: Request) -> Response:
    """The tokens of a row, what is trained on in colour."""
    place, _, source = _chosen(request)
    language, models = language_of(request), _models(request, place.run)
    name = request.query_params.get("model_of", "")
    found = row_at(source, place.at)
    if found is None or name not in models:
        raise HTTPException(404, word(language, "rows.no_row" if found is None else "rows.no_model"))
    found = _completed(place, settings_of(request).data, settings_of(request).runs, found)[1]
    kind = line_of(found).kind
    if kind is None or found.row is None or kind == "prompts":
        return HTMLResponse(html.blocks((Text(word(language, "rows.not_trained_on"), "aside"),), 3))
    if found.characters > LONGEST_TOKENISED:
        text = word(language, "rows.too_long", characters=f"{found.characters:,}")
        return HTMLResponse(html.blocks((Text(text, "aside"),), 3))
    return HTMLResponse(_process(request).html(kind, found.row, models[name]))


def _process(request: Request) -> TokenProcess:
    """The process with the tokenizer, one for the whole board."""
    state = request.app.state
    if not hasattr(state, "tokens"):
        state.tokens = TokenProcess()  # the application ends it
    found: TokenProcess = state.tokens
    return found


# ---- lengths and near-duplicates -----------------------------------------------------------------------------------


def lengths(request: Request) -> Response:
    """How long the rows are: in characters those of this file, in tokens what the stage's profile says."""
    place, rows, source = _chosen(request)
    say, measured, found = _say(request), lengths_of(source), list[Block]()
    if measured is None:
        found.append(Text(say("no_lengths"), "aside"))
    else:
        found.append(length_histogram("lengths", rows.name, measured.lengths, say("in_characters")))
        if not measured.whole:
            found.append(Text(say("first_rows", rows=f"{measured.rows:,}"), "aside"))
    stage = settings_of(request).runs / place.run / rows.group
    if place.run and (stage / "profile.json").is_file():
        found += [one for one in sections(read_profile(stage)) if one.anchor == "lengths"]
    return HTMLResponse(html.blocks(found, 3))


def _clusters(place: Place) -> list[RowSet]:
    """The tables of near-duplicates, of the stage that the file is of those first."""
    found = [one for one in place.sets if one.path.name == row_clusters.TABLE]
    return sorted(found, key=lambda one: place.rows is None or one.group != place.rows.group)


def clusters(request: Request) -> Response:
    """Groups of rows that are alike, the largest first."""
    place, rows, _ = _chosen(request)
    if rows.path.name != row_clusters.TABLE:
        raise HTTPException(404, word(language_of(request), "rows.no_clusters"))
    found, total = row_clusters.clusters(rows.path, place.at, CLUSTERS_AT_ONCE)
    after = place.at + len(found) if place.at + len(found) < total else None
    return HTMLResponse(draw(request, "rows_clusters.html", place=place, clusters=found, total=total, after=after))


def members(request: Request) -> Response:
    """The rows of one group, side by side."""
    place, rows, _ = _chosen(request)
    if rows.path.name != row_clusters.TABLE:
        raise HTTPException(404, word(language_of(request), "rows.no_clusters"))
    found = row_clusters.members(rows.path, _whole(request.query_params.get("cluster", "")))
    return HTMLResponse(draw(request, "rows_members.html", place=place, members=found))


ROUTES = [
    Route("/rows", table),
    Route("/rows/more", more),
    Route("/rows/count", count),
    Route("/rows/row", row),
    Route("/rows/tokens", tokens),
    Route("/rows/lengths", lengths),
    Route("/rows/clusters", clusters),
    Route("/rows/members", members),
]
