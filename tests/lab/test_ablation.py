"""Plans of ablation runs: complete recipes that run, on the same held-out rows, with nested samples."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from posttrain.artifacts import Ledger, RunDir, StageDir, read_json
from posttrain.data.pipeline import prepare
from posttrain.data.rows import read_rows
from posttrain.errors import ConfigError
from posttrain.lab.ablation import Kind, ablation_recipes
from posttrain.lab.engine import Experiment
from posttrain.lab.recipe import load_recipe
from posttrain.stages.data import DataStage
from posttrain.stages.train import repeated_examples
from posttrain.types import Tokens

RECIPE = """
name: chat
model: {model}
stages:
  prepare:
    kind: data
    held_out: 0.2
    sources:
      - {{path: en.jsonl, name: english}}
      - {{path: zh.jsonl}}
      - {{path: code/rows.jsonl, name: c&de}}
  sft:
    kind: train
    data: prepare
    adapter: {{name: lora, rank: 2}}
    batch_size: 2
    max_steps: 2
  evaluate:
    kind: eval
    data: prepare
    models: [base, sft]
    prompts: null
    resamples: 100
"""


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A recipe in a folder of its own, with three sources of 40, 20 and 20 rows beside it."""
    folder = tmp_path / "recipes"
    model = "smollm2-135m-instruct"
    if request.node.get_closest_marker("demo_model"):
        model = str(request.getfixturevalue("tiny_model"))
    for name, count in (("en.jsonl", 40), ("zh.jsonl", 20), ("code/rows.jsonl", 20)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(json.dumps({"question": f"{name} {n}?", "answer": f"answer {n}"}) + "\n" for n in range(count))
        )
    (folder / "chat.yaml").write_text(RECIPE.format(model=model))
    return folder / "chat.yaml"


def rows_of(recipe: Path, out: Path) -> tuple[Counter[str], set[str], set[str]]:
    """(training rows by source, ids of the training rows, ids of the held-out rows) of a recipe's data stage."""
    loaded = load_recipe(recipe)
    stage = loaded.stages["prepare"]
    assert isinstance(stage, DataStage)
    prepare(stage, StageDir(out), loaded.seed, lambda name: None)
    train, held_out = (read_rows(out / "rows" / f"{name}.parquet") for name in ("train", "held_out"))
    return Counter(row.source for row in train), {row.id for row in train}, {row.id for row in held_out}


def test_each_source_is_left_out_once(recipe: Path, tmp_path: Path) -> None:
    planned = ablation_recipes(recipe, tmp_path / "plan", "leave_one_out")
    assert [one.name for one in planned] == [
        "chat-all-sources",
        "chat-without-english",
        "chat-without-zh",
        "chat-without-c-de",
    ]
    whole, ids, held_out = rows_of(planned[0].path, tmp_path / "0")
    assert sum(whole.values()) == 64
    for one, source in zip(planned[1:], ("english", "zh", "c&de"), strict=True):
        counts, left, same = rows_of(one.path, tmp_path / one.name)
        assert counts == {name: count for name, count in whole.items() if name != source}
        assert left < ids
        assert same == held_out
        assert source in one.path.read_text().splitlines()[0]


def test_sub_samples_are_nested_and_judged_alike(recipe: Path, tmp_path: Path) -> None:
    planned = ablation_recipes(recipe, tmp_path / "plan", "sub_samples")
    assert [one.name for one in planned] == [
        f"chat-{share}-percent" for share in ("005", "010", "025", "050", "075", "100")
    ]
    found = [rows_of(one.path, tmp_path / one.name) for one in planned]
    assert [sum(counts.values()) for counts, _, _ in found] == [3, 6, 16, 32, 48, 64]
    assert all(smaller[1] < larger[1] for smaller, larger in itertools.pairwise(found))
    assert len({frozenset(held_out) for _, _, held_out in found}) == 1
    assert found[-1] == rows_of(recipe, tmp_path / "itself")


