"""Style control: features by hand, FastChat's loss at its minimum, effects found again."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

from posttrain.errors import DataError
from posttrain.judge import votes
from posttrain.stats import ratings, style_control
from posttrain.stats.ratings import Comparison, bradley_terry, gather

# ---- what a reply looks like ---------------------------------------------------------------------------------------


def test_counts_come_from_the_rows_with_a_verdict(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text(
        "model_a,model_b,winner,tokens_a,tokens_b,bold_a,bold_b\n"
        "x,y,model_a,10,20,1,2\nx,y,,11,21,3,4\ny,x,tie,12,22,5,6\n"
    )
    a, b = votes.read_style_counts(path, ["tokens", "bold"])
    assert a.tolist() == [[10, 1], [12, 5]]
    assert b.tolist() == [[20, 2], [22, 6]]
    assert len(votes.read_comparisons(path)) == len(a)
    with pytest.raises(DataError, match=r"votes.csv:1: no field 'header_a'"):
        votes.read_style_counts(path, ["header"])
    path.write_text("model_a,model_b,winner,tokens_a,tokens_b\nx,y,model_a,10,many\n")
    with pytest.raises(DataError, match=r"votes.csv:1: tokens_b 'many' is not a number"):
        votes.read_style_counts(path, ["tokens"])


def test_style_features_by_hand():
    # (a - b) / (a + b + 1): (3-1)/5 = 0.4, (0-0)/1 = 0, (1-3)/5 = -0.4: mean 0, population sd sqrt(0.32/3).
    found = style_control.style_features([[3], [0], [1]], [[1], [0], [3]])
    assert found[:, 0] == pytest.approx(np.array([0.4, 0, -0.4]) / math.sqrt(0.32 / 3))
    with pytest.raises(DataError, match="feature 1 has the same difference"):
        style_control.style_features([[3, 2], [1, 2]], [[1, 2], [1, 2]])
    with pytest.raises(DataError, match="negative"):
        style_control.style_features([[-1], [1]], [[1], [1]])


def by_model(table: ratings.RatingTable) -> dict[str, ratings.Rating]:
    return {rating.model: rating for rating in table.ratings}


def in_a_circle(rng, models, more=20):
    """Comparisons of some models, each of which beat the next, and random ones: ratings exist."""
    rows = [Comparison(f"m{n}", f"m{(n + 1) % models}", "a") for n in range(models)]
    for _ in range(more):
        a, b = rng.choice(models, 2, replace=False)
        rows.append(Comparison(f"m{a}", f"m{b}", str(rng.choice(["a", "b", "tie"]))))
    return gather(rows)


def styled(seed, count=1500, effect=1.2):
    """Three models of one strength; the first writes long replies, and long replies win."""
    rng = np.random.default_rng(seed)
    a = rng.integers(3, size=count)
    b = (a + rng.integers(1, 3, size=count)) % 3
    level = np.array([900.0, 300.0, 300.0])
    lengths = [rng.poisson(level[side] * rng.lognormal(0, 0.3, count)) for side in (a, b)]
    features = style_control.style_features(lengths[0][:, None], lengths[1][:, None])
    raw = (lengths[0] - lengths[1]) / (lengths[0] + lengths[1] + 1)
    won = rng.random(count) < expit(effect * raw / raw.std())
    comparisons = ratings.Comparisons(("long", "s1", "s2"), np.column_stack([a, b]), won.astype(float), np.ones(count))
    return comparisons, features


def test_style_control_takes_the_length_out():
    comparisons, features = styled(0)
    plain = bradley_terry(comparisons)
    assert by_model(plain)["long"].rating - by_model(plain)["s1"].rating > 150
    table, (length,) = style_control.style_controlled(comparisons, features, ["length"])
    assert abs(by_model(table)["long"].rating - by_model(table)["s1"].rating) < 60
    assert length.low < 1.2 < length.high
    assert by_model(table)["long"].low < 1000 < by_model(table)["long"].high
    assert {rating.rank for rating in table.ratings} == {1}


@settings(max_examples=10)
@given(st.integers(2, 4), st.integers(0, 1000), st.floats(0.05, 5))
def test_style_control_is_fastchats_loss_at_its_minimum(models, seed, penalty):
    rng = np.random.default_rng(seed)
    comparisons = in_a_circle(rng, models)
    features = rng.normal(size=(len(comparisons), 2))
    size = len(comparisons.models)

    def loss(parameters):
        total = 0.5 * penalty * sum(value * value for value in parameters)
        for (a, b), outcome, row in zip(comparisons.pairs_N2, comparisons.outcomes_N, features, strict=True):
            logit = math.log(10) * (parameters[a] - parameters[b]) + row @ parameters[size:]
            total += np.logaddexp(0, logit) - outcome * logit
        return float(total)

    table, coefficients = style_control.style_controlled(comparisons, features, ["one", "two"], penalty=penalty)
    ours = [(by_model(table)[model].rating - 1000) / 400 for model in comparisons.models] + [
        c.estimate for c in coefficients
    ]
    theirs = optimize.minimize(loss, np.zeros(size + 2), method="BFGS", options={"gtol": 1e-7})
    assert loss(ours) <= theirs.fun + 1e-9 * (1 + theirs.fun)
    np.testing.assert_allclose(ours, theirs.x, atol=1e-4)


def test_without_penalty_and_with_useless_features_style_control_is_bradley_terry():
    comparisons = in_a_circle(np.random.default_rng(5), 3, 800)
    plain = bradley_terry(comparisons)
    # features that are orthogonal to nothing in particular, at a scale where they can't matter
    features = 1e-6 * np.random.default_rng(0).choice([-1.0, 1.0], (803, 1))
    table, _ = style_control.style_controlled(comparisons, features, ["noise"], penalty=1e-7)
    for rating in table.ratings:
        assert astuple(rating)[1:4] == pytest.approx(astuple(by_model(plain)[rating.model])[1:4], abs=0.05)


def test_style_control_needs_ratings_that_exist():
    _, features = styled(1, count=50)
    with pytest.raises(DataError, match="infinite"):
        style_control.style_controlled(gather([Comparison("A", "B", "a")] * 3), features[:3], ["length"])


def test_the_interval_from_dense_matrices():
    rng = np.random.default_rng(3)
    comparisons = in_a_circle(rng, 3, 40)
    features, penalty = rng.normal(size=(43, 2)), 8.0
    table, coefficients = style_control.style_controlled(comparisons, features, ["one", "two"], penalty=penalty)
    signs = np.zeros((43, 3))
    signs[np.arange(43), comparisons.pairs_N2[:, 0]] = math.log(10)
    signs[np.arange(43), comparisons.pairs_N2[:, 1]] = -math.log(10)
    design = np.hstack([signs, features])
    fitted = [(by_model(table)[model].rating - 1000) / 400 for model in comparisons.models] + [
        c.estimate for c in coefficients
    ]
    chances = expit(design @ np.array(fitted))
    bread = (design.T * chances * (1 - chances)) @ design + penalty * np.eye(5)
    meat = 43 * np.cov(design * (comparisons.outcomes_N - chances)[:, None], rowvar=False, ddof=0)
    inverse = np.linalg.inv(bread)
    half = 1.959963984540054 * np.sqrt(np.diag(inverse @ meat @ inverse))
    ours = [(by_model(table)[m].high - by_model(table)[m].low) / 800 for m in comparisons.models] + [
        (c.high - c.low) / 2 for c in coefficients
    ]
    np.testing.assert_allclose(ours, half, rtol=1e-7)


def test_rows_repeated_within_their_clusters_are_no_evidence():
    comparisons, features = styled(2, count=120)
    once, (slope,) = style_control.style_controlled(comparisons, features, ["length"])
    thrice = replace(
        comparisons,
        pairs_N2=np.tile(comparisons.pairs_N2, (3, 1)),
        outcomes_N=np.tile(comparisons.outcomes_N, 3),
        weights_N=np.tile(comparisons.weights_N, 3),
        clusters_N=np.tile(np.arange(120), 3),
    )
    # three times the rows need three times the penalty for the same optimum
    often, (again,) = style_control.style_controlled(thrice, np.tile(features, (3, 1)), ["length"], penalty=1.5)
    assert astuple(again)[1:] == pytest.approx(astuple(slope)[1:], abs=1e-7)
    for rating in once.ratings:
        assert astuple(by_model(often)[rating.model])[1:4] == pytest.approx(astuple(rating)[1:4], abs=1e-5)
    loose, _ = style_control.style_controlled(
        replace(thrice, clusters_N=None), np.tile(features, (3, 1)), ["length"], penalty=1.5
    )
    assert by_model(loose)["long"].high - by_model(loose)["long"].low < 0.6 * (
        by_model(once)["long"].high - by_model(once)["long"].low
    )


def test_style_intervals_cover_the_effect():
    covered = 0
    for seed in range(60):
        comparisons, features = styled(seed, count=300, effect=0.8)
        _, (length,) = style_control.style_controlled(comparisons, features, ["length"])
        covered += length.low <= 0.8 <= length.high
    assert covered >= 51  # binomial(60, 0.95): 57, less 3.5 sigma
