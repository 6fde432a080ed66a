"""What the decontamination step writes down: which prompt stands in which row, and every benchmark against every source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from posttrain.data.decontaminate.benchmarks import Prompt
from posttrain.data.steps import verdicts_of
from posttrain.data.text import tokens

MATCHES: dict[str, Any] = {
    "row": pl.UInt32,
    "id": pl.String,
    "source": pl.String,
    "benchmark": pl.String,
    "prompt": pl.String,
    "turn": pl.UInt32,
    "overlap": pl.Float64,
    "limit": pl.Float64,
    "found_by": pl.String,
    "text": pl.String,
}
"""One prompt in one row: the row's place, id and source; the prompt's benchmark, id, turn (from 1) and beginning; the share
of that turn's tokens that stand in the row; how it was found (``8-gram``, ``exact``)."""

PROPOSALS: dict[str, Any] = {"cosine" if name == "overlap" else name: kind for name, kind in MATCHES.items()}
"""The same for the nearest prompt of a proposed row, by the cosine of their vectors; ``found_by`` names the encoder."""

BENCHMARKS: dict[str, Any] = {
    "source": pl.String,
    "benchmark": pl.String,
    "prompts": pl.UInt32,
    "contaminated_prompts": pl.UInt32,
    "share": pl.Float64,
    "limit": pl.Float64,
    "contaminated": pl.Boolean,
    "rows": pl.UInt32,
    "matching_rows": pl.UInt32,
    "removed_rows": pl.UInt32,
}
"""One benchmark against one source: its prompts, those that a row of the source overlaps, their share and the verdict; the
rows of the source, those that match this benchmark, and those of them that were removed."""

_SHOWN = 200


def text_table(prompts: Sequence[Prompt], owners: Sequence[tuple[int, int]], ngram: int) -> pl.DataFrame:
    """What the tables say of every evaluation text; ``owners``: its prompt and turn, by number."""
    turns = [prompts[number].turns[turn] for number, turn in owners]
    return pl.DataFrame(
        {
            "number": [number for number, _ in owners],
            "benchmark": [prompts[number].benchmark for number, _ in owners],
            "prompt": [prompts[number].id for number, _ in owners],
            "turn": pl.Series([turn + 1 for _, turn in owners], dtype=pl.UInt32),
            "found_by": ["exact" if len(tokens(turn)) < ngram else f"{ngram}-gram" for turn in turns],
            "text": [turn[:_SHOWN] for turn in turns],
        }
    )


def found_prompts(hits: pl.DataFrame, texts: pl.DataFrame, table: pl.DataFrame, limit: float) -> pl.DataFrame:
    """[MATCHES] and the number of the prompt: for every row and prompt, the turn that overlaps most (the first of equals)."""
    named = hits.rename({"text": "which"}).join(texts.with_row_index("which"), on="which", how="left")
    best = named.sort("row", "number", -pl.col("overlap"), "turn").unique(["row", "number"], keep="first")
    known = best.join(table, on="row", how="left").with_columns(limit=pl.lit(limit, pl.Float64))
    return known.sort("row", -pl.col("overlap"), "number").select("number", *MATCHES)


def benchmark_table(
    matches: pl.DataFrame, prompts: Sequence[Prompt], table: pl.DataFrame, limit: float
) -> pl.DataFrame:
    """[BENCHMARKS] without the removed rows: every source, by name, against every benchmark, in their order."""
    sizes = Counter(prompt.benchmark for prompt in prompts)
    sources = table.group_by("source").agg(pl.len().alias("rows")).sort("source")
    pairs = sources.join(pl.DataFrame({"benchmark": list(sizes), "prompts": list(sizes.values())}), how="cross")
    found = matches.group_by("source", "benchmark").agg(
        pl.col("number").n_unique().alias("contaminated_prompts"), pl.col("row").n_unique().alias("matching_rows")
    )
    joined = pairs.join(found, on=["source", "benchmark"], how="left", maintain_order="left")
    counted = joined.with_columns(pl.col("contaminated_prompts", "matching_rows").fill_null(0))
    shared = counted.with_columns(share=pl.col("contaminated_prompts") / pl.col("prompts"), limit=pl.lit(limit))
    return shared.with_columns(contaminated=pl.col("share") > limit)


def with_removed(benchmarks: pl.DataFrame, matches: pl.DataFrame, rejects: pl.DataFrame) -> pl.DataFrame:
    """[BENCHMARKS] with the matching rows that were removed."""
    gone = matches.join(rejects, on="row", how="semi").group_by("source", "benchmark")
    counts = gone.agg(pl.col("row").n_unique().alias("removed_rows"))
    joined = benchmarks.join(counts, on=["source", "benchmark"], how="left", maintain_order="left")
    return joined.with_columns(pl.col("removed_rows").fill_null(0)).select(
        [pl.col(name).cast(kind) for name, kind in BENCHMARKS.items()]
    )


def verdict_table(check: str, hits: pl.DataFrame, total: int, passed: pl.Expr, limit: str) -> pl.DataFrame:
    """[VERDICTS]: the highest value of every row; 0 where it has none."""
    highest = hits.group_by("row").agg(value=pl.col("overlap").max())
    rows = pl.DataFrame({"row": pl.Series(range(total), dtype=pl.UInt32)})
    valued = rows.join(highest, on="row", how="left", maintain_order="left").with_columns(
        pl.col("value").fill_null(0.0)
    )
    return verdicts_of(valued, check, pl.col("value"), pl.lit(limit), passed)
