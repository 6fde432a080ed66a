"""Arena-Hard as a benchmark: the published score by hand, its differences, files in all their forms."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import DataError
from posttrain.generate.engine import Completion, Failure, Sampling
from posttrain.judge.config import Plan
from posttrain.judge.judge import Ask, Judgment
from posttrain.judge.verdicts import Missing
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.arena_hard import (
    ArenaHardBenchmark,
    Tally,
    label_of_judgment,
    score_differences,
    score_results,
)
from posttrain.tasks.base import Task

LOST = Failure("timeout", "slow")
TASKS = [Task(f"p{n}", (f"Q{n}",), Sampling(), category="ab"[n % 2]) for n in range(5)]


def benchmark(path="-", **keys):
    return ArenaHardBenchmark(name="arena_hard", path=str(path), **keys)


def five(judged):
    """Two or more points of ``q`` apart is much better; ``flip``: the first shown is better; ``once``: no label where it stands second."""

    def script(request):
        first, second = judged.shown(request)
        if "flip" in first + second:
            return "My own answer: 42. [[B>>A]] would be wrong.\n[[A>B]]"
        if "once" in second:
            return "No label."
        one, other = (int(re.findall(r"q(\d)", text)[-1]) for text in (first, second))
        sign = ">>" if abs(one - other) > 1 else ">" if one != other else "="
        return f"Compared. [[{f'A{sign}B' if one >= other else f'B{sign}A'}]]"

    return script


def test_the_score_by_hand(judged):
    answers = judged.answers(TASKS, base=["q1", "q3", "q2", "q2", "q1"], sft=["q5", "q2", "q2", "flip q1", "once q3"])
    judges = judged.judges(five(judged))
    bench = benchmark()
    found = bench.judge(answers, judges, judged.chance)
    record = judged.record(bench, found, answers)
    # p0: much better in both judgments, 6 of 6; p1: worse in both, 0 of 2; p2: the same, 1 of 2; p3: the first shown, 1 of 2;
    # p4: much better where it is shown first, no label in the other judgment: 3 of 3
    score = judged.result(record, "sft", "score")
    assert score["estimate"] == pytest.approx((6 + 0 + 1 + 1 + 3) / (6 + 2 + 2 + 2 + 3))
    assert score["low"] < score["estimate"] < score["high"]
    assert judged.result(record, "sft", "score", "a")["estimate"] == pytest.approx((6 + 1 + 3) / (6 + 2 + 3))
    assert judged.result(record, "base", "score")["estimate"] == 0.5
    # both orders agree: win, loss, tie, tie; p4 is missing
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert record["win_rates"][0]["missing"] == 1
    assert record["accounting"]["sft"] == {"asked": 5, "answered": 5, "measured": 5, "dropped": {}}
    assert any(note.startswith("1 of 8 judgments have no readable label (parse 1") for note in record["notes"])
    assert len(judges.requests) == 8  # p2 is not asked
    assert found.reply_values["sft", "p3", 0] == {"score": 0.5, "win_rate": 0.5}
    assert found.reply_values["sft", "p4", 0] == {"score": 1.0}
    difference = next(one for one in record["differences"] if one["measure"] == "score")
    assert difference["difference"] == pytest.approx(score["estimate"] - 0.5)
    assert {one["measure"] for one in record["differences"]} == {"score", "win_rate"}


def test_several_judges_are_pooled(judged):
    answers = judged.answers(TASKS[:2], base=["q1", "q2"], sft=["q2", "q2"])

    def sure(request):
        return "[[A>>B]]"

    bench = benchmark()
    record = judged.record(bench, bench.judge(answers, judged.judges(five(judged), sure), judged.chance), answers)
    # p0: better twice (2 of 2), first shown much better twice (3 of 6); p1, not asked: four ties (2 of 4)
    assert judged.result(record, "sft", "score")["estimate"] == pytest.approx((2 + 3 + 2) / (2 + 6 + 4))


def test_answers_that_are_lost_are_counted(judged):
    answers = judged.answers(TASKS[:3], base=["q1", LOST, "q1"], sft=["q2", "q2", LOST])
    bench = benchmark()
    record = judged.record(bench, bench.judge(answers, judged.judges(lambda request: "prose"), judged.chance), answers)
    assert record["results"] == []
    assert record["accounting"]["base"]["dropped"] == {
        "judge: parse": 1, "timeout": 1, "nothing to compare with": 1
    }  # fmt: skip
    assert record["accounting"]["sft"]["measured"] == 0


def test_what_a_game_says():
    ask = Ask(0, 1, "original", 0, False)
    assert label_of_judgment(Judgment(ask, "first", outcome=Completion("[[B>>A]] no: [[A>>B]]"))) == "first>>"
    assert label_of_judgment(Judgment(ask, "second", outcome=Completion("[b>a]"))) == "second>"
    assert (
        label_of_judgment(Judgment(ask._replace(order="none"), "second")) == "second>"
    )  # a reward model has no strength
    assert isinstance(label_of_judgment(Judgment(ask, Missing("length"))), Missing)


def test_the_plan_is_the_judges(judged):
    answers = judged.answers(TASKS[:1], base=["q1"], sft=["flip q2"])
    judges = judged.judges(five(judged), plan=Plan(orders="swapped"))
    bench = benchmark()
    record = judged.record(bench, bench.judge(answers, judges, judged.chance), answers)
    assert judged.result(record, "sft", "score")["estimate"] == 0  # base is shown first and wins by it


# ---- statistics of the score ---------------------------------------------------------------------------------------

tallies = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1.0, 3.0]), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=1,
    max_size=8,
).map(
    lambda rows: {f"p{n}": Tally(one * weight + other, weight + 1, None) for n, (one, weight, other) in enumerate(rows)}
)


@settings(max_examples=30)
@given(tallies)
def test_the_interval_holds_the_score_within_0_and_1(own):
    (found,) = score_results({"m": own}, IntervalSettings(resamples=100))
    assert 0 <= found.low <= found.high <= 1
    assert found.estimate == pytest.approx(sum(t.points for t in own.values()) / sum(t.weight for t in own.values()))


def test_a_score_of_all_or_nothing_is_not_certain():
    # Wilson's lower end of 4 of 4 at 95%: 4 / (4 + 1.96^2) = 0.510
    (found,) = score_results({"m": {f"p{n}": Tally(6, 6) for n in range(4)}}, IntervalSettings(resamples=100))
    assert (found.estimate, found.high) == (1, 1)
    assert found.low == pytest.approx(0.5101, abs=1e-4)


def test_the_permutation_test_is_that_of_all_swaps():
    a = {"p0": Tally(0, 2), "p1": Tally(1, 2), "p2": Tally(1, 2), "p3": Tally(0, 6)}
    b = {"p0": Tally(6, 6), "p1": Tally(2, 2), "p2": Tally(1, 2), "p3": Tally(2, 2)}

    def difference(swaps):
        one = [(b[t], a[t]) if swap else (a[t], b[t]) for t, swap in zip(a, swaps, strict=True)]
        shares = [sum(pair[k].points for pair in one) / sum(pair[k].weight for pair in one) for k in (0, 1)]
        return shares[1] - shares[0]

    seen = difference([False] * 4)
    exact = np.mean(
        [abs(difference(swaps)) >= abs(seen) - 1e-12 for swaps in itertools.product([False, True], repeat=4)]
    )
    (found,) = score_differences({"a": a, "b": b}, IntervalSettings(resamples=4_000))
    assert seen == pytest.approx(11 / 12 - 2 / 12)
    assert found.difference == pytest.approx(seen)
    assert found.p_value == pytest.approx(exact, abs=0.03)
    assert found.low <= seen <= found.high
    assert found.prompts == 4


def test_equal_models_do_not_differ_and_family_is_adjusted():
    own = {f"p{n}": Tally(n % 3, 2) for n in range(6)}
    other = {f"p{n}": Tally(2, 2) for n in range(6)}
    same, better = score_differences({"a": own, "b": own, "c": other}, IntervalSettings(resamples=500))
    assert (same.difference, same.low, same.high, same.p_value, same.detectable) == (0, 0, 0, 1, None)
    assert better.adjusted_p == pytest.approx(min(1, 2 * better.p_value))
    assert score_differences({"a": own, "b": {"elsewhere": Tally(1, 2)}}, IntervalSettings(resamples=100)) == []


def test_the_interval_is_that_of_a_bootstrap_over_prompts():
    rng = np.random.default_rng(0)
    weights = rng.choice([2.0, 4.0, 6.0], 60)
    points = (weights * rng.choice([0.0, 0.25, 0.5, 1.0], 60)).round(2)
    (found,) = score_results(
        {"m": {f"p{n}": Tally(p, w) for n, (p, w) in enumerate(zip(points, weights, strict=True))}},
        IntervalSettings(resamples=4_000),
    )
    drawn = np.random.default_rng(9).integers(60, size=(4_000, 60))
    low, high = np.quantile(points[drawn].sum(axis=1) / weights[drawn].sum(axis=1), (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


# ---- files ---------------------------------------------------------------------------------------------------------


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_questions_in_both_published_forms(tmp_path):
    path = lines(
        tmp_path / "question.jsonl",
        {"uid": "u1", "category": "hard", "cluster": "c1", "prompt": "P1"},
        {"question_id": "u2", "category": "creative", "turns": [{"content": "P2"}]},
        {"id": 3, "category": "hard", "turns": ["P3"]},
    )
    tasks = benchmark(path).tasks()
    assert [(task.id, task.turns[0], task.category) for task in tasks] == [
        ("u1", "P1", "hard"), ("u2", "P2", "creative"), ("3", "P3", "hard")
    ]  # fmt: skip
    assert {task.sampling.max_tokens for task in tasks} == {4096}
    alone = lines(tmp_path / "one.jsonl", {"uid": "u1", "category": "hard", "prompt": "P1"})
    assert benchmark(alone).tasks()[0].category is None  # one category says nothing


def test_baseline_replies_in_all_forms(judged, tmp_path):
    path = lines(tmp_path / "q.jsonl", *({"uid": f"u{n}", "prompt": f"P{n}"} for n in range(4)))
    replies = lines(
        tmp_path / "gpt.jsonl",
        {"uid": "u0", "model": "gpt", "messages": [{"role": "user", "content": "P0"}, {"content": {"answer": "q1 a"}}]},
        {"question_id": "u1", "model_id": "gpt", "choices": [{"turns": [{"content": "q1 b"}]}]},
        {"id": "u2", "model": "gpt", "text": "q1 c"},
        {"id": "u3", "model": "gpt", "messages": [{"role": "assistant", "content": ""}]},
    )
    bench = benchmark(path, baseline=replies)
    assert [task.expected.text for task in bench.tasks()] == ["q1 a", "q1 b", "q1 c", ""]
    answers = judged.answers(bench.tasks()[:3], base=["q2"] * 3, sft=["q3"] * 3)
    record = judged.record(bench, bench.judge(answers, judged.judges(five(judged)), judged.chance), answers)
    assert [rates["model_b"] for rates in record["win_rates"]] == ["gpt", "gpt"]
    assert judged.result(record, "base", "score")["estimate"] == 1  # the first model is measured, too
    assert [one["b"] for one in record["differences"] if one["measure"] == "score"] == ["sft"]


@pytest.mark.parametrize(
    ("rows", "replies", "told"),
    [
        ([{"prompt": "P"}], None, r"q\.jsonl:1: a row without an id"),
        ([{"uid": "u", "prompt": "P"}] * 2, None, r"q\.jsonl:2: prompt 'u' comes a second time"),
        ([{"uid": "u"}], None, r"q\.jsonl:1: one text, or a list turns with one entry"),
        ([{"uid": "u", "turns": ["a", "b"]}], None, r"q\.jsonl:1: one text"),
        ([{"uid": "u", "prompt": " "}], None, r"q\.jsonl:1: prompt must be a text"),
        ([{"uid": "u", "prompt": "P"}], [{"uid": "v", "text": "T"}], r"r\.jsonl: no reply to prompt 'u'"),
        ([{"uid": "u", "prompt": "P"}], [{"uid": "u", "text": "T"}] * 2, r"r\.jsonl:2: a second reply"),
        ([{"uid": "u", "prompt": "P"}], [{"uid": "u", "messages": []}], r"r\.jsonl:1: text must be a text"),
        (
            [{"uid": "u", "prompt": "P"}],
            [{"uid": "u", "model": "x", "text": "T"}, {"uid": "v", "model": "y", "text": "T"}],
            r"r\.jsonl:2: replies of 'y' and of 'x'",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path, rows, replies, told):
    path = lines(tmp_path / "q.jsonl", *rows)
    baseline = None if replies is None else lines(tmp_path / "r.jsonl", *replies)
    with pytest.raises(DataError, match=told):
        benchmark(path, baseline=baseline).tasks()


@pytest.mark.shared
def test_the_real_questions_load(shared_data):
    path = shared_data / "arena-hard" / "data__arena-hard-v0.1__question.jsonl"
    tasks = benchmark(path).tasks()
    assert len(tasks) == len({task.id for task in tasks}) == 500
    assert {task.category for task in tasks} == {None}
    assert len(benchmark(path, max_prompts=100).tasks()) == 100
