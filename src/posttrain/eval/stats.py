"""Uncertainty of what evaluation measures. numpy and scipy only; every function is pure and seeded.

Shapes in names: ``R`` held-out rows, ``P`` prompts. Differences are always ``b - a``: a negative loss difference and a
positive accuracy difference both say that ``b`` is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

_DRAWS_AT_ONCE = 1_000_000
"""Row numbers drawn at once: 8 MB of int64. The numbers drawn do not depend on it."""


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


def loss_difference(
    nll_a_R: ArrayLike,
    nll_b_R: ArrayLike,
    tokens_R: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Difference of the mean losses of two models on the same rows, in nats per token, by paired bootstrap.

    ``nll_a_R`` and ``nll_b_R`` are sums of negative log-likelihoods per row, ``tokens_R`` the numbers of tokens they are summed over.
    The estimate is the ratio of sums, ``sum(nll_b - nll_a) / sum(tokens)``. Rows are the unit that is resampled (tokens of one row are
    not independent), both models with the same draw, and the ratio is formed anew in every resample. The interval is the
    percentile interval (Efron and Tibshirani 1993, chapter 13). With one row it has no width, and with few rows it is too
    narrow: the bootstrap knows only the rows it was given.

    Raises:
        ValueError: no rows, unequal lengths, a row without tokens, or a loss that is not finite.

    """
    nll_a, nll_b, tokens = (np.asarray(x, dtype=np.float64) for x in (nll_a_R, nll_b_R, tokens_R))
    if not nll_a.shape == nll_b.shape == tokens.shape or nll_a.ndim != 1 or nll_a.size == 0:
        raise ValueError(f"three lists of one length are needed, not {nll_a.shape}, {nll_b.shape}, {tokens.shape}")
    if not (np.isfinite(nll_a).all() and np.isfinite(nll_b).all() and np.isfinite(tokens).all() and (tokens > 0).all()):
        raise ValueError("losses must be finite, and every row needs at least one token")
    return _bootstrap_ratio(nll_b - nll_a, tokens, confidence, resamples, seed)


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


def wilson(passed: int, checked: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927; method 3 of Newcombe 1998, without continuity correction).

    Raises:
        ValueError: not ``0 <= passed <= checked``, or nothing was checked.

    """
    if not 0 <= passed <= checked or checked == 0:
        raise ValueError(f"{passed} of {checked} is no proportion")
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


def _bootstrap_ratio(
    top_R: NDArray[np.float64], bottom_R: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> Interval:
    """Percentile interval of ``sum(top) / sum(bottom)`` over resampled rows."""
    tail = (1 - _confidence(confidence)) / 2
    if resamples < 1:
        raise ValueError("at least one resample is needed")
    rng, rows = np.random.default_rng(seed), len(top_R)
    at_once = max(1, _DRAWS_AT_ONCE // rows)
    ratios = np.empty(resamples)
    for start in range(0, resamples, at_once):
        drawn = rng.integers(rows, size=(min(at_once, resamples - start), rows))
        ratios[start : start + at_once] = top_R[drawn].sum(axis=1) / bottom_R[drawn].sum(axis=1)
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Interval(float(top_R.sum() / bottom_R.sum()), float(low), float(high), confidence)


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
