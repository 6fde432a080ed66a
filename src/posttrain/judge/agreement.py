"""How far raters agree, and how much of it is more than chance. No torch; every function is pure and seeded.

Raw agreement flatters a judge: two raters who answer "first" nine times in ten agree on 82% by chance. Kappa and alpha say which
share of the agreement that chance leaves open was reached: 1 is perfect, 0 is chance, below 0 is worse than chance.

Shapes in names: ``I`` items, ``C`` categories, ``K`` clusters of items, ``D`` resamples, ``X`` sums a coefficient needs.

Every coefficient here depends on the items through sums only. So the bootstrap draws how often each kind of item occurs and
adds up; items (or clusters of them, such as all pairs of one question) are what is resampled, and the interval is the
percentile interval. Resamples in which a coefficient is not defined are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.judge.verdicts import BothOrders, Missing, MissingReason, Verdict, mirrored
from posttrain.stats.intervals import Floats, Interval, IntervalSettings, cluster_sums, mcnemar, pairs

_NUMBERS_AT_ONCE = 1_000_000


# ---- two raters ----------------------------------------------------------------------------------------------------


def raw_agreement(
    labels_a_I: Sequence[Hashable],
    labels_b_I: Sequence[Hashable],
    *,
    clusters_I: Sequence[Hashable] | None = None,
    settings: IntervalSettings = IntervalSettings(),
) -> Interval:
    """Share of items to which both raters give the same label.

    Raises:
        ValueError: no items, unequal lengths, or a label that is None (leave those items out and say how many they were).

    """
    _checked_labels(labels_a_I, labels_b_I)
    parts_IX = np.array([[a == b, 1] for a, b in zip(labels_a_I, labels_b_I, strict=True)], dtype=np.float64)
    return _interval(parts_IX, lambda sums_DX: sums_DX[:, 0] / sums_DX[:, 1], clusters_I, settings)


def cohen_kappa(
    labels_a_I: Sequence[Hashable],
    labels_b_I: Sequence[Hashable],
    *,
    clusters_I: Sequence[Hashable] | None = None,
    settings: IntervalSettings = IntervalSettings(),
) -> Interval:
    """Cohen's kappa of two raters (Cohen 1960): ``1 - disagreement / the disagreement of the products of the raters' shares``.

    nan where each rater uses one label only and it is the same one. Raises ValueError as `raw_agreement`.
    """
    _checked_labels(labels_a_I, labels_b_I)
    place = {label: number for number, label in enumerate(dict.fromkeys((*labels_a_I, *labels_b_I)))}
    size = len(place)
    cells_I = [place[a] * size + place[b] for a, b in zip(labels_a_I, labels_b_I, strict=True)]

    def kappas(sums_DX: Floats) -> Floats:
        table_DCC = sums_DX.reshape(-1, size, size)
        all_D, agreed_D = table_DCC.sum(axis=(1, 2)), table_DCC.trace(axis1=1, axis2=2)
        by_chance_D = (table_DCC.sum(axis=2) * table_DCC.sum(axis=1)).sum(axis=1)
        return 1 - _ratio(all_D - agreed_D, (all_D**2 - by_chance_D) / all_D)

    return _interval(np.eye(size * size)[cells_I], kappas, clusters_I, settings)


# ---- two raters on a scale -----------------------------------------------------------------------------------------


def pearson_correlation(
    values_a_I: ArrayLike,
    values_b_I: ArrayLike,
    *,
    clusters_I: Sequence[Hashable] | None = None,
    settings: IntervalSettings = IntervalSettings(),
) -> Interval:
    """Pearson's correlation of two raters' numbers; nan where one of them gives the same number to all items.

    Raises:
        ValueError: no items, unequal lengths, or a number that is not finite.

    """

    def correlations(sums_DX: Floats) -> Floats:
        count_D, a_D, b_D, aa_D, bb_D, ab_D = sums_DX.T
        spreads = [aa_D / count_D - (a_D / count_D) ** 2, bb_D / count_D - (b_D / count_D) ** 2]
        a_spread_D, b_spread_D = (np.where(spread < _NO_SPREAD, 0.0, spread) for spread in spreads)
        return _ratio(ab_D / count_D - a_D * b_D / count_D**2, np.sqrt(a_spread_D * b_spread_D))

    return _interval(_moments(values_a_I, values_b_I), correlations, clusters_I, settings)


def quadratic_kappa(
    values_a_I: ArrayLike,
    values_b_I: ArrayLike,
    *,
    clusters_I: Sequence[Hashable] | None = None,
    settings: IntervalSettings = IntervalSettings(),
) -> Interval:
    """Quadratically weighted kappa of two raters' numbers, whole or not: ``1 - mean (a_i - b_i)^2 / mean over i, j of (a_i - b_j)^2``.

    Of whole ratings it is ``cohen_kappa`` with quadratic weights over all levels of the scale, used or not (Cohen 1968); of any numbers
    it is Lin's concordance correlation (Lin 1989). nan where both raters always give one and the same number.

    Raises ValueError as `pearson_correlation`.
    """

    def kappas(sums_DX: Floats) -> Floats:
        count_D, a_D, b_D, aa_D, bb_D, ab_D = sums_DX.T
        seen_D = (aa_D + bb_D - 2 * ab_D) / count_D
        expected_D = (aa_D + bb_D) / count_D - 2 * a_D * b_D / count_D**2
        return 1 - _ratio(seen_D, expected_D)

    return _interval(_moments(values_a_I, values_b_I), kappas, clusters_I, settings)


def spearman_correlation(
    values_a_I: ArrayLike,
    values_b_I: ArrayLike,
    *,
    clusters_I: Sequence[Hashable] | None = None,
    settings: IntervalSettings = IntervalSettings(),
) -> Interval:
    """Spearman's rank correlation, equal numbers at their mean rank; nan where one rater gives the same number to all items.

    The ranks are made anew in every resample. Time grows with the square of the number of different pairs (a, b), which is small
    for ratings on a scale. Raises ValueError as `pearson_correlation`.
    """
    pairs_I2 = np.column_stack(pairs(values_a_I, values_b_I))
    kinds_T2, kind_I = np.unique(pairs_I2, axis=0, return_inverse=True)
    levels_T2 = np.column_stack([np.unique(kinds_T, return_inverse=True)[1] for kinds_T in kinds_T2.T])

    def centred_ranks(counts_DT: Floats, level_T: NDArray[np.intp]) -> Floats:
        counts_DL = counts_DT @ np.eye(level_T.max() + 1)[level_T]
        middle_DT = (np.cumsum(counts_DL, axis=1) - counts_DL / 2)[:, level_T]
        ranks_DT: Floats = middle_DT - counts_DT.sum(axis=1, keepdims=True) / 2
        return ranks_DT

    def correlations(counts_DT: Floats) -> Floats:
        a_DT, b_DT = (centred_ranks(counts_DT, level_T) for level_T in levels_T2.T)
        spread_D = (counts_DT * a_DT**2).sum(axis=1) * (counts_DT * b_DT**2).sum(axis=1)
        return _ratio((counts_DT * a_DT * b_DT).sum(axis=1), np.sqrt(spread_D))

    return _interval(np.eye(len(kinds_T2))[kind_I.ravel()], correlations, clusters_I, settings)


_NO_SPREAD = 1e-12
"""A variance below it, of numbers whose largest distance from their middle is 1, is rounding."""


def _moments(values_a_I: ArrayLike, values_b_I: ArrayLike) -> Floats:
    """Per item: 1, a, b, a^2, b^2 and ab, counted from the common mean in units of the largest distance from it (against rounding)."""
    a_I, b_I = pairs(values_a_I, values_b_I)
    both = np.concatenate((a_I, b_I))
    unit = float(np.abs(both - both.mean()).max()) or 1.0
    a_I, b_I = (a_I - both.mean()) / unit, (b_I - both.mean()) / unit
    return np.column_stack((np.ones_like(a_I), a_I, b_I, a_I**2, b_I**2, a_I * b_I))


# ---- a judge in both orders ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderEffects:
    """What the order of the answers does to a judge. The first four shares add up to 1."""

    pairs: int
    """Asked."""
    judged: int
    """With a verdict in both orders: what the shares are taken of."""
    consistent: Interval | None
    """Both orders agree. All intervals are Wilson's; all are None where nothing is judged."""
    to_first: Interval | None
    """The answer shown first won both judgments: only its place decided."""
    to_second: Interval | None
    half_tie: Interval | None
    """A tie in one order only."""
    direction_p: float
    """Two-sided p-value of an even split between ``to_first`` and ``to_second`` (exact sign test)."""
    ties: Interval | None
    """Consistent ties."""
    missing: dict[MissingReason, int]
    """Judgments without a verdict."""


