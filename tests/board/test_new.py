"""The page of a new run, in a real browser: a form and its YAML, each following the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from starlette.testclient import TestClient

from boards import accessible, running, wait_for, write_run
from posttrain.artifacts import RunDir
from posttrain.board.app import create_app
from posttrain.board.web import Settings
from posttrain.errors import ConfigError
from posttrain.lab.processes import state
from posttrain.lab.queue import entries
from posttrain.lab.recipe import load_recipe

RECIPE = """\
# Learn from a few rows.
name: small        # of the run
model: MODEL
stages:
  rows:
    kind: data
    sources:
      - path: rows.jsonl   # beside this file
  sft:
    kind: train
    data: rows
    learning_rate: 2e-4    # fast
    max_length: 128
"""
OpenPage = Callable[..., Page]


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A folder of recipes, with rows and a model that is only a configuration beside them."""
    folder = tmp_path / "recipes"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 256,
                "tie_word_embeddings": True,
            }
        )
    )
    (folder / "small.yaml").write_text(RECIPE.replace("MODEL", "model"))
    (folder / "no_recipe.yaml").write_text("prompts: []\n")
    lines = [json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}."}) for n in range(30)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def new(runs: Path, recipes: Path) -> Iterator[str]:
    """The address of the page, of a board that has these recipes."""
    with running(Settings(runs, (), (recipes,))) as address:
        yield f"{address}new"


@pytest.fixture
def editor(new: str, open_page: OpenPage) -> Page:
    """The page with the recipe ``small``."""
    page = open_page(f"{new}?from=recipe/0/small.yaml")
    expect(page.locator("#plan .plans")).to_be_visible()
    return page


def field(page: Page, path: str) -> Locator:
    return page.locator(f'[id="f-{path}"]')


def yaml_of(page: Page) -> Locator:
    return page.get_by_role("textbox", name="YAML")


def text_of(page: Page) -> str:
    return yaml_of(page).input_value()


def holds(page: Page, text: str) -> None:
    expect(yaml_of(page)).to_have_value(re.compile(re.escape(text)))


# ---- starts --------------------------------------------------------------------------------------------------------


def test_a_start_is_a_recipe_or_an_earlier_run(new: str, runs: Path, open_page: OpenPage) -> None:
    write_run(runs, "first")
    page = open_page(new)
    expect(page.locator(".starts").first).to_contain_text("Learn from a few rows.")
    expect(page.get_by_role("link", name="no_recipe")).to_have_count(0)
    page.get_by_role("link", name="small").press("Enter")
    expect(page.get_by_role("heading", name="New run")).to_be_visible()
    expect(page.locator(".heading")).to_contain_text("Starting from the recipe small")
    page.go_back()
    page.locator(".starts.short").get_by_role("link", name="first").click()
    expect(page.locator(".heading")).to_contain_text("Starting from the run first")
    holds(page, "name: first-2\n")


def test_paths_beside_the_recipe_are_written_in_full(editor: Page, recipes: Path) -> None:
    holds(editor, f"path: {recipes / 'rows.jsonl'}   # beside this file")
    holds(editor, f"model: {recipes / 'model'}\n")


def test_without_recipes_there_is_a_first_one(board: str, open_page: OpenPage) -> None:
    page = open_page(f"{board}new")
    page.get_by_role("link", name="first").click()
    expect(page.locator("#problems")).to_contain_text("The recipe is right.")


@pytest.mark.parametrize("key", ["recipe/0/../small.yaml", "recipe/0//etc/passwd", "..", "none", ".", ""])
def test_what_is_not_listed_is_no_start(key: str, runs: Path, recipes: Path) -> None:
    client = TestClient(create_app(Settings(runs, (), (recipes,))), base_url="http://127.0.0.1")
    assert client.get("/new", params={"from": key}).status_code == 404


# ---- the form and the YAML -----------------------------------------------------------------------------------------


def test_what_is_typed_into_a_field_changes_that_place_of_the_yaml(editor: Page) -> None:
    before = text_of(editor)
    rate = field(editor, "stages.sft.learning_rate")
    rate.click()
    rate.press("Home")
    rate.press("Delete")
    editor.keyboard.type("5")
    holds(editor, "learning_rate: 5e-4    # fast")
    assert text_of(editor) == before.replace("learning_rate: 2e-4", "learning_rate: 5e-4")
    expect(rate).to_be_focused()
    assert rate.evaluate("one => one.selectionStart") == 1
    field(editor, "stages.sft.schedule").select_option("linear")
    holds(editor, "    max_length: 128\n    schedule: linear\n")
    field(editor, "stages.sft.schedule").select_option("")
    expect(yaml_of(editor)).to_have_value(before.replace("learning_rate: 2e-4", "learning_rate: 5e-4"))


