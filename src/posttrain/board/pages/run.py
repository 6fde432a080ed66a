"""One run: its stages, live curves, log, what the doctor says, memory, rows, and the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from posttrain.artifacts import RunDir
from posttrain.board.curves import columns, read_on, thinned, trained
from posttrain.board.graph import graph
from posttrain.board.listing import RunFacts, run_facts
from posttrain.board.pages.runs import listing_of
from posttrain.board.stream import Event, identity, offsets_of, stream
from posttrain.board.web import draw, form_of, language_of, render, root_of, run_of, settings_of, word
from posttrain.doctor.diagnosis import diagnose, diagnosis_section
from posttrain.doctor.words import Words
from posttrain.errors import PosttrainError, RunError
from posttrain.report import html
from posttrain.report.reading import Gap, Stage, json_value, parse
from posttrain.report.values import Block, Notice, Section, Text
from posttrain.stages import KINDS
from posttrain.stages.page import read_run, read_stages, rows_section, run_page
from posttrain.train.planned import MEMORY_FILE, MemoryRecord, memory_blocks

ROOT = "../"
"""The way from the page up, also of parts of it that come by a stream, whose own address lies deeper."""
LOG = "run.log"
"""What the process of a run prints, where the board has started it."""
LOG_BYTES = 100_000
"""Of the log that a page shows."""
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'; sandbox allow-scripts"
)
"""A report brings a stricter policy of its own; its page has no access to the board."""


def page(request: Request) -> Response:
    """The page, with what is on it from the start; the rest comes as it is needed."""
    run = run_of(request)
    facts = run_facts(run)
    log_at = _log_start(run)
    return render(
        request, "run.html", run=facts, head=_head(request, run, facts), log=(run.path / LOG).is_file(), log_at=log_at
    )


def _head(request: Request, run: RunDir, facts: RunFacts) -> str:
    recipe = run.path / "recipe.yaml"
    changed = recipe.stat().st_mtime_ns if recipe.is_file() else 0
    drawn = graph(facts, str(recipe), changed, word(language_of(request), "run.graph", name=facts.name))
    return draw(request, "run_head.html", run=facts, graph=drawn, root=ROOT)


def _log_start(run: RunDir) -> int:
    try:
        return max(0, (run.path / LOG).stat().st_size - LOG_BYTES)
    except OSError:
        return 0


# ---- live ----------------------------------------------------------------------------------------------------------


def curves(request: Request) -> Response:
    """All curves so far, thinned, and how far the logs were read: a stream goes on from there."""
    run, found, offsets = run_of(request), {}, {}
    for name in trained(run):
        part = read_on(run.stage(name).file("metrics.jsonl"), 0)
        splits = columns(part.records)
        found[name] = {split: thinned(values) for split, values in splits.items()}
        offsets[name] = part.offset
    return JSONResponse({"stages": found, "at": identity(offsets)})


def live(request: Request) -> Response:
    """New records of every training, new lines of the log, and the head whenever it is another."""
    try:
        run, listing = run_of(request), listing_of(request)
    except HTTPException as gone:  # since the page was made: a refusal would not reach its script
        said = Event("gone", gone.detail)
        return stream(lambda: [said])
    offsets = offsets_of(request.headers.get("last-event-id") or request.query_params.get("at", ""))
    offsets.setdefault(LOG, _log_start(run))
    before: RunFacts | None = None

    def look() -> list[Event]:
        nonlocal before
        if not run.path.is_dir():
            return [Event("gone", run.path.name)]
        facts = listing.of(run.path.name)
        if facts is None:
            return []
        found = []
        over = facts == before and not facts.state.is_running
        for name in () if over else trained(run):
            part = read_on(run.stage(name).file("metrics.jsonl"), offsets.get(name, 0))
            offsets[name] = part.offset
            if part.records or part.fresh:
                data = {"stage": name, "fresh": part.fresh, "splits": columns(part.records)}
                found.append(Event("records", data, identity(offsets)))
        if text := _new_log(run, offsets):
            found.append(Event("log", text, identity(offsets)))
        if facts != before:
            found.append(
                Event("head", {"html": _head(request, run, facts), "alive": facts.state.is_running}, identity(offsets))
            )
            before = facts
        return found

    return stream(look)


def _new_log(run: RunDir, offsets: dict[str, int]) -> str:
    try:
        with (run.path / LOG).open("rb") as file:
            size = file.seek(0, 2)
            start = offsets[LOG] if offsets[LOG] <= size else 0
            file.seek(start)
            text = file.read(LOG_BYTES)
    except OSError:
        return ""
    whole = text[: text.rfind(b"\n") + 1]
    offsets[LOG] = start + len(whole)
    return whole.decode("utf-8", "replace")


# ---- parts that come as they are needed ----------------------------------------------------------------------------


def _stages(run: RunDir) -> tuple[Sequence[Stage], list[Gap]]:
    found = read_stages(run, KINDS)
    return found.stages, found.gaps


def part(request: Request) -> Response:
    """A part of the page below the curves."""
    run, name = run_of(request), request.path_params["part"]
    if name not in PARTS:
        raise HTTPException(404, f"a run has no part {name!r}")
    try:
        found: Sequence[Block] = PARTS[name](request, run) if run.stages() else ()  # it has just begun
    except (PosttrainError, OSError) as error:
        found = [Notice("warning", word(language_of(request), "run.unreadable"), (str(error),))]
    if not found:
        found = [Text(word(language_of(request), f"run.no_{name}"), "aside")]
    return HTMLResponse(html.blocks(found, 3))


def _doctor(request: Request, run: RunDir) -> Sequence[Block]:
    stages, gaps = _stages(run)
    return diagnosis_section(diagnose(stages, gaps), Words(language_of(request))).blocks


def _memory(request: Request, run: RunDir) -> Sequence[Block]:
    found: list[Block] = []
    for stage in _stages(run)[0]:
        path = stage.folder.file(MEMORY_FILE)
        if path.is_file():
            blocks = memory_blocks(parse(MemoryRecord, json_value(path), path))
            found.append(Section(stage.name, f"memory-{stage.name}", tuple(blocks)))
    return found


def _rows(request: Request, run: RunDir) -> Sequence[Block]:
    section = rows_section(_stages(run)[0])
    return section.blocks if section else ()


def _results(request: Request, run: RunDir) -> Sequence[Block]:
    return run_page(read_run(run, KINDS)).sections


PARTS = {"doctor": _doctor, "memory": _memory, "ledger": _rows, "results": _results}


def report(request: Request) -> Response:
    """The report as a page of its own, from what the run holds now."""
    try:
        return HTMLResponse(
            html.page(run_page(read_run(run_of(request), KINDS))), headers={"content-security-policy": REPORT_POLICY}
        )
    except OSError as error:
        raise RunError(f"this run can't be read: {error}") from error


# ---- removing ------------------------------------------------------------------------------------------------------


async def remove(request: Request) -> Response:
    """Move a run into the folder ``.removed``, once its name was typed. Nothing is deleted."""
    run, form = run_of(request), await form_of(request)
    if form.get("name") != run.path.name:
        raise HTTPException(400, word(language_of(request), "run.type_the_name", name=run.path.name))
    if (now := run_facts(run).state).is_running or now.name in ("lingering", "remote"):
        raise HTTPException(409, word(language_of(request), "run.still_running"))
    target = settings_of(request).runs / ".removed" / f"{run.path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    target.parent.mkdir(exist_ok=True)
    shutil.move(run.path, target)
    listing_of(request).forget()
    return RedirectResponse(root_of(request), 303)


ROUTES = [
    Route("/runs/{run}", page),
    Route("/runs/{run}/curves", curves),
    Route("/runs/{run}/live", live),
    Route("/runs/{run}/report", report),
    Route("/runs/{run}/parts/{part}", part),
    Route("/runs/{run}/remove", remove, methods=["POST"]),
]
