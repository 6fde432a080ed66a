"""Starting, stopping and queueing from a browser, whoever is closed or killed meanwhile."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from boards import accessible, write_run
from posttrain.artifacts import EXIT_FILE, STOP_FILE, RunDir, write_json
from posttrain.lab import queue
from posttrain.lab.ending import Told
from posttrain.lab.processes import state, stop
from posttrain.lab.queue import Entry, enqueue, entries

HOLDS = """
import sys, time
from pathlib import Path
from posttrain.artifacts import RunDir
from posttrain.errors import DataError, InterruptedRunError
from posttrain.lab.ending import recorded_end
run = RunDir(Path(sys.argv[1]))
with run.lock(), recorded_end(run):
    print(flush=True)
    while not run.stop_asked():
        time.sleep(0.01)
    while "obey" not in sys.argv:
        time.sleep(0.01)
    raise InterruptedRunError("stopped")
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``hold(run, "obey")``: a process that holds a run, and ends when it is asked to where it obeys."""
    children = []

    def begin(run: Path, *how: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(run), *how],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def test_a_run_is_stopped_after_its_step(
    board: str, runs: Path, open_page: Callable[..., Page], hold: Callable[..., subprocess.Popen[str]]
) -> None:
    run = write_run(runs, status="running")
    hold(run, "obey")
    page = open_page(f"{board}runs/first", bypass_csp=True)
    expect(page.locator("#head .pill")).to_have_text("running")
    assert accessible(page) == []
    page.get_by_role("button", name="Stop after this step").press("Enter")
    expect(page.locator("#head .pill")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Go on", exact=True)).to_be_visible()
    assert accessible(page) == []


def test_stopping_is_shown_and_can_be_hurried(
    board: str, runs: Path, open_page: Callable[..., Page], hold: Callable[..., subprocess.Popen[str]]
) -> None:
    run = write_run(runs, status="running")
    child = hold(run)
    page = open_page(f"{board}runs/first", locale="zh-CN", width=390, bypass_csp=True)
    page.get_by_role("button", name="本步后停止").click()
    expect(page.locator("#head .pill")).to_have_text("正在停止")
    expect(page.locator("#head")).to_contain_text("将在当前步结束后停止")
    assert json.loads((run / STOP_FILE).read_text()) == {"when": "after step"}
    assert accessible(page) == []
    page.get_by_role("button", name="立即停止").click()
    expect(page.locator("#head .pill")).to_have_text("已停止")
    assert child.wait(30) != -signal.SIGKILL


def test_a_crash_is_told_in_its_words_and_a_death_too(
    board: str, runs: Path, open_page: Callable[..., Page], hold: Callable[..., subprocess.Popen[str]]
) -> None:
    run = write_run(runs, status="running")
    child = hold(run)
    page = open_page(f"{board}runs/first", bypass_csp=True)
    expect(page.locator("#head .pill")).to_have_text("running")
    child.kill()
    expect(page.locator("#head .pill")).to_have_text("died")
    expect(page.locator("#head .notice")).to_contain_text("out of memory")
    told = {"problem": "a wrong row <script>alert(1)</script>", "where": "rows.jsonl:3", "fix": "remove it"}
    write_json(run / EXIT_FILE, {"code": 2, "error": told, "ended": 0.0, "pid": 1})
    expect(page.locator("#head .pill")).to_have_text("failed")
    expect(page.locator("#head .notice .said")).to_contain_text("rows.jsonl:3: a wrong row <script>alert(1)</script>")
    assert accessible(page) == []


def test_what_can_not_be_done_is_said(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    write_run(runs)
    page = open_page(board)

    def send(address: str, form: dict[str, str]) -> tuple[int, str]:
        script = "([a, f]) => fetch(a, {method: 'POST', body: new URLSearchParams(f)}).then(async r => [r.status, await r.text()])"
        status, text = page.evaluate(script, [address, form])
        return status, text

    for address, form, status, words in (
        ("runs/first/stop", {"when": "after step"}, 400, "no process works on this run"),
        ("runs/first/stop", {"when": "later"}, 400, "say when"),
        ("runs/..%2Ffirst/stop", {"when": "now"}, 404, ""),
        ("runs/none/resume", {}, 404, "there is no run"),
        ("start", {"recipe": "name: x\nstages: {rows: {kind: dta}}\n"}, 400, "did you mean"),
        ("start", {}, 400, "recipe"),
        ("queue/none/move", {"place": "1"}, 400, "not in the queue any more"),
        ("queue/none/move", {"place": "x"}, 400, "a place is a number"),
        ("queue/..%2F..%2Fx/remove", {}, 404, ""),
    ):
        answer = send(address, form)
        assert answer[0] == status, (address, answer)
        assert words in answer[1], (address, answer)


def test_the_queue_is_ordered_by_keyboard(
    board: str, runs: Path, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(queue, "keep_going", lambda runs: None)
    monkeypatch.setattr("posttrain.board.listing.keep_going", lambda runs: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: one\nstages:\n  rows: {kind: data, sources: [{path: rows.jsonl}]}\n")
    page = open_page(board, bypass_csp=True)
    expect(page.locator("#queue")).to_be_hidden()
    for name in ("first", "second", "third"):
        enqueue(recipe, [f"name={name}"], runs)
    items = page.locator(".queue li")
    expect(items).to_have_count(3)
    assert accessible(page) == []
    page.get_by_role("button", name="Move third up").press("Enter")
    expect(items.nth(1)).to_contain_text("third")
    expect(page.get_by_role("button", name="Move third up")).to_be_focused()
    page.get_by_role("button", name="Move third up").press("Enter")
    expect(items.nth(0)).to_contain_text("third")
    expect(page.get_by_role("button", name="Move third up")).to_be_disabled()
    page.get_by_role("button", name="Take first off the queue").press("Enter")
    expect(items).to_have_count(2)
    assert [entry.name for entry in entries(runs)] == ["third", "second"]
    failed = entries(runs)[0]
    parts: dict[str, Any] = {"status": "failed", "error": Told("<b>no</b> rows", "rows.jsonl", "add some")}
    queue._change(runs, failed.key, Entry(**{**{k: getattr(failed, k) for k in failed.__slots__}, **parts}))
    expect(items.nth(0).locator(".wrong")).to_contain_text("rows.jsonl: <b>no</b> rows")
    assert accessible(page) == []
    page.get_by_role("button", name="Take third off the queue").click()
    expect(items).to_have_count(1)
    phone = open_page(board, locale="zh-CN", width=390, bypass_csp=True)
    expect(phone.locator(".queue li")).to_contain_text("等待中")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert accessible(phone) == []


@pytest.mark.slow
@pytest.mark.demo_model
def test_a_run_outlives_the_page_and_the_server(
    runs: Path, open_page: Callable[..., Page], tiny_model: Path, tmp_path: Path
) -> None:
    """A training is set and started in the browser, which is closed; the server is killed and started again: the run is found, goes on,
    and finishes."""
    rows = "".join(json.dumps({"prompt": f"{k} + 1?", "completion": f"{k + 1}."}) + "\n" for k in range(20))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small.yaml").write_text(
        f"name: small\nmodel: {tiny_model}\nstages:\n"
        f"  rows: {{kind: data, sources: [{{path: {tmp_path / 'rows.jsonl'}}}], profile: false, held_out: 4}}\n"
        "  sft: {kind: train, data: rows, adapter: {name: lora, rank: 4, alpha: 8}, batch_size: 4, max_steps: 2, epochs: 100,\n"
        "        dtype: fp32, device: cpu, learning_rate: 1e-3, evaluate_every: 1000}\n"
    )

    def serve() -> tuple[subprocess.Popen[str], str]:
        words = [sys.executable, "-m", "posttrain", "board", "--runs", str(runs), "--port", "0"]
        words += ["--recipes", str(tmp_path / "recipes")]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        urllib.request.urlopen(f"{found[0]}queue", timeout=120).close()  # every page is loaded then
        return server, found[0]

    run = RunDir(runs / "lives")
    server, address = serve()
    try:
        page = open_page(f"{address}new?from=recipe/0/small.yaml")
        page.set_default_timeout(120_000)
        for path, text in {"name": "lives", "stages.sft.max_steps": "60"}.items():
            page.locator(f'[id="f-{path}"]').fill(text)
        page.get_by_role("button", name="Start").click()
        page.wait_for_url("**/runs/lives")
        expect(page.locator("#head .pill")).to_have_text("running")
        expect(page.locator("#log")).to_contain_text("sft (train) running", timeout=120_000)
        page.close()
        holder = run.holder()
        assert holder is not None
        server.kill()
        server.communicate()
        assert state(run).is_running
        server, address = serve()
        page = open_page(address)
        expect(page.locator("#run-lives .pill")).to_have_text("running", timeout=30_000)
        page.goto(f"{address}runs/lives")
        same = run.holder()
        assert same is None or same == holder
        expect(page.locator("#head .pill")).to_have_text("finished", timeout=240_000)
        expect(page.locator("#log")).to_contain_text("60 steps, loss")
        page.close()
    finally:
        server.kill()
        server.communicate()
        if state(run).is_running:
            stop(run, "now")
    steps = [record["step"] for record in run.stage("sft").metrics() if record["split"] == "train"]
    assert steps == list(range(1, 61))
