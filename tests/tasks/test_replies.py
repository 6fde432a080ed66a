"""Replies and their verdicts: real decoding on the tiny model, and accuracy counted by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.model.frozen import frozen_model
from posttrain.model.lineage import Lineage
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.checks import Check
from posttrain.tasks.prompts import Prompt
from posttrain.tasks.replies import accuracy_record, reply_records


def verdict(model: str, prompt: str, prompt_class: str, passed: bool | None) -> dict[str, Any]:
    check = None if passed is None else {"kind": "contains_any", "expected": ["x"], "passed": passed}
    return {"model": model, "prompt_id": prompt, "class": prompt_class, "check": check}


def test_accuracy_counts_checked_prompts_only_and_pairs_them() -> None:
    records = [
        verdict("base", "p1", "knowledge", True),
        verdict("base", "p2", "knowledge", False),
        verdict("base", "p3", "reasoning", False),
        verdict("base", "p4", "reasoning", None),
        verdict("sft", "p1", "knowledge", True),
        verdict("sft", "p2", "knowledge", True),
        verdict("sft", "p3", "reasoning", False),
        verdict("sft", "p4", "reasoning", None),
    ]
    record = accuracy_record(records, settings=IntervalSettings(confidence=0.95, resamples=500, seed=0))
    base, sft = record["models"]["base"], record["models"]["sft"]
    assert (base["all"]["passed"], base["all"]["checked"]) == (1, 3)
    assert (sft["by_class"]["knowledge"]["passed"], sft["by_class"]["reasoning"]["passed"]) == (2, 0)
    assert 0 < base["all"]["low"] < 1 / 3 < base["all"]["high"] < 1
    (pair,) = record["pairs"]
    assert pair["difference"] == pytest.approx(1 / 3)
    counts = {key: pair[key] for key in ("both_right", "only_a", "only_b", "both_wrong")}
    assert counts == {"both_right": 1, "only_a": 0, "only_b": 1, "both_wrong": 1}
    assert pair["p_value"] == 1.0  # one discordant prompt says nothing


def test_a_prompt_that_one_model_could_not_answer_is_left_out_of_the_pair() -> None:
    records = [verdict("a", "p1", "k", True), verdict("a", "p2", "k", True)]
    record = accuracy_record(
        [*records, verdict("b", "p2", "k", False)], settings=IntervalSettings(confidence=0.95, resamples=100, seed=0)
    )
    assert record["models"]["b"]["all"]["checked"] == 1
    assert [(pair["only_a"], pair["both_right"]) for pair in record["pairs"]] == [(1, 0)]
    record = accuracy_record(
        [*records, verdict("b", "p2", "k", None)], settings=IntervalSettings(confidence=0.95, resamples=100, seed=0)
    )
    assert record["pairs"] == []


def test_nan_is_no_wrong_answer(tiny_model: Path) -> None:
    template = Lineage(tiny_model).template
    model = frozen_model(tiny_model, None, torch.float32, torch.device("cpu"))
    check = Check(kind="contains_any", expected=("x",))
    prompts = [Prompt(id=t, prompt_class="k", language="en", text=t, check=check) for t in ("a zebra", "a dog")]
    (zebra,) = template.tokenizer(" zebra", add_special_tokens=False)["input_ids"][:1]
    model.set_input_embeddings(copy.deepcopy(model.get_input_embeddings()))  # type: ignore[operator]  # untied from the head
    model.get_input_embeddings().weight[zebra] = torch.nan  # type: ignore[operator]
    bad, good = reply_records("base", model, prompts, template, [(2,)], max_new_tokens=4)
    assert (bad["finish_reason"], bad["reply"], bad["check"]) == ("not_finite", "", None)
    assert good["finish_reason"] in ("stop", "length")
    assert good["check"] is not None


def test_every_prompt_gets_a_reply_and_only_checked_ones_a_verdict(tiny_model: Path) -> None:
    lineage = Lineage(tiny_model)
    model = frozen_model(tiny_model, None, torch.float32, torch.device("cpu"))
    prompts = [
        Prompt(id="free", prompt_class="rewriting", language="en", text="Rewrite: hello", check=None),
        Prompt(
            id="checked",
            prompt_class="knowledge",
            language="zh",
            text="法国的首都是哪里?",
            check=Check(kind="contains_any", expected=("巴黎",)),
        ),
    ]
    records = reply_records("base", model, prompts, lineage.template, lineage.stops, max_new_tokens=5)
    assert [r["prompt_id"] for r in records] == ["free", "checked"]
    assert records[0]["check"] is None
    assert records[1]["check"]["passed"] is ("巴黎" in records[1]["reply"])
    assert all(r["tokens"] <= 5 and r["finish_reason"] in ("stop", "length") for r in records)
    assert all("<|im_end|>" not in r["reply"] for r in records)
