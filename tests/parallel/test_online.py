"""Learning from own replies by several processes: the replies, scores and steps of one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_llama
from posttrain.artifacts import read_json
from rank_groups import Groups, wait_for

pytestmark = pytest.mark.demo_model

RECIPE = """
name: online
model: {folder}/model
stages:
  prompts: {{kind: data, sources: [{{path: {folder}/rows.jsonl}}], rows: prompts, held_out: 5}}
  learn:
    kind: online
    data: prompts
    method: {{name: {method}}}
    scores: [{{name: length, words: 8}}]
    cut_replies: score
    steps: 7
    prompts: 4
    replies: 4
    max_new_tokens: 8
    micro_batch_tokens: 200
    learning_rate: 1e-3
    dtype: fp32
    evaluate_every: 2
"""


def records(runs: Path) -> list[dict[str, Any]]:
    """The metrics of a run, but for what a clock, the memory or the machine says."""
    own = ("second", "flops", "memory_bytes", "computed", "sampler")  # the last: rounding itself
    lines = (runs / "online" / "learn" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not any(word in k for word in own)} for line in lines]


@pytest.fixture(scope="module")
def folder(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("online")
    tiny_llama(found / "model", demo_model, initializer_range=0.2)
    rows = [{"instruction": f"Say the number {number}", "output": str(number)} for number in range(25)]
    (found / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.mark.parametrize(
    "method", ["rloo", pytest.param("ppo", marks=pytest.mark.slow), pytest.param("online_dpo", marks=pytest.mark.slow)]
)
def test_two_processes_learn_what_one_learns(method: str, folder: Path, groups: Groups, tmp_path: Path) -> None:
    """Begun by two of which one is killed, ended by three."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, method=method))
    one, out = records(groups.run(tmp_path / "one", 1, recipe)), tmp_path / "several"
    log = out / "runs" / "online" / "learn" / "metrics.jsonl"
    groups.start(out, 2, "run", words=["--runs", str(out / "runs"), str(recipe)])
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 2)
    os.kill(read_json(out / "ranks.json")[1], signal.SIGKILL)
    assert groups.server.status() == 0
    several = records(groups.run(out, 3, recipe))
    assert len(several) == len(one) == 12
    for got, wanted in zip(several, one, strict=True):
        assert got == {
            k: pytest.approx(v, rel=1e-5, abs=1e-6) if isinstance(v, float) else v for k, v in wanted.items()
        }
