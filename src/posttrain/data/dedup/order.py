"""The order in which rows are taken: of like rows the first one stays, whatever order the file has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    """The rows of a file by rank: score first (the highest; rows without one last), then content id, then place."""

    row_of_rank: NDArray[np.int64]
    rank_of_row: NDArray[np.int64]
    ids: pl.Series
    """Content id of every row of the file."""
    scored: int
    """Rows that carry the score."""


def total_order(rows_file: Path, prefer: str) -> Order:
    """The order of a file of rows by its score ``prefer``, content ids, then source, file and line (equal contents)."""
    score = pl.element().filter(pl.element().struct.field("name") == prefer).struct.field("value")
    table = (
        pl.scan_parquet(rows_file, glob=False)
        .select(
            "id",
            *("source", "file", "line"),
            score=pl.col("scores").list.eval(score).list.max().fill_nan(None),
        )
        .with_row_index("row")
        .collect()
    )
    by = ["score", "id", "source", "file", "line", "row"]
    placed = table.sort(by, descending=[True, *[False] * 5], nulls_last=True)["row"]
    row_of_rank = placed.to_numpy().astype(np.int64)
    rank_of_row = np.empty_like(row_of_rank)
    rank_of_row[row_of_rank] = np.arange(len(row_of_rank))
    return Order(row_of_rank, rank_of_row, table["id"], int(table["score"].count()))
