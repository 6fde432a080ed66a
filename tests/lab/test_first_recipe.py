"""``posttrain new``: the recipe that is written follows the guidance, is about the user's rows, and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, DataError, ModelError, PosttrainError
from posttrain.lab.first_recipe import Wish, write_first_recipe
from posttrain.lab.planning import plan
from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.train.config import TrainSettings

pytestmark = pytest.mark.demo_model


def asked(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"What is {n} plus 1?", "input": "", "output": f"It is {n + 1}."} for n in range(count)]


def compared(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": f"No, not {n}."} for n in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str, list[dict[str, str]]], str]:
    def write(name: str, rows: list[dict[str, str]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def trained(recipe: Recipe, name: str) -> TrainSettings:
    stage = recipe.stages[name]
    assert isinstance(stage, TrainSettings)
    return stage


@pytest.mark.parametrize(
    ("method", "adapter", "rates"),
    [
        ("full", FullWeights(), (1e-5, 5e-6)),
        (None, LoraAdapter(), (2e-4, 5e-5)),
        ("qlora", LoraAdapter(quantize="nf4"), (2e-4, 5e-5)),
    ],
)
def test_rows_and_pairs_give_both_stages_with_the_advised_values(
    method: Any, adapter: Any, rates: tuple[float, float], tiny_model: Path, files: Any, tmp_path: Path
) -> None:
    rows, pairs, out = files("rows.jsonl", asked(900)), files("pairs.jsonl", compared(120)), tmp_path / "mine.yaml"
    written = write_first_recipe(Wish(model=str(tiny_model), data=(rows,), pairs=(pairs,), method=method), out)
    recipe = load_recipe(out)
    sft, dpo = trained(recipe, "sft"), trained(recipe, "dpo")
    assert (sft.adapter, sft.epochs, sft.batch_size, sft.max_length) == (adapter, 3, 16, 64)
    assert (dpo.adapter, dpo.epochs, dpo.batch_size) == (adapter, 1, 8)  # 90 pairs
    assert (sft.learning_rate, dpo.learning_rate) == rates
    assert [warning.split(":")[0] for warning in written.warnings] == ["dpo"]
    assert [getattr(recipe.stages[name], "held_out", None) for name in ("prepare", "pairs")] == [90, 30]
    assert [stage["stage"] for stage in plan(str(out), [], "24GB", tmp_path).record["stages"]] == ["sft", "dpo"]


def test_paths_are_those_of_the_recipes_folder(tiny_model: Path, files: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "new.yaml"
    write_first_recipe(Wish(model=str(tiny_model), data=(files("rows.jsonl", asked(50)),)), out)
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert Path(str(load_recipe(out).model)).resolve() == tiny_model.resolve()


def test_what_does_not_fit_is_said(tiny_model: Path, files: Any, tmp_path: Path) -> None:
    wish = Wish(model=str(tiny_model), data=(files("rows.jsonl", asked(900)),), device="0.001GB")
    (warning,) = write_first_recipe(wish, tmp_path / "new.yaml").warnings
    assert "does not fit" in warning


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data": ("none.jsonl",)}, DataError),
        ({"data": ("pairs.jsonl",)}, DataError),
        ({"pairs": ("rows.jsonl",)}, DataError),
        ({"data": ("nowhere.jsonl",)}, DataError),
        ({"data": ()}, ConfigError),
        ({"goal": "dop"}, ConfigError),
        ({"goal": "dpo"}, ConfigError),
        ({"goal": "sft", "pairs": ("pairs.jsonl",)}, ConfigError),
        ({"model": "nowhere"}, ModelError),
        ({"device": "fish"}, ConfigError),
        ({"template": Path("nowhere.jinja")}, PosttrainError),
    ],
    ids=str,
)
def test_bad_wishes_write_nothing(
    change: dict[str, Any], error: type[Exception], tiny_model: Path, files: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    files("rows.jsonl", asked(20)), files("pairs.jsonl", compared(20)), files("none.jsonl", [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        write_first_recipe(Wish(**{"model": str(tiny_model), "data": ("rows.jsonl",), **change}), Path("new.yaml"))
    assert not Path("new.yaml").exists()


def test_what_is_there_is_not_overwritten(tiny_model: Path, files: Any, tmp_path: Path, cli: Any) -> None:
    rows, out = files("rows.jsonl", asked(20)), tmp_path / "new.yaml"
    out.write_text("mine")
    done = cli("new", "-o", out, "--model", tiny_model, "--data", rows)
    assert (done.code, out.read_text()) == (2, "mine")
    assert cli("new", "-o", tmp_path / "a.yaml", "--model", tiny_model, "--data", rows, "--lora", "--full").code == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("always")  # few rows are told
@pytest.mark.parametrize("goal", ["dpo", "kto", "reward"])
def test_it_runs(goal: str, tiny_model: Path, files: Any, tmp_path: Path, cli: Any) -> None:
    rows, pairs, out = files("rows.jsonl", asked(40)), files("pairs.jsonl", compared(40)), tmp_path / "new.yaml"
    assert cli("new", "-o", out, "--model", tiny_model, "--data", rows, "--pairs", pairs, "--goal", goal).code == 0
    few = ["sft.max_steps=2", f"{goal}.max_steps=2", "evaluate.max_new_tokens=2"]
    done = cli("run", out, *few, "--runs", tmp_path / "runs")
    assert done.code == 0, done
    assert (tmp_path / "runs" / "new" / "report" / "index.html").is_file()
