"""Recipes: references, order, paths, and the files in recipes/."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config import json_schema, resolved_yaml
from posttrain.data.config import Source
from posttrain.errors import ConfigError
from posttrain.lab import reference
from posttrain.lab.recipe import Recipe, execution_order, load_recipe, stage_inputs
from posttrain.stages.data import DataStage
from posttrain.stages.eval import EvalStage
from posttrain.stages.report import ReportStage
from posttrain.stages.train import TrainStage
from posttrain.tasks.prompts import load_prompts

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
DATA = "  prepare: {kind: data, sources: [{path: rows.jsonl}]}\n"
SFT = "  sft: {kind: train, data: prepare}\n"
EVAL = "  evaluate: {kind: eval, data: prepare, models: [base, sft]}\n"
REPORT = "  page: {kind: report}\n"


def write(folder: Path, stages: str, name: str = "demo", model: str = "tiny") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"name: {name}\nmodel: {model}\nstages:\n{stages}", encoding="utf-8")
    return path


def recipe(folder: Path, stages: str, *overrides: str, **top: str) -> Recipe:
    return load_recipe(write(folder, stages, **top), overrides)


def told(folder: Path, stages: str, *overrides: str, **top: str) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe(folder, stages, *overrides, **top)
    return str(caught.value).replace(f"{folder}/", "")


# ---- the files of the project --------------------------------------------------------------------------------------


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {
        "quickstart.yaml",
        "sft_full.yaml",
        "sft_lora_files.yaml",
        "sft_qwen3_1.7b.yaml",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_says_how_to_run_it(path, tmp_path):
    found = load_recipe(path)
    assert re.fullmatch(path.stem.replace("_", "[-_]"), found.name)
    assert f"posttrain run recipes/{path.name}" in path.read_text(encoding="utf-8")
    again = tmp_path / "recipe.yaml"
    again.write_text(resolved_yaml(found), encoding="utf-8")
    assert load_recipe(again) == found


def test_the_page_of_keys_is_up_to_date():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == reference.replaced(page), "run: python -m posttrain.lab.reference docs/recipes.md"
    for stage in ("data", "train", "eval", "report"):
        assert f"### `stages.<name>` with `kind: {stage}`" in page
    assert "| `learning_rate` | a number greater than 0 or null | `null` |" in page


def test_the_errors_on_the_page_are_the_real_ones(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    examples = re.findall(r"<!-- error -->\n```yaml\n(.*?)```\n```text\n(.*?)\n```", page, re.DOTALL)
    assert len(examples) == 3
    for text, message in examples:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        assert str(caught.value).replace(f"{tmp_path}/", "") == message


def test_the_other_examples_on_the_page_work(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?<!<!-- error -->\n)```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "x.yaml"
    path.write_text(blocks[0], encoding="utf-8")
    overrides = re.findall(r"^\| `'?([a-z.0-9_]+=[^`']*)'?` \|", page, re.MULTILINE)
    assert len(overrides) == 9
    for override in overrides:
        load_recipe(path, [override])
    prompts = next(block for block in blocks if block.startswith("rewriting:"))
    path.write_text(prompts, encoding="utf-8")
    assert len(load_prompts(path)) == 1


def test_the_schema_of_a_recipe_is_complete():
    schema = json_schema(Recipe)
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema["$defs"]) >= {"DataStage", "TrainStage", "EvalStage", "ReportStage", "LoraAdapter", "Source"}
    assert schema["required"] == ["name", "stages"]
    train = schema["$defs"]["TrainStage"]
    assert train["properties"]["batch_size"]["default"] == 16
    assert train["properties"]["max_length"]["description"] == "Longest example in tokens."
    assert train["additionalProperties"] is False


# ---- references and order ------------------------------------------------------------------------------------------


def test_inputs_and_order(tmp_path):
    stages = REPORT + EVAL + "  second: {kind: train, data: prepare, start_from: sft}\n" + SFT + DATA
    found = recipe(tmp_path, stages)
    assert stage_inputs(found, "prepare") == {}
    assert stage_inputs(found, "sft") == {"data": "prepare"}
    assert stage_inputs(found, "second") == {"data": "prepare", "start_from": "sft"}
    assert stage_inputs(found, "evaluate") == {"data": "prepare", "models.1": "sft"}
    assert stage_inputs(found, "page") == {n: n for n in ("evaluate", "second", "sft", "prepare")}
    assert execution_order(found) == ("prepare", "sft", "evaluate", "second", "page")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_puts_every_stage_after_its_inputs(data):
    count = data.draw(st.integers(1, 6))
    names = data.draw(st.permutations([f"t{i}" for i in range(count)]))
    stages: dict[str, DataStage | TrainStage | EvalStage | ReportStage] = {}
    if data.draw(st.booleans()):
        stages["page"] = ReportStage(kind="report")
    for name in names:  # t<i> starts from an earlier number, wherever it stands in the file
        start = data.draw(st.sampled_from(["base", *(f"t{i}" for i in range(int(name[1:])))]))
        stages[name] = TrainStage(kind="train", data="rows", start_from=start)
    stages["rows"] = DataStage(kind="data", sources=(Source(path="x"),))
    found = Recipe(name="r", model="m", stages=stages)
    order = execution_order(found)
    assert sorted(order) == sorted(stages)
    for name in stages:
        assert all(order.index(needed) < order.index(name) for needed in stage_inputs(found, name).values())


def test_the_order_is_that_of_the_file_where_nothing_else_decides(tmp_path):
    stages = DATA + "".join(f"  {name}: {{kind: train, data: prepare}}\n" for name in ("c", "a", "b"))
    assert execution_order(recipe(tmp_path, stages)) == ("prepare", "c", "a", "b")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            DATA + "  sft: {kind: train, data: prepar}\n",
            "recipe.yaml:5: stages.sft.data: there is no stage 'prepar' (did you mean 'prepare'?); possible here: prepare",
        ),
        (SFT, "recipe.yaml:4: stages.sft.data: there is no stage 'prepare'; possible here: none"),
        (
            DATA + SFT + "  b: {kind: train, data: sft}\n",
            "recipe.yaml:6: stages.b.data: 'sft' is a stage of kind train, but a stage that gives rows is needed; possible here: prepare",
        ),
        (
            DATA + "  b: {kind: train, data: base}\n",
            "recipe.yaml:5: stages.b.data: 'base' is the recipe's model, but a stage that gives rows is needed; possible here: prepare",
        ),
        (
            DATA + "  b: {kind: train, data: prepare, start_from: prepare}\n",
            "recipe.yaml:5: stages.b.start_from: 'prepare' is a stage of kind data, but a stage that gives a model is needed; possible here: base, b",
        ),
        (
            DATA + "  e:\n    kind: eval\n    data: prepare\n    models:\n      - base\n      - sfd\n",
            "recipe.yaml:10: stages.e.models.1: there is no stage 'sfd'; possible here: base",
        ),
        (
            DATA + "  e: {kind: eval, data: prepare, models: [base, base]}\n",
            "recipe.yaml:5: stages.e.models.1: 'base' is listed twice",
        ),
        (
            "  prepare: {kind: data, sources: [{path: x}], held_out: 0}\n  e: {kind: eval, data: prepare, models: [base]}\n",
            "recipe.yaml:5: stages.e.data: 'prepare' holds out no rows to measure on",
        ),
        (
            DATA + "  a: {kind: train, data: prepare, start_from: a}\n",
            "recipe.yaml:5: stages.a.start_from: the stages start from each other in a circle: a -> a",
        ),
        (
            DATA + "  x: {kind: train, data: prepare, start_from: b}\n"
            "  a: {kind: train, data: prepare, start_from: c}\n  b: {kind: train, data: prepare, start_from: a}\n  c: {kind: train, data: prepare, start_from: b}\n",
            "recipe.yaml:7: stages.b.start_from: the stages start from each other in a circle: b -> a -> c -> b",
        ),
        (DATA + DATA, "recipe.yaml:5: stages.prepare: this key is given twice (first on line 4)"),
        (
            "  base: {kind: data, sources: [{path: x}]}\n",
            "recipe.yaml:4: stages.base: 'base' is the name of the recipe's model; give this stage another name",
        ),
        (
            "  report: {kind: data, sources: [{path: x}]}\n",
            "recipe.yaml:4: stages.report: the folder report/ of a run is for the report; give this data stage another name",
        ),
        (
            "  a/b: {kind: report}\n",
            "recipe.yaml:4: stages.a/b: the stage name 'a/b' can't be used; use letters, digits, '-' and '_', starting with a letter or digit",
        ),
        ("  a.b: {kind: report}\n", "recipe.yaml:4: stages.a.b: the stage name 'a.b' can't be used; "),
        ("  ..: {kind: report}\n", "the stage name '..' can't be used"),
        (
            DATA + "  Prepare: {kind: data, sources: [{path: x}]}\n",
            "recipe.yaml:5: stages.Prepare: the name differs only by case from the stage 'prepare'",
        ),
        (
            REPORT + "  report: {kind: report}\n",
            "recipe.yaml:5: stages.report: a run has one report, and 'page' is one already",
        ),
        ("  {}\n", "recipe.yaml:3: stages: must be a mapping with at least 1 entry, got an empty mapping"),
        (
            "  page: {kind: repotr}\n",
            "'report', got 'repotr' (did you mean 'report'?)",
        ),
    ],
)
def test_wrong_stages_are_told_with_line_and_path(tmp_path, stages, message):
    assert message in told(tmp_path, stages)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-x", "a b", "''", "x" * 101])
def test_names_that_can_not_be_folders_are_refused(tmp_path, name):
    assert "recipe.yaml:1: name: " in told(tmp_path, DATA, name=name)


@pytest.mark.parametrize("name", ["a", "run-1.2_x", "1", "实验一", "é"])
def test_names_that_can(tmp_path, name):
    assert recipe(tmp_path, DATA, f"name='{name}'").name == name


def test_all_wrong_references_are_told_at_once(tmp_path):
    message = told(tmp_path, DATA + "  a: {kind: train, data: x, start_from: y}\n", "a.data=z")
    assert message.startswith("recipe.yaml: 2 problems\n  line 5: stages.a.start_from: there is no stage 'y'")
    assert "\n  override 'a.data=z': stages.a.data: there is no stage 'z'" in message


def test_lr_negative_and_rank_0(tmp_path):
    message = told(tmp_path, DATA + SFT, "sft.learning_rate=-0.1", "sft.adapter.rank=0")
    assert (
        "override 'sft.learning_rate=-0.1': stages.sft.learning_rate: must be a number greater than 0 or null, got -0.1"
        in message
    )
    assert (
        "override 'sft.adapter.rank=0': stages.sft.adapter.rank: must be a whole number of at least 1, got 0" in message
    )


def test_a_stage_that_shares_its_name_with_a_key_needs_the_full_path(tmp_path):
    stages = "  seed: {kind: data, sources: [{path: x}]}\n"
    assert recipe(tmp_path, stages, "seed=5").seed == 5
    found = recipe(tmp_path, stages, "stages.seed.held_out=9")
    assert found.stages["seed"].held_out == 9  # type: ignore[union-attr]


# ---- paths ---------------------------------------------------------------------------------------------------------


def test_paths_beside_the_recipe_win_others_stay(tmp_path, monkeypatch):
    folder, working = tmp_path / "recipes", tmp_path / "work"
    (folder / "sub").mkdir(parents=True)
    working.mkdir()
    monkeypatch.chdir(working)
    for name in ("rows.jsonl", "sub/model.bin", "chat.jinja", "prompts.yaml"):
        (folder / name).write_text("x")
    (working / "mine.jsonl").write_text("x")
    stages = (
        "  prepare: {kind: data, sources: [{path: ./rows.jsonl}, {path: mine.jsonl}, {path: org/name}, {path: ~/x.json}, {path: /abs.json}]}\n"
        "  sft: {kind: train, data: prepare, template: chat.jinja}\n"
        "  evaluate: {kind: eval, data: prepare, models: [base], template: chat.jinja, prompts: prompts.yaml}\n"
    )
    found = load_recipe(write(folder, stages, model="sub"), [])
    prepare, sft, evaluate = found.stages.values()
    assert isinstance(prepare, DataStage)
    assert isinstance(sft, TrainStage)
    assert isinstance(evaluate, EvalStage)
    assert found.model == str(folder / "sub")
    assert [s.path for s in prepare.sources] == [
        str(folder / "rows.jsonl"),
        "mine.jsonl",
        "org/name",
        str(Path.home() / "x.json"),
        "/abs.json",
    ]
    assert sft.template == evaluate.template == str(folder / "chat.jinja")
    assert evaluate.prompts == str(folder / "prompts.yaml")


def test_paths_of_overrides_mean_the_working_folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("x")
    found = recipe(tmp_path, DATA, "prepare.sources.0.path=rows.jsonl", "model=rows.jsonl")
    assert isinstance(found.stages["prepare"], DataStage)
    assert found.stages["prepare"].sources[0].path == found.model == "rows.jsonl"
    whole = recipe(tmp_path, DATA, "prepare.sources=[{path: rows.jsonl}]").stages["prepare"]
    assert isinstance(whole, DataStage)
    assert whole.sources[0].path == "rows.jsonl"


def test_builtin_prompts_are_never_a_file(tmp_path):
    (tmp_path / "builtin").write_text("x")
    evaluate = recipe(tmp_path, DATA + "  e: {kind: eval, data: prepare, models: [base]}\n").stages["e"]
    assert isinstance(evaluate, EvalStage)
    assert evaluate.prompts == "builtin"


def test_an_override_reaches_into_a_step_that_the_file_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nstages: {prepare: {kind: data, sources: [{path: alpaca_en_demo}]}}\n")
    assert load_recipe(path, ["prepare.mix.share=0.5"]).stages["prepare"].mix.share == 0.5
