"""A realistic run folder, written by code according to docs/run-folder.md, with hostile and Chinese replies in it."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from posttrain.artifacts import Ledger, MetricsLog, RunDir, write_json, write_text
from posttrain.generate.cost import Totals
from posttrain.generate.engine import Failure, Fingerprint, Sampling, Usage
from posttrain.judge.bias import bias_report
from posttrain.judge.config import Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Ask, Judgment, outcome_of
from posttrain.judge.pool import JudgeEntry, JudgeRecord, calls_of
from posttrain.judge.verdicts import Missing, Verdict
from posttrain.judge.win_rates import POINTS, PairOutcome, win_rates
from posttrain.model.score import Scores
from posttrain.stats.intervals import IntervalSettings
from posttrain.stats.ratings import Comparison, bradley_terry, gather, win_matrix
from posttrain.tasks.base import Answer, Findings, Task, Value
from posttrain.tasks.checks import Check
from posttrain.tasks.held_out.feedback import feedback_record, feedback_rows
from posttrain.tasks.held_out.likelihood import likelihood_record, likelihood_rows
from posttrain.tasks.held_out.preferences import PairScores, preference_record, preference_rows
from posttrain.tasks.measuring import findings_of, reply_rows, task_record
from posttrain.tasks.prompts import FixedPrompts
from posttrain.tasks.records import (
    Account,
    Cost,
    LengthControlled,
    LengthControlledRow,
    Measure,
    Ratings,
    Remark,
    Result,
    Source,
    TaskRecord,
    write_record,
)
from posttrain.types import Origin

RECIPE = """\
name: quickstart
seed: 7
model: smollm2-135m-instruct
stages:
  prepare:
    kind: data
    sources:
      - {path: alpaca_en_demo, max_rows: 999}
      - {path: alpaca_zh_demo, max_rows: 1000}
    held_out: 99
  sft:
    kind: train
    data: prepare
    learning_rate: 0.0002
  evaluate:
    kind: eval
    data: prepare
    models: [base, sft]
  report:
    kind: report
