"""The list of runs and one run, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from boards import record, suit_everybody, write_run


def test_a_run_is_listed_opened_and_kept_up_to_date(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(board)
    expect(page.locator(".empty")).to_contain_text("No run here yet")
    write_run(runs, status="running")
    page.reload()
    row = page.locator("#run-first")
    expect(row).to_contain_text("2.0500")
    row.get_by_role("link", name="first").click()
    expect(page.get_by_role("heading", name="first", exact=True)).to_be_visible()
    expect(page.locator("[data-measure=loss] details table")).to_contain_text("2.05")


def test_what_people_say_of_a_run_is_kept_beside_it(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    run = write_run(runs)
    page = open_page(f"{board}runs/first")
    page.get_by_role("textbox", name="Tags").fill("good, later")
    page.get_by_role("textbox", name="Note").fill("the one with <b>bold</b> claims")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".heading .note")).to_have_text("the one with <b>bold</b> claims")
    assert json.loads((run / ".board.json").read_text())["tags"] == ["good", "later"]
    page.get_by_role("button", name="Archive").click()
    page.goto(board)
    expect(page.locator("#run-first")).to_have_count(0)
    page.get_by_label("Archived (1)").check()
    expect(page.locator("#run-first")).to_be_visible()


def test_a_run_is_removed_only_when_its_name_is_typed(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    write_run(runs)
    page = open_page(f"{board}runs/first")
    page.get_by_text("Remove this run").first.click()
    page.get_by_role("textbox", name="It is moved").fill("firs")
    page.get_by_role("button", name="Remove this run").click()
    expect(page.get_by_role("alert")).to_contain_text("type the name first")
    assert (runs / "first").is_dir()
    page.go_back()
    page.get_by_text("Remove this run").first.click()
    page.get_by_role("textbox", name="It is moved").fill("first")
    page.get_by_role("button", name="Remove this run").click()
    expect(page.locator(".empty")).to_be_visible()
    (moved,) = (runs / ".removed").iterdir()
    assert (moved / "sft" / "metrics.jsonl").is_file()


def test_two_runs_are_compared(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    write_run(runs)
    second = write_run(runs, "second")
    recipe = second / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("0.001", "0.002"))
    page = open_page(board)
    page.get_by_label("Choose first").check()
    page.get_by_label("Choose second").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("row", name="stages.sft.learning_rate")).to_contain_text("0.002")
    expect(page.locator("[data-measure=loss] details table tr")).to_have_count(5)
    page.goto(f"{board}compare?run=first")
    expect(page.get_by_role("alert")).to_contain_text("choose 2 to 8")


def test_pages_speak_two_languages_fit_a_phone_and_pass_axe(
    board: str, runs: Path, open_page: Callable[..., Page]
) -> None:
    write_run(runs)
    write_run(runs, "second")
    suit_everybody(open_page, board, "", "runs/first", "compare?run=first&run=second")


def test_damaged_and_vanished_runs_are_said(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    run = write_run(runs)
    (run / "sft" / "manifest.json").write_text("{")
    (run / "prepare" / "manifest.json").write_text("[]")
    page = open_page(board)
    expect(page.locator("#run-first .wrong")).to_contain_text("manifest")
    page.goto(f"{board}runs/first")
    expect(page.locator("#head .notice")).to_contain_text("damaged")
    shutil.rmtree(run)
    page.wait_for_url(board)


DAMAGE = [
    ("sft/manifest.json", b"{", "manifest.json"),
    ("sft/manifest.json", b"[]", "manifest.json"),
    ("sft/manifest.json", b'{"kind": "train", "status": "complete", "started": NaN, "config": {}}', "is no time"),
    ("sft/manifest.json", b'{"kind": "train", "status": ["x"], "started": "yesterday"}', "manifest.json"),
    ("sft/metrics.jsonl", b'[1]\n{"split": "train", "step": 1e400, "total_steps": 2, "loss": 1}\n', "sft"),
    ("sft/metrics.jsonl", b'{"split": "train", "step": 1, "total_steps": 2, "loss": [1]}\n', "sft"),
    ("recipe.yaml", b"\xff\xfe", ""),
    ("recipe.yaml", b"x: " + b"[" * 1000, ""),
    ("recipe.yaml", b"a: &a [*a]\n", ""),
    (".exit.json", b'{"code": 2, "error": {"problem": 5, "where": ["x"]}, "ended": 1, "pid": 1}', ""),
    (".board.json", b'{"tags": ["a\\ud800"], "note": "\\udfff", "archived": false}', ""),
    ("summary.json", b"{}", ""),
]
"""What stands in a file, and what the list says of it where it says something."""


@pytest.mark.parametrize(("file", "held", "said"), DAMAGE)
def test_a_damaged_file_is_told_and_takes_no_other_page_along(
    file: str, held: bytes, said: str, board: str, runs: Path
) -> None:
    write_run(runs, "second")
    (write_run(runs) / file).write_bytes(held)
    pages = [
        "",
        "runs/first",
        "runs/first/curves",
        "compare?run=first&run=second",
        "compare/curves?run=first&run=second",
    ]
    parts = [f"runs/first/parts/{part}" for part in ("doctor", "memory", "ledger", "results")]
    with httpx.Client(timeout=120, verify=False) as client:
        found = [client.get(f"{board}{page}") for page in (*pages, *parts, "rows?run=first", "new?from=first")]
    assert [one.status_code for one in found if one.status_code not in (200, 400)] == []
    row = found[0].text.partition('id="run-first"')[2].partition("</tr>")[0]
    assert said in row
    assert ('class="wrong"' in row) == bool(said)
    assert "run-second" in found[0].text


def test_a_folder_of_others_takes_no_page_along(board: str, runs: Path) -> None:
    """A link to itself can't be looked into by anybody, as the folder of another user."""
    write_run(runs)
    (runs / "circle").symlink_to("circle")
    bad = os.fsdecode(os.fsencode(runs) + b"/bad\xff")
    shutil.copytree(runs / "first", bad)
    lock = runs / "first" / ".lock"
    lock.symlink_to(".lock")
    for page in ("", "new", "rows", "chat", "label", "runs/first"):
        assert httpx.get(f"{board}{page}", timeout=120).status_code == 200, page
    assert ".lock" in httpx.get(board).text
    assert httpx.get(f"{board}runs/circle").status_code == 404


