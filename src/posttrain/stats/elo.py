"""Online Elo: ratings that move with every comparison, and so depend on the order of the comparisons.

    P = 1 / (1 + base^((R_b - R_a) / width));  R_a += K weight (outcome - P),  R_b -= the same          (Elo 1978)

K = 4, width 400, base 10 and 1000 at the start are Chatbot Arena's (FastChat, rating_systems.py). For models, which do not
change with time, Bradley-Terry uses the same comparisons better; Elo is here for results that have to be followed as they come.
Shapes in names: ``N`` comparisons, ``M`` models, ``B`` shuffles.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray

from posttrain.stats.intervals import Floats
from posttrain.stats.ratings import BASE, CENTRE, WIDTH, Comparisons, RatingTable, ranks, rating_table


def elo_table(comparisons: Comparisons, *, rounds: int = 100, seed: int = 0, confidence: float = 0.95) -> RatingTable:
    """Elo over many orders: the median rating of each model, with percentile intervals.

    Every round's comparisons are drawn with replacement (FastChat's bootstrap), one by one also where they have clusters: the interval
    holds both the chance of these comparisons and that of their order.
    """
    count = len(comparisons)
    order_NB = np.random.default_rng(seed).integers(count, size=(count, rounds))
    played_BM = play(comparisons, order_NB)
    low_M, middle_M, high_M = np.quantile(played_BM, ((1 - confidence) / 2, 0.5, (1 + confidence) / 2), axis=0)
    return rating_table(
        comparisons,
        middle_M,
        low_M,
        high_M,
        ranks(low_M, high_M),
        method="elo",
        interval="bootstrap",
    )


def play(comparisons: Comparisons, order_NB: NDArray[np.int64], k: float = 4.0) -> Floats:
    """Final ratings [B, M] of every order, all orders in step."""
    a_N, b_N = comparisons.pairs_N2.T
    pace = math.log(BASE) / WIDTH
    rounds_B = np.arange(order_NB.shape[1])
    ratings = np.full((len(rounds_B), len(comparisons.models)), CENTRE)
    for row_B in order_NB:
        a_B, b_B = a_N[row_B], b_N[row_B]
        chances_B = scipy.special.expit(pace * (ratings[rounds_B, a_B] - ratings[rounds_B, b_B]))
        moves_B = k * comparisons.weights_N[row_B] * (comparisons.outcomes_N[row_B] - chances_B)
        ratings[rounds_B, a_B] += moves_B
        ratings[rounds_B, b_B] -= moves_B
    return ratings
