"""A running board, and a browser that looks at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from boards import running
from posttrain.board.web import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 60_000
"""Milliseconds for what a page shows, unless a test is about time: a busy machine must not fail one."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder for runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def board(runs: Path) -> Iterator[str]:
    """The address of a board over ``runs``."""
    with running(Settings(runs)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, Debian's package. A module's: Playwright keeps an event loop running, which other modules' tests must not find."""
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``open_page(address, width=1200, locale="en", color_scheme="light")``: a page. An error on its console fails the test."""
    contexts, wrong = [], []

    def heard(text: str, kind: str) -> None:
        if kind == "error" and "Failed to load resource" not in text and "ERR_" not in text:
            wrong.append(text)

    def open_at(address: str, *, width: int = 1200, **how: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **{"locale": "en", **how})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: heard(message.text, message.type))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not wrong, wrong
