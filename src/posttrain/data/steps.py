"""What every step of the data chain has in common: rows in a Parquet file, one verdict for each, rows in a Parquet file.

A step decides; it never edits text. `Step.decide` looks at a file of rows and returns `Decisions`: for every row whether
it stays, why not, and what was measured. `apply` writes what follows from them into the step's folder:

    rows.parquet      the rows that stay, with the verdicts of this step added to those they carry
    rejects.parquet   the dropped rows, with step, reason, detail and the id of the row that stands for them (twin)
    <table>.parquet   further tables of the step (clusters, matches); of a split the rows of each (train, validation, test)
    facts.json        numbers for the profile
    ledger.json       rows in -> kept, dropped by reason; written last, so a step that has it is finished

Files are read in blocks, so memory grows with the number of rows but not with their text.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import polars as pl

from posttrain.artifacts import Ledger, LedgerStep, read_json, write_error, write_json
from posttrain.data.places import Resolve
from posttrain.data.rows import BLOCK_ROWS as BLOCK_ROWS
from posttrain.data.rows import LINEAGE, MEASUREMENT, SCHEMA, compared_texts, scan_rows, write_frame, write_rows
from posttrain.data.streams import Tick
from posttrain.data.text import Fields
from posttrain.errors import DataError
from posttrain.types import Origin

Progress = Callable[[str, int, int], None]
"""Called now and then as ``progress(what, done, total)``."""

_ROWS_ASIDE = 10 * BLOCK_ROWS
"""Rows whose verdicts are put beside them at once."""

VERDICTS: dict[str, Any] = {"row": pl.UInt32, **MEASUREMENT, "check": pl.Categorical(), "limit": pl.Categorical()}
"""One measurement of one row: its place in the file, what was measured, the value, the limit as text (``>= 3``). Few names and
limits stand in many verdicts: as codes they take half of the memory."""

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

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """Look at a file of rows. Equal rows and equal configuration give equal decisions, however ``run`` is set."""


def verdicts_of(rows: pl.DataFrame, check: str, value: pl.Expr, limit: pl.Expr, passed: pl.Expr) -> pl.DataFrame:
    """[VERDICTS]: one for every row of a frame that has the places of rows in its column ``row``."""
    columns = (pl.col("row"), pl.lit(check), value, limit, passed)
    return rows.select([c.cast(t).alias(name) for c, (name, t) in zip(columns, VERDICTS.items(), strict=True)])


def rejects_of(rows: pl.DataFrame, reason: pl.Expr, detail: pl.Expr, twin: pl.Expr | None = None) -> pl.DataFrame:
    """[REJECTS]: all rows of a frame that has the places of rows in its column ``row``."""
    columns = (pl.col("row"), reason, detail, pl.lit(None) if twin is None else twin)
    return rows.select([c.cast(t).alias(name) for c, (name, t) in zip(columns, REJECTS.items(), strict=True)])


def count_rows(rows_file: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pl.scan_parquet(rows_file).select(pl.len()).collect().item())


def blocks(
    rows_file: Path, columns: Sequence[str], tick: Tick = lambda done, total: None
) -> Iterator[tuple[int, pl.DataFrame]]:
    """(place of the first row, block of some columns) over a file of rows; one empty block where it has no rows.

    ``tick(done, total)`` is called before every block and at the end.
    """
    frame, total = scan_rows(rows_file).select(columns), count_rows(rows_file)
    for begin in range(0, max(1, total), BLOCK_ROWS):
        tick(begin, total)
        yield begin, frame.slice(begin, BLOCK_ROWS).collect()
    tick(total, total)


def score_names(rows_file: Path) -> set[str]:
    """The names of all scores that the rows of a file carry."""
    names = pl.col("scores").explode().struct.field("name").drop_nulls().unique()
    return set(scan_rows(rows_file).select(names).collect()["name"])


class Texts:
    """The text of every row of a file. Only the places are in memory."""

    def __init__(self, file: IO[bytes], ends: Sequence[int]) -> None:
        self._file = file
        self._ends = np.array([0, *ends], np.int64)

    def __getitem__(self, row: int) -> str:
        begin, end = int(self._ends[row]), int(self._ends[row + 1])
        self._file.seek(begin)
        return self._file.read(end - begin).decode("utf-8", "surrogatepass")


@contextmanager
def stored_texts(rows_file: Path, fields: Fields) -> Iterator[Texts]:
    """The compared texts of all rows, to be read in any order: in a temporary file. Raises RunError where that can't be written."""
    sizes: list[int] = []
    with tempfile.TemporaryFile() as file:
        try:
            for _, block in blocks(rows_file, ["messages"]):
                for text in compared_texts(block, fields):
                    sizes.append(file.write(text.encode("utf-8", "surrogatepass")))
            file.flush()
        except OSError as error:
            raise write_error(error, Path(tempfile.gettempdir())) from error
        yield Texts(file, list(accumulate(sizes)))


