"""A running board, and a browser that looks at it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from boards import running
from posttrain.board.web import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog, Page

PATIENCE = 60_000
"""Milliseconds for what a page shows, unless a test is about time: a busy machine must not fail one."""

CUT_OFF = ("Failed to load resource", "Failed to fetch", "ERR_")
"""Of errors on a console: a page that is left while it loads says so."""
IN_A_HURRY = (
    "{ const later = setTimeout; window.setTimeout = (work, wait, ...more) => later(work, wait / 10, ...more); }"
)
"""What a page does after a pause in typing, it does after a tenth of it."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream looks at its files often, and the speed of this machine is not measured for every plan."""
    monkeypatch.setattr("posttrain.board.stream.LOOK_INTERVAL", 0.05)
    monkeypatch.setattr("posttrain.plan.devices._numpy_flops", lambda: 1e11)


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


@pytest.fixture
def board_of() -> Iterator[Callable[..., str]]:
    """``board_of(settings, token=..., under=...)``: the address of a board, which ends when no page looks at it any more."""
    with contextlib.ExitStack() as stack:
        yield lambda settings, **how: stack.enter_context(running(settings, **how))


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


@pytest.fixture(scope="module")
def kept_pages() -> dict[tuple[tuple[str, object], ...], tuple[BrowserContext, list[Page]]]:
    """By language and the like: a context of the browser, and its pages that no test looks at. A new page takes as long as many visits."""
    return {}


@pytest.fixture
def open_page(browser: Browser, kept_pages: Any, board_of: object) -> Iterator[Callable[..., Page]]:
    """``open_page(address, width=1200, locale="en", color_scheme="light")``: a page. An error on its console, or a dialog, fails the test."""
    opened: list[tuple[Page, list[Page], dict[str, Any]]] = []
    wrong: list[str] = []

    def heard(text: str, kind: str) -> None:
        if kind == "error" and not any(words in text for words in CUT_OFF):
            wrong.append(text)

    def asked(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def open_at(address: str, *, width: int = 1200, color_scheme: Any = "light", **how: Any) -> Page:
        how = {"locale": "en", **how}
        kind = tuple(sorted(how.items()))
        if kind not in kept_pages:
            kept_pages[kind] = browser.new_context(**how), []
            kept_pages[kind][0].add_init_script(IN_A_HURRY)
        context, idle = kept_pages[kind]
        page = idle.pop() if idle else context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=color_scheme)
        page.set_default_timeout(PATIENCE)
        ears = {
            "console": lambda message: heard(message.text, message.type),
            "pageerror": lambda error: heard(str(error), "error"),
            "dialog": asked,
        }
        for event, ear in ears.items():
            page.on(event, ear)
        opened.append((page, idle, ears))
        page.goto(address)
        return page

    yield open_at
    for page, idle, ears in opened:
        if page.is_closed():
            continue
        page.evaluate("localStorage.clear(); sessionStorage.clear()")
        for event, ear in ears.items():  # what is cut off by leaving is no error
            page.remove_listener(event, ear)
        page.goto("about:blank")
        page.context.clear_cookies()
        idle.append(page)
    assert not wrong, wrong
