"""A real HTTP server on loopback that misbehaves on a schedule, and remembers everything it was asked and what it billed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Schedule = Callable[[str, int], str]
"""(name of the request, how many times it has come) -> what the server does with it."""

FAULTS_QUICK = ("429", "429 retry-after", "500", "503", "half", "drop", "reset", "garbage")
FAULTS_SLOW = ("hang", "stall")
"""Those only the client's patience ends."""
FAULTS_BILLED = ("not json", "no choices")
"""Whole answers that can't be read."""


class Asked(NamedTuple):
    name: str
    attempt: int
    does: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def name_of(body: dict[str, Any]) -> str:
    """What tells requests apart: the last message."""
    return str(body["messages"][-1]["content"])


def usage_of(name: str) -> dict[str, int]:
    """Token counts that differ from request to request, so that sums show what is missing."""
    seed = random.Random(repr(name))
    return {"prompt_tokens": seed.randint(1, 40), "completion_tokens": seed.randint(1, 9)}


def reply_of(name: str) -> str:
    return f"reply to {name}"


def stored_keys(cache: Path) -> set[str]:
    """The keys of all answers in a request cache."""
    with contextlib.closing(sqlite3.connect(cache)) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM answers")}


def chat_body(name: str, text: str | None = None, **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply_of(name) if text is None else text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice], "usage": usage_of(name)}


@dataclass
class Server:
    """Use it in a ``with`` block. ``does`` may be changed while it runs."""

    does: Schedule = lambda name, attempt: "answer"
    bodies: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Body of an answer, from the body of the request."""
    refuses: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda body: None
    """The body of a 400 for a request that the server does not take; None = it takes it."""
    think_time: float = 0.0
    """Seconds until a request is answered or refused."""
    models: tuple[str, ...] | None = None
    """What it lists as its models; None = it knows no such list."""
    places: int | None = None
    """So many requests are worked on at once, the others wait."""
    retry_after: str = "0.02"
    errors: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Body of an error by its status."""
    asked: list[Asked] = field(default_factory=list)
    billed: list[str] = field(default_factory=list)
    """Names of the requests whose whole answer was sent."""
    at_once: int = 0
    most_at_once: int = 0
    reply_of = staticmethod(reply_of)
    usage_of = staticmethod(usage_of)
    chat_body = staticmethod(chat_body)

    def __post_init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = asyncio.Event()
        self._places = asyncio.Semaphore(self.places or 10**6)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():  # a test may have stopped it on the way
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                while await self._one(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                self._counts["broken"] += 1
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; True = the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if first.startswith("GET"):
            listed = {"data": [{"id": name} for name in self.models or ()]}
            await _send(writer, 404 if self.models is None else 200, json.dumps(listed).encode())
            return True
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        name = name_of(body)
        self._counts[name] += 1
        does = self.does(name, self._counts[name])
        self.asked.append(Asked(name, self._counts[name], does, first.split()[1], headers, body))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.think_time:
                async with self._places:
                    await asyncio.sleep(self.think_time)
            return await self._do(does, name, body, writer)
        finally:
            self.at_once -= 1

    async def _do(self, does: str, name: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if (refused := self.refuses(body)) is not None:
            await _send(writer, 400, json.dumps(refused).encode())
            return True
        answer = self.bodies(body) if self.bodies is not None else chat_body(name)
        if does.startswith(("4", "5", "3")):
            status = int(does[:3])
            extra = f"Retry-After: {self.retry_after}\r\n" if "retry-after" in does else ""
            error = self.errors.get(status, {"error": {"message": f"scripted {status}", "type": "error"}})
            await _send(writer, status, json.dumps(error).encode(), extra)
            return True
        if does == "hang":
            await asyncio.sleep(3600)
        if does == "drop":
            return False
        if does == "reset":
            writer.transport.abort()
            return False
        if does == "garbage":
            writer.write(b"this is not HTTP\r\n\r\n")
            await writer.drain()
            return False
        content = json.dumps(answer).encode()
        if does in ("half", "stall"):
            await _send(writer, 200, content[: len(content) // 2], length=len(content))
            if does == "stall":
                await asyncio.sleep(3600)
            return False
        if does == "not json":
            content = b"<html>It works!</html>"
        elif does == "no choices":
            content = json.dumps({"choices": [], "usage": usage_of(name)}).encode()
        elif does == "no usage":
            content = json.dumps({k: v for k, v in answer.items() if k != "usage"}).encode()
        elif does.startswith("late"):
            await asyncio.sleep(float(does.split()[1]))
        self.billed.append(name)  # before sending: the client may be quicker than the next line
        await _send(writer, 200, content)
        return True


async def _send(
    writer: asyncio.StreamWriter, status: int, content: bytes, extra: str = "", length: int | None = None
) -> None:
    size = len(content) if length is None else length
    head = f"HTTP/1.1 {status} scripted\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n{extra}\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


def seeded_faults(share: float, seed: int, billed: bool = True) -> Schedule:
    """Every attempt of every request fails with this probability, the same whatever the order the requests come in.

    ``billed``: whole answers that can't be read are among the faults.
    """
    quick = FAULTS_QUICK + (FAULTS_BILLED if billed else ())
    faults = 4 * quick + FAULTS_SLOW  # a timeout takes the test as long as a hundred refusals

    def does(name: str, attempt: int) -> str:
        draw = random.Random(f"{seed}/{name}/{attempt}")
        return draw.choice(faults) if draw.random() < share else "answer"

    return does
