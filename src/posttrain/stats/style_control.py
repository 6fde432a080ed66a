"""Bradley-Terry ratings at equal style: is a model preferred for what it says, or for how long and how decorated?

    logit P[a beats b] = ln(base) (r_a - r_b) + features . c,  rating = width r + centre

Chatbot Arena's style control (FastChat, rating_systems.py, compute_style_control), fitted jointly with a ridge penalty on all
parameters. Shapes in names: ``N`` comparisons, ``M`` models, ``F`` style features, ``P`` = M + F parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike

from posttrain.errors import DataError
from posttrain.stats.intervals import Floats
from posttrain.stats.ratings import (
    BASE,
    WIDTH,
    Anchor,
    Comparisons,
    RatingTable,
    check_ratings_exist,
    deviations,
    normal_quantile,
    ranks,
    rating_table,
    shift_to,
    win_matrix,
)

# ---- what a reply looks like ---------------------------------------------------------------------------------------


def style_features(counts_a_NF: ArrayLike, counts_b_NF: ArrayLike) -> Floats:
    """Relative differences (a - b) / (a + b + 1) of style counts, standardised per feature (mean 0, population sd 1).

    Chatbot Arena's four are tokens, headers, list items and bold spans of the reply.

    Raises:
        DataError: a count is negative or not finite, or a feature never differs.

    """
    a, b = np.asarray(counts_a_NF, dtype=np.float64), np.asarray(counts_b_NF, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and a.min() >= 0 and b.min() >= 0):
        raise DataError("a style count is negative or not a number", fix="give counts of 0 or more")
    ratio = (a - b) / (a + b + 1)
    flat = np.flatnonzero(np.ptp(ratio, axis=0) == 0)
    if flat.size:
        raise DataError(
            f"style feature {flat[0]} has the same difference in every comparison: there is nothing to control",
            fix="leave it out",
        )
    return np.asarray((ratio - ratio.mean(axis=0)) / np.std(ratio, axis=0), dtype=np.float64)


# ---- ratings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StyleCoefficient:
    """What one standard deviation of a style difference is worth, in logits of winning, with its interval."""

    name: str
    estimate: float
    low: float
    high: float


def style_controlled(
    comparisons: Comparisons,
    features_NF: Floats,
    names: Sequence[str],
    *,
    penalty: float = 0.5,
    confidence: float = 0.95,
    anchor: Anchor | None = None,
) -> tuple[RatingTable, tuple[StyleCoefficient, ...]]:
    """Bradley-Terry ratings at equal style, and what style was worth: logit = ln(base) (r_a - r_b) + features . c, fitted jointly.

    FastChat's compute_style_control: ``penalty / 2`` times the squares of all parameters (r in units of ``width`` points) is
    added to the log-loss, and ratings are read with the features at 0. ``features_NF`` come from :func:`style_features`, row
    by row as the comparisons. As their mean is taken off, 0 stands for the average difference in the order (a, b) given.
    Intervals are of the sandwich kind, for the penalised fit, and by cluster where the comparisons have clusters.

    Raises:
        DataError: ratings would be infinite without the penalty, or the anchor was not compared.

    """
    quantile = normal_quantile(confidence)
    check_ratings_exist(win_matrix(comparisons))
    design_NP = _style_design(comparisons, features_NF)
    parameters_P = _fit_style(design_NP, comparisons, penalty)
    covariance_PP = _style_covariance(design_NP, comparisons, parameters_P, penalty)
    size = len(comparisons.models)
    shift_MM, offset = shift_to(comparisons, anchor)
    ratings_M = shift_MM @ parameters_P[:size] * WIDTH + offset
    half_M = quantile * deviations(shift_MM, covariance_PP[:size, :size]) * WIDTH
    centre_MM, _ = shift_to(comparisons, None)
    middle_M = centre_MM @ parameters_P[:size]
    reach_M = quantile * deviations(centre_MM, covariance_PP[:size, :size])
    half_F = quantile * np.sqrt(np.maximum(np.diag(covariance_PP)[size:], 0))
    table = rating_table(
        comparisons,
        ratings_M,
        ratings_M - half_M,
        ratings_M + half_M,
        ranks(middle_M - reach_M, middle_M + reach_M),
        method="style_controlled",
        interval="sandwich",
    )
    found = zip(names, parameters_P[size:], half_F, strict=True)
    return table, tuple(StyleCoefficient(n, float(c), float(c - h), float(c + h)) for n, c, h in found)


def _style_design(comparisons: Comparisons, features_NF: Floats) -> Any:
    """Sparse [N, M + F]: +- ln(base) at the two models, then the features."""
    count, size = len(comparisons), len(comparisons.models)
    rows = np.repeat(np.arange(count), 2)
    signs = np.tile([math.log(BASE), -math.log(BASE)], count)
    models = scipy.sparse.csr_array((signs, (rows, comparisons.pairs_N2.ravel())), shape=(count, size))
    return scipy.sparse.csr_array(scipy.sparse.hstack([models, scipy.sparse.csr_array(features_NF)]))


def _fit_style(design_NP: Any, comparisons: Comparisons, penalty: float) -> Floats:
    """Newton's method with halved steps on the penalised log-loss."""
    outcomes, weights = comparisons.outcomes_N, comparisons.weights_N

    def objective(parameters: Floats) -> float:
        logits = design_NP @ parameters
        return float(weights @ (np.logaddexp(0, logits) - outcomes * logits) + penalty / 2 * parameters @ parameters)

    parameters = np.zeros(design_NP.shape[1])
    value = objective(parameters)
    for _ in range(200):
        chances = scipy.special.expit(design_NP @ parameters)
        gradient = design_NP.T @ (weights * (chances - outcomes)) + penalty * parameters
        curvature = _style_bread(design_NP, weights * chances * (1 - chances), penalty)
        step = -np.linalg.pinv(curvature, hermitian=True) @ gradient
        size = 1.0
        while (found := objective(parameters + size * step)) > value and size > 1e-10:
            size /= 2
        if found >= value:
            break
        parameters, value = parameters + size * step, found
    return parameters


def _style_bread(design_NP: Any, values_N: Floats, penalty: float) -> Floats:
    weighted = scipy.sparse.diags_array(values_N) @ design_NP
    return np.asarray((design_NP.T @ weighted).toarray() + penalty * np.eye(design_NP.shape[1]), dtype=np.float64)


def _style_covariance(design_NP: Any, comparisons: Comparisons, parameters_P: Floats, penalty: float) -> Floats:
    """Sandwich of the penalised fit, from scores of rows or of clusters.

    Their mean, which the penalty holds in balance and which says nothing of their spread, is taken off.
    """
    chances = scipy.special.expit(design_NP @ parameters_P)
    residual = comparisons.weights_N * (comparisons.outcomes_N - chances)
    scores_NP = scipy.sparse.csr_array(scipy.sparse.diags_array(residual) @ design_NP)
    if comparisons.clusters_N is not None:
        rows = np.arange(len(comparisons))
        scores_NP = scipy.sparse.csr_array((np.ones(len(rows)), (comparisons.clusters_N, rows))) @ scores_NP
    total = np.asarray(scores_NP.sum(axis=0)).ravel()
    meat = (scores_NP.T @ scores_NP).toarray() - np.outer(total, total) / scores_NP.shape[0]
    bread = _style_bread(design_NP, comparisons.weights_N * chances * (1 - chances), penalty)
    inverse = np.linalg.pinv(bread, hermitian=True)
    return np.asarray(inverse @ meat @ inverse, dtype=np.float64)
