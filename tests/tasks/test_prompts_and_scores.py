"""A task scores one reply by itself, without engine or judge: the same in evaluation, in selection and as a reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.stats.intervals import IntervalSettings, mcnemar
from posttrain.tasks.base import Answer, Score, ScoresReplies, Task, Unscored
from posttrain.tasks.diversity import DiversityBenchmark
from posttrain.tasks.facts import facts_of
from posttrain.tasks.gsm8k import Gsm8kBenchmark
from posttrain.tasks.measuring import findings_of, reply_rows, task_record
from posttrain.tasks.overlap import OverlapBenchmark
from posttrain.tasks.prompts import FixedPrompts
from posttrain.tasks.records import Source, read_record, read_rows, write_record
from posttrain.tasks.safety import SafetyBenchmark

PROMPTS = """
knowledge:
  - {id: capital, language: en, prompt: "What is the capital of France?", check: {kind: contains_any, expected: [Paris]}}
  - {id: open, language: en, prompt: Tell me about France.}
"""


@pytest.fixture
def prompts(tmp_path: Path) -> FixedPrompts:
    path = tmp_path / "prompts.yaml"
    path.write_text(PROMPTS)
    return FixedPrompts(path=str(path), max_tokens=16)


def values(found: Score | Unscored) -> dict[str, float]:
    assert isinstance(found, Score)
    return found.values


def test_one_reply_is_scored_without_engine_or_judge(tmp_path: Path, prompts: FixedPrompts) -> None:
    problem, pair = tmp_path / "gsm8k.jsonl", tmp_path / "pairs.jsonl"
    problem.write_text(json.dumps({"question": "3 + 4?", "answer": "3 + 4 = 7\n#### 7"}))
    pair.write_text(json.dumps({"prompt": "Say yes.", "reference": "yes indeed"}))
    gsm8k, overlap = Gsm8kBenchmark(name="gsm8k", path=str(problem)), OverlapBenchmark(name="overlap", path=str(pair))
    safety, diversity = SafetyBenchmark(name="safety"), DiversityBenchmark(name="diversity")
    assert all(isinstance(one, ScoresReplies) for one in (gsm8k, overlap, safety, diversity, prompts))
    assert values(gsm8k.score(gsm8k.tasks()[0], "So 7.")) == {"accuracy": 1.0, "answered": 1.0}
    assert values(overlap.score(overlap.tasks()[0], "yes indeed")) == {"rouge_l": 1.0, "bleu": 1.0}
    assert values(diversity.score(diversity.tasks()[0], "a b a b")) == pytest.approx(
        {"tokens": 4.0, "repetition": 0.0, "longest_repeat": 2.0}
    )
    harmful = next(task for task in safety.tasks() if task.expected == "refuse")
    assert values(safety.score(harmful, "I'm sorry, but I can't help with that."))["refusal"] == 1.0
    assert safety.score(harmful, " ") == Unscored("empty", safety.score(harmful, " ").remark)
    assert values(prompts.score(prompts.tasks()[0], "Paris, of course.")) == {"accuracy": 1.0}


def answer(task: Task, reply: str) -> Answer:
    return Answer(task, 0, (reply,), ("stop",), (None,))


def test_fixed_prompts_write_the_record_that_all_measurements_write(tmp_path: Path, prompts: FixedPrompts) -> None:
    capital, free = prompts.tasks()
    answers = {
        "base": [answer(capital, "Lyon."), answer(free, "It is large.")],
        "sft": [answer(capital, "Paris."), answer(free, "It is large.")],
    }
    settings = IntervalSettings(resamples=100)
    findings = findings_of(prompts, answers, None, settings)
    record = task_record(prompts, "prompts", Source("x", None, 2), findings, answers, settings)
    assert record.accounting["sft"].dropped == {"no check": 1}
    (one,) = record.differences
    assert (one.difference, one.test, one.p_value, one.higher, one.lower) == (1.0, "mcnemar", mcnemar(0, 1), 1, 0)
    write_record(tmp_path, record, reply_rows(answers, findings))
    assert read_record(tmp_path / "prompts.json") == record
    rows = read_rows(tmp_path / "prompts.rows.jsonl")
    assert rows == tuple(reply_rows(answers, findings))
    assert [row.remark.label for row in rows if row.remark] == ["wrong", "not checked", "right", "not checked"]
    assert [one.verdict for one in facts_of("evaluate", record).differences] == [
        "not shown"
    ]  # one prompt is no evidence
