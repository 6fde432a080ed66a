"""Uncertainty of what evaluation measures. numpy and scipy only; every function is pure and seeded.

Shapes in names: ``R`` rows (held-out rows, prompts, questions), ``K`` clusters of rows, ``P`` prompts. Differences are always ``b - a``: a negative
difference of losses and a positive one of accuracies both say that ``b`` is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.table import grouped

Floats = NDArray[np.float64]
Test = Literal["mcnemar", "sign", "permutation"]

_DRAWS_AT_ONCE = 1_000_000
"""Row numbers drawn at once: 8 MB of int64. The numbers drawn do not depend on it."""

_EXACT_FLIPS = 20
"""Up to this many differences every pattern of signs is looked at: 2**20 sums, 8 MB."""


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class IntervalSettings:
    """How intervals are made."""

    confidence: float = 0.95
    resamples: int = 10_000
    """Of a bootstrap, and draws of a permutation test."""
    seed: int = 0

    def share(self, count: float, of: int) -> Interval | None:
        """Wilson's interval; None of nothing."""
        return wilson(count, of, self.confidence) if of else None

    def mean(self, values_R: Sequence[float], clusters_R: Sequence[Hashable]) -> Interval | None:
        """The mean with its bootstrap interval over clusters; None of nothing."""
        return mean(values_R, clusters_R, self) if len(values_R) else None

    def ends(self, draws_D: Floats) -> tuple[float, float]:
        """The percentile interval of what was found in resamples."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws_D, (tail, 1 - tail))
        return float(low), float(high)


class MeanDifference(NamedTuple):
    """The mean of differences over the same rows, and its standard error."""

    estimate: float
    error: float


class PermutationTest(NamedTuple):
    """A paired permutation test of a mean difference."""

    p_value: float
    """Two-sided."""
    exact: bool
    """Whether every pattern of signs was looked at; otherwise some were drawn."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Two models on the same rows: ``b`` minus ``a``."""

    interval: Interval
    test: Test | None
    """Which test gave ``p_value``; None = no test was asked for."""
    p_value: float | None
    exact: bool
    """Whether the p-value is exact: a permutation test of many rows draws."""
    detectable: float | None
    """The smallest true difference that so many clusters would have shown four times of five; None with one cluster, or where none differs."""
    higher: int
    """Rows whose value under ``b`` is the higher one."""
    lower: int
    rows: int
    clusters: int


# ---- two models on the same rows -----------------------------------------------------------------------------------


def compare(
    values_a_R: ArrayLike,
    values_b_R: ArrayLike,
    clusters_R: Sequence[Hashable] | None = None,
    *,
    weights_a_R: ArrayLike | None = None,
    weights_b_R: ArrayLike | None = None,
    test: Test | None = None,
    settings: IntervalSettings = IntervalSettings(),
) -> PairedDifference:
    """Compare two models on the same rows: difference of the means, by paired bootstrap, and a test of it.

    Rows of one cluster (two turns, several samples or several judges of one question) are not independent, so whole clusters are
    resampled (Miller 2024, arXiv:2411.00640); without ``clusters_R`` every row is one. Both models have the same draw. The interval is the
    percentile interval (Efron and Tibshirani 1993, chapter 13): with one cluster it has no width, and with few it is too narrow, as the
    bootstrap knows only the rows it was given. ``test`` then says more: the exact sign test of rows that differ (McNemar's, for values
    that are 0 or 1), or a permutation test that swaps the models in whole clusters.

    With ``weights_a_R`` the values are sums (of negative log-likelihoods over the tokens of a row, say), and what is compared are ratios of
    sums, ``sum(values) / sum(weights)``, formed anew in every resample and in every swap of the models' rows; ``weights_b_R``: those of b,
    where they differ. ``detectable`` takes the ratios as linear around what was found.

    Raises:
        ValueError: no rows, unequal lengths, a value that is not finite, or a weight that is not positive.

    """
    a_R, b_R = pairs(values_a_R, values_b_R)
    p_value, exact = None, True
    if weights_a_R is None:
        interval = mean(b_R - a_R, clusters_R, settings)
        means_K = _cluster_means(b_R, clusters_R) - _cluster_means(a_R, clusters_R)
        if test == "permutation":
            found = permutation_test(a_R, b_R, clusters_R, draws=settings.resamples, seed=settings.seed)
            p_value, exact = found.p_value, found.exact
    else:
        weights_R, others_R = pairs(weights_a_R, weights_a_R if weights_b_R is None else weights_b_R)
        if len(weights_R) != len(a_R) or not ((weights_R > 0) & (others_R > 0)).all():
            raise ValueError("every row needs a positive weight")
        if clusters_R is not None or test not in (None, "permutation"):
            raise ValueError("ratios of sums are compared row by row, without a test or by permutation")
        if np.array_equal(weights_R, others_R):
            interval = _bootstrap_ratio(b_R - a_R, weights_R, settings)
        else:
            interval = _bootstrap_ratio(b_R, others_R, settings, less=(a_R, weights_R))
        means_K = _pulls(b_R, others_R) - _pulls(a_R, weights_R)
        if test is not None:
            p_value, exact = _swapped_ratios(a_R, weights_R, b_R, others_R, settings), False
        a_R, b_R = a_R / weights_R, b_R / others_R
    higher, lower = int(np.count_nonzero(b_R > a_R)), int(np.count_nonzero(b_R < a_R))
    if test in ("mcnemar", "sign"):
        p_value = mcnemar(lower, higher)
    detectable = None
    if len(means_K) > 1:
        spread = float(np.std(means_K, ddof=1))
        detectable = minimum_detectable_difference(spread, len(means_K), significance=1 - settings.confidence) or None
    return PairedDifference(interval, test, p_value, exact, detectable, higher, lower, len(a_R), len(means_K))


