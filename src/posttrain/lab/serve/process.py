"""The process of an endpoint: its port, its model, its end."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import threading
from contextlib import closing
from pathlib import Path

from posttrain.errors import ConfigError

GRACE = 3
"""Seconds that replies under way have when the process is to end."""


def serve(
    target: str,
    base: str | None,
    template_file: Path | None,
    host: str,
    port: int,
    key: str | None,
    slots: int,
    with_parent: bool,
) -> None:
    """Serve a model until a signal, or with ``with_parent`` until stdin closes.

    With port 0 a free one is taken, and one JSON line on stdout tells the URL and the name of the model when it is ready. Raises ConfigError where
    the address can't be used, or is open to others and there is no key.
    """
    try:
        import uvicorn

        from posttrain.lab.serve.app import LOOPBACK, Door, create_app
    except ImportError as error:
        raise ConfigError(
            "an endpoint needs the packages starlette and uvicorn", fix="pip install 'posttrain[board]'"
        ) from error
    loopback = host in LOOPBACK
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise ConfigError("this can't be a key: it has characters no header may have", where="--key")
    if key is None and not loopback:
        raise ConfigError(
            f"anybody who reaches {host} could use it", where="--host", fix="give a --key, or leave --host away"
        )
    if with_parent:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with closing(bound(host, port)) as listener:
        from posttrain.lab.chat import open_voice  # seconds to import: a port in use is told at once

        with closing(open_voice(target, base, template_file, slots, raw=True)) as voice:
            config = uvicorn.Config(
                create_app(voice, target, Door(loopback, key)),
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE,
            )
            server = uvicorn.Server(config)
            try:
                with server.capture_signals():  # whoever reads that it is ready may end it at once
                    listener.listen()
                    _say_ready(target, listener, port == 0)
                    server.run(sockets=[listener])
            except KeyboardInterrupt:
                sys.stderr.write("ended\n")


def bound(host: str, port: int) -> socket.socket:
    """A socket that has an address and does not listen yet. Raises ConfigError where it can't have it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named, so that asyncio sends at once what is written: else the body of an answer waits 40 ms for the head to be acknowledged
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            problem, fix = "this port is in use", f"choose another: --port {port + 1}, or 0 for any that is free"
        else:
            problem = f"can't listen here: {error}"
            fix = "give an address of this machine (--host) and a port of 0 to 65535"
        raise ConfigError(problem, where=f"{host}:{port}", fix=fix) from None
    return found


def _say_ready(target: str, listener: socket.socket, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    if as_json:
        sys.stdout.write(json.dumps({"url": url, "model": target}) + "\n")
        sys.stdout.flush()
    else:
        sys.stderr.write(f"{target} is served at {url} (Ctrl-C ends it)\n")


def _end_with_stdin() -> None:
    """Wait until whoever has started this process is gone, then ask it to end."""
    while os.read(0, 4096):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
