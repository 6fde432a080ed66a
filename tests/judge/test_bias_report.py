"""The bias report of judges whose bias is known: it must say exactly that."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.generate.engine import Failure
from posttrain.generate.fake import FakeEngine
from posttrain.judge.bias import bias_report, length_slope
from posttrain.judge.config import Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Ask, Judgment, judge, prepared
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import Missing
from posttrain.stats.intervals import IntervalSettings, wilson

PAIR = load_prompt("pair", "pair")


def report(items, script, **plan):
    return bias_report(
        items, judge(FakeEngine(script), items, PAIR, Plan(**plan)), settings=IntervalSettings(resamples=200)
    )


def test_always_the_first(items, judges):
    found = report(items, judges["first"]).overall
    assert found.calls.asked == found.calls.parsed == 8
    assert (found.judged, found.dropped) == (4, 0)
    assert found.orders.consistent.estimate == 0
    assert found.orders.to_first == wilson(4, 4)
    assert found.orders.to_second.estimate == 0
    assert found.orders.direction_p == 0.125  # 2 of the 16 ways four coins can fall
    assert found.first_shown == wilson(8, 8)
    assert found.ties == wilson(4, 4)
    assert found.length.decided == 0
    assert found.length.longer is None
    assert found.length.difference is None


def test_the_longer_reply(items, judges):
    found = report(items, judges["longer"]).overall
    assert found.orders.consistent == wilson(4, 4)
    assert found.orders.direction_p == 1
    assert found.first_shown == wilson(4, 8)
    assert found.ties.estimate == 0
    assert found.length.longer == wilson(4, 4)
    assert found.length.p_value == 0.125
    assert found.length.difference.estimate == (6 + 6 + 8 + 10) / 4


def test_a_perfect_judge(items, judges):
    whole = report(items, judges["perfect"])
    found = whole.overall
    assert found.orders.consistent == wilson(4, 4)
    assert found.length.longer == wilson(2, 4)
    assert found.length.p_value == 1
    assert found.length.difference.estimate == (-6 + 6 + 8 - 10) / 4
    assert {row.accuracy for row in whole.mitigations} == {wilson(4, 4)}
    assert {row.changed.estimate for row in whole.mitigations} == {0}


def test_prose_without_a_verdict(items, judges):
    whole = report(items, judges["prose"])
    found = whole.overall
    assert (found.calls.asked, found.calls.answered, found.calls.parsed) == (8, 8, 0)
    assert found.calls.missing == {"parse": 8}
    assert found.failures == {}
    assert (found.judged, found.dropped) == (0, 4)
    assert found.orders.consistent is None
    assert found.orders.missing == {"parse": 8}
    assert found.first_shown is None
    assert found.ties is None
    assert {row.questions for row in whole.mitigations} == {0}
    assert {row.win_rate_a for row in whole.mitigations} == {None}


def test_calls_that_fail(items):
    found = report(items, [Failure("timeout", "slow")] * 6 + [Failure("budget", "cap")] * 2).overall
    assert (found.calls.asked, found.calls.answered) == (8, 0)
    assert found.calls.missing == {"transport": 8}
    assert found.failures == {"timeout": 6, "budget": 2}
    assert (found.judged, found.dropped) == (0, 4)


def test_one_failed_call_costs_its_question_only(items, judges):
    (_, first), *_ = prepared(items, PAIR, Plan())
    whole = report(items, lambda r: Failure("timeout", "slow") if r == first else judges["perfect"](r))
    assert (whole.overall.judged, whole.overall.dropped) == (3, 1)
    assert whole.overall.orders.judged == 3
    # every way of asking is compared on the same three questions, also the one that did not lose a call
    assert {row.questions for row in whole.mitigations} == {3}


def test_categories_are_apart(items, judges):
    def script(request):  # fair in maths, the first one elsewhere
        fair = "1+" in request.prompt[-1].content
        return judges["perfect"](request) if fair else "[[A]]"

    found = report(items, script)
    assert list(found.by_category) == ["math", "writing"]
    assert found.by_category["math"].orders.consistent == wilson(2, 2)
    assert found.by_category["writing"].orders.to_first == wilson(2, 2)
    assert found.overall.orders.consistent == wilson(2, 4)


def test_emphasis_that_helps(items, judges):
    """Always the first, but right when the prompt insists. On the same four questions, by hand."""

    def script(request):
        return judges["perfect"](request) if "Pay attention" in request.prompt[-1].content else "[[A]]"

    found = report(items, script, emphasis="both")
    rows = {row.name: row for row in found.mitigations}
    assert list(rows) == [
        "a shown first",
        "b shown first",
        "both orders",
        "a shown first, emphasised",
        "b shown first, emphasised",
        "both orders, emphasised",
    ]

    def told(name):
        row = rows[name]
        consistent = None if row.consistent is None else row.consistent.estimate
        values = [x.estimate for x in (row.win_rate_a, row.ties, row.first_shown, row.changed, row.accuracy)]
        return [*values, consistent]

    assert told("a shown first") == [1, 0, 1, 0, 0.5, None]
    assert told("b shown first") == [0, 0, 1, 1, 0.5, None]
    assert told("both orders") == [0.5, 1, 1, 1, 0, 0]
    assert told("a shown first, emphasised") == [0.5, 0, 0.5, 0.5, 1, None]
    assert told("both orders, emphasised") == [0.5, 0, 0.5, 0.5, 1, 1]
    # the result itself stays that of the plain prompt
    assert not found.emphasised
    assert found.overall.orders.to_first == wilson(4, 4)


def test_a_majority_of_samples_that_helps(items, judges):
    """The first sample is wrong, the other two are right."""

    def script(request):
        right = judges["perfect"](request)
        return right if request.sample else ("[[B]]" if "[[A]]" in right else "[[A]]")

    rows = {row.name: row for row in report(items, script, samples=3).mitigations}
    assert rows["a shown first"].ties.estimate == 0  # one sample, no split vote
    assert rows["both orders"].accuracy.estimate == 0
    assert rows["a shown first, majority of 3"].accuracy.estimate == 1
    assert rows["both orders, majority of 3"].accuracy.estimate == 1
    assert rows["both orders, majority of 3"].changed.estimate == 1
    assert rows["both orders, majority of 3"].consistent.estimate == 1


def test_one_order_claims_nothing_about_consistency(items, judges):
    found = report(items, judges["first"], orders="original")
    assert found.overall.orders is None
    assert [row.name for row in found.mitigations] == ["a shown first"]
    assert found.mitigations[0].consistent is None


def test_only_emphasised_is_said(items, judges):
    assert report(items, judges["first"], emphasis="yes").emphasised


def test_the_label_is_compared_with_the_last_turn_only():
    item = Item("q", ("1", "2"), ("a1", "a2"), ("b1", "b2"), label="first")
    judgments = [
        Judgment(Ask(0, turn, order, 0, False), verdict)
        for turn, winner in ((1, "b"), (2, "a"))
        for order, verdict in (
            ("original", "first" if winner == "a" else "second"),
            ("swapped", "second" if winner == "a" else "first"),
        )
    ]
    row = bias_report([item], judgments, settings=IntervalSettings(resamples=50)).mitigations[-1]
    assert row.questions == 2
    assert row.accuracy == wilson(1, 1)


def test_renaming_the_models_mirrors_the_report(items, judges):
    """a and b exchanged: the judge is the same, so is its bias."""
    turned = [
        Item(i.id, i.turns, i.replies_b, i.replies_a, i.category, label="second" if i.label == "first" else "first")
        for i in items
    ]

    def script(request):  # some bias of every kind
        text = request.prompt[-1].content
        return judges["longer"](request) if "Ode" in text else "[[B]]" if "Poem" in text else judges["perfect"](request)

    one, other = report(items, script), report(turned, script)
    assert one.overall == other.overall
    both, mirrored = one.mitigations[-1], other.mitigations[-1]
    assert both.win_rate_a.estimate == 1 - mirrored.win_rate_a.estimate
    assert (both.accuracy, both.consistent) == (mirrored.accuracy, mirrored.consistent)


VALUES = st.sampled_from(["first", "second", "tie", Missing("parse"), Missing("transport", "timeout: slow")])
QUESTIONS = st.lists(st.tuples(VALUES, VALUES, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


def played(questions, turned=False):
    """Items with replies of the given lengths, and their judgments; ``turned``: a and b have changed names, nothing else."""
    items, judgments = [], []
    for place, (original, swapped, length_a, length_b) in enumerate(questions):
        replies = ("x" * length_a,), ("y" * length_b,)
        items.append(Item(f"q{place}", ("Q",), *(replies[::-1] if turned else replies)))
        values = (swapped, original) if turned else (original, swapped)
        judgments += [
            Judgment(Ask(place, 1, order, 0, False), v)
            for order, v in zip(("original", "swapped"), values, strict=True)
        ]
    return items, judgments


@given(QUESTIONS)
def test_the_account_sums_up(questions):
    found = bias_report(*played(questions), settings=IntervalSettings(resamples=2)).overall
    assert found.calls.asked == 2 * len(questions)
    assert found.calls.answered == found.calls.asked - sum(found.failures.values())
    assert found.calls.parsed == found.calls.asked - sum(found.calls.missing.values())
    assert found.judged + found.dropped == len(questions)
    assert found.orders.judged == found.judged
    if found.judged:
        shares = (found.orders.consistent, found.orders.to_first, found.orders.to_second, found.orders.half_tie)
        assert sum(share.estimate for share in shares) == pytest.approx(1)


@given(QUESTIONS)
def test_bias_does_not_depend_on_the_names_of_the_models(questions):
    one, other = (
        bias_report(*played(questions, turned), settings=IntervalSettings(resamples=2)) for turned in (False, True)
    )
    assert one.overall == other.overall


def test_a_failed_call_is_counted_by_its_reason(items):
    found = bias_report(items, [Judgment(Ask(0, 1, "none", 0, False), Missing("transport", "invalid_request: long"))])
    assert found.overall.failures == {"invalid_request": 1}


# ---- how far length decides ----------------------------------------------------------------------------------------

Z = 1.959963984540054


def test_the_slope_by_hand():
    """Three times as long (1 + 2 characters against 1 + 0) and three wins of four: odds 3 at a ratio of 3 is a slope of 1."""
    found = length_slope([(2, 0), (2, 0), (2, 0), (0, 2)], [False] * 4, "abcd")
    assert found.estimate == pytest.approx(1, abs=1e-11)
    half = Z * math.sqrt(4 / 3 / (4 * 3 / 16 * math.log(3) ** 2))
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half))


def test_a_tie_is_half_a_win_of_each():
    found = length_slope([(2, 0), (0, 2)], [False, True], "ab")
    assert found.estimate == pytest.approx(1, abs=1e-11)


def test_turns_of_one_item_are_one_observation():
    lengths = [(20, 10), (12, 30), (7, 5), (80, 90)]
    once = length_slope(lengths, [False] * 4, "abcd")
    twice = length_slope([one for one in lengths for _ in range(2)], [False] * 8, "aabbccdd")
    assert twice == pytest.approx(once)


@pytest.mark.parametrize(
    ("lengths", "ties", "clusters"),
    [
        ([(5, 3), (9, 2)], [False, False], "ab"),  # the longer one always wins
        ([(3, 5), (2, 9)], [False, False], "ab"),  # never
        ([(5, 3), (9, 2)], [True, True], "ab"),  # nothing is decided
        ([(5, 5), (2, 2)], [False, False], "ab"),  # no difference in length
        ([(5, 3), (3, 5)], [False, False], "aa"),  # one item
        ([], [], ""),
    ],
)
def test_no_slope_where_there_is_none(lengths, ties, clusters):
    assert length_slope(lengths, ties, clusters) is None


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.booleans()), min_size=3, max_size=30))
def test_the_slope_maximises_the_likelihood(rows):
    found = length_slope([row[:2] for row in rows], [row[2] for row in rows], [str(k) for k in range(len(rows))])
    if found is None:
        return

    def loss(slope):
        total = 0.0
        for one, other, tie in rows:
            x = slope * math.log((1 + one) / (1 + other))
            total += (np.logaddexp(0, -x) + np.logaddexp(0, x)) / 2 if tie else np.logaddexp(0, -x)
        return total

    step = 1e-3 * max(1.0, abs(found.estimate))
    assert loss(found.estimate) <= min(loss(found.estimate - step), loss(found.estimate + step)) + 1e-12


def test_the_report_holds_the_slope_of_all_outcomes(items, judges):
    perfect = report(items, judges["perfect"]).overall.length
    lengths = [(4, 10), (9, 3), (12, 4), (4, 14)]
    assert perfect.slope == length_slope(lengths, [False] * 4, "abcd")
    assert report(items, judges["longer"]).overall.length.slope is None
    assert report(items, judges["first"]).overall.length.slope is None
