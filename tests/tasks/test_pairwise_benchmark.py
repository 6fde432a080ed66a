"""Pairwise comparison: win rates of every two models, ratings, and what all benchmarks with pairs share (`matches`)."""

from __future__ import annotations

import json
from dataclasses import astuple

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.generate.engine import Failure, Sampling
from posttrain.judge.config import Plan
from posttrain.stats.ratings import Comparison, bradley_terry, gather
from posttrain.tasks.base import Task
from posttrain.tasks.matches import BaselineReply, accounts, against_baseline, repeated_notes
from posttrain.tasks.measuring import findings_of
from posttrain.tasks.pairwise import PairwiseBenchmark
from posttrain.tasks.records import Account

TASKS = [Task(f"p{n}", (f"Q{n}",), Sampling(), category="ab"[n % 2]) for n in range(4)]
LOST = Failure("timeout", "slow")


def benchmark(**keys):
    return PairwiseBenchmark(name="pairwise", **keys)


def test_win_rates_against_the_first_by_hand(judged):
    # sft against base: win, loss, tie by order, base failed; dpo: win, win, same reply, -.
    answers = judged.answers(
        TASKS, base=["q2", "q2", "flip q1", LOST], sft=["q3", "q1", "q4", "q9"], dpo=["q3", "q5", "flip q1", "q1"]
    )
    judges = judged.judges(judged.better_wins)
    found = benchmark().judge(answers, judges, judged.chance)
    record = judged.record(benchmark(), found, answers)
    assert judged.result(record, "sft", "win_rate")["estimate"] == 0.5
    assert judged.result(record, "dpo", "win_rate")["estimate"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert judged.result(record, "dpo", "win_rate", "b")["estimate"] == 1.0
    base = judged.result(record, "base", "win_rate")
    assert (base["estimate"], base["low"], base["high"], base["prompts"]) == (0.5, 0.5, 0.5, 3)
    sft, dpo = record["win_rates"]
    assert {key: sft[key] for key in ("model_a", "model_b", "wins", "losses", "ties", "missing")} == {
        "model_a": "sft", "model_b": "base", "wins": 1, "losses": 1, "ties": 1, "missing": 0
    }  # fmt: skip
    assert (dpo["wins"], dpo["ties"], dpo["adjusted"]["estimate"]) == (2, 1, pytest.approx(2.5 / 3))
    difference = next(one for one in record["differences"] if one["b"] == "dpo")
    assert (difference["a"], difference["difference"]) == ("base", pytest.approx(1 / 3))
    # the same reply is no question: 3 of sft and 2 of dpo are asked, in both orders
    assert len(judges.requests) == 2 * (3 + 2)
    assert any("dpo and base gave the same reply to 1 of 3 prompts" in note for note in record["notes"])
    assert record["accounting"]["base"] == {"asked": 4, "answered": 3, "measured": 3, "dropped": {"timeout": 1}}
    assert record["accounting"]["sft"]["dropped"] == {"nothing to compare with": 1}
    assert (found.remarks["sft", "p0", 0].label, found.remarks["sft", "p0", 0].good) == ("wins", True)
    assert (found.remarks["sft", "p1", 0].label, found.remarks["sft", "p1", 0].good) == ("loses", False)
    assert (found.remarks["sft", "p2", 0].label, found.remarks["sft", "p2", 0].good) == ("tie", None)
    assert "(shown first) Hm.\n[[A]]\n(shown second) Hm.\n[[A]]" in found.remarks["sft", "p2", 0].detail
    assert "without asking" in found.remarks["dpo", "p2", 0].detail
    assert record["ratings"] is None


def test_a_missing_verdict_is_counted_and_in_no_rate(judged):
    answers = judged.answers(TASKS, base=["q1"] * 4, sft=["q2", "mute", "q2", "q0"])
    found = benchmark().judge(answers, judged.judges(judged.better_wins), judged.chance)
    record = judged.record(benchmark(), found, answers)
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx(2 / 3)
    assert record["win_rates"][0]["missing"] == 1
    for model in ("base", "sft"):
        assert record["accounting"][model]["dropped"] == {"judge: parse": 1}
    assert any(note.startswith("1 of 4 questions have no verdict (parse 1; for example: ") for note in record["notes"])
    assert (found.remarks["sft", "p1", 0].label, found.remarks["sft", "p1", 0].good) == ("no verdict", None)


def test_a_panel_decides_by_majority(judged):
    def always_b(request):
        return "[[B]]"

    answers = judged.answers(TASKS, base=["q1"] * 4, sft=["q2", "q0", "q2", "mute q2"])
    # the second judge always ends in a tie; the third is as the first: two of three. Where the first two are mute, the tie is all there is.
    judges = judged.judges(judged.better_wins, always_b, judged.better_wins)
    record = judged.record(benchmark(), benchmark().judge(answers, judges, judged.chance), answers)
    rates = record["win_rates"][0]
    assert (rates["wins"], rates["losses"], rates["ties"], rates["missing"]) == (2, 1, 1, 0)
    two = judged.judges(judged.better_wins, always_b)
    record = judged.record(benchmark(), benchmark().judge(answers, two, judged.chance), answers)
    assert record["win_rates"][0]["ties"] == 4  # one vote each is a tie


def test_ratings_are_those_of_the_same_verdicts(judged):
    every = benchmark(against="all")
    answers = judged.answers(
        TASKS, base=["q1", "q3", "q1", "q2"], sft=["q2", "q1", "q2", "q2"], dpo=["q3", "q2", "q0", "q3"]
    )
    found = every.judge(answers, judged.judges(judged.better_wins), judged.chance)
    record = judged.record(every, found, answers)
    # (a, b, winner) prompt by prompt, from the numbers above
    verdicts = {
        ("sft", "base"): ["a", "b", "a", "tie"],
        ("dpo", "base"): ["a", "b", "b", "a"],
        ("dpo", "sft"): ["a", "a", "b", "a"],
    }
    rows = [Comparison(*pair, w, cluster=f"p{n}") for pair, own in verdicts.items() for n, w in enumerate(own)]
    expected = bradley_terry(gather(rows))
    assert [row["model"] for row in record["ratings"]["rows"]] == [one.model for one in expected.ratings]
    for row, one in zip(record["ratings"]["rows"], expected.ratings, strict=True):
        assert [row[key] for key in ("rating", "low", "high", "rank")] == pytest.approx(astuple(one)[1:5])
    assert record["ratings"]["models"] == ["base", "sft", "dpo"]
    assert record["ratings"]["wins"] == [[0, 1.5, 2], [2.5, 0, 1], [2, 3, 0]]
    # a model's win rate is over all its opponents: dpo has 2 of 4 and 3 of 4
    assert judged.result(record, "dpo", "win_rate")["estimate"] == pytest.approx(5 / 8)
    assert judged.result(record, "base", "win_rate")["estimate"] == pytest.approx(3.5 / 8)
    assert len(record["win_rates"]) == 3
    assert (found.remarks["base", "p0", 0].label, found.remarks["base", "p0", 0].good) == ("2 lost", False)
    assert (found.remarks["sft", "p0", 0].label, found.remarks["sft", "p0", 0].good) == ("1 won, 1 lost", None)
    assert found.reply_values["sft", "p0", 0] == {"win_rate": 0.5}
    assert "Against dpo: (shown second)" in found.remarks["base", "p0", 0].detail


def test_ratings_that_do_not_exist_are_told(judged):
    every = benchmark(against="all")
    answers = judged.answers(TASKS, base=["q1"] * 4, sft=["q2"] * 4, dpo=["q3"] * 4)
    record = judged.record(every, every.judge(answers, judged.judges(judged.better_wins), judged.chance), answers)
    assert record["ratings"]["rows"] == []
    assert record["ratings"]["wins"] == [[0, 0, 0], [4, 0, 0], [4, 4, 0]]
    assert any("No ratings: Bradley-Terry ratings would be infinite" in note for note in record["notes"])


def test_nothing_but_ties_is_no_rating(judged):
    every = benchmark(against="all")
    answers = judged.answers(TASKS, base=["q1"] * 4, sft=["q1"] * 4)
    record = judged.record(every, every.judge(answers, judged.judges(judged.better_wins), judged.chance), answers)
    assert record["ratings"]["rows"] == []
    assert record["ratings"]["wins"] == [[0, 2], [2, 0]]
    assert "No ratings: every comparison with a verdict is a tie." in record["notes"]


def test_without_any_verdict_there_is_no_number(judged):
    every = benchmark(against="all")
    answers = judged.answers(TASKS, base=["q1"] * 4, sft=["mute"] * 4)
    record = judged.record(every, every.judge(answers, judged.judges(judged.better_wins), judged.chance), answers)
    assert record["results"] == []
    assert record["ratings"] is None
    assert record["win_rates"][0]["win_rate"] is None
    assert record["accounting"]["sft"] == {"asked": 4, "answered": 4, "measured": 0, "dropped": {"judge: parse": 4}}


def test_one_model_and_no_judge(judged):
    answers = judged.answers(TASKS, base=["q1", "q2", "q3", "q4"])
    for against in ("first", "all"):
        record = judged.record(
            benchmark(), benchmark(against=against).judge(answers, judged.judges(), judged.chance), answers
        )
        assert record["notes"] == ["There is one model and nothing to compare it with."]
        assert record["accounting"]["base"]["measured"] == 0
    with pytest.raises(ConfigError, match="Pairwise comparison needs a judge"):
        findings_of(benchmark(), answers, None, judged.chance)


def test_the_plan_is_the_judges(judged):
    answers = judged.answers(TASKS[:1], base=["q1"], sft=["flip q2"])
    once = judged.judges(judged.better_wins, plan=Plan(orders="swapped"))
    record = judged.record(benchmark(), benchmark().judge(answers, once, judged.chance), answers)
    assert len(once.requests) == 1
    assert record["win_rates"][0]["losses"] == 1  # base is shown first and wins by it


def test_prompts_of_posttrain_and_of_a_file(tmp_path):
    own = benchmark().tasks()
    assert len(own) >= 36
    assert {task.language for task in own} == {"en", "zh"}
    some = benchmark(max_prompts=6).tasks()
    assert len({task.category for task in some}) == 3
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "id": "one"}) + "\n", encoding="utf-8")
    (task,) = benchmark(path=str(path), temperature=0.5, max_tokens=9).tasks()
    assert (task.id, task.turns, task.sampling.temperature, task.sampling.max_tokens) == ("one", ("Why?",), 0.5, 9)
    path.write_text('{"question": "Why?"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.jsonl:1"):
        benchmark(path=str(path)).tasks()


# ---- what the benchmarks with pairs share --------------------------------------------------------------------------


def test_a_constant_text_is_told(judged):
    tasks = [Task(f"p{n}", ("Q",), Sampling()) for n in range(60)]
    answers = judged.answers(
        tasks,
        null=["Thank you for asking."] * 60,
        mute=[""] * 3 + [f"r{n}" for n in range(57)],
        fine=["yes", "yes"] + [f"r{n}" for n in range(58)],
        rare=["yes"] * 2 + [f"r{n}" for n in range(58)],
    )
    first, second = repeated_notes(answers)
    assert first.startswith("null gives the same reply to 60 of 60 prompts ('Thank you for asking.'): ")
    assert second.startswith("mute gives the same reply to 3 of 60 prompts (an empty text): ")
    assert repeated_notes({"none": []}) == []


def test_a_baseline_of_a_file_never_takes_a_models_name(judged):
    tasks = [Task("0", ("Q",), Sampling(), expected=BaselineReply("base", "text"))]
    name, pairs = against_baseline(judged.answers(tasks, base=["q1"], sft=["q2"]), from_file=True)
    assert name == "base (file)"
    assert [(pair.model_a, pair.model_b, pair.replies_b) for pair in pairs] == [
        (model, name, ("text",)) for model in ("base", "sft")
    ]


def test_every_answer_has_a_value_or_a_reason(judged):
    answers = judged.answers(TASKS, base=["a", LOST, "c", "d"])
    found = accounts(answers, [("base", "p0"), ("other", "p2")], {("base", "p2"): "judge: length"})["base"]
    assert found == Account(4, 3, 1, {"timeout": 1, "judge: length": 1, "nothing to compare with": 1})
