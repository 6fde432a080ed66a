"""What would change against an earlier run, and what it takes: without torch, and fast enough for typing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.artifacts import RunDir, write_json
from posttrain.board.recipe_changes import Difference, differences, fates
from posttrain.board.recipe_plan import Plans
from posttrain.config import override, parse_yaml, resolved_yaml
from posttrain.lab.recipe import Recipe, recipe_of

TEXT = """\
name: first
model: MODEL
stages:
  rows: {kind: data, sources: [{path: alpaca_en_demo}]}
  sft: {kind: train, data: rows, max_steps: 5}
  again: {kind: train, data: rows, start_from: sft}
  measure: {kind: eval, data: rows, models: [base, sft]}
  report: {kind: report}
"""


def recipe(*overrides: str) -> Recipe:
    return recipe_of(override(parse_yaml(TEXT, "r"), overrides, Recipe, shorthand="stages"))


def test_settings_that_differ_are_told_with_both_values() -> None:
    assert differences(recipe(), recipe("name=second")) == ()
    found = differences(recipe(), recipe("sft.epochs=2", "again.objective={name: sft}", "rows.held_out=0.1"))
    assert found == (
        Difference("stages.rows.held_out", "null", "0.1"),
        Difference("stages.sft.epochs", "1.0", "2.0"),
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("report.title=x", {"rows": "kept", "sft": "kept", "again": "goes_on", "measure": "first", "report": "again"}),
        ("again.epochs=2", {"rows": "kept", "sft": "kept", "again": "anew", "measure": "first", "report": "again"}),
        ("sft.epochs=2", {"rows": "kept", "sft": "anew", "again": "anew", "measure": "first", "report": "again"}),
        ("model=another", {"rows": "kept", "sft": "anew", "again": "anew", "measure": "first", "report": "again"}),
        ("seed=1", {"rows": "anew", "sft": "anew", "again": "anew", "measure": "first", "report": "again"}),
    ],
)
def test_a_run_of_that_name_keeps_what_is_unchanged(tmp_path: Path, override: str, expected: dict[str, str]) -> None:
    run = RunDir(tmp_path / "first")
    for name, status in {"rows": "complete", "sft": "complete", "again": "running", "report": "complete"}.items():
        run.stage(name).path.mkdir(parents=True)
        write_json(run.stage(name).file("manifest.json"), {"schema": 1, "status": status, "kind": "x", "digest": "y"})
    (run.path / "recipe.yaml").write_text(resolved_yaml(recipe()))
    assert {one.name: one.fate for one in fates(recipe(override), run)} == expected


def test_a_new_name_runs_everything(tmp_path: Path) -> None:
    assert {one.fate for one in fates(recipe(), RunDir(tmp_path / "none"))} == {"first"}


def test_a_damaged_run_is_run_anew(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "first")
    run.stage("sft").path.mkdir(parents=True)
    run.stage("sft").file("manifest.json").write_text("{")
    (run.path / "recipe.yaml").write_text("name: [")
    assert {one.fate for one in fates(recipe(), run)} == {"first"}


# ---- the plan ------------------------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_plan_says_what_each_training_takes(tmp_path: Path, model: Path) -> None:
    plans = Plans(tmp_path)
    found = plans.of(recipe(f"model={model}"))
    assert [(one.name, one.method, one.fits) for one in found.stages] == [
        ("sft", "lora", True),
        ("again", "lora", True),
    ]
    assert found.missing is None
    assert 0 < found.stages[0].peak < found.stages[0].room
    assert found.stages[0].hours is not None
    assert found.stages[1].hours is None, "its rows were not counted"
    assert plans.of(recipe(f"model={model}", "name=other")) is found
    assert plans.of(recipe(f"model={model}", "sft.max_length=64")).stages[0].peak < found.stages[0].peak


@pytest.mark.parametrize(
    ("name", "missing"), [("nobody/has-this", "model_not_here"), ("smollm2-135m-instruct", "model_not_here"), ("nonsense", "failed")]
)  # fmt: skip
def test_a_model_that_is_not_here_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("httpx.Client.send", lambda *a, **k: pytest.fail("the network was asked"))
    found = Plans(tmp_path).of(recipe(f"model={name}"))
    assert found.missing == missing
    assert (name in found.problem) or missing == "failed"


def test_a_recipe_that_trains_nothing_has_no_plan(tmp_path: Path) -> None:
    text = "name: x\nstages: {rows: {kind: data, sources: [{path: alpaca_en_demo}]}}\n"
    assert Plans(tmp_path).of(recipe_of(parse_yaml(text, "r"))).missing == "no_training"


def test_a_plan_loads_no_torch(tmp_path: Path, model: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from posttrain.board.recipe_plan import Plans\n"
        "from posttrain.board.recipe_form import draft\n"
        "found = draft(Path(sys.argv[1]).read_text(), 'r')\n"
        "assert Plans(Path(sys.argv[2])).of(found.recipe).stages\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    (tmp_path / "r.yaml").write_text(TEXT.replace("MODEL", str(model)))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.yaml"), str(tmp_path)], check=True)