def apply(name: str, rows_file: Path, decisions: Decisions, out: Path) -> LedgerStep:
    """Write the files of a finished step (see the head of this module) and return its line of the ledger."""
    total = count_rows(rows_file)
    rejects = decisions.rejects.select([pl.col(c).cast(t) for c, t in REJECTS.items()]).sort("row")
    if rejects["row"].n_unique() != len(rejects):
        raise AssertionError(f"step {name!r} dropped a row twice")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as aside:
        carried = _carried(rows_file, name, decisions, rejects, Path(aside))
        write_rows(out / "rows.parquet", carried.filter(~pl.col("dropped")))
        write_rows(
            out / "rejects.parquet",
            carried.filter("dropped").with_columns(step=pl.lit(name)),
            extra={"step": pl.String, "reason": pl.String, "detail": pl.String, "twin": pl.String},
        )
    for table, frame in decisions.tables.items():
        frame.write_parquet(out / f"{table}.parquet", compression="zstd")
    if decisions.columns is not None and "split" in decisions.columns.columns:
        _write_splits(out)
    write_json(out / "facts.json", dict(decisions.facts))
    counts = dict(rejects.group_by("reason").len().sort("reason").iter_rows())
    ledger = Ledger()
    line = ledger.step(name, rows_in=total)
    line.rows_out, line.dropped, line.notes = total - len(rejects), counts, dict(decisions.notes)
    ledger.write(out / "ledger.json")
    return line


def _write_splits(out: Path) -> None:
    """Write the rows of each split into a file of its own; a split without rows gets none."""
    frame = scan_rows(out / "rows.parquet")
    for name in frame.select("split").unique().collect()["split"].drop_nulls():
        write_rows(out / f"{name}.parquet", frame.filter(pl.col("split") == name))


def _carried(rows_file: Path, name: str, decisions: Decisions, rejects: pl.DataFrame, aside: Path) -> pl.LazyFrame:
    """All rows with their place, new lineage columns, the verdicts of this step appended to theirs, and why they go.

    What is known of the rows stands beside them line by line: a join would hold their text. ``aside``: a folder for what need not be in memory.
    """
    places = pl.DataFrame({"row": pl.arange(count_rows(rows_file), dtype=pl.UInt32, eager=True)})
    why = rejects.with_columns(dropped=pl.lit(True))
    beside = [
        places.join(why, on="row", how="left", maintain_order="left").with_columns(pl.col("dropped").fill_null(False))
    ]
    frame = scan_rows(rows_file)
    if decisions.columns is not None:
        fresh = [column for column in decisions.columns.columns if column in LINEAGE]
        if len(decisions.columns) != len(places):
            raise AssertionError(f"step {name!r} gave columns of {len(decisions.columns)} rows for {len(places)}")
        beside.append(decisions.columns.select(fresh))
        frame = frame.drop(fresh)
    frame = pl.concat([frame, *(part.lazy() for part in beside)], how="horizontal")
    if len(decisions.verdicts):
        frame = pl.concat([frame, _by_row(name, places, decisions.verdicts, aside)], how="horizontal")
        frame = frame.with_columns(verdicts=pl.concat_list("verdicts", "fresh"))
    return frame.select("row", *SCHEMA, *LINEAGE, "dropped", "reason", "detail", "twin")


