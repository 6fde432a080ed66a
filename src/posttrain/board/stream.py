"""What changes, sent to a page while it is open: server-sent events, one stream a page.

The identity of an event says how far the page has read (the byte offsets of the logs), so a page that was cut off goes on exactly there,
also after the server was started anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

LOOK_INTERVAL = 0.5
"""Seconds between two looks at the files."""
HEARTBEAT = 15.0
"""Seconds after which a stream with nothing to say says that it is there, so that no proxy ends it."""
HEADERS = {"x-accel-buffering": "no", "cache-control": "no-store"}


class Event(NamedTuple):
    """Something a page is told. ``at``: how far it has read then."""

    name: str
    data: Any
    at: str = ""

    def text(self) -> str:
        """It as lines of a stream."""
        identity = f"id: {self.at}\n" if self.at else ""
        return f"{identity}event: {self.name}\ndata: {json.dumps(self.data, ensure_ascii=False)}\n\n"


Look = Callable[[], list[Event]]
"""What is new since the last look."""


def stream(look: Look, unchanged: Callable[[], bool] = lambda: False) -> StreamingResponse:
    """An answer that goes on as long as the page is open. ``look`` reads files: it runs in a thread. ``unchanged``: no look is needed."""

    async def events() -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        quiet = 0.0
        while True:  # who goes away ends it: the response listens for that, or hears it at the next heartbeat
            found = [] if unchanged() else await run_in_threadpool(look)
            quiet = 0.0 if found else quiet + LOOK_INTERVAL
            if found:
                yield "".join(event.text() for event in found)
            elif quiet >= HEARTBEAT:
                quiet = 0.0
                yield ": here\n\n"
            await asyncio.sleep(LOOK_INTERVAL)

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


def offsets_of(text: str) -> dict[str, int]:
    """How far a page has read, from the identity of its last event or its address: ``sft:120,run.log:9``."""
    parts = (part.rpartition(":") for part in text.split(","))
    return {name: int(number) for name, _, number in parts if name and number.isdigit()}


def identity(offsets: Mapping[str, int]) -> str:
    """How far a page has read, as one text."""
    return ",".join(f"{name}:{offset}" for name, offset in offsets.items())
