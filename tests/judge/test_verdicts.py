"""What a judge said: parsers on texts worked by hand, thinking, failures, orders, votes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.generate.engine import Completion, Failure
from posttrain.judge import verdicts
from posttrain.judge.verdicts import BothOrders, Missing

reasons = st.sampled_from(["transport", "refused", "length", "empty", "parse", "ambiguous", "out_of_range"])
positions = st.sampled_from(["first", "second", "tie"])
anything = st.one_of(positions, st.builds(Missing, reasons))


def reason(value):
    assert isinstance(value, Missing)
    return value.reason


# ---- ratings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "published", "ours"),
    [
        ("Good.\n\nRating: [[8]]", 8.0, 8.0),
        ("Rating: [[8.5]]", 8.5, 8.5),
        ("Rating: [[10]].", 10.0, 10.0),
        ("Rating: [[7.]]", 7.0, "parse"),
        ("[[8]] as I said: [[8]]", 8.0, 8.0),
        ("Not a [[9]]. Rating: [[3]]", 9.0, "ambiguous"),
        ("As source [1] says. Rating: 4", 1.0, "parse"),
        ("Rating: [6]", 6.0, "parse"),
        ("Rating: [[ 6 ]]", "parse", 6.0),
        ("Rating: [[7/10]]", "parse", 7.0),
        ("Rating: [[70/100]]", "parse", "out_of_range"),
        ("Rating: [[5/5]]", "parse", "out_of_range"),
        ("Rating: [[55.2]]", 55.2, "out_of_range"),
        ("Rating: [[0]]", 0.0, "out_of_range"),
        ("Rating: [[-3]]", "parse", "parse"),
        ("评分：[[8分]]", "parse", 8.0),
        ("评分：【【8】】", "parse", 8.0),
        ("The answer is 5 out of 10.", "parse", "parse"),
        ("Rating: [[rating]]", "parse", "parse"),
        ("", "parse", "parse"),
    ],
)
def test_ratings(text, published, ours):
    for found, expected in ((verdicts.mt_bench_rating(text), published), (verdicts.rating(text), ours)):
        assert (found.reason if isinstance(found, Missing) else found) == expected


def test_the_scale_of_a_rating_can_be_another():
    assert verdicts.rating("[[4/5]]", 1, 5) == 4
    assert reason(verdicts.rating("[[8]]", 1, 5)) == "out_of_range"


def test_a_missing_rating_shows_the_place_where_it_should_be():
    found = verdicts.rating("x" * 1000 + " I give it an eight.")
    assert found.detail.endswith("I give it an eight.")
    assert len(found.detail) == 200
    assert verdicts.rating("[[3]] or [[4]]").detail == "[[3]] [[4]]"


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (8, 6, "first"),
        (6, 8, "second"),
        (7, 7, "tie"),
        (7.1, 7.0, "tie"),
        (9.1, 9.0, "tie"),
        (1.1, 1.0, "tie"),
        (7.2, 7.0, "first"),
    ],
)
def test_scores_become_a_verdict(first, second, verdict):
    assert verdicts.verdict_of_scores(first, second) == verdict


@given(st.integers(10, 100), st.integers(10, 100))
def test_a_tie_is_a_difference_of_at_most_a_tenth_in_tenths(first, second):
    found = verdicts.verdict_of_scores(first / 10, second / 10)
    assert (found == "tie") == (abs(first - second) <= 1)
    assert verdicts.verdict_of_scores(second / 10, first / 10) == verdicts.mirrored(found)


# ---- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "published", "ours"),
    [
        ("Assistant A is better. [[A]]", "first", "first"),
        ("Final verdict: [[B]]", "second", "second"),
        ("[[C]]", "tie", "tie"),
        # The published rule looks for A first, wherever it stands.
        ("A short answer would get [[A]].\nBut this one is wrong: [[B]]", "first", "second"),
        ("[[B]] at first sight.\nOn reflection: [[A]]", "first", "first"),
        ("[[C]] would be fair.\nVerdict: [[B]]", "second", "second"),
        ("It is [[A]] or [[B]].", "first", "ambiguous"),
        ("I said [[A]].\nNow I doubt between [[A]] and [[B]].", "first", "ambiguous"),
        ('Output "[[A]]" if A is better, "[[B]]" if B is, "[[C]]" for a tie.', "first", "ambiguous"),
        ("[[A]] yes, [[A]]", "first", "first"),
        ("Verdict: [[ b ]]", "parse", "second"),
        ("结论：【【B】】", "parse", "second"),
        ("结论：［［B］］", "parse", "second"),
        ("结论：[[平局]]", "parse", "tie"),
        ("[[Tie]]", "parse", "tie"),
        ("Verdict: [A]", "parse", "parse"),
        ("Assistant B wins.", "parse", "parse"),
        ("[[AB]]", "parse", "parse"),
    ],
)
def test_pairs(text, published, ours):
    for found, expected in ((verdicts.mt_bench_pair(text), published), (verdicts.pair_verdict(text), ours)):
        assert (found.reason if isinstance(found, Missing) else found) == expected


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A>>B]]", "first>>"),
        ("[[A>B]]", "first>"),
        ("[[A=B]]", "tie"),
        ("[[B>A]]", "second>"),
        ("[[B>>A]]", "second>>"),
        ("[[A<<B]]", "second>>"),
        ("My final verdict is: [[b>a]]", "second>"),
        ("First [[A>B]], then after all [[B>A]]", "second>"),
        ("[A>B]", "first>"),
        ("[[A>B]] but not [B>A]", "first>"),  # single brackets only where there are no double ones
        ("[[A]]", "parse"),
        ("[[A>B]] no: [[A]]", "parse"),
        ("A>B", "parse"),
    ],
)
def test_arena_hard(text, verdict):
    found = verdicts.arena_hard(text)
    assert (found.reason if isinstance(found, Missing) else found) == verdict


def test_five_labels_have_sides():
    assert [verdicts.side(v) for v in ("first>>", "first>", "tie", "second>", "second>>")] == [
        *("first", "first", "tie", "second", "second")
    ]


# ---- replies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("[[A]]", "stop", "first"),
        ("<think>Surely [[A]]?</think>No. [[B]]", "stop", "second"),
        ("Surely [[A]]?</think>No. [[B]]", "stop", "second"),  # the template opened the block
        ("<think>one</think><think>[[A]]</think>[[C]]", "stop", "tie"),
        ("<think>Surely [[A]]", "stop", "length"),
        ("<think>Surely [[A]]", "length", "length"),
        ("<think>x</think>[[A]]<think>or", "stop", "length"),
        ("<think>[[A]]</think>", "stop", "empty"),
        ("<think>[[A]]</think>", "length", "length"),
        ("", "stop", "empty"),
        ("", "length", "length"),
        ("   \n", "stop", "empty"),
        ("Assistant A might seem [[A]], but", "length", "length"),
        ("[[A]]", "content_filter", "refused"),
        ("I'm sorry, but I can't help with evaluating this content.", "stop", "refused"),
        ("抱歉，我无法对这些内容进行评价。", "stop", "refused"),
        ("I'm sorry, but I can't help preferring the second. [[B]]", "stop", "second"),
        ("Both are fine.", "stop", "parse"),
    ],
)
def test_replies(text, finish, expected):
    found = verdicts.judged(text, finish, verdicts.pair_verdict)
    assert (found.reason if isinstance(found, Missing) else found) == expected


def test_a_failed_call_is_never_text():
    # The error quotes what a parser would take for a verdict.
    found = verdicts.read(Failure("server_error", "500: expected [[A]]"), verdicts.mt_bench_pair)
    assert found == Missing("transport", "server_error: 500: expected [[A]]")
    assert verdicts.read(Completion("[[A]]", reasoning="[[B]]"), verdicts.pair_verdict) == "first"
    assert reason(verdicts.read(Completion("", finish="length", reasoning="[[A]]"), verdicts.pair_verdict)) == "length"
    assert reason(verdicts.read(Completion("[[A]]", finish="content_filter"), verdicts.pair_verdict)) == "refused"


def test_thinking_is_not_parsed_for_ratings_either():
    found = verdicts.judged("<think>maybe [[3]]</think>Rating: [[9]]", "stop", verdicts.rating)
    assert found == 9.0


# ---- orders and votes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "swapped", "outcome", "consistent", "position"),
    [
        ("first", "second", "first", True, None),
        ("second", "first", "second", True, None),
        ("tie", "tie", "tie", True, None),
        ("first", "first", "tie", False, "first"),
        ("second", "second", "tie", False, "second"),
        ("first", "tie", "tie", False, None),
        ("tie", "second", "tie", False, None),
    ],
)
def test_two_games(original, swapped, outcome, consistent, position):
    judgments = BothOrders(original, swapped)
    assert (judgments.outcome, judgments.consistent, judgments.position) == (outcome, consistent, position)
    assert (judgments.original, judgments.swapped) == (original, swapped)


@given(anything, anything)
def test_exchanging_the_models_exchanges_the_outcome(original, swapped):
    one, two = BothOrders(original, swapped), BothOrders(swapped, original)
    assert one.consistent == two.consistent
    assert one.position == two.position
    if isinstance(one.outcome, Missing):
        assert isinstance(two.outcome, Missing)
        assert one.consistent is None
        assert one.outcome in (original, swapped)
    else:
        assert two.outcome == verdicts.mirrored(one.outcome)
        assert (one.outcome == "tie") >= (not one.consistent)


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        (["first", "first", "second"], "first"),
        (["first", "second"], "tie"),
        (["tie", "tie", "second"], "tie"),
        (["first", "second", "tie"], "tie"),
        (["second", Missing("parse"), Missing("parse")], "second"),
        (["second"], "second"),
    ],
)
def test_majority(votes, verdict):
    for order in itertools.permutations(votes):
        assert verdicts.majority(order) == verdict


def test_a_majority_of_nothing_is_missing_for_the_commonest_reason():
    found = verdicts.majority([Missing("transport"), Missing("parse"), Missing("transport")])
    assert found == Missing("transport", "none of 3 has a verdict")


@given(st.lists(anything, min_size=1, max_size=12))
def test_accounts_sum_up_and_exchanging_the_models_exchanges_the_majority(values):
    account = verdicts.account(values)
    assert account.parsed + sum(account.missing.values()) == len(values) == account.asked
    assert account.asked - account.answered == account.missing.get("transport", 0)
    winner = verdicts.majority(values)
    if not isinstance(winner, Missing):
        swapped = [v if isinstance(v, Missing) else verdicts.mirrored(v) for v in values]
        assert verdicts.majority(swapped) == verdicts.mirrored(winner)


def test_zero_is_a_rating_and_no_missing_value():
    assert verdicts.account([0.0, 5.0, Missing("ambiguous")]) == verdicts.Accounting(3, 3, 2, {"ambiguous": 1})
