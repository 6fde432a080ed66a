"""What every step of the data chain has in common: rows in a Parquet file, one verdict for each, rows in a Parquet file.

A step decides; it never edits text. `Step.decide` looks at a file of rows and returns `Decisions`: for every row whether
it stays, why not, and what was measured. `apply` writes what follows from them into the step's folder:

    rows.parquet      the rows that stay, with the verdicts of this step added to those they carry
    rejects.parquet   the dropped rows, with step, reason, detail and the id of the row that stands for them (twin)
    <table>.parquet   further tables of the step (clusters, matches)
    facts.json        numbers for the profile
    ledger.json       rows in -> kept, dropped by reason; written last, so a step that has it is finished

Files are read in blocks, so memory grows with the number of rows but not with their text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from posttrain.artifacts import Ledger, LedgerStep, write_json
from posttrain.data.places import Resolve
from posttrain.data.rows import BLOCK_ROWS as BLOCK_ROWS
from posttrain.data.rows import LINEAGE, SCHEMA, scan_rows, write_rows

Progress = Callable[[str, int, int], None]
"""Called now and then as ``progress(what, done, total)``."""

VERDICTS: dict[str, Any] = {
    "row": pl.UInt32,
    "check": pl.String,
    "value": pl.Float64,
    "limit": pl.String,
    "passed": pl.Boolean,
}
"""One measurement of one row: its place in the file, what was measured, the value, the limit as text (``>= 3``)."""

REJECTS: dict[str, Any] = {"row": pl.UInt32, "reason": pl.String, "detail": pl.String, "twin": pl.String}
"""One dropped row: its place in the file, a short fixed reason, the detail of this case, the id of the row kept instead."""


@dataclass(frozen=True)
class StepRun:
    """How a step runs; nothing of it may change the result."""

    resolve: Resolve
    """Finds demo assets by name."""
    workers: int = 1
    engine: str = "local"
    """``local`` (one process or a pool of ``workers``) or ``ray``."""
    progress: Progress = lambda what, done, total: None


@dataclass(frozen=True)
class Decisions:
    """What a step found. ``rejects`` ([REJECTS], each row once) are dropped; every other row stays, in its order."""

    rejects: pl.DataFrame
    verdicts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=VERDICTS))
    """[VERDICTS], at most one of each check for a row."""
    columns: pl.DataFrame | None = None
    """New values of lineage columns (``split``, ``weight``, ``scores``, ``cluster``), one line for every row of the file."""
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Further tables by name, written as ``<name>.parquet``."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON for the profile and the terminal: effective settings, curves, counts."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts about rows that stay, for the ledger."""


class Step(Protocol):
    """The configuration of one step; ``kind`` names it in a recipe and on the command line."""

    @property
    def kind(self) -> str:
        """The name of the step."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """Look at a file of rows. Equal rows and equal configuration give equal decisions, however ``run`` is set."""


def count_rows(rows: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pl.scan_parquet(rows).select(pl.len()).collect().item())


def blocks(
    rows: Path, columns: Sequence[str] | None = None, size: int = BLOCK_ROWS
) -> Iterator[tuple[int, pl.DataFrame]]:
    """(place of the first row, block of rows) over a file of rows; only ``columns`` are read where they are given."""
    total = count_rows(rows)
    frame = scan_rows(rows)
    if columns is not None:
        frame = frame.select(list(columns))
    for begin in range(0, total, size):
        yield begin, frame.slice(begin, size).collect()


def apply(
    name: str, rows: Path, decisions: Decisions, out: Path, before_ledger: Callable[[], object] = lambda: None
) -> LedgerStep:
    """Write the files of a finished step (see the head of this module) and return its line of the ledger.

    ``before_ledger`` writes what further files the step has.
    """
    total = count_rows(rows)
    rejects = decisions.rejects.select([pl.col(c).cast(t) for c, t in REJECTS.items()]).sort("row")
    if rejects["row"].n_unique() != len(rejects):
        raise AssertionError(f"step {name!r} dropped a row twice")
    carried = _carried(rows, name, decisions, rejects)
    kept = carried.filter(~pl.col("dropped"))
    dropped = carried.filter("dropped")
    write_rows(out / "rows.parquet", kept)
    write_rows(
        out / "rejects.parquet",
        dropped.with_columns(step=pl.lit(name)),
        extra={"step": pl.String, "reason": pl.String, "detail": pl.String, "twin": pl.String},
    )
    for table, frame in decisions.tables.items():
        frame.write_parquet(out / f"{table}.parquet", compression="zstd")
    write_json(out / "facts.json", dict(decisions.facts))
    counts = dict(rejects.group_by("reason").len().sort("reason").iter_rows())
    ledger = Ledger()
    line = ledger.step(name, rows_in=total)
    line.rows_out, line.dropped, line.notes = total - len(rejects), counts, dict(decisions.notes)
    before_ledger()
    ledger.write(out / "ledger.json")
    return line


def _carried(rows: Path, name: str, decisions: Decisions, rejects: pl.DataFrame) -> pl.LazyFrame:
    """All rows with their place, new lineage columns, the verdicts of this step appended to theirs, and why they go.

    What is known of the rows stands beside them line by line: a join would hold their text.
    """
    places = pl.DataFrame({"row": pl.arange(count_rows(rows), dtype=pl.UInt32, eager=True)})
    why = rejects.with_columns(dropped=pl.lit(True))
    beside = [
        places.join(why, on="row", how="left", maintain_order="left").with_columns(pl.col("dropped").fill_null(False))
    ]
    frame = scan_rows(rows)
    if decisions.columns is not None:
        fresh = [column for column in decisions.columns.columns if column in LINEAGE]
        if len(decisions.columns) != len(places):
            raise AssertionError(f"step {name!r} gave columns of {len(decisions.columns)} rows for {len(places)}")
        beside.append(decisions.columns.select(fresh))
        frame = frame.drop(fresh)
    if len(decisions.verdicts):
        # Few names and limits stand in many verdicts: as codes they take a third of the memory. They become text again
        # block by block.
        code = pl.Categorical()
        verdict = pl.struct(
            pl.lit(name, code).alias("step"), pl.col("check").cast(code), "value", pl.col("limit").cast(code), "passed"
        )
        grouped = decisions.verdicts.group_by("row", maintain_order=True).agg(verdict.alias("fresh"))
        beside.append(places.join(grouped, on="row", how="left", maintain_order="left").select("fresh"))
    frame = pl.concat([frame, *(part.lazy() for part in beside)], how="horizontal")
    if len(decisions.verdicts):
        verdicts = pl.col("fresh").cast(LINEAGE["verdicts"]).fill_null([])
        frame = frame.with_columns(verdicts=pl.concat_list("verdicts", verdicts))
    return frame.select("row", *SCHEMA, *LINEAGE, "dropped", "reason", "detail", "twin")
