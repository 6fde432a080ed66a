"""Is a judge good enough? The decision at its edges, and the measures by hand."""

from __future__ import annotations

import pytest

from posttrain.generate.fake import FakeEngine
from posttrain.judge.agreement import cohen_kappa
from posttrain.judge.calibrate import calibrate
from posttrain.judge.config import Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Ask, Judgment, judge
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import Missing, mirrored
from posttrain.stats.intervals import IntervalSettings, wilson


def labelled(count, label=lambda k: "first" if k % 2 else "second"):
    return [Item(f"q{k}", ("Q",), ("a",), ("b",), label=label(k)) for k in range(count)]


def judgments_of(outcomes, inconsistent=0, missing=0):
    """Two judgments a question; the first ``inconsistent`` always to the first, the last ``missing`` without a verdict."""
    judgments = []
    for place, outcome in enumerate(outcomes):
        for order in ("original", "swapped"):
            value = outcome if order == "original" else mirrored(outcome)
            if place < inconsistent:
                value = "first"
            if place >= len(outcomes) - missing:
                value = Missing("parse")
            judgments.append(Judgment(Ask(place, 1, order, 0, False), value))
    return judgments


def test_a_perfect_judge_on_enough_pairs_is_good_enough():
    items = labelled(40)
    found = calibrate(items, judgments_of([item.label for item in items]), settings=IntervalSettings(resamples=200))
    assert found.decision == "good enough"
    assert found.measured.both_orders == wilson(40, 40)
    assert found.measured.kappa.estimate == 1
    assert found.chance == 0.5
    assert len(found.reasons) == 3
    assert "accuracy 100.0% (91.2% to 100.0%): the lower end reaches 60.0%" in found.reasons[0]


def test_a_perfect_judge_on_four_pairs_is_not_decided():
    items = labelled(4)
    found = calibrate(items, judgments_of([item.label for item in items]), settings=IntervalSettings(resamples=200))
    assert found.decision == "not decided"  # 4 of 4: from 51% on
    assert "the interval holds 60.0%" in found.reasons[0]


def test_a_judge_of_order_is_not_good_enough(items, judges):
    judgments = judge(FakeEngine(judges["first"]), items, load_prompt("pair", "pair"), Plan(turns="last"))
    found = calibrate(items, judgments, settings=IntervalSettings(resamples=200))
    assert found.decision == "not good enough"
    assert found.measured.both_orders.estimate == 0
    assert found.measured.one_order.estimate == 0.5
    assert found.measured.orders.consistent.estimate == 0


def test_inconsistency_alone_spoils_it():
    items = labelled(200)
    found = calibrate(
        items, judgments_of([item.label for item in items], inconsistent=61), settings=IntervalSettings(resamples=200)
    )
    assert found.measured.both_orders.estimate == pytest.approx(139 / 200)
    assert found.measured.both_orders.low > 0.6
    assert found.decision == "not good enough"
    assert "69.5% of the pairs: less than 70%" in found.reasons[1]


def test_missing_verdicts_alone_spoil_it():
    items = labelled(100)
    outcomes = [item.label for item in items]
    assert (
        calibrate(items, judgments_of(outcomes, missing=5), settings=IntervalSettings(resamples=50)).decision
        == "good enough"
    )
    found = calibrate(items, judgments_of(outcomes, missing=6), settings=IntervalSettings(resamples=50))
    assert found.decision == "not good enough"
    assert found.measured.both_orders == wilson(94, 94)  # what is missing is not wrong
    assert found.calls.missing == {"parse": 12}


def test_chance_is_the_best_constant_answer():
    items = labelled(40, lambda k: "first" if k < 36 else "second")
    found = calibrate(items, judgments_of(["first"] * 40), settings=IntervalSettings(resamples=200))
    assert found.chance == 0.9
    assert found.decision == "not good enough"  # 90% right, as a stamp would be
    assert found.measured.kappa.estimate == 0


def test_kappa_is_between_outcome_and_label():
    items = labelled(8)
    outcomes = ["second", "first", "first", "first", "tie", "first", "second", "second"]
    found = calibrate(items, judgments_of(outcomes), settings=IntervalSettings(resamples=200))
    assert found.measured.both_orders == wilson(5, 8)
    assert (
        found.measured.kappa.estimate
        == cohen_kappa(outcomes, [i.label for i in items], settings=IntervalSettings(resamples=1)).estimate
    )


def test_without_any_verdict_nothing_is_claimed():
    items = labelled(3)
    found = calibrate(items, judgments_of(["first"] * 3, missing=3), settings=IntervalSettings(resamples=50))
    assert found.decision == "not good enough"
    assert found.reasons == ("no pair has a verdict in both orders",)


def test_a_judge_without_orders_is_not_praised_for_consistency():
    items = labelled(40)
    judgments = [Judgment(Ask(place, 1, "none", 0, False), item.label) for place, item in enumerate(items)]
    found = calibrate(items, judgments, settings=IntervalSettings(resamples=50))
    assert found.decision == "good enough"
    assert len(found.reasons) == 2
    assert not any("orders" in reason for reason in found.reasons)


def test_what_can_not_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="no label"):
        calibrate(labelled(1, lambda k: None), judgments_of(["first"]))
