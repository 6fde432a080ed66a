"""What every page of the board needs: templates, words, forms, and the run an address means."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl, quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from posttrain.artifacts import RunDir
from posttrain.errors import PosttrainError, RunError
from posttrain.report import numbers
from posttrain.report.html import blocks, cell, tiles
from posttrain.report.values import Block, Number

Language = Literal["en", "zh"]
LANGUAGE_COOKIE = "posttrain_language"
PAGES = (("runs", ""), ("new", "new"), ("compare", "compare"), ("rows", "rows"), ("label", "label"), ("chat", "chat"))
"""The links on top of every page: name of the page's words, and address."""


@dataclass(frozen=True)
class Settings:
    """What a board is over."""

    runs: Path
    """The folder of the run folders."""
    data: tuple[Path, ...] = ()
    """Folders whose rows may be looked at, beside the runs."""
    recipes: tuple[Path, ...] = ()
    """Folders whose recipes a new run can start from."""


# ---- words ---------------------------------------------------------------------------------------------------------


@cache
def words() -> dict[str, dict[str, str]]:
    """Every word of the board as ``page.name`` -> language -> text, from ``words/<page>.yaml``."""
    found = {}
    for file in sorted((resources.files("posttrain.board") / "words").iterdir(), key=lambda one: one.name):
        page = file.name.removesuffix(".yaml")
        for name, text in (yaml.safe_load(file.read_text("utf-8")) or {}).items():
            found[f"{page}.{name}"] = text
    return found


def language_of(request: Request) -> Language:
    """The language that is asked for, was asked for before, or that the browser prefers."""
    wanted = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
    if wanted not in get_args(Language):
        wanted = "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
    return cast(Language, wanted)


def word(language: Language, key: str, **values: Any) -> str:
    """A text of the board in a language."""
    text = words()[key][language]
    return text.format(**values) if values else text


# ---- pages ---------------------------------------------------------------------------------------------------------


@cache
def _templates() -> Environment:
    loader = PackageLoader("posttrain.board")
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    found.filters |= {
        "cell": cell,
        "address": lambda text: quote(str(text), safe=""),
        "duration": numbers.short_duration,
        "moment": _moment,
        "iso": _iso,
    }
    found.globals |= {
        "blocks": _blocks,
        "tiles": tiles,
        "Number": Number,
        "PAGES": PAGES,
        "asset_version": asset_version(),
    }
    return found


def _blocks(several: list[Block], level: int = 3) -> Markup:
    return blocks(several, level)


def _moment(seconds: float) -> str:
    """A time in this machine's zone, to the minute."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def root_of(request: Request) -> str:
    """The way from this address up to the board's first page: addresses are relative, so that the board may stand under any path."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return "../" * (path.count("/") - 1) or "./"


def draw(request: Request, template: str, **values: Any) -> str:
    """A page or a part of one as HTML. Every template knows ``t(key)``, ``root`` and ``language``; what it is given is escaped."""
    language = language_of(request)

    def text(key: str, **more: Any) -> str:
        return word(language, key, **more)

    known = {"t": text, "root": root_of(request), "language": language, "request": request}
    drawn = _templates().get_template(template).render(known | values)
    return drawn.encode("utf-8", "replace").decode()  # half a character, from a damaged file


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page as an answer."""
    found = HTMLResponse(draw(request, template, **values), status)
    if "lang" in request.query_params:
        found.set_cookie(LANGUAGE_COOKIE, language_of(request), samesite="strict", max_age=365 * 86400)
    return found


@cache
def asset_version() -> str:
    """Digest of all scripts and styles: a part of their address, so that a browser keeps them until they change."""
    import hashlib

    seen = hashlib.sha256(style().encode())
    for file in _files(resources.files("posttrain.board") / "static"):
        seen.update(file)
    return seen.hexdigest()[:12]


def _files(folder: Any) -> Iterator[bytes]:
    for one in sorted(folder.iterdir(), key=lambda found: str(found.name)):
        if one.is_dir():
            yield from _files(one)
        else:
            yield one.read_bytes()


@cache
def style() -> str:
    """The styles of a report, which the board's own build on."""
    folder = resources.files("posttrain.report")
    return (folder / "figure.css").read_text("utf-8") + (folder / "page.css").read_text("utf-8")


def refusal(request: Request, error: Exception, status: int = 400) -> Response:
    """An error as a page, in the words of the command line."""
    if isinstance(error, OSError):
        where = None if error.filename is None else str(error.filename)
        gone = isinstance(error, FileNotFoundError)
        fix = "load the page again" if gone else "see to it that the user of the board may read and write here"
        error = RunError((error.strerror or str(error)).lower(), where=where, fix=fix)
    text = str(error) if isinstance(error, PosttrainError) else str(getattr(error, "detail", error))
    partial = "hx-request" in request.headers
    return render(request, "error_part.html" if partial else "error.html", status, error=text)


# ---- what is asked -------------------------------------------------------------------------------------------------


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form (urlencoded); the last one of a name counts."""
    return dict(await fields_of(request))


async def fields_of(request: Request) -> list[tuple[str, str]]:
    """The fields of a form in their order, names that stand several times too."""
    body = await request.body()
    try:
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=20_000)
    except ValueError:
        raise HTTPException(400, "this form can't be read") from None


async def json_of(request: Request) -> Mapping[str, Any]:
    """The object that a script sends."""
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "this is not JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "a JSON object is needed")
    return value


def settings_of(request: Request) -> Settings:
    """What this board is over."""
    found: Settings = request.app.state.settings
    return found


def is_run(runs: Path, name: str) -> bool:
    """Whether there is a run of this name: one that a look into the runs folder would find.

    A folder that may not be looked into is none, nor one whose name is not UTF-8.
    """
    plain = name and not name.startswith(".") and not re.search("[/\0\ud800-\udfff]", name)
    if not plain or not os.path.isdir(runs / name):
        return False
    if not Path(os.path.realpath(runs / name)).is_relative_to(os.path.realpath(runs)):
        return False
    return os.path.isfile(runs / name / "recipe.yaml") or any((runs / name).glob("*/manifest.json"))


def run_of(request: Request) -> RunDir:
    """The run that an address names. Raises HTTPException 404 where a look into the runs folder would find none."""
    name, runs = str(request.path_params["run"]), settings_of(request).runs
    if not is_run(runs, name):
        raise HTTPException(404, f"there is no run {name!r}")
    return RunDir(runs / name)
