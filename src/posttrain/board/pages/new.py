"""A new run: a recipe as a form and as YAML, each following the other; what it would change, and what it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.artifacts import RunDir
from posttrain.board.recipe_changes import differences, fates
from posttrain.board.recipe_edit import with_entry, with_typed, without
from posttrain.board.recipe_form import Draft, Outside, draft
from posttrain.board.recipe_plan import Plans
from posttrain.board.starts import Start, free_name, start_of, starts, text_of
from posttrain.board.web import draw, is_run, json_of, render, settings_of
from posttrain.board.yaml_edit import patched
from posttrain.board.yaml_values import with_value
from posttrain.config import MAX_BYTES, ConfigPath, dotted, parse_yaml
from posttrain.errors import ConfigError, PosttrainError
from posttrain.lab.processes import state
from posttrain.lab.recipe import Recipe, recipe_of

MOST_TYPED = 200
"""Fields that may be typed into before one is read."""


class Typed(NamedTuple):
    """What was typed into a field and is no value of it."""

    text: str
    problem: str


# ---- pages ---------------------------------------------------------------------------------------------------------


def page(request: Request) -> Response:
    """What there is to start from, or the recipe that was chosen."""
    settings = settings_of(request)
    key = request.query_params.get("from")
    if key is None:
        return render(request, "new_starts.html", starts=starts(settings), folders=settings.recipes)
    start = start_of(settings, key)
    if start is None:
        raise HTTPException(404, f"there is nothing {key!r} to start from")
    text = text_of(start)
    if start.is_run:
        text = _named(text, free_name(start.name, settings.runs))
    found = _draft(request, start, text)
    right = found.recipe is not None
    return render(request, "new.html", start=start, text=text, right=right, **_parts(request, start, found, {}))


def _named(text: str, name: str) -> str:
    """A recipe under another name."""
    try:
        return patched(text, with_value(parse_yaml(text, "recipe.yaml").value, ("name",), name), "recipe.yaml")
    except ConfigError:
        return text


def _draft(request: Request, start: Start | None, text: str) -> Draft:
    file = str(start.file) if start is not None and start.file is not None else "recipe.yaml"
    return draft(text, file, Outside())


def _parts(request: Request, start: Start | None, found: Draft, typed: Mapping[ConfigPath, Typed]) -> dict[str, Any]:
    """The parts of the page that follow from the text."""
    places = {} if found.document is None else found.document.places

    def line(path: ConfigPath) -> int | None:
        place = places.get(path)
        return place if isinstance(place, int) else None

    return {
        "form": Markup(
            draw(request, "new_form.html", draft=found, typed=typed, line=line, code=code, key=_key, ident=_ident)
        ),
        "problems": Markup(
            draw(request, "new_problems.html", draft=found, typed=typed, lines=_lines(found), ident=_ident)
        ),
        "changes": Markup(_changes(request, start, found)),
    }


def _lines(found: Draft) -> list[tuple[ConfigPath, int | None, str]]:
    """(path, line, text) of everything that is wrong."""
    if found.error is None:
        return []
    if not found.error.problems:
        return [((), None, str(found.error))]
    rows = []
    for path, message in found.error.problems:
        place = found.document.place(path) if found.document is not None else None
        rows.append((path, place if isinstance(place, int) else None, f"{dotted(path)}: {message}"))
    return rows


def _changes(request: Request, start: Start | None, found: Draft) -> str:
    recipe, settings = found.recipe, settings_of(request)
    if recipe is None:
        return ""
    run = RunDir(settings.runs / recipe.name)
    exists = is_run(settings.runs, recipe.name)
    parent = _parent(start)
    return draw(
        request,
        "new_changes.html",
        name=recipe.name,
        exists=exists,
        running=exists and state(run).is_running,
        start=start,
        differences=differences(parent, recipe) if parent is not None else (),
        known=parent is not None,
        fates=fates(recipe, run) if exists else (),
    )


def _parent(start: Start | None) -> Recipe | None:
    """The recipe that was started from, where it is right."""
    if start is None:
        return None
    return _parent_of(start, 0 if start.file is None else start.file.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _parent_of(start: Start, changed: int) -> Recipe | None:
    try:
        return recipe_of(parse_yaml(text_of(start), str(start.file or "recipe.yaml")))
    except PosttrainError:
        return None


def code(text: str) -> Markup:
    """A docstring as HTML: what stands between double backticks is code."""
    return Markup(re.sub(r"``(.+?)``", r"<code>\1</code>", str(escape(text))))


def _key(path: ConfigPath) -> str:
    """A path as a script sends it back."""
    return json.dumps(path, ensure_ascii=False)


def _ident(path: ConfigPath) -> str:
    """A path as a part of an element's id."""
    return quote(".".join(map(str, path)), safe="")