def test_a_mix_of_the_recipe_is_kept(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text().replace("held_out: 0.2", "held_out: 0.2\n    mix: {kind: mix, cap: 10, share: 0.5}")
    recipe.write_text(text)
    counts, _, _ = rows_of(ablation_recipes(recipe, tmp_path / "a", "leave_one_out")[2].path, tmp_path / "1")
    assert counts == {"english": 5, "c&de": 5}
    counts, _, _ = rows_of(ablation_recipes(recipe, tmp_path / "b", "sub_samples")[2].path, tmp_path / "2")
    assert sum(counts.values()) == 4  # a quarter of half of thirty


def test_the_plan_can_be_written_twice_and_moved(recipe: Path, tmp_path: Path) -> None:
    first = ablation_recipes(recipe, tmp_path / "plan", "leave_one_out")
    texts = [one.path.read_bytes() for one in first]
    again = ablation_recipes(recipe, tmp_path / "plan", "leave_one_out")
    assert [one.path.read_bytes() for one in again] == texts
    loaded = load_recipe(first[0].path)
    stage = loaded.stages["prepare"]
    assert isinstance(stage, DataStage)
    assert stage.sources[0].path == str(recipe.parent / "en.jsonl")
    assert replace(stage, sources=()) == replace(load_recipe(recipe).stages["prepare"], sources=())  # type: ignore[type-var]


@pytest.mark.parametrize("kind", ["leave_one_out", "sub_samples"])
def test_a_recipe_without_data(recipe: Path, tmp_path: Path, kind: Kind) -> None:
    recipe.write_text("name: x\nmodel: y\nstages:\n  report:\n    kind: report\n")
    with pytest.raises(ConfigError, match="no data stage"):
        ablation_recipes(recipe, tmp_path / "plan", kind)


def test_one_source_can_not_be_left_out(recipe: Path, tmp_path: Path) -> None:
    text = (
        recipe.read_text()
        .replace("      - {path: zh.jsonl}\n", "")
        .replace("      - {path: code/rows.jsonl, name: c&de}\n", "")
    )
    recipe.write_text(text)
    with pytest.raises(ConfigError, match="leaving the only one out"):
        ablation_recipes(recipe, tmp_path / "plan", "leave_one_out")


@pytest.mark.demo_model
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("leave_one_out", 2), ("sub_samples", 1)])
def test_a_planned_recipe_runs_two_steps(recipe: Path, tmp_path: Path, kind: Kind, number: int) -> None:
    from posttrain.report.live import Display

    one = ablation_recipes(recipe, tmp_path / "plan", kind)[number]
    run = RunDir(tmp_path / "runs" / one.name)
    with Display(Console(file=io.StringIO())) as display:
        Experiment(load_recipe(one.path), run, display).execute()
    assert read_json(run.path / "sft" / "manifest.json")["result"]["steps"] == 2
    assert read_json(run.path / "evaluate" / "manifest.json")["status"] == "complete"


@pytest.mark.demo_model
@pytest.mark.slow
def test_repeated_rows_are_trained_on_as_often_as_they_count(recipe: Path, tmp_path: Path) -> None:
    from posttrain.report.live import Display

    mix = "held_out: 0.2\n    mix: {kind: mix, counts: {zh: 40}, upsample: true}"
    recipe.write_text(recipe.read_text().replace("held_out: 0.2", mix).replace("    max_steps: 2\n", ""))
    loaded = load_recipe(recipe)
    run = RunDir(tmp_path / "run")
    with Display(Console(file=io.StringIO())) as display:
        Experiment(replace(loaded, stages={k: loaded.stages[k] for k in ("prepare", "sft")}), run, display).execute()
    zh = sum(row.source == "zh" for row in read_rows(run.path / "prepare" / "rows" / "train.parquet"))
    ledger = read_json(run.path / "sft" / "ledger.json")
    assert ledger["steps"][-1]["name"] == "repeat"
    assert (ledger["steps"][-1]["rows_in"], ledger["steps"][-1]["added"]) == (64, 40 - zh)
    result = read_json(run.path / "sft" / "manifest.json")["result"]
    assert result["steps"] == -(-(64 + 40 - zh) // 2)


def test_examples_repeat_by_row() -> None:
    def example(row_id: str, part: int = 0) -> Tokens:
        return Tokens(np.zeros(1, np.int32), np.zeros(1, np.float32), row_id, part)

    examples = [example("a"), example("b", 0), example("b", 1), example("c")]
    ledger = Ledger()
    found = repeated_examples(examples, {"b": 3, "c": 2}, ledger)
    assert Counter((one.row_id, one.part) for one in found) == {("a", 0): 1, ("b", 0): 3, ("b", 1): 3, ("c", 0): 2}
    ledger.check()
    assert ledger.steps[0].added == 5
    assert repeated_examples(examples, {}, ledger) is examples
