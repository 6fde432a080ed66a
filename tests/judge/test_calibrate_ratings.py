"""A judge's ratings beside people's: every measure by hand, the decision at its edges, and GPT-4 beside itself on real replies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from posttrain.generate.fake import FakeEngine
from posttrain.judge.calibrate import calibrate_ratings
from posttrain.judge.config import Plan
from posttrain.judge.items import Item, read_items
from posttrain.judge.judge import Ask, Judgment, judge
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import Missing
from posttrain.stats.intervals import IntervalSettings, wilson


def rated(labels):
    return [Item(f"q{k}", ("Q",), ("reply",), rating=float(label)) for k, label in enumerate(labels)]


def judgments_of(values, sample=0):
    return [Judgment(Ask(place, 1, "none", sample, False), value) for place, value in enumerate(values)]


def test_every_measure_by_hand():
    """People 2 4 6 8, judge 3 4 6 9: means 5 and 5.5, variances 5 and 5.25, covariance 5, mean squared difference 1/2."""
    found = calibrate_ratings(
        rated([2, 4, 6, 8]), judgments_of([3.0, 4.0, 6.0, 9.0]), settings=IntervalSettings(resamples=200)
    )
    assert (found.replies, found.rated) == (4, 4)
    assert found.spearman.estimate == pytest.approx(1)
    assert found.pearson.estimate == pytest.approx(5 / (5 * 5.25) ** 0.5)
    assert found.kappa.estimate == pytest.approx(1 - 0.5 / (5 + 5.25 + 0.5**2))
    assert found.error.estimate == 0.5
    assert found.shift.estimate == 0.5
    assert found.exact == wilson(2, 4)
    assert found.within_one == wilson(4, 4)
    assert found.constant_error == 2  # the median is 5
    assert found.calls.parsed == 4


GOOD = [1, 3, 5, 7, 9] * 8


def test_a_judge_that_follows_people_is_good_enough():
    found = calibrate_ratings(
        rated(GOOD), judgments_of([float(v + (v < 5)) for v in GOOD]), settings=IntervalSettings(resamples=500)
    )
    assert found.decision == "good enough"
    assert len(found.reasons) == 3
    assert found.reasons[0].startswith("rank correlation 1.00 (1.00 to 1.00): the lower end reaches 0.5")
    assert "0.40 points off on average" in found.reasons[1]
    assert "the upper end is below 2.40, the error of a constant answer" in found.reasons[1]
    assert found.reasons[2] == "0.0% of the calls have no verdict: at most 5%"


def test_few_replies_decide_nothing():
    found = calibrate_ratings(
        rated(GOOD[:29]), judgments_of(list(map(float, GOOD[:29]))), settings=IntervalSettings(resamples=100)
    )
    assert found.decision == "not decided"
    assert "29 rated replies: fewer than 30 decide nothing" in found.reasons
    enough = calibrate_ratings(
        rated(GOOD[:30]), judgments_of(list(map(float, GOOD[:30]))), settings=IntervalSettings(resamples=100)
    )
    assert enough.decision == "good enough"


def test_right_order_and_wrong_level_is_not_good_enough():
    found = calibrate_ratings(
        rated(GOOD), judgments_of([v / 10 for v in GOOD]), settings=IntervalSettings(resamples=200)
    )
    assert found.spearman.estimate == pytest.approx(1)
    assert found.shift.estimate == pytest.approx(-4.5)
    assert found.decision == "not good enough"
    assert "even the lower end reaches 2.40" in found.reasons[1]


def test_a_judge_against_the_order_of_people():
    found = calibrate_ratings(
        rated(GOOD), judgments_of([float(10 - v) for v in GOOD]), settings=IntervalSettings(resamples=200)
    )
    assert found.spearman.estimate == pytest.approx(-1)
    assert found.decision == "not good enough"
    assert "even the upper end is below 0.5" in found.reasons[0]


def test_missing_ratings_are_not_wrong_but_too_many_spoil_it():
    values = list(map(float, GOOD))
    found = calibrate_ratings(
        rated(GOOD), judgments_of([*values[:-2], *[Missing("parse")] * 2]), settings=IntervalSettings(resamples=200)
    )
    assert (found.replies, found.rated) == (40, 38)
    assert found.exact == wilson(38, 38)
    assert found.decision == "good enough"  # 2 of 40 is 5%
    found = calibrate_ratings(
        rated(GOOD), judgments_of([*values[:-3], *[Missing("parse")] * 3]), settings=IntervalSettings(resamples=200)
    )
    assert found.decision == "not good enough"
    assert found.calls.missing == {"parse": 3}
    nothing = calibrate_ratings(
        rated(GOOD), judgments_of([Missing("length")] * 40), settings=IntervalSettings(resamples=200)
    )
    assert (nothing.decision, nothing.reasons) == ("not good enough", ("no reply has a rating",))
    assert nothing.spearman is None
    assert nothing.error is None


def test_constant_raters():
    stamp = calibrate_ratings(rated(GOOD), judgments_of([5.0] * 40), settings=IntervalSettings(resamples=100))
    assert stamp.spearman is None
    assert stamp.decision == "not good enough"
    assert stamp.reasons == ("the judge gives every reply the same rating",)
    people = calibrate_ratings(
        rated([5] * 40), judgments_of(list(map(float, GOOD))), settings=IntervalSettings(resamples=100)
    )
    assert people.decision == "not decided"
    assert people.pearson is None


def test_samples_are_averaged_and_only_last_turns_count():
    item = Item("q", ("1", "2"), ("a1", "a2"), rating=4.0)
    turn = Judgment(Ask(0, 1, "none", 0, False), 9.0)
    draws = [Judgment(Ask(0, 2, "none", k, False), value) for k, value in enumerate((3.0, 4.0, Missing("parse")))]
    found = calibrate_ratings([item], [turn, *draws], settings=IntervalSettings(resamples=10))
    assert found.error.estimate == 0.5
    assert found.calls.asked == 3


def test_what_can_not_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="no rating by people"):
        calibrate_ratings([Item("q", ("Q",), ("reply",))], judgments_of([3.0]))


def test_from_a_file_to_a_decision(cli, tmp_path, monkeypatch):
    from posttrain.generate import engines

    engine = FakeEngine(lambda request: f"[[{request.prompt[-1].content.count('!')}]]")
    monkeypatch.setattr(engines, "open_source", lambda *_: engine)
    path = tmp_path / "rated.jsonl"
    records = [{"id": k, "prompt": "Q", "reply": "!" * (1 + k % 5), "label": 1 + k % 5} for k in range(30)]
    records[0]["reply"] = "!!"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"id": "x"}]))
    server = ("--endpoint", "http://127.0.0.1:9/v1", "--model", "j")
    arguments = ("judge", "calibrate", path, "-o", tmp_path / "out", *server, "--prompt", "rubric")
    done = cli(*arguments, "--criteria", "As many marks as points: yes")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "calibrate" / "summary.json").read_text())
    assert found["scale"] == [1, 5]
    assert found["bad_lines"]["count"] == 1
    assert found["calibration"]["j"]["error"]["estimate"] == pytest.approx(1 / 30)
    assert found["calibration"]["j"]["decision"] == "good enough"
    assert "Quadratic kappa" in done.out
    assert "j: good enough" in done.out
    path.write_text(json.dumps(records[0] | {"label": 7}) + "\n")
    told = cli(*arguments, "--criteria", "As many marks as points: yes").refused()
    assert f"{path}:1: label 7 is off the judge's scale of 1 to 5" in told.replace("\n", " ")
    path.write_text(json.dumps(records[0] | {"label": "a"}) + "\n")
    assert "label 'a': a number is needed" in cli(*arguments, "--criteria", "x").refused()
    path.write_text(json.dumps({key: value for key, value in records[0].items() if key != "label"}) + "\n")
    assert "no label: a number is needed" in cli(*arguments, "--criteria", "x").refused()


def asked_for(request):
    """The number of the question in a request."""
    return int(re.search(r"Q(\d+)#", request.prompt[-1].content)[1])


@pytest.mark.shared
def test_gpt4_beside_itself_on_the_replies_of_vicuna_bench(shared_data: Path, tmp_path: Path) -> None:
    """Three ratings of GPT-4 for each of 320 replies (Prometheus' evaluation set): the first judges, the second is the label."""
    from scipy.stats import pearsonr, spearmanr

    source = shared_data / "prometheus-eval" / "eval__benchmark__data__vicuna_eval.json"
    records = [record for record in json.loads(source.read_text(encoding="utf-8")) if len(record["gpt4_score"]) == 3]
    path = tmp_path / "rated.jsonl"
    lines = [
        {"id": record["idx"], "model": record["response_source"], "prompt": f"Q{k}#", "reply": record["instruction"]}
        | {"label": record["gpt4_score"][1]}
        for k, record in enumerate(records)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    items = read_items(path, "single", labelled=True).items
    assert len(items) == len(records) == 320
    engine = FakeEngine(lambda request: f"[[{records[asked_for(request)]['gpt4_score'][0]}]]")
    judgments = judge(engine, items, load_prompt("rubric", "single"), Plan(criteria="as in the rubric"))
    found = calibrate_ratings(items, judgments, settings=IntervalSettings(resamples=200))
    said, labels = np.array([[record["gpt4_score"][k] for record in records] for k in (0, 1)], dtype=float)
    assert found.rated == 320
    assert found.spearman.estimate == pytest.approx(spearmanr(said, labels).statistic)
    assert found.pearson.estimate == pytest.approx(pearsonr(said, labels).statistic)
    assert found.exact.estimate == (said == labels).mean()
    assert found.error.estimate == pytest.approx(np.abs(said - labels).mean())
    assert found.spearman.low > 0.5
    assert found.decision == "good enough"