# ---- edits ---------------------------------------------------------------------------------------------------------


async def edit(request: Request) -> Response:
    """What becomes of a text by what was typed, added or taken out, and all that follows from it."""
    return JSONResponse(await run_in_threadpool(_edited, request, await json_of(request)))


def _edited(request: Request, asked: Mapping[str, Any]) -> dict[str, Any]:
    start = start_of(settings_of(request), str(asked.get("start")))
    text, file = _text(asked), str(start.file) if start is not None and start.file is not None else "recipe.yaml"
    typed: dict[ConfigPath, Typed] = {}
    said = ""
    for path, value in _typed(asked):
        try:
            text = with_typed(text, file, path, value)
        except ConfigError as error:
            typed[path] = Typed(value, str(error))
    try:
        text = _acted(text, file, asked)
    except ConfigError as error:
        said = str(error)
    found = _draft(request, start, text)
    parts = _parts(request, start, found, typed)
    if found.document is None:
        del parts["form"]  # it waits until the text can be read
    right = found.recipe is not None and not typed
    return {"text": text, "said": said, "right": right, "bad": [_key(path) for path in typed], **parts}


def _acted(text: str, file: str, asked: Mapping[str, Any]) -> str:
    match asked.get("act"):
        case "add":
            return with_entry(text, file, _path(asked), str(asked.get("kind") or ""), str(asked.get("name") or ""))
        case "remove":
            return without(text, file, _path(asked))
        case "off":
            return with_typed(text, file, _path(asked), "null")
        case _:
            return text


def _text(asked: Mapping[str, Any]) -> str:
    text = asked.get("text")
    if not isinstance(text, str):
        raise HTTPException(400, "a text is needed")
    if len(text) > MAX_BYTES:
        raise HTTPException(413, f"more than {MAX_BYTES:,} characters are no recipe")
    return text


def _path(asked: Mapping[str, Any]) -> ConfigPath:
    path = asked.get("path")
    if not isinstance(path, list) or not all(isinstance(part, str | int) for part in path) or not path:
        raise HTTPException(400, "a path is needed")
    return tuple(path)


def _typed(asked: Mapping[str, Any]) -> Sequence[tuple[ConfigPath, str]]:
    several = asked.get("typed", [])
    if not isinstance(several, list) or len(several) > MOST_TYPED:
        raise HTTPException(400, "a list of what was typed is needed")
    return [(_path(one), str(one.get("value", ""))) for one in several if isinstance(one, dict)]


# ---- the plan ---------------------------------------------------------------------------------------


def plans_of(request: Request) -> Plans:
    """What makes this board's plans."""
    if not hasattr(request.app.state, "plans"):
        request.app.state.plans = Plans(settings_of(request).runs)
    found: Plans = request.app.state.plans
    return found


async def plan(request: Request) -> Response:
    """Memory and time of the trainings of a text."""
    return await run_in_threadpool(_planned, request, await json_of(request))


def _planned(request: Request, asked: Mapping[str, Any]) -> Response:
    start = start_of(settings_of(request), str(asked.get("start")))
    recipe = _draft(request, start, _text(asked)).recipe
    found = None if recipe is None else plans_of(request).of(recipe)
    return render(request, "new_plan.html", plan=found)


ROUTES = [
    Route("/new", page),
    Route("/new/edit", edit, methods=["POST"]),
    Route("/new/plan", plan, methods=["POST"]),
]
