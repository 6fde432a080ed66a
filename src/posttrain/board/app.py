"""The application: pages, scripts and styles, behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from threading import Lock, Thread, Timer

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.board.pages import first_routes, other_routes
from posttrain.board.security import Guard
from posttrain.board.web import Settings, refusal, style
from posttrain.errors import PosttrainError, RunError

KEPT = "public, max-age=31536000, immutable"
"""Scripts and styles: their address changes with them."""
FIRST_PAGE = 1.0
"""Seconds that the first page has to itself."""


def create_app(settings: Settings, token: str | None = None, names: Iterable[str] = (), under: str = "") -> ASGIApp:
    """The board as an ASGI application.

    ``token``: what everyone has to bring, None on loopback. ``names``: host names under which a proxy gives it. ``under``: a path that a
    proxy leaves in front (``/b/x4``); one that takes it away needs nothing.
    """
    app = Starlette(
        routes=[
            *first_routes(),
            Route("/static/report.css", _style),
            Mount("/static", _Assets(packages=[("posttrain.board", "static")])),
            Mount("", _Others()),
        ],
        exception_handlers={
            HTTPException: _refused,
            PosttrainError: _refused,
            OSError: _refused,
            Exception: _unforeseen,
        },
        lifespan=_ending,
    )
    app.state.settings = settings
    return Guard(_Under(app, under.rstrip("/")) if under else app, token, frozenset(names))


@asynccontextmanager
async def _ending(app: Starlette) -> AsyncIterator[None]:
    """Local models that were started for the chat, and the process with the tokenizer, end with the board."""
    yield
    if hasattr(app.state, "tokens"):
        app.state.tokens.close()
    if hasattr(app.state, "speakers"):
        await app.state.speakers.close()


class _Others:
    """The other pages, loaded when they are asked for, or behind the first one: beside it they would take its time."""

    def __init__(self) -> None:
        self._loaded: Future[Router] = Future()
        self._begun = Lock()
        timer = Timer(FIRST_PAGE, self._load)
        timer.daemon = True
        timer.start()

    def _load(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._loaded.set_result(Router(other_routes()))
        except BaseException as error:
            self._loaded.set_exception(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._begun.locked():
            Thread(target=self._load, daemon=True).start()
        router = await asyncio.shield(asyncio.wrap_future(self._loaded))  # who goes away must not end the loading
        await router(scope, receive, send)


class _Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        found = await super().get_response(path, scope)
        found.headers["cache-control"] = KEPT
        return found


class _Under:
    """Take a path off the front of every address."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{self.path}/"):
            if scope["path"] == self.path:  # addresses of a page are relative to the folder it stands in
                await RedirectResponse(f"{self.path}/")(scope, receive, send)
                return
            scope = {**scope, "path": scope["path"].removeprefix(self.path), "raw_path": None}
        await self.app(scope, receive, send)


async def _style(request: Request) -> Response:
    return Response(style(), media_type="text/css", headers={"cache-control": KEPT})


async def _unforeseen(request: Request, error: Exception) -> Response:
    """A fault of the board: the page says which, the terminal has the traceback."""
    told = RunError(f"{type(error).__name__}: {error}", fix="the terminal of the board says more; please report it")
    return refusal(request, told, 500)


async def _refused(request: Request, error: Exception) -> Response:
    return refusal(request, error, error.status_code if isinstance(error, HTTPException) else 400)