def mean(
    values_R: ArrayLike, clusters_R: Sequence[Hashable] | None = None, settings: IntervalSettings = IntervalSettings()
) -> Interval:
    """The mean of a value with its percentile interval, whole clusters resampled (as in `compare`).

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.

    """
    values = _finite(values_R)
    return _bootstrap_ratio(cluster_sums(values, clusters_R), cluster_sums(np.ones_like(values), clusters_R), settings)


def mean_difference(
    values_a_R: ArrayLike, values_b_R: ArrayLike, *, noise: float | None = None, seeds: int = 1
) -> MeanDifference:
    """The mean of ``b - a`` over the same rows with its standard error: ``sd(b - a) / sqrt(R)`` of the rows, nothing of a single one.

    With ``noise``, the standard deviation between ``seeds`` runs whose means the values of either side are, the error has a second part,
    ``noise sqrt(2 / seeds)``, independent of the first. Values that are not finite give numbers that are none.

    Raises:
        ValueError: no rows, or lists of unequal length.

    """
    a_R, b_R = np.asarray(values_a_R, dtype=np.float64), np.asarray(values_b_R, dtype=np.float64)
    if a_R.shape != b_R.shape or a_R.ndim != 1 or not len(a_R):
        raise ValueError(f"two lists of one length are needed, not {a_R.shape} and {b_R.shape}")
    gaps_R = b_R - a_R
    from_rows = gaps_R.std(ddof=1) / np.sqrt(len(gaps_R)) if len(gaps_R) > 1 else 0.0
    from_seeds = 0.0 if noise is None else noise * np.sqrt(2 / seeds)
    return MeanDifference(float(gaps_R.mean()), float(np.hypot(from_rows, from_seeds)))


def student(estimate: float, error: float, freedom: float, confidence: float = 0.95) -> Interval:
    """Student's interval of an estimate with a standard error of so many degrees of freedom."""
    from scipy import special  # here: a recipe that sweeps is read without it

    half = float(special.stdtrit(freedom, 0.5 + _confidence(confidence) / 2)) * error
    return Interval(estimate, estimate - half, estimate + half, confidence)


def ratio(values_R: ArrayLike, weights_R: ArrayLike, settings: IntervalSettings) -> Interval:
    """A ratio of sums, ``sum(values) / sum(weights)``, with its percentile interval over resampled rows."""
    return _bootstrap_ratio(_finite(values_R), _finite(weights_R), settings)


