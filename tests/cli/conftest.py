"""The command line as a user meets it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short instructions, half of them Chinese."""
    lines = []
    for k in range(20):
        chinese = {"instruction": f"数字{k}后面是几？", "input": "", "output": f"是{k + 1}。"}
        english = {"instruction": f"What comes after {k}?", "input": "", "output": f"It is {k + 1}."}
        lines.append(json.dumps(chinese if k % 2 else english, ensure_ascii=False))
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    path.write_text(
        "knowledge:\n"
        "  - {id: one, language: en, prompt: 'What comes after 1?', check: {kind: number_equals, expected: 2}}\n"
        "  - {id: two, language: zh, prompt: '你好'}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def recipe_text(tiny_model: Path, rows_file: Path, prompts_file: Path) -> str:
    """A whole recipe that takes a second on the tiny model."""
    return f"""
name: tiny
model: {tiny_model}
stages:
  prepare: {{kind: data, sources: [{{path: {rows_file}}}], held_out: 4}}
  sft:
    kind: train
    data: prepare
    adapter: {{name: lora, rank: 4, alpha: 8}}
    batch_size: 4
    max_steps: 3
    learning_rate: 1e-3
    dtype: fp32
    checkpoint_every: 1
  evaluate:
    {{kind: eval, data: prepare, models: [base, sft], prompts: {prompts_file}, max_new_tokens: 3, resamples: 100}}
  report: {{kind: report, title: A tiny run}}
"""


@pytest.fixture
def recipe(recipe_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(cli: Callable[..., Any], recipe_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(recipe_text, encoding="utf-8")
    done = cli("run", folder / "tiny.yaml", "--runs", folder / "runs")
    assert done.code == 0, done.err
    return folder / "runs" / "tiny"