def test_what_the_system_refuses_names_the_file(board: str, runs: Path) -> None:
    write_run(runs)
    (runs / ".removed").write_text("a file where a folder belongs")
    answer = httpx.post(f"{board}runs/first/remove", data={"name": "first"}, headers={"origin": board.rstrip("/")})
    assert answer.status_code == 400
    assert f"{runs / '.removed'}: file exists" in answer.text
    assert (runs / "first").is_dir()


def test_a_run_that_has_just_begun_comes_first(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    write_run(runs)
    (runs / "begun").mkdir()
    (runs / "begun" / "recipe.yaml").write_text("name: begun\nstages:\n  rows:\n    kind: data\n")
    page = open_page(board)
    expect(page.locator("tbody tr").first).to_have_attribute("id", "run-begun")
    page.goto(f"{board}runs/begun")
    expect(page.locator("#doctor")).to_have_text("Nothing to judge yet.")


def test_new_records_reach_the_page(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    import fcntl

    run = write_run(runs, status="running")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page = open_page(f"{board}runs/first")
        expect(page.locator("#head .pill")).to_have_text("running")
        last = page.locator("[data-measure=loss] details table tr").nth(1).locator("td").nth(1)
        expect(last).to_have_text("2.05")
        with (run / "sft" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record(25, 40)) + "\n" + '{"half')
        expect(last).to_have_text("2.04", timeout=3000)
        (run / "run.log").write_text("a line <script>alert(1)</script>\n")
        expect(page.locator("#log")).to_contain_text("a line <script>alert(1)</script>", timeout=3000)


def test_everything_is_reached_by_keyboard(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    write_run(runs)
    write_run(runs, "second")
    page = open_page(board)

    def tab_to(text: str, most: int = 40) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "document.activeElement.textContent.trim() || document.activeElement.ariaLabel || document.activeElement.placeholder || document.activeElement.name"
            )
            if focused == text:
                assert page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        pytest.fail(f"Tab does not come to {text!r}")

    tab_to("Skip to the content")
    page.keyboard.press("Enter")
    tab_to("Search by name, model, tag, state")
    page.keyboard.type("second")
    expect(page.locator("#run-first")).to_have_count(0)
    tab_to("second")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="second", exact=True)).to_be_visible()
    tab_to("The numbers")
    page.keyboard.press("Enter")
    expect(page.locator("[data-measure=loss] details")).to_have_attribute("open", "")
    tab_to("Memory, planned and measured")
    page.keyboard.press("Enter")
    expect(page.locator("#memory")).to_contain_text("No training stage has planned")
    tab_to("tags")
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    expect(page.locator("#head .tag")).to_have_text("by hand")
