"""Statistics: values worked by hand, published numbers, coverage, invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.stats import intervals as stats
from posttrain.stats.intervals import Interval, IntervalSettings


def loss(a, b, tokens, settings: IntervalSettings = IntervalSettings()) -> Interval:
    """The difference of two mean losses a token."""
    return stats.compare(a, b, weights_a_R=tokens, settings=settings).interval


shares = st.floats(0.5, 0.999)


# ---- the mean of differences ----------------------------------------------------------------------------------------


def test_the_mean_of_differences_by_hand():
    # Differences 1, 2, 3, 6: mean 3; squares from it 4 + 1 + 0 + 9 = 14, sd sqrt(14 / 3), over sqrt(4) rows.
    found = stats.mean_difference([1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 4.0, 7.0])
    assert found == pytest.approx((3.0, math.sqrt(14 / 12)))
    # Three degrees of freedom: Student's t is 3.1824 at 97.5% (any table).
    interval = stats.student(*found, freedom=3)
    assert interval == pytest.approx((3.0, 3 - 3.1824 * found.error, 3 + 3.1824 * found.error, 0.95), abs=1e-4)
    # Each side the mean of two runs that differ by 0.5 a run: 0.5 sqrt(2 / 2) beside it.
    noisy = stats.mean_difference([1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 4.0, 7.0], noise=0.5, seeds=2)
    assert noisy == pytest.approx((3.0, math.sqrt(14 / 12 + 0.25)))


def test_a_single_row_has_no_error_of_rows():
    assert stats.mean_difference([1.0], [4.0]) == (3.0, 0.0)
    assert stats.mean_difference([1.0], [4.0], noise=1.0, seeds=2) == (3.0, 1.0)
    with pytest.raises(ValueError, match="one length"):
        stats.mean_difference([1.0, 2.0], [4.0])
    with pytest.raises(ValueError, match="one length"):
        stats.mean_difference([], [])


def test_the_mean_of_differences_agrees_with_scipys_paired_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(0.3, 1, size=30)
    found, theirs = stats.mean_difference(a, b), scipy.stats.ttest_rel(b, a)
    assert found.estimate / found.error == pytest.approx(theirs.statistic)
    interval, expected = stats.student(*found, freedom=29), theirs.confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


# ---- the loss difference -------------------------------------------------------------------------------------------


def test_loss_difference_is_a_ratio_of_sums_not_a_mean_of_ratios():
    # Row 1: 10 tokens, 1 nat better; row 2: 90 tokens, 9 nats worse. (-1 + 9) / 100 = 0.08; the mean of ratios would be 0.0.
    found = loss([20.0, 90.0], [19.0, 99.0], [10, 90])
    assert found.estimate == pytest.approx(0.08)


def test_two_rows_have_the_three_possible_resamples():
    # Ratios: both row 1: -1/10 (p 1/4), one of each: 8/100 (p 1/2), both row 2: 9/90 (p 1/4). Sorted: -0.1, 0.08, 0.1.
    at_20 = loss([20.0, 90.0], [19.0, 99.0], [10, 90], settings=IntervalSettings(confidence=0.2, resamples=4_000))
    assert (at_20.low, at_20.high) == pytest.approx((0.08, 0.08))
    at_95 = loss([20.0, 90.0], [19.0, 99.0], [10, 90], settings=IntervalSettings(confidence=0.95, resamples=4_000))
    assert (at_95.low, at_95.high) == pytest.approx((-0.1, 0.1))


def test_a_constant_shift_per_token_is_certain():
    tokens = np.array([3, 50, 200, 7])
    found = loss(tokens * 2.0, tokens * 1.5, tokens)
    assert found == pytest.approx((-0.5, -0.5, -0.5, 0.95))


def test_one_row_gives_an_interval_without_width():
    assert loss([4.0], [6.0], [2]) == (1.0, 1.0, 1.0, 0.95)


def test_the_interval_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 200, 60)
    a = tokens * rng.normal(2.0, 0.3, 60)
    b = a - tokens * rng.normal(0.05, 0.1, 60)
    ours = loss(a, b, tokens, settings=IntervalSettings(resamples=20_000))
    theirs = scipy.stats.bootstrap(
        (b - a, tokens),
        lambda top, bottom, axis: top.sum(axis=axis) / bottom.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.03 * width
    assert abs(ours.high - theirs.high) < 0.03 * width


def test_pairing_makes_the_interval_much_narrower_than_the_spread_of_the_rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 100, 80)
    a = tokens * rng.normal(2.0, 0.5, 80)
    b = a - tokens * 0.1 + rng.normal(0, 0.5, 80)
    found = loss(a, b, tokens)
    assert found.low < -0.1 < found.high
    assert found.high - found.low < 0.02
    assert scipy.stats.sem(a / tokens) > 0.04


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # 300 experiments of 40 rows, true difference -0.05 nats per token. Binomial(300, 0.95): 5 sigma is 0.063.
    rng = np.random.default_rng(11)
    covered = 0
    for seed in range(300):
        tokens = rng.integers(10, 60, 40)
        difference = tokens * rng.normal(-0.05, 0.2, 40)
        found = loss(np.zeros(40), difference, tokens, settings=IntervalSettings(resamples=400, seed=seed))
        covered += found.low <= -0.05 <= found.high
    assert 0.87 < covered / 300 < 0.995


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    a, b, tokens = rng.normal(2, 1, 37), rng.normal(2, 1, 37), rng.integers(1, 9, 37)
    whole = loss(a, b, tokens, settings=IntervalSettings(resamples=500))
    monkeypatch.setattr(stats, "_DRAWS_AT_ONCE", 100)
    assert loss(a, b, tokens, settings=IntervalSettings(resamples=500)) == whole


rows = st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500), st.integers(1, 400)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 99))
def test_swapping_the_models_mirrors_the_interval(rows, seed):
    a, b, tokens = (list(column) for column in zip(*rows, strict=True))
    one = loss(a, b, tokens, settings=IntervalSettings(resamples=200, seed=seed))
    two = loss(b, a, tokens, settings=IntervalSettings(resamples=200, seed=seed))
    assert (two.estimate, two.low, two.high) == pytest.approx((-one.estimate, -one.high, -one.low), abs=1e-9)
    assert one.low <= one.high
    assert loss(a, a, tokens, settings=IntervalSettings(resamples=100))[:3] == (0.0, 0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(rows, st.floats(0.1, 0.7), st.floats(0.7, 0.99))
def test_more_confidence_is_a_wider_interval(rows, less, more):
    a, b, tokens = (list(column) for column in zip(*rows, strict=True))
    narrow = loss(a, b, tokens, settings=IntervalSettings(resamples=200, confidence=less))
    wide = loss(a, b, tokens, settings=IntervalSettings(resamples=200, confidence=more))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


@pytest.mark.parametrize(
    ("a", "b", "tokens"),
    [
        ([], [], []),
        ([1.0], [1.0, 2.0], [1]),
        ([1.0], [1.0], [0]),
        ([math.nan], [1.0], [1]),
        ([1.0], [math.inf], [1]),
        ([[1.0]], [[1.0]], [[1]]),
    ],
)
def test_impossible_losses_are_refused(a, b, tokens):
    with pytest.raises(ValueError, match=r"one length|finite|positive weight|a list of values"):
        loss(a, b, tokens)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 1.5, math.nan])
def test_impossible_confidences_are_refused(confidence):
    for call in (
        lambda: stats.wilson(1, 2, confidence),
        lambda: loss([1.0], [1.0], [1], settings=IntervalSettings(confidence=confidence)),
        lambda: stats.compare([True], [True], settings=IntervalSettings(confidence=confidence)).interval,
    ):
        with pytest.raises(ValueError, match="between 0 and 1"):
            call()


def test_at_least_one_resample_is_needed():
    with pytest.raises(ValueError, match="resample"):
        stats.compare([True], [True], settings=IntervalSettings(resamples=0))


# ---- accuracies ----------------------------------------------------------------------------------------------------


def test_accuracy_difference_by_hand():
    # a: 2 of 4, b: 3 of 4.
    found = stats.compare([True, True, False, False], [True, False, True, True]).interval
    assert found.estimate == 0.25
    # One prompt each of 0, -1, +1, +1: the mean of four draws is a multiple of 1/4 in [-1, 1].
    assert found.low in (-0.5, -0.25)
    assert found.high in (0.75, 1.0)


def test_accuracy_interval_matches_the_exact_distribution_of_the_resampled_mean():
    # 30 prompts: 3 only a, 9 only b. Exact: (B - A) / 30 with (A, B) multinomial; its 5% and 95% quantiles by enumeration.
    a = [True] * 3 + [False] * 27
    b = [False] * 3 + [True] * 9 + [False] * 18
    probability: dict[int, float] = {}
    for only_a in range(31):
        for only_b in range(31 - only_a):
            p = scipy.stats.multinomial.pmf([only_a, only_b, 30 - only_a - only_b], 30, [0.1, 0.3, 0.6])
            probability[only_b - only_a] = probability.get(only_b - only_a, 0.0) + p
    values = sorted(probability)
    total = np.cumsum([probability[v] for v in values])
    low, high = (values[int(np.searchsorted(total, share))] / 30 for share in (0.05, 0.95))
    found = stats.compare(a, b, settings=IntervalSettings(resamples=20_000, confidence=0.9)).interval
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize(
    ("passed", "checked", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(passed, checked, low, high):
    found = stats.wilson(passed, checked)
    assert found.estimate == passed / checked
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), shares)
def test_wilson_agrees_with_scipy_and_mirrors(counts, confidence):
    passed, checked = counts
    found = stats.wilson(passed, checked, confidence)
    theirs = scipy.stats.binomtest(passed, checked).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    mirror = stats.wilson(checked - passed, checked, confidence)
    assert (mirror.low, mirror.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize(("passed", "checked"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(passed, checked):
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson(passed, checked)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (0, 5, 2 / 32),
        (2, 3, 1.0),  # 2 * (1 + 5 + 10) / 32
        (1, 7, 0.0703125),  # Fagerland, Lydersen and Laake 2013, table 2: exact conditional test, 0.0703
        (6, 16, 0.0525),  # the same, table 3
    ],
)
def test_mcnemar_by_hand_and_as_published(only_a, only_b, p_value):
    assert stats.mcnemar(only_a, only_b) == pytest.approx(p_value, abs=5e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(only_a, only_b):
    p_value = stats.mcnemar(only_a, only_b)
    assert p_value == stats.mcnemar(only_b, only_a)
    if only_a + only_b:
        assert p_value == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-6)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="negative"):
        stats.mcnemar(-1, 3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_a_comparison_counts_who_is_higher_and_tests_it(pairs):
    a, b = ([p[i] for p in pairs] for i in (0, 1))
    found = stats.compare(a, b, test="mcnemar", settings=IntervalSettings(resamples=1))
    assert (found.higher - found.lower) / len(pairs) == pytest.approx(found.interval.estimate)
    assert (found.rows, found.clusters) == (len(pairs), len(pairs))
    assert found.p_value == stats.mcnemar(found.lower, found.higher)


def test_ratios_of_sums_are_tested_by_permutation_only_and_may_have_other_weights_under_b():
    found = stats.compare([4.0, 2.0], [9.0, 1.0], weights_a_R=[2, 1], weights_b_R=[3, 1])
    assert found.interval.estimate == 10 / 4 - 6 / 3
    assert (found.higher, found.lower, found.p_value) == (1, 1, None)
    with pytest.raises(ValueError, match="without a test"):
        stats.compare([4.0], [9.0], weights_a_R=[2], test="sign")


# ---- clusters, permutations, several comparisons -------------------------------------------------------------------


def test_one_row_a_cluster_is_the_plain_paired_bootstrap():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=30), rng.normal(size=30)
    clustered = stats.compare(a, b, list(range(30)), settings=IntervalSettings(resamples=500, seed=3)).interval
    assert clustered == pytest.approx(stats.compare(a, b, settings=IntervalSettings(resamples=500, seed=3)).interval)


def test_clustered_difference_by_hand():
    # Cluster x: differences 1, 1; cluster y: -1. Resamples: x x -> 1 (p 1/4), y y -> -1 (p 1/4), else (2 - 1) / 3 = 1/3.
    found = stats.compare(
        [0, 0, 1], [1, 1, 0], ["x", "x", "y"], settings=IntervalSettings(confidence=0.2, resamples=4_000)
    ).interval
    assert found == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0.2))
    wide = stats.compare([0, 0, 1], [1, 1, 0], ["x", "x", "y"], settings=IntervalSettings(resamples=4_000)).interval
    assert (wide.low, wide.high) == (-1.0, 1.0)


def test_repeating_every_row_in_its_cluster_adds_no_certainty():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=40), rng.normal(0.2, 1, size=40)
    names = [f"q{i}" for i in range(40)]
    once = stats.compare(a, b, names, settings=IntervalSettings(resamples=800)).interval
    nine = stats.compare(
        np.repeat(a, 9), np.repeat(b, 9), np.repeat(names, 9).tolist(), settings=IntervalSettings(resamples=800)
    ).interval
    assert nine == pytest.approx(once)
    ignored = stats.compare(np.repeat(a, 9), np.repeat(b, 9), settings=IntervalSettings(resamples=800)).interval
    assert ignored.high - ignored.low < 0.4 * (once.high - once.low)


def test_clustered_interval_covers_the_truth_about_as_often_as_it_says():
    # 200 experiments of 30 questions x 4 correlated rows, truth 0. Binomial(200, 0.95): 5 sigma is 0.077.
    rng = np.random.default_rng(2)
    names = np.repeat(np.arange(30), 4).tolist()
    covered = 0
    for seed in range(200):
        b = np.repeat(rng.normal(size=30), 4) + 0.3 * rng.normal(size=120)
        found = stats.compare(np.zeros(120), b, names, settings=IntervalSettings(resamples=300, seed=seed)).interval
        covered += found.low <= 0 <= found.high
    assert 0.85 < covered / 200 < 0.995


def test_means_by_hand_and_in_clusters():
    few = IntervalSettings(resamples=4_000)
    # 1 and 3 alone have probability 1/27 each: inside the 2.5% tails' reach
    assert stats.mean([1, 2, 3], settings=few) == (2.0, 1.0, 3.0, 0.95)
    assert stats.mean([10], settings=few) == (10.0, 10.0, 10.0, 0.95)
    values, names = np.random.default_rng(0).normal(size=20), [i // 2 for i in range(20)]
    assert stats.mean(values, names) == stats.compare(np.zeros(20), values, names).interval


def test_exact_permutation_by_hand():
    # Differences 1, 2, 3: of 8 sums of +-1 +-2 +-3 only 6 and -6 are as far out.
    assert stats.permutation_test([0, 0, 0], [1, 2, 3]) == (2 / 8, True)
    # 1, -2, 3: the sum is 2; |sum| >= 2 for 6, -6, 4, -4, 2, -2 but not for 0 (twice).
    assert stats.permutation_test([0, 2, 0], [1, 0, 3]).p_value == 6 / 8
    # A zero has no sign; without any difference nothing is surprising.
    assert stats.permutation_test([0, 0, 0, 7], [1, 2, 3, 7]) == (2 / 8, True)
    assert stats.permutation_test([4.0, 5.0], [4.0, 5.0]) == (1.0, True)
    # Both rows of question x flip together: sums 3 and 3.
    assert stats.permutation_test([0, 0, 0], [1, 2, 3], clusters_R=["x", "x", "y"]) == (2 / 4, True)


def test_equal_sums_in_another_order_of_addition_count_as_equal():
    # 0.1 + 0.2 + 0.3 against 0.3 + 0.2 + 0.1, and so on: all 6-row sums of one size.
    values = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    by_enumeration = stats.permutation_test([0] * 6, values).p_value
    assert by_enumeration == 2 / 64
    tenths = stats.permutation_test([0] * 6, [-1, 2, 3, 3, 2, -1]).p_value
    assert stats.permutation_test([0] * 6, [-0.1, 0.2, 0.3, 0.3, 0.2, -0.1]).p_value == tenths


def test_permutation_of_signs_is_mcnemars_test():
    # Differences of +1 and -1 only: the sum of signs is binomial, as in McNemar's exact test.
    a, b = [True] * 4 + [False] * 11, [False] * 4 + [True] * 11
    found = stats.permutation_test(np.array(a, float), np.array(b, float))
    assert found.exact
    assert found.p_value == pytest.approx(stats.mcnemar(4, 11))


def test_drawn_permutations_agree_with_the_exact_ones_and_with_scipy():
    rng = np.random.default_rng(4)
    a = rng.normal(size=14)
    b = a + rng.normal(0.4, 1, 14)
    exact = stats.permutation_test(a, b)
    theirs = scipy.stats.permutation_test((b - a,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert exact.p_value == pytest.approx(theirs.pvalue)
    many = stats.permutation_test(np.append(a, np.zeros(30)), np.append(b, np.full(30, 1e-12)), draws=20_000)
    assert not many.exact
    assert abs(many.p_value - exact.p_value) < 5 * math.sqrt(exact.p_value * (1 - exact.p_value) / 20_000)


def test_drawn_p_values_are_never_zero_and_seeded(monkeypatch):
    a, b = np.zeros(60), np.ones(60)
    found = stats.permutation_test(a, b, draws=999)
    assert found == (1 / 1000, False)
    noisy = np.random.default_rng(1).normal(0.2, 1, 61)
    whole = stats.permutation_test(np.zeros(61), noisy, draws=500, seed=7)
    monkeypatch.setattr(stats, "_DRAWS_AT_ONCE", 200)
    assert stats.permutation_test(np.zeros(61), noisy, draws=500, seed=7) == whole
    assert stats.permutation_test(np.zeros(61), noisy, draws=500, seed=8) != whole


def test_permutation_keeps_its_level():
    # 400 experiments without a difference: p <= 0.1 in 10%; 5 sigma is 0.075.
    rng = np.random.default_rng(6)
    small = [stats.permutation_test(np.zeros(30), rng.normal(size=30), draws=99).p_value <= 0.1 for _ in range(400)]
    assert 0.025 < np.mean(small) < 0.175


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=12))
def test_permutation_is_two_sided_and_a_probability(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one, two = stats.permutation_test(a, b), stats.permutation_test(b, a)
    assert one.p_value == two.p_value
    assert 0 < one.p_value <= 1


def test_minimum_detectable_difference_as_published():
    # z(0.975) = 1.959964, z(0.8) = 0.841621; sd 10, n 100 (any table of sample sizes: n = 7.849 sd^2 / d^2).
    assert stats.minimum_detectable_difference(10, 100) == pytest.approx(2.801585, abs=1e-6)
    assert stats.minimum_detectable_difference(10, 100) ** 2 == pytest.approx(7.849 * 100 / 100, abs=1e-3)
    # z(0.995) = 2.575829
    assert stats.minimum_detectable_difference(1, 400, significance=0.01) == pytest.approx(
        (2.575829 + 0.841621) / 20, abs=1e-6
    )


def test_a_difference_of_that_size_is_found_about_that_often():
    rng = np.random.default_rng(12)
    size = stats.minimum_detectable_difference(1.0, 60)
    found = [scipy.stats.ttest_1samp(rng.normal(size, 1, 60), 0).pvalue < 0.05 for _ in range(1500)]
    assert abs(np.mean(found) - 0.8) < 0.05


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04 -> running maximum.
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert stats.holm([0.5, 0.9]) == (1.0, 1.0)
    assert stats.holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni(values):
    found = stats.holm(values)
    for raw, adjusted in zip(values, found, strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(values)) + 1e-15
    assert [a for _, a in sorted(zip(values, found, strict=True))] == sorted(found)
    # Rejected at 5% exactly where the step-down procedure rejects.
    kept = sorted(values)
    stop = next((k for k, p in enumerate(kept) if p * (len(kept) - k) > 0.05), len(kept))
    assert sum(p <= 0.05 for p in found) == stop


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.compare([1.0], [1.0, 2.0], ["x"]), "one length"),
        (lambda: stats.compare([1.0], [1.0], ["x", "y"]), "clusters"),
        (lambda: stats.compare([math.nan], [1.0], ["x"]), "finite"),
        (lambda: stats.mean([]), "a list of values"),
        (lambda: stats.mean([1.0], []), "clusters"),
        (lambda: stats.permutation_test([1.0], [math.inf]), "finite"),
        (lambda: stats.permutation_test([1.0], [2.0], draws=0), "draw"),
        (lambda: stats.minimum_detectable_difference(1.0, 0), "rows"),
        (lambda: stats.minimum_detectable_difference(-1.0, 5), "deviation"),
        (lambda: stats.minimum_detectable_difference(1.0, 5, significance=1.0), "significance"),
        (lambda: stats.holm([0.5, 1.5]), "0 to 1"),
        (lambda: stats.holm([math.nan]), "0 to 1"),
    ],
)
def test_impossible_input_of_comparisons_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
