"""GSM8K: rows to prompts, numbers to verdicts, and the data set's own solutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import build, parse_yaml
from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure, FinishReason
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Task
from posttrain.tasks.checks import stated_number
from posttrain.tasks.gsm8k import Gsm8kBenchmark
from posttrain.tasks.measuring import findings_of
from posttrain.tasks.records import Account, Remark

ROWS = [
    {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "A {thing} costs $1,000 and $250. In all?", "answer": "It is $<<1000+250=1250>>1,250.\n#### 1,250"},
    {"question": "Start at 2 and go down 5.", "answer": "2 - 5 = <<2-5=-3>>-3\n#### -3"},
    {"question": "Half of 5?", "answer": "5 / 2\n#### 2.5"},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path / "test.jsonl", ROWS)


def said(task: Task, reply: str, finish: FinishReason = "stop") -> Answer:
    return Answer(task, 0, (reply,), (finish,), (None,))


def test_rows_become_tasks(path: str) -> None:
    tasks = Gsm8kBenchmark(name="gsm8k", path=path).tasks()
    assert [(task.id, task.expected) for task in tasks] == [("#1", 7.0), ("#2", 1250.0), ("#3", -3.0), ("#4", 2.5)]
    assert tasks[1].turns[0].startswith("A {thing} costs $1,000 and $250. In all?\n\nWork this out step by step")
    assert "1,250" not in tasks[1].turns[0]
    assert (tasks[0].sampling.temperature, tasks[0].sampling.max_tokens, tasks[0].language) == (0.0, 512, "en")
    assert len(Gsm8kBenchmark(name="gsm8k", path=path, max_prompts=3).tasks()) == 3


def test_examples_stand_before_the_problem(path: str, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"question": "1 and 1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}, *ROWS[1:]])
    own = write(tmp_path / "own.jsonl", ROWS[:1])
    (task,) = Gsm8kBenchmark(name="gsm8k", path=own, shots=2, examples=train).tasks()
    before, ask = task.turns[0].split("Now solve this one.\n\n")
    assert "Problem: 1 and 1?\n1+1=2\nAnswer: 2\n\nProblem: A {thing} costs" in before
    assert "<<" not in before
    assert "####" not in before
    assert "Start at 2" not in before
    assert [stated_number(part) for part in before.split("Problem: ")[1:]] == [2, 1250]  # as replies are read
    (zero,) = Gsm8kBenchmark(name="gsm8k", path=own).tasks()
    assert ask == zero.turns[0]


@pytest.mark.parametrize(
    ("reply", "accuracy", "answered", "label", "detail"),
    [
        ("3 + 4 = 7, so 7 pens.", 1, 1, "right", "expected 7, read 7"),
        ("First 12.\nAnswer: 7", 1, 1, "right", "expected 7, read 7"),
        ("Answer: 7.0", 1, 1, "right", "expected 7, read 7"),
        ("7 pens at first, then 8", 0, 1, "wrong", "expected 7, read 8"),
        ("Answer: 70", 0, 1, "wrong", "expected 7, read 70"),
        ("Seven.", 1, 1, "right", "expected 7, read 7"),
        ("It has none.", 0, 0, "no number", "expected 7"),
        ("", 0, 0, "no number", "expected 7"),
    ],
)
def test_verdicts(path: str, reply: str, accuracy: int, answered: int, label: str, detail: str) -> None:
    benchmark = Gsm8kBenchmark(name="gsm8k", path=path)
    found = findings_of(benchmark, {"a": [said(benchmark.tasks()[0], reply)]}, None, IntervalSettings())
    assert {v.measure: v.value for v in found.values} == {"accuracy": accuracy, "answered": answered}
    assert found.remarks["a", "#1", 0] == Remark(label, bool(accuracy), detail)
    assert found.accounting["a"].measured == 1


def test_a_problem_without_a_reply_is_dropped_with_its_reason(path: str) -> None:
    benchmark = Gsm8kBenchmark(name="gsm8k", path=path)
    first, second, *_ = benchmark.tasks()
    lost = Answer(second, 0, (), (), (), Failure("server_error", "500"))
    found = findings_of(
        benchmark,
        {"a": [said(first, "7"), lost], "b": [said(first, "7"), said(second, "1250")]},
        None,
        IntervalSettings(),
    )
    assert found.accounting == {"a": Account(2, 1, 1, {"server_error": 1}), "b": Account(2, 2, 2, {})}
    assert [(v.model, v.task, v.value) for v in found.values if v.measure == "accuracy"] == [
        ("a", "#1", 1.0),
        ("b", "#1", 1.0),
        ("b", "#2", 1.0),
    ]
    assert found.notes[0].startswith("No examples and posttrain's own wording")
    assert found.notes[1] == "2 prompts; the published gsm8k has 1319"


def test_cut_replies_are_scored_and_told(path: str) -> None:
    benchmark = Gsm8kBenchmark(name="gsm8k", path=path)
    first, second, third, fourth = benchmark.tasks()
    a = [said(first, "So she has 7", "length"), said(second, "1250"), said(third, "2 -", "length"), said(fourth, "2.5")]
    found = findings_of(benchmark, {"a": a, "b": [said(first, "7")]}, None, IntervalSettings())
    assert [v.value for v in found.values if v.measure == "accuracy"] == [1, 1, 0, 1, 1]
    assert found.remarks["a", "#1", 0] == Remark("right", True, "expected 7, read 7")
    assert found.notes[2:] == [
        "a: 2 of 4 replies were cut at the limit of tokens and are read as they stand; 1 of its 3 right answers are among them, "
        "and may be right by chance."
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "How many?"}, r"answer must be a text that is not blank \(keys: question\)"),
        ({"question": " ", "answer": "#### 1"}, "question must be a text"),
        ({"question": "How many?", "answer": "It is 7"}, "must end with '#### ' and a number, not 'It is 7'"),
        ({"question": "How many?", "answer": "#### seven"}, "must end with '#### '"),
        ({"question": "How many?", "answer": "#### 1,2"}, "must end with '#### '"),
        ({"question": "How \ud800 many?", "answer": "#### 1"}, "half of a surrogate pair"),
        (["How many?", 7], "this is no row: not_an_object"),
        ({"question": "How many?", "answer": "#### 1", "id": 1.5}, "id must be a text or a whole number"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: Any, problem: str) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: .*{problem}"):
        Gsm8kBenchmark(name="gsm8k", path=path).tasks()


def test_files_that_can_not_be_used(path: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("[]")
    with pytest.raises(DataError, match="no problems in this file"):
        Gsm8kBenchmark(name="gsm8k", path=str(empty)).tasks()
    with pytest.raises(DataError, match="can't read the file"):
        Gsm8kBenchmark(name="gsm8k", path=str(tmp_path / "nowhere.jsonl")).tasks()
    with pytest.raises(DataError, match="4 examples for 5 shots"):
        Gsm8kBenchmark(name="gsm8k", path=path, shots=5, examples=path).tasks()
    with pytest.raises(DataError, match=r"test\.jsonl:1: this example is one of the problems asked"):
        Gsm8kBenchmark(name="gsm8k", path=path, shots=1, examples=path).tasks()
    same = write(tmp_path / "same.jsonl", [ROWS[0] | {"id": 4}, ROWS[1] | {"id": "4"}])
    with pytest.raises(DataError, match=r"same\.jsonl:2: id '4' is that of another row \(.*same\.jsonl:1\)"):
        Gsm8kBenchmark(name="gsm8k", path=same).tasks()


@pytest.mark.parametrize("text", ["{name: gsm8k, path: p, shots: 2}", "{name: gsm8k, path: p, examples: t}"])
def test_shots_and_examples_go_together(text: str) -> None:
    with pytest.raises(ConfigError, match="shots and examples go together"):
        build(Gsm8kBenchmark, parse_yaml(text, "r"))


@pytest.mark.shared
def test_the_own_solutions_are_right(shared_data: Path) -> None:
    folder = shared_data / "gsm8k"
    path = folder / "grade_school_math__data__test.jsonl"
    train = str(folder / "grade_school_math__data__train.jsonl")
    benchmark = Gsm8kBenchmark(name="gsm8k", path=str(path), shots=8, examples=train)
    tasks = benchmark.tasks()
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    found = findings_of(
        benchmark, {"gold": [said(t, s) for t, s in zip(tasks, solutions, strict=True)]}, None, IntervalSettings()
    )
    assert len(tasks) == found.accounting["gold"].measured == 1319
    assert {v.value for v in found.values} == {1.0}
    assert found.notes == [
        "8 solved examples and posttrain's own wording: not to be put beside numbers from other prompts."
    ]
    examples = tasks[0].turns[0].split("Now solve this one.")[0]
    assert len(examples.split("Problem: ")[1:]) == 8
