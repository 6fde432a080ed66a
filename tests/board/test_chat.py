"""The chat in a real browser: a real model that streams and is stopped, blind votes up to a ranking, and text that would like to be more."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from boards import accessible, served, wait_for, write_run
from conftest import tiny_llama
from posttrain.board.web import Settings, words

OpenPage = Callable[..., Page]
LOADING = 300_000
"""Milliseconds for a process that loads torch and a model while other tests run."""


@dataclass
class Scripted:
    """An endpoint whose models say what they are told to."""

    says: dict[str, str] = field(default_factory=dict)
    """By the name of the model; ``...`` at the end: it never ends."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Models whose listener has gone."""
    url: str = ""

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        if body["model"] not in self.says:
            return JSONResponse({"error": {"message": f"no {body['model']}; {self.keys[-1]}", "code": None}}, 404)
        return StreamingResponse(self.events(body["model"]), media_type="text/event-stream")

    async def events(self, model: str) -> AsyncIterator[str]:
        text = self.says[model]
        ended = False
        try:
            for piece in re.findall(r"\S+\s*", text.removesuffix("...")):
                yield _event({"choices": [{"index": 0, "delta": {"content": piece}}]})
                await asyncio.sleep(0.001)
            while text.endswith("..."):
                yield _event({"choices": [{"index": 0, "delta": {"content": " more"}}]})
                await asyncio.sleep(0.05)
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield _event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.left.append(model)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    found = Scripted()
    app = Starlette(routes=[Route("/v1/chat/completions", found.answer, methods=["POST"])])
    with served(app, lifespan="off") as port:
        found.url = f"http://127.0.0.1:{port}/v1"
        yield found


def add_endpoint(page: Page, url: str, *models: str, key: str = "") -> None:
    for model in models:
        page.get_by_text("Add an OpenAI-compatible endpoint").click()
        page.get_by_label("Address").fill(url)
        page.get_by_label("Name of the model there").fill(model)
        page.get_by_label("Environment variable").fill(key)
        page.get_by_role("button", name="Add").click()


def host(endpoint: Scripted) -> str:
    return endpoint.url.removeprefix("http://").removesuffix("/v1")


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("textbox", name="Message").press("Enter")


def reply(page: Page, side: str = "left", place: int = -1) -> Any:
    return page.locator(f"#talk-{side} .uttered.reply").nth(place).locator(":scope > .words")


# ---- a real model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_model(runs: Path, demo_model: Path, tmp_path: Path) -> Path:
    """Runs whose model is a real tiny one that says many things."""
    folder = tiny_llama(tmp_path / "talker", demo_model, initializer_range=0.1)
    run = write_run(runs)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("model: tiny", f"model: {folder}"))
    return folder


@pytest.mark.demo_model
def test_a_local_model_says_what_posttrain_chat_says_streams_is_stopped_and_goes_on(
    board: str, with_model: Path, open_page: OpenPage, cli: Callable[..., Any]
) -> None:
    done = cli("chat", with_model, "--prompt", "Hello", "--temperature", 0.9, "--seed", 4, "--max-new-tokens", 12)
    page = open_page(f"{board}chat")
    expect(page.locator("#left option")).to_have_count(2)
    page.get_by_text("Settings").click()
    for name, value in (("Longest reply", "12"), ("Seed", "4"), ("Temperature", "0.9")):
        page.get_by_label(name).fill(value)
    say(page, "Hello")
    expect(page.locator("#talk-left .about")).to_have_text("The model is being loaded …")
    expect(page.locator("#talk-left .about")).to_contain_text("12 tokens", timeout=LOADING)
    assert (reply(page).text_content() or "").strip() == done.out.strip()
    page.locator("#clear").click()
    page.get_by_label("Longest reply").fill("1900")
    page.get_by_label("Seed").fill("3")
    say(page, "Hello 你好")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    expect(reply(page)).to_have_text(re.compile(r"\S{20}"), timeout=LOADING)
    before = reply(page).text_content() or ""
    page.keyboard.press("Escape")
    expect(page.locator("#talk-left .about")).to_have_text("stopped")
    stopped = reply(page).text_content() or ""
    assert stopped.startswith(before)
    page.wait_for_timeout(100)
    assert reply(page).text_content() == stopped
    page.get_by_label("Longest reply").fill("6")
    say(page, "Go on")
    expect(page.locator("#talk-left .about").last).to_contain_text("6 tokens")
    expect(page.locator("#talk-left .uttered")).to_have_count(4)
    page.reload()
    expect(page.locator("#talk-left .uttered")).to_have_count(4)
    assert reply(page, place=0).text_content() == stopped


def test_a_stage_without_weights_is_told_in_the_words_of_the_command_line(
    board: str, runs: Path, open_page: OpenPage
) -> None:
    write_run(runs)
    page = open_page(f"{board}chat")
    page.locator("#left").select_option("first/sft")
    say(page, "Hello")
    expect(page.locator("#talk-left .about")).to_contain_text("this stage has no weights", timeout=LOADING)