def test_fields_typed_one_after_another_are_all_kept(editor: Page) -> None:
    for path, text in {"name": "other", "stages.sft.max_length": "64", "stages.sft.epochs": "2", "seed": "7"}.items():
        field(editor, path).fill(text)
    for text in ("name: other        # of the run", "max_length: 64\n", "epochs: 2\n", "seed: 7\n"):
        holds(editor, text)


def test_what_is_typed_into_the_yaml_changes_the_form(editor: Page) -> None:
    yaml = yaml_of(editor)
    yaml.evaluate("one => { const at = one.value.indexOf('128'); one.focus(); one.setSelectionRange(at, at + 3); }")
    editor.keyboard.type("256")
    expect(field(editor, "stages.sft.max_length")).to_have_value("256")
    expect(yaml).to_be_focused()
    assert yaml.evaluate("one => one.value.slice(one.selectionStart - 3, one.selectionStart)") == "256"
    editor.keyboard.type("\nbatch_size: [1")
    expect(editor.locator("#waiting")).to_be_visible()
    expect(field(editor, "stages.sft.max_length")).to_be_disabled()
    expect(editor.locator("#problems")).to_contain_text("the closing ']' of the bracket opened on line")
    for _ in range(16):
        editor.keyboard.press("Backspace")
    expect(editor.locator("#waiting")).to_be_hidden()
    expect(field(editor, "stages.sft.max_length")).to_be_enabled()
    expect(editor.locator("#problems")).to_contain_text("The recipe is right.")


def test_an_error_stands_at_its_field_in_the_words_of_the_command_line(editor: Page, tmp_path: Path) -> None:
    rate = field(editor, "stages.sft.learning_rate")
    rate.fill("quick")
    expect(rate).to_have_attribute("aria-invalid", "true")
    file = tmp_path / "r.yaml"
    file.write_text(text_of(editor))
    with pytest.raises(ConfigError) as command:
        load_recipe(file)
    (told,) = (message for _, message in command.value.problems)
    expect(editor.locator('[id="e-stages.sft.learning_rate"]')).to_have_text(told)
    assert "e-stages.sft.learning_rate" in (rate.get_attribute("aria-describedby") or "").split()
    assert rate.evaluate("one => one.matches(':focus')")
    expect(editor.locator("#problems")).to_contain_text(f"stages.sft.learning_rate: {told}")
    line = text_of(editor).split("\n").index("    learning_rate: quick    # fast") + 1
    editor.get_by_role("button", name=f"line {line}").click()
    chosen = yaml_of(editor).evaluate("one => one.value.slice(one.selectionStart, one.selectionEnd)")
    assert chosen == "    learning_rate: quick    # fast"
    editor.locator('[id="d-stages.sft"] > summary').click()
    editor.locator("#problems a").click()
    expect(rate).to_be_focused()
    rate.fill("1e-4")
    expect(rate).not_to_have_attribute("aria-invalid", "true")
    expect(editor.locator("#problems")).to_contain_text("The recipe is right.")


def test_what_is_no_yaml_stays_in_its_field_until_it_is_mended(editor: Page) -> None:
    track = field(editor, "stages.sft.track")
    editor.locator('[id="all-stages.sft"]').check()
    before = text_of(editor)
    track.fill("[wandb")
    expect(track).to_have_attribute("aria-invalid", "true")
    expect(editor.locator("#problems")).to_contain_text("override 'stages.sft.track=[wandb'")
    assert text_of(editor) == before
    field(editor, "stages.sft.max_length").fill("64")
    holds(editor, "max_length: 64")
    expect(track).to_have_value("[wandb")
    editor.get_by_role("button", name="Start").click()
    expect(editor.locator("#problems a")).to_be_focused()
    track.fill("wandb")
    holds(editor, "track: [wandb]")
    expect(track).not_to_have_attribute("aria-invalid", "true")


