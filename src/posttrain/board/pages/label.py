"""Preferences by hand: sets of prompts with two replies, one decision a screen, what annotators agree on, and the pairs that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from posttrain.board import label_sets, labelling
from posttrain.board.label_results import results
from posttrain.board.label_sets import Item, LabelSet, Side
from posttrain.board.label_sources import items_of, models_of
from posttrain.board.labelling import Answers
from posttrain.board.pages.runs import listing_of
from posttrain.board.row_sets import RowSet, find, sets_of_folders, sets_of_run, votes_of
from posttrain.board.web import draw, form_of, is_run, language_of, render, root_of, settings_of, word
from posttrain.errors import ConfigError, PosttrainError, RunError
from posttrain.types import Message

MOST_ITEMS = 300
"""Proposed for a new set: an hour or two of work."""
SHOWN_HINTS = (("1", "←"), ("2", "→"), ("T",), ("S",), ("U",))


@dataclass(frozen=True)
class Summary:
    """A set in the list."""

    about: LabelSet
    answered: int
    """Items that somebody has decided."""
    annotators: Sequence[str]


@dataclass(frozen=True)
class Screen:
    """One decision."""

    item: Item | None
    """None: nothing is left."""
    left: Side
    done: int
    to_do: int
    can_undo: bool

    @property
    def sides(self) -> tuple[Sequence[Message], Sequence[Message]]:
        """The replies from left to right."""
        assert self.item is not None
        return (self.item.a, self.item.b) if self.left == "a" else (self.item.b, self.item.a)


def _folder(request: Request) -> tuple[Path, LabelSet]:
    """The set that an address names. Raises HTTPException 404 where a look into the folder finds none."""
    try:
        folder = label_sets.folder_of(settings_of(request).runs, str(request.path_params["set"]))
    except RunError as error:
        raise HTTPException(404, str(error)) from error
    return folder, label_sets.read_set(folder)


# ---- all sets, and a new one ---------------------------------------------------------------------------------------


def sets(request: Request) -> Response:
    """The sets there are, and a form for a new one."""
    runs, found, damaged = settings_of(request).runs, list[Summary](), list[str]()
    for name in label_sets.set_names(runs):
        try:
            about, answers = (
                label_sets.read_set(runs / label_sets.FOLDER / name),
                labelling.read_answers(runs / label_sets.FOLDER / name),
            )
        except PosttrainError as error:
            damaged.append(str(error))
        else:
            found.append(Summary(about, len(_decided(answers)), sorted(answers.of)))
    return render(request, "label.html", sets=found, damaged=damaged, **_sources(request))


def _decided(answers: Answers) -> set[str]:
    return {item for item, given in answers.by_item().items() if labelling.verdict(given).choice != "skip"}


def _sources(request: Request) -> dict[str, Any]:
    """What a new set can be made of, for the form: the run, the file, and of a file of replies the models."""
    asked = request.query_params
    run = asked.get("run", "")
    files = _files(request, run)
    file = next((one for one in files if one.name == asked.get("file")), next(iter(files), None))
    try:
        models = models_of(file) if file is not None and file.role == "replies" else []
        problem = ""
    except PosttrainError as error:
        models, problem = [], str(error)
    return {
        "runs": [one.name for one in listing_of(request).all()],
        "run": run,
        "files": files,
        "file": file,
        "models": models,
        "problem": problem,
        "most": MOST_ITEMS,
    }


def _files(request: Request, run: str) -> list[RowSet]:
    """The files that may hold prompts with two replies. Raises HTTPException 404 where there is no such run."""
    settings = settings_of(request)
    if not run:
        return [*sets_of_folders(settings.data), *votes_of(settings.runs)]
    if not is_run(settings.runs, run):
        raise HTTPException(404, f"there is no run {run!r}")
    return [one for one in sets_of_run(settings.runs / run) if one.role in ("rows", "replies")]


async def new(request: Request) -> Response:
    """Make a set of what the form says, and open it."""
    form = await form_of(request)
    made = await run_in_threadpool(_made, request, form)
    return RedirectResponse(f"{root_of(request)}label/{made.name}", 303)


def _made(request: Request, form: Mapping[str, str]) -> LabelSet:
    run, name = form.get("run", ""), form.get("name", "").strip()
    file = find(_files(request, run), form.get("file", ""))
    models = (form["model_a"], form["model_b"]) if file.role == "replies" else None
    seed, most = _number(form, "seed", 0, 0, 2**31), _number(form, "most", MOST_ITEMS, 1, label_sets.MOST_ITEMS)
    overlap = _number(form, "overlap", 20, 0, 100) / 100
    found = items_of(file, most, seed, models)
    return label_sets.create(
        settings_of(request).runs,
        name,
        form.get("question", "").strip()[:500],
        f"{run}/{file.name}" if run else file.name,
        found.items,
        seed=seed,
        overlap=overlap,
        left_out=found.left_out,
    )


def _number(form: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = form.get(name, "").strip() or str(default)
    if not (text.isascii() and text.isdecimal() and low <= int(text[:12]) <= high):
        raise ConfigError(f"{text[:20]!r} is no number from {low:,} to {high:,}", where=name, fix="give a whole number")
    return int(text)


# ---- one set -------------------------------------------------------------------------------------------------------


def overview(request: Request) -> Response:
    """How far a set is, what the annotators say and how they agree, and the pairs so far."""
    folder, about = _folder(request)
    items, answers = label_sets.read_items(folder), labelling.read_answers(folder)
    language = language_of(request)
    blocks = results(items, answers, lambda key, **values: word(language, key, **values))
    pairs = folder / labelling.PAIRS
    return render(
        request,
        "label_set.html",
        about=about,
        answers=answers,
        decided=len(_decided(answers)),
        results=blocks,
        written=pairs if pairs.is_file() else None,
        written_at=pairs.stat().st_mtime if pairs.is_file() else None,
    )


async def export(request: Request) -> Response:
    """Write the preferences as pairs, and say what was left out."""
    folder, about = _folder(request)
    found = await run_in_threadpool(labelling.export, folder)
    return HTMLResponse(draw(request, "label_export.html", about=about, found=found, path=folder / labelling.PAIRS))


def pairs(request: Request) -> Response:
    """The file of pairs."""
    folder, about = _folder(request)
    path = folder / labelling.PAIRS
    if not path.is_file():
        raise HTTPException(404, word(language_of(request), "label.not_exported"))
    return FileResponse(path, media_type="application/x-ndjson", filename=f"{about.name}.jsonl")


# ---- one decision --------------------------------------------------------------------------------------------------


def work(request: Request) -> Response:
    """The screen of an annotator."""
    folder, about = _folder(request)
    who = labelling.annotator_of(request.query_params.get("by", ""))
    return render(
        request, "label_work.html", about=about, who=who, screen=_screen(folder, about, who), hints=SHOWN_HINTS
    )


def _screen(folder: Path, about: LabelSet, who: str, item: str | None = None) -> Screen:
    """The next decision, or the one about this item."""
    items, answers = label_sets.read_items(folder), labelling.read_answers(folder)
    to_do = list(labelling.queue(about, items, answers, who))
    chosen = item if item in to_do else next(iter(to_do), None)
    done = len(answers.of.get(who, ()))
    left = labelling.left_of(about, who, chosen) if chosen else "a"
    return Screen(items[chosen] if chosen else None, left, done, len(to_do), done > 0)


async def answer(request: Request) -> Response:
    """Keep an answer, and show the next decision."""
    return await run_in_threadpool(_answered, request, await form_of(request), undo=False)


async def undo(request: Request) -> Response:
    """Take the last answer back, and show its decision again."""
    return await run_in_threadpool(_answered, request, await form_of(request), undo=True)


def _answered(request: Request, form: Mapping[str, str], *, undo: bool) -> Response:
    folder, about = _folder(request)
    who, item, problem = labelling.annotator_of(form.get("by", "")), None, ""
    try:
        if undo:
            item = labelling.undo(folder, who)
        else:
            labelling.give(folder, who, form.get("item", ""), form.get("answer", ""), _seconds(form))
    except ConfigError as error:
        problem = str(
            error
        )  # of a key that was pressed twice, or a second window: the next decision is shown all the same
    screen = _screen(folder, about, who, item)
    return HTMLResponse(
        draw(request, "label_card.html", about=about, who=who, screen=screen, hints=SHOWN_HINTS, problem=problem)
    )


def _seconds(form: Mapping[str, str]) -> float:
    try:
        return float(form.get("seconds", "0"))
    except ValueError:
        return 0.0


ROUTES = [
    Route("/label", sets),
    Route("/label", new, methods=["POST"]),
    Route("/label/{set}", overview),
    Route("/label/{set}/work", work),
    Route("/label/{set}/answer", answer, methods=["POST"]),
    Route("/label/{set}/undo", undo, methods=["POST"]),
    Route("/label/{set}/export", export, methods=["POST"]),
    Route("/label/{set}/pairs.jsonl", pairs),
]
