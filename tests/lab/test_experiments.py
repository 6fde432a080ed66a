"""The textbook experiments: their recipes can run, and the pages say what the committed numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import experiments
import pytest

from conftest import posttrain
from posttrain.lab.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes" / "experiments").glob("*.*.yaml"))
FULL = [*(path for path in RECIPES if ".full." in path.name), *sorted((ROOT / "recipes" / "full").glob("*.yaml"))]
QWEN3_1_7B = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}


def test_there_is_a_small_and_a_full_form_of_each() -> None:
    forms = {tuple(path.name.split(".")[:2]) for path in RECIPES}
    assert forms == {(name, form) for name in ("alignment", "domain", "instruction") for form in ("small", "full")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_form_can_be_read_and_its_searches_are_of_its_own_stages(path: Path) -> None:
    recipe = load_recipe(path)
    sweeps = [stage for stage in recipe.stages.values() if stage.kind == "sweep"]
    assert sweeps
    assert recipe.name.startswith("experiment-")


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_full_forms_fit_one_gpu(path: Path, tmp_path: Path) -> None:
    model = tmp_path / "qwen3-1.7b"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(QWEN3_1_7B))
    done = posttrain("plan", path, f"model={model}", "--device", "24GB", "--json")
    assert done.code == 0, done.err
    planned = json.loads(done.out)["stages"]
    for stage in planned:
        assert stage["ways"][stage["set"]]["fits"], stage["stage"]
    trained = [name for name, stage in load_recipe(path).stages.items() if stage.kind in ("train", "online")]
    assert [stage["stage"] for stage in planned] == trained


@pytest.mark.demo_model
@pytest.mark.parametrize("path", [path for path in FULL if path.parent.name == "full"], ids=lambda path: path.name)
def test_full_forms_can_be_rehearsed(path: Path, tiny_model: Path, tmp_path: Path) -> None:
    """On a model and rows that are here in place of the hub's."""
    rows = tmp_path / "rows.jsonl"
    turns = '[{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "%s"}]'
    pair = f'"prompt": "1 + 1?", "chosen": {turns % "2"}, "rejected": {turns % "3"}'
    rows.write_text(f'{{"question": "1 + 1?", "answer": "#### 2", {pair}}}\n')
    stages = load_recipe(path).stages
    places = [f"{name}.sources.0={{path: {rows}}}" for name, stage in stages.items() if stage.kind == "data"]
    places = places or ["grpo.scores.0.task.path=" + str(rows)]
    done = posttrain("run", path, f"model={tiny_model}", *places, "--runs", tmp_path / "runs", "--dry-run")
    assert done.code == 0, done.err
    told = [line for line in done.out.splitlines() if "would run" in line]
    assert [line.split()[0] for line in told] == list(stages)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_full_forms_say_how_they_are_run(path: Path) -> None:
    words = path.read_text()
    for verb in ("plan", "run"):
        assert f"posttrain {verb} {path.relative_to(ROOT)}" in words


def test_the_pages_are_written_from_the_numbers_beside_them() -> None:
    found = experiments.write()
    folder = ROOT / "docs" / "experiments"
    committed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".md", ".svg")}
    assert set(found) == committed - {"README.md"}
    for name, text in found.items():
        assert (folder / name).read_text(encoding="utf-8") == text, name


def test_every_claim_has_its_difference() -> None:
    """A claim whose settings no sweep tried would be left out of the page silently."""
    for name, claims in experiments.CLAIMS.items():
        found = json.loads((ROOT / "docs" / "experiments" / f"{name}.json").read_text(encoding="utf-8"))["found"]
        assert [one["claim"] for one in found] == [one.text for one in claims], name


def test_a_reading_follows_from_the_interval_alone() -> None:
    def reading(low: float, high: float, sign: str) -> str:
        of = {"claim": "", "source": "", "a": "", "b": "", "metric": "", "unit": "number", "pairs": 9}
        return str(experiments.Found(**of, sign=sign, estimate=(low + high) / 2, low=low, high=high).reading)

    assert reading(0.1, 0.3, "higher") == reading(-0.3, -0.1, "lower") == "seen"
    assert reading(0.1, 0.3, "lower") == reading(-0.3, -0.1, "higher") == "not seen"
    assert reading(-0.1, 0.3, "higher") == reading(-0.1, 0.3, "lower") == "not decidable at this size"
