"""``posttrain plan``: recipes and models, tables, JSON and a page, and what it says to nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from posttrain.cli import app
from posttrain.errors import PosttrainError

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
RECIPE = """
name: planned
model: {model}
stages:
  prepare: {{kind: data, sources: [{{path: rows.jsonl}}]}}
  sft: {{kind: train, data: prepare, max_length: 512}}
  dpo: {{kind: train, data: pairs, start_from: sft, objective: {{name: dpo}}}}
  pairs: {{kind: data, sources: [{{path: pairs.jsonl}}]}}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], terminal_width=120)


def record(*arguments: object) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_recipe_is_planned_from_its_configuration_alone(model: Path, tmp_path: Path) -> None:
    """There are no weights, no tokenizer and no rows."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model))
    found = record(recipe, "--device", "24GB", "--runs", tmp_path)
    assert [stage["stage"] for stage in found["stages"]] == ["sft", "dpo"]
    assert found["parameters"] == 1_235_814_400
    for stage in found["stages"]:
        assert stage["set"] == "lora"
        assert list(stage["ways"]) == ["full", "lora", "qlora"]
        for way in stage["ways"].values():
            assert way["memory"]["peak_bytes"] == max(sum(p.values()) for p in way["memory"]["phases"].values())


def test_changes_count(model: Path) -> None:
    short = record(model, "max_length=512", "micro_batch_tokens=512", "--device", "h100")
    long = record(model, "max_length=4096", "micro_batch_tokens=8192", "--device", "h100")
    assert short["stages"][0]["ways"]["full"]["tokens_at_once"] == 512
    assert long["stages"][0]["ways"]["full"]["tokens_at_once"] == 8192


def test_the_table_and_the_picture_are_in_the_terminal_and_on_a_page(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    done = invoke(model, "--device", "rtx4090", "--html", page)
    assert done.exit_code == 0, done.output
    for text in ("It fits", "All weights", "QLoRA", "What memory is for at the peak", "\u2588", "estimate"):
        assert text in done.output
    html = page.read_text(encoding="utf-8")
    assert "What memory is for at the peak" in html
    assert "<svg" in html


def test_what_to_change_is_said_where_it_does_not_fit(model: Path) -> None:
    done = invoke(model, "adapter={name: full}", "--device", "8GB")
    assert "It does not fit" in done.output
    assert "gradient_checkpointing: true" in done.output


@pytest.mark.parametrize(
    ("start", "adapter", "reference", "second"),
    [
        ("sft", "lora", "null", False),  # the start itself
        ("sft", "lora", "base", False),  # its adapter off
        ("sft", "full", "base", True),
        ("other", "lora", "sft", True),
        ("whole", "lora", "base", True),
        ("over", "lora", "whole", False),
    ],
)
def test_a_second_model_counts_only_where_one_is_loaded(
    start: str, adapter: str, reference: str, second: bool, model: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: planned
model: {model}
stages:
  rows: {{kind: data, sources: [{{path: rows.jsonl}}]}}
  pairs: {{kind: data, sources: [{{path: pairs.jsonl}}]}}
  sft: {{kind: train, data: rows}}
  other: {{kind: train, data: rows}}
  whole: {{kind: train, data: rows, adapter: {{name: full}}}}
  over: {{kind: train, data: rows, start_from: whole}}
  dpo: {{kind: train, data: pairs, start_from: {start}, adapter: {{name: {adapter}}}, objective: {{name: dpo, reference: {reference}}}}}
"""
    )
    dpo = record(recipe, "--device", "h100")["stages"][-1]
    assert ("reference" in dpo["ways"][adapter]["memory"]["phases"]) == second


def test_lengths_of_an_earlier_run_count(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model))
    kind = {
        "values": [50, 100, 150],
        "count": 3,
        "p50": 100,
        "p90": 150,
        "p95": 150,
        "max": 150,
        "share_over_limit": 0.0,
    }
    (tmp_path / "planned" / "sft").mkdir(parents=True)
    lengths = {"limit": 512, "conversation": kind, "assistant": kind}
    (tmp_path / "planned" / "sft" / "lengths.json").write_text(json.dumps(lengths))
    sft, dpo = record(recipe, "--device", "24GB", "--runs", tmp_path)["stages"]
    assert "100 tokens on average" in sft["notes"][0]
    assert sft["ways"]["lora"]["longest_sequence"] > 512
    assert "worst case" in dpo["notes"][0]


BAD = {
    "device": (["{model}", "--device", "rtx4900"], "did you mean 'rtx4090'"),
    "model": (["nothing"], "no such model"),
    "recipe": (["{recipe}"], "trains no model"),
    "field": (["{broken}"], "config.json has no hidden_size"),
    "type": (["{mamba}"], "can't count a model of the type 'mamba'"),
    "empty": (["{empty}"], "no config.json here"),
    "setting": (["{model}", "max_lenght=3"], "max_length"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_t_be_planned_is_one_error(case: str, model: Path, tmp_path: Path) -> None:
    folders = {"model": model, "recipe": tmp_path / "recipe.yaml", "empty": tmp_path / "empty"}
    folders["empty"].mkdir()
    folders["recipe"].write_text("name: x\nstages: {p: {kind: data, sources: [{path: rows.jsonl}]}}\n")
    lost = {key: value for key, value in CONFIG.items() if key != "hidden_size"}
    for name, config in {"broken": lost, "mamba": {**CONFIG, "model_type": "mamba"}}.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps(config))
    arguments, message = BAD[case]
    done = invoke(*(argument.format(**folders) for argument in arguments))
    assert isinstance(done.exception, PosttrainError)
    assert message in str(done.exception)


def test_a_hub_name_without_a_connection_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries five times
    done = invoke("some-owner/some-model-that-is-not-here", "--device", "24GB")
    assert isinstance(done.exception, PosttrainError)
    assert "can't reach the hub" in str(done.exception)
