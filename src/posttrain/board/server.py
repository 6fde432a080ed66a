"""Start the board: a socket, a token where others can reach it, and uvicorn without a log of addresses."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import ConfigError
from posttrain.lab.serve.process import bound

GRACE = 3
"""Seconds that open streams are given at the end."""


class Place(NamedTuple):
    """Where the board can be reached."""

    host: str = "127.0.0.1"
    port: int = 7860
    names: Sequence[str] = ()
    """Host names of a proxy in front of it."""
    under: str = ""
    """The path that a proxy leaves in front of every address."""


def serve(runs: Path, data: Sequence[Path], recipes: Sequence[Path], place: Place, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. Raises ConfigError where the extra is not installed, the port is taken, or the host is not this machine's."""
    try:
        import uvicorn

        from posttrain.board.app import create_app
        from posttrain.board.security import LOOPBACK
        from posttrain.board.web import Settings
    except ModuleNotFoundError as error:
        problem = f"the board needs a package that is not installed: {error.name}"
        raise ConfigError(problem, where="posttrain board", fix="pip install 'posttrain[board]'") from error
    if runs.exists() and not runs.is_dir():
        raise ConfigError(
            "this is a file, not a folder of runs", where=str(runs), fix="--runs takes the folder that holds them"
        )
    token = None if place.host in LOOPBACK else secrets.token_urlsafe(24)
    settings = Settings(runs.absolute(), tuple(map(Path.absolute, data)), tuple(map(Path.absolute, recipes)))
    app = create_app(settings, token, place.names, place.under)
    with _listening(place) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{port}{place.under.rstrip('/')}/"
        tell(f"The board is at {address}{'?token=' + token if token else ''}")
        if token:
            tell("Whoever has this address can start and stop runs: send it as you would send a password.")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, server_header=False
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(place: Place) -> socket.socket:
    listener = bound(place.host, place.port)
    listener.listen(128)
    return listener
