"""The list of runs: what there is, how far each is, what came of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from posttrain.artifacts import digest
from posttrain.board.listing import Listing, Remarks, RunFacts, remarks_of, say
from posttrain.board.stream import Event, stream
from posttrain.board.web import draw, form_of, render, root_of, run_of, settings_of
from posttrain.errors import RunError

MOST_TAGS = 12
MOST_LETTERS = 2000
"""Of a note."""


def listing_of(request: Request) -> Listing:
    """The runs of this board."""
    state = request.app.state
    if not hasattr(state, "listing"):
        state.listing = Listing(settings_of(request).runs)
    found: Listing = state.listing
    return found


def wanted(runs: Sequence[RunFacts], request: Request) -> list[RunFacts]:
    """The runs that the search of a request asks for."""
    words = request.query_params.get("q", "").lower().split()
    archived = "archived" in request.query_params

    def text(one: RunFacts) -> str:
        parts = (
            one.name,
            one.model,
            one.state.name,
            one.remarks.note,
            *one.remarks.tags,
            *(s.kind for s in one.stages),
        )
        return " ".join(parts).lower()

    return [one for one in runs if one.remarks.archived == archived and all(word in text(one) for word in words)]


def version(runs: Sequence[RunFacts]) -> str:
    """A text that is another one whenever the list is."""
    return digest([repr(one) for one in runs])[:16]


def page(request: Request) -> Response:
    """The whole list; for a search only its table."""
    settings, listing = settings_of(request), listing_of(request)
    with contextlib.suppress(FileNotFoundError):
        os.scandir(settings.runs).close()  # says what is wrong with a folder that can't be read
    if not settings.runs.is_dir():
        problem = RunError("there is no folder of runs here", where=str(settings.runs), fix="the first run makes it")
        return render(request, "runs.html", runs=[], problem=str(problem), archived=0, folder=settings.runs, version="")
    everything = listing.all()
    runs = wanted(everything, request)
    archived = sum(one.remarks.archived for one in everything)
    if "hx-request" in request.headers:
        return render(request, "runs_table.html", runs=runs)
    return render(
        request,
        "runs.html",
        runs=runs,
        problem="",
        archived=archived,
        folder=settings.runs,
        version=version(everything),
    )


def live(request: Request) -> Response:
    """Every line of the list that changes, as it does; ``stale`` where it has changed since the page was made."""
    listing = listing_of(request)
    told = listing.look()
    stale = version(told.runs) != request.query_params.get("seen")

    def look() -> list[Event]:
        nonlocal stale, told
        if stale:
            stale = False
            return [Event("stale", True)]
        before, told = told, listing.look()
        names, known = {one.name for one in told.runs}, {one.name: one for one in before.runs}
        gone = (Event("gone", name) for name in known if name not in names)
        changed = (one for one in told.runs if known.get(one.name) != one)
        lines = (Event("run", {"name": one.name, "html": draw(request, "runs_row.html", run=one)}) for one in changed)
        return [*gone, *lines, *([Event("queue", True)] if told.queue != before.queue else [])]

    return stream(look, lambda: not stale and listing.is_still(told))


async def remark(request: Request) -> Response:
    """Change the tags, the note, or whether a run is archived."""
    run, form = run_of(request), await form_of(request)
    before = remarks_of(run)
    tags = dict.fromkeys(tag.strip()[:40] for tag in form.get("tags", ",".join(before.tags)).split(",") if tag.strip())
    archived = form["archived"] == "yes" if "archived" in form else before.archived
    say(run, Remarks(tuple(tags)[:MOST_TAGS], form.get("note", before.note)[:MOST_LETTERS], archived))
    listing_of(request).forget()
    return RedirectResponse(f"{root_of(request)}{form.get('back', '').lstrip('/')}" or ".", 303)


ROUTES = [
    Route("/", page),
    Route("/live", live),
    Route("/runs/{run}/remarks", remark, methods=["POST"]),
]