def wilson(passed: float, checked: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927; method 3 of Newcombe 1998, without continuity correction).

    ``passed`` may be a number with halves (ties): then the interval is somewhat too wide, never too narrow.

    Raises:
        ValueError: not ``0 <= passed <= checked``, or nothing was checked.

    """
    if not 0 <= passed <= checked or checked == 0:
        raise ValueError(f"{passed} of {checked} is no proportion")
    from scipy import special  # here: a report of data needs none, and waits for it as long as for a thousand rows

    z = float(special.ndtri(0.5 + _confidence(confidence) / 2))
    share = passed / checked
    middle = (passed + z * z / 2) / (checked + z * z)
    half = z * np.sqrt(share * (1 - share) / checked + z * z / (4 * checked * checked)) / (1 + z * z / checked)
    # The ends are exactly 0 and 1 in theory; rounding must not leave them at -1e-17.
    low = 0.0 if passed == 0 else middle - half
    high = 1.0 if passed == checked else middle + half
    return Interval(share, float(low), float(high), confidence)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact conditional test (McNemar 1947): are the discordant prompts split evenly?

    ``min(1, 2 P[X <= min(only_a, only_b)])`` with X binomial(only_a + only_b, 1/2); 1.0 where no prompt is discordant.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts can't be negative: {only_a}, {only_b}")
    from scipy import special

    return min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


# ---- permutations, several comparisons ------------------------------------------------------------------------------


def permutation_test(
    values_a_R: ArrayLike,
    values_b_R: ArrayLike,
    clusters_R: Sequence[Hashable] | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> PermutationTest:
    """Is the mean difference of two models on the same rows larger than swapping their names at random would make it?

    Under the null hypothesis each difference is as likely to have the other sign. Two-sided p-value: the share of sign patterns
    whose sum is at least as far from zero as the one seen. With at most 20 differences that are not zero all patterns are counted (a
    zero has no sign and changes nothing). Beyond that ``draws`` patterns are drawn and p = (1 + as extreme) / (1 + draws), which
    is never 0 and keeps its level (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585). With ``clusters_R`` all rows of a cluster
    flip together.

    Raises:
        ValueError: no rows, unequal lengths, a value that is not finite, or fewer than one draw.

    """
    if draws < 1:
        raise ValueError("at least one draw is needed")
    a_R, b_R = pairs(values_a_R, values_b_R)
    sums_K = cluster_sums(b_R - a_R, clusters_R)
    sums_K = sums_K[sums_K != 0]
    seen = abs(float(sums_K.sum()))
    # Equal sums added up in another order differ in the last digits: they must still count as equal.
    limit = seen - 1e-9 * float(np.abs(sums_K).sum())
    exact = len(sums_K) <= _EXACT_FLIPS
    if exact:
        totals = np.zeros(1)
        for value in sums_K:
            totals = np.concatenate((totals + value, totals - value))
        return PermutationTest(int(np.count_nonzero(np.abs(totals) >= limit)) / len(totals), exact)
    totals = np.concatenate([(2 * flips_DK - 1) @ sums_K for flips_DK in _draws(2, len(sums_K), draws, seed)])
    return PermutationTest((1 + int(np.count_nonzero(np.abs(totals) >= limit))) / (1 + draws), exact)


def minimum_detectable_difference(standard_deviation: float, rows: int, *, significance: float = 0.05) -> float:
    """The smallest true mean difference that a two-sided paired test over ``rows`` rows finds four times of five.

    ``(z[1 - significance / 2] + z[0.8]) * sd / sqrt(rows)``: the normal approximation, good from some 30 rows on.
    ``standard_deviation`` is that of the paired differences (where rows come in clusters: that of the clusters' mean differences, with
    ``rows`` the number of clusters). The chance of finding it in the wrong direction is left out, as usual.

    Raises:
        ValueError: no rows, a negative deviation, or a significance outside 0 and 1.

    """
    if rows < 1 or not 0 <= standard_deviation < np.inf:
        raise ValueError(f"needs rows and a standard deviation of at least 0, not {rows} and {standard_deviation}")
    if not 0 < significance < 1:
        raise ValueError(f"significance must be between 0 and 1, not {significance}")
    from scipy import special

    z = float(special.ndtri(1 - significance / 2) + special.ndtri(0.8))
    return z * standard_deviation / float(np.sqrt(rows))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values of several comparisons, in the order given (Holm 1979): compare each with the level of the family.

    The k-th smallest of m is multiplied by m - k + 1; a later one is never smaller than an earlier one, none is above 1.

    Raises:
        ValueError: a p-value outside 0 and 1.

    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must be a list of numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return tuple(float(value) for value in adjusted)


def _pulls(values_R: Floats, weights_R: Floats) -> Floats:
    """How far each row pulls a ratio of sums: the terms of its first-order expansion, times the number of rows."""
    share = values_R.sum() / weights_R.sum()
    return np.asarray((values_R - share * weights_R) / weights_R.mean(), dtype=np.float64)


def _swapped_ratios(a_R: Floats, weights_R: Floats, b_R: Floats, others_R: Floats, settings: IntervalSettings) -> float:
    """The p-value of a difference of ratios by drawn swaps of the models' rows, (1 + as extreme) / (1 + draws)."""
    a_2, b_2 = np.array([a_R.sum(), weights_R.sum()]), np.array([b_R.sum(), others_R.sum()])
    moved_R2 = np.column_stack([b_R - a_R, others_R - weights_R])
    seen = abs(b_2[0] / b_2[1] - a_2[0] / a_2[1])
    extreme = 0
    for swaps_DR in _draws(2, len(a_R), settings.resamples, settings.seed):
        moved_D2 = swaps_DR @ moved_R2
        one_D2, other_D2 = b_2 - moved_D2, a_2 + moved_D2
        differences_D = one_D2[:, 0] / one_D2[:, 1] - other_D2[:, 0] / other_D2[:, 1]
        extreme += int(np.count_nonzero(np.abs(differences_D) >= seen - 1e-12))
    return (1 + extreme) / (1 + settings.resamples)


