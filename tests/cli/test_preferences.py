"""Preference recipes as a user meets them: what goes wrong is told in one message, and what is dropped is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from conftest import posttrain

Cli = Callable[..., Any]

RECIPE = """\
name: align
model: {model}
stages:
  prepare: {{kind: data, sources: [{{path: {rows}}}], held_out: 2, profile: false}}
  train:
    kind: train
    data: prepare
    objective: {objective}
    batch_size: 4
    max_steps: 2
    max_length: {length}
    dtype: fp32
"""


@pytest.fixture
def run(cli: Cli, tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """``run(rows, objective, length=256, *overrides)``: a small recipe over these records."""

    def go(rows: list[dict[str, Any]], objective: str, length: int = 256, *overrides: str) -> Any:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = tmp_path / "align.yaml"
        recipe.write_text(RECIPE.format(model=tiny_model, rows=file, objective=objective, length=length))
        return cli("run", recipe, *overrides, "--runs", tmp_path / "runs")

    return go


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Count to {k}.", "chosen": f"One to {k}.", "rejected": f"No, {k} is too far."} for k in range(count)
    ]


def judged(count: int, *labels: bool) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Count to {k}.", "completion": f"One to {k}.", "label": labels[k % len(labels)]}
        for k in range(count)
    ]


def test_bad_pairs_cost_themselves_only(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        *pairs(8),
        {"prompt": "Equal?", "chosen": "Yes.", "rejected": "Yes."},
        {"prompt": "Empty?", "chosen": "", "rejected": "No."},
        {"prompt": "Long? " + "word " * 300, "chosen": "Yes.", "rejected": "No."},
    ]
    done = run(rows, "{name: dpo}", 128)
    assert done.code == 0, done.err
    reasons: dict[str, int] = {}
    for stage in ("prepare", "train"):
        for reject in json.loads((tmp_path / "runs" / "align" / stage / "ledger.json").read_text())["rejects"]:
            reasons[reject["reason"]] = reasons.get(reject["reason"], 0) + 1
    assert reasons["equal_sides"] == 1
    assert reasons["empty_assistant_turn"] == 1
    assert reasons.get("too_long", 0) <= 1  # it may be among the two that are held out


@pytest.mark.parametrize(
    ("rows", "objective", "length", "told"),
    [
        ([{"instruction": f"Say {k}.", "output": f"{k}."} for k in range(8)], "{name: dpo}", 256, "needs pairs"),
        (pairs(8), "{name: kto}", 256, "needs feedback"),
        (pairs(8), "{name: sft}", 256, "conversations are needed"),
        (pairs(8), "{name: dpo}", 4, "all rows were dropped"),
        (judged(8, True), "{name: kto}", 256, "KTO needs both kinds"),
        (pairs(8), "{name: dpo, beta: 0}", 256, "must be a number greater than 0"),
        (pairs(8), "{name: simpo, reference: base}", 256, "unknown key"),
        (pairs(8), "{name: dpo, reference: bse}", 256, "did you mean 'base'?"),
    ],
    ids=[
        "sft-rows",
        "kto-on-pairs",
        "sft-on-pairs",
        "limit",
        "one-class",
        "beta-0",
        "simpo-reference",
        "no-such-reference",
    ],
)
def test_one_clear_error(rows: Any, objective: str, length: int, told: str, run: Callable[..., Any]) -> None:
    assert told in run(rows, objective, length).refused()


def test_an_unbalanced_kto_set_is_a_warning(run: Callable[..., Any]) -> None:
    done = run(judged(14, True, True, True, False), "{name: kto}")
    assert done.code == 0, done.err
    assert "KTO works best from 1 to 1.33" in " ".join((done.out + done.err).split())


@pytest.mark.slow
def test_a_reference_of_another_model_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run(pairs(8), "{name: dpo}").code == 0
    (kept,) = (tmp_path / "runs" / "align" / ".reference").iterdir()
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(kept, framework="np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, kept, metadata | {"reference": "another"})
    message = run(pairs(8), "{name: dpo, beta: 0.2}").refused()
    assert "those of another model" in message
    assert str(kept) in message
    assert "remove this file" in message
    kept.unlink()
    assert run(pairs(8), "{name: dpo, beta: 0.2}").code == 0


def test_a_reward_model_can_not_be_generated_from(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nmodel: m\nstages:\n"
        "  p: {kind: data, sources: [{path: a}]}\n"
        "  score: {kind: train, data: p, objective: {name: reward}}\n"
        "  judge: {kind: eval, data: p, models: [base, score]}\n"
    )
    assert "'score' is a reward model" in cli("run", recipe).refused()


def test_pairs_of_a_stage_become_judgements_prompts_or_conversations_and_what_was_held_out_stays_so(
    tmp_path: Path,
) -> None:
    pairs = [{"prompt": f"Name a thing {k}.", "chosen": f"A{k}.", "rejected": f"B{k}."} for k in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    kinds = ("feedback", "prompts", "conversations")
    stages = {"pairs": {"kind": "data", "sources": [{"path": "pairs.jsonl"}], "held_out": 3, "profile": False}}
    stages |= {k: {"kind": "data", "sources": [{"path": "pairs"}], "rows": k, "profile": False} for k in kinds}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "stages": stages}, sort_keys=False))
    done = posttrain("run", tmp_path / "r.yaml", "--runs", tmp_path / "runs")
    assert done.code == 0, done.err

    def prompts(stage: str, side: str) -> list[str]:
        rows = pl.read_parquet(tmp_path / "runs" / "r" / stage / "rows" / f"{side}.parquet")
        return [messages[0]["content"] for messages in rows["messages"].to_list()]

    for side in ("train", "held_out"):
        wanted = sorted(prompts("pairs", side))
        assert sorted(prompts("prompts", side)) == sorted(prompts("conversations", side)) == wanted
        assert sorted(prompts("feedback", side)) == sorted(wanted * 2), "each side of a pair is judged"
