"""Whole recipes on families that can't be packed: SFT of all weights, LoRA, DPO, KTO, a reward model and evaluations, killed and resumed.

One state-space hybrid with experts, one with position biases. What a run hands on from stage to stage is the same for all others.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Outcome
from families import micro_folder, words_tokenizer
from forking import Commands
from posttrain.artifacts import read_json
from posttrain.model import hardware
from posttrain.tasks.records import read_record

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FAST = "dtype: fp32, device: cpu, batch_size: 4, keep: last, checkpoint_every: 1, evaluate_every: 3, micro_batch_tokens: 64"
LORA = "adapter: {name: lora, rank: 2}, learning_rate: 0.005"
RECIPE = """
name: run
model: model
stages:
  talks: {{kind: data, held_out: 6, sources: [{{path: talks.jsonl}}], profile: false}}
  pairs: {{kind: data, held_out: 4, sources: [{{path: pairs.jsonl}}], profile: false}}
  judged: {{kind: data, held_out: 4, sources: [{{path: judged.jsonl}}], profile: false}}
  full: {{kind: train, data: talks, adapter: {{name: full}}, learning_rate: 0.01, {FAST}}}
  lora: {{kind: train, data: talks, start_from: full, {LORA}, {FAST}}}
  dpo: {{kind: train, data: pairs, start_from: lora, objective: {{name: dpo}}, {LORA}, {FAST}}}
  kto: {{kind: train, data: judged, start_from: full, objective: {{name: kto}}, {LORA}, {FAST}}}
{reward}
  likelihood: {{kind: eval, data: talks, models: [base, full, lora, dpo, kto], prompts: asked.yaml, max_new_tokens: 8, resamples: 100, device: cpu}}
  preferences: {{kind: eval, data: pairs, models: [lora, dpo], prompts: null, resamples: 100, device: cpu}}
"""
TIMES = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes", "base_model_name_or_path")


def words(draw: random.Random, most: int) -> str:
    return " ".join(f"w{draw.randrange(11, 199)}" for _ in range(draw.randrange(2, most)))


def lay_out(family: str, folder: Path, reward: bool) -> Path:
    """A recipe with its model and rows; lengths lie on both sides of what the families chunk by."""
    draw = random.Random(0)
    words_tokenizer().save_pretrained(micro_folder(family, folder / "model"))
    rows: dict[str, list[dict[str, Any]]] = {
        "talks": [{"prompt": words(draw, 18), "completion": words(draw, 12)} for _ in range(22)],
        "pairs": [{"prompt": words(draw, 18), "chosen": words(draw, 9), "rejected": words(draw, 9)} for _ in range(16)],
        "judged": [{"prompt": words(draw, 18), "completion": words(draw, 9), "label": n % 2 == 0} for n in range(16)],
    }
    for name, members in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members))
    (folder / "asked.yaml").write_text(f"knowledge: [{{id: one, language: en, prompt: {words(draw, 18)}}}]")
    last = f"  reward: {{kind: train, data: pairs, start_from: lora, objective: {{name: reward}}, {LORA}, {FAST}}}"
    (folder / "recipe.yaml").write_text(RECIPE.format(FAST=FAST, LORA=LORA, reward=last if reward else ""))
    return folder / "recipe.yaml"


def killed_in(commands: Commands, recipe: Path, stage: str) -> None:
    """Start the run in a process of its own, and end it with SIGKILL when a stage has made its first step."""
    metrics = recipe.parent / "cut" / "run" / stage / "metrics.jsonl"
    process = commands.start("run", recipe, "--runs", recipe.parent / "cut")
    while process.poll() is None and not (metrics.exists() and b'"train"' in metrics.read_bytes()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def timeless(value: Any) -> Any:
    """A JSON value without times and folders."""
    if isinstance(value, dict):
        return {k: timeless(held) for k, held in value.items() if k not in TIMES}
    return [timeless(held) for held in value] if isinstance(value, list) else value


def handed_on(run: Path) -> dict[str, Any]:
    """All that a run has found out and written for others, by file; times and folders of its own left aside."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif (
            path.is_dir()
            or path.parent.name in ("run", "checkpoints", ".reference")
            or path.name in ("manifest.json", "memory.json")
        ):
            continue
        else:
            found[name] = timeless(read_json(path)) if path.suffix == ".json" else path.read_bytes()
    return found


@pytest.mark.parametrize(("family", "reward", "stage"), [("granite-hybrid", False, "full"), ("bloom", True, "dpo")])
def test_a_killed_run_of_a_family_computed_alone_ends_as_an_unbroken_one(
    family: str,
    reward: bool,
    stage: str,
    tmp_path: Path,
    cli: Callable[..., Outcome],
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "matmul_flops", lambda dtype, device: 1.0)  # no type is faster: evaluations in fp32
    recipe = lay_out(family, tmp_path, reward)
    killed_in(commands, recipe, stage)
    for runs in ("whole", "cut"):
        ended = cli("run", recipe, "--runs", tmp_path / runs)
        assert ended.code == 0, ended.err
    whole, cut = handed_on(tmp_path / "whole" / "run"), handed_on(tmp_path / "cut" / "run")
    assert [name for name in whole.keys() | cut.keys() if whole.get(name) != cut.get(name)] == []
    record = read_record(tmp_path / "whole/run/likelihood/likelihood.json")
    losses = {one.model: one.estimate for one in record.results if one.measure == "loss"}
    assert losses["full"] < losses["base"] - 0.1  # it has learned something, so a mix-up would show
    for after, before in (("lora", "full"), ("dpo", "lora"), ("kto", "full")):
        assert abs(losses[after] - losses[before]) > 1e-4
    first = next(line for line in whole["lora/metrics.jsonl"] if line["split"] == "held_out")
    assert first["loss"] == pytest.approx(losses["full"], rel=1e-4)
    record = read_record(tmp_path / "whole/run/preferences/preferences.json")
    margin = next(one.estimate for one in record.results if (one.model, one.measure) == ("dpo", "reward_margin"))
    last = [line for line in whole["dpo/metrics.jsonl"] if line["split"] == "held_out"][-1]
    assert margin * 0.1 == pytest.approx(last["rewards/margins"], rel=1e-3, abs=1e-5)
