"""Talk to models: one, two side by side, or two whose names are told only after a vote."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain.artifacts import RunDir
from posttrain.board.pages.runs import listing_of
from posttrain.board.speakers import Speaker, Speakers, reply_pieces
from posttrain.board.stream import HEADERS
from posttrain.board.votes import OTHER, Side, cast, draw_duel, keep_reply, model_of, votes_file
from posttrain.board.web import json_of, language_of, render, settings_of, word
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.generate.engine import Failure
from posttrain.generate.openai import Endpoint, secret_of
from posttrain.judge.arena import arena_ratings, arena_section, endings
from posttrain.judge.votes import read_comparisons
from posttrain.model.lineage import TRAINED
from posttrain.report import html
from posttrain.report.values import Block, Cell, Notice, Number, Table, Text
from posttrain.stats.ratings import bradley_terry

Model = Mapping[str, Any]
"""What describes a model: its ``name``, and ``target`` (what ``posttrain serve`` opens) or ``endpoint``."""
GGUF = "files/model.gguf"
"""Of an export stage."""
SAMPLING = ("temperature", "top_p", "max_tokens")
_KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]*(KEY|TOKEN)[A-Z0-9_]*")


# ---- which models there are ----------------------------------------------------------------------------------------


def models_of(request: Request) -> list[Model]:
    """The local models of this board: what its runs began with, trained, and exported for llama.cpp."""
    runs, facts = settings_of(request).runs, listing_of(request).all()
    found: list[Model] = []
    for name in dict.fromkeys(one.model for one in facts if one.model):
        found.append({"id": f"base:{name}", "name": name, "target": name, "base": name, "group": "base"})
    for one in facts:
        for stage in one.stages:
            at = runs / one.name / stage.name
            group = "gguf" if (at / GGUF).is_file() else "trained"
            if stage.status == "complete" and (stage.kind in TRAINED or group == "gguf"):
                name = f"{one.name}/{stage.name}"
                found.append({"id": name, "name": name, "target": str(at), "base": one.model, "group": group})
    return found


def _model(request: Request, asked: Any) -> Model:
    """The model that a page means: the name of one in the list, or an endpoint. Raises PosttrainError where there is none."""
    if isinstance(asked, dict):
        return _endpoint(asked)
    found = next((one for one in models_of(request) if one["id"] == asked), None)
    if found is None:
        raise HTTPException(404, f"there is no model {asked!r} here")
    return found


def _endpoint(asked: Mapping[str, Any]) -> Model:
    url, model, key = (str(asked.get(name) or "").strip() for name in ("url", "model", "key_env"))
    if not model:
        raise ConfigError(
            "the name of the model is missing", where="endpoint", fix="the server's documentation tells it"
        )
    if key and not _KEY_NAME.fullmatch(key):
        raise ConfigError(
            f"{key!r} is no name of a variable that holds a key", where="endpoint", fix="for example OPENAI_API_KEY"
        )
    endpoint = Endpoint(url=url, model=model, api_key_env=key or None)
    name = f"{model} at {httpx.URL(endpoint.base).netloc.decode()}"
    return {"name": name, "base": model, "endpoint": {"url": endpoint.base, "model": model, "key_env": key or None}}


def _with_digest(model: Model, runs: Path) -> Model:
    """A model with what identifies its weights, for votes."""
    run, _, stage = str(model["name"]).partition("/")
    if model.get("group") not in ("trained", "gguf"):
        return model
    return {**model, "digest": (RunDir(runs / run).stage(stage).manifest() or {}).get("digest")}


@contextlib.asynccontextmanager
async def _speaking(request: Request, model: Model) -> AsyncIterator[Speaker]:
    if "endpoint" in model:
        at = model["endpoint"]
        yield Speaker(at["url"], at["model"], secret_of(at["key_env"]))
        return
    state = request.app.state
    if not hasattr(state, "speakers"):
        state.speakers = Speakers()
    async with state.speakers.speaking(model["target"]) as speaker:
        yield speaker


# ---- the page ------------------------------------------------------------------------------------------------------


def page(request: Request) -> Response:
    """The page. What is said stays in the browser; votes are kept."""
    models = models_of(request)
    groups = {group: [one for one in models if one["group"] == group] for group in ("base", "trained", "gguf")}
    return render(request, "chat.html", groups=groups, ranking=_ranking(request))


def ranking(request: Request) -> Response:
    """The ranking by all votes so far."""
    return HTMLResponse(_ranking(request))


def _ranking(request: Request) -> Markup:
    path = votes_file(settings_of(request).runs)
    found: Sequence[Block]
    try:
        comparisons = read_comparisons(path)
    except DataError:
        return html.blocks([Text(word(language_of(request), "chat.no_votes"), "aside")], 3)
    try:
        rated = arena_ratings(path.name, None, 0.95, None, comparisons, bradley_terry(comparisons), ())
        section = arena_section(rated, "ranking")
        found = [Text(section.summary), *section.blocks]
    except DataError as error:  # somebody has won, or lost, everything so far
        columns = [word(language_of(request), f"chat.{name}") for name in ("model", "wins", "ties", "losses")]
        ended = zip(comparisons.models, endings(comparisons).tolist(), strict=True)
        rows: list[tuple[Cell, ...]] = [(name, *(Number(n, "count") for n in counts)) for name, counts in ended]
        found = [
            Notice("fact", word(language_of(request), "chat.few_votes"), (error.problem,)),
            Table("", tuple(columns), tuple(rows)),
        ]
    return html.blocks(list(found), 3)


# ---- a reply -------------------------------------------------------------------------------------------------------


async def reply(request: Request) -> Response:
    """One reply as lines of JSON while it is made: ``seed``, then ``text`` and ``reasoning``, and ``finish`` or ``error`` at the end."""
    asked, runs = await json_of(request), settings_of(request).runs
    messages, duel = asked.get("messages"), asked.get("duel")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise HTTPException(400, "messages are needed")
    side: Side = "right" if asked.get("side") == "right" else "left"
    if duel is None:
        models = [await run_in_threadpool(_model, request, asked.get("model"))]
    else:
        models = [model_of(runs, str(duel), one) for one in (side, OTHER[side])]
    sampling = {name: asked[name] for name in SAMPLING if asked.get(name) is not None}
    sampling["seed"] = secrets.randbits(31) if asked.get("seed") is None else asked["seed"]
    body = {"messages": messages, **sampling}

    async def lines() -> AsyncIterator[str]:
        text = ""
        yield _line({"seed": sampling["seed"]})
        try:
            async with contextlib.AsyncExitStack() as stack:
                # Of a blind comparison both are started before either speaks: who was there already is not to be seen.
                speaker, *_ = [await stack.enter_async_context(_speaking(request, one)) for one in models]
                yield _line({"ready": True})
                async for found in reply_pieces(speaker, body):
                    if isinstance(found, Failure):
                        yield _line({"error": _unnamed(found.detail, models) if duel else found.detail})
                        return
                    text += found.text
                    yield _line(
                        {"text": found.text, "reasoning": found.reasoning, "finish": found.finish, "usage": found.usage}
                    )
        except PosttrainError as error:
            yield _line({"error": _unnamed(str(error), models) if duel else str(error)})
        finally:
            if duel and text:
                keep_reply(runs, str(duel), side, {"messages": messages, "sampling": sampling}, text)

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=HEADERS)


def _line(value: Mapping[str, Any]) -> str:
    told = {name: one for name, one in value.items() if one not in ("", None)}
    return json.dumps(told, ensure_ascii=False) + "\n"


def _unnamed(text: str, models: Sequence[Model]) -> str:
    """An error without the names that are not to be told yet."""
    for model in models:
        for name in (model.get("target"), model["name"], model.get("base"), (model.get("endpoint") or {}).get("url")):
            text = text.replace(str(name), "...") if name else text
    return text


# ---- blind comparisons ---------------------------------------------------------------------------------------------


async def begin(request: Request) -> Response:
    """Draw two of the chosen models, and which is left, by lot."""
    asked = (await json_of(request)).get("models")
    runs = settings_of(request).runs
    found = [await run_in_threadpool(_model, request, one) for one in (asked if isinstance(asked, list) else [])]
    chosen = [_with_digest(one, runs) for one in found]
    return JSONResponse({"duel": draw_duel(runs, chosen)})


async def vote(request: Request) -> Response:
    """Cast the one vote of a comparison, and tell who was who."""
    asked, runs = await json_of(request), settings_of(request).runs
    line = cast(runs, str(asked.get("duel")), asked.get("vote"))  # type: ignore[arg-type]  # checked there
    return JSONResponse({"left": line["model_a"], "right": line["model_b"], "void": line["void"]})


ROUTES = [
    Route("/chat", page),
    Route("/chat/ranking", ranking),
    Route("/chat/replies", reply, methods=["POST"]),
    Route("/chat/duels", begin, methods=["POST"]),
    Route("/chat/votes", vote, methods=["POST"]),
]
