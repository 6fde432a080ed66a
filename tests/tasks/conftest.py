"""Scripted judges, answers written by hand, and records as a stage would write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import plain
from posttrain.generate.engine import Failure, Request
from posttrain.generate.fake import FakeEngine, Script
from posttrain.judge.config import JudgePrompt, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import judge
from posttrain.judge.pool import Judged
from posttrain.report.reading import parse
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Benchmark, Findings, Task
from posttrain.tasks.measuring import reply_rows, task_record
from posttrain.tasks.records import Source, TaskRecord

SETTINGS = IntervalSettings(resamples=300)
PLAN = Plan()


class ScriptedJudges:
    """One judge a script; ``asked`` holds every item, ``requests`` every request."""

    def __init__(self, *scripts: Script, plan: Plan = PLAN, language: str = "en") -> None:
        self.scripts, self.plan, self.language = scripts, plan, language
        self.asked: list[Item] = []
        self.requests: list[Request] = []

    def ask(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> list[Judged]:
        assert items, "nobody is asked about nothing"
        self.asked += items
        found = []
        for number, script in enumerate(self.scripts):
            engine = FakeEngine(script)
            found.append(Judged(f"judge-{number}", judge(engine, items, prompt, plan)))
            self.requests += engine.requests
        return found


def shown(request: Request) -> tuple[str, str]:
    """The two replies (or conversations) as a judge of pairs sees them, first and second."""
    assert not isinstance(request.prompt, str)
    text = request.prompt[-1].content
    tags = ("answer_a", "answer_b"), ("conversation_a", "conversation_b"), ('output model="m"', 'output model="M"')
    for pair in tags:
        found = [re.search(f"<{tag}>\n(.*?)\n</{tag.split()[0]}>", text, re.DOTALL) for tag in pair]
        if all(found):
            return found[0][1], found[1][1]  # type: ignore[index]
    raise AssertionError(f"no pair in {text[:200]}")


def better_wins(request: Request) -> str:
    """The reply with the higher number after its last ``q`` is better; a reply with ``flip`` makes the first shown win."""
    first, second = shown(request)
    if "flip" in first + second:
        return "Hm.\n[[A]]"
    if "mute" in first + second:
        return "Hard to say."
    one, other = (int(re.findall(r"q(\d)", text)[-1]) for text in (first, second))
    return f"Compared.\n[[{'A' if one > other else 'B' if other > one else 'C'}]]"


def answer_of(task: Task, *replies: str, failure: Failure | None = None) -> Answer:
    return Answer(task, 0, replies, ("stop",) * len(replies), (None,) * len(replies), failure)


def answers_of(tasks: Sequence[Task], **replies: Sequence[Any]) -> dict[str, list[Answer]]:
    """Answers by model: a text, a tuple of texts a turn, or a Failure for every task."""
    found = {}
    for model, own in replies.items():
        found[model] = [
            answer_of(task, failure=reply)
            if isinstance(reply, Failure)
            else answer_of(task, *((reply,) if isinstance(reply, str) else reply))
            for task, reply in zip(tasks, own, strict=True)
        ]
    return found


def record_of(
    benchmark: Benchmark,
    findings: Findings,
    answers: Mapping[str, Sequence[Answer]],
    chance: IntervalSettings = SETTINGS,
) -> dict[str, Any]:
    """The record as JSON: what a reader of the file sees. Rows must be JSON too."""
    for row in reply_rows(answers, findings):
        json.dumps(plain(row), allow_nan=False)
    source = Source(None, None, len(next(iter(answers.values()))))
    record = task_record(benchmark, benchmark.name, source, findings, answers, chance)
    assert parse(TaskRecord, json.loads(json.dumps(plain(record))), Path("x.json")) == record
    return dict(json.loads(json.dumps(plain(record), allow_nan=False)))


def result_of(record: Mapping[str, Any], model: str, measure: str, category: str | None = None) -> dict[str, Any]:
    (found,) = (
        one
        for one in record["results"]
        if (one["model"], one["measure"], one["category"]) == (model, measure, category)
    )
    return dict(found)


@pytest.fixture(scope="session")
def judged() -> Any:
    """The helpers above by name: test modules can't import each other."""

    class Helpers:
        chance = SETTINGS
        judges = ScriptedJudges
        shown: Callable[[Request], tuple[str, str]] = staticmethod(shown)
        better_wins: Callable[[Request], str] = staticmethod(better_wins)
        answer = staticmethod(answer_of)
        answers = staticmethod(answers_of)
        record = staticmethod(record_of)
        result = staticmethod(result_of)

    return Helpers
