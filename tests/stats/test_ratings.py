"""Ratings: values worked by hand, independent references in float64, invariants."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

from posttrain.errors import DataError
from posttrain.judge import votes
from posttrain.stats import elo, ratings
from posttrain.stats.ratings import Anchor, Comparison, bradley_terry, gather


def games(*results: str) -> ratings.Comparisons:
    """``"A>B"``: A, named first, won; ``"A<B"``: B won; ``"A=B"``: a tie. ``"A>B*3"``: three times."""
    rows = []
    for text in results:
        pair, _, times = text.partition("*")
        sign = next(s for s in "><=" if s in pair)
        a, b = pair.split(sign)
        rows += [Comparison(a, b, {">": "a", "<": "b", "=": "tie"}[sign])] * int(times or 1)
    return gather(rows)


@st.composite
def connected(draw, most_models=6, most_games=30):
    """Comparisons of 2 to 6 models in which every one beat the next in a circle, so that ratings exist."""
    size = draw(st.integers(2, most_models))
    circle = [(place, (place + 1) % size, "a") for place in range(size)]
    pair = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda p: p[0] != p[1])
    more = draw(st.lists(st.tuples(pair, st.sampled_from(["a", "b", "tie"])), max_size=most_games))
    rows = circle + [(*found, winner) for found, winner in more]
    return gather([Comparison(f"m{a}", f"m{b}", winner) for a, b, winner in rows])


def by_model(table: ratings.RatingTable) -> dict[str, ratings.Rating]:
    return {rating.model: rating for rating in table.ratings}


# ---- reading -------------------------------------------------------------------------------------------------------


def test_json_lines_and_csv_give_the_same(tmp_path):
    rows = [
        ("y", "x", "model_a"),
        ("x", "z", "tie (bothbad)"),
        ("z", "y", "MODEL_B"),
        ("x", "y", ""),
        ("z", "x", "error"),
    ]
    keys = ("model_a", "model_b", "winner")
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    (tmp_path / "votes.csv").write_text("\n".join([",".join(keys), *(",".join(row) for row in rows)]) + "\n")
    for name in ("votes.jsonl", "votes.csv"):
        found = votes.read_comparisons(tmp_path / name)
        assert found.models == ("x", "y", "z")
        assert found.pairs_N2.tolist() == [[1, 0], [0, 2], [2, 1]]
        assert found.outcomes_N.tolist() == [1, 0.5, 0]
        assert found.weights_N.tolist() == [1, 1, 1]
        assert found.missing == 2
        assert len(found) == 3
        assert elo.elo_table(found).warnings == ("2 pairs have no verdict and are in none of the numbers",)


def test_columns_weights_and_clusters_by_name(tmp_path):
    path = tmp_path / "games.csv"
    path.write_text("left,right,who,mass,prompt\n1,2,right,0.5,7\n2,1,draw,3,9\n1,2,left,1,7\n")
    found = votes.read_comparisons(path, model_a="left", model_b="right", winner="who", weight="mass", cluster="prompt")
    assert found.outcomes_N.tolist() == [0, 0.5, 1]
    assert found.weights_N.tolist() == [0.5, 3, 1]
    assert found.clusters_N.tolist() == [0, 1, 0]


GOOD = '{"model_a": "x", "model_b": "y", "winner": "model_a", "weight": 1}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"model_a": "x", "model_b": "y", "winner": "modela"}', "unknown winner 'modela'.*did you mean 'model_a'"),
        ('{"model_a": "x", "model_b": "x", "winner": "tie"}', "'x' is compared with itself"),
        ('{"model_a": "x", "modelb": "y", "winner": "tie"}', "no field 'model_b'.*did you mean 'modelb'"),
        ('{"model_a": null, "model_b": "y", "winner": "tie"}', "model_a is None"),
        ('{"model_a": "x", "model_b": "y", "winner": "tie"', "broken_json"),
    ],
)
def test_a_row_that_can_not_be_used_is_named(tmp_path, line, message):
    path = tmp_path / "votes.jsonl"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(DataError, match=f"votes.jsonl:2: .*{message}"):
        votes.read_comparisons(path)


@pytest.mark.parametrize("weight", ["0", "-1", "NaN", '"heavy"', "null"])
def test_weights_are_positive_numbers(tmp_path, weight):
    path = tmp_path / "votes.jsonl"
    path.write_text(f'{{"model_a": "x", "model_b": "y", "winner": "tie", "weight": {weight}}}\n')
    with pytest.raises(DataError, match=r"votes.jsonl:1: weight"):
        votes.read_comparisons(path, weight="weight")


def test_a_file_without_verdicts_or_no_file_is_refused(tmp_path):
    (tmp_path / "votes.jsonl").write_text('{"model_a": "x", "model_b": "y", "winner": null}\n')
    with pytest.raises(DataError, match="no comparison with a verdict"):
        votes.read_comparisons(tmp_path / "votes.jsonl")
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        votes.read_comparisons(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no comparisons"):
        gather([])


def test_clusters_are_for_all_rows_or_none():
    with pytest.raises(DataError, match="row 2: no cluster"):
        gather([Comparison("x", "y", "a", 1.0, "q1"), Comparison("x", "y", "b")])


# ---- counting ------------------------------------------------------------------------------------------------------


def test_win_matrix_by_hand():
    found = ratings.win_matrix(games("A>B*3", "B>A", "B=A*2", "C<A"))
    assert found.models == ("A", "B", "C")
    assert found.wins_MM.tolist() == [[0, 4, 1], [2, 0, 0], [0, 0, 0]]
    assert found.counts_MM.tolist() == [[0, 6, 1], [6, 0, 0], [1, 0, 0]]
    rates = ratings.win_rates(found)
    assert rates[0, 1:].tolist() == [4 / 6, 1]
    assert math.isnan(rates[1, 2])
    # every opponent counts the same, however often it was met
    assert ratings.average_win_rates(found) == pytest.approx({"A": (4 / 6 + 1) / 2, "B": 2 / 6, "C": 0})


@settings(max_examples=25)
@given(connected())
def test_counts_and_rates_are_two_sided(comparisons):
    found = ratings.win_matrix(comparisons)
    assert found.wins_MM.sum() == pytest.approx(len(comparisons))
    assert (found.counts_MM == found.counts_MM.T).all()
    rates = ratings.win_rates(found)
    both = rates + rates.T
    assert np.allclose(both[~np.isnan(both)], 1)


# ---- whether ratings exist -----------------------------------------------------------------------------------------


def test_a_model_that_never_lost_is_named():
    with pytest.raises(DataError, match=r"infinite.*A > B, C\n"):
        bradley_terry(games("A>B", "A>C", "B>C", "C>B"))


def test_groups_that_never_met_are_named():
    with pytest.raises(DataError, match=r"never compared with each other: A, B \| C, D"):
        bradley_terry(games("A>B", "B>A", "C=D"))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14))
def test_groups_are_those_of_the_transitive_closure(beats):
    wins = np.zeros((6, 6))
    for a, b in beats:
        if a != b:
            wins[a, b] = 1
    reach = (wins > 0) | np.eye(6, dtype=bool)
    for _ in range(6):
        reach = reach @ reach
    groups = ratings.win_groups(wins)
    assert sorted(place for group in groups for place in group) == list(range(6))
    for number, group in enumerate(groups):
        assert all(reach[a, b] for a in group for b in group)
        for later in groups[number + 1 :]:
            assert not any(wins[b, a] for a in group for b in later)
            assert not all(reach[b, a] and reach[a, b] for a in group for b in later)


# ---- Bradley-Terry -------------------------------------------------------------------------------------------------


def test_two_models_by_hand():
    # 3 wins of 4: odds 3, 400 log10(3) = 190.85 points apart, centred on 1000.
    table = bradley_terry(games("A>B*3", "A<B"))
    assert [rating.model for rating in table.ratings] == ["A", "B"]
    assert by_model(table)["A"].rating == pytest.approx(1000 + 200 * math.log10(3))
    assert by_model(table)["B"].rating == pytest.approx(1000 - 200 * math.log10(3))
    # Scores: 3 rows of (1 - 3/4), one of -3/4: B = 3/16 + 9/16 = 3/4; H = 4 * 3/16 = 3/4. The difference has variance
    # B / H^2 = 4/3, each strength a quarter of it.
    half = 1.959963984540054 * math.sqrt(4 / 3 / 4) * 400 / math.log(10)
    assert by_model(table)["A"].high - by_model(table)["A"].rating == pytest.approx(half)
    assert by_model(table)["A"].comparisons == 4


def test_a_tie_is_half_a_win_each():
    table = bradley_terry(games("A=B*2", "A>B"))
    # 2 of 3 wins: odds 2.
    assert by_model(table)["A"].rating == pytest.approx(1000 + 200 * math.log10(2))


def test_a_bootstrap_of_two_models_by_hand():
    # 40 rows, 30 won: a round's wins are binomial(40, 3/4), whose 2.5% and 97.5% points are 24 and 35.
    table = bradley_terry(games("A>B*30", "A<B*10"), interval="bootstrap", rounds=4000)
    ends = [1000 + 200 * math.log10(wins / (40 - wins)) for wins in (24, 35)]
    assert (by_model(table)["A"].low, by_model(table)["A"].high) == pytest.approx(ends)
    assert table.warnings == ()


@settings(max_examples=60)
@given(connected())
def test_the_gradient_vanishes_at_the_optimum(comparisons):
    wins = ratings.win_matrix(comparisons).wins_MM
    r = ratings.fit_bradley_terry(wins)
    expected = (wins + wins.T) * expit(r[:, None] - r[None, :])
    np.testing.assert_allclose(wins.sum(axis=1), expected.sum(axis=1), atol=1e-11 * wins.sum())
    assert abs(r.sum()) < 1e-12 * (1 + np.abs(r).max())


@settings(max_examples=25)
@given(connected())
def test_the_optimum_is_that_of_minorisation_and_of_scipy(comparisons):
    wins = ratings.win_matrix(comparisons).wins_MM
    r = ratings.fit_bradley_terry(wins)

    def loss(x):
        return -float((wins * np.log(expit(x[:, None] - x[None, :]))).sum())

    theirs = optimize.minimize(loss, np.zeros(len(r)), method="BFGS", options={"gtol": 1e-9})
    assert loss(r) <= theirs.fun + 1e-10 * (1 + theirs.fun)
    # Hunter 2004: p_i = wins_i / sum_j games_ij / (p_i + p_j) leaves the optimum where it is
    p = np.exp(r)
    again = wins.sum(axis=1) / ((wins + wins.T) / (p[:, None] + p[None, :])).sum(axis=1)
    np.testing.assert_allclose(again, p, rtol=1e-9)


def test_extreme_counts_converge():
    wins = np.array([[0.0, 1e6, 1.0], [1.0, 0.0, 1e6], [1.0, 1.0, 0.0]])
    r = ratings.fit_bradley_terry(wins)
    expected = (wins + wins.T) * expit(r[:, None] - r[None, :])
    np.testing.assert_allclose(wins.sum(axis=1), expected.sum(axis=1), rtol=1e-12, atol=1e-9)
    # Newton's method without a limit to its steps runs away here
    wild = np.array(
        [
            [0, 49585.1511, 0, 1.5735, 0],
            [0, 0, 7.0695, 0.0037, 0],
            [1.4205, 0.0032, 0, 0.0597, 0.0037],
            [0.0024, 615.886, 0, 0, 9.4129],
            [839983.5162, 11.0637, 246.2937, 0, 0],
        ]
    )
    r = ratings.fit_bradley_terry(wild)
    expected = (wild + wild.T) * expit(r[:, None] - r[None, :])
    np.testing.assert_allclose(wild.sum(axis=1), expected.sum(axis=1), atol=1e-8)
    # one chain of 40 models, each beating the next 1000 to 1: the ends are 39 log(1000) apart
    chain = np.diag(np.full(39, 1000.0), 1) + np.diag(np.ones(39), -1)
    strengths = ratings.fit_bradley_terry(chain)
    np.testing.assert_allclose(-np.diff(strengths), np.full(39, math.log(1000)), rtol=1e-9)


def test_many_matrices_at_once_are_each_alone():
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 20, (5, 4, 4)).astype(float) * (1 - np.eye(4))
    together = ratings.fit_bradley_terry(wins)
    for number in range(5):
        np.testing.assert_allclose(together[number], ratings.fit_bradley_terry(wins[number]), atol=1e-13)


@settings(max_examples=25)
@given(connected())
def test_swapping_sides_changes_nothing(comparisons):
    swapped = replace(comparisons, pairs_N2=comparisons.pairs_N2[:, ::-1].copy(), outcomes_N=1 - comparisons.outcomes_N)
    one, two = by_model(bradley_terry(comparisons)), by_model(bradley_terry(swapped))
    for model, rating in one.items():
        assert astuple(rating)[1:4] == pytest.approx(astuple(two[model])[1:4], abs=1e-8)


@settings(max_examples=25)
@given(connected(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(comparisons, random):
    order = list(range(len(comparisons)))
    random.shuffle(order)
    shuffled = replace(comparisons, pairs_N2=comparisons.pairs_N2[order], outcomes_N=comparisons.outcomes_N[order])
    for interval in ("sandwich", "bootstrap"):
        one = by_model(bradley_terry(comparisons, interval=interval, rounds=5))
        two = by_model(bradley_terry(shuffled, interval=interval, rounds=5))
        for model, rating in one.items():
            assert astuple(rating)[1:4] == pytest.approx(astuple(two[model])[1:4], abs=1e-7)


@settings(max_examples=25)
@given(connected(), st.integers(2, 5))
def test_more_of_the_same_keeps_ratings_and_narrows_intervals(comparisons, times):
    more = replace(
        comparisons,
        pairs_N2=np.tile(comparisons.pairs_N2, (times, 1)),
        outcomes_N=np.tile(comparisons.outcomes_N, times),
        weights_N=np.tile(comparisons.weights_N, times),
    )
    once, often = by_model(bradley_terry(comparisons)), by_model(bradley_terry(more))
    # as one row of weight k it is the same evidence as before: weights say how much rows matter, not how many there are
    heavy = by_model(bradley_terry(replace(comparisons, weights_N=comparisons.weights_N * times)))
    for model, rating in once.items():
        assert often[model].rating == pytest.approx(rating.rating, abs=1e-8)
        width = rating.high - rating.low
        assert (often[model].high - often[model].low) * math.sqrt(times) == pytest.approx(width, rel=1e-7, abs=1e-7)
        assert astuple(heavy[model])[1:4] == pytest.approx(astuple(rating)[1:4], abs=1e-7)


@settings(max_examples=25)
@given(connected(), st.integers(2, 5))
def test_rows_repeated_within_their_clusters_are_no_evidence(comparisons, times):
    count = len(comparisons)
    more = replace(
        comparisons,
        pairs_N2=np.tile(comparisons.pairs_N2, (times, 1)),
        outcomes_N=np.tile(comparisons.outcomes_N, times),
        weights_N=np.tile(comparisons.weights_N, times),
        clusters_N=np.tile(np.arange(count), times),
    )
    once, often = by_model(bradley_terry(comparisons)), by_model(bradley_terry(more))
    for model, rating in once.items():
        assert astuple(often[model])[1:4] == pytest.approx(astuple(rating)[1:4], abs=1e-7)


def test_a_cluster_bootstrap_draws_whole_clusters():
    # Two prompts, each with one win for either side of A-B: every round has as many wins of each.
    rows = [Comparison("A", "B", winner, 1.0, f"q{n}") for n in range(2) for winner in ("a", "b")]
    table = bradley_terry(gather(rows), interval="bootstrap", rounds=50)
    assert astuple(by_model(table)["A"])[1:4] == pytest.approx((1000, 1000, 1000))
    loose = bradley_terry(gather([row._replace(cluster=None) for row in rows]), interval="bootstrap", rounds=50)
    assert by_model(loose)["A"].low < 950 < 1050 < by_model(loose)["A"].high


@settings(max_examples=25)
@given(connected(), st.floats(-500, 3000))
def test_an_anchor_shifts_all_alike(comparisons, level):
    free = by_model(bradley_terry(comparisons))
    for interval in ("sandwich", "bootstrap"):
        held = by_model(bradley_terry(comparisons, anchor=Anchor("m0", level), interval=interval, rounds=5))
        assert astuple(held["m0"])[1:4] == pytest.approx((level, level, level), abs=1e-8)
        for model, rating in held.items():
            assert rating.rating - level == pytest.approx(free[model].rating - free["m0"].rating, abs=1e-7)
            if interval == "sandwich":
                assert rating.rank == free[model].rank
    assert np.mean([rating.rating for rating in free.values()]) == pytest.approx(1000)


def test_an_anchored_interval_is_about_the_difference():
    comparisons = games("A>B*30", "B>A*20", "B>C*25", "C>B*15", "A>C*9", "C>A*4")
    strengths = ratings.fit_bradley_terry(ratings.win_matrix(comparisons).wins_MM)
    covariance = ratings.sandwich(comparisons, strengths)
    table = bradley_terry(comparisons, anchor=Anchor("C"))
    variance = covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]
    half = 1.959963984540054 * math.sqrt(variance) * 400 / math.log(10)
    assert by_model(table)["A"].high - by_model(table)["A"].rating == pytest.approx(half)
    with pytest.raises(DataError, match="anchor 'D' was not compared"):
        bradley_terry(comparisons, anchor=Anchor("D"))


@settings(max_examples=20)
@given(connected(), st.integers(0, 1000))
def test_the_sandwich_from_numerical_derivatives(comparisons, seed):
    weights = np.random.default_rng(seed).uniform(0.2, 3, len(comparisons))
    comparisons = replace(comparisons, weights_N=weights)
    # The last strength is held at 0, so that nothing is free to drift; then every strength is measured from the mean.
    a, b = comparisons.pairs_N2.T
    size = len(comparisons.models)
    r = ratings.fit_bradley_terry(ratings.win_matrix(comparisons).wins_MM)
    start = r - r[-1]

    def score(free):
        x = np.append(free, 0.0)
        residual = weights * (comparisons.outcomes_N - expit(x[a] - x[b]))
        scores = np.zeros((len(a), size))
        scores[np.arange(len(a)), a] += residual
        scores[np.arange(len(a)), b] -= residual
        return scores[:, :-1]

    step = 1e-5
    hessian = np.array(
        [
            (score(start[:-1] + step * e).sum(0) - score(start[:-1] - step * e).sum(0)) / (2 * step)
            for e in np.eye(size - 1)
        ]
    )
    inverse = np.linalg.inv(-hessian)
    covariance = np.zeros((size, size))
    covariance[:-1, :-1] = inverse @ score(start[:-1]).T @ score(start[:-1]) @ inverse
    centring = np.eye(size) - 1 / size
    np.testing.assert_allclose(ratings.sandwich(comparisons, r), centring @ covariance @ centring, rtol=1e-4, atol=1e-6)


def simulated(seed: int, strengths: list[float], count: int) -> ratings.Comparisons:
    rng = np.random.default_rng(seed)
    size = len(strengths)
    a = rng.integers(size, size=count)
    b = (a + rng.integers(1, size, size=count)) % size
    won = rng.random(count) < expit(np.array(strengths)[a] - np.array(strengths)[b])
    return ratings.Comparisons(
        tuple(f"m{n}" for n in range(size)), np.column_stack([a, b]), won.astype(float), np.ones(count)
    )


def test_sandwich_intervals_cover_the_truth():
    strengths = [0.6, 0.1, -0.2, -0.5]
    covered = []
    for seed in range(150):
        table = by_model(bradley_terry(simulated(seed, strengths, 300)))
        truth = [1000 + value * 400 / math.log(10) for value in strengths]
        covered += [table[f"m{n}"].low <= truth[n] <= table[f"m{n}"].high for n in range(4)]
    # 600 intervals of 95%, four of them together: 3.5 sigma of 150 experiments is 0.06
    assert 0.89 < np.mean(covered) < 0.99


def test_bootstrap_and_sandwich_agree_where_there_is_much():
    comparisons = simulated(1, [0.5, 0.2, 0.0, -0.7], 4000)
    one, two = by_model(bradley_terry(comparisons)), by_model(bradley_terry(comparisons, interval="bootstrap"))
    for model, rating in one.items():
        assert two[model].high - two[model].low == pytest.approx(rating.high - rating.low, rel=0.1)
        assert two[model].rating == rating.rating


def test_bootstrap_rounds_without_ratings_are_counted_and_stay_finite():
    # A round of A-B has no win of B with probability (4/5)^5 = 0.328 and none of A with (1/5)^5: 0.328 of the rounds.
    table = bradley_terry(games("A>B*4", "A<B"), interval="bootstrap", rounds=2000)
    _, separated = ratings.bootstrap_strengths(games("A>B*4", "A<B"), 2000, 0)
    assert separated / 2000 == pytest.approx(0.328, abs=0.05)
    assert f"in {separated} of 2000 bootstrap rounds" in table.warnings[0]
    assert math.isfinite(by_model(table)["A"].high)
    assert by_model(table)["A"].high > 1400


def test_a_round_that_lacks_a_pair_may_still_have_ratings():
    # C is joined by two rows of 42: a round is without ratings only where both are missing, (40/42)^42 = 0.129 of the time,
    # although in 0.6 of the rounds one of them is.
    comparisons = games("A>B*20", "A<B*20", "A=C", "B=C")
    _, separated = ratings.bootstrap_strengths(comparisons, 2000, 0)
    assert separated / 2000 == pytest.approx(0.129, abs=0.035)


def test_bootstrap_is_seeded_and_does_not_depend_on_how_many_are_fitted_at_once(monkeypatch):
    comparisons = simulated(3, [0.5, 0.0, -0.5], 200)
    one, separated = ratings.bootstrap_strengths(comparisons, 30, 7)
    assert separated == 0
    monkeypatch.setattr(ratings, "_ROUNDS_AT_ONCE_CELLS", 40)
    np.testing.assert_allclose(ratings.bootstrap_strengths(comparisons, 30, 7)[0], one, atol=1e-12)
    assert not np.allclose(ratings.bootstrap_strengths(comparisons, 30, 8)[0], one)


def test_models_that_can_not_be_told_apart_share_a_rank():
    comparisons = games(
        *(f"top>{m}*60" for m in "ab"), *(f"top<{m}*20" for m in "ab"), "a>b*21", "a<b*20", "b>low*70", "b<low*9"
    )
    table = bradley_terry(comparisons)
    assert [(rating.model, rating.rank) for rating in table.ratings] == [("top", 1), ("a", 2), ("b", 2), ("low", 4)]
    assert ratings.ranks(np.array([3.0, 0, 1]), np.array([4.0, 2, 2.5])).tolist() == [1, 2, 2]


@pytest.mark.parametrize("confidence", [0, 1, -1, math.nan])
def test_impossible_confidences_are_refused(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        bradley_terry(games("A>B", "B>A"), confidence=confidence)


def test_one_round_is_too_few():
    comparisons = games("A>B", "B>A")
    with pytest.raises(ValueError, match="two bootstrap rounds"):
        bradley_terry(comparisons, interval="bootstrap", rounds=1)


# ---- Elo -----------------------------------------------------------------------------------------------------------


def elo_ratings(comparisons, k=4.0):
    """Ratings after all comparisons, taken in the order given."""
    order_NB = np.arange(len(comparisons))[:, None]
    return dict(zip(comparisons.models, elo.play(comparisons, order_NB, k)[0].tolist(), strict=True))


def test_elo_by_hand():
    # Even at first: A gains 4 (1 - 1/2) = 2. Then a tie with C: A is expected 1 / (1 + 10^(-2/400)) = 0.502878.
    found = elo_ratings(games("A>B", "C=A"))
    gain = 4 * (0.5 - 1 / (1 + 10 ** (-2 / 400)))
    assert found == pytest.approx({"A": 1002 + gain, "B": 998, "C": 1000 - gain}, abs=1e-12)


@settings(max_examples=25)
@given(connected(), st.floats(0.5, 40))
def test_elo_keeps_the_sum_and_mirrors(comparisons, k):
    found = elo_ratings(comparisons, k=k)
    assert sum(found.values()) == pytest.approx(1000 * len(found))
    mirrored = elo_ratings(
        replace(comparisons, pairs_N2=comparisons.pairs_N2[:, ::-1].copy(), outcomes_N=1 - comparisons.outcomes_N), k=k
    )
    assert mirrored == pytest.approx(found, abs=1e-9)


def test_elo_depends_on_the_order_and_weights_scale_its_steps():
    one, two = elo_ratings(games("A>B*5", "A<B*5")), elo_ratings(games("A<B*5", "A>B*5"))
    assert one["A"] < 1000 < two["A"]
    rows = games("A>B*5", "A<B*2")
    assert elo_ratings(replace(rows, weights_N=np.full(7, 2.0))) == elo_ratings(rows, k=8.0)


def test_elo_over_many_orders():
    comparisons = simulated(2, [0.8, 0.0, -0.8], 600)
    for rating in elo.elo_table(comparisons, rounds=60).ratings:
        assert rating.low < rating.rating < rating.high
    assert elo.elo_table(comparisons, rounds=60) == elo.elo_table(comparisons, rounds=60)
    assert elo.elo_table(comparisons, rounds=60, seed=1) != elo.elo_table(comparisons, rounds=60)
    # one comparison has one order: nothing to shuffle
    lone = elo.elo_table(games("A>B"), rounds=5)
    assert astuple(by_model(lone)["A"])[1:4] == (1002, 1002, 1002)
    ranks = Counter(rating.rank for rating in lone.ratings)
    assert ranks == {1: 1, 2: 1}
