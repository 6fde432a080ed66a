"""What every benchmark promises: its configuration is documented, its tasks are asked once, and no answer is lost without a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest

from posttrain.artifacts import plain
from posttrain.config import build, field_docs, parse_yaml
from posttrain.generate.engine import Completion, Failure, TokenLogprob, Usage
from posttrain.generate.fake import FakeEngine
from posttrain.judge.config import JudgePrompt, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import judge
from posttrain.judge.pool import Judged
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks import AnyBenchmark, Benchmark
from posttrain.tasks.base import Answer
from posttrain.tasks.benchmarking import tasks_digest
from posttrain.tasks.measuring import findings_of, reply_rows, task_record
from posttrain.tasks.records import Source

CLASSES: tuple[type[Benchmark], ...] = get_args(get_args(AnyBenchmark)[0])
SETTINGS = IntervalSettings(resamples=200)

FILES: dict[str, list[dict[str, Any]]] = {
    "alpaca_eval": [
        {"instruction": f"Say {word}.", "output": word, "generator": "baseline", "dataset": "own"}
        for word in ("one", "two", "three")
    ],
    "arena_hard": [
        {"question_id": f"h{k}", "cluster": f"c{k % 2}", "turns": [{"content": f"Prove {k} = {k}."}]} for k in range(3)
    ],
    "gsm8k": [{"question": f"{k} and {k}?", "answer": f"Add.\n#### {2 * k}"} for k in range(3)],
    "ifeval": [
        {"key": k, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for k in range(3)
    ],
    "mt_bench": [
        {"question_id": 81 + k, "category": "writing" if k else "math", "turns": ["Write.", "Again."]} for k in range(3)
    ],
    "overlap": [{"prompt": f"Say {k}.", "reference": f"It is {k}."} for k in range(3)],
}
"""A made-up file for every benchmark that has no prompts of its own."""


@pytest.fixture(params=CLASSES, ids=lambda kind: kind.__name__)
def benchmark_of(request: pytest.FixtureRequest, tmp_path: Path) -> Benchmark:
    kind: type[Benchmark] = request.param
    config: dict[str, Any] = {"name": get_args(get_type_hints(kind)["name"])[0]}
    if config["name"] in FILES:
        rows = FILES[config["name"]]
        path = tmp_path / ("rows.json" if config["name"] == "alpaca_eval" else "rows.jsonl")
        lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(lines)
        config["path"] = str(path)
    found: Benchmark = build(AnyBenchmark, parse_yaml(json.dumps(config), "test"))  # type: ignore[arg-type]
    assert isinstance(found, kind)
    return found


@dataclass
class Scripted:
    """A judge that always prefers the first, or rates 7, or says the first label."""

    language: Literal["en", "zh"] = "en"
    plan: Plan = field(default_factory=Plan)
    asked: int = 0

    def ask(self, items: Sequence[Item], prompt: JudgePrompt, plan: Plan) -> list[Judged]:
        self.asked += len(items)
        text = {
            "pair_letter": "[[A]]",
            "pair_five": "My answer.\n[[A>>B]]",
            "rating": "Rating: [[7]]",
            "label": f"[[{prompt.labels[0]}]]" if prompt.labels else "",
        }.get(prompt.parser, "m")
        top = (("m", -0.1), ("M", -2.0))
        reply = Completion(text, logprobs=(TokenLogprob("m", -0.1, top),), usage=Usage(10, 2))
        return [Judged("script", judge(FakeEngine(lambda _: reply), items, prompt, plan))]


def answers_of(benchmark: Benchmark, model: str) -> list[Answer]:
    """A reply to everything but the last task, which fails; the model's name keeps replies apart."""
    found: list[Answer] = []
    tasks = benchmark.tasks()
    for place, task in enumerate(tasks):
        for sample in range(task.samples):
            if place == len(tasks) - 1:
                found.append(Answer(task, sample, (), (), (), Failure("timeout", "too slow", 3)))
                continue
            replies = tuple(f"{model} says 4 to turn {turn}" for turn in range(len(task.turns)))
            usages = (Usage(5, 5),) * len(replies)
            found.append(Answer(task, sample, replies, ("stop",) * len(replies), usages))
    return found


