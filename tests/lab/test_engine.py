"""The identity of what a stage reads."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from conftest import posttrain
from posttrain.artifacts import RunDir, read_json
from posttrain.encode.template import stopped_at
from posttrain.lab.engine import CLOCK_FILE, Experiment
from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.model.lineage import model_digest
from posttrain.references import references
from posttrain.report.live import Display


def test_model_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = model_digest(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"2")
    second = model_digest(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    third = model_digest(tmp_path)
    assert len({first, second, third}) == 3
    (tmp_path / "README.md").write_text("not part of the model")
    assert model_digest(tmp_path) == third


def test_the_clock_of_a_run_is_that_of_its_first_start(tmp_path: Path) -> None:
    run = Experiment(Recipe(name="x", model="m", stages={}), RunDir(tmp_path), Display(Console()))
    with stopped_at(datetime(2024, 7, 6, 5, 4, 3)):
        first = run.clock()
    assert first == run.clock() == datetime(2024, 7, 6, 5, 4, 3)
    assert read_json(tmp_path / CLOCK_FILE) == {"now": "2024-07-06T05:04:03"}


@pytest.mark.demo_model
def test_identity_changes_with_every_file_a_recipe_reads(tiny_model: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("rows.jsonl", "test.jsonl", "chat.jinja", "prompts.yaml", "judge.gguf")}
    for path in files.values():
        path.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    for name in ("base", "other", "judge", "reward"):
        shutil.copytree(tiny_model, tmp_path / name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: x\nmodel: base\nstages:\n"
        "  prepare: {kind: data, sources: [{path: rows.jsonl}], steps: [{kind: decontaminate, benchmarks: [{name: a, path: test.jsonl}]}]}\n"
        "  sft: {kind: train, data: prepare, template: chat.jinja, objective: {name: dpo, reference: base}}\n"
        "  evaluate:\n    kind: eval\n    data: prepare\n    models: [base, sft, other]\n    others: {other: other}\n    prompts: prompts.yaml\n"
        "    template: chat.jinja\n"
        "    benchmarks: {gsm8k: {name: gsm8k, path: test.jsonl, shots: 1, examples: test.jsonl}, own: {name: pairwise}}\n"
        "    judge: {judges: [{local: judge, base: base}, {gguf: judge.gguf}, {reward: reward}, {local: sft}]}\n"
    )
    loaded = load_recipe(recipe)
    seen = set()
    for one in references(loaded):
        if (before := Experiment(loaded, RunDir(tmp_path), Display(Console()))._content(one)) is None:
            continue
        path = tmp_path / "base" if one.text == "base" else Path(one.text)
        if one.text == "builtin":
            continue  # a file of the package: its digest, which nobody changes here
        changed = path / "config.json" if path.is_dir() else path
        changed.write_text(changed.read_text() + " ")
        assert Experiment(loaded, RunDir(tmp_path), Display(Console()))._content(one) != before, one.path
        seen.add(path.name)
    assert seen == {*files, "base", "other", "judge", "reward"}


def test_a_rehearsal_tells_what_would_run_and_does_nothing(tmp_path: Path) -> None:
    rows, recipe = tmp_path / "rows.jsonl", tmp_path / "r.yaml"
    rows.write_text("".join(f'{{"instruction": "ask {n}", "output": "answer {n}"}}\n' for n in range(6)))
    recipe.write_text(
        f"name: r\nstages:\n  first: {{kind: data, sources: [{{path: {rows}}}], held_out: 1}}\n"
        "  second: {kind: data, sources: [{path: first}], held_out: 1}\n  page: {kind: report}\n"
    )

    def told(*overrides: str) -> dict[str, str]:
        done = posttrain("run", recipe, *overrides, "--runs", tmp_path / "runs", "--dry-run")
        assert done.code == 0, done.err
        return {line.split()[0]: line.split(") ")[1] for line in done.out.splitlines()}

    run = "would run"
    assert told() == {"first": run, "second": run, "page": run}
    assert not (tmp_path / "runs").exists()
    assert posttrain("run", recipe, "--runs", tmp_path / "runs").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert told() == {"first": "unchanged", "second": "unchanged", "page": run}
    assert told("second.held_out=2") == {"first": "unchanged", "second": run, "page": run}
    assert told("first.held_out=2") == {"first": run, "second": run, "page": run}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before
    assert posttrain("run", recipe, f"first.sources.0.path={rows}x", "--runs", tmp_path / "runs", "--dry-run").code == 2
