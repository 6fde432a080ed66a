"""``posttrain eval``: what a command line says becomes a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config import Document, build
from posttrain.errors import ConfigError
from posttrain.judge.config import JudgeConfig
from posttrain.lab.one_stage import one_stage


def judge_of(text: str, model: Path) -> JudgeConfig:
    command = one_stage("eval", [f"a={model}", f"b={model}", "--benchmark", "some:diversity", "--judge", text])
    return build(JudgeConfig, Document("judge", command.stages["evaluate"]["judge"], {(): 1}))


def test_every_option_of_a_judge_can_be_given(tiny_model: Path) -> None:
    judge = judge_of(
        "endpoint=http://127.0.0.1:9/v1,model=7,concurrency=2,request-timeout=30,max_calls=50,language=zh,samples=3,temperature=0.5,"
        "orders=original,extra_body={temperature: null, options: {num_ctx: 4096}},criteria=short, and true",
        tiny_model,
    )
    (source,) = judge.judges
    assert (source.model, source.concurrency, source.request_timeout) == ("7", 2, 30.0)
    assert source.extra_body == {"temperature": None, "options": {"num_ctx": 4096}}
    assert (judge.max_calls, judge.language) == (50, "zh")
    assert (judge.plan.samples, judge.plan.temperature, judge.plan.orders) == (3, 0.5, "original")
    assert judge.plan.criteria == "short, and true"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpt-4", "does not name a judge"),
        ("endpoint=http://127.0.0.1:9/v1,model=j,concurency=2", "did you mean 'concurrency'"),
        ("endpoint=http://127.0.0.1:9/v1,model=j,concurrency=two", "whole number"),
        ("endpoint=http://127.0.0.1:9/v1,model=j,concurrency=0", "at least 1"),
        ("model=j", "who judges"),
    ],
)
def test_wrong_judges_are_told(tiny_model: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        judge_of(text, tiny_model)
    assert caught.value.where == "posttrain eval --judge"
