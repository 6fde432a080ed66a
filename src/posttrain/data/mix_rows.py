"""The rows of a mix: their order, what stays, how many times each counts. The rule is told in ``posttrain.data.mix``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from posttrain.data.mix import MixStep, targets
from posttrain.data.rows import LINEAGE, conversations, rejected_sides, scan_rows
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun, blocks, count_rows
from posttrain.data.text import compared_text, tokens
from posttrain.errors import DataError
from posttrain.types import Message

HELD_OUT_SPLITS = ("validation", "test")
"""Splits whose rows no mix touches."""


def decide(step: MixStep, rows: Path, seed: int, run: StepRun) -> Decisions:
    """What :meth:`MixStep.decide` returns."""
    table = _measured(rows, step.by, seed, run)
    mixed = table.filter(~pl.col("held_out"))
    available = dict(mixed.group_by("source").agg(pl.col("amount").sum()).sort("source").iter_rows())
    wanted = targets(step, available)
    placed = pl.concat([_placed(group, wanted) for group in [*mixed.partition_by("source"), mixed.head(0)]])
    limited = {name for name, target in wanted.items() if target < available[name]}
    decided = placed.filter(pl.col("source").is_in(limited)) if limited else placed.head(0)
    return Decisions(
        rejects=_rejects(decided, wanted, available, step.by),
        verdicts=_verdicts(decided, wanted),
        columns=_weights(table, placed) if any(wanted[name] > available[name] for name in wanted) else None,
        facts={
            "by": step.by,
            "share": step.share,
            "untouched_rows": len(table) - len(mixed),
            "sources": _source_facts(placed, wanted, available),
        },
    )


def row_repeats(path: Path) -> dict[str, int]:
    """Content id -> how many times the row is trained on in an epoch, of a rows file; only ids that count more than once.

    Raises DataError for a weight that is no whole number: training repeats rows, it does not scale them.
    """
    if "weight" not in pl.scan_parquet(path, glob=False).collect_schema():
        return {}  # written before rows carried a weight
    counted = pl.scan_parquet(path, glob=False).select("id", pl.col("weight").fill_null(1.0))
    odd = counted.filter((pl.col("weight") < 1) | (pl.col("weight") != pl.col("weight").round())).head(1).collect()
    if len(odd):
        row_id, weight = odd.row(0)
        raise DataError(
            f"row {row_id} has the weight {weight:g}, and training repeats rows a whole number of times",
            where=str(path),
            fix="weights come from a mix step with upsample: true; leave rows out with counts, weights or share",
        )
    repeated = counted.group_by("id").agg(pl.col("weight").sum()).filter(pl.col("weight") > 1).collect()
    return {row_id: int(weight) for row_id, weight in repeated.iter_rows()}


def _measured(rows: Path, by: Literal["rows", "tokens"], seed: int, run: StepRun) -> pl.DataFrame:
    """One line a row: place, source, whether it is held out, hash, weight so far, and how much it counts."""
    columns = ["id", "source", "file", "line", "split", "weight", *(["messages", "rejected"] if by == "tokens" else [])]
    total, parts = count_rows(rows), []
    for begin, block in blocks(rows, columns) if total else [(0, scan_rows(rows).select(columns).collect())]:
        run.progress("mix", begin, total)
        lengths = _lengths(block) if by == "tokens" else [1] * len(block)
        hashes = [hashlib.sha256(f"mix:{seed}:{row_id}".encode()).digest() for row_id in block["id"]]
        weight = pl.col("weight").fill_null(1.0)
        parts.append(
            block.select(
                pl.Series("row", range(begin, begin + len(block)), dtype=pl.UInt32),
                "source",
                "file",
                "line",
                pl.col("split").is_in(HELD_OUT_SPLITS).fill_null(False).alias("held_out"),
                pl.Series("hash", hashes, dtype=pl.Binary),
                weight,
                (weight * pl.Series("length", lengths, dtype=pl.Float64)).alias("amount"),
            )
        )
    run.progress("mix", total, total)
    return pl.concat(parts)


def _lengths(block: pl.DataFrame) -> list[int]:
    """Tokens of every row as it is trained on: of a pair the prompt once and both replies."""
    lengths = [_tokens_of(turns) for turns in conversations(block)]
    if block["rejected"].null_count():
        return lengths
    return [one + _tokens_of(other) for one, other in zip(lengths, rejected_sides(block), strict=True)]


def _tokens_of(turns: Sequence[Message]) -> int:
    return len(tokens(compared_text(turns, "conversation")))


def _placed(group: pl.DataFrame, wanted: Mapping[str, float]) -> pl.DataFrame:
    """The rows of one source in the order of their hash, with their position and how many times they count."""
    source = group["source"].first()
    ordered = group.sort("hash", "file", "line").with_columns(
        position=pl.col("amount").cum_sum() - pl.col("amount") / 2
    )
    target, amount = wanted.get(str(source), 0.0), float(group["amount"].sum())
    times = math.floor(target / amount + 1e-9) if amount else int(target > 0)
    rest = target - times * amount
    # Rows without any token have a middle at 0; a source that gives nothing gives none of them either.
    counted = times + ((pl.col("position") <= rest) & (rest > 1e-9)).cast(pl.Int64)
    return ordered.with_columns(times=counted)


def _rejects(
    decided: pl.DataFrame, wanted: Mapping[str, float], available: Mapping[str, float], by: str
) -> pl.DataFrame:
    details = {
        name: f"{wanted[name]:,.0f} of {amount:,.0f} {by} of {name} are wanted" for name, amount in available.items()
    }
    return (
        decided.filter(pl.col("times") == 0)
        .select(
            "row",
            reason=pl.lit("mix_quota"),
            detail=pl.col("source").replace_strict(details, return_dtype=pl.String),
            twin=pl.lit(None, dtype=pl.String),
        )
        .select([pl.col(name).cast(kind) for name, kind in REJECTS.items()])
    )


def _verdicts(decided: pl.DataFrame, wanted: Mapping[str, float]) -> pl.DataFrame:
    limits = {name: f"<= {target:.10g}" for name, target in wanted.items()}
    return decided.select(
        "row",
        check=pl.lit("mix_position"),
        value=pl.col("position"),
        limit=pl.col("source").replace_strict(limits, return_dtype=pl.String),
        passed=pl.col("times") > 0,
    ).select([pl.col(name).cast(kind) for name, kind in VERDICTS.items()])


def _weights(table: pl.DataFrame, placed: pl.DataFrame) -> pl.DataFrame:
    """The lineage column ``weight`` of every row of the file: what it was, times how often the mix repeats it."""
    counted = table.select("row", "weight").join(
        placed.select("row", "times"), on="row", how="left", maintain_order="left"
    )
    times = pl.col("times").fill_null(1).clip(lower_bound=1)  # dropped and held-out rows keep theirs
    return counted.select((pl.col("weight") * times).cast(LINEAGE["weight"]).alias("weight"))


def _source_facts(
    placed: pl.DataFrame, wanted: Mapping[str, float], available: Mapping[str, float]
) -> list[dict[str, Any]]:
    kept = (
        placed.filter(pl.col("times") > 0)
        .group_by("source")
        .agg(
            pl.len().alias("rows"),
            (pl.col("amount") * pl.col("times")).sum().alias("amount"),
            pl.col("times").max().alias("most"),
        )
    )
    found = {source: (rows, amount, most) for source, rows, amount, most in kept.iter_rows()}
    before, after = sum(available.values()), sum(amount for _, amount, _ in found.values())
    rows_before = dict(placed.group_by("source").len().iter_rows())
    return [
        {
            "source": name,
            "rows_before": rows_before[name],
            "rows": rows,
            "available": amount,
            "target": wanted[name],
            "amount": taken,
            "share_before": _ratio(amount, before),
            "share": _ratio(taken, after),
            "most_repeats": most,
        }
        for name, amount in available.items()
        for rows, taken, most in (found.get(name, (0, 0.0, 0)),)
    ]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
