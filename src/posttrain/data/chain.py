"""A chain of steps over a file of rows: each writes its own folder, and a finished one is not run again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from posttrain.artifacts import LedgerStep, read_json
from posttrain.data.split import SplitStep, write_splits
from posttrain.data.steps import Step, StepRun, apply
from posttrain.errors import DataError
from posttrain.types import Origin

SHOWN_REJECTS = 3
"""Dropped rows shown in an error."""


def run_steps(
    steps: Sequence[Step], rows: Path, folder: Path, seed: int, run: StepRun
) -> tuple[Path, list[LedgerStep]]:
    """Run the steps one after the other; returns the rows of the last one and every step's line of the ledger.

    Step n writes ``folder/0n-<kind>`` (see `posttrain.data.steps`). A folder with a ledger is finished and taken as it is, so
    the caller must give another folder when rows, steps or seed change. Raises DataError where a step leaves no row.
    """
    lines = []
    for number, step in enumerate(steps, 1):
        out = folder / f"{number:02d}-{step.kind}"
        lines.append(finished_line(out) or run_step(step, rows, out, seed, run))
        rows = out / "rows.parquet"
        if lines[-1].rows_out == 0:
            raise nothing_left(lines[-1], out)
    return rows, lines


def run_step(step: Step, rows: Path, out: Path, seed: int, run: StepRun) -> LedgerStep:
    """Run one step into an empty or half-written folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    decisions = step.decide(rows, seed, run)
    if isinstance(step, SplitStep):
        # the files of the splits come before the ledger that says the step is finished
        return apply(step.kind, rows, decisions, out, before_ledger=lambda: write_splits(out / "rows.parquet", out))
    return apply(step.kind, rows, decisions, out)


def finished_line(out: Path) -> LedgerStep | None:
    """The line of the ledger of a finished step, else None."""
    path = out / "ledger.json"
    return LedgerStep(**read_json(path)["steps"][-1]) if path.exists() else None


def nothing_left(line: LedgerStep, out: Path) -> DataError:
    """The error of a step that dropped every row."""
    counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(line.dropped.items(), key=lambda i: -i[1]))
    shown = (
        pl.scan_parquet(out / "rejects.parquet", glob=False)
        .select("file", "line", "reason", "detail")
        .head(SHOWN_REJECTS)
    )
    examples = "".join(
        f"\n  {Origin(file, place)}: {reason}: {detail}" for file, place, reason, detail in shown.collect().iter_rows()
    )
    return DataError(
        f"step {line.name} dropped all {line.rows_in:,} rows ({counts}){examples}",
        where=str(out / "rejects.parquet"),
        fix="loosen this step; the file lists every row with its reason",
    )