def order_effects(judgments: Sequence[BothOrders], settings: IntervalSettings = IntervalSettings()) -> OrderEffects:
    """How far a judge's verdicts depend on which answer it saw first."""
    judged = [judgment for judgment in judgments if judgment.consistent is not None]
    consistent = [judgment for judgment in judged if judgment.consistent]
    positions = Counter(judgment.position for judgment in judged)
    first, second = positions["first"], positions["second"]
    sides = [side for judgment in judgments for side in (judgment.original, judgment.swapped)]

    def share(count: int) -> Interval | None:
        return settings.share(count, len(judged))

    return OrderEffects(
        pairs=len(judgments),
        judged=len(judged),
        consistent=share(len(consistent)),
        to_first=share(first),
        to_second=share(second),
        half_tie=share(len(judged) - len(consistent) - first - second),
        direction_p=mcnemar(first, second),
        ties=share(sum(judgment.outcome == "tie" for judgment in consistent)),
        missing=dict(Counter(side.reason for side in sides if isinstance(side, Missing))),
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """A judge against known labels."""

    one_order: Interval | None
    """Accuracy of a single judgment, over the judgments that have a verdict; the interval resamples pairs."""
    both_orders: Interval | None
    """Accuracy of the two-judgment outcome, over pairs judged in both orders (Wilson). An inconsistent pair is a tie, so wrong unless a
    tie is right."""
    kappa: Interval | None
    """Cohen's kappa between outcome and label."""
    orders: OrderEffects


def calibration(
    judgments: Sequence[BothOrders], gold: Sequence[Verdict], settings: IntervalSettings = IntervalSettings()
) -> Calibration:
    """How often a judge is right about pairs whose better answer is known, and how much the order matters to it.

    ``gold[i]`` is ``first`` where model a of ``judgments[i]`` is better. Missing verdicts are not wrong here: they are counted in ``orders``.
    """
    single: list[tuple[Verdict, Verdict, int]] = []
    both: list[tuple[Verdict, Verdict]] = []
    for number, (judgment, label) in enumerate(zip(judgments, gold, strict=True)):
        if not isinstance(judgment.original, Missing):
            single.append((judgment.original, label, number))
        if not isinstance(judgment.swapped, Missing):
            single.append((mirrored(judgment.swapped), label, number))
        if not isinstance(judgment.outcome, Missing):
            both.append((judgment.outcome, label))
    one_order = both_orders = kappa = None
    if single:
        judged, right, pair = zip(*single, strict=True)
        one_order = raw_agreement(judged, right, clusters_I=pair, settings=settings)
    if both:
        outcomes, labels = zip(*both, strict=True)
        both_orders = settings.share(sum(outcome == label for outcome, label in both), len(both))
        kappa = cohen_kappa(outcomes, labels, settings=settings)
    return Calibration(one_order, both_orders, kappa, order_effects(judgments, settings))


# ---- several raters ------------------------------------------------------------------------------------------------


def krippendorff_alpha(
    ratings_I: Sequence[Sequence[Hashable]], settings: IntervalSettings = IntervalSettings()
) -> Interval:
    """Krippendorff's alpha of labels: ``1 - observed / expected disagreement`` for any number of raters and with gaps.

    ``ratings_I[i]`` are the ratings of item i; None and nan are missing, and items with fewer than two ratings say nothing (they are
    not resampled either). Definition: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", nominal. nan where all
    ratings are the same. Raises ValueError where no item has two ratings.
    """
    present = [[rating for rating in item if not _is_missing(rating)] for item in ratings_I]
    items = [item for item in present if len(item) > 1]
    if not items:
        raise ValueError("no item has two ratings")
    place = {value: number for number, value in enumerate(dict.fromkeys(rating for item in items for rating in item))}
    counts_IC = np.array([np.bincount([place[rating] for rating in item], minlength=len(place)) for item in items])
    sizes_I = counts_IC.sum(axis=1)
    # Ordered pairs of an item that disagree, / (ratings - 1).
    disagree_I = (sizes_I**2 - (counts_IC**2).sum(axis=1)) / (sizes_I - 1)

    def alphas(sums_DX: Floats) -> Floats:
        counts_DC = sums_DX[:, 1:]
        all_D = counts_DC.sum(axis=1)
        found_D: Floats = 1 - (all_D - 1) * _ratio(sums_DX[:, 0], all_D**2 - (counts_DC**2).sum(axis=1))
        return found_D

    return _interval(np.column_stack((disagree_I, counts_IC)), alphas, None, settings)


# ---- the bootstrap -------------------------------------------------------------------------------------------------


def _interval(
    parts_IX: Floats,
    statistic: Callable[[Floats], Floats],
    clusters_I: Sequence[Hashable] | None,
    settings: IntervalSettings,
) -> Interval:
    """The statistic of the summed parts, with its percentile interval over resampled items or clusters of items.

    Items with equal parts are interchangeable: their numbers in a resample are one multinomial draw.
    """
    resamples = settings.resamples
    parts_KX = cluster_sums(parts_IX, clusters_I)
    kinds_TX, counts_T = np.unique(parts_KX, axis=0, return_counts=True)
    rng, size = np.random.default_rng(settings.seed), len(parts_KX)
    at_once = max(1, _NUMBERS_AT_ONCE // max(kinds_TX.shape))
    values = np.concatenate(
        [
            statistic(rng.multinomial(size, counts_T / size, size=min(at_once, resamples - start)) @ kinds_TX)
            for start in range(0, resamples, at_once)
        ]
    )
    estimate = float(statistic(parts_KX.sum(axis=0, keepdims=True))[0])
    defined = values[~np.isnan(values)]
    low, high = settings.ends(defined) if len(defined) else (math.nan, math.nan)
    return Interval(estimate, low, high, settings.confidence)


def _ratio(top_D: Floats, bottom_D: Floats) -> Floats:
    """nan where nothing can differ: chance explains everything."""
    found_D = np.full(len(top_D), np.nan)
    # Sums of products of counts: what is 0 in theory may be left at 1e-16 of its terms.
    defined = bottom_D > 1e-12
    found_D[defined] = top_D[defined] / bottom_D[defined]
    return found_D


def _checked_labels(labels_a_I: Sequence[Hashable], labels_b_I: Sequence[Hashable]) -> None:
    if len(labels_a_I) != len(labels_b_I) or not labels_a_I:
        raise ValueError(f"two lists of one length are needed, not {len(labels_a_I)} and {len(labels_b_I)}")
    for number, pair in enumerate(zip(labels_a_I, labels_b_I, strict=True)):
        if any(_is_missing(label) for label in pair):
            raise ValueError(f"item {number} has no label of one rater: leave it out, and count it")


def _is_missing(rating: Hashable) -> bool:
    return rating is None or (isinstance(rating, float) and math.isnan(rating))
