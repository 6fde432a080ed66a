"""A realistic run folder, written by code according to docs/run-folder.md, with hostile and Chinese replies in it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.artifacts import Ledger, MetricsLog, RunDir, write_json, write_text
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
    rows = []
    for index in range(98):
        tokens = int(random.integers(20, 180))
        base = float(np.clip(random.normal(2.06, 0.5), 0.4, 4)) * tokens
        tuned = base + float(random.normal(-0.236, 0.2)) * tokens
        for model, nll in (("base", base), ("sft", tuned)):
            rows.append({"model": model, "row_id": f"{index:016x}", "nll": nll, "tokens": tokens})
    write_text(stage.file("likelihood_rows.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    models = {}
    for name in ("base", "sft"):
        nll, tokens = (
            sum(r["nll"] for r in rows if r["model"] == name),
            sum(r["tokens"] for r in rows if r["model"] == name),
        )
        models[name] = {"loss": nll / tokens, "perplexity": math.exp(nll / tokens), "tokens": tokens, "rows": 98}
    difference = models["sft"]["loss"] - models["base"]["loss"]
    pair = {"a": "base", "b": "sft", "difference": difference, "low": difference - 0.034, "high": difference + 0.035}
    write_json(
        stage.file("likelihood.json"),
        {"models": models, "pairs": [{**pair, "confidence": 0.95, "resamples": 10_000}]},
    )
    replies = []
    for index, (kind, language, prompt, base_reply, sft_reply, expected, base_ok, sft_ok) in enumerate(PROMPTS):
        for model, reply, passed in (("base", base_reply, base_ok), ("sft", sft_reply, sft_ok)):
            cut = len(reply) > 150 and language == "en"
            check = None if expected is None else {"kind": "contains_any", "expected": [expected], "passed": passed}
            record = {"model": model, "prompt_id": f"{kind}-{language}-{index}", "class": kind, "language": language}
            record |= {"prompt": prompt, "reply": reply, "finish_reason": "length" if cut else "stop"}
            replies.append({**record, "tokens": 96 if cut else len(reply) // 3, "check": check})
    write_text(stage.file("replies.jsonl"), "".join(json.dumps(reply, ensure_ascii=False) + "\n" for reply in replies))

    def rate(model: str, kind: str | None) -> dict[str, Any]:
        checks = [
            r["check"]["passed"] for r in replies if r["model"] == model and r["check"] and kind in (None, r["class"])
        ]
        n, p, z = len(checks), sum(checks) / len(checks), 1.959964
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
        return {"passed": sum(checks), "checked": n, "accuracy": p, "low": low, "high": high}

    kinds = ("knowledge", "rewriting", "reasoning")
    accuracy = {m: {"all": rate(m, None), "by_class": {k: rate(m, k) for k in kinds}} for m in ("base", "sft")}
    pair = {"a": "base", "b": "sft", "difference": 4 / 13, "low": 0.0, "high": 8 / 13, "confidence": 0.95}
    pair |= {"both_right": 6, "only_a": 1, "only_b": 5, "both_wrong": 1, "p_value": 0.21875}
    write_json(stage.file("accuracy.json"), {"models": accuracy, "pairs": [pair]})
    config = {"data": "prepare", "models": ["base", "sft"], "prompts": "builtin", "max_new_tokens": 96}
    stage.write_manifest(_manifest("eval", 410, 96.0, config, result={}, dtype="bf16"))


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
