"""AlpacaEval: values worked by hand, the L1 solver against its optimality conditions and scipy, the guard, invariants."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

from posttrain.errors import DataError
from posttrain.stats import length_controlled as alpaca_eval
from posttrain.stats.intervals import IntervalSettings
from posttrain.stats.length_controlled import LEADERBOARD_JUDGE, GlmWeights, length_controlled_win_rate

# ---- the judge's token ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "swapped", "preference"),
    [
        # p(m) / (p(m) + p(M)) = 0.3 / 0.9 = 1/3; the baseline is m: 2 - 1/3.
        ([("M", math.log(0.6)), ("m", math.log(0.3)), ("The", math.log(0.1))], False, 5 / 3),
        ([("M", math.log(0.6)), ("m", math.log(0.3)), ("The", math.log(0.1))], True, 4 / 3),
        ([("m", -0.1), ("Model", -3.0)], False, 1.0),
        ([("M", -0.1)], False, 2.0),
        ([("M", -0.1)], True, 1.0),
        ([("m", -2000.0), ("M", -2000.0)], False, 1.5),  # exp(-2000) is 0 in float64
    ],
)
def test_the_preference_is_weighted_by_probability(tokens, swapped, preference):
    assert alpaca_eval.preference_from_logprobs(tokens, swapped=swapped) == pytest.approx(preference, abs=1e-15)


@pytest.mark.parametrize("tokens", [[], [("The", -0.1)], [("m", -math.inf)]])
def test_a_token_that_names_no_reply_is_no_verdict(tokens):
    assert math.isnan(alpaca_eval.preference_from_logprobs(tokens, swapped=False))


def test_of_a_token_that_stands_twice_the_likelier_one_counts():
    once = alpaca_eval.preference_from_logprobs([("m", -0.5), ("M", -1.0)], swapped=False)
    assert alpaca_eval.preference_from_logprobs([("m", -0.5), ("M", -1.0), ("m", -4.0)], swapped=False) == once


def test_the_order_is_drawn_once_per_instruction():
    drawn = [alpaca_eval.shown_swapped(f"instruction {number}") for number in range(2000)]
    assert drawn == [alpaca_eval.shown_swapped(f"instruction {number}") for number in range(2000)]
    assert 900 < sum(drawn) < 1100  # 4.5 sigma of a fair coin


# ---- raw win rates -------------------------------------------------------------------------------------------------


def test_win_rate_by_hand():
    # Shares 0, 1, 1/2 (1.5), 1/2 (0 is an old draw), 1/4; the mean is 0.45, the squared deviations sum to 0.55:
    # sd = sqrt(0.55 / 4), standard error = sd / sqrt(5) = 0.165831.
    found = alpaca_eval.win_rate([1, 2, 1.5, 0, math.nan, 1.25])
    assert found.win_rate == pytest.approx(45)
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.55 / 4 / 5))
    assert (found.judged, found.missing) == (5, 1)


def test_one_verdict_has_no_standard_error():
    assert math.isnan(alpaca_eval.win_rate([2.0]).standard_error)


@pytest.mark.parametrize("wrong", [-1.0, 0.5, 2.01, math.inf])
def test_a_number_that_is_no_preference_is_refused(wrong):
    with pytest.raises(DataError, match=r"preference 1: .* is no preference"):
        alpaca_eval.win_rate([1.0, wrong])


@pytest.mark.parametrize("nothing", [[], [math.nan, math.nan]])
def test_no_verdict_is_no_win_rate(nothing):
    with pytest.raises(DataError, match="holds a verdict"):
        alpaca_eval.win_rate(nothing)


@given(st.lists(st.floats(1, 2), min_size=1, max_size=30))
def test_seen_from_the_other_side_the_win_rate_is_the_rest(preferences):
    one, other = alpaca_eval.win_rate(preferences), alpaca_eval.win_rate([3 - p for p in preferences])
    assert one.win_rate + other.win_rate == pytest.approx(100)


# ---- L1 logistic regression ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "strength", "sigmoid"),
    [
        # Ten rows of feature 1: 10 C (sigmoid(w) - mean) = -sign(w).
        (0.8, 1.0, 0.7),
        (0.2, 1.0, 0.3),
        (0.8, 100.0, 0.799),
        (0.55, 1.0, 0.5),  # |10 (0.5 - 0.55)| <= 1: the penalty wins
        (0.61, 1.0, 0.51),
    ],
)
def test_l1_with_one_coefficient_by_hand(mean, strength, sigmoid):
    found = alpaca_eval.l1_logistic(np.ones((10, 1)), np.full(10, mean), np.ones(10), strength)
    assert expit(found[0]) == pytest.approx(sigmoid, abs=1e-12)
    assert (found[0] == 0) == (sigmoid == 0.5)


regressions = st.tuples(st.integers(0, 10_000), st.integers(6, 40), st.integers(1, 3), st.floats(-3, 3))


def drawn_regression(seed, rows, columns):
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1 + 3 * rng.random(columns), (rows, columns))
    labels = np.where(rng.random(rows) < 0.5, rng.random(rows), rng.integers(0, 2, rows))
    return features, labels, rng.uniform(0.05, 2, rows)


@settings(max_examples=60)
@given(regressions)
def test_l1_optimum_satisfies_its_conditions(drawn):
    features, labels, weights = drawn_regression(*drawn[:3])
    strength = 10.0 ** drawn[3]
    w = alpaca_eval.l1_logistic(features, labels, weights, strength)
    gradient = features.T @ (strength * weights * (expit(features @ w) - labels))
    scale = 1 + strength * float(weights @ np.abs(features).max(axis=1))
    for value, slope in zip(w, gradient, strict=True):
        if value:
            assert slope == pytest.approx(-np.sign(value), abs=1e-8 * scale)
        else:
            assert abs(slope) <= 1 + 1e-8 * scale


@settings(max_examples=15)
@given(regressions)
def test_l1_agrees_with_scipy_on_the_smooth_form(drawn):
    # w = u - v with u, v >= 0 makes |w| linear; scipy solves that with bounds.
    features, labels, weights = drawn_regression(*drawn[:3])
    strength, columns = 10.0 ** min(drawn[3], 1.5), features.shape[1]

    def objective(uv):
        w = uv[:columns] - uv[columns:]
        logits = features @ w
        slope = features.T @ (strength * weights * (expit(logits) - labels))
        value = uv.sum() + strength * weights @ (np.logaddexp(0, logits) - labels * logits)
        return value, np.concatenate([1 + slope, 1 - slope])

    # from one start it sometimes stops at once
    starts = (
        optimize.minimize(
            objective,
            np.full(2 * columns, start),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * (2 * columns),
            options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
        )
        for start in (0.0, 0.1, 1.0)
    )
    theirs = min(starts, key=lambda found: found.fun)
    ours = alpaca_eval.l1_logistic(features, labels, weights, strength)
    value = objective(np.concatenate([np.maximum(ours, 0), np.maximum(-ours, 0)]))[0]
    assert value <= theirs.fun + 1e-9 * (1 + abs(theirs.fun))
    np.testing.assert_allclose(ours, theirs.x[:columns] - theirs.x[columns:], atol=2e-3 * (1 + np.abs(ours).max()))


def test_l1_knows_rows_by_weight_and_forgets_where_it_started():
    features, labels, weights = drawn_regression(5, 30, 3)
    plain = alpaca_eval.l1_logistic(features, labels, weights, 3.0)
    twice = alpaca_eval.l1_logistic(np.tile(features, (2, 1)), np.tile(labels, 2), np.tile(weights / 2, 2), 3.0)
    elsewhere = alpaca_eval.l1_logistic(features, labels, weights, 3.0, np.array([5.0, -5.0, 2.0]))
    # a soft label is two hard ones that share the weight: what liblinear is given
    hard = alpaca_eval.l1_logistic(
        np.tile(features, (2, 1)),
        np.repeat([1.0, 0.0], 30),
        np.concatenate([weights * labels, weights * (1 - labels)]),
        3.0,
    )
    for other in (twice, elsewhere, hard):
        np.testing.assert_allclose(other, plain, atol=1e-9)


def test_separable_rows_have_a_finite_answer():
    # All labels 1 on a positive feature: 1e4 * 20 * (1 - sigmoid(w)) = 1.
    found = alpaca_eval.l1_logistic(np.ones((20, 1)), np.ones(20), np.ones(20), 1e4)
    assert 1 - expit(found[0]) == pytest.approx(1 / 2e5, rel=1e-6)


def test_the_weakest_penalty_as_good_as_the_best_is_chosen():
    # Means 2.0, 1.0, 1.1, 1.2. Excess over column 1: column 2 has 0.0, 0.2 (mean 0.1, standard error 0.1: as good),
    # column 3 has 0.2, 0.2 (no doubt that it is worse).
    losses = np.array([[2.0, 1.0, 1.0, 1.2], [2.0, 1.0, 1.2, 1.2]])
    assert alpaca_eval._last_as_good_as_best(losses) == 2
    assert alpaca_eval._last_as_good_as_best(losses[:, [1, 0, 3]]) == 0


@pytest.mark.parametrize("excess", [1e-9, 0.1, 1 / 3, 0.7])
def test_a_difference_in_one_fold_alone_is_its_own_standard_error(excess):
    # e, 0, 0, 0, 0: mean e/5, standard deviation e/sqrt(5), standard error e/5. Rounding must not decide.
    losses = np.full((5, 2), math.log(2))
    losses[3, 1] += excess
    assert alpaca_eval._last_as_good_as_best(losses) == 1


# ---- the published regression --------------------------------------------------------------------------------------

SIZE = 200


@pytest.fixture(scope="module")
def glm():
    """A regression like the published one, for 200 made-up instructions."""
    rng = np.random.default_rng(2)
    baseline, difficulty = rng.integers(200, 4000, SIZE), rng.normal(0, 1.2, SIZE)
    gamed = [baseline * 1.4 + rng.normal(0, 200, SIZE), baseline * 0.5 + rng.normal(0, 100, SIZE)]
    return alpaca_eval.published_glm(difficulty, baseline, gamed, sum_label_tanh=-20.0, sum_label_difficulty=25.0)


def replies(glm, seed, *, length=-1.5, difficulty=0.8, quality=-0.4):
    """(preferences, lengths) of a model whose replies are longer, drawn from known weights."""
    rng = np.random.default_rng(seed)
    lengths = np.round(glm.baseline_lengths_I * rng.lognormal(0.2, 0.5, SIZE))
    feature = alpaca_eval._length_feature(glm.baseline_lengths_I, lengths)
    chance = expit(length * feature + difficulty * glm.difficulty_I + quality)
    return 1 + (rng.random(SIZE) < chance).astype(float), lengths


def test_gamed_labels_have_the_given_sums(glm):
    assert glm.gamed_labels_G @ glm.gamed_tanh_G == pytest.approx(-20, abs=1e-6)
    assert glm.gamed_labels_G @ glm.gamed_difficulty_G == pytest.approx(25, abs=1e-6)
    assert 0 < glm.gamed_labels_G.min() < glm.gamed_labels_G.max() < 1


def test_the_fit_knows_gamed_labels_by_their_sums_only(glm):
    # Move labels along a direction that keeps both sums: the optimum stays.
    features = np.column_stack([glm.gamed_tanh_G, glm.gamed_difficulty_G])
    noise = np.random.default_rng(0).normal(size=len(features))
    noise -= features @ np.linalg.lstsq(features, noise)[0]
    other = replace(glm, gamed_labels_G=glm.gamed_labels_G + 0.05 * noise)
    preferences, lengths = replies(glm, 1)
    rows = alpaca_eval._Rows(preferences - 1, lengths, glm.baseline_lengths_I, glm.difficulty_I)
    one, two = (alpaca_eval.l1_logistic(*alpaca_eval._regression(rows, given), 20.0) for given in (glm, other))
    np.testing.assert_allclose(one, two, atol=1e-8)


def test_the_design_by_hand(glm):
    # 2 x 200 gamed rows of weight 0.1 without quality, then the rows that have a verdict.
    preferences, lengths = replies(glm, 1)
    preferences[[0, 5]] = math.nan
    rows = alpaca_eval._Rows(preferences - 1, lengths, glm.baseline_lengths_I, glm.difficulty_I)
    features, labels, weights = alpaca_eval._regression(rows, glm)
    assert features.shape == (2 * SIZE + SIZE - 2, 3)
    assert weights.tolist() == [0.1] * (2 * SIZE) + [1.0] * (SIZE - 2)
    assert features[:, 2].tolist() == [0.0] * (2 * SIZE) + [1.0] * (SIZE - 2)
    difference = glm.baseline_lengths_I - lengths
    assert features[2 * SIZE, 0] == pytest.approx(math.tanh(difference[1] / np.std(difference, ddof=1)))
    assert features[2 * SIZE, 1] == glm.difficulty_I[1]
    assert labels[2 * SIZE] == preferences[1] - 1


def test_sums_that_no_verdicts_have_are_refused():
    with pytest.raises(DataError, match="no verdicts in"):
        alpaca_eval.published_glm([0.5, -1, 2], [10, 20, 30], [[12, 25, 31]], sum_label_tanh=50, sum_label_difficulty=1)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="2 difficulties, 3 baseline lengths"):
        alpaca_eval.published_glm([1, 2], [1, 2, 3], [[1, 2, 3]], sum_label_tanh=0, sum_label_difficulty=0)


def test_predicted_wins_by_hand():
    weights = GlmWeights(length=-3.0, difficulty=2.0, quality=math.log(3))
    assert alpaca_eval.predicted_wins(weights, [0.0, math.log(3)]) == pytest.approx([0.75, 27 / 28])
    assert alpaca_eval.predicted_wins(GlmWeights(0, 0, 0), [-4.0, 9.0]) == pytest.approx([0.5, 0.5])


def test_reading_the_published_files(tmp_path):
    (tmp_path / "difficulty.csv").write_text("index,instruction_difficulty\n0,0.5\n1,-1\n2,0.2\n")
    (tmp_path / "instructions.csv").write_text("index,dataset,len_baseline\n0,a,100\n1,a,250\n2,b,90\n")
    table = "index,gpt4_1106_preview_verbose,other,gpt4_1106_preview_concise\n0,150,1,60\n1,260,2,120\n2,140,3,70\n"
    (tmp_path / "lengths.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "gamed.json").write_text(json.dumps({"sum_y_tanh": 0.1, "sum_y_difficulty": -0.4}))
    paths = {
        "difficulty": tmp_path / "difficulty.csv",
        "instructions": tmp_path / "instructions.csv",
        "lengths": tmp_path / "lengths.csv.gz",
        "gamed": tmp_path / "gamed.json",
    }
    found = alpaca_eval.read_published_glm(**paths)
    assert found.difficulty_I.tolist() == [0.5, -1, 0.2]
    assert found.baseline_lengths_I.tolist() == [100, 250, 90]
    # 100 - 150, 250 - 260, 90 - 140: mean -110/3, sample sd 23.094
    assert found.gamed_tanh_G[:3] == pytest.approx(np.tanh(np.array([-50, -10, -50]) / 23.0940107676))
    for name, text, message in (
        ("lengths", b"index,other\n0,1\n", "no column 'gpt4_1106_preview_verbose'"),
        ("gamed", b"{}", "sum_y_tanh"),
        ("gamed", b"nothing", "sum_y_tanh"),
        ("difficulty", b"instruction_difficulty\nhard\n", "not all numbers"),
    ):
        (tmp_path / "broken").write_bytes(text)
        with pytest.raises(DataError, match=message) as caught:
            alpaca_eval.read_published_glm(**paths | {name: tmp_path / "broken"})
        assert "broken" in str(caught.value)
    with pytest.raises(DataError, match="can't read this CSV"):
        alpaca_eval.read_published_glm(**paths | {"difficulty": tmp_path / "absent.csv"})


# ---- length-controlled win rates -----------------------------------------------------------------------------------


def test_the_weights_are_found_again(glm):
    # Labels are the chances themselves, and the gamed rows tell the same a and b: nothing but the weak penalty moves the fit.
    truth = GlmWeights(-1.5, 0.8, -0.4)
    gamed = expit(truth.length * glm.gamed_tanh_G + truth.difficulty * glm.gamed_difficulty_G)
    _, lengths = replies(glm, 3)
    feature = alpaca_eval._length_feature(glm.baseline_lengths_I, lengths)
    chances = expit(truth.length * feature + truth.difficulty * glm.difficulty_I + truth.quality)
    found = length_controlled_win_rate(
        1 + chances,
        lengths,
        glm.baseline_lengths_I,
        judge=LEADERBOARD_JUDGE,
        published=replace(glm, gamed_labels_G=gamed),
        settings=IntervalSettings(resamples=2),
    )
    assert found.weights == pytest.approx(truth, abs=0.03)
    assert found.interval.estimate == pytest.approx(
        100 * alpaca_eval.predicted_wins(truth, glm.difficulty_I).mean(), abs=0.3
    )
    assert found.raw.win_rate == pytest.approx(100 * chances.mean())


def test_published_instructions_baseline_and_judge_are_comparable(glm):
    preferences, lengths = replies(glm, 4)
    found = length_controlled_win_rate(
        preferences,
        lengths,
        glm.baseline_lengths_I,
        judge=LEADERBOARD_JUDGE,
        published=glm,
        settings=IntervalSettings(resamples=100),
    )
    assert found.not_comparable == ""
    assert found.interval.low < found.interval.estimate < found.interval.high


def test_what_is_not_the_leaderboards_is_not_comparable(glm):
    preferences, lengths = replies(glm, 4)
    baseline = glm.baseline_lengths_I

    def judged(preferences, lengths, baseline, **options):
        return length_controlled_win_rate(
            preferences, lengths, baseline, settings=IntervalSettings(resamples=2), **options
        )

    own_judge = judged(preferences, lengths, baseline, judge="qwen3", published=glm)
    assert own_judge.weights.difficulty != 0
    assert "qwen3" in own_judge.not_comparable

    half = slice(0, SIZE, 2)
    numbers = np.arange(SIZE)[half]
    part = judged(
        preferences[half], lengths[half], baseline[half], judge=LEADERBOARD_JUDGE, published=glm, instructions_I=numbers
    )
    assert "100 of the 200" in part.not_comparable

    for moved in (baseline + 1, np.roll(baseline, 1)):
        custom = judged(preferences, lengths, moved, judge=LEADERBOARD_JUDGE, published=glm)
        assert "another prompt set" in custom.not_comparable
        assert custom.weights.difficulty == 0

    bare = judged(preferences, lengths, baseline, judge=LEADERBOARD_JUDGE)
    assert "another quantity" in bare.not_comparable


@pytest.mark.parametrize("numbers", [[-1, *range(1, SIZE)], [0, 0, *range(2, SIZE)], [*range(SIZE - 1), SIZE]])
def test_numbers_that_are_not_the_instructions_are_another_set(glm, numbers):
    preferences, lengths = replies(glm, 4)
    found = length_controlled_win_rate(
        preferences,
        lengths,
        glm.baseline_lengths_I,
        judge=LEADERBOARD_JUDGE,
        published=glm,
        instructions_I=numbers,
        settings=IntervalSettings(resamples=2),
    )
    assert "another prompt set" in found.not_comparable


def test_the_baseline_against_itself_is_one_half(glm):
    draws = np.full(SIZE, 1.5)
    found = length_controlled_win_rate(
        draws, glm.baseline_lengths_I, glm.baseline_lengths_I, judge=LEADERBOARD_JUDGE, published=glm
    )
    assert found.interval[:3] == (50, 50, 50)
    assert found.weights == GlmWeights(0, 0, 0)
    assert found.not_comparable == ""


def test_a_large_change_and_missing_verdicts_are_told():
    # Longer replies always win: at equal length little of that is left.
    rng = np.random.default_rng(8)
    baseline = rng.integers(500, 1500, 300).astype(float)
    lengths = baseline + rng.uniform(-300, 1500, 300)
    preferences = 1 + expit((lengths - baseline) / 200)
    preferences[:7] = math.nan
    found = length_controlled_win_rate(
        preferences, lengths, baseline, judge="any", settings=IntervalSettings(resamples=20)
    )
    change, missing = found.warnings
    assert "moves the win rate by -" in change
    assert "7 of 300" in missing
    assert found.raw.missing == 7
    calm = length_controlled_win_rate(
        np.where(np.isnan(preferences), 1.5, 1.5),
        lengths,
        baseline,
        judge="any",
        settings=IntervalSettings(resamples=2),
    )
    assert calm.warnings == ()


def minimal(preferences, lengths, baseline, resamples=2, seed=0):
    return length_controlled_win_rate(
        preferences, lengths, baseline, judge="any", settings=IntervalSettings(resamples=resamples, seed=seed)
    )


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0.1, 50))
@example(426, 1.0)  # one fold alone tells two strengths apart
def test_invariants_of_the_minimal_regression(seed, unit):
    rng = np.random.default_rng(seed)
    baseline, lengths = rng.integers(100, 3000, (2, 60)).astype(float)
    preferences = 1 + rng.random(60)
    found = minimal(preferences, lengths, baseline, resamples=20)
    # sides swapped: the rest of 100, and a mirrored interval
    swapped = minimal(3 - preferences, baseline, lengths, resamples=20)
    assert swapped.interval[:3] == pytest.approx([100 - found.interval[place] for place in (0, 2, 1)], abs=1e-6)
    # lengths in another unit: the same
    assert minimal(preferences, lengths * unit, baseline * unit).interval.estimate == pytest.approx(
        found.interval.estimate, abs=1e-6
    )
    # rows within their folds in another order: the same
    order = np.concatenate([rng.permutation(12)[:, None] * 5 + np.arange(5)]).ravel()
    assert minimal(preferences[order], lengths[order], baseline[order]).interval.estimate == pytest.approx(
        found.interval.estimate, abs=1e-6
    )


def test_the_bootstrap_error_is_the_spread_over_new_samples():
    # 40 samples of 150 instructions from one truth: their spread, and what the bootstrap says of each.
    rng = np.random.default_rng(4)
    estimates, told, covered = [], [], 0
    truth = 100 * expit(0.5)
    for seed in range(40):
        baseline = rng.integers(500, 1500, 150).astype(float)
        lengths = baseline + rng.uniform(-450, 450, 150)
        feature = alpaca_eval._length_feature(baseline, lengths)
        preferences = 1 + (rng.random(150) < expit(-1.0 * feature + 0.5))
        found = minimal(preferences, lengths, baseline, resamples=50, seed=seed)
        estimates.append(found.interval.estimate)
        told.append((found.interval.high - found.interval.low) / 3.92)
        covered += found.interval.low <= truth <= found.interval.high
    assert np.mean(told) == pytest.approx(
        np.std(estimates, ddof=1), rel=0.35
    )  # a spread of 40 is known to 11%, times 3
    assert covered >= 32  # binomial(40, 0.95): 38, less 4 sigma


def test_the_same_seed_gives_the_same_interval(glm):
    preferences, lengths = replies(glm, 9)
    one, two, other = (minimal(preferences, lengths, glm.baseline_lengths_I, 30, seed) for seed in (0, 0, 1))
    assert one == two
    assert one.interval.estimate == other.interval.estimate
    assert one.interval != other.interval


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths_I": [12, 22, 32, 42, 52, 62]}, "2 characters longer"),
        ({"preferences_I": [1, 2, 1, 2, math.nan, math.nan]}, "4 verdicts are too few"),
    ],
)
def test_lists_that_can_not_be_fitted_are_refused(change, message):
    given_lists = {
        "preferences_I": [1, 2, 1, 2, 1, 2],
        "lengths_I": [1, 9, 3, 7, 2, 8],
        "baseline_lengths_I": [10, 20, 30, 40, 50, 60],
    }
    with pytest.raises(DataError, match=message):
        length_controlled_win_rate(**given_lists | change, judge="any")
