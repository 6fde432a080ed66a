"""What stands between the board and the rest of the world, as one layer around the whole application.

A page of another site must not be able to read or change anything: requests for a foreign host name are refused (DNS rebinding), so are
those that change something and come from a page of another origin (CSRF), and no page may be framed or run a script that is not ours.
Whoever lets the board listen beyond this machine needs a token. Each rule stands here because a peer lacked it: CVE-2024-1727,
CVE-2024-47084, CVE-2024-47165 (Gradio), CVE-2025-53002 (LLaMA-Factory), CVE-2026-21873 (NiceGUI).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; font-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE = "posttrain_token"
MOST_BYTES = 4_000_000
"""Of the body of a request."""
PAUSE = 0.5
"""Seconds before a wrong token is refused, so that guessing is slow as well as hopeless."""


@dataclass(frozen=True)
class Guard:
    """The layer. ``token``: needed from everyone where it is set. ``names``: host names beside loopback under which the board is reached."""

    app: ASGIApp
    token: str | None
    names: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._foreign(scope["method"], headers) or await self._unknown(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, _guarded(send))
            return
        await self.app(scope, _bounded(receive), _guarded(send))

    def _foreign(self, method: str, headers: Mapping[str, str]) -> Response | None:
        host = _host(f"//{headers.get('host', '')}")
        if self.token is None and host not in LOOPBACK | self.names:
            return PlainTextResponse(
                "unknown host name: start the board with --name HOST to be reached under it\n", 421
            )
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        ours = origin is not None and _host(origin) in {host} | self.names and _same_port(origin, headers, self.names)
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or not ours:
            return PlainTextResponse("this request comes from another site\n", 403)
        size = headers.get("content-length", "0")
        if not size.isdigit() or int(size) > MOST_BYTES:
            return PlainTextResponse(f"more than {MOST_BYTES:,} bytes\n", 413)
        return None

    async def _unknown(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Refuse whoever has no token. One in the address becomes a cookie, and the address is left without it."""
        if self.token is None or _equal(cookie_parser(headers.get("cookie", "")).get(COOKIE), self.token):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if _equal(given, self.token):
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            here = scope["path"].rsplit("/", 1)[-1] or "."
            found = RedirectResponse(f"{here}?{rest}" if rest else here, 303)
            found.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", max_age=30 * 86400)
            return found
        if given is not None:
            await asyncio.sleep(PAUSE)
        return PlainTextResponse(
            "open the address that the board printed when it was started: it holds the token\n", 401
        )


def _host(address: str) -> str | None:
    """The host name of an address; None where it can't be read."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _same_port(origin: str, headers: Mapping[str, str], names: frozenset[str]) -> bool:
    """Whether a page is of our own port; under a name of a proxy, whose port is not ours, the name is enough."""
    if _host(origin) in names:
        return True
    try:
        return urlsplit(origin).netloc == headers.get("host")
    except ValueError:
        return False


def _equal(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def _bounded(receive: Receive) -> Receive:
    """Receive no more than `MOST_BYTES`, whatever the request says of its length."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= MOST_BYTES else {"type": "http.disconnect"}

    return bounded


def _guarded(send: Send) -> Send:
    """Send every answer with the rules for the browser; a page that brings its own policy keeps it."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", POLICY)
            headers.setdefault("cache-control", "no-store")
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "same-origin"
            headers["cross-origin-resource-policy"] = "same-origin"
            headers["cross-origin-opener-policy"] = "same-origin"
        await send(message)

    return guarded