def test_configuration(benchmark_of: Benchmark) -> None:
    kind = type(benchmark_of)
    documented = field_docs(kind)
    assert kind.__doc__
    names = [one.name for one in fields(benchmark_of)]  # type: ignore[arg-type]
    assert [name for name in names if name != "name" and not documented.get(name)] == []
    assert kind.title
    measures = benchmark_of.measures
    assert len({measure.key for measure in measures}) == len(measures)
    assert any(measure.headline for measure in measures)
    assert all(measure.about.endswith(".") for measure in measures)


def test_tasks_are_the_same_each_time_and_named_apart(benchmark_of: Benchmark) -> None:
    tasks = benchmark_of.tasks()
    asked = [(task.id, task.turns, task.sampling, task.samples, task.system) for task in tasks]
    assert asked == [(t.id, t.turns, t.sampling, t.samples, t.system) for t in benchmark_of.tasks()]
    assert tasks_digest(benchmark_of) == tasks_digest(benchmark_of)
    assert len({task.id for task in tasks}) == len(tasks) > 0
    assert all(task.turns and task.samples >= 1 for task in tasks)


def test_every_answer_has_a_value_or_a_reason(benchmark_of: Benchmark) -> None:
    answers = {model: answers_of(benchmark_of, model) for model in ("first", "second")}
    judges = Scripted() if benchmark_of.needs.judge else None
    findings = findings_of(benchmark_of, answers, judges, SETTINGS)
    record = json.loads(
        json.dumps(plain(task_record(benchmark_of, "x", Source(None, None, 1), findings, answers, SETTINGS)))
    )
    for counts in record["accounting"].values():
        assert counts["asked"] == counts["measured"] + sum(counts["dropped"].values())
        assert counts["dropped"]
    known = {measure["key"] for measure in record["measures"]}
    assert {result["measure"] for result in record["results"]} <= known
    assert record["results"]
    for result in record["results"]:
        assert result["low"] <= result["estimate"] + 1e-12
        assert result["estimate"] <= result["high"] + 1e-12
    rows = list(reply_rows(answers, findings))
    assert len(rows) == sum(map(len, answers.values()))
    assert any(row.values or row.remark for row in rows)
    if judges is not None:
        assert judges.asked > 0


def test_the_order_of_models_changes_signs_only(benchmark_of: Benchmark) -> None:
    judges = Scripted() if benchmark_of.needs.judge else None
    answers = {model: answers_of(benchmark_of, model) for model in ("first", "second")}
    turned = dict(reversed(answers.items()))
    own = {r["measure"] for r in _results(benchmark_of, answers, judges) if r["category"] is None}
    assert own == {r["measure"] for r in _results(benchmark_of, turned, judges) if r["category"] is None}


def _results(benchmark: Benchmark, answers: dict[str, list[Answer]], judges: Scripted | None) -> list[dict[str, Any]]:
    findings = findings_of(benchmark, answers, judges, SETTINGS)
    return list(plain(task_record(benchmark, "x", Source(None, None, 1), findings, answers, SETTINGS))["results"])


def test_an_unknown_key_is_refused_with_a_suggestion(benchmark_of: Benchmark) -> None:
    from posttrain.errors import ConfigError

    config = {"name": benchmark_of.name, "path": "x", "max_tokns": 3}
    with pytest.raises(ConfigError, match="max_tokens"):
        build(AnyBenchmark, parse_yaml(json.dumps(config), "test"))  # type: ignore[arg-type]


def test_a_path_that_is_missing_is_told(benchmark_of: Benchmark, tmp_path: Path) -> None:
    from posttrain.errors import PosttrainError

    with pytest.raises(PosttrainError, match="missing"):
        replace(benchmark_of, path=str(tmp_path / "missing.jsonl")).tasks()  # type: ignore[type-var]


def test_names_are_different() -> None:
    assert len({get_type_hints(kind)["name"] for kind in CLASSES}) == len(CLASSES)
