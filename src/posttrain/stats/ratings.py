"""Ratings from pairwise comparisons: win matrix, and Bradley-Terry with two kinds of interval.

    P[a beats b] = 1 / (1 + base^((R_b - R_a) / width)),  base 10, width 400     (Bradley and Terry 1952)

Ratings are the maximum of the likelihood, a tie being half a win and half a loss. They are centred on 1000 or shifted to an
anchor. What is reproduced: FastChat's rating_systems.py (multinomial bootstrap of unique rows) and arena-rank's
BradleyTerry (sandwich interval, weights by pair), the code behind Chatbot Arena (arXiv:2403.04132).

numpy and scipy only. Shapes in names: ``N`` comparisons, ``U`` unique ones, ``M`` models, ``B`` bootstrap rounds, ``C`` clusters
or cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from posttrain.errors import DataError
from posttrain.stats.intervals import Floats
from posttrain.table import did_you_mean

Integers = NDArray[np.int64]

OUTCOMES: Mapping[str, float] = {
    **dict.fromkeys(("model_a", "a", "left"), 1.0),
    **dict.fromkeys(("model_b", "b", "right"), 0.0),
    **dict.fromkeys(("tie", "draw", "tie (bothbad)", "both_bad", "bothbad", "tie (inconsistent)"), 0.5),
}
"""What a winner may be called, and the share of the win that goes to model a. An unknown word is an error, not a tie."""

WIDTH, BASE, CENTRE = 400.0, 10.0, 1000.0
"""``WIDTH`` points are odds of ``BASE`` to 1; ratings are centred on ``CENTRE``."""
_POINTS_PER_LOGIT = WIDTH / math.log(BASE)
_ROUNDS_AT_ONCE_CELLS = 2_000_000
"""Cells of the win matrices of bootstrap rounds that are fitted together (16 MB of float64)."""
_SEPARATED_RIDGE = 1e-6
"""Penalty, relative to the number of comparisons, in bootstrap rounds whose ratings would be infinite."""


# ---- comparisons ---------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One judged pair."""

    model_a: str
    model_b: str
    winner: Literal["a", "b", "tie"]
    weight: float = 1.0
    cluster: str | None = None
    """Rows of one cluster (a prompt, say) are not taken as independent of each other."""


@dataclass(frozen=True)
class Comparisons:
    """Judged pairs as columns, in the order they were given."""

    models: tuple[str, ...]
    """Names, sorted."""
    pairs_N2: Integers
    """Rows of (model a, model b) as numbers in ``models``."""
    outcomes_N: Floats
    """Model a's share of the win: 1, 1/2 or 0."""
    weights_N: Floats
    clusters_N: Integers | None = None
    """Which rows belong together (votes on one prompt, say) and are not independent; None: each stands alone."""
    missing: int = 0
    """Pairs without a verdict, in none of the rows."""

    def __len__(self) -> int:
        return len(self.outcomes_N)


def gather(rows: Sequence[Comparison], places: Sequence[str] | None = None, missing: int = 0) -> Comparisons:
    """Comparisons in columns. ``places``: of each, for errors; ``missing``: rows that had no verdict.

    Raises:
        DataError: no rows, a model compared with itself, or a weight that is not positive.

    """
    if not rows:
        raise DataError("no comparisons", fix="give at least one judged pair")
    clustered = any(row.cluster is not None for row in rows)
    for where, row in zip(places or [f"row {number + 1}" for number in range(len(rows))], rows, strict=True):
        if row.model_a == row.model_b:
            raise DataError(f"{row.model_a!r} is compared with itself", where=where, fix="remove the row")
        if not (math.isfinite(row.weight) and row.weight > 0):
            raise DataError(f"weight {row.weight} is not above 0", where=where, fix="give a positive weight")
        if clustered and row.cluster is None:
            raise DataError("no cluster, while other rows have one", where=where, fix="give it to all rows or to none")
    models, pairs_N2 = np.unique([(row.model_a, row.model_b) for row in rows], return_inverse=True)
    return Comparisons(
        tuple(models.tolist()),
        pairs_N2.reshape(-1, 2),
        np.array([OUTCOMES[row.winner] for row in rows]),
        np.array([row.weight for row in rows], dtype=np.float64),
        np.unique([row.cluster for row in rows], return_inverse=True)[1] if clustered else None,
        missing,
    )


