"""Rows in a real browser: browse, search, see why a row went, its tokens, its near-duplicates; what is in a row is never run."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from boards import running, suit_everybody
from posttrain.board.web import Settings
from row_files import data_run, lines, turns

SCRIPT = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def board(runs: Path, data: Path) -> Iterator[str]:
    """A board over a run with a data stage, and over the folder its rows were read from."""
    data_run(runs / "one", data)
    with running(Settings(runs, (data,))) as address:
        yield address


def test_a_file_is_chosen_paged_searched_and_a_row_opened(
    board: str, data: Path, open_page: Callable[..., Page]
) -> None:
    lines(data, "many.jsonl", [turns(n, f"reply {n} " + "words " * n) for n in range(120)])
    page = open_page(f"{board}rows")
    link = page.get_by_role("link", name="data/many.jsonl")
    box = link.bounding_box()
    assert box is not None
    assert box["height"] < 40, "the name stands on one line"
    link.click()
    table = page.locator("table.rows tbody tr")
    expect(table).to_have_count(50)
    expect(page.locator(".pager")).to_contain_text("1 to 50")
    expect(page.locator(".pager")).to_contain_text("of 120")
    page.get_by_role("link", name="Next").click()
    expect(table.first).to_contain_text("Question number 50?")
    page.get_by_role("spinbutton", name="Go to row").fill("111")
    page.keyboard.press("Enter")
    expect(table).to_have_count(10)
    expect(table.first).to_contain_text("Question number 110?")
    page.get_by_role("searchbox").fill("NUMBER 77")
    expect(table).to_have_count(1)
    assert "text=NUMBER+77" in page.url
    page.get_by_role("link", name="78").click()
    expect(page.get_by_role("heading", name="Row 78")).to_be_visible()
    expect(page.locator(".whole-row")).to_contain_text("reply 77")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="Row 79")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Row 78")).to_be_visible()
    page.goto(f"{board}rows/row?file=data/many.jsonl&at=119")
    expect(page.get_by_role("link", name="Next row")).to_have_count(0)


def test_a_dropped_row_is_seen_with_its_reason_and_its_text(board: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{board}rows?run=one")
    expect(page.locator("table.rows tbody tr")).to_have_count(2)  # held out
    page.get_by_role("combobox", name="File").select_option("prepare/steps/01-filter/rejects.parquet")
    lost = page.locator("table.rows tbody tr.dropped")
    expect(lost).to_have_count(1)
    expect(lost).to_contain_text("assistant_too_long")
    lost.get_by_role("link").click()
    expect(page.locator(".notice.warning")).to_contain_text("assistant_too_long: ")
    expect(page.locator(".whole-row")).to_contain_text("far far far")
    page.goto(f"{board}rows?run=one&file=prepare/ledger.json")
    page.get_by_role("combobox", name="Reason").select_option("broken_json")
    expect(lost).to_have_count(1)
    lost.get_by_role("link").click()
    expect(page.locator(".notice.warning")).to_contain_text("broken_json")
    expect(page.locator(".whole-row")).to_contain_text("{broken")
    expect(page.locator(".whole-row")).to_contain_text("rows.jsonl")


def test_damaged_rows_of_a_file_are_not_hidden(board: str, data: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{board}rows?file=data/rows.jsonl")
    expect(page.locator("table.rows tbody tr")).to_have_count(19)
    assert page.locator("tr.dropped .why-lost strong").all_inner_texts() == ["broken_json", "empty_assistant_turn"]
    (data / "broken.json").write_bytes(b"PK\x03\x04")
    page.goto(f"{board}rows?file=data/broken.json")
    expect(page.get_by_role("alert")).to_contain_text("this is a zip archive")


def test_near_duplicates_and_lengths_are_shown(board: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{board}rows?run=one&file=prepare/read/rows.parquet")
    page.get_by_text("Lengths").click()
    expect(page.locator("figure").first).to_be_visible()
    expect(page.get_by_role("region", name="Token lengths")).to_be_visible()
    page.get_by_text("Near-duplicates").click()
    page.locator(".cluster summary").click()
    expect(page.locator(".member")).to_have_count(2)
    expect(page.locator(".member.dropped")).to_contain_text("Say the alphabet in order from a up to the letter k")
    page.get_by_role("searchbox").fill("letter k please")
    page.locator("table.rows tbody tr a").first.click()
    expect(page.locator(".member")).to_have_count(2)


@pytest.mark.demo_model
def test_the_tokens_of_a_row_show_what_is_supervised(
    board: str, runs: Path, tiny_model: Path, open_page: Callable[..., Page]
) -> None:
    recipe = runs / "one" / "recipe.yaml"
    recipe.write_text(f"name: one\nmodel: {tiny_model}\nstages: {{prepare: {{kind: data, sources: []}}}}\n")
    page = open_page(f"{board}rows?run=one&file=prepare/read/rows.parquet")
    page.get_by_role("link", name="3", exact=True).click()
    tokens = page.locator("#tokens .tokens")
    expect(tokens).to_be_visible(timeout=60_000)
    said = "".join(page.locator("#tokens .supervised").all_inner_texts())
    assert said.startswith("Reply 2 with words that no other has: xx 4.")
    assert "Question number 2?" in "".join(page.locator("#tokens .context").all_inner_texts())


def test_a_search_without_end_goes_on_by_itself(
    board: str, data: Path, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.board.pages.rows.PATIENCE", 0.0)
    lines(data, "many.jsonl", [turns(n) for n in range(40)])
    page = open_page(f"{board}rows?file=data/many.jsonl&text=number%203")
    expect(page.locator("table.rows tbody tr")).to_have_count(11)
    expect(page.locator(".go-on")).to_have_count(0)


def test_scripts_in_rows_are_text(board: str, data: Path, open_page: Callable[..., Page]) -> None:
    name = "<b>bold<b>.jsonl"
    lines(data, name, [{"prompt": SCRIPT, "completion": SCRIPT}, f"{{broken {SCRIPT}", {"prompt": "<b>x", SCRIPT: 1}])
    page = open_page(f"{board}rows?file={quote('data/' + name)}")
    expect(page.locator("table.rows tbody tr").first).to_contain_text(SCRIPT)
    for at in range(3):
        page.goto(f"{board}rows/row?file={quote('data/' + name)}&at={at}")
        expect(page.locator(".whole-row")).to_contain_text("<")
        assert page.title() != "run"
        assert page.locator(".whole-row img, .whole-row script").count() == 0
    page.goto(f"{board}rows?file={quote('data/' + name)}&text={quote(SCRIPT)}")
    expect(page.locator("table.rows tbody tr")).not_to_have_count(0)
    assert page.title() != "run"


def test_broken_text_long_rows_and_odd_names_are_shown(board: str, data: Path, open_page: Callable[..., Page]) -> None:
    (data / "\udcff odd &?#.jsonl").write_bytes(b'{"prompt": "caf\xe9", "completion": "b"}\n{broken \xff\n')
    lines(data, "long.jsonl", [{"prompt": "a", "completion": "x" * 300_000}])
    page = open_page(f"{board}rows")
    page.get_by_role("link", name="odd &?#.jsonl").click()
    expect(page.locator("tr.dropped")).to_have_count(2)
    page.get_by_role("link", name="1", exact=True).click()
    expect(page.locator(".whole-row")).to_contain_text("caf\\udce9")
    page.goto(f"{board}rows/row?file=data/long.jsonl&at=0")
    expect(page.locator(".whole-row")).to_contain_text("the first 200,000 of 300,000 characters")


@pytest.mark.parametrize(
    "query",
    [
        "file=../one/recipe.yaml",
        "file=data/../secret.jsonl",
        "file=/etc/passwd",
        "run=one&file=../../secret.jsonl",
        "run=../runs/one",
        "run=..",
        "run=.labels",
        "run=one%2f..%2fone",
        "file=data/link.jsonl",
        "run=one&file=prepare/link.parquet",
    ],
)
def test_no_path_leads_out_of_the_folders(board: str, runs: Path, data: Path, tmp_path: Path, query: str) -> None:
    secret = lines(tmp_path, "secret.jsonl", [{"prompt": "secret", "completion": "secret"}])
    (data / "link.jsonl").symlink_to(secret)
    (runs / "one" / "prepare" / "link.parquet").symlink_to(secret)
    for page in (
        "rows",
        "rows/row",
        "rows/more",
        "rows/count",
        "rows/tokens",
        "rows/lengths",
        "rows/clusters",
        "rows/members",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{board}{page}?{query}")
        assert refused.value.code == 404
        assert b'"secret"' not in refused.value.read()


def test_a_ledger_that_names_other_files_opens_none_of_them(
    board: str, runs: Path, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    secret = lines(tmp_path, "secret.jsonl", [{"prompt": "my secret", "completion": "is here"}])
    ledger = runs / "one" / "prepare" / "ledger.json"
    found = json.loads(ledger.read_text())
    found["rejects"][0] |= {"file": str(secret), "line": 1}
    ledger.write_text(json.dumps(found))
    page = open_page(f"{board}rows/row?run=one&file=prepare/ledger.json&at=0")
    expect(page.locator(".whole-row")).to_contain_text("no longer there")
    assert "my secret" not in page.content()


def test_pages_speak_two_languages_fit_a_phone_and_pass_axe(board: str, open_page: Callable[..., Page]) -> None:
    rejects = "rows?run=one&file=prepare/steps/01-filter/rejects.parquet"
    suit_everybody(open_page, board, "rows", rejects, "rows/row?file=data/rows.jsonl&at=13")
