"""Agreement: published examples, values worked by hand, the definitions in plain loops, invariants, coverage."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.judge import agreement, verdicts
from posttrain.judge.verdicts import BothOrders, Missing
from posttrain.stats import intervals as stats
from posttrain.stats.intervals import IntervalSettings

FEW = {"settings": IntervalSettings(resamples=50)}


# ---- two raters ----------------------------------------------------------------------------------------------------


def pairs_of(table):
    """The labels of two raters from a table of counts."""
    cells = [(a, b) for a, row in enumerate(table) for b, count in enumerate(row) for _ in range(count)]
    return [a for a, _ in cells], [b for _, b in cells]


def test_kappa_by_hand():
    # The textbook table of 50 grant proposals: observed 35/50, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5: (0.7 - 0.5) / 0.5.
    a, b = pairs_of([[20, 5], [10, 15]])
    assert agreement.raw_agreement(a, b).estimate == pytest.approx(0.7)
    assert agreement.cohen_kappa(a, b).estimate == pytest.approx(0.4)


def test_raw_agreement_flatters_raters_who_always_say_the_same():
    # Both say 0 nine times in ten, independently: 82% agreement, nothing beyond chance.
    a, b = pairs_of([[81, 9], [9, 1]])
    assert agreement.raw_agreement(a, b).estimate == pytest.approx(0.82)
    assert agreement.cohen_kappa(a, b).estimate == pytest.approx(0.0, abs=1e-12)


labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)


def kappa_in_loops(pairs, weight):
    n = len(pairs)
    observed = sum(weight(a, b) for a, b in pairs) / n
    expected = sum(weight(a, b) for a, _ in pairs for _, b in pairs) / n**2
    return math.nan if expected == 0 else 1 - observed / expected


@settings(max_examples=60)
@given(labels)
def test_kappa_is_its_definition(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    found = agreement.cohen_kappa(a, b, **FEW).estimate
    assert found == pytest.approx(kappa_in_loops(pairs, lambda x, y: x != y), nan_ok=True)
    swapped = agreement.cohen_kappa(b, a, **FEW).estimate
    assert swapped == pytest.approx(agreement.cohen_kappa(a, b, **FEW).estimate, nan_ok=True)


def test_kappa_of_one_label_is_not_defined():
    assert all(math.isnan(x) for x in agreement.cohen_kappa("aaa", "aaa", **FEW)[:3])
    # One of four resamples has "a" only: it is left out, the others are 1.
    assert agreement.cohen_kappa("ab", "ab", settings=IntervalSettings(resamples=400))[:3] == (1.0, 1.0, 1.0)


def test_two_items_have_the_three_possible_resamples():
    # Agree, disagree: 1 (p 1/4), 1/2 (p 1/2), 0 (p 1/4).
    assert agreement.raw_agreement("ab", "aa", settings=IntervalSettings(confidence=0.2))[:3] == (0.5, 0.5, 0.5)
    assert agreement.raw_agreement("ab", "aa")[:3] == (0.5, 0.0, 1.0)


def test_clusters_widen_the_interval():
    rng = random.Random(0)
    a = [rng.choice("ab") for _ in range(40)]
    b = [x if rng.random() < 0.8 else "a" for x in a]
    once = agreement.cohen_kappa(a, b)
    names = [i for i in range(40) for _ in range(9)]
    nine = agreement.cohen_kappa([a[i] for i in names], [b[i] for i in names], clusters_I=names)
    assert nine.estimate == pytest.approx(once.estimate)
    # The draws differ (items are sorted by what they add), the distribution does not.
    assert (nine.low, nine.high) == pytest.approx((once.low, once.high), abs=0.02)
    ignored = agreement.cohen_kappa([a[i] for i in names], [b[i] for i in names])
    assert ignored.high - ignored.low < 0.4 * (once.high - once.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # True kappa: agree with probability 0.85 on two equally likely labels: (0.85 - 0.5) / 0.5 = 0.7.
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        a = rng.integers(2, size=150)
        b = np.where(rng.random(150) < 0.85, a, 1 - a)
        found = agreement.cohen_kappa(a.tolist(), b.tolist(), settings=IntervalSettings(resamples=400, seed=seed))
        covered += found.low <= 0.7 <= found.high
    assert 0.87 < covered / 300 < 0.995


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    a, b = pairs_of([[20, 5], [10, 15]])
    whole = agreement.cohen_kappa(a, b, settings=IntervalSettings(resamples=500))
    monkeypatch.setattr(agreement, "_NUMBERS_AT_ONCE", 40)
    assert agreement.cohen_kappa(a, b, settings=IntervalSettings(resamples=500)) == whole


# ---- two raters on a scale -----------------------------------------------------------------------------------------

RATINGS = st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=30)
COEFFICIENTS = (agreement.pearson_correlation, agreement.spearman_correlation, agreement.quadratic_kappa)


def test_correlations_by_hand():
    # Deviations -1 0 1 and -1 2 -1: nothing in common. Ranks 1 2 3 and 1 3 2: 1 - 6 * 2 / (3 * 8).
    assert agreement.pearson_correlation([1, 2, 3], [4, 7, 4], **FEW).estimate == pytest.approx(0)
    assert agreement.spearman_correlation([1, 2, 3], [1, 30, 20], **FEW).estimate == pytest.approx(0.5)
    # Squared differences 0 1 1 0, and over all pairs of (1 2 3 4) and (1 3 2 4) a mean of 2.5.
    assert agreement.quadratic_kappa([1, 2, 3, 4], [1, 3, 2, 4], **FEW).estimate == pytest.approx(1 - 0.5 / 2.5)


@given(RATINGS)
def test_correlations_are_those_of_scipy(rows):
    from scipy.stats import pearsonr, spearmanr

    a, b = zip(*rows, strict=True)
    found = [one(a, b, settings=IntervalSettings(resamples=1)).estimate for one in COEFFICIENTS[:2]]
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert all(map(math.isnan, found))
    else:
        assert found == pytest.approx([pearsonr(a, b).statistic, spearmanr(a, b).statistic], abs=1e-9)


@given(RATINGS)
def test_quadratic_kappa_is_its_definition(rows):
    a, b = zip(*rows, strict=True)
    found = agreement.quadratic_kappa(a, b, settings=IntervalSettings(resamples=1)).estimate
    assert found == pytest.approx(kappa_in_loops(rows, lambda x, y: (x - y) ** 2), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_resamples_of_ratings_are_those_of_whole_clusters(coefficient):
    """Two clusters: the bootstrap draws one of them twice, or both. Values far from zero lose nothing to rounding."""
    a, b = [1e6 + x for x in (1, 2, 3, 9, 5, 7)], [1e6 + x for x in (2, 1, 3, 5, 9, 8)]
    whole, *halves = (
        coefficient(a[part], b[part], settings=IntervalSettings(resamples=1)).estimate
        for part in (slice(None), slice(0, 3), slice(3, 6))
    )
    found = coefficient(a, b, clusters_I=[0, 0, 0, 1, 1, 1], settings=IntervalSettings(resamples=400))
    assert found.estimate == pytest.approx(whole)
    assert (found.low, found.high) == pytest.approx((min(whole, *halves), max(whole, *halves)))


def test_resamples_with_one_value_are_left_out():
    found = agreement.spearman_correlation([1, 2], [1, 2], settings=IntervalSettings(resamples=400))
    assert tuple(found[:3]) == pytest.approx((1, 1, 1))
    found = agreement.pearson_correlation([0.1, 0.3], [0.7, 0.9], settings=IntervalSettings(resamples=400))
    assert tuple(found[:3]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_lists_of_ratings_must_be_whole(coefficient):
    for a, b in (([], []), ([1.0], [1.0, 2.0]), ([1.0], [math.nan]), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match=r"two lists|a list of values|finite"):
            coefficient(a, b)


# ---- a judge in both orders ----------------------------------------------------------------------------------------

GAMES = [
    BothOrders("first", "second"),  # a, a
    BothOrders("first", "second"),
    BothOrders("first", "first"),  # position
    BothOrders("second", "second"),
    BothOrders("first", "first"),
    BothOrders("tie", "tie"),
    BothOrders("tie", "first"),
    BothOrders(Missing("parse"), "first"),  # b in the only judgment
    BothOrders(Missing("transport"), Missing("parse")),
]


def test_order_effects_by_hand():
    found = agreement.order_effects(GAMES)
    assert (found.pairs, found.judged) == (9, 7)
    assert found.consistent == stats.wilson(3, 7)
    assert found.to_first == stats.wilson(2, 7)
    assert found.to_second == stats.wilson(1, 7)
    assert found.half_tie == stats.wilson(1, 7)
    assert found.ties == stats.wilson(1, 7)
    assert found.direction_p == stats.mcnemar(2, 1) == 1.0
    assert found.missing == {"parse": 2, "transport": 1}


def test_calibration_by_hand():
    gold = ["first", "second", "first", "first", "second", "tie", "second", "second", "first"]
    found = agreement.calibration(GAMES, gold, settings=IntervalSettings(resamples=200))
    # Right judgments of each pair, a judgment in models: 2 (a a), 0 (a a), 1 (a b), 1 (b a), 1 (a b), 2 (ties), 1 (tie b), 1 of 1 (b).
    assert found.one_order.estimate == pytest.approx(9 / 15)
    # Outcomes a a and five ties against a b a a b tie b: the first and the sixth are right.
    assert found.both_orders == stats.wilson(2, 7)
    assert found.kappa.estimate == pytest.approx(
        kappa_in_loops(list(zip("aatttt" + "t", "abaabtb", strict=True)), lambda x, y: x != y)
    )
    assert found.orders == agreement.order_effects(GAMES)


def test_a_judge_of_order_is_at_chance_and_one_of_quality_is_right():
    rng = random.Random(0)
    gold = [rng.choice(["first", "second"]) for _ in range(300)]
    order_only = agreement.calibration(
        [BothOrders("first", "first")] * 300, gold, settings=IntervalSettings(resamples=200)
    )
    assert order_only.one_order.estimate == 0.5
    assert order_only.both_orders.estimate == 0.0
    assert order_only.orders.consistent.estimate == 0.0
    assert order_only.orders.direction_p < 1e-50
    quality = agreement.calibration(
        [BothOrders(label, verdicts.mirrored(label)) for label in gold], gold, settings=IntervalSettings(resamples=200)
    )
    assert quality.one_order[:3] == quality.kappa[:3] == (1.0, 1.0, 1.0)
    assert quality.orders.direction_p == 1.0


def test_without_verdicts_nothing_is_claimed():
    found = agreement.calibration([BothOrders(Missing("length"), Missing("length"))], ["first"])
    assert (found.one_order, found.both_orders, found.kappa) == (None, None, None)
    assert (found.orders.pairs, found.orders.judged, found.orders.consistent) == (1, 0, None)
    assert found.orders.missing == {"length": 2}


# ---- several raters ------------------------------------------------------------------------------------------------

# 14 raters put 10 subjects into 5 categories; a published worked example with kappa = 0.210.
FOURTEEN_RATERS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def alpha_in_loops(items):
    """Krippendorff 2011: coincidences and expected coincidences."""
    items = [item for item in items if len(item) > 1]
    observed, totals = Counter(), Counter()
    for item in items:
        for i, j in itertools.permutations(range(len(item)), 2):
            observed[item[i], item[j]] += 1 / (len(item) - 1)
        totals.update(item)
    n = sum(totals.values())
    top = sum(count for (c, k), count in observed.items() if c != k)
    bottom = sum(totals[c] * totals[k] for c in totals for k in totals if c != k)
    return math.nan if bottom == 0 else 1 - (n - 1) * top / bottom


@settings(max_examples=80)
@given(st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=12))
def test_alpha_is_its_definition(items):
    if not any(len(item) > 1 for item in items):
        with pytest.raises(ValueError, match="no item has two ratings"):
            agreement.krippendorff_alpha(items)
        return
    found = agreement.krippendorff_alpha(items, **FEW)
    assert found.estimate == pytest.approx(alpha_in_loops(items), nan_ok=True)
    assert math.isnan(found.low) or found.low <= found.high


def test_missing_ratings_and_single_ones_say_nothing():
    gaps = [[1, None, 1], [2, 3, math.nan], [None, 4], [5]]
    whole = [[1, 1], [2, 3]]
    assert agreement.krippendorff_alpha(gaps) == agreement.krippendorff_alpha(whole)
    # Four ratings 1 1 2 3. Observed: 2 of 4 ordered pairs within items differ; expected: (16 - 4 - 1 - 1) of 4 * 3. 1 - 0.5 / (10/12).
    assert agreement.krippendorff_alpha(whole).estimate == pytest.approx(0.4)


def test_nominal_alpha_takes_any_labels_and_two_complete_raters_are_near_kappa():
    rng = random.Random(3)
    a = [rng.choice(["yes", "no", "tie"]) for _ in range(2_000)]
    b = [x if rng.random() < 0.7 else rng.choice(["yes", "no", "tie"]) for x in a]
    alpha = agreement.krippendorff_alpha(list(zip(a, b, strict=True)))
    assert alpha.estimate == pytest.approx(agreement.cohen_kappa(a, b).estimate, abs=2e-3)


def test_the_bootstrap_of_alpha_is_that_of_whole_items():
    # Kinds of items drawn by their numbers, or items drawn one by one: the same distribution.
    rng = np.random.default_rng(0)
    items = [[int(x), int(np.clip(x + rng.integers(-1, 2), 1, 5))] for x in rng.integers(1, 6, 40)]
    found = agreement.krippendorff_alpha(items, IntervalSettings(resamples=20_000))
    drawn = [alpha_in_loops([items[i] for i in rng.integers(40, size=40)]) for _ in range(1_500)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agreement.raw_agreement("", ""), "one length"),
        (lambda: agreement.raw_agreement("ab", "a"), "one length"),
        (lambda: agreement.cohen_kappa(["a", None], ["a", "b"]), "item 1 has no label"),
        (lambda: agreement.cohen_kappa("ab", "ab", clusters_I=[1]), "clusters"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