def share_of(winner: Any, where: str) -> float:
    """Model a's share of the win, by any of the words of ``OUTCOMES``. Raises DataError where it is none of them."""
    word = str(winner)
    if (share := OUTCOMES.get(word.strip().lower())) is None:
        problem = f"unknown winner {winner!r}{did_you_mean(word, OUTCOMES)}"
        raise DataError(problem, where=where, fix=f"use one of {', '.join(OUTCOMES)}")
    return share


def winner_of(word: str, where: str) -> Literal["a", "b", "tie"]:
    """Who won, as :func:`share_of` reads it."""
    share = share_of(word, where)
    return "a" if share == 1 else "b" if share == 0 else "tie"


# ---- counting ------------------------------------------------------------------------------------------------------


class WinMatrix(NamedTuple):
    """Who beat whom how often. Row beats column."""

    models: tuple[str, ...]
    wins_MM: Floats
    """Weighted wins of the row's model against the column's, a tie counting one half for each."""
    counts_MM: Integers
    """Rows that compare the two, whatever they weigh."""


def win_matrix(comparisons: Comparisons) -> WinMatrix:
    """Count the comparisons, model by model."""
    size = len(comparisons.models)
    a_N, b_N = comparisons.pairs_N2.T
    wins, counts = np.zeros((size, size)), np.zeros((size, size), dtype=np.int64)
    np.add.at(wins, (a_N, b_N), comparisons.outcomes_N * comparisons.weights_N)
    np.add.at(wins, (b_N, a_N), (1 - comparisons.outcomes_N) * comparisons.weights_N)
    np.add.at(counts, (a_N, b_N), 1)
    return WinMatrix(comparisons.models, wins, counts + counts.T)


def win_rates(matrix: WinMatrix) -> Floats:
    """Share [M, M] of the wins of the row's model against the column's; NaN where two were never compared."""
    games = matrix.wins_MM + matrix.wins_MM.T
    return np.divide(matrix.wins_MM, games, out=np.full_like(games, np.nan), where=games > 0)


def average_win_rates(matrix: WinMatrix) -> dict[str, float]:
    """Each model's win rate in [0, 1], averaged over the models it met: every opponent counts the same.

    Unlike a Bradley-Terry rating it depends on who was met.
    """
    return {model: float(np.nanmean(rates)) for model, rates in zip(matrix.models, win_rates(matrix), strict=True)}


# ---- whether ratings exist -----------------------------------------------------------------------------------------


def win_groups(wins_MM: Floats) -> list[list[int]]:
    """Models in groups within which every two are joined by a chain of wins in both directions (ties count both ways).

    One group means that the Bradley-Terry maximum exists and is unique up to a shift (Ford 1957). Otherwise nobody of a later
    group ever won against an earlier one, as far as they met.
    """
    count, labels = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_array(wins_MM > 0), connection="strong")
    groups = [np.flatnonzero(labels == label).tolist() for label in range(count)]
    beats = scipy.sparse.csr_array(wins_MM > 0)
    # those that a chain of wins leads to
    reached = [
        len(scipy.sparse.csgraph.breadth_first_order(beats, group[0], return_predecessors=False)) for group in groups
    ]
    return [group for _, group in sorted(zip(reached, groups, strict=True), key=lambda pair: -pair[0])]


