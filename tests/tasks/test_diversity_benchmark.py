"""Diversity as a benchmark: whole prompts only, values by hand, the jackknife, a real encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artifacts import plain
from posttrain.config import build, parse_yaml
from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Findings, Task
from posttrain.tasks.diversity import DiversityBenchmark, corpus_distinct, prompt_measures, reply_measures
from posttrain.tasks.measuring import findings_of, task_record
from posttrain.tasks.ngrams import distinct_n
from posttrain.tasks.records import Account, Remark, Source


def record_json(benchmark, findings, answers, settings):
    """The record as a reader of its file sees it."""
    return plain(task_record(benchmark, "x", Source(None, None, 1), findings, answers, settings))


SETTINGS = IntervalSettings(resamples=200)


def benchmark(folder: Path, rows: Sequence[dict[str, Any]], **options: Any) -> DiversityBenchmark:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DiversityBenchmark(name="diversity", path=str(path), **options)


def said(task: Task, *replies: str | None) -> list[Answer]:
    """A sample a reply; None = the call failed."""
    return [
        Answer(task, n, (), (), (), Failure("timeout", "60 s"))
        if text is None
        else Answer(task, n, (text,), ("stop",), (None,))
        for n, text in enumerate(replies)
    ]


def values(found: Findings, measure: str, model: str = "a") -> list[tuple[str, float]]:
    return [(v.task, v.value) for v in found.values if (v.model, v.measure) == (model, measure)]


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_own_prompts_are_the_default() -> None:
    found = build(DiversityBenchmark, parse_yaml("name: diversity", "r"))
    tasks = found.tasks()
    assert {task.category for task in tasks} == {"knowledge", "rewriting", "reasoning"}
    assert {task.language for task in tasks} == {"en", "zh"}
    first = tasks[0]
    assert (first.samples, first.sampling.temperature, first.sampling.top_p, first.sampling.max_tokens) == (
        4,
        1,
        1,
        256,
    )
    assert first.sampling.seed is None  # the stage's seed
    few = build(DiversityBenchmark, parse_yaml("{name: diversity, max_prompts: 6}", "r")).tasks()
    shares = {category: [t.category for t in few].count(category) for category in {t.category for t in tasks}}
    whole = {category: [t.category for t in tasks].count(category) for category in shares}
    assert all(abs(shares[category] - 6 * whole[category] / len(tasks)) < 1 for category in shares)
    assert [task.id for task in few] == [task.id for task in tasks if task.id in {t.id for t in few}]


def test_prompts_of_rows_and_of_yaml(tmp_path: Path) -> None:
    rows = [{"prompt": "Tell a joke.", "category": "fun", "language": "en"}, {"id": 9, "prompt": "讲个笑话。"}]
    tasks = benchmark(tmp_path, rows, samples=2, temperature=0.7, top_p=0.9, max_tokens=8).tasks()
    assert [(t.id, t.turns[0], t.category, t.language) for t in tasks] == [
        ("#1", "Tell a joke.", "fun", "en"),
        ("9", "讲个笑话。", None, None),
    ]
    sampling = tasks[0].sampling
    assert (tasks[0].samples, sampling.temperature, sampling.top_p, sampling.max_tokens) == (2, 0.7, 0.9, 8)
    own = tmp_path / "own.yaml"
    own.write_text('reasoning: [{id: r, language: en, prompt: "Why?"}]')
    (task,) = DiversityBenchmark(name="diversity", path=str(own)).tasks()
    assert (task.id, task.turns, task.category) == ("r", ("Why?",), "reasoning")


def test_prompts_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: prompt must be a text"):
        benchmark(tmp_path, [{"prompt": "a"}, {"prompt": ["b"]}]).tasks()
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: id '#1' is that of another row"):
        benchmark(tmp_path, [{"prompt": "a"}, {"prompt": "b", "id": "#1"}]).tasks()
    with pytest.raises(ConfigError, match="unknown encoder 'use-multi'"):  # before any reply is made
        benchmark(tmp_path, [{"prompt": "a"}], encoder="use-multi").tasks()


@pytest.mark.parametrize("option", ["samples: 1", "temperature: 0", "top_p: 1.5", "seed: 3"])
def test_the_configuration_is_strict(option: str) -> None:
    with pytest.raises(ConfigError, match=option.partition(":")[0]):
        build(DiversityBenchmark, parse_yaml(f"name: diversity\n{option}", "r"))


# ---- values --------------------------------------------------------------------------------------------------------


def test_values_by_hand(tmp_path: Path) -> None:
    one = benchmark(tmp_path, [{"prompt": "p", "category": "x"}, {"prompt": "q"}], samples=2)
    p, q = one.tasks()
    found = findings_of(one, {"a": [*said(p, "a b", "a c"), *said(q, "go go go go go", "...")]}, None, SETTINGS)
    assert values(found, "distinct_1") == [("#1", 3 / 4), ("#2", 1 / 5)]
    assert values(found, "distinct_2") == [("#1", 1.0), ("#2", 1 / 4)]
    assert values(found, "self_bleu") == [("#1", pytest.approx(math.sqrt(0.05)))]  # 1/2 and 0.1/1
    assert values(found, "repetition") == [("#2", 0.5)]  # two runs of four words, both "go go go go"
    assert values(found, "tokens") == [("#1", 2), ("#1", 2), ("#2", 5), ("#2", 0)]
    assert {v.category for v in found.values if v.task == "#1"} == {"x"}
    assert found.accounting == {"a": Account(4, 4, 4, {})}
    assert found.reply_values["a", "#2", 0] == {"tokens": 5, "repetition": 0.5, "longest_repeat": 4}
    assert found.remarks["a", "#2", 1] == Remark(
        "sample 2 of 2",
        None,
        "all samples of this prompt: Distinct word pairs 0.25, Distinct words 0.20",
    )
    corpus = {r.measure: r for r in found.results}
    assert corpus["corpus_distinct_1"].estimate == pytest.approx(4 / 9)  # a b c go
    other = corpus["corpus_distinct_2"]
    assert (other.model, other.category, other.estimate, other.values, other.prompts) == ("a", None, 3 / 6, 4, 2)


def test_a_prompt_counts_with_all_its_samples_or_not_at_all(tmp_path: Path) -> None:
    one = benchmark(tmp_path, [{"prompt": "p"}, {"prompt": "q"}], samples=3)
    p, q = one.tasks()
    a, b = (
        [*said(p, "a b", None, "a c"), *said(q, "x", "y", "z")],
        [*said(p, None, None, None), *said(q, None, "y", "z")],
    )
    found = findings_of(one, {"a": a, "b": b}, None, SETTINGS)
    assert {v.task for v in found.values} == {"#2"}
    assert found.accounting["a"] == Account(6, 5, 3, {"other_sample_missing": 2, "timeout": 1})
    assert found.accounting["b"] == Account(6, 2, 0, {"timeout": 4, "other_sample_missing": 2})
    assert {v.model for v in found.values} == {"a"}
    assert found.results == []  # one prompt has no interval
    record = record_json(one, found, {"a": a, "b": b}, SETTINGS)
    assert {r["model"] for r in record["results"]} == {"a"}


def test_models_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    one = benchmark(tmp_path, [{"prompt": f"p{n}"} for n in range(8)], samples=2)
    tasks = one.tasks()
    free = [answer for n, task in enumerate(tasks) for answer in said(task, f"a{n} b c", f"d{n} e f")]
    stuck = [answer for task in tasks for answer in said(task, "yes it is", "yes it is")]
    answers = {"free": free, "stuck": stuck}
    record = record_json(one, findings_of(one, answers, None, SETTINGS), answers, SETTINGS)
    difference = {d["measure"]: d for d in record["differences"]}
    assert difference["self_bleu"]["difference"] == 1.0
    assert difference["distinct_2"]["difference"] == -0.5
    assert difference["self_bleu"]["p_value"] == 2 / 2**8
    corpus = {(r["model"], r["measure"]): r["estimate"] for r in record["results"] if r["category"] is None}
    assert corpus["free", "corpus_distinct_1"] == pytest.approx(20 / 48)
    assert corpus["stuck", "corpus_distinct_1"] == pytest.approx(3 / 48)


class _Compass:
    """Vectors for north, east, and nothing else."""

    name, threshold = "compass", 0.9

    def encode(self, texts: Sequence[str]) -> Any:
        known = {"north": (1, 0), "up": (1, 0), "east": (0, 1)}
        return np.array([known.get(text, (0, 0)) for text in texts], np.float32)


def test_the_spread_of_meaning_by_hand() -> None:
    assert prompt_measures(["north", "east"], _Compass())["embedding_spread"] == pytest.approx(1.0)
    assert prompt_measures(["north", "up", ""], _Compass())["embedding_spread"] == pytest.approx(0.0)
    assert prompt_measures(["north", "up", "east"], _Compass())["embedding_spread"] == pytest.approx(2 / 3)
    assert "embedding_spread" not in prompt_measures(["north", "?"], _Compass())
    assert "embedding_spread" not in prompt_measures(["north", "east"])


def test_nothing_is_made_of_nothing() -> None:
    assert prompt_measures(["", "..."]) == {}
    assert reply_measures("") == {"tokens": 0.0}


# ---- all replies ---------------------------------------------------------------------------------------------------


def test_the_jackknife_by_hand() -> None:
    """3 of 6 words; without the first prompt 2 of 4, without the second 2 of 4, without the third 3 of 4.

    Around their mean 7/12: -1/12, -1/12, 2/12; sum of squares 6/144; variance 2/3 of it = 1/36.
    """
    found = corpus_distinct([["a b"], ["a c"], ["a a"]], 1, confidence=0.5)
    assert found is not None
    t = 0.816496580927726  # the 0.75 quantile of Student's t with 2 degrees of freedom
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5 - t / 6, 0.5 + t / 6))


@given(st.lists(st.lists(st.text(alphabet="ab c", max_size=9), min_size=1, max_size=3), max_size=6), st.integers(1, 3))
def test_the_jackknife_leaves_out_one_prompt_at_a_time(prompts: list[list[str]], n: int) -> None:
    written = [texts for texts in prompts if distinct_n(texts, n) is not None]
    found = corpus_distinct(prompts, n)
    if len(written) < 2:
        assert found is None
        return
    assert found is not None
    assert found.estimate == pytest.approx(distinct_n([text for texts in prompts for text in texts], n))
    without = [
        distinct_n([text for texts in (*written[:k], *written[k + 1 :]) for text in texts], n)
        for k in range(len(written))
    ]
    wide = found.high - found.low
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert (wide == pytest.approx(0, abs=1e-6)) == (max(without) - min(without) < 1e-9)  # type: ignore[type-var]


def test_the_jackknife_holds_its_confidence() -> None:
    """30 prompts of 15 words each, words as frequent as in texts (1 / rank): the interval holds what such a set has on average."""
    draw = np.random.default_rng(0)
    shares = 1 / np.arange(1, 201)
    words = np.array([f"w{k}" for k in range(200)])

    def a_set() -> list[list[str]]:
        return [[" ".join(row)] for row in draw.choice(words, (30, 15), p=shares / shares.sum())]

    found = [interval for _ in range(300) if (interval := corpus_distinct(a_set(), 1)) is not None]
    mean = np.mean([interval.estimate for interval in found])
    held = np.mean([interval.low <= mean <= interval.high for interval in found])
    assert 0.93 <= held <= 1


# ---- a real encoder ------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_a_real_static_encoder_measures_meaning(tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(shared_data / "semhash-static-model" / f"tests__data__test_model__{name}")
    one = benchmark(tmp_path, [{"prompt": "p"}, {"prompt": "q"}, {"prompt": "r"}], samples=2, encoder=str(folder))
    p, q, r = one.tasks()
    answers = [
        *said(p, "The cat sleeps on the sofa.", "A cat is asleep on the couch."),
        *said(q, "The cat sleeps on the sofa.", "Interest rates rose again last month."),
        *said(r, "天气很好。", "今天下雨。"),
    ]
    found = findings_of(one, {"a": answers}, None, SETTINGS)
    (near, far) = [value for _, value in values(found, "embedding_spread")]
    assert 0 < near < 0.5 < far < 1.2
    assert found.notes == ["a: 1 prompts have no spread of meaning, as fewer than two of their replies have a vector."]
    assert "embedding_spread" in {measure.key for measure in one.measures}
