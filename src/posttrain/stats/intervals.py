"""Uncertainty of what evaluation measures. numpy and scipy only; every function is pure and seeded.

Shapes in names: ``R`` held-out rows, ``P`` prompts, ``K`` clusters of rows. Differences are always ``b - a``: a negative loss difference and a
positive accuracy difference both say that ``b`` is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DRAWS_AT_ONCE = 1_000_000
"""Row numbers drawn at once: 8 MB of int64. The numbers drawn do not depend on it."""

_EXACT_FLIPS = 20
"""Up to this many differences every pattern of signs is looked at: 2**20 sums, 8 MB."""


@dataclass(frozen=True, slots=True)
class Chance:
    """How intervals are made."""

    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float


class Discordance(NamedTuple):
    """How two models agree over the same checked prompts. The fields sum up to the number of prompts."""

    both_right: int
    only_a: int
    only_b: int
    both_wrong: int


class PermutationTest(NamedTuple):
    """A paired permutation test of the mean difference ``b - a``."""

    difference: float
    p_value: float
    """Two-sided."""
    exact: bool
    """Whether every pattern of signs was looked at; otherwise ``patterns`` of them were drawn."""
    patterns: int


def loss_difference(
    nll_a_R: ArrayLike,
    nll_b_R: ArrayLike,
    tokens_R: ArrayLike,
    tokens_b_R: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Difference of the mean losses of two models on the same rows, in nats per token, by paired bootstrap.

    ``nll_a_R`` and ``nll_b_R`` are sums of negative log-likelihoods per row, ``tokens_R`` the numbers of tokens they are summed over.
    ``tokens_b_R``: those of b, where its chat template writes the rows in others; None = the same.
    The estimate is the ratio of sums, ``sum(nll_b - nll_a) / sum(tokens)``, or the difference of two ratios. Rows are the unit that is resampled (tokens of one row are
    not independent), both models with the same draw, and the ratio is formed anew in every resample. The interval is the
    percentile interval (Efron and Tibshirani 1993, chapter 13). With one row it has no width, and with few rows it is too
    narrow: the bootstrap knows only the rows it was given.

    Raises:
        ValueError: no rows, unequal lengths, a row without tokens, or a loss that is not finite.

    """
    nll_a, nll_b, tokens = (np.asarray(x, dtype=np.float64) for x in (nll_a_R, nll_b_R, tokens_R))
    tokens_b = tokens if tokens_b_R is None else np.asarray(tokens_b_R, dtype=np.float64)
    if not nll_a.shape == nll_b.shape == tokens.shape == tokens_b.shape or nll_a.ndim != 1 or nll_a.size == 0:
        raise ValueError(f"lists of one length are needed, not {nll_a.shape}, {nll_b.shape}, {tokens.shape}")
    counts = np.stack([tokens, tokens_b])
    if not (np.isfinite(nll_a).all() and np.isfinite(nll_b).all() and np.isfinite(counts).all() and (counts > 0).all()):
        raise ValueError("losses must be finite, and every row needs at least one token")
    if np.array_equal(tokens, tokens_b):
        return _bootstrap_ratio(nll_b - nll_a, tokens, confidence, resamples, seed)
    return _bootstrap_ratio(nll_b, tokens_b, confidence, resamples, seed, less=(nll_a, tokens))