def _by_row(name: str, places: pl.DataFrame, verdicts: pl.DataFrame, aside: Path) -> pl.LazyFrame:
    """``fresh``: the verdicts of every row as it carries them.

    From files that are written some rows at a time: all at once they take three times the memory of the table.
    """
    if not verdicts["row"].is_sorted():
        verdicts = verdicts.sort("row", maintain_order=True)
    verdict = pl.struct(pl.lit(name).alias("step"), *MEASUREMENT)
    files = []
    for begin in range(0, len(places), _ROWS_ASIDE):
        rows = places.slice(begin, _ROWS_ASIDE)
        first, last = (int(verdicts["row"].search_sorted(row)) for row in (begin, begin + len(rows)))
        grouped = verdicts[first:last].group_by("row", maintain_order=True).agg(verdict.alias("fresh"))
        fresh = pl.col("fresh").cast(LINEAGE["verdicts"]).fill_null([])
        files.append(aside / f"{begin:012d}.parquet")
        beside = rows.lazy().join(grouped.lazy(), on="row", how="left", maintain_order="left")
        write_frame(files[-1], beside.select(fresh), "lz4")
    return pl.scan_parquet(files, glob=False)


# ---- a chain of steps ----------------------------------------------------------------------------------------------

SHOWN_REJECTS = 3
"""Dropped rows shown in an error."""


def run_steps(
    steps: Sequence[Step], rows_file: Path, folder: Path, seed: int, run: StepRun
) -> tuple[Path, list[LedgerStep]]:
    """Run the steps one after the other; returns the rows of the last one and every step's line of the ledger.

    Step n writes ``folder/0n-<kind>`` (see the head of this module). A folder with a ledger is finished and taken as it is, so
    the caller must give another folder when rows, steps or seed change. Raises DataError where a step leaves no row.
    """
    lines = []
    for number, step in enumerate(steps, 1):
        out = folder / f"{number:02d}-{step.kind}"
        lines.append(_finished_line(out) or run_step(step, rows_file, out, seed, run))
        rows_file = out / "rows.parquet"
        if lines[-1].rows_out == 0:
            raise nothing_left(lines[-1], out)
    return rows_file, lines


def run_step(step: Step, rows_file: Path, out: Path, seed: int, run: StepRun) -> LedgerStep:
    """Run one step into an empty or half-written folder."""
    shutil.rmtree(out, ignore_errors=True)
    return apply(step.kind, rows_file, step.decide(rows_file, seed, run), out)


def _finished_line(out: Path) -> LedgerStep | None:
    """The line of the ledger of a finished step, else None."""
    path = out / "ledger.json"
    return LedgerStep(**read_json(path)["steps"][-1]) if path.exists() else None


def nothing_left(line: LedgerStep, out: Path) -> DataError:
    """The error of a step that dropped every row."""
    counts = ", ".join(f"{reason} {count:,}" for reason, count in Counter(line.dropped).most_common())
    columns = ["file", "line", "reason", "detail"]
    first = pl.read_parquet(out / "rejects.parquet", columns=columns, n_rows=SHOWN_REJECTS, glob=False)
    examples = "".join(
        f"\n  {Origin(file, place)}: {reason}: {detail}" for file, place, reason, detail in first.iter_rows()
    )
    return DataError(
        f"step {line.name} dropped all {line.rows_in:,} rows ({counts}){examples}",
        where=str(out / "rejects.parquet"),
        fix="loosen this step; the file lists every row with its reason",
    )
