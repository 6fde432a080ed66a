"""Near-duplicates as the dedup step found them: which rows are alike, and which one stands for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from posttrain.board.row_readers import is_rows_file
from posttrain.board.row_table import EXCERPT, excerpt, readable
from posttrain.data.rows import row_of, scan_rows
from posttrain.types import Row

TABLE = "clusters.parquet"
MOST_MEMBERS = 50
"""Of a cluster that are shown."""


class Cluster(NamedTuple):
    """One group of rows that are alike."""

    number: int
    size: int
    least: float
    """The smallest similarity to the row that stands for them."""
    head: str
    """The beginning of the text of that row; empty where it is not there any more."""


@dataclass(frozen=True, slots=True)
class Member:
    """A row of a cluster."""

    id: str
    similarity: float
    kept: bool
    row: Row | None
    """None where it is not there any more."""


def clusters(table: Path, at: int, limit: int) -> tuple[list[Cluster], int]:
    """Some clusters, the largest first, and how many there are. Raises DataError where the table can't be read."""
    with readable():
        found = (
            pl.scan_parquet(table, glob=False)
            .group_by("cluster")
            .agg(pl.len().alias("size"), pl.col("similarity").min().alias("least"), pl.col("representative").first())
            .sort(["size", "least", "cluster"], descending=[True, False, False])
            .collect()
        )
        shown = found.slice(at, limit)
        heads = _rows(table.parent, shown["representative"].to_list())
    return [
        Cluster(number, size, least, excerpt(_asked(heads[head])) if head in heads else "")
        for number, size, least, head in shown.iter_rows()
    ], len(found)


def members(table: Path, number: int) -> list[Member]:
    """The rows of a cluster, the one that was kept first. Raises DataError as `clusters`."""
    with readable():
        found = pl.scan_parquet(table, glob=False).filter(pl.col("cluster") == number).head(MOST_MEMBERS).collect()
        rows = _rows(table.parent, found["id"].to_list())
    chosen = found.select("id", "similarity", "kept").iter_rows()
    return [Member(row_id, similarity, kept, rows.get(row_id)) for row_id, similarity, kept in chosen]


def cluster_of(table: Path, row_id: str) -> int | None:
    """The cluster that a row is in."""
    with readable():
        found = pl.scan_parquet(table, glob=False).filter(pl.col("id") == row_id).select("cluster").head(1).collect()
    return None if found.is_empty() else int(found.item())


def _rows(folder: Path, ids: list[str]) -> dict[str, Row]:
    """The rows with these ids among what the step kept and dropped."""
    found: dict[str, Row] = {}
    for path in (folder / "rows.parquet", folder / "rejects.parquet"):
        if path.is_file() and is_rows_file(path):
            chosen = scan_rows(path).filter(pl.col("id").is_in(ids)).collect()
            found |= {record["id"]: row_of(record) for record in chosen.iter_rows(named=True)}
    return found


def _asked(row: Row) -> str:
    asked = next((turn.content for turn in row.messages if turn.role == "user"), row.messages[0].content)
    return asked[: 4 * EXCERPT]