def check_ratings_exist(matrix: WinMatrix) -> None:
    """Raise DataError where the Bradley-Terry maximum does not exist, with the groups that can't be joined."""
    groups = win_groups(matrix.wins_MM)
    if len(groups) == 1:
        return
    met = matrix.wins_MM + matrix.wins_MM.T > 0
    islands, labels = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_array(met), directed=False)
    if islands > 1:
        parts = [
            _listed([m for m, label in zip(matrix.models, labels, strict=True) if label == i]) for i in range(islands)
        ]
        raise DataError(
            f"models of these groups were never compared with each other: {' | '.join(parts)}",
            fix="compare models across the groups, or rate each group by itself",
        )
    named = [_listed([matrix.models[place] for place in group]) for group in groups]
    raise DataError(
        "Bradley-Terry ratings would be infinite: nobody of a later group ever won or tied against an earlier one: "
        f"{' > '.join(named[:6])}{' > ...' if len(named) > 6 else ''}",
        fix="compare more pairs, or leave out models that lost (or won) everything",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---- results -------------------------------------------------------------------------------------------------------


class Anchor(NamedTuple):
    """A model whose rating is given; the others are read relative to it."""

    model: str
    rating: float = CENTRE


@dataclass(frozen=True, slots=True)
class Rating:
    """One model's rating in points."""

    model: str
    rating: float
    low: float
    high: float
    rank: int
    """See :func:`ranks`: models that can't be told apart share one."""
    comparisons: int


@dataclass(frozen=True)
class RatingTable:
    """Ratings, best first, and how they were made."""

    ratings: tuple[Rating, ...]
    method: Literal["bradley_terry", "style_controlled", "elo"]
    interval: Literal["sandwich", "bootstrap"]
    warnings: tuple[str, ...] = ()


def ranks(low_M: Floats, high_M: Floats) -> Integers:
    """1 + the number of models whose whole interval lies above a model's own (Chatbot Arena's ranks)."""
    above_MM = low_M[None, :] > high_M[:, None]
    return np.asarray(1 + above_MM.sum(axis=1), dtype=np.int64)


def rating_table(
    comparisons: Comparisons, ratings_M: Floats, low_M: Floats, high_M: Floats, ranks_M: Integers, **more: Any
) -> RatingTable:
    """Order by rating, then by name. ``more``: how they were made."""
    met_M = np.bincount(comparisons.pairs_N2.ravel(), minlength=len(comparisons.models))
    columns = (column.tolist() for column in (ratings_M, low_M, high_M, ranks_M, met_M))
    rows = [Rating(*row) for row in zip(comparisons.models, *columns, strict=True)]
    if comparisons.missing:
        lost = f"{comparisons.missing} pairs have no verdict and are in none of the numbers"
        more["warnings"] = (*more.get("warnings", ()), lost)
    return RatingTable(tuple(sorted(rows, key=lambda row: (-row.rating, row.model))), **more)


def shift_to(comparisons: Comparisons, anchor: Anchor | None) -> tuple[Floats, float]:
    """(matrix_MM, offset): ratings in points are ``matrix @ points + offset`` for points centred on 0."""
    identity = np.eye(len(comparisons.models))
    if anchor is None:
        # strengths sum to zero already; what rounding adds along that direction is taken off
        return identity - 1 / len(comparisons.models), CENTRE
    if anchor.model not in comparisons.models:
        raise DataError(
            f"the anchor {anchor.model!r} was not compared{did_you_mean(anchor.model, comparisons.models)}",
            fix=f"choose one of {_listed(comparisons.models)}",
        )
    return identity - identity[comparisons.models.index(anchor.model)], anchor.rating


def normal_quantile(confidence: float) -> float:
    """Standard deviations on either side of a normal interval. ValueError where confidence is no share."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return float(scipy.special.ndtri((1 + confidence) / 2))


# ---- Bradley-Terry -------------------------------------------------------------------------------------------------


def fit_bradley_terry(wins_BMM: Floats, ridge: float = 0.0) -> Floats:
    """Maximum-likelihood strengths in logits [B, M], each summing to zero, of one or many win matrices [(B,) M, M].

    Newton's method on the log-likelihood ``sum_ij wins_ij log sigmoid(r_i - r_j)``, all matrices at once. A step changes no
    difference of two strengths by more than 1: within that, a logistic likelihood never falls (its third derivative is
    bounded by the second, Bach 2010, arXiv:0910.4627, lemma 1). ``ridge`` subtracts ``ridge * total * |r|^2 / 2``;
    without it the maximum must exist (:func:`win_groups`).
    """
    wins = np.asarray(wins_BMM, dtype=np.float64)
    batch = wins.reshape(-1, *wins.shape[-2:])
    batch = batch / batch.sum(axis=(1, 2), keepdims=True)
    games = batch + batch.transpose(0, 2, 1)
    size = batch.shape[-1]
    eye, ones = np.eye(size), np.full((size, size), 1 / size)
    strengths = np.zeros(batch.shape[:2])
    for _ in range(500):
        chances = scipy.special.expit(strengths[:, :, None] - strengths[:, None, :])
        gradient = (batch - games * chances).sum(axis=2) - ridge * strengths
        weights = games * chances * (1 - chances)
        # the likelihood knows differences only: the mean's direction gets a curvature of its own, and no gradient
        curvature = weights.sum(axis=2)[:, :, None] * eye - weights + ones + ridge * eye
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        widest = np.ptp(step, axis=1)
        strengths += step / np.maximum(widest, 1)[:, None]
        strengths -= strengths.mean(axis=1, keepdims=True)
        if widest.max() < 1e-8:  # convergence is quadratic: what is left after this step is rounding
            break
    return strengths.reshape(wins.shape[:-1])


def bradley_terry(
    comparisons: Comparisons,
    *,
    interval: Literal["sandwich", "bootstrap"] = "sandwich",
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
    anchor: Anchor | None = None,
) -> RatingTable:
    """Bradley-Terry ratings in points with intervals.

    ``sandwich`` is the robust normal interval H^-1 B H^-1 of arena-rank (White 1982), ``bootstrap`` the percentile interval
    of ``rounds`` multinomial draws of the unique rows (FastChat). Both take rows as independent, as those do, unless the
    comparisons have clusters: then scores are summed and draws are made by cluster.

    Without an anchor an interval is about a model's distance to the mean of all models; with one about its distance to the
    anchor, whose own interval has no width. Ranks come from the former in any case.

    Raises:
        DataError: the maximum does not exist (the message names the groups), or the anchor was not compared.

    """
    quantile = normal_quantile(confidence)
    matrix = win_matrix(comparisons)
    check_ratings_exist(matrix)
    shift_MM, offset = shift_to(comparisons, anchor)
    centre_MM, _ = shift_to(comparisons, None)
    strengths_M = fit_bradley_terry(matrix.wins_MM)
    warnings: tuple[str, ...] = ()
    if interval == "sandwich":
        covariance_MM = sandwich(comparisons, strengths_M)

        def ends(shift_MM: Floats) -> tuple[Floats, Floats]:
            middle_M = shift_MM @ strengths_M * _POINTS_PER_LOGIT
            half_M = quantile * deviations(shift_MM, covariance_MM) * _POINTS_PER_LOGIT
            return middle_M - half_M, middle_M + half_M

    else:
        draws_BM, separated = bootstrap_strengths(comparisons, rounds, seed)
        if separated > rounds * (1 - confidence) / 2:
            warnings = (
                f"in {separated} of {rounds} bootstrap rounds some model won or lost everything: "
                "the far ends of the intervals are a matter of the penalty that holds them finite",
            )

        def ends(shift_MM: Floats) -> tuple[Floats, Floats]:
            shares = ((1 - confidence) / 2, (1 + confidence) / 2)
            low_M, high_M = np.quantile(draws_BM @ shift_MM.T * _POINTS_PER_LOGIT, shares, axis=0)
            return low_M, high_M

    low_M, high_M = ends(shift_MM)
    return rating_table(
        comparisons,
        shift_MM @ strengths_M * _POINTS_PER_LOGIT + offset,
        low_M + offset,
        high_M + offset,
        ranks(*ends(centre_MM)),
        method="bradley_terry",
        interval=interval,
        warnings=warnings,
    )


def deviations(shift_MM: Floats, covariance_MM: Floats) -> Floats:
    """Standard deviations of shifted ratings; rounding must not leave a variance below 0."""
    return np.asarray(np.sqrt(np.maximum(np.diag(shift_MM @ covariance_MM @ shift_MM.T), 0)), dtype=np.float64)


def sandwich(comparisons: Comparisons, strengths_M: Floats) -> Floats:
    """Robust covariance [M, M] of the strengths in logits, each measured from the mean of all.

    H sums ``weight p (1 - p)`` and B ``(weight (outcome - p))^2`` over the rows, each times the outer product of the row's +1
    and -1. arena-rank inverts H with a ridge of 1e-5 per comparison; here the inverse is taken where H has one, among
    strengths that sum to zero, which B never leaves either. With clusters B sums the outer products of whole clusters' scores
    (Liang and Zeger 1986).
    """
    a_N, b_N = comparisons.pairs_N2.T
    chances_N = scipy.special.expit(strengths_M[a_N] - strengths_M[b_N])
    residuals_N = comparisons.weights_N * (comparisons.outcomes_N - chances_N)
    bread = _laplacian(comparisons, comparisons.weights_N * chances_N * (1 - chances_N))
    if comparisons.clusters_N is None:
        meat = _laplacian(comparisons, residuals_N**2)
    else:
        scores_CM = np.zeros((int(comparisons.clusters_N.max()) + 1, len(comparisons.models)))
        np.add.at(scores_CM, (comparisons.clusters_N, a_N), residuals_N)
        np.add.at(scores_CM, (comparisons.clusters_N, b_N), -residuals_N)
        meat = scores_CM.T @ scores_CM
    inverse = np.linalg.pinv(bread, hermitian=True)
    return np.asarray(inverse @ meat @ inverse, dtype=np.float64)


def _laplacian(comparisons: Comparisons, values_N: Floats) -> Floats:
    """Sum over the rows of value times (e_a - e_b)(e_a - e_b)^T."""
    size = len(comparisons.models)
    a_N, b_N = comparisons.pairs_N2.T
    found = np.zeros((size, size))
    np.add.at(found, (a_N, b_N), -values_N)
    found = found + found.T
    return found - np.diag(found.sum(axis=1))


def bootstrap_strengths(comparisons: Comparisons, rounds: int, seed: int) -> tuple[Floats, int]:
    """(strengths in logits [B, M], rounds in which they would have been infinite).

    Rows that agree in everything are drawn together, by one multinomial draw of their numbers per round, as in FastChat;
    clusters are drawn whole. The comparisons themselves must have ratings. A round in which a model won or lost everything
    is fitted with a tiny penalty rather than left out: leaving such rounds out would make intervals narrower just where
    they are least sure.
    """
    if rounds < 2:
        raise ValueError("at least two bootstrap rounds are needed")
    size = len(comparisons.models)
    cells_UC, counts_U = _draw_units(comparisons)
    beats_MM = win_matrix(comparisons).wins_MM > 0
    drawn_BU = np.random.default_rng(seed).multinomial(int(counts_U.sum()), counts_U / counts_U.sum(), size=rounds)
    at_once = max(1, _ROUNDS_AT_ONCE_CELLS // (size * size))
    found, separated = np.empty((rounds, size)), 0
    for start in range(0, rounds, at_once):
        wins_BMM = (drawn_BU[start : start + at_once] @ cells_UC).reshape(-1, size, size)
        # a round in which the same models beat each other as in all rows is joined as they are
        infinite = np.any((wins_BMM > 0) != beats_MM, axis=(1, 2))
        infinite[infinite] = [len(win_groups(wins)) > 1 for wins in wins_BMM[infinite]]
        separated += int(infinite.sum())
        part = found[start : start + at_once]
        for chosen, ridge in ((~infinite, 0.0), (infinite, _SEPARATED_RIDGE)):
            if chosen.any():
                part[chosen] = fit_bradley_terry(wins_BMM[chosen], ridge)
    return found, separated


def _draw_units(comparisons: Comparisons) -> tuple[Any, Integers]:
    """What a bootstrap round draws: wins of each unit as a sparse row of M * M cells, and how often the unit is there.

    Units are the unique rows, or the clusters.
    """
    size = len(comparisons.models)
    a_N, b_N = comparisons.pairs_N2.T
    if comparisons.clusters_N is None:
        keys = np.column_stack([comparisons.pairs_N2, comparisons.outcomes_N, comparisons.weights_N])
        _, chosen, counts_U = np.unique(keys, axis=0, return_index=True, return_counts=True)
        unit = np.arange(len(counts_U))
    else:
        unit, chosen = comparisons.clusters_N, np.arange(len(comparisons))
        counts_U = np.ones(int(unit.max()) + 1, dtype=np.int64)
    share, weight = comparisons.outcomes_N[chosen], comparisons.weights_N[chosen]
    a, b = a_N[chosen], b_N[chosen]
    values = np.concatenate([share * weight, (1 - share) * weight])
    places = (np.concatenate([unit, unit]), np.concatenate([a * size + b, b * size + a]))
    return scipy.sparse.csr_array((values, places), shape=(len(counts_U), size * size)), counts_U
