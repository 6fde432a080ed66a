"""Preferences by hand in a real browser: by keys alone, two annotators, undo, agreement, and a DPO on what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from boards import running, suit_everybody
from posttrain.board.web import Settings
from row_files import lines

SCRIPT = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with six pairs whose better reply says so."""
    rows = [
        {"prompt": f"Name the number after {n}.", "chosen": f"good: {n + 1}", "rejected": f"bad: {n}"} for n in range(6)
    ]
    return lines(tmp_path / "data", "pairs.jsonl", rows).parent


@pytest.fixture
def board(runs: Path, data: Path) -> Iterator[str]:
    with running(Settings(runs, (data,))) as address:
        yield address


def make(page: Page, board: str, name: str = "mine", overlap: str = "100") -> None:
    page.goto(f"{board}label")
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("spinbutton", name="Share that everybody labels").fill(overlap)
    page.get_by_role("button", name="Make the set").click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def start(page: Page, who: str) -> None:
    page.get_by_role("combobox", name="Your name").fill(who)
    page.keyboard.press("Enter")
    expect(page.locator(".choose")).to_be_visible()
    page.wait_for_load_state()  # the script that hears the keys


def press(page: Page, key: str) -> None:
    """Press a key and wait until the next decision is there."""
    before = page.locator(".now").inner_text()
    page.keyboard.press(key)
    expect(page.locator(".now")).not_to_have_text(before)


def better(page: Page) -> str:
    """The key of the reply that says it is good."""
    left = page.get_by_role("region", name="Left").inner_text()
    return "1" if "good:" in left else "2"


def answers(runs: Path, name: str = "mine") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / ".labels" / name / "answers.jsonl").read_text().splitlines()]