def test_groups_entries_and_stages_come_and_go(editor: Page) -> None:
    before = text_of(editor)
    field(editor, "stages.sft.objective.name").select_option("dpo")
    holds(editor, "    objective: {name: dpo}\n")
    field(editor, "stages.sft.objective.beta").fill("0.3")
    holds(editor, "    objective: {name: dpo, beta: 0.3}\n")
    field(editor, "stages.sft.objective.name").select_option("")
    expect(yaml_of(editor)).to_have_value(before)
    expect(field(editor, "stages.sft.objective.beta")).to_have_count(0)

    editor.get_by_role("button", name="Turn on: stages.sft.early_stopping").click()
    holds(editor, "    early_stopping: {}\n")
    field(editor, "stages.sft.early_stopping.patience").fill("5")
    holds(editor, "    early_stopping: {patience: 5}\n")
    editor.get_by_role("button", name="Turn off: stages.sft.early_stopping").click()
    expect(yaml_of(editor)).to_have_value(before)

    editor.locator('[id="kind-stages.rows.steps"]').select_option("dedup")
    editor.get_by_role("button", name="Add: stages.rows.steps").click()
    holds(editor, "    steps: [{kind: dedup}]\n")
    expect(editor.locator('[id="row-stages.rows.steps.0"]')).to_be_focused()
    editor.get_by_role("button", name="Take out: stages.rows.steps.0").click()
    holds(editor, "    steps: []\n")

    editor.locator("#name-stages").fill("measure")
    editor.locator("#kind-stages").select_option("eval")
    editor.locator("#name-stages").press("Enter")
    holds(editor, "\n  measure:\n    kind: eval\n")
    expect(editor.locator('[id="e-stages.measure.models"]')).to_contain_text("this key is missing")
    field(editor, "stages.measure.models").fill("base, sft")
    field(editor, "stages.measure.data").select_option("rows")
    holds(editor, "\n  measure:\n    kind: eval\n    models: [base, sft]\n    data: rows\n")
    expect(editor.locator("#problems")).to_contain_text("The recipe is right.")


def test_rare_settings_are_a_tick_away_and_stay_where_they_are(editor: Page) -> None:
    beta = field(editor, "stages.sft.adam_beta1")
    expect(beta).to_be_hidden()
    editor.locator('[id="all-stages.sft"]').check()
    beta.fill("0.8")
    holds(editor, "adam_beta1: 0.8")
    expect(beta).to_be_focused()
    expect(editor.locator('[id="all-stages.sft"]')).to_be_checked()
    editor.locator('[id="all-stages.sft"]').uncheck()
    expect(beta).to_be_visible()


# ---- what it takes, what it changes --------------------------------------------------------------------------------


def test_the_plan_follows(editor: Page) -> None:
    peak = editor.locator("#plan td .nowrap").first
    expect(editor.locator("#plan .verdict")).to_have_text("fits")
    before = peak.inner_text()
    field(editor, "stages.sft.max_length").fill("4096")
    expect(peak).not_to_have_text(before)
    field(editor, "model").fill("nobody/has-this")
    expect(editor.locator("#plan")).to_contain_text("nobody/has-this is not on this disk yet")


def test_what_would_change_is_told_against_the_start_and_a_run_of_that_name(
    new: str, runs: Path, open_page: OpenPage
) -> None:
    write_run(runs, "first")
    (runs / "first" / "recipe.yaml").write_text(
        "name: first\nmodel: tiny\nstages:\n  prepare: {kind: data, sources: [{path: alpaca_en_demo}]}\n"
        "  sft: {kind: train, data: prepare, learning_rate: 0.001}\n"
    )
    page = open_page(f"{new}?from=first")
    expect(page.locator("#changes")).to_contain_text("A new run, first-2: every stage runs.")
    expect(page.locator("#changes")).to_contain_text("No setting differs from first.")
    field(page, "stages.sft.learning_rate").fill("1e-5")
    expect(page.get_by_role("row", name="stages.sft.learning_rate 0.001 1e-05")).to_be_visible()
    expect(page.locator("#note")).to_have_text("A new run, first-2: every stage runs.")
    field(page, "name").fill("first")
    fates = page.locator("#changes .fates")
    expect(fates).to_contain_text("prepare: unchanged, kept")
    expect(fates).to_contain_text("sft: runs again, what it had is set aside")
    expect(page.locator("#note")).to_contain_text("There is a run first already.")


# ---- starting ------------------------------------------------------------------------------------------------------


def test_a_run_is_started_and_outlives_the_page(new: str, runs: Path, recipes: Path, open_page: OpenPage) -> None:
    (recipes / "rows.yaml").write_text(
        "name: only_rows\nstages:\n  rows: {kind: data, sources: [{path: rows.jsonl}]}\n"
    )
    page = open_page(f"{new}?from=recipe/0/rows.yaml")
    expect(page.locator("#plan")).to_contain_text("This recipe trains no model.")
    field(page, "name").fill("mine")
    page.get_by_role("button", name="Start").click()  # at once: what was typed last is part of it
    page.wait_for_url("**/runs/mine")
    page.close()
    run = RunDir(runs / "mine")
    wait_for(lambda: state(run).name == "finished", 120)
    assert (run.stage("rows").manifest() or {})["status"] == "complete"


