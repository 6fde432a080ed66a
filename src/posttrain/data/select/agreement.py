"""How far signals agree about which rows are more and which are less, pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl


def spearman(first: pl.Series, second: pl.Series) -> float | None:
    """Spearman's rank correlation of two columns without nulls; None for fewer than two rows, or a column of one value."""
    ranks = [column.rank("average").to_numpy() for column in (first, second)]
    centred = [rank - rank.mean() if len(rank) else rank for rank in ranks]
    norms = [float(np.sqrt(np.dot(rank, rank))) for rank in centred]
    if min(norms) == 0.0:
        return None
    return float(np.clip(np.dot(centred[0], centred[1]) / (norms[0] * norms[1]), -1.0, 1.0))


def middle_shared(first: pl.Series, second: pl.Series) -> float | None:
    """The share of the middle half (quartiles included) of one column that is in the middle half of the other: 0.5 by chance."""
    quartiles = [np.quantile(column, [0.25, 0.75]) if len(column) else (0.0, 0.0) for column in (first, second)]
    middles = [column.is_between(*ends) for column, ends in zip((first, second), quartiles, strict=True)]
    larger = max(int(middle.sum()) for middle in middles)
    return int((middles[0] & middles[1]).sum()) / larger if larger else None


def agreement(table: pl.DataFrame, signals: Sequence[str]) -> list[dict[str, Any]]:
    """``source``, ``a``, ``b``, ``rows``, ``spearman``, ``middle_shared`` for every two signals and the rows that have both, over all rows
    (``source`` null) and source by source. ``table``: column ``source`` and one for each signal.
    """
    groups: list[tuple[str | None, pl.DataFrame]] = [(None, table)]
    parts = table.sort("source", maintain_order=True).partition_by("source", maintain_order=True)
    if len(parts) > 1:
        groups += [(str(part["source"][0]), part) for part in parts]
    found: list[dict[str, Any]] = []
    for source, part in groups:
        for a, b in itertools.combinations(signals, 2):
            both = part.select(a, b).drop_nulls()
            measured = {"spearman": spearman(both[a], both[b]), "middle_shared": middle_shared(both[a], both[b])}
            found.append({"source": source, "a": a, "b": b, "rows": len(both), **measured})
    return found
