"""What every method of selection gives: rows dropped, verdicts, facts.

All methods work on one table of the rows in a canonical order (a seeded hash of the content id), so no result depends on
the order in which the rows came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from posttrain.data.select.signals import Context
from posttrain.data.steps import rejects_of, verdicts_of
from posttrain.errors import ConfigError

NO_SCORE = "no_score"


@dataclass
class Outcome:
    """What a method decides. ``table``: the rows in canonical order with the signals that were used."""

    table: pl.DataFrame
    signals: list[str]
    rejects: list[pl.DataFrame] = field(default_factory=list)
    verdicts: list[pl.DataFrame] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def check(
        self,
        rows: pl.DataFrame,
        name: str,
        value: pl.Expr,
        limit: pl.Expr | str,
        passed: pl.Expr,
        reason: pl.Expr | str,
        detail: pl.Expr,
        twin: pl.Expr | None = None,
    ) -> None:
        """Add a verdict for some rows, and drop those that do not pass."""
        limit, reason = (pl.lit(each) if isinstance(each, str) else each for each in (limit, reason))
        self.verdicts.append(verdicts_of(rows, name, value, limit, passed))
        self.rejects.append(rejects_of(rows.filter(~passed), reason, detail, twin))


def row_table(context: Context, columns: Sequence[pl.Series]) -> pl.DataFrame:
    """Every row with its place, id, source and the columns (in the order of the file), in canonical order.

    ``place``: the rank of the row in that order, which settles ties.
    """
    frame = (
        pl.scan_parquet(context.rows_file, row_index_name="row").select("row", "id", "source", "file", "line").collect()
    )
    seed = context.seed
    hashed = [hashlib.sha256(f"{seed}:{row_id}".encode()).digest() for row_id in frame["id"]]
    return (
        frame.with_columns(pl.Series("hash", hashed, dtype=pl.Binary), *columns)
        .sort("hash", "id", "file", "line", "row")
        .drop("hash", "file", "line")
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("place"))
    )


def scored_rows(table: pl.DataFrame, name: str, context: Context, outcome: Outcome) -> pl.DataFrame:
    """The rows that have a signal; the others are dropped or stay, as the step says."""
    without = table.filter(pl.col(name).is_null())
    if len(without) and context.unscored == "drop":
        detail = pl.lit(f"the row has no {name}")
        outcome.check(without, name, pl.lit(None), "a value", pl.lit(False), NO_SCORE, detail)
    elif len(without):
        outcome.notes[NO_SCORE] = len(without)
    return table.filter(pl.col(name).is_not_null())


def num_wanted(amount: float, num_rows: int, where: str) -> int:
    """A number of rows: a share below 1 (halves up, at least one row), otherwise a whole number."""
    if amount < 1:
        return max(1, int(amount * num_rows + 0.5))
    if amount != int(amount):
        raise ConfigError(
            f"{amount} is neither a share below 1 nor a number of rows", where=where, fix="give 0.1 or 500"
        )
    return int(amount)


def short(number: pl.Expr) -> pl.Expr:
    """A number with six significant figures, as text."""
    return number.round_sig_figs(6).cast(pl.String)
