"""The routes of an OpenAI-compatible endpoint over one voice, and who may use it.

A web page must not be able to: requests that name another host (DNS rebinding) or come from a page (an ``Origin``) are refused, and bodies are taken as
``application/json`` only, which no page can send unasked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.errors import ConfigError
from posttrain.generate.engine import Failure
from posttrain.generate.voice import Piece, Voice
from posttrain.lab.serve.form import Wish, Written, error_body, wish_of

MOST_BYTES = 8 * 2**20
"""Of a body."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_INVALID = "invalid_request_error"
Heard = asyncio.Queue[Piece | Failure]


@dataclass(frozen=True)
class Door:
    """Who may use the endpoint."""

    loopback: bool
    """It listens on loopback only: a request that names another host was led here by a name that an attacker has turned to this machine."""
    key: str | None = None
    """What a request must bear as its token; None = it need not."""

    def problem(self, scheme: str, headers: Headers) -> tuple[int, str] | None:
        """Why a request is not let in, as a status and words; None = it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.loopback and _name(host) not in LOOPBACK:
            return 403, f"this endpoint is not called {host!r}: use http://127.0.0.1"
        if origin is not None and origin != f"{scheme}://{host}":
            return 403, "requests from web pages are refused"
        if self.key is not None:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode()):
                return 401, "the key is missing or wrong: send it as Authorization: Bearer KEY"
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    name, bracket, _ = host.removeprefix("[").partition("]")
    return name.lower() if bracket else host.rpartition(":")[0].lower() or host.lower()


class _Doorkeeper:
    """Refuses before anything is read."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (found := self._door.problem(scope["scheme"], Headers(scope=scope))):
            status, words = found
            code, more = ("invalid_api_key", {"WWW-Authenticate": "Bearer"}) if status == 401 else (None, None)
            response = JSONResponse(error_body(words, _INVALID, code=code), status, more)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create_app(voice: Voice, model: str, door: Door) -> Starlette:
    """The endpoint; ``model`` is what clients call the voice."""
    created = int(time.time())
    card = {"id": model, "object": "model", "created": created, "owned_by": "posttrain"}

    def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(card) if name == model else _unknown_model(name, model)

    async def chat_completions(request: Request) -> ASGIApp:
        return await _answer(request, voice, model, chat=True)

    async def completions(request: Request) -> ASGIApp:
        return await _answer(request, voice, model, chat=False)

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        middleware=[Middleware(_Doorkeeper, door=door)],
        exception_handlers={HTTPException: _http_error, ConfigError: _config_error},
    )


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "it is registered for this one"
    return JSONResponse(error_body(error.detail, _INVALID), error.status_code, error.headers)


def _config_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ConfigError), "it is registered for this one"
    return JSONResponse(error_body(str(error), _INVALID, error.where), 400)


def _unknown_model(name: str, known: str) -> Response:
    words = f"there is no model {name!r} here: this endpoint serves {known!r}"
    return JSONResponse(error_body(words, _INVALID, "model", "model_not_found"), 404)


async def _answer(request: Request, voice: Voice, model: str, chat: bool) -> ASGIApp:
    wish = wish_of(await _json(request), chat)
    if wish.model != model:
        return _unknown_model(wish.model, model)
    written = Written(wish, f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", int(time.time()))
    heard, end = _begin(voice, wish)
    try:
        pieces = await _pieces_of(request, heard, all_of=not wish.stream)
    except BaseException:
        end()
        raise
    last = pieces[-1] if pieces else None
    if last is None:  # the client is gone
        end()
        return Response(status_code=499)
    if isinstance(last, Failure):
        kind = _INVALID if last.reason == "invalid_request" else "server_error"
        param = ("messages" if chat else "prompt") if last.reason == "invalid_request" else None
        return JSONResponse(error_body(last.detail, kind, param), 400 if last.reason == "invalid_request" else 500)
    if wish.stream:
        events = _events(last, heard, written)
        return _Ending(StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS), end)
    return JSONResponse(written.whole([piece for piece in pieces if isinstance(piece, Piece)]))


_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _json(request: Request) -> Any:
    """The body. Raises HTTPException where it is none that a page could not have sent, too large, or not JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the body as application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"the body is larger than {MOST_BYTES // 2**20} MiB")
    try:
        return json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error


def _begin(voice: Voice, wish: Wish) -> tuple[Heard, Callable[[], None]]:
    """Begin a reply, whose pieces come into the queue."""
    loop, heard = asyncio.get_running_loop(), Heard()

    def hear(found: Piece | Failure) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(heard.put_nowait, found)

    return heard, voice.begin(wish.asked, hear)


async def _pieces_of(request: Request, heard: Heard, all_of: bool) -> list[Piece | Failure]:
    """All pieces of a reply, or only the first; none where the client has gone meanwhile."""
    gone = asyncio.ensure_future(_disconnected(request))
    found: list[Piece | Failure] = []
    try:
        while not found or (all_of and not _ends(found[-1])):
            coming = asyncio.ensure_future(heard.get())
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return []
            found.append(coming.result())
        return found
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _ends(found: Piece | Failure) -> bool:
    return isinstance(found, Failure) or found.finish is not None


async def _events(first: Piece, heard: Heard, written: Written) -> AsyncIterator[str]:
    """A reply as server-sent events."""
    found: Piece | Failure = first
    if written.wish.chat:
        yield _event(written.chunk(Piece(), opening=True))
    while True:
        if isinstance(found, Failure):
            yield _event(error_body(found.detail, "server_error"))
            return
        yield _event(written.chunk(found))
        if found.finish is not None:
            break
        found = await heard.get()
    if written.wish.tells_usage:
        yield _event(written.usage_chunk(found))
    yield "data: [DONE]\n\n"


@dataclass(frozen=True)
class _Ending:
    """A response after which a reply ends, however the response does: the client may be gone."""

    response: Response
    end: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.response(scope, receive, send)
        finally:
            self.end()


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