@pytest.mark.demo_model
def test_six_pairs_labelled_by_two_become_a_dpo(
    board: str, runs: Path, tiny_model: Path, cli: Callable[..., Any], tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(board)
    make(page, board)
    start(page, "Ann")
    expect(page.locator(".now")).to_contain_text("0 answered, 6 to go")
    sides = []
    for number in range(6):
        key = better(page)
        sides.append(key)
        press(page, ("ArrowLeft" if key == "1" else "ArrowRight") if number % 2 else key)
    expect(page.locator(".done")).to_contain_text("Nothing is left")
    press(page, "u")  # the last answer was a mistake
    press(page, better(page))
    assert set(sides) == {"1", "2"}, "the lots put the better one on both sides"

    other = open_page(f"{board}label/mine")
    start(other, "Bob")
    press(other, better(other))
    press(other, "2" if better(other) == "1" else "1")  # of another mind
    press(other, "t")
    press(other, "s")
    press(other, better(other))
    expect(other.locator(".now")).to_contain_text("5 answered, 1 to go")

    other.goto(f"{board}label/mine")
    table = other.get_by_role("region", name="Agreement between annotators")
    expect(table.get_by_role("row", name="Ann, Bob")).to_contain_text("4")
    expect(table.get_by_role("row", name="all together")).to_be_visible()
    other.get_by_role("button", name="Write the pairs").click()
    expect(other.locator("#exported")).to_contain_text("4 pairs were written")
    expect(other.locator("#exported")).to_contain_text("0 ties, 0 skipped, 2 divided")
    with other.expect_download() as download:
        other.get_by_role("link", name="Download").first.click()
    pairs = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert len(pairs) == 4
    assert all(pair["chosen"][0]["content"].startswith("good") for pair in pairs)
    assert [one["annotator"] for one in answers(runs)].count("Ann") == 8

    recipe = tmp_path / "dpo.yaml"
    recipe.write_text(
        f"name: dpo\nmodel: {tiny_model}\nstages:\n"
        f"  prepare: {{kind: data, held_out: 0, sources: [{{path: {runs}/.labels/mine/pairs.jsonl}}]}}\n"
        "  dpo: {kind: train, data: prepare, objective: {name: dpo}, adapter: {name: lora, rank: 4, alpha: 8}, batch_size: 2, max_steps: 2,"
        " learning_rate: 1e-3, dtype: fp32}\n"
    )
    done = cli("run", recipe, "--runs", runs)
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (runs / "dpo" / "dpo" / "metrics.jsonl").read_text().splitlines()]
    first = next(one for one in records if one["split"] == "train")
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_what_is_kept_is_what_was_seen(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(board)
    make(page, board)
    start(page, "Ann")
    seen = []
    for choice in ("left", "right", "left", "right", "tie"):
        name = {"left": "Left", "right": "Right"}.get(choice)
        seen.append(page.get_by_role("region", name=name).inner_text() if name else "")
        before = page.locator(".now").inner_text()
        page.locator(f"[data-choice={choice}]").click()
        expect(page.locator(".now")).not_to_have_text(before)
    items = {one["id"]: one for one in map(json.loads, (runs / ".labels/mine/items.jsonl").read_text().splitlines())}
    for text, given in zip(seen, answers(runs), strict=True):
        if given["choice"] != "tie":
            assert items[given["item"]][given["choice"]][0]["content"] in text
    assert all(0 < given["seconds"] < 600 for given in answers(runs))


def test_a_reload_shows_the_same_decision_and_a_second_press_counts_once(
    board: str, runs: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(board)
    make(page, board)
    start(page, "Ann")
    before = page.locator("#card").inner_text()
    page.reload()
    assert page.locator("#card").inner_text() == before
    same = open_page(page.url)
    press(page, "1")
    same.keyboard.press("2")
    expect(same.get_by_role("alert")).to_contain_text("answered already")
    assert len(answers(runs)) == 1
    page.evaluate(
        "for (let n = 0; n < 5; n++) document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', bubbles: true}))"
    )
    expect(page.locator(".now")).to_contain_text("2 answered")
    assert len(answers(runs)) == 2


def test_scripts_in_replies_and_names_are_text(
    board: str, runs: Path, data: Path, open_page: Callable[..., Page]
) -> None:
    lines(data, "pairs.jsonl", [{"prompt": SCRIPT, "chosen": f"a{SCRIPT}", "rejected": f"b{SCRIPT}"}])
    page = open_page(board)
    make(page, board)
    page.goto(f"{board}label/mine/work?by=%3Cb%3EAnn%3C/b%3E")
    expect(page.locator(".asked")).to_contain_text(SCRIPT)
    expect(page.get_by_role("region", name="Left")).to_contain_text(SCRIPT)
    expect(page.locator(".heading")).to_contain_text("as <b>Ann</b>")
    press(page, "1")
    page.goto(f"{board}label/mine")
    expect(page.get_by_role("cell", name="<b>Ann</b>")).to_have_count(0)
    expect(page.get_by_role("rowheader", name="<b>Ann</b>")).to_be_visible()
    assert page.title() != "run"


def test_two_models_of_an_evaluation_are_compared(board: str, runs: Path, open_page: Callable[..., Page]) -> None:
    rows = [
        {
            "model": model,
            "prompt_id": f"p{n}",
            "sample": 0,
            "turns": [f"Question {n}?"],
            "replies": [f"{model} says {n}"],
        }
        for model in ("base", "sft", "dpo")
        for n in range(3)
    ]
    lines(runs / "one", "evaluate/prompts.rows.jsonl", rows)
    (runs / "one" / "recipe.yaml").write_text("name: one\nmodel: tiny\nstages: {evaluate: {kind: eval}}\n")
    page = open_page(f"{board}label")
    page.get_by_role("combobox", name="From").select_option("one")
    page.get_by_role("combobox", name="First model").select_option("sft")
    page.get_by_role("combobox", name="Second model").select_option("dpo")
    page.get_by_role("textbox", name="Name").fill("models")
    page.get_by_role("button", name="Make the set").click()
    start(page, "Ann")
    expect(page.locator(".replies")).to_contain_text("sft says")
    expect(page.locator(".replies")).to_contain_text("dpo says")
    press(page, "1" if "sft says" in page.get_by_role("region", name="Left").inner_text() else "2")
    page.goto(f"{board}label/models")
    expect(page.locator("#results-title ~ dl")).to_contain_text("Preferred: sft")


def test_mistakes_are_told(board: str, runs: Path, data: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(board)
    make(page, board)
    page.goto(f"{board}label")
    page.get_by_role("textbox", name="Name").fill("mine")
    page.get_by_role("button", name="Make the set").click()
    expect(page.get_by_role("alert")).to_contain_text("there is a set of this name")
    lines(data, "pairs.jsonl", [{"prompt": "a", "completion": "b"}])
    page.goto(f"{board}label")
    page.get_by_role("textbox", name="Name").fill("none")
    page.get_by_role("button", name="Make the set").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing to label (left out: no_pair 1)")
    assert page.goto(f"{board}label/other").status == 404  # type: ignore[union-attr]  # there is an answer
    assert page.goto(f"{board}label/..%2f..%2fone").status == 404  # type: ignore[union-attr]
    page.goto(f"{board}label/mine/work?by=")
    expect(page.get_by_role("alert")).to_contain_text("a name is needed")
    (runs / ".labels" / "mine" / "set.json").write_text("{")
    page.goto(f"{board}label")
    expect(page.get_by_role("alert")).to_contain_text("set.json")


def test_pages_speak_two_languages_fit_a_phone_and_pass_axe(
    board: str, data: Path, open_page: Callable[..., Page]
) -> None:
    (data / f"the last file with {'a long ' * 8}name.jsonl").write_text("")
    page = open_page(board)
    make(page, board)
    page.goto(f"{board}label/mine/work?by=Bob")
    press(page, "1")
    suit_everybody(open_page, board, "label", "label/mine", "label/mine/work?by=Ann")