# ---- endpoints -------------------------------------------------------------------------------------------------------


def test_two_side_by_side_edit_and_regenerate(
    board: str, endpoint: Scripted, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_KEY", "sesame")
    endpoint.says = {"one": "first reply", "two": "other reply"}
    page = open_page(f"{board}chat")
    page.get_by_label("Two side by side").check()
    add_endpoint(page, endpoint.url, "one", "two", key="SCRIPTED_KEY")
    page.get_by_label("Left model").select_option(label=f"one at {host(endpoint)}")
    page.get_by_label("Right model").select_option(index=1)
    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    say(page, "Question")
    expect(reply(page, "left")).to_have_text("first reply")
    expect(reply(page, "right")).to_have_text("other reply")
    assert {body["model"] for body in endpoint.asked} == {"one", "two"}
    assert len({body["seed"] for body in endpoint.asked}) == 1
    assert endpoint.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question"},
    ]
    assert endpoint.keys == ["Bearer sesame"] * 2
    say(page, "Second")
    expect(page.locator("#talk-left .uttered.reply")).to_have_count(2)
    expect(reply(page, "left")).to_have_text("first reply")
    expect(reply(page, "right")).to_have_text("other reply")
    assert [m["role"] for m in endpoint.asked[-1]["messages"]] == ["system", "user", "assistant", "user"]
    endpoint.says["one"] = "new reply"
    page.locator("#talk-left").get_by_role("button", name="Again").click()
    expect(reply(page, "left")).to_have_text("new reply")
    page.locator("#talk-left").get_by_role("button", name="Edit").first.click()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("Question")
    say(page, "Another question")
    expect(page.locator("#talk-left .uttered.reply")).to_have_count(1)
    expect(page.locator("#talk-left .uttered.user .words")).to_have_text("Another question")
    assert "sesame" not in page.content() + page.evaluate("JSON.stringify(sessionStorage)")


def test_a_script_in_a_reply_is_text(board: str, endpoint: Scripted, open_page: OpenPage) -> None:
    evil = '<script>document.title = "owned"</script><img src=x onerror="document.title=1"> <b>bold</b> [x](javascript:alert(1))'
    endpoint.says = {"evil": evil}
    page = open_page(f"{board}chat")
    add_endpoint(page, endpoint.url, "evil")
    say(page, evil)
    expect(reply(page)).to_have_text(evil)
    expect(page.locator("#talk-left .uttered.user .words")).to_have_text(evil)
    assert page.locator("#chat :is(script, img, b)").count() == 0
    assert "owned" not in page.title()


def test_who_stops_listening_ends_the_reply_at_the_endpoint(
    board: str, endpoint: Scripted, open_page: OpenPage
) -> None:
    endpoint.says = {"endless": "begin ..."}
    page = open_page(f"{board}chat")
    add_endpoint(page, endpoint.url, "endless")
    say(page, "Go")
    expect(reply(page)).to_contain_text("more more")
    page.get_by_role("button", name="Stop").click()
    wait_for(lambda: endpoint.left == ["endless"], 60)
    say(page, "Go")
    expect(reply(page)).to_contain_text("more more")
    page.close()
    wait_for(lambda: endpoint.left == ["endless"] * 2, 60)