def _draws(below: int, rows: int, number: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """``number`` times as many numbers below ``below`` as there are rows, [D, R] at a time."""
    rng, at_once = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // rows)
    for start in range(0, number, at_once):
        yield rng.integers(below, size=(min(at_once, number - start), rows))


def cluster_sums(values_RX: Floats, clusters_R: Sequence[Hashable] | None) -> Floats:
    """The sums of the values of every cluster (X: of each row one value, or several), in order of appearance; None = every row is one."""
    if clusters_R is None:
        return values_RX
    if len(values_RX) != len(clusters_R):
        raise ValueError(f"{len(values_RX)} values, but {len(clusters_R)} clusters")
    places: dict[Hashable, int] = {}
    place_R = [places.setdefault(cluster, len(places)) for cluster in clusters_R]
    sums_KX = np.zeros((len(places), *values_RX.shape[1:]))
    np.add.at(sums_KX, place_R, values_RX)
    return sums_KX


def _cluster_means(values_R: Floats, clusters_R: Sequence[Hashable] | None) -> Floats:
    if clusters_R is None:
        return values_R
    groups = grouped(zip(clusters_R, values_R.tolist(), strict=True))
    return np.array([np.mean(group) for group in groups.values()])


def pairs(values_a_R: ArrayLike, values_b_R: ArrayLike) -> tuple[Floats, Floats]:
    """Two lists of one length as arrays. Raises ValueError where they are not, or hold nothing, or a value that is not finite."""
    a_R, b_R = np.asarray(values_a_R, dtype=np.float64), np.asarray(values_b_R, dtype=np.float64)
    if a_R.shape != b_R.shape:
        raise ValueError(f"two lists of one length are needed, not {a_R.shape} and {b_R.shape}")
    return _finite(a_R), _finite(b_R)


def _finite(values_R: ArrayLike) -> Floats:
    values = np.asarray(values_R, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"a list of values is needed, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    return values


def _bootstrap_ratio(
    top_R: Floats,
    bottom_R: Floats,
    settings: IntervalSettings,
    less: tuple[Floats, Floats] | None = None,
) -> Interval:
    """Percentile interval of ``sum(top) / sum(bottom)`` over resampled rows, less the same ratio of two other lists."""
    resamples, confidence = settings.resamples, _confidence(settings.confidence)
    if resamples < 1:
        raise ValueError("at least one resample is needed")
    ratios = [
        top_R[drawn_DR].sum(axis=1) / bottom_R[drawn_DR].sum(axis=1)
        - (0.0 if less is None else less[0][drawn_DR].sum(axis=1) / less[1][drawn_DR].sum(axis=1))
        for drawn_DR in _draws(len(top_R), len(top_R), resamples, settings.seed)
    ]
    estimate = top_R.sum() / bottom_R.sum() - (0.0 if less is None else less[0].sum() / less[1].sum())
    return Interval(float(estimate), *settings.ends(np.concatenate(ratios)), confidence)


def _confidence(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {value}")
    return value
