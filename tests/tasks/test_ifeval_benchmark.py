"""IFEval as a benchmark: values and accounting by hand, and the published numbers of GPT-4's responses."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
from ifeval_scores import load_replies

from posttrain.config import build, parse_yaml
from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure, FinishReason
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Findings, Task
from posttrain.tasks.ifeval import IfevalBenchmark
from posttrain.tasks.ifeval_rules.scoring import RANDOM_KEYS
from posttrain.tasks.measures import results
from posttrain.tasks.measuring import findings_of
from posttrain.tasks.records import Account, Remark

SETTINGS = IntervalSettings(resamples=200)
PROMPTS = (
    (7, "Write about a cat.", {"punctuation:no_comma": {}, "keywords:existence": {"keywords": ["cat"]}}),
    (9, "Quote it.", {"startend:quotation": {}}),
)


@pytest.fixture
def benchmark(tmp_path: Path) -> IfevalBenchmark:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"key": key, "prompt": text, "instruction_id_list": list(asked), "kwargs": list(asked.values())}
        for key, text, asked in PROMPTS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return IfevalBenchmark(name="ifeval", path=str(path))


def said(task: Task, reply: str, finish: FinishReason = "stop") -> Answer:
    return Answer(task, 0, (reply,), (finish,), (None,))


def failed(task: Task) -> Answer:
    return Answer(task, 0, (), (), (), Failure("timeout", "60 s", 3))


def values(found: Findings, model: str, measure: str) -> list[tuple[str, float, str | None]]:
    return [(v.task, v.value, v.category) for v in found.values if (v.model, v.measure) == (model, measure)]


def test_prompts_become_tasks(benchmark: IfevalBenchmark) -> None:
    first, second = benchmark.tasks()
    assert (first.id, first.turns, first.samples, first.language) == ("7", ("Write about a cat.",), 1, "en")
    assert (second.sampling.temperature, second.sampling.max_tokens) == (0.0, 1280)
    few = IfevalBenchmark(name="ifeval", path=benchmark.path, max_prompts=1, max_tokens=5)
    assert [(task.id, task.sampling.max_tokens) for task in few.tasks()] == [("7", 5)]


def test_values_by_hand(benchmark: IfevalBenchmark) -> None:
    cat, quote = benchmark.tasks()
    a, b = [said(cat, "My cat."), said(quote, '*"So."*')], [said(cat, "Cat, yes", "length"), failed(quote)]
    found = findings_of(benchmark, {"a": a, "b": b}, None, SETTINGS)
    assert values(found, "a", "prompt_strict") == [("7", 1.0, None), ("9", 0.0, None)]
    assert values(found, "a", "prompt_loose") == [("7", 1.0, None), ("9", 1.0, None)]
    assert values(found, "a", "instruction_strict") == [
        ("7", 1.0, "punctuation"),
        ("7", 1.0, "keywords"),
        ("9", 0.0, "startend"),
    ]
    assert values(found, "b", "prompt_strict") == [("7", 0.0, None)]  # a cut reply is scored, a failed call is not
    assert values(found, "b", "instruction_loose") == [("7", 0.0, "punctuation"), ("7", 1.0, "keywords")]
    assert found.accounting == {"a": Account(2, 2, 2, {}), "b": Account(2, 1, 1, {"timeout": 1})}
    assert found.reply_values["b", "7", 0]["instruction_strict"] == 0.5
    assert [found.remarks["a", "7", 0], found.remarks["a", "9", 0], found.remarks["b", "7", 0]] == [
        Remark("passed", True, ""),
        Remark("passed loosely", None, "followed loosely only: startend:quotation"),
        Remark("failed", False, "not followed: punctuation:no_comma"),
    ]
    assert ("b", "9", 0) not in found.remarks


def test_the_record_has_the_four_numbers_and_the_groups(benchmark: IfevalBenchmark) -> None:
    cat, quote = benchmark.tasks()
    found = findings_of(benchmark, {"a": [said(cat, "My cat."), said(quote, "So.")]}, None, SETTINGS)
    rows = {(r.measure, r.category): r for r in results(found, benchmark.measures, ["a"], SETTINGS)}
    assert {key: row.estimate for key, row in rows.items() if key[1] is None} == {
        ("prompt_strict", None): 0.5,
        ("prompt_loose", None): 0.5,
        ("instruction_strict", None): pytest.approx(2 / 3),
        ("instruction_loose", None): pytest.approx(2 / 3),
    }
    assert rows["instruction_strict", "startend"].estimate == 0
    assert (rows["instruction_strict", None].values, rows["instruction_strict", None].prompts) == (3, 2)


def test_an_empty_reply_follows_nothing(benchmark: IfevalBenchmark) -> None:
    cat, _ = benchmark.tasks()
    found = findings_of(benchmark, {"a": [said(cat, "", "length")]}, None, SETTINGS)
    assert {value.value for value in found.values} == {0.0}
    assert found.accounting["a"].measured == 1


def test_a_part_of_the_published_set_is_told(benchmark: IfevalBenchmark) -> None:
    cat, _ = benchmark.tasks()
    found = findings_of(benchmark, {"a": [said(cat, "My cat.")]}, None, SETTINGS)
    assert found.notes == ["1 prompts; the published ifeval has 541"]


def test_a_wrong_prompt_is_told_with_its_line(benchmark: IfevalBenchmark) -> None:
    path = Path(benchmark.path)
    path.write_text(path.read_text().replace("punctuation:no_comma", "punctuation:no_coma"))
    with pytest.raises(DataError, match=r"prompts\.jsonl:1, prompt 7: .*did you mean 'punctuation:no_comma'"):
        benchmark.tasks()


def test_the_configuration_is_strict() -> None:
    assert build(IfevalBenchmark, parse_yaml("{name: ifeval, path: p}", "r")).max_tokens == 1280
    with pytest.raises(ConfigError, match="max_prompts: must be a whole number of at least 1"):
        build(IfevalBenchmark, parse_yaml("{name: ifeval, path: p, max_prompts: 0}", "r"))


# ---- the published responses ---------------------------------------------------------------------------------------


@pytest.mark.shared
def test_gpt4_has_its_published_numbers(shared_data: Path) -> None:
    """Run A and run B of the original differ by the prompts with a random letter; on the others all three agree."""
    folder = shared_data / "evaluation" / "ifeval"
    benchmark = IfevalBenchmark(name="ifeval", path=str(folder / "input_data.jsonl"))
    tasks, replies = benchmark.tasks(), load_replies(folder / "gpt4_responses.jsonl")
    answers = [said(task, replies[task.turns[0]]) if task.turns[0] in replies else failed(task) for task in tasks]
    found = findings_of(benchmark, {"gpt-4": answers}, None, SETTINGS)
    assert found.accounting["gpt-4"] == Account(541, 540, 540, {"timeout": 1})
    assert len(found.notes) == 1  # 541 are all; the random letters are told
    assert "1122 and 1129" in found.notes[0]
    random = {str(key) for key in RANDOM_KEYS}
    texts = {task.turns[0] for task in tasks if task.id not in random}
    for rule, whole in (("strict", (415, 417)), ("loose", (431, 430))):
        runs = []
        for run, passed in zip("AB", whole, strict=True):
            lines = (folder / f"reference_eval_{rule}_run{run}_540.jsonl").read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            assert sum(record["follow_all_instructions"] for record in records) == passed
            runs.append([record for record in records if record["prompt"] in texts])
        ours = [v for v in found.values if v.measure == f"prompt_{rule}"]
        assert min(whole) <= sum(v.value for v in ours) <= max(whole)
        for measure, published in (
            (f"prompt_{rule}", [[r["follow_all_instructions"]] for r in runs[0]]),
            (f"instruction_{rule}", [r["follow_instruction_list"] for r in runs[0]]),
        ):
            fixed = [v.value for v in found.values if v.measure == measure and v.task not in random]
            assert fmean(fixed) == fmean(float(passed) for each in published for passed in each)
            assert len(fixed) == sum(map(len, published))
        assert [r["follow_instruction_list"] for r in runs[0]] == [r["follow_instruction_list"] for r in runs[1]]