def test_failures_of_an_endpoint_are_told_without_the_key(
    board: str, endpoint: Scripted, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_KEY", "sesame")
    page = open_page(f"{board}chat")
    add_endpoint(page, endpoint.url, "missing", key="SCRIPTED_KEY")
    say(page, "Go")
    expect(page.locator("#talk-left .about")).to_contain_text("No reply: status 404: no missing; Bearer ***")
    for asked, words_ in (
        ({"url": "file:///etc/passwd", "model": "x"}, "not a web address"),
        ({"url": endpoint.url, "model": "x", "key_env": "HOME"}, "no name of a variable"),
        ({"url": endpoint.url, "model": ""}, "name of the model"),
        ("../../etc", "there is no model"),
    ):
        found = httpx.post(
            f"{board}chat/replies",
            json={"model": asked, "messages": [{"role": "user", "content": "x"}]},
            headers={"origin": board.rstrip("/"), "hx-request": "true"},
            timeout=60,
        )
        assert found.status_code in (400, 404)
        assert words_ in found.text
    nobody = {"model": {"url": "http://127.0.0.1:9", "model": "x"}, "messages": [{"role": "user", "content": "x"}]}
    told = httpx.post(f"{board}chat/replies", json=nobody, headers={"origin": board.rstrip("/")}, timeout=60).text
    assert "http://127.0.0.1:9" in json.loads(told.splitlines()[-1])["error"]


# ---- blind -----------------------------------------------------------------------------------------------------------


def test_blind_votes_up_to_a_ranking(board: str, runs: Path, endpoint: Scripted, open_page: OpenPage) -> None:
    endpoint.says = {"alpha": "the first words", "beta": "the other words"}
    named = {text: name for name, text in endpoint.says.items()}
    page = open_page(f"{board}chat")
    page.get_by_label("Blind comparison").check()
    expect(page.locator("#ranking")).to_contain_text("No vote yet")
    say(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("two models are needed")
    add_endpoint(page, endpoint.url, "alpha", "beta")
    for box in page.locator("#pool input").all():
        box.check()
    lefts = set()
    for place in range(6):
        say(page, "Hello")
        expect(page.get_by_role("group", name="Which is better?")).to_be_visible()
        assert "127.0.0.1" not in page.locator(".talks").inner_text()  # no name before the vote
        expect(page.locator("#talk-left h2")).to_have_text("Left")
        left = named[reply(page, "left").text_content() or ""]
        lefts.add(left)
        if place % 2:
            page.keyboard.press("1234"[place % 4])
        else:
            page.get_by_role("button", name="Left is better").click()
        expect(page.locator("#told")).to_contain_text(f"Left was {left} at {host(endpoint)}")
        expect(page.locator("#talk-left h2")).to_have_text(f"{left} at {host(endpoint)}")
        for button in page.locator("[data-vote]").all():
            expect(button).to_be_disabled()
        page.keyboard.press("1")  # too late
        if place < 5:
            page.get_by_role("button", name="Next comparison").click()
            expect(page.locator(".uttered")).to_have_count(0)
    votes = [json.loads(line) for line in (runs / ".votes" / "votes.jsonl").read_text().splitlines()]
    assert len(votes) == 6
    assert [vote["vote"] for vote in votes] == ["left", "right", "left", "both_bad", "left", "right"]
    assert all(named[vote["reply_a"]] == vote["model_a"].partition(" ")[0] for vote in votes)
    expect(page.locator("#ranking")).to_contain_text(f"alpha at {host(endpoint)}")
    expect(page.locator("#ranking")).to_contain_text(re.compile("95% interval|too few votes", re.IGNORECASE))
    again = httpx.post(
        f"{board}chat/votes",
        json={"duel": votes[0]["id"], "vote": "left"},
        headers={"origin": board.rstrip("/"), "hx-request": "true"},
    )
    assert again.status_code == 400
    assert "there has been a vote" in again.text


def test_a_reply_that_names_itself_makes_the_vote_void(
    board: str, runs: Path, endpoint: Scripted, open_page: OpenPage
) -> None:
    endpoint.says = {"alpha": "I am ChatGPT, made by OpenAI.", "beta": "fine"}
    page = open_page(f"{board}chat")
    page.get_by_label("Blind comparison").check()
    add_endpoint(page, endpoint.url, "alpha", "beta")
    for box in page.locator("#pool input").all():
        box.check()
    say(page, "Who are you?")
    page.get_by_role("button", name="Equally good").click()
    expect(page.locator("#told")).to_contain_text("does not count")
    (line,) = (runs / ".votes" / "votes.jsonl").read_text().splitlines()
    assert json.loads(line)["winner"] is None
    expect(page.locator("#ranking")).to_contain_text("No vote yet")


# ---- languages, phones -----------------------------------------------------------------------------------------------


def test_the_page_speaks_two_languages_fits_a_phone_and_passes_axe(
    board: str, runs: Path, endpoint: Scripted, open_page: OpenPage
) -> None:
    write_run(runs)
    endpoint.says = {"alpha": "x" * 300, "beta": "y " * 200}
    pages = {locale: open_page(board, locale=locale, width=390, bypass_csp=True) for locale in ("en", "zh-CN")}
    for how, (locale, page) in itertools.product(("one", "two", "blind"), pages.items()):
        endpoints = [{"url": endpoint.url, "model": name, "name": name} for name in ("alpha", "beta")]
        chosen = ["endpoint:0", "endpoint:1"]
        state = {"how": how, "left": chosen[0], "right": chosen[1], "pool": chosen, "endpoints": endpoints}
        page.evaluate("(state) => sessionStorage.setItem('posttrain-chat', JSON.stringify(state))", state)
        page.goto(f"{board}chat")
        assert page.get_attribute("html", "lang") == ("en" if locale == "en" else "zh-Hans")
        page.locator("#text").fill("Hi")
        page.locator("#text").press("Enter")
        expect(reply(page, "left")).to_contain_text(re.compile("xxx|y y y"))
        expect(page.locator("#send")).to_be_enabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, how
        assert accessible(page) == [], how


def test_words_are_there_in_both_languages() -> None:
    assert all(set(text) == {"en", "zh"} for key, text in words().items() if key.startswith("chat."))


def test_it_works_under_a_path_of_a_proxy(
    runs: Path, endpoint: Scripted, board_of: Callable[..., str], open_page: OpenPage
) -> None:
    endpoint.says = {"alpha": "hello there"}
    page = open_page(f"{board_of(Settings(runs), under='/b/x4')}chat")
    add_endpoint(page, endpoint.url, "alpha")
    say(page, "Hi")
    expect(reply(page)).to_have_text("hello there")
