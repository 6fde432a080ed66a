"""How far signals agree about which rows are more and which are less: rank correlation, pair by pair."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl


def spearman(first: pl.Series, second: pl.Series) -> float | None:
    """Spearman's rank correlation of two columns without nulls; equal values share their mean rank.

    None where it is not defined: fewer than two rows, or a column of one value.
    """
    ranks = [column.rank("average").to_numpy() for column in (first, second)]
    centred = [rank - rank.mean() if len(rank) else rank for rank in ranks]
    norms = [float(np.sqrt(np.dot(rank, rank))) for rank in centred]
    if min(norms) == 0.0:
        return None
    return float(np.clip(np.dot(centred[0], centred[1]) / (norms[0] * norms[1]), -1.0, 1.0))


def agreement(table: pl.DataFrame, signals: list[str]) -> list[dict[str, Any]]:
    """For every two signals: rank correlation and number of rows that have both, over all rows and source by source.

    ``table``: column ``source`` and one column for each signal.
    """
    groups: list[tuple[str | None, pl.DataFrame]] = [(None, table)]
    if table["source"].n_unique() > 1:
        groups += [
            (str(part["source"][0]), part)
            for part in table.sort("source", maintain_order=True).partition_by("source", maintain_order=True)
        ]
    found = []
    for source, part in groups:
        for first, second in itertools.combinations(signals, 2):
            both = part.select(first, second).drop_nulls()
            found.append(
                {
                    "source": source,
                    "a": first,
                    "b": second,
                    "rows": len(both),
                    "spearman": spearman(both[first], both[second]),
                }
            )
    return found