def accuracy_difference(
    passed_a_P: ArrayLike,
    passed_b_P: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Difference of two accuracies over the same prompts (booleans), by paired bootstrap over prompts.

    Percentile interval, as in ``loss_difference``. Where the models never disagree it has no width: then read Wilson's interval of each.

    Raises:
        ValueError: no prompts or unequal lengths.

    """
    passed_a, passed_b = _paired(passed_a_P, passed_b_P)
    difference = passed_b.astype(np.float64) - passed_a
    return _bootstrap_ratio(difference, np.ones_like(difference), confidence, resamples, seed)


def mean_difference(
    values_a_R: ArrayLike,
    values_b_R: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Difference of the means of a value that two models have on the same rows, by paired bootstrap over rows.

    Percentile interval, as in ``loss_difference``.

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.

    """
    a, b = np.asarray(values_a_R, dtype=np.float64), np.asarray(values_b_R, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"two lists of one length are needed, not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values must be finite")
    return _bootstrap_ratio(b - a, np.ones_like(a), confidence, resamples, seed)


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


def discordance(passed_a_P: ArrayLike, passed_b_P: ArrayLike) -> Discordance:
    """Count over the same prompts who was right."""
    a, b = _paired(passed_a_P, passed_b_P)
    return Discordance(*(int(np.count_nonzero(x)) for x in (a & b, a & ~b, ~a & b, ~a & ~b)))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact conditional test (McNemar 1947): are the discordant prompts split evenly?

    ``min(1, 2 P[X <= min(only_a, only_b)])`` with X binomial(only_a + only_b, 1/2); 1.0 where no prompt is discordant.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts can't be negative: {only_a}, {only_b}")
    from scipy import special

    return min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def quantiles(values: ArrayLike, shares: Sequence[float] = (0.5, 0.9, 0.95, 1.0)) -> tuple[float, ...]:
    """Quantiles with linear interpolation between order statistics (type 7 of Hyndman and Fan 1996, numpy's default).

    Raises:
        ValueError: no values.

    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values, no quantiles")
    return tuple(float(q) for q in np.quantile(array, shares))


# ---- clusters, permutations, several comparisons -------------------------------------------------------------------


def clustered_difference(
    values_a_R: ArrayLike,
    values_b_R: ArrayLike,
    clusters_R: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Difference of the means of a value that two models have on the same rows, where rows come in clusters.

    Rows of one cluster (two turns, several samples or several judges of one question) are not independent, so whole clusters are
    resampled: the estimate is the mean over rows, as in ``mean_difference``, and so is the percentile interval. With one row a
    cluster the two functions give the same numbers. (Why: Miller 2024, arXiv:2411.00640.)

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.

    """
    difference_R = _differences(values_a_R, values_b_R)
    top_K, rows_K = _cluster_sums(difference_R, clusters_R)
    return _bootstrap_ratio(top_K, rows_K, confidence, resamples, seed)


def mean_by_group(
    values_R: ArrayLike,
    groups_R: Sequence[Hashable],
    *,
    clusters_R: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[Hashable, Interval]:
    """Mean of any per-row value in every group (categories, prompt types), with percentile intervals, groups in order of appearance.

    ``clusters_R`` names the unit that is resampled, a row by default. Every group is resampled on its own, with the same seed, so a
    group's interval does not depend on which others there are. For differences of two models hand in the differences.

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.

    """
    values = _finite(values_R)
    clusters = range(len(values)) if clusters_R is None else clusters_R
    _same_length(values, groups_R, "groups")
    _same_length(values, clusters, "clusters")
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups_R):
        rows.setdefault(group, []).append(row)
    found = {}
    for group, members in rows.items():
        top_K, rows_K = _cluster_sums(values[members], [clusters[row] for row in members])
        found[group] = _bootstrap_ratio(top_K, rows_K, confidence, resamples, seed)
    return found


def permutation_test(
    values_a_R: ArrayLike,
    values_b_R: ArrayLike,
    *,
    clusters_R: Sequence[Hashable] | None = None,
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
    difference_R = _differences(values_a_R, values_b_R)
    sums_K = difference_R if clusters_R is None else _cluster_sums(difference_R, clusters_R)[0]
    sums_K = sums_K[sums_K != 0]
    seen = abs(float(sums_K.sum()))
    # Equal sums added up in another order differ in the last digits: they must still count as equal.
    limit = seen - 1e-9 * float(np.abs(sums_K).sum())
    exact = len(sums_K) <= _EXACT_FLIPS
    if exact:
        totals = np.zeros(1)
        for value in sums_K:
            totals = np.concatenate((totals + value, totals - value))
        patterns = len(totals)
        p_value = int(np.count_nonzero(np.abs(totals) >= limit)) / patterns
    else:
        patterns = draws
        p_value = (1 + _extreme_draws(sums_K, limit, draws, seed)) / (1 + draws)
    return PermutationTest(float(difference_R.mean()), p_value, exact, patterns)


def minimum_detectable_difference(
    standard_deviation: float, rows: int, *, power: float = 0.8, significance: float = 0.05
) -> float:
    """The smallest true mean difference that a two-sided paired test over ``rows`` rows finds with probability ``power``.

    ``(z[1 - significance / 2] + z[power]) * sd / sqrt(rows)``: the normal approximation, good from some 30 rows on.
    ``standard_deviation`` is that of the paired differences (where rows come in clusters: that of the clusters' mean differences, with
    ``rows`` the number of clusters). The chance of finding it in the wrong direction is left out, as usual.

    Raises:
        ValueError: no rows, a negative deviation, or shares outside 0 and 1.

    """
    if rows < 1 or not 0 <= standard_deviation < np.inf:
        raise ValueError(f"needs rows and a standard deviation of at least 0, not {rows} and {standard_deviation}")
    if not 0 < significance < 1 or not 0 < power < 1:
        raise ValueError(f"power and significance must be between 0 and 1, not {power} and {significance}")
    from scipy import special

    z = float(special.ndtri(1 - significance / 2) + special.ndtri(power))
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


def _extreme_draws(sums_K: NDArray[np.float64], limit: float, draws: int, seed: int) -> int:
    rng, extreme = np.random.default_rng(seed), 0
    at_once = max(1, _DRAWS_AT_ONCE // len(sums_K))
    for start in range(0, draws, at_once):
        signs = 2 * rng.integers(2, size=(min(at_once, draws - start), len(sums_K))) - 1
        totals = signs @ sums_K
        extreme += int(np.count_nonzero(np.abs(totals) >= limit))
    return extreme


def _cluster_sums(
    values_R: NDArray[np.float64], clusters_R: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum of the values and the number of rows of every cluster, in order of appearance."""
    _same_length(values_R, clusters_R, "clusters")
    places: dict[Hashable, int] = {}
    place_R = [places.setdefault(cluster, len(places)) for cluster in clusters_R]
    top_K, rows_K = np.zeros(len(places)), np.zeros(len(places))
    np.add.at(top_K, place_R, values_R)
    np.add.at(rows_K, place_R, 1.0)
    return top_K, rows_K


def _same_length(values_R: NDArray[np.float64], names_R: Sequence[Hashable], what: str) -> None:
    if len(values_R) != len(names_R):
        raise ValueError(f"{len(values_R)} values, but {len(names_R)} {what}")


def _differences(values_a_R: ArrayLike, values_b_R: ArrayLike) -> NDArray[np.float64]:
    a, b = np.asarray(values_a_R, dtype=np.float64), np.asarray(values_b_R, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"two lists of one length are needed, not {a.shape} and {b.shape}")
    return _finite(b - a)


def _finite(values_R: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values_R, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"a list of values is needed, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    return values


def _bootstrap_ratio(
    top_R: NDArray[np.float64],
    bottom_R: NDArray[np.float64],
    confidence: float,
    resamples: int,
    seed: int,
    less: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Interval:
    """Percentile interval of ``sum(top) / sum(bottom)`` over resampled rows, less the same ratio of two other lists."""
    tail = (1 - _confidence(confidence)) / 2
    if resamples < 1:
        raise ValueError("at least one resample is needed")
    rng, rows = np.random.default_rng(seed), len(top_R)
    at_once = max(1, _DRAWS_AT_ONCE // rows)
    ratios = np.empty(resamples)
    for start in range(0, resamples, at_once):
        drawn = rng.integers(rows, size=(min(at_once, resamples - start), rows))
        found = top_R[drawn].sum(axis=1) / bottom_R[drawn].sum(axis=1)
        if less is not None:
            found -= less[0][drawn].sum(axis=1) / less[1][drawn].sum(axis=1)
        ratios[start : start + at_once] = found
    low, high = np.quantile(ratios, (tail, 1 - tail))
    estimate = top_R.sum() / bottom_R.sum() - (0.0 if less is None else less[0].sum() / less[1].sum())
    return Interval(float(estimate), float(low), float(high), confidence)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape or left.ndim != 1 or left.size == 0:
        raise ValueError(f"two lists of one length are needed, not {left.shape} and {right.shape}")
    if not {left.dtype, right.dtype} <= {np.dtype(np.bool_)}:
        raise ValueError(f"booleans are needed, not {left.dtype} and {right.dtype}")
    return left, right


def _confidence(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {value}")
    return value
