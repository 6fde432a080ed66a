"""AlpacaEval as a benchmark: weighted win rates by hand, orders, length control, the published annotations replayed."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re

import numpy as np
import pytest

from posttrain.errors import DataError
from posttrain.generate.engine import Completion, Failure, TokenLogprob
from posttrain.judge.config import Plan
from posttrain.stats.intervals import IntervalSettings
from posttrain.stats.length_controlled import length_controlled_win_rate, shown_swapped
from posttrain.tasks.alpaca_eval import AlpacaEvalBenchmark

LOST = Failure("timeout", "slow")


def benchmark(path="-", **keys):
    return AlpacaEvalBenchmark(name="alpaca_eval", path=str(path), **keys)


@pytest.fixture
def outputs(tmp_path):
    def write(number, **others):
        rows = [
            {"instruction": f"I{k}", "output": f"base {k}", "generator": "gpt4", "dataset": "xy"[k % 2]} | others
            for k in range(number)
        ]
        path = tmp_path / "model_outputs.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    return write


def token(to_first):
    """One token: m with this probability, M with the rest."""
    likely = [("m", to_first), ("M", 1 - to_first)]
    top = tuple((name, math.log(p)) for name, p in sorted(likely, key=lambda one: -one[1]) if p > 0)
    return Completion(top[0][0], "length", logprobs=(TokenLogprob(*top[0], top),))


def weighing(judged):
    """Replies like ``p=0.6,0.2``: how probable it is that they are better, shown first and shown second; ``mute``: no log-probabilities."""

    def script(request):
        first, second = judged.shown(request)
        if "mute" in first + second:
            return Completion("m", "length")
        for place, text in enumerate((first, second)):
            if found := re.search(r"p=([\d.]+),([\d.]+)", text):
                own = float(found[1 + place])
                return token(own if place == 0 else 1 - own)
        raise AssertionError("no reply with a probability")

    return script


REPLIES = ["p=0.9,0.7", "p=0.6,0.2", "base 2", "mute", LOST]


def test_win_rates_by_hand(judged, outputs):
    bench = benchmark(outputs(5))
    answers = judged.answers(bench.tasks(), sft=REPLIES)
    judges = judged.judges(weighing(judged))
    found = bench.judge(answers, judges, judged.chance)
    record = judged.record(bench, found, answers)
    # means of both orders: 0.8, 0.4, 1/2 (the same reply, not asked); outcomes: win, tie by order, tie
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx(1.7 / 3)
    assert judged.result(record, "sft", "win_rate", "x")["estimate"] == pytest.approx((0.8 + 0.5) / 2)
    assert judged.result(record, "sft", "discrete")["estimate"] == pytest.approx(2 / 3)
    assert record["accounting"]["sft"] == {
        "asked": 5, "answered": 4, "measured": 3, "dropped": {"judge: parse": 1, "timeout": 1}
    }  # fmt: skip
    assert len(judges.requests) == 6
    assert {request.sampling.logprobs for request in judges.requests} == {5}
    assert any("the judge gave no log-probabilities" in note for note in record["notes"])
    assert (found.remarks["sft", "0", 0].label, found.remarks["sft", "0", 0].good) == ("wins", True)
    assert found.remarks["sft", "1", 0].label == "tie"
    assert found.remarks["sft", "1", 0].detail.startswith("Better with probability 40.0%. Against gpt4: ")
    assert found.reply_values["sft", "0", 0] == {"win_rate": pytest.approx(0.8), "discrete": 1}
    controlled = record["length_controlled"]
    (row,) = controlled["rows"]
    assert (row["win_rate"], row["discrete"], row["n"]) == (pytest.approx(170 / 3), pytest.approx(200 / 3), 3)
    assert row["standard_error"] == pytest.approx(100 * np.std([0.8, 0.4, 0.5], ddof=1) / math.sqrt(3))
    assert row["length_controlled"] is None
    assert controlled["comparable"] is False
    assert any("3 verdicts are too few for length control" in note for note in record["notes"])
    assert record["win_rates"][0]["model_b"] == "gpt4"


def test_the_published_order_is_asked_once(judged, outputs):
    bench = benchmark(outputs(30), orders="published")
    answers = judged.answers(bench.tasks(), sft=["p=0.9,0.2"] * 30)
    judges = judged.judges(weighing(judged))
    record = judged.record(bench, bench.judge(answers, judges, judged.chance), answers)
    swapped = [shown_swapped(f"I{k}") for k in range(30)]
    assert len(judges.requests) == 30
    # AlpacaEval's swapped shows the model first
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx(np.mean(np.where(swapped, 0.9, 0.2)))
    assert judged.result(record, "sft", "discrete")["estimate"] == pytest.approx(np.mean(swapped))
    for request in judges.requests:
        number = int(re.search(r"\nI(\d+)\n", request.prompt[-1].content)[1])
        assert ("p=" in judged.shown(request)[0]) == swapped[number]


def test_a_panel_and_a_judge_without_probabilities(judged, outputs):
    bench = benchmark(outputs(2))
    answers = judged.answers(bench.tasks(), sft=["p=0.9,0.7", "p=0.6,0.2"])

    def silent(request):
        return "M"

    def sure(request):
        return token(1.0 if "p=" in judged.shown(request)[0] else 0.0)

    panel = judged.judges(weighing(judged), silent, sure)
    record = judged.record(bench, bench.judge(answers, panel, judged.chance), answers)
    # the second judge has no log-probabilities and is out; the third always says the model: (0.8 + 1) / 2 and (0.4 + 1) / 2
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx((0.9 + 0.7) / 2)
    # first and third agree on the first; tie and win are a tie
    assert judged.result(record, "sft", "discrete")["estimate"] == 0.75
    alone = bench.judge(answers, judged.judges(silent), judged.chance)
    record = judged.record(bench, alone, answers)
    assert record["results"] == []
    assert record["length_controlled"] is None
    assert record["accounting"]["sft"]["dropped"] == {"judge: parse": 2}
    assert any("sft: no win rate: none of 2 preferences holds a verdict" in note for note in record["notes"])


def test_the_first_model_as_baseline(judged, outputs):
    bench = benchmark(outputs(2), baseline="first")
    assert [task.expected for task in bench.tasks()] == [None, None]
    answers = judged.answers(bench.tasks(), base=["x", "y"], sft=["p=0.9,0.7", "p=0.6,0.2"])
    record = judged.record(bench, bench.judge(answers, judged.judges(weighing(judged)), judged.chance), answers)
    assert judged.result(record, "base", "win_rate")["estimate"] == 0.5
    assert judged.result(record, "sft", "win_rate")["estimate"] == pytest.approx(0.6)
    assert record["win_rates"][0]["model_b"] == "base"
    assert [row["model"] for row in record["length_controlled"]["rows"]] == ["sft"]
    assert {one["measure"]: one["difference"] for one in record["differences"]} == {
        "win_rate": pytest.approx(0.1), "discrete": pytest.approx(0.25)
    }  # fmt: skip


def test_samples_of_probabilities_are_one_and_told(judged, outputs):
    bench = benchmark(outputs(1))
    judges = judged.judges(weighing(judged), plan=Plan(samples=3))
    answers = judged.answers(bench.tasks(), sft=["p=0.9,0.7"])
    assert any("One draw of every question" in n for n in bench.judge(answers, judges, judged.chance).notes)
    assert len(judges.requests) == 2


def test_length_control_is_the_regression_of_the_same_verdicts(judged, outputs):
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.1, 0.9, 40).round(3)
    texts = [f"p={p},{p} " + "x" * n for p, n in zip(shares, rng.integers(1, 90, 40), strict=True)]
    bench = benchmark(outputs(40))
    chance = IntervalSettings(resamples=50, seed=3)
    answers = judged.answers(bench.tasks(), sft=texts)
    record = judged.record(bench, bench.judge(answers, judged.judges(weighing(judged)), chance), answers, chance)
    baseline = [len(f"base {k}") for k in range(40)]
    expected = length_controlled_win_rate(1 + shares, [len(t) for t in texts], baseline, judge="any", settings=chance)
    (row,) = record["length_controlled"]["rows"]
    assert row["length_controlled"] == pytest.approx(expected.interval.estimate, abs=1e-6)
    assert (row["low"], row["high"]) == pytest.approx(expected.interval[1:3], abs=1e-6)
    result = judged.result(record, "sft", "length_controlled")
    assert result["estimate"] == pytest.approx(row["length_controlled"] / 100)
    assert record["length_controlled"]["comparable"] is False
    assert "length and quality alone" in record["length_controlled"]["why_not"]


def test_what_a_file_must_hold(outputs, tmp_path):
    path = outputs(4)
    some = benchmark(path, max_prompts=2, temperature=0.7).tasks()
    assert [(task.id, task.category, task.sampling.temperature) for task in some] == [("0", "x", 0.7), ("1", "y", 0.7)]
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([rows[0], rows[1] | {"generator": "other"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"model_outputs.json:2: replies of 'other' and of 'gpt4'"):
        benchmark(path).tasks()
    path.write_text(json.dumps([rows[0], {"instruction": "I"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"model_outputs.json:2: output must be a text"):
        benchmark(path).tasks()
    assert len(benchmark(path, baseline="first").tasks()) == 2
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="no instructions"):
        benchmark(path).tasks()


def test_the_published_files_come_together(outputs):
    with pytest.raises(ValueError, match="belong together"):
        benchmark("x", difficulty="d.csv")
    four = dict.fromkeys(("difficulty", "instructions", "lengths", "gamed"), "none.csv")
    with pytest.raises(ValueError, match="published baseline"):
        benchmark("x", baseline="first", **four)
    with pytest.raises(DataError, match=r"none\.csv"):  # told before replies are made
        benchmark(outputs(1), **four).tasks()


# ---- published files -----------------------------------------------------------------------------------------------


def columns(path, *names):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [[float(row[name]) for name in names] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def published(shared_data):
    folder = shared_data / "evaluation" / "alpaca_eval"
    return benchmark(
        shared_data / "alpaca-eval" / "results__gpt4_1106_preview__model_outputs.json",
        orders="published",
        difficulty=str(folder / "instruction_difficulty_reconstructed.csv"),
        instructions=str(folder / "instructions_meta.csv"),
        lengths=str(folder / "output_lengths_186models.csv.gz"),
        gamed=str(folder / "gamed_sufficient_stats_reconstructed.json"),
    )


def leaderboard(shared_data, model):
    with (
        shared_data / "evaluation" / "alpaca_eval" / "leaderboard_alpacaeval2_weighted_gpt4_turbo.csv"
    ).open() as file:
        return next(row for row in csv.DictReader(file) if row[""] == model)


@pytest.mark.shared
def test_published_annotations_replayed_give_the_leaderboard(judged, published, shared_data):
    """The judge's published tokens for alpaca-7b_verbose, in the drawn order, through prompt, parser, values and record."""
    folder = shared_data / "alpaca-eval"
    name = "results__alpaca-7b_verbose__weighted_alpaca_eval_gpt4_turbo__annotations.json"
    rows = {row["instruction"]: row for row in json.loads((folder / name).read_text(encoding="utf-8"))}
    tasks = published.tasks()
    assert len(tasks) == 805
    texts = [rows[task.turns[0]]["output_2"] if task.turns[0] in rows else LOST for task in tasks]

    def replay(request):
        question = request.prompt[-1].content.split("<request>\n")[1].split("\n</request>")[0]
        top = rows[question]["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
        likely = tuple((one["token"], one["logprob"]) for one in top)
        return Completion(likely[0][0], "length", logprobs=(TokenLogprob(*likely[0], likely),))

    answers = judged.answers(tasks, verbose=texts)
    chance = IntervalSettings(resamples=100)
    record = judged.record(published, published.judge(answers, judged.judges(replay), chance), answers, chance)
    official = leaderboard(shared_data, "alpaca-7b_verbose")
    (row,) = record["length_controlled"]["rows"]
    assert row["n"] == int(official["n_total"]) == 802
    assert row["win_rate"] == pytest.approx(float(official["win_rate"]), abs=1e-6)
    assert row["standard_error"] == pytest.approx(float(official["standard_error"]), abs=1e-6)
    assert row["discrete"] == pytest.approx(float(official["discrete_win_rate"]), abs=1e-6)
    assert record["accounting"]["verbose"]["dropped"] == {"timeout": 3}
    assert "802 of the 805 instructions" in record["length_controlled"]["why_not"]


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCD"


@pytest.mark.slow
@pytest.mark.shared
def test_length_control_with_the_published_files_is_the_leaderboards(judged, published, shared_data):
    """Published preferences and reply lengths of one model with all 805: the regression's own fit, as a stage would make it."""
    folder, model = shared_data / "evaluation" / "alpaca_eval", "claude-2.1"
    preferences = [row[0] for row in columns(folder / "preferences_26models.csv.gz", model)]
    lengths = [int(row[0]) for row in columns(folder / "output_lengths_186models.csv.gz", model)]
    tasks = published.tasks()
    # a reply is known by its number, written in base 30 so that it fits into the shortest one
    texts = [
        f"{_LETTERS[number // 30]}{_LETTERS[number % 30]}#".ljust(length, "#") for number, length in enumerate(lengths)
    ]
    assert [len(text) for text in texts] == lengths

    def replay(request):
        first, second = judged.shown(request)
        mine = first if first.endswith("#") else second
        number = 30 * _LETTERS.index(mine[0]) + _LETTERS.index(mine[1])
        share = min(max(preferences[number] - 1, 1e-12), 1 - 1e-12)
        return token(share if mine == first else 1 - share)

    answers = judged.answers(tasks, claude=texts)
    chance = IntervalSettings(resamples=20)
    record = judged.record(published, published.judge(answers, judged.judges(replay), chance), answers, chance)
    official = leaderboard(shared_data, model)
    (row,) = record["length_controlled"]["rows"]
    assert row["win_rate"] == pytest.approx(float(official["win_rate"]), abs=1e-6)
    assert row["length_controlled"] == pytest.approx(float(official["length_controlled_winrate"]), abs=0.3)
    # the published instructions, baseline and regression, but not the leaderboard's judge and prompt
    assert record["length_controlled"]["comparable"] is False
    assert "the leaderboard's judge is" in record["length_controlled"]["why_not"]
