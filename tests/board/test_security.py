"""What another site, a neighbour on the network, or text in a run folder could try. Each was a hole of a peer."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from boards import write_run
from conftest import Outcome
from posttrain.board.security import MOST_BYTES, POLICY
from posttrain.board.web import Settings

CHANGE = "runs/first/remarks"
get, post = partial(httpx.get, timeout=60, verify=False), partial(httpx.post, timeout=60, verify=False)
"""Patient: other tests may run beside this one. No certificate is verified: to read them takes longer than most answers."""


def same(board: str) -> dict[str, str]:
    return {"origin": board.rstrip("/")}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_a_name_that_was_bound_to_this_address_is_refused(board: str, host: str) -> None:
    """DNS rebinding: a page of evil.example asks its own name, which now means 127.0.0.1."""
    assert get(board, headers={"host": host}).status_code in (400, 421)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:1"},
        {"origin": "http://127.0.0.1"},
        {"origin": "not an address ]["},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_no_request_from_another_site_changes_anything(board: str, runs: Path, headers: dict[str, str]) -> None:
    """CVE-2024-1727, CVE-2024-47084, CVE-2024-47165."""
    run = write_run(runs)
    answer = post(
        f"{board}{CHANGE}", content="note=mine", headers=(same(board) if "sec-fetch-site" in headers else {}) | headers
    )
    assert answer.status_code == 403
    assert not (run / ".board.json").exists()
    assert post(f"{board}{CHANGE}", content="note=mine", headers=same(board)).status_code == 303
    assert (run / ".board.json").exists()


def test_nothing_changes_by_looking(board: str, runs: Path) -> None:
    run = write_run(runs)
    for path in (CHANGE, "runs/first/remove"):
        assert get(f"{board}{path}").status_code in (404, 405)
    assert run.is_dir()


@pytest.mark.parametrize(
    "path",
    [
        "runs/..",
        "runs/%2e%2e",
        "runs/..%2f..%2fetc",
        "runs/%2fetc",
        "runs/link",
        "runs/.hidden",
        "runs/first%00",
        "runs/first/parts/..%2f..%2frecipe.yaml",
        "static/../app.py",
        "static/%2e%2e/app.py",
        "static/..%2fapp.py",
        "static/vendor/../../app.py",
    ],
)
def test_no_path_leaves_the_folder_of_runs(board: str, runs: Path, tmp_path: Path, path: str) -> None:
    write_run(runs)
    outside = write_run(tmp_path, "outside")
    (runs / "link").symlink_to(outside)
    write_run(runs, ".hidden")
    host, port = re.findall(r"//(.+):(\d+)/", board)[0]
    with socket.create_connection((host, int(port))) as connection:  # a client library would tidy the address
        connection.sendall(f"GET /{path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 404"), answer[:300]
    assert "def create_app" not in answer
    assert "outside" not in answer


def test_every_answer_forbids_foreign_scripts_and_frames(board: str, runs: Path) -> None:
    write_run(runs)
    for path in ("", "runs/first", "runs/first/curves", "static/board.js", "nowhere"):
        headers = get(f"{board}{path}").headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    report = get(f"{board}runs/first/report")
    assert "sandbox" in report.headers["content-security-policy"]


def test_names_and_notes_are_text(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    evil = "<img src=x onerror=alert(1)>"
    run = write_run(runs, evil)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("model: tiny", f"model: '{evil}'"))
    post(f"{board}runs/{evil}/remarks", content=f"note={evil}&tags=<script>alert(2)</script>", headers=same(board))
    page = open_page(board)
    expect(page.locator("tbody th")).to_contain_text(evil)
    page.get_by_role("link", name=evil).click()
    expect(page.get_by_role("heading", name=evil)).to_be_visible()
    expect(page.locator("#head .tag")).to_have_text("<script>alert(2)</script>")
    assert page.locator("img").count() == 0


def test_large_bodies_are_refused(board: str, runs: Path) -> None:
    write_run(runs)
    assert post(f"{board}{CHANGE}", content=b"x" * (MOST_BYTES + 1), headers=same(board)).status_code == 413

    def chunks() -> object:
        yield from (b"note=" + b"x" * 500_000 for _ in range(12))

    with pytest.raises(httpx.HTTPError):  # without a length: it is cut off
        post(f"{board}{CHANGE}", content=chunks(), headers=same(board)).raise_for_status()  # type: ignore[arg-type]
    assert not (runs / "first" / ".board.json").exists()


def test_from_other_machines_only_with_the_token(
    runs: Path, board_of: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    write_run(runs)
    board = board_of(Settings(runs), token="a-token-of-the-test")
    assert get(board).status_code == 401
    assert post(f"{board}{CHANGE}", content="note=x", headers=same(board)).status_code == 401
    before = time.monotonic()
    assert get(f"{board}?token=wrong").status_code == 401
    assert time.monotonic() - before > 0.4
    assert get(board, cookies={"posttrain_token": "wrong"}).status_code == 401
    entered = get(f"{board}runs/first?token=a-token-of-the-test&lang=zh")
    assert entered.headers["location"] == "first?lang=zh"
    assert "httponly" in entered.headers["set-cookie"].lower()
    assert "samesite=strict" in entered.headers["set-cookie"].lower()
    page = open_page(f"{board}?token=a-token-of-the-test")
    page.get_by_role("link", name="first").click()
    expect(page.get_by_role("heading", name="first", exact=True)).to_be_visible()
    assert "a-token-of" not in page.content() + page.url


def test_it_works_behind_a_proxy_under_a_path(
    runs: Path, board_of: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    """One proxy leaves the path in front of addresses, another takes it away: then only relative addresses can be right."""
    write_run(runs)
    for name in (board_of(Settings(runs), under="/b/x4"), board_of(Settings(runs))):
        page = open_page(name)
        page.get_by_role("link", name="first").click()
        expect(page.locator("[data-measure=loss] details table")).to_contain_text("2.05")
        addresses = page.evaluate(
            "[...document.querySelectorAll('[href],[src],[action]')].map(n => n.getAttribute('href') ?? n.getAttribute('src') ?? n.getAttribute('action'))"
        )
        assert not [one for one in addresses if one.startswith(("/", "http"))]
        page.get_by_role("button", name="Save").click()
        expect(page).to_have_url(f"{name}runs/first")


def test_a_board_that_can_not_stand_there_says_why(cli: Callable[..., Outcome], runs: Path) -> None:
    file = runs / "rows.jsonl"
    file.touch()
    assert "not a folder of runs" in cli("board", "--runs", file, "--port", "0").refused()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {int(port) + 1}" in cli("board", "--runs", runs, "--port", port).refused()