def test_a_run_that_works_is_not_started_twice(new: str, runs: Path, recipes: Path, open_page: OpenPage) -> None:
    (recipes / "rows.yaml").write_text(
        "name: only_rows\nstages:\n  rows: {kind: data, sources: [{path: rows.jsonl}]}\n"
    )
    run = RunDir(runs / "only_rows")
    run.path.mkdir()
    (run.path / "recipe.yaml").write_text("name: only_rows\n")
    page = open_page(f"{new}?from=recipe/0/rows.yaml")
    with run.lock():
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#refused")).to_contain_text("only_rows")
        expect(page.locator("#refused")).to_be_visible()
    assert entries(runs) == []


def test_a_run_is_queued(new: str, runs: Path, recipes: Path, open_page: OpenPage) -> None:
    (recipes / "rows.yaml").write_text(
        "name: only_rows\nstages:\n  rows: {kind: data, sources: [{path: rows.jsonl}]}\n"
    )
    page = open_page(f"{new}?from=recipe/0/rows.yaml")
    page.get_by_role("button", name="Add to the queue").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    wait_for(lambda: (runs / "only_rows" / "rows" / "manifest.json").is_file(), 120)
    wait_for(lambda: state(RunDir(runs / "only_rows")).name == "finished" and entries(runs) == [], 120)


# ---- for everyone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "?from=recipe/0/small.yaml"])
def test_the_page_speaks_two_languages_fits_a_phone_and_passes_axe(path: str, new: str, open_page: OpenPage) -> None:
    page = open_page(f"{new}{path}", locale="zh-CN", width=390)
    expect(page.get_by_role("heading", name="新建运行")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page = open_page(f"{new}{path}", bypass_csp=True, color_scheme="dark")
    if path:
        expect(page.locator("#plan .plans")).to_be_visible()
        field(page, "stages.sft.learning_rate").fill("quick")
        expect(page.locator("#problems a")).to_be_visible()
    assert accessible(page) == []


def test_the_keyboard_alone_is_enough(editor: Page) -> None:
    field(editor, "name").focus()
    editor.keyboard.type("by_keys")
    editor.keyboard.press("Tab")
    expect(field(editor, "model")).to_be_focused()
    editor.keyboard.press("Tab")
    expect(field(editor, "seed")).to_be_focused()
    summary = editor.locator('[id="d-stages.sft"] > summary')
    summary.focus()
    editor.keyboard.press("Enter")
    expect(field(editor, "stages.sft.learning_rate")).to_be_hidden()
    editor.keyboard.press("Enter")
    expect(field(editor, "stages.sft.learning_rate")).to_be_visible()


def test_names_in_a_recipe_are_text(new: str, recipes: Path, open_page: OpenPage) -> None:
    wicked = "<img src=x onerror=alert(1)>"
    (recipes / "wicked.yaml").write_text(
        f"# {wicked}\nname: x\nstages:\n  '{wicked}': {{kind: train, '{wicked}': '{wicked}'}}\n"
    )
    page = open_page(new)
    expect(page.get_by_text(wicked)).to_be_visible()
    page.get_by_role("link", name="wicked").click()
    expect(page.locator("#problems")).to_contain_text(wicked)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("edit", {}),
        ("edit", {"text": 1}),
        ("edit", {"text": "a: 1", "act": "add"}),
        ("edit", {"text": "a: 1", "act": "remove", "path": [[]]}),
        ("edit", {"text": "a: 1", "typed": 3}),
        ("edit", {"text": "a: 1", "typed": [{"path": {}}]}),
        ("plan", {}),
    ],
)
def test_what_no_page_would_send_is_refused(path: str, body: object, runs: Path) -> None:
    client = TestClient(create_app(Settings(runs)), base_url="http://127.0.0.1")
    assert client.post(f"/new/{path}", json=body, headers={"origin": "http://127.0.0.1"}).status_code == 400


def test_what_is_too_large_for_a_recipe_is_refused(runs: Path) -> None:
    client = TestClient(create_app(Settings(runs)), base_url="http://127.0.0.1")
    body = {"text": "a: " + "x" * 1_100_000}
    assert client.post("/new/edit", json=body, headers={"origin": "http://127.0.0.1"}).status_code == 413
