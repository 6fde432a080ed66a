"""Boards for tests: run folders as the engine leaves them, and a server in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from starlette.types import ASGIApp

from posttrain.board.app import create_app
from posttrain.board.server import Place, _listening
from posttrain.board.web import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Page

T = TypeVar("T")
AXE = Path(__file__).parent / "board" / "vendor" / "axe.min.js"


class _Prompt(uvicorn.Server):
    """It ends at once: uvicorn's own looks ten times a second whether it shall, and waits as long for connections that nobody has."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in (*self.servers, *(sockets or [])):
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = time.monotonic() + 1
        while (self.server_state.connections or self.server_state.tasks) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextlib.contextmanager
def running(settings: Settings, **how: Any) -> Iterator[str]:
    """The address of a board in a thread of this process."""
    with served(create_app(settings, **how)) as port:
        yield f"http://127.0.0.1:{port}{how.get('under', '')}/"


@contextlib.contextmanager
def served(app: ASGIApp, **how: Any) -> Iterator[int]:
    """The port of an application that is served in a thread."""
    listener = _listening(Place(port=0))
    server = _Prompt(uvicorn.Config(app, log_level="warning", access_log=False, **how))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def accessible(page: Page) -> list[str]:
    """What axe-core finds wrong with a page."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [
        f"{one['id']}: {node['html'][:160]} ({node['failureSummary'][:200]})" for one in found for node in one["nodes"]
    ]


def suit_everybody(open_page: Callable[..., Page], board: str, *paths: str) -> None:
    """Pages of a board speak two languages, fit a phone, and have nothing that axe-core finds wrong, by day and by night."""
    for scheme, locale, lang in (("light", "en", "en"), ("dark", "zh-CN", "zh-Hans")):
        page = open_page(board, color_scheme=scheme, locale=locale, width=390, bypass_csp=True)
        for path in paths:
            page.goto(f"{board}{path}")
            assert page.get_attribute("html", "lang") == lang
            page.wait_for_function(
                "!document.querySelector('.htmx-request')"
                " && document.getAnimations().every(one => one.playState != 'running')"
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
            assert accessible(page) == [], path


def write_run(
    runs: Path,
    name: str = "first",
    steps: int = 20,
    total: int = 40,
    *,
    status: str = "complete",
    held_out: bool = True,
) -> Path:
    """A run folder as the engine leaves it: a data stage and a training, without weights."""
    run = runs / name
    for stage in ("prepare", "sft"):
        (run / stage).mkdir(parents=True)
    (run / "recipe.yaml").write_text(
        f"name: {name}\nmodel: tiny\nseed: 0\nstages:\n  prepare:\n    kind: data\n    sources: []\n"
        "  sft:\n    kind: train\n    data: prepare\n    learning_rate: 0.001\n"
    )
    begun = 1.7e9
    manifest = {"schema": 1, "kind": "data", "status": "complete", "digest": "d", "started": begun, "config": {}}
    (run / "prepare" / "manifest.json").write_text(json.dumps(manifest))
    manifest |= {"kind": "train", "status": status, "started": begun + 1}
    (run / "sft" / "manifest.json").write_text(json.dumps(manifest))
    with (run / "sft" / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(record(step, total)) + "\n")
        if held_out:
            file.write(
                json.dumps({"split": "held_out", "step": steps, "loss": 2.5, "supervised_tokens": 9, "rows": 3}) + "\n"
            )
    return run


def record(step: int, total: int) -> dict[str, Any]:
    """A training record."""
    loss = 2.0 + 1.0 / step
    return {
        "split": "train", "step": step, "total_steps": total, "epoch": step / total, "loss": loss, "grad_norm": 1.0 / step,
        "learning_rate": 1e-3, "tokens": 100, "computed_tokens": 100, "supervised_tokens": 50, "tokens_per_second": 250.0 + step,
        "memory_bytes": 2_000_000_000, "seconds": step * 0.4,
    }  # fmt: skip


def wait_for(found: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What an asynchronous piece of work gives; in a thread, because Playwright leaves a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
