"""Models that speak on the board: local ones as processes of their own, started when they are asked, and endpoints.

A local model is ``posttrain serve``, which ends with the board: nothing of it is left that a restart would have to find.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
from starlette.concurrency import run_in_threadpool

from posttrain.errors import ModelError, PosttrainError
from posttrain.generate.engine import Failure
from posttrain.generate.voice import Piece
from posttrain.generate.wire import read_chunk, read_error

MOST = 3
"""Local models in memory at once; the one that has been silent for longest makes room."""
LOAD_SECONDS = 900
"""A model that is not ready after so long is given up."""
SILENCE = 600.0
"""Seconds after which a reply that does not go on is given up."""


class Speaker(NamedTuple):
    """Where a model answers."""

    url: str
    """Base URL of its endpoint."""
    model: str
    key: str | None = None


@dataclass
class _Child:
    """A local model's process."""

    process: subprocess.Popen[bytes]
    speaker: Speaker
    talking: int = 0
    silent_since: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Let it end, as it does when this process does."""
        assert self.process.stdin is not None, "it is a pipe"
        assert self.process.stdout is not None, "it is a pipe"
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Speakers:
    """The local models that are running. What it knows ends with it."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._children: dict[str, asyncio.Task[_Child]] = {}
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def speaking(self, target: str) -> AsyncIterator[Speaker]:
        """A local model, started where it is not there yet; it stays while it is used. Raises PosttrainError with what its process said."""
        child = await self._child(target)
        child.talking += 1
        try:
            yield child.speaker
        finally:
            child.talking -= 1
            child.silent_since = time.monotonic()

    async def _child(self, target: str) -> _Child:
        async with self._lock:
            task = self._children.get(target)
            if task is None or (task.done() and (_failed(task) or task.result().process.poll() is not None)):
                await self._make_room(target)
                task = self._children[target] = asyncio.create_task(run_in_threadpool(_started, target))
        return await asyncio.shield(task)  # whoever asked may go away: the next one finds it loaded

    async def _make_room(self, target: str) -> None:
        """End silent models until there is room for one more. Raises PosttrainError where all of them speak."""
        self._children = {name: task for name, task in self._children.items() if not _failed(task)}
        if (died := self._children.pop(target, None)) is not None:
            await run_in_threadpool(died.result().end)
        while len(self._children) >= self._most:
            silent = {name: task.result() for name, task in self._children.items() if task.done()}
            silent = {name: child for name, child in silent.items() if not child.talking}
            if not silent:
                raise PosttrainError(
                    f"{self._most} models are speaking already, and there is room for no more",
                    fix="wait until one has ended, or stop it",
                )
            oldest = min(silent, key=lambda name: silent[name].silent_since)
            del self._children[oldest]
            await run_in_threadpool(silent[oldest].end)

    async def close(self) -> None:
        """End all of them."""
        tasks, self._children = list(self._children.values()), {}
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, _Child):
                await run_in_threadpool(found.end)


def _failed(task: asyncio.Task[_Child]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _started(target: str) -> _Child:
    """Start a model and wait until it is ready. Raises ModelError with what it said where it is not."""
    key = secrets.token_urlsafe(24)
    argv = [sys.executable, "-m", "posttrain", "serve", "--port", "0", "--with-parent", "--", target]
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads would stop the process once it is full
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "POSTTRAIN_SERVE_KEY": key},
            start_new_session=True,  # Ctrl-C at the board's terminal is the board's alone
        )
        assert process.stdout is not None, "it is a pipe"
        patience = threading.Timer(LOAD_SECONDS, process.kill)
        patience.start()
        line = process.stdout.readline()
        patience.cancel()
        try:
            ready = json.loads(line)
            return _Child(process, Speaker(ready["url"], ready["model"], key))
        except (ValueError, KeyError, TypeError) as error:
            with process:
                process.kill()
            said.seek(0)
            words = said.read()[-2000:].decode("utf-8", "replace").strip().removeprefix("error: ")
            raise ModelError(words or "this model could not be started", where=None if words else target) from error


# ---- a reply over the wire -----------------------------------------------------------------------------------------


async def reply_pieces(speaker: Speaker, body: Mapping[str, Any]) -> AsyncIterator[Piece | Failure]:
    """The pieces of one reply as they come, the last with its end or a Failure. Who stops listening ends the reply."""
    local = httpx.URL(speaker.url).host in ("127.0.0.1", "::1", "localhost")
    headers = {} if speaker.key is None else {"Authorization": f"Bearer {speaker.key}"}
    asked = {**body, "model": speaker.model, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with (
            httpx.AsyncClient(
                timeout=httpx.Timeout(SILENCE, connect=10), trust_env=not local, verify=not local
            ) as client,
            client.stream("POST", f"{speaker.url}/chat/completions", json=asked, headers=headers) as response,
        ):
            if response.status_code != 200:
                outcome = read_error(response.status_code, await response.aread()).outcome
                assert isinstance(outcome, Failure), "an error is a failure"
                yield _without(speaker.key, outcome)
                return
            async for found in _chunks(response):
                yield _without(speaker.key, found) if isinstance(found, Failure) else found
    except httpx.HTTPError as error:
        yield Failure("connection", f"{speaker.url}: {error or type(error).__name__}")


async def _chunks(response: httpx.Response) -> AsyncIterator[Piece | Failure]:
    """What stands in a stream. The end is told last, with the usage, which comes behind it."""
    ending = Piece()
    async for line in response.aiter_lines():
        name, _, data = line.partition(":")
        if name != "data" or not data.strip():
            continue
        if data.strip() == "[DONE]":
            break
        try:
            found = read_chunk(json.loads(data))
        except ValueError:
            found = Failure("bad_response", "a chunk that can't be read")
        if isinstance(found, Failure):
            yield found
            return
        ending = Piece(finish=ending.finish or found.finish, usage=found.usage or ending.usage)
        if found.text or found.reasoning:
            yield Piece(found.text, found.reasoning)
    yield ending if ending.finish is not None else Failure("connection", "the reply broke off")


def _without(secret: str | None, failure: Failure) -> Failure:
    """Servers quote keys in their messages."""
    return failure if secret is None else Failure(failure.reason, failure.detail.replace(secret, "***"))
