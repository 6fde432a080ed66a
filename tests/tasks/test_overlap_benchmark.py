"""Overlap as a benchmark: rows of several forms, values by hand, BLEU of the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import plain
from posttrain.config import build, parse_yaml
from posttrain.data.text import tokens
from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Task
from posttrain.tasks.measuring import findings_of, task_record
from posttrain.tasks.ngrams import BleuCounts, added, bleu_counts, bleu_of
from posttrain.tasks.overlap import OverlapBenchmark, corpus_bleu_interval
from posttrain.tasks.records import Account, Remark, Source


def record_json(benchmark, findings, answers, settings):
    """The record as a reader of its file sees it."""
    return plain(task_record(benchmark, "x", Source(None, None, 1), findings, answers, settings))


SETTINGS = IntervalSettings(resamples=300)


def benchmark(folder: Path, rows: list[Any], **options: Any) -> OverlapBenchmark:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=0), encoding="utf-8")
    return OverlapBenchmark(name="overlap", path=str(path), **options)


def said(task: Task, reply: str) -> Answer:
    return Answer(task, 0, (reply,), ("stop",), (None,))


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "system", "question", "references"),
    [
        ({"prompt": "Hi", "reference": "Hello."}, "", "Hi", ("Hello.",)),
        ({"prompt": "Hi", "references": ["Hello.", "Good day."]}, "", "Hi", ("Hello.", "Good day.")),
        ({"instruction": "Add", "input": "1 1", "reference": "2"}, "", "Add\n1 1", ("2",)),
        ({"instruction": "Add", "input": "1 1", "output": "2"}, "", "Add\n1 1", ("2",)),
        ({"question": "1 + 1?", "answer": "2"}, "", "1 + 1?", ("2",)),
        ({"instruction": "Add", "input": "", "output": "2", "system": "Be brief."}, "Be brief.", "Add", ("2",)),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
            "",
            "Hi",
            ("Hello.",),
        ),
        (
            {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}], "reference": "Hello"},
            "S",
            "Hi",
            ("Hello",),
        ),
    ],
)
def test_rows_of_many_forms(
    tmp_path: Path, row: dict[str, Any], system: str, question: str, references: tuple[str, ...]
) -> None:
    (task,) = benchmark(tmp_path, [row]).tasks()
    assert (task.system, task.turns, task.expected, task.id) == (system, (question,), references, "#1")
    assert (task.sampling.temperature, task.sampling.max_tokens) == (0.0, 512)


def test_categories_keep_their_share(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "reference": "x", "category": "ab"[n % 4 == 3], "language": "en"} for n in range(8)]
    tasks = benchmark(tmp_path, rows, max_prompts=4).tasks()
    assert [(task.id, task.category) for task in tasks] == [("#1", "a"), ("#2", "a"), ("#3", "a"), ("#4", "b")]
    assert tasks[0].language == "en"


TALK = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi", "reference": 7}, "wrong_shape: a reference is a text"),
        ({"prompt": "Hi", "references": []}, "a reference has no words"),
        ({"prompt": "Hi", "references": ["Hello", "..."]}, "a reference has no words"),
        ({"prompt": " ", "reference": "x"}, "empty_prompt"),
        ({"reference": "x"}, "wrong_shape: no prompt"),
        ({"prompt": TALK[:3], "reference": "x"}, "is needed, not user, assistant, user"),
        ({"prompt": "a \ud800", "reference": "x"}, "invalid_unicode"),
        ({"prompt": "Hi", "reference": "x", "category": ["c"]}, "category must be a text"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "reference": "Hello"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{problem}"):
        OverlapBenchmark(name="overlap", path=str(path)).tasks()


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows in this file"):
        benchmark(tmp_path, []).tasks()
    with pytest.raises(DataError, match="rows of the format prompts have no single right reply"):
        benchmark(tmp_path, [{"prompt": "Hi"}]).tasks()
    with pytest.raises(DataError, match="rows of the format pairs have no single right reply"):
        benchmark(tmp_path, [{"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}]).tasks()
    with pytest.raises(DataError, match="not user, assistant, user"):
        benchmark(tmp_path, [{"messages": TALK}]).tasks()


def test_the_configuration_is_strict() -> None:
    assert build(OverlapBenchmark, parse_yaml("{name: overlap, path: p}", "r")).max_prompts is None
    with pytest.raises(ConfigError, match="references"):
        build(OverlapBenchmark, parse_yaml("{name: overlap, path: p, references: q}", "r"))


# ---- values --------------------------------------------------------------------------------------------------------


def test_values_by_hand(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "reference": "Police killed the gunman.", "category": "news"},
        {"prompt": "q", "references": ["No.", "Yes!"]},
        {"prompt": "r", "reference": "never asked"},
    ]
    one = benchmark(tmp_path, rows)
    p, q, r = one.tasks()
    lost = Answer(r, 0, (), (), (), Failure("connection", "refused"))
    found = findings_of(one, {"a": [said(p, "police kill the gunman"), said(q, "yes"), lost]}, None, SETTINGS)
    by_measure = {
        key: [(v.task, v.value, v.category) for v in found.values if v.measure == key] for key in ("rouge_l", "bleu")
    }
    assert by_measure["rouge_l"] == [("#1", 0.75, "news"), ("#2", 1.0, None)]
    # 3/4 words, 1/3 pairs, then no match: half of one of 2, a quarter of one of 1; a text of one word has its words only
    assert by_measure["bleu"] == [
        ("#1", pytest.approx((3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25), "news"),
        ("#2", 1.0, None),
    ]
    assert found.accounting["a"] == Account(3, 2, 2, {"connection": 1})
    assert found.remarks["a", "#1", 0] == Remark("ROUGE-L 0.8", None, "reference: Police killed the gunman.")
    (corpus,) = found.results
    assert corpus.estimate == pytest.approx((4 / 5 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25)
    assert (corpus.measure, corpus.values, corpus.prompts) == ("corpus_bleu", 2, 2)
    assert corpus.low <= corpus.estimate <= corpus.high


def test_an_empty_reply_has_no_overlap_and_is_measured(tmp_path: Path) -> None:
    one = benchmark(tmp_path, [{"prompt": "p", "reference": "x " * 500}])
    (task,) = one.tasks()
    answers = {"a": [said(task, "")], "b": [said(task, "x " * 500)]}
    record = record_json(one, findings_of(one, answers, None, SETTINGS), answers, SETTINGS)
    estimates = {(r["model"], r["measure"]): r["estimate"] for r in record["results"]}
    assert estimates == {
        (model, measure.key): pytest.approx(value)
        for model, value in (("a", 0.0), ("b", 1.0))
        for measure in one.measures
    }
    shown = findings_of(one, answers, None, SETTINGS).remarks["a", "#1", 0]
    assert shown.detail.endswith("x ...")
    assert len(shown.detail) < 320


def test_a_model_without_replies_has_no_corpus(tmp_path: Path) -> None:
    one = benchmark(tmp_path, [{"prompt": "p", "reference": "x"}])
    (task,) = one.tasks()
    found = findings_of(one, {"a": [Answer(task, 0, (), (), (), Failure("timeout", ""))]}, None, SETTINGS)
    assert (found.results, found.values) == ([], [])


def test_the_corpus_interval_resamples_texts() -> None:
    one, other = BleuCounts((4, 3, 2, 1), (4, 3, 2, 1), 4, 4), BleuCounts((3, 2, 1, 1), (5, 4, 3, 2), 5, 6)
    same = corpus_bleu_interval([one] * 5, SETTINGS)
    assert (same.low, same.estimate, same.high) == (1.0, 1.0, 1.0)
    two = corpus_bleu_interval([one, other], IntervalSettings(resamples=400, seed=3))
    # drawn twice each with a chance of a quarter: the ends are the two texts alone
    alone = corpus_bleu_interval([other], SETTINGS).estimate
    assert (two.low, two.high) == pytest.approx((alone, 1.0))
    assert alone < two.estimate < 1
    assert corpus_bleu_interval([one, other], IntervalSettings(resamples=400, seed=3)) == two


@pytest.mark.shared
def test_real_rows_with_their_own_outputs(shared_data: Path) -> None:
    path = shared_data / "llama-factory-demo" / "data__alpaca_en_demo.json"
    one = OverlapBenchmark(name="overlap", path=str(path), max_prompts=80)
    tasks = one.tasks()
    found = findings_of(one, {"gold": [said(task, task.expected[0]) for task in tasks]}, None, SETTINGS)
    assert len(tasks) == 80
    assert [v.value for v in found.values] == pytest.approx([1.0] * 160)
    assert found.results[0].low == 1.0
    shorter = [said(task, " ".join(task.expected[0].split()[:-1]) or "none") for task in tasks]
    (corpus,) = findings_of(one, {"a": shorter}, None, SETTINGS).results
    texts = [answer.replies[0] for answer in shorter]
    ours = bleu_of(
        added(
            bleu_counts(tokens(text), [tokens(one) for one in task.expected])
            for text, task in zip(texts, tasks, strict=True)
        ),
        "exponential",
    )
    assert corpus.estimate == pytest.approx(ours)
    assert 0.8 < corpus.low < corpus.estimate < corpus.high < 1
