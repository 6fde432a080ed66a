"""What local models are asked for in a run of several processes: the replies and numbers of one process, and an end for all where one has ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from conftest import tiny_llama
from posttrain.artifacts import read_json
from rank_groups import Groups, Trained, wait_for

pytestmark = pytest.mark.demo_model

RECIPE = """
name: shared
model: {folder}/model
stages:
  prepare: {{kind: data, sources: [{{path: {folder}/rows.jsonl}}], held_out: 12}}
  scored: {{kind: score, data: prepare, dtype: fp32, batch_tokens: 300}}
  evaluate:
    kind: eval
    data: prepare
    models: [base, other]
    others: {{other: {folder}/other}}
    prompts: null
    batch_tokens: 300
    resamples: 200
    slots: 3
    benchmarks:
      greedy: {{name: pairwise, path: {folder}/prompts.jsonl, max_tokens: 12}}
      drawn: {{name: diversity, path: {folder}/prompts.jsonl, samples: 3, max_tokens: 8}}
    judge: {{judges: [{{reward: {folder}/reward}}]}}
  judged:
    kind: judge
    items: {folder}/items.jsonl
    prompt: {folder}/judge.yaml
    judge: {{judges: [{{local: base}}, {{reward: {folder}/reward}}], check: false}}
    resamples: 200
  made:
    kind: synth
    rows_wanted: 30
    round_size: 10
    writer: {{local: {folder}/other}}
    steps: []
    held_out: 0
    pipeline:
      name: preferences
      data: {{path: {folder}/rows.jsonl}}
      samples: 2
      max_tokens: 8
      keep_cut: true
      score: {{by: reward, model: {folder}/reward}}
"""
LONG = """
name: long
model: {folder}/model
stages:
  evaluate:
    kind: eval
    models: [base]
    prompts: null
    slots: 3
    benchmarks: {{drawn: {{name: diversity, path: {folder}/prompts.jsonl, samples: 3, max_tokens: 60}}}}
"""
JUDGE = """
task: pair
parser: pair_logprob
prompt: "{{question}} m: {{reply_a}} M: {{reply_b}} Which?"
max_tokens: 1
"""
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def recipe(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of every kind of stage that asks local models, with its files."""
    from transformers import LlamaForSequenceClassification

    from posttrain.model.companions import copy_tokenizer

    folder = tmp_path_factory.mktemp("shared")
    for seed, name in enumerate(("model", "other")):
        tiny_llama(folder / name, demo_model, seed, initializer_range=0.2)
    reward = LlamaForSequenceClassification.from_pretrained(folder / "other", num_labels=1)
    reward.save_pretrained(folder / "reward")
    copy_tokenizer(folder / "other", folder / "reward")
    prompts = [f"Say {word} {'please ' * (place % 5)}" for place, word in enumerate(WORDS)]
    rows = [
        {"instruction": f"{prompt}, {word}", "output": f"{word} it is"}
        for prompt in prompts
        for word in ("quick", "slow", "new", "old", "small")
    ]
    lines(folder / "rows.jsonl", rows)
    lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    lines(
        folder / "items.jsonl",
        [{"id": w, "prompt": p, "reply_a": f"{w}!", "reply_b": w * 3} for p, w in zip(prompts, WORDS, strict=True)],
    )
    (folder / "judge.yaml").write_text(JUDGE)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    (folder / "long.yaml").write_text(LONG.format(folder=folder))
    return folder / "recipe.yaml"


def answers(run: Path) -> dict[str, Any]:
    """All that was asked, and what was said."""
    with contextlib.closing(sqlite3.connect(run / ".requests.sqlite")) as file:
        begun = file.execute("PRAGMA user_version").fetchone() != (0,)
        found = file.execute("SELECT request, answer FROM answers") if begun else ()
        return {request: json.loads(answer) for request, answer in found}


def numbers(value: Any) -> Any:
    """A value with all its numbers as something that equals within rounding."""
    if isinstance(value, dict):
        return {key: numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [numbers(one) for one in value]
    return pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value


def rows(path: Path) -> list[Any]:
    """The rows of a file, with the JSON in their texts read."""

    def opened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: opened(one) for key, one in value.items()}
        if isinstance(value, list):
            return [opened(one) for one in value]
        return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value

    return [opened(row) for row in pl.read_parquet(path).to_dicts()]


def test_three_processes_say_and_measure_what_one_does(recipe: Path, groups: Groups, tmp_path: Path) -> None:
    one, three = (groups.run(tmp_path / str(size), size, recipe) / "shared" for size in (1, 3))
    said = answers(one)
    assert len(said) > 100
    assert answers(three) == {request: numbers(answer) for request, answer in said.items()}
    for side in ("scored", "made"):
        assert rows(three / side / "rows" / "train.parquet") == numbers(rows(one / side / "rows" / "train.parquet"))
    for name in ("greedy", "drawn"):
        found, wanted = (read_json(run / "evaluate" / "benchmarks" / f"{name}.json") for run in (three, one))
        assert found | {"cost": 0} == numbers(wanted | {"cost": 0})
    verdicts = [(run / "judged" / "verdicts.jsonl").read_text().splitlines() for run in (three, one)]
    assert [json.loads(line) for line in verdicts[0]] == [numbers(json.loads(line)) for line in verdicts[1]]
    results = [read_json(run / "evaluate" / "manifest.json")["result"] for run in (three, one)]
    assert results[0]["loss"] == numbers(results[1]["loss"])


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_whoever_is_killed_while_replies_are_made_all_end_and_the_run_goes_on(
    victim: int, recipe: Path, groups: Groups, tmp_path: Path
) -> None:
    long, run = recipe.with_name("long.yaml"), tmp_path / "runs" / "long"
    groups.start(tmp_path, 3, "run", words=["--runs", str(run.parent), str(long)])
    wait_for(lambda: (run / ".requests.sqlite").exists() and len(answers(run)) > 2)
    pids = read_json(tmp_path / "ranks.json")
    os.kill(pids[victim], signal.SIGKILL)
    begin = time.monotonic()
    assert groups.server.status() == 0
    assert time.monotonic() - begin < 20
    cut, kept = Trained(tmp_path), answers(run)
    assert cut.codes[victim] == -signal.SIGKILL
    if victim != 0:
        assert cut.codes[0] == 2
        assert f"rank {victim} of 3 (pid {pids[victim]}) was ended in the middle of the work" in cut.said
    assert len(kept) < 36
    groups.run(tmp_path, 3, long)
    found = answers(run)
    assert len(found) == 36
    assert kept == {request: found[request] for request in kept}


def test_an_error_of_one_is_one_error(recipe: Path, groups: Groups, tmp_path: Path) -> None:
    words = ["--runs", str(tmp_path / "runs"), str(recipe.with_name("long.yaml"))]
    groups.start(tmp_path, 3, "run", words=words, broken=1)
    assert groups.server.status() == 0
    found = Trained(tmp_path)
    assert found.codes == [2, 0, 0]
    assert found.said.count("error") == 1
    assert "error: rank 1 of 3 failed: no memory\n  fix: fewer slots\n" in found.said