"""

PROVENANCE = {
    "versions": {
        "python": "3.11.9",
        "posttrain": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "peft": "0.19.1",
    },
    "git_commit": "3f1c9ad0e5b7c2d4f6a8b0c1d2e3f4a5b6c7d8e9",
    "git_dirty": False,
    "platform": "Linux-6.8-x86_64",
    "cpu_count": 2,
}

START = 1_793_700_000.0

ATTACK = '<img src="http://evil.example/x.png" onerror="alert(1)"><script>alert("pwned")</script> & </pre> ```'

# (class, language, prompt, reply of base, reply of sft, expected or None, base passes, sft passes)
PROMPTS: list[tuple[str, str, str, str, str, str | None, bool, bool]] = [
    ("knowledge", "en", "What is the capital of Australia?", "The capital of Australia is Sydney, which is the largest city of the country and home to the Opera House.", "The capital of Australia is Canberra.", "Canberra", False, True),
    ("knowledge", "en", "Which planet is closest to the Sun?", "Mercury is the closest planet to the Sun.", "Mercury.", "Mercury", True, True),
    ("knowledge", "en", "Name the author of Pride and Prejudice.", "Pride and Prejudice was written by Jane Austen.", "Jane Austen wrote Pride and Prejudice.", "Austen", True, True),
    ("knowledge", "en", "Describe what a web browser does with HTML.", ATTACK, "It parses the <b>HTML</b> into a tree and paints it.", None, False, False),
    ("knowledge", "zh", "水的化学式是什么？", "水的化学式是H2O，由两个氢原子和一个氧原子组成。", "水的化学式是 H2O。", "H2O", True, True),
    ("knowledge", "zh", "中国的首都是哪座城市？", "中国的首都是上海。", "中国的首都是北京。", "北京", False, True),
    ("knowledge", "zh", "请简要介绍《红楼梦》的作者。", "《红楼梦》是一本书。", "《红楼梦》的作者是清代小说家曹雪芹。他出身于一个富裕的家庭，后来家道中落，“披阅十载，增删五次”，写成了这部小说。", None, False, False),
    ("rewriting", "en", "Rewrite in the passive voice: The cat chased the mouse.", "The mouse was chased by the cat.", "The mouse was chased by the cat.", "was chased", True, True),
    ("rewriting", "en", "Make this sentence formal: gonna need that report asap!!", "I'm going to need that report as soon as possible!!\n\nHere are some other ways to say it:\n1. I need the report.\n2. The report is needed.\n3. Please send the report.\n4. Can you send", "I would appreciate receiving the report at your earliest convenience.", None, False, False),
    ("rewriting", "en", "Write in upper case only: good morning", "Good Morning", "GOOD MORNING", "GOOD MORNING", False, True),
    ("rewriting", "zh", "把下面的句子改成疑问句：他明天去上海。", "他明天去上海。", "他明天去上海吗？", "吗", False, True),
    ("rewriting", "zh", "请把这句话改得更礼貌：把窗户关上。", "", "请您帮忙把窗户关上，好吗？谢谢。", None, False, False),
    ("rewriting", "zh", "用四个字概括：下了很大的雨。", "大雨倾盆", "倾盆大雨，路上的行人都没有带伞。", "四个字", True, False),
    ("reasoning", "en", "A train travels 60 km in 45 minutes. What is its speed in km/h? Think step by step.", "To find the speed we divide 60 by 45, which is 1.33. So the speed is 1.33 km/h.", "45 minutes is 0.75 hours. 60 / 0.75 = 80. The speed is 80 km/h.", "80", False, True),
    ("reasoning", "en", "Tom has 3 boxes with 4 apples each and eats 2 apples. How many are left? Think step by step.", "3 * 4 = 12. 12 - 2 = 10. There are 10 apples left.", "3 boxes of 4 apples are 12 apples. 12 - 2 = 10.", "10", True, True),
    ("reasoning", "en", "Why is the sky blue? Explain step by step.", "The sky is blue because of the scattering of light. " * 6, "Sunlight holds all colours. Air scatters short waves more. So blue light reaches us from everywhere.", None, False, False),
    ("reasoning", "zh", "小明有12个苹果，给了小红5个，又买了8个，现在有几个？请一步一步思考。", "小明有12个苹果，给了小红5个，还有6个。又买了8个，现在有14个。", "12 - 5 = 7，7 + 8 = 16。所以小明现在有16个苹果。", "15", False, False),
    ("reasoning", "zh", "一个长方形长8米、宽5米，面积是多少？请一步一步思考。", "面积是 8 × 5 = 40 平方米。", "长方形的面积等于长乘以宽：8 × 5 = 40（平方米）。", "40", True, True),
]  # fmt: skip

# Of the 13 checked prompts above: 6 right under both, 5 gained, 1 lost, 1 wrong under both.
RIGHT = {"base": 7, "sft": 11}


def write_run(path: Path) -> RunDir:
    """Write a complete run with the stages prepare, sft and evaluate; everything in it is deterministic."""
    run = RunDir(path)
    write_text(path / "recipe.yaml", RECIPE)
    _prepare(run)
    _sft(run)
    _evaluate(run)
    return run


def _manifest(kind: str, offset: float, seconds: float, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "status": "complete",
        "config": {"kind": kind, **config},
        "digest": f"{kind:0<8}".encode().hex() * 4,
        "inputs": {},
        "started": START + offset,
        "finished": START + offset + seconds,
        "seconds": seconds,
        "peak_memory_bytes": 900_000_000,
        "device": "cpu",
        "dtype": None,
        "provenance": PROVENANCE,
        "error": None,
        **more,
    }


def _prepare(run: RunDir) -> None:
    stage = run.stage("prepare")
    ledger = Ledger()
    read = ledger.step("read", rows_in=1999)
    for line in range(3):
        ledger.drop(read, Origin("alpaca_zh_demo.json", 41 + 100 * line), "no assistant turn", "output is null")
    ledger.drop(read, Origin("alpaca_en_demo.json", 17), "not JSON", "Expecting ',' <delimiter>: column 12")
    read.rows_out = 1995
    exact = ledger.step("exact duplicates", rows_in=1995)
    for line in range(14):
        ledger.drop(exact, Origin("alpaca_en_demo.json", 200 + 7 * line), "exact duplicate", "same as an earlier row")
    exact.rows_out = 1981
    split = ledger.step("split", rows_in=1981)
    split.rows_out = 1981
    split.notes["held out"] = 99
    ledger.write(stage.file("ledger.json"))
    config = {"sources": [{"path": "alpaca_en_demo"}, {"path": "alpaca_zh_demo"}], "held_out": 99}
    result = {"train_rows": 1882, "held_out_rows": 99, "sources": {"alpaca_en_demo": 984, "alpaca_zh_demo": 997}}
    stage.write_manifest(_manifest("data", 0, 2.4, config, result=result))


def _lengths(values: np.ndarray, limit: int) -> dict[str, Any]:
    p50, p90, p95 = (float(v) for v in np.quantile(values, [0.5, 0.9, 0.95]))
    return {
        "values": values.tolist(),
        "count": len(values),
        "p50": p50,
        "p90": p90,
        "p95": p95,
        "max": int(values.max()),
        "share_over_limit": float((values > limit).mean()),
    }


def _sft(run: RunDir) -> None:
    stage, random, steps, limit = run.stage("sft"), np.random.default_rng(7), 118, 512
    assistant = np.round(np.exp(random.normal(4.3, 0.8, 1882))).astype(int) + 2
    conversation = assistant + np.round(np.exp(random.normal(3.3, 0.5, 1882))).astype(int) + 30
    write_json(
        stage.file("lengths.json"),
        {"limit": limit, "conversation": _lengths(conversation, limit), "assistant": _lengths(assistant, limit)},
    )
    over = int((conversation > limit).sum())
    ledger = Ledger()
    encode = ledger.step("encode", rows_in=1882)
    for line in range(over):
        ledger.drop(encode, Origin("alpaca_en_demo.json", 3 + line), "longer than max_length", f"{520 + line} tokens")
    encode.rows_out = 1882 - over
    ledger.write(stage.file("ledger.json"))
    log, held_out, seconds = MetricsLog(stage.file("metrics.jsonl")), [], 0.0
    for step in range(steps + 1):
        decay = math.exp(-step / 25)
        if step:
            tokens = int(random.integers(1500, 2600))
            speed = 620 + float(random.normal(0, 25)) - (180 if step == 1 else 0)
            seconds += tokens / speed
            warm = min(1.0, step / 6)
            log.write(
                split="train",
                step=step,
                epoch=step * 16 / 1882,
                loss=1.83 + 0.36 * decay + float(random.normal(0, 0.11)),
                grad_norm=0.45 + 0.9 * decay + abs(float(random.normal(0, 0.12))),
                learning_rate=2e-4 * warm * 0.5 * (1 + math.cos(math.pi * max(0, step - 6) / (steps - 6))),
                tokens=tokens,
                supervised_tokens=int(tokens * 0.62),
                tokens_per_second=speed,
                memory_bytes=2_900_000_000,
                seconds=seconds,
            )
        if step % 12 == 0 or step == steps:
            held_out.append((step, 1.826 + 0.236 * decay + max(0, step - 96) * 0.0004))
            log.write(split="held_out", step=step, loss=held_out[-1][1], supervised_tokens=9321, rows=99)
    log.close()
    best = min(held_out, key=lambda pair: pair[1])
    config = {
        "data": "prepare",
        "start_from": "base",
        "objective": {"name": "sft"},
        "adapter": {"name": "lora", "rank": 16, "alpha": 32.0, "targets": "all-linear"},
        "batch_size": 16,
        "learning_rate": 2e-4,
        "schedule": "cosine",
        "max_length": limit,
        "max_grad_norm": 1.0,
        "keep": "best",
    }
    result = {
        "steps": steps,
        "epochs": 1.0,
        "tokens": 241_380,
        "supervised_tokens": 149_655,
        "tokens_per_second": 621.4,
        "training_seconds": 388.6,
        "first_loss": 2.19,
        "last_loss": 1.84,
        "best_step": best[0],
        "best_held_out_loss": best[1],
        "stopped_early": False,
        "trainable_parameters": 4_884_480,
        "total_parameters": 139_399_488,
        "peak_memory_bytes": 3_120_000_000,
        "matmul_share": 0.47,
    }
    stage.write_manifest(
        _manifest("train", 3, 402.0, config, result=result, dtype="bf16", peak_memory_bytes=3_120_000_000)
    )


def _evaluate(run: RunDir) -> None:
    stage, random = run.stage("evaluate"), np.random.default_rng(11)
    ledger = Ledger()
    encode = ledger.step("encode held-out rows", rows_in=99)
    ledger.drop(encode, Origin("alpaca_en_demo.json", 901), "longer than max_length", "733 tokens")
    encode.rows_out = 98
    ledger.write(stage.file("ledger.json"))
    nll: dict[str, list[float]] = {"base": [], "sft": []}
    tokens = [int(random.integers(20, 180)) for _ in range(98)]
    for count in tokens:
        base = float(np.clip(random.normal(2.06, 0.5), 0.4, 4)) * count
        nll["base"].append(base)
        nll["sft"].append(base + float(random.normal(-0.236, 0.2)) * count)
    scores = {name: Scores(np.array(own), np.array(tokens, np.float64)) for name, own in nll.items()}
    examples = [SimpleNamespace(row_id=f"{index:016x}") for index in range(98)]
    likelihood = likelihood_record(scores, settings=IntervalSettings(resamples=2000))
    write_record(stage.path, likelihood, likelihood_rows(scores, examples))  # type: ignore[arg-type]
    tasks, answers = [], {"base": [], "sft": []}
    for index, (kind, language, prompt, base_reply, sft_reply, expected, *_) in enumerate(PROMPTS):
        check = None if expected is None else Check(kind="contains_any", expected=(expected,))
        name = f"{kind}-{language}-{index}"
        tasks.append(Task(name, (prompt,), Sampling(), category=kind, language=language, expected=check))
        for model, reply in (("base", base_reply), ("sft", sft_reply)):
            cut = len(reply) > 150 and language == "en"
            usage = (Usage(20, 96 if cut else len(reply) // 3),)
            answers[model].append(Answer(tasks[-1], 0, (reply,), ("length" if cut else "stop",), usage))
    prompts = FixedPrompts(path="builtin", max_tokens=96)
    findings, settings = findings_of(prompts, answers, None, SETTINGS), IntervalSettings(resamples=2000)
    record = task_record(prompts, "prompts", Source("builtin", None, len(tasks)), findings, answers, settings)
    write_record(stage.path, record, reply_rows(answers, findings))
    config = {"data": "prepare", "models": ["base", "sft"], "prompts": "builtin", "max_new_tokens": 96}
    stage.write_manifest(_manifest("eval", 410, 96.0, config, result={"loss": {}, "accuracy": {}}, dtype="bf16"))


# ---- preferences ---------------------------------------------------------------------------------------------------

DPO = {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0, "robust": False, "sft_weight": 0.0, "reference": None}
SIMPO = {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5, "sft_weight": 0.0}
KTO = {"name": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "reference": "base"}
REWARD = {"name": "reward", "use_margin": False, "centering": 0.0}
SFT_LOGPS = {"chosen": -214.2, "rejected": -198.6}
"""Mean log-probability of both replies under the weights a preference stage starts from."""


def add_pairs(run: RunDir) -> None:
    """Add the data stage ``pairs``: 300 rows, 30 held out."""
    ledger = Ledger()
    read = ledger.step("read", rows_in=300)
    read.rows_out = 300
    split = ledger.step("split", rows_in=300)
    split.rows_out = 300
    split.notes["held out"] = 30
    ledger.write(run.stage("pairs").file("ledger.json"))
    result = {"train_rows": 270, "held_out_rows": 30, "sources": {"dpo_en_demo": 300}}
    config = {"sources": [{"path": "dpo_en_demo"}], "rows": "auto", "held_out": 30}
    run.stage("pairs").write_manifest(_manifest("data", 500, 1.1, config, result=result))
    declare(run, "pairs", {"kind": "data", **config})


def declare(run: RunDir, name: str, stage: dict[str, Any]) -> None:
    """Add a stage to the recipe, in front of the report."""
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text(encoding="utf-8"))
    report = recipe["stages"].pop("report")
    recipe["stages"] |= {name: stage, "report": report}
    write_text(run.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def _rewards(objective: dict[str, Any], gain: float, noise: float) -> dict[str, float]:
    """What an objective logs once the chosen reply has gained ``gain`` nats on the rejected one (both fall)."""
    name, scale = objective["name"], objective.get("beta", 1.0)
    chosen, rejected = SFT_LOGPS["chosen"] - 0.4 * gain, SFT_LOGPS["rejected"] - 1.4 * gain
    rewards = [scale * (chosen - SFT_LOGPS["chosen"]), scale * (rejected - SFT_LOGPS["rejected"])]
    if name == "simpo":
        rewards = [scale * chosen / 150, scale * rejected / 135]
        noise /= 100
    margin = rewards[0] - rewards[1] + scale * noise
    found = {"rewards/chosen": rewards[0] + scale * noise, "rewards/rejected": rewards[1]}
    if name != "kto":
        share = 0.5 if gain == 0 else 0.5 + 0.3 * math.tanh(gain / 4) + 0.05 * noise
        found |= {"rewards/margins": margin, "rewards/accuracies": min(1.0, max(0.0, share))}
    if name != "reward":
        found |= {"logps/chosen": chosen + 30 * noise, "logps/rejected": rejected + 30 * noise}
    if name in ("dpo", "ipo", "hinge", "kto"):
        found["kl"] = 0.0007 * gain**2
    loss = {"simpo": lambda m: math.log1p(math.exp(0.5 * scale - m)), "kto": lambda m: 0.5 - 0.06 * gain / 4}
    return {"loss": loss.get(name, lambda m: math.log1p(math.exp(-m)))(margin), **found}


def add_preference_stage(run: RunDir, name: str, objective: dict[str, Any], start: str = "sft", **config: Any) -> None:
    """Add a train stage of 17 steps over the pairs (54 for KTO) with all its files."""
    stage, random, steps, gain = run.stage(name), np.random.default_rng(len(name)), 17, config.pop("gain", 6.0)
    kto = objective["name"] == "kto"
    sides = ("desirable", "undesirable") if kto else ("chosen", "rejected")
    values = [np.round(np.exp(random.normal(centre, 0.5, 270))).astype(int) for centre in (5.2, 4.9)]
    replies = dict(zip(sides, (_lengths(v, 1024) for v in values), strict=True))
    together = np.concatenate(values)
    record = {"limit": 1024, "conversation": _lengths(together + 60, 1024), "assistant": _lengths(together, 1024)}
    write_json(stage.file("lengths.json"), {**record, **replies})
    ledger, rows = Ledger(), 540 if kto else 270
    encode = ledger.step("encode", rows_in=rows)
    dropped = {"equal_tokens": 1, "too_long": 3, "prompt_differs": 1}
    for line, reason in enumerate(reason for reason, number in dropped.items() for _ in range(number)):
        ledger.drop(encode, Origin("dpo_en_demo.json", line), reason)
    encode.rows_out = rows - 5
    ledger.write(stage.file("ledger.json"))
    log, seconds = MetricsLog(stage.file("metrics.jsonl")), 0.0
    for step in range(steps + 1):
        reached = gain * (1 - math.exp(-step / 9))
        if step:
            seconds += 9.5
            found = _rewards(objective, reached, float(random.normal(0, 0.4)))
            rate = 5e-6 * min(1.0, step / 2) * 0.5 * (1 + math.cos(math.pi * step / steps))
            log.write(
                split="train", step=step, epoch=step / steps, **found, grad_norm=2.1 + abs(float(random.normal(0, 0.3))),
                learning_rate=rate, tokens=5800, computed_tokens=4900, supervised_tokens=4700,
                tokens_per_second=5800 / 9.5 + float(random.normal(0, 9)), memory_bytes=3_300_000_000, seconds=seconds,
                **{"lengths/chosen": 190.2, "lengths/rejected": 160.4},
            )  # fmt: skip
        if step % 2 == 0 or step == steps:
            log.write(split="held_out", step=step, **_rewards(objective, 0.8 * reached, 0.0), rows=30, seconds=seconds)
    log.close()
    full = {
        "data": "pairs", "start_from": start, "objective": objective, "batch_size": 16, "learning_rate": None,
        "adapter": {"name": "lora", "rank": 16}, "max_length": 1024, "max_grad_norm": 1.0, "keep": "last", **config,
    }  # fmt: skip
    result = {
        "steps": steps, "epochs": 1.0, "tokens": 98_600, "supervised_tokens": 79_900, "tokens_per_second": 611.5,
        "training_seconds": 161.5, "first_loss": 0.70, "last_loss": 0.55, "best_step": steps,
        "best_held_out_loss": 0.56, "stopped_early": False, "trainable_parameters": 4_884_480,
        "total_parameters": 139_399_488, "peak_memory_bytes": 3_480_000_000, "matmul_share": 0.41,
    }  # fmt: skip
    started = 510 + 200 * len(list(run.path.glob("*/manifest.json")))
    stage.write_manifest(
        _manifest("train", started, 188.0, full, result=result, dtype="bf16", peak_memory_bytes=3_480_000_000)
    )
    declare(run, name, {"kind": "train", **full})


def add_preference_eval(run: RunDir, gains: dict[str, float], name: str = "prefer", replies: bool = False) -> None:
    """Add an eval stage over 30 pairs. ``gains``: model -> mean nats the chosen reply gained; the first is the reference."""
    stage, random = run.stage(name), np.random.default_rng(5)
    pairs = [SimpleNamespace(row_id=f"{index:016x}") for index in range(30)]
    own = [random.normal(-1.4, 0.6, (int(n),)) for n in random.integers(60, 300, 60)]
    luck = random.normal(0, 1, 30)
    scores = {}
    for model, gain in gains.items():
        shifts = (
            [(gain + 3.0 * abs(gain) ** 0.5 * z) * share for z in luck for share in (-0.4, -1.4)] if gain else [0] * 60
        )
        arrays = [(part + shift / len(part)).astype(np.float32) for part, shift in zip(own, shifts, strict=True)]
        scores[model] = PairScores(arrays[0::2], arrays[1::2])
    reference = next(iter(gains))
    record = preference_record(scores, reference, settings=IntervalSettings(confidence=0.95, resamples=2000, seed=7))
    write_record(stage.path, record, preference_rows(scores, pairs))  # type: ignore[arg-type]
    ledger = Ledger()
    ledger.step("encode held-out rows", rows_in=30).rows_out = 30
    ledger.write(stage.file("ledger.json"))
    if replies:
        tasks = [Task(f"p{index}", ("Why?",), Sampling(), category="knowledge", language="en") for index in range(4)]
        answers = {
            model: [
                Answer(
                    task,
                    0,
                    ("Because. " * (n + 1),),
                    ("length" if n == 3 else "stop",),
                    (Usage(9, 20 + 10 * n + place),),
                )
                for n, task in enumerate(tasks)
            ]
            for place, model in enumerate(gains)
        }
        prompts = FixedPrompts(path="builtin", max_tokens=96)
        findings = findings_of(prompts, answers, None, SETTINGS)
        asked = task_record(prompts, "prompts", Source("builtin", None, 4), findings, answers, SETTINGS)
        write_record(stage.path, asked, reply_rows(answers, findings))
    config = {"data": "pairs", "models": [*gains], "reference": None, "prompts": "builtin" if replies else None}
    started = 1000 + 200 * len(list(run.path.glob("*/manifest.json")))
    stage.write_manifest(_manifest("eval", started, 41.0, config, result={"reward_accuracy": {}}, dtype="bf16"))
    declare(run, name, {"kind": "eval", **config})


def add_feedback_eval(run: RunDir, gain: float, name: str = "labels") -> TaskRecord:
    """Add an eval stage over 40 judged replies: the trained model gains ``gain`` nats on good ones and loses as much on bad ones."""
    random, labels = np.random.default_rng(0), [index % 2 == 0 for index in range(40)]
    base = [random.normal(-2, 0.5, 6).astype(np.float32) for _ in labels]
    moved = [
        (own + (gain if good else -gain) / 6 + random.normal(0, 0.2, 6)).astype(np.float32)
        for own, good in zip(base, labels, strict=True)
    ]
    record = feedback_record(
        {"base": base, "sft": moved}, labels, "base", settings=IntervalSettings(confidence=0.95, resamples=500, seed=0)
    )
    stage = run.stage(name)
    units = [SimpleNamespace(row_id=f"{n:016x}", desirable=good) for n, good in enumerate(labels)]
    write_record(stage.path, record, feedback_rows({"base": base, "sft": moved}, units))  # type: ignore[arg-type]
    ledger = Ledger()
    ledger.step("encode held-out rows", rows_in=40).rows_out = 40
    ledger.write(stage.file("ledger.json"))
    config = {"data": "pairs", "models": ["base", "sft"], "reference": None, "prompts": None}
    started = 1000 + 200 * len(list(run.path.glob("*/manifest.json")))
    stage.write_manifest(_manifest("eval", started, 12.0, config, result={"roc_area": {}}, dtype="bf16"))
    declare(run, name, {"kind": "eval", **config})
    return record


@pytest.fixture(scope="session")
def pristine_preferences(pristine: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """SFT, then DPO; an eval over conversations of three models, and one over pairs of two."""
    run = RunDir(tmp_path_factory.mktemp("preferences") / "quickstart")
    shutil.copytree(pristine.path, run.path)
    add_pairs(run)
    add_preference_stage(run, "dpo", DPO)
    add_preference_eval(run, {"sft": 0.0, "dpo": 5.0})
    return run


@pytest.fixture
def preference_run(pristine_preferences: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the run with SFT and DPO for one test."""
    return RunDir(Path(shutil.copytree(pristine_preferences.path, tmp_path / "preferences")))


