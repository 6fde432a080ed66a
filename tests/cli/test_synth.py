"""``posttrain synth``: what it writes is trained on, and what can't work is one error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from conftest import Outcome
from servers import Server, chat_body, name_of

Cli = Callable[..., Outcome]


def drawn(body: dict[str, Any]) -> dict[str, Any]:
    draw = random.Random(f"{name_of(body)}{body.get('seed')}")
    return chat_body(name_of(body), " ".join(f"word{draw.randint(0, 999)}" for _ in range(draw.randint(3, 30))))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me about thing {k}"}) + "\n" for k in range(12)))
    return path


@pytest.mark.slow
def test_pairs_of_a_server_are_trained_on(cli: Cli, prompts: Path, tiny_model: Path, tmp_path: Path) -> None:
    with Server(bodies=drawn) as server:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            f"""
name: made
model: {tiny_model}
stages:
  pairs:
    kind: synth
    writer: {{endpoint: "{server.url}", model: m}}
    pipeline: {{name: preferences, data: {{path: {prompts}}}, score: {{by: length}}}}
    rows_wanted: 8
    held_out: 0.25
  dpo:
    kind: train
    data: pairs
    objective: {{name: dpo}}
    adapter: {{name: lora, rank: 2}}
    max_steps: 2
    batch_size: 2
  report: {{kind: report}}
"""
        )
        done = cli("run", recipe, "--runs", tmp_path / "runs")
        assert done.code == 0, done.err
        asked = len(server.asked)
        again = cli("run", recipe, "pairs.pipeline.rejected=random", "--runs", tmp_path / "runs")
        assert again.code == 0, again.err
        assert len(server.asked) == asked, "another rule for pairs asks nothing again"
    page = (tmp_path / "runs" / "made" / "report" / "report.md").read_text(encoding="utf-8")
    assert "Synthesis: pairs" in page


def test_a_dry_run_asks_nothing(cli: Cli) -> None:
    done = cli(
        *("synth", "alpaca", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--dry-run", "--json"),
        *("--rows-wanted", 170, "--budget.prompt-price", 1, "--budget.completion-price", 2, "--budget.money", 1),
    )
    assert done.code == 0, done.err
    tables = [block for block in json.loads(done.out)["blocks"] if "rows" in block]
    assert tables[0]["rows"][0][2] == 10, "17 new tasks a request"
    assert tables[1]["rows"][1][1] == 20, "twice as many where half is kept"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("magpie", "--endpoint", "http://x/v1", "--model", "m"), "needs a local model"),
        (("magpie",), "who writes?"),
        (("evolve", "--local", "m"), "no rows"),
        (("magpie", "rows.jsonl", "--local", "m"), "reads no rows"),
        (("alpaca", "--local", "m", "--budget.money", "1"), "needs prices"),
        (("preferences", "r.jsonl", "--local", "m", "--score.by", "length", "--samples", "1"), "two replies"),
        (("preferences", "--local", "m", "--score.by", "length"), "give rows"),
        (("evolve", "no_rows.jsonl", "--local", "m", "--dry-run"), "no_rows.jsonl"),
        (("alpaca", "--local", "m", "--yardstick", "no_rows.jsonl", "--dry-run"), "no_rows.jsonl"),
    ],
)
def test_what_can_not_work_is_one_error(arguments: tuple[str, ...], problem: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("synth", *arguments, "-o", tmp_path / "out")
    assert done.code == 2
    assert problem in done.err
    assert not (tmp_path / "out").exists()


def test_a_budget_of_nothing_makes_nothing_and_says_so(cli: Cli, prompts: Path, tmp_path: Path) -> None:
    with Server(bodies=drawn) as server:
        where = ("--endpoint", server.url, "--model", "m", "-o", tmp_path / "out", "--score.by", "length")
        done = cli("synth", "preferences", prompts, *where, "--budget.requests", 0)
        assert done.code == 2
        assert "the budget was spent" in done.err
        assert not server.asked
        done = cli("synth", "preferences", prompts, *where, "--budget.requests", 10)
        assert done.code == 0, done.err
        assert len(server.asked) == 8, "two prompts with four samples each; a third would go over the budget"


def test_replies_are_scored_by_a_benchmark(cli: Cli, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    lines = [{"question": f"What is {k} + 1?", "answer": f"Add.\n#### {k + 1}"} for k in range(4)]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def solve(body: dict[str, Any]) -> dict[str, Any]:
        draw = random.Random(body["seed"]).randint(0, 3)
        return chat_body(name_of(body), f"After some thought the answer is {draw}.")

    with Server(bodies=solve) as server:
        task = f"{{name: gsm8k, path: {problems}}}"
        done = cli(
            *("synth", "preferences", "--endpoint", server.url, "--model", "m", "-o", tmp_path / "out"),
            *("--score", f"{{by: task, task: {task}}}", "--samples", 8, "--held-out", 0, "--rows-wanted", 4),
        )
    assert done.code == 0, done.err
    rows = pl.read_parquet(tmp_path / "out" / "preferences" / "rows" / "train.parquet").to_dicts()
    assert rows
    for row in rows:
        asked, chosen = (turn["content"] for turn in row["messages"])
        right = int(asked.split("What is ")[1].split(" ")[0]) + 1
        assert chosen.endswith(f"is {right}.")
        assert not row["rejected"][0]["content"].endswith(f"is {right}.")


@pytest.mark.slow
def test_a_reward_model_of_the_recipe_scores_and_the_trained_model_writes_on(
    cli: Cli, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    writer = "samples: 3, max_tokens: 12, keep_cut: true"
    adapter = "adapter: {name: lora, rank: 2}, max_steps: 2, batch_size: 2"
    recipe.write_text(
        f"""
name: rounds
model: {tiny_model}
stages:
  human: {{kind: data, sources: [{{path: dpo_en_demo, max_rows: 12}}], rows: pairs, held_out: 2}}
  reward: {{kind: train, data: human, objective: {{name: reward}}, max_length: 400, {adapter}}}
  first:
    kind: synth
    pipeline: {{name: preferences, data: {{path: {prompts}}}, score: {{by: reward, model: reward}}, {writer}}}
    rows_wanted: 8
    steps: []
  dpo: {{kind: train, data: first, objective: {{name: dpo}}, {adapter}}}
  second:
    kind: synth
    writer: {{local: dpo}}
    pipeline: {{name: preferences, data: {{path: {prompts}}}, score: {{by: reward, model: reward}}, {writer}}}
    rows_wanted: 8
    steps: []
"""
    )
    done = cli("run", recipe, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    for stage in ("first", "second"):
        facts = json.loads((tmp_path / "runs" / "rounds" / stage / "facts.json").read_text())
        assert facts["kept"] == 8
    rows = pl.read_parquet(tmp_path / "runs" / "rounds" / "first" / "rows" / "train.parquet").to_dicts()
    for row in rows:
        scores = {score["name"]: score["value"] for score in row["scores"]}
        assert scores["chosen"] > scores["rejected"]