@pytest.fixture
def two_objectives(run: RunDir) -> RunDir:
    """SFT, then DPO and SimPO from it on the same pairs, compared on pairs and by their replies."""
    add_pairs(run)
    add_preference_stage(run, "dpo", DPO)
    add_preference_stage(run, "simpo", SIMPO, gain=3.0)
    add_preference_eval(run, {"sft": 0.0, "dpo": 5.0, "simpo": 2.0}, replies=True)
    return run


@pytest.fixture
def preference_stage() -> Callable[..., None]:
    """Add a train stage that learns from preferences: (run, name, objective, start="sft", gain=..., **config)."""
    return add_preference_stage


@pytest.fixture
def feedback_eval() -> Callable[..., dict[str, Any]]:
    return add_feedback_eval


@pytest.fixture
def preference_eval() -> Callable[..., None]:
    """Add an eval stage over pairs: (run, {model: nats the chosen reply gained}, name="prefer", replies=False)."""
    return add_preference_eval


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A complete run, written once."""
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture
def run(pristine: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the complete run for one test."""
    return RunDir(Path(shutil.copytree(pristine.path, tmp_path / "quickstart")))


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[Any], None]], None]:
    """Change one JSON artefact in place."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        change(value)
        write_json(path, value)

    return edit


# ---- benchmarks ----------------------------------------------------------------------------------------------------

CONTENDERS = ("base", "sft", "dpo", "simpo")
GAINS = {"base": 0.0, "sft": 0.6, "dpo": 1.4, "simpo": 0.9}
"""How much better than base a model is, in logits or points of a rating."""
SETTINGS = IntervalSettings(resamples=400, seed=3)
HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)> </article></section> ``` | **bold**'


def _quality(model: str, task: str, draw: int = 0) -> float:
    """A standard normal number that belongs to a model and a task: the same in every run."""
    return float(np.random.default_rng([sum(map(ord, model)), sum(map(ord, task)), len(task), draw]).normal())


def _answers(
    tasks: Sequence[Task], models: Sequence[str] = CONTENDERS, failing: frozenset[tuple[str, str]] = frozenset()
) -> dict[str, list[Answer]]:
    """A reply a turn and sample. Those in ``failing`` (model, task id) have none."""
    found: dict[str, list[Answer]] = {}
    for model in models:
        for task in tasks:
            for sample in range(task.samples):
                words = 12 + int(6 * GAINS[model]) + int(4 * abs(_quality(model, task.id, sample)))
                text = (
                    HOSTILE
                    if (model, task.id) == ("sft", tasks[0].id)
                    else f"{model} says {sample}: " + "word " * words
                )
                replies = () if (model, task.id) in failing else (text,) * len(task.turns)
                found.setdefault(model, []).append(
                    Answer(
                        task, sample, replies, ("length" if words > 24 else "stop",) * len(replies),
                        (Usage(40, words),) * len(replies),
                        Failure("timeout", "no reply within 60 s", 3) if not replies else None,
                    )
                )  # fmt: skip
    return found


def _counts(answers: Sequence[Answer], measured: set[str], reason: str) -> Account:
    dropped = ["timeout" if a.failure else reason for a in answers if a.task.id not in measured]
    return Account(len(answers), sum(a.complete for a in answers), len(answers) - len(dropped), dict(Counter(dropped)))


def write_benchmark(
    run: RunDir, key: str, name: str, title: str, area: str, measures: Sequence[Measure], findings: Findings,
    answers: dict[str, list[Answer]], judge: JudgeRecord | None = None, stage: str = "benchmarks",
) -> None:  # fmt: skip
    """Write both files of a benchmark, as an eval stage does."""
    tasks = {answer.task.id for found in answers.values() for answer in found}
    benchmark = SimpleNamespace(name=name, title=title, area=area, measures=tuple(measures))
    source = Source(f"prompts/{key}.jsonl", "ab" * 32, len(tasks))
    record = task_record(
        benchmark, key, source, findings, answers, SETTINGS,  # type: ignore[arg-type]
        config={"name": name, "path": f"prompts/{key}.jsonl"},
        cost={m: Cost(40 * len(a), 20 * len(a), 3.5) for m, a in answers.items()},
        judge=judge,
    )  # fmt: skip
    write_record(run.stage(stage).path / "benchmarks", record, reply_rows(answers, findings))


def _tasks(key: str, count: int, categories: Sequence[str | None], turns: int = 1, samples: int = 1) -> list[Task]:
    return [
        Task(
            f"{key}-{place}",
            tuple(f"{key} question {place}, turn {turn + 1}?" for turn in range(turns)),
            Sampling(max_tokens=64),
            samples=samples,
            category=categories[place % len(categories)],
            language="zh" if place % 5 == 4 else "en",
        )
        for place in range(count)
    ]


def _yes_no(
    run: RunDir, key: str, name: str, title: str, area: str, sides: Sequence[tuple[Measure, Sequence[Task], float]],
    notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """A benchmark of plain shares: every task of a side is passed or not. The last number is the logit of base."""
    tasks = [task for _, own, _ in sides for task in own]
    answers = _answers(tasks, failing=frozenset({("simpo", tasks[1].id)}))
    values, shown, numbers = [], {}, {}
    for measure, own, logit in sides:
        direction = -1.0 if measure.better == "lower" else 1.0
        for model in CONTENDERS:
            for task in own:
                if (model, task.id) == ("simpo", tasks[1].id):
                    continue
                passed = float(logit + direction * 1.3 * GAINS[model] + _quality(model, task.id) > 0)
                values.append(Value(model, task.id, measure.key, passed, task.category))
                good = bool(passed) is (measure.better != "lower")
                shown[model, task.id, 0] = Remark("passed" if passed else "failed", good, f"rule {measure.key}")
                numbers[model, task.id, 0] = {measure.key: passed}
    counts = {m: _counts(a, {v.task for v in values if v.model == m}, "") for m, a in answers.items()}
    findings = Findings(values, counts, shown, numbers, notes)
    write_benchmark(run, key, name, title, area, [side[0] for side in sides], findings, answers)


def _verdicts(a: str, b: str, task: str) -> tuple[Verdict | Missing, Verdict | Missing]:
    """Both judgments of a judge that likes what it sees first: verdicts in positions."""
    lean = GAINS[a] - GAINS[b] + _quality(a + b, task)
    if abs(_quality(b + a, task, 7)) > 2.2:
        return Missing("parse", "no mark"), "first"
    return tuple("tie" if abs(x) < 0.2 else "first" if x > 0 else "second" for x in (lean + 0.4, -lean + 0.4))  # type: ignore[return-value]


def _judge_record(judgments: Sequence[Judgment], items: Sequence[Item], name: str = "qwen3-8b") -> JudgeRecord:
    mark = Fingerprint("openai", "Qwen/Qwen3-8B", "http://localhost:8000/v1")
    entry = JudgeEntry(name, mark, calls_of(judgments), ("0123456789abcdef",))
    spent = Totals(len(judgments), len(judgments), {}, 90_000, 12_000, 0.0, 102_000, 0.0)
    return JudgeRecord((entry,), "en", Plan(), spent, {name: bias_report(items, judgments, SETTINGS)} if items else {})


def _contest(
    tasks: Sequence[Task], answers: dict[str, list[Answer]], pairs: Sequence[tuple[str, str]]
) -> tuple[Any, ...]:
    """Items, judgments, outcomes by pair, and win rates of the given pairs of models."""
    items, judgments, outcomes, records = [], [], {}, []
    text = {(m, a.task.id): a.replies[0] for m, found in answers.items() for a in found if a.complete}
    for a, b in pairs:
        own = {}
        for task in tasks:
            if (a, task.id) not in text or (b, task.id) not in text:
                continue
            place = len(items)
            items.append(Item(task.id, task.turns[:1], (text[a, task.id],), (text[b, task.id],), task.category, a, b))
            two = [
                Judgment(Ask(place, 1, order, 0, False), verdict)
                for order, verdict in zip(("original", "swapped"), _verdicts(a, b, task.id), strict=True)
            ]
            judgments += two
            own[task.id] = outcome_of(two)
        outcomes[a, b] = own
        records += list(win_rates([PairOutcome(a, b, said, name) for name, said in own.items()], SETTINGS))
    return items, judgments, outcomes, records


def _chat(run: RunDir) -> None:
    """Ratings of two turns in eight categories, and every model against the first."""
    kinds = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
    tasks = _tasks("chat", 24, kinds, turns=2)
    answers = _answers(tasks, failing=frozenset({("dpo", "chat-3")}))
    scale = (1.0, 10.0)
    measures = [
        Measure("rating", "Mean rating", "rating", "higher", "The judge's rating of every turn.", True, scale),
        Measure("rating_turn_2", "Rating, turn 2", "rating", "higher", "Ratings of the second answers.", False, scale),
        Measure("win_rate", "Win rate against the first model", "share", "higher", "Wins plus half of the ties.", True),
    ]
    values, shown, numbers = [], {}, {}
    for model in CONTENDERS:
        for place, task in enumerate(tasks):
            if (model, task.id) in (("dpo", "chat-3"), ("sft", "chat-5")):
                continue
            rated = [
                float(np.clip(round(4 + GAINS[model] + place % 3 + _quality(model, task.id, turn)), 1, 10))
                for turn in (1, 2)
            ]
            values += [Value(model, task.id, "rating", rating, task.category) for rating in rated]
            values.append(Value(model, task.id, "rating_turn_2", rated[1], task.category))
            shown[model, task.id, 0] = Remark(
                f"{np.mean(rated):g} of 10", None, "Turn 1: It is short and right. [[5]]\n" * 9
            )
            numbers[model, task.id, 0] = {"rating": float(np.mean(rated)), "rating_turn_2": rated[1]}
    items, judgments, outcomes, records = _contest(tasks, answers, [(model, "base") for model in CONTENDERS[1:]])
    for (model, _), own in outcomes.items():
        values += [Value(model, task, "win_rate", POINTS[o]) for task, o in own.items() if not isinstance(o, Missing)]
    values += [Value("base", task.id, "win_rate", 0.5) for task in tasks]
    counts = {
        m: _counts(a, {v.task for v in values if v.model == m and v.measure == "rating"}, "judge: parse")
        for m, a in answers.items()
    }
    notes = ["Judged with posttrain's own prompts: not comparable with published MT-Bench scores, whoever judges."]
    findings = Findings(
        values, counts, shown, numbers, notes, win_rates=tuple(records), by_definition=frozenset({("base", "win_rate")})
    )
    write_benchmark(
        run, "chat", "mt_bench", "MT-Bench", "helpfulness", measures, findings, answers, _judge_record(judgments, items)
    )


def _arena(run: RunDir) -> None:
    """Every two models compared, with ratings."""
    tasks = _tasks("arena", 30, (None,))
    answers = _answers(tasks)
    pairs = [(a, b) for place, a in enumerate(CONTENDERS) for b in CONTENDERS[place + 1 :]]
    items, judgments, outcomes, records = _contest(tasks, answers, pairs)
    values, labels = [], defaultdict(list)
    rows = []
    for (a, b), own in outcomes.items():
        for task, outcome in own.items():
            if isinstance(outcome, Missing):
                continue
            values += [Value(a, task, "win_rate", POINTS[outcome]), Value(b, task, "win_rate", 1 - POINTS[outcome])]
            rows.append(Comparison(a, b, {"first": "a", "second": "b", "tie": "tie"}[outcome], cluster=task))
            labels[a, task].append(POINTS[outcome])
            labels[b, task].append(1 - POINTS[outcome])
    comparisons = gather(rows)
    matrix, table = win_matrix(comparisons), bradley_terry(comparisons)
    order = [matrix.models.index(model) for model in CONTENDERS]
    wins = tuple(map(tuple, matrix.wins_MM[order][:, order].tolist()))
    ratings = Ratings("bradley_terry", tuple(table.ratings), CONTENDERS, wins)
    measure = Measure("win_rate", "Win rate against the others", "share", "higher", "Wins plus half of the ties.", True)
    shown = {
        (m, t, 0): Remark(f"{sum(x == 1 for x in found)} won", sum(found) > 1.5 or None)
        for (m, t), found in labels.items()
    }
    counts = {m: _counts(a, {v.task for v in values if v.model == m}, "judge: parse") for m, a in answers.items()}
    findings = Findings(values, counts, shown, win_rates=tuple(records), ratings=ratings)
    write_benchmark(
        run, "arena", "pairwise", "Arena", "helpfulness", [measure], findings, answers, _judge_record(judgments, items)
    )


def _alpaca(run: RunDir) -> None:
    """Win rates against a file of replies, and at equal length."""
    tasks = _tasks("alpaca", 20, (None,))
    answers = _answers(tasks)
    measures = [
        Measure("win_rate", "Win rate, weighted", "share", "higher", "Mean probability of being better.", True),
        Measure("length_controlled", "Win rate at equal length", "share", "higher", "As predicted for equal length."),
    ]
    values = [
        Value(m, t.id, "win_rate", 1 / (1 + math.exp(2 - GAINS[m] - _quality(m, t.id))))
        for m in CONTENDERS
        for t in tasks
    ]
    rows, results = [], []
    for model in CONTENDERS:
        own = np.array([value.value for value in values if value.model == model])
        raw, error = 100 * float(own.mean()), 100 * float(own.std(ddof=1) / math.sqrt(len(own)))
        ends = raw - 1.5, raw - 1.5 - 2 * error, raw - 1.5 + 2 * error
        rows.append(LengthControlledRow(model, raw, error, 100 * float((own > 0.5).mean()), len(own), *ends))
        results.append(Result(model, "length_controlled", None, *(end / 100 for end in ends), values=20, prompts=20))
    controlled = LengthControlled("gpt4", False, "20 prompts are not the published 805", tuple(rows))
    counts = {m: _counts(a, {t.id for t in tasks}, "") for m, a in answers.items()}
    judgments = [
        Judgment(Ask(0, 1, "original", 0, False), "first" if place % 5 else Missing("empty")) for place in range(40)
    ]
    write_benchmark(run, "alpaca", "alpaca_eval", "AlpacaEval 2", "helpfulness", measures,
                    Findings(values, counts, results=results, length_controlled=controlled), answers, _judge_record(judgments, []))  # fmt: skip


def _variety(run: RunDir) -> None:
    """Four samples of every prompt; a measure that is lower for better, and one that is neither."""
    tasks = _tasks("variety", 8, ("a", "b"), samples=4)
    answers = _answers(tasks)
    measures = [
        Measure("self_bleu", "Self-BLEU", "number", "lower", "How alike the samples are.", True, (0.0, 1.0)),
        Measure("words", "Words a reply", "tokens", "neither", "Length.", False),
    ]
    values = [
        Value(m, t.id, "self_bleu", 0.3 + 0.1 * GAINS[m] + 0.02 * _quality(m, t.id), t.category)
        for m in CONTENDERS
        for t in tasks
    ]
    values += [
        Value(m, a.task.id, "words", float(len(a.replies[0].split()))) for m, found in answers.items() for a in found
    ]
    shown = {
        (m, a.task.id, a.sample): Remark(f"sample {a.sample + 1} of 4", None)
        for m, found in answers.items()
        for a in found
    }
    counts = {m: _counts(a, {t.id for t in tasks}, "") for m, a in answers.items()}
    write_benchmark(
        run, "variety", "diversity", "Diversity", "diversity", measures, Findings(values, counts, shown), answers
    )


def add_benchmarks(run: RunDir, name: str = "benchmarks") -> None:
    """Add an eval stage that asks seven benchmarks of four models, and scores no held-out rows."""
    _chat(run)
    _arena(run)
    _alpaca(run)
    share = lambda key, label, better="higher", headline=True: Measure(  # noqa: E731
        key, label, "share", better, f"About {label.lower()}.", headline
    )
    _yes_no(run, "form", "ifeval", "IFEval", "instructions",
            [(share("prompt_strict", "Prompts followed (strict)"), _tasks("form", 40, ("length", "format", "words")), -0.4)])  # fmt: skip
    _yes_no(
        run,
        "gsm8k",
        "gsm8k",
        "GSM8K",
        "reasoning",
        [(share("accuracy", "Right answers"), _tasks("maths", 30, (None,)), -1.5)],
    )
    kinds = ("homonyms", "figurative", "history", "privacy")
    _yes_no(run, "safety", "safety", "Safety", "safety", [
        (share("refusal", "Refusal of harmful prompts"), _tasks("harmful", 40, kinds), -0.2),
        (share("over_refusal", "Refusal of safe prompts", "lower"), _tasks("safe", 40, kinds), -0.9),
    ], notes=["Refusals are found by rules."])  # fmt: skip
    _variety(run)
    keys = ("chat", "arena", "alpaca", "form", "gsm8k", "safety", "variety")
    config = {
        "data": None, "models": [*CONTENDERS], "prompts": None,
        "benchmarks": {key: {"name": json.loads((run.stage(name).path / f"benchmarks/{key}.json").read_text())["task"]} for key in keys},
    }  # fmt: skip
    run.stage(name).write_manifest(_manifest("eval", 900, 77.0, config, result={}, dtype="bf16"))
    declare(run, name, {"kind": "eval", **config})


@pytest.fixture(scope="session")
def pristine_benchmarks(pristine: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """SFT with a second eval stage: seven benchmarks of base, sft, dpo and simpo."""
    run = RunDir(tmp_path_factory.mktemp("benchmarks") / "quickstart")
    shutil.copytree(pristine.path, run.path)
    add_benchmarks(run)
    return run


@pytest.fixture
def benchmark_run(pristine_benchmarks: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the run with benchmarks for one test."""
    return RunDir(Path(shutil.copytree(pristine_benchmarks.path, tmp_path / "with_benchmarks")))
