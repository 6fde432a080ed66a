"""The decontamination step: rows that hold evaluation prompts are found, told apart by benchmark, and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import Ge, Lt, MinLen

from posttrain.data.decontaminate.benchmarks import Benchmark, Prompt, content_digests, load, size_note, wordless
from posttrain.data.decontaminate.matching import HITS, Matcher, ShortPrompts, matcher
from posttrain.data.parallel import map_blocks
from posttrain.data.sources import Resolve
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun, count_rows
from posttrain.data.text import Fields, tokens
from posttrain.errors import ConfigError

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
rows of the source, those that match this benchmark, those removed for it."""

_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class DecontaminateStep:
    """Find the rows that hold evaluation prompts (the rule of Tulu 3) and drop them."""

    kind: Literal["decontaminate"]
    benchmarks: Annotated[tuple[Benchmark, ...], MinLen(1)]
    """The evaluation prompts to look for."""
    action: Literal["drop_rows", "drop_sources", "report"] = "drop_rows"
    """drop_rows: matching rows go. drop_sources: with them all rows of a contaminated source. report: nothing goes."""
    fields: Fields = "user"
    """Turns of the training rows that are compared."""
    ngram: Annotated[int, Ge(2)] = 8
    """Tokens of an n-gram."""
    limit: Annotated[float, Ge(0), Lt(1)] = 0.5
    """A row overlaps a prompt where more than this share of the prompt's tokens stands in it."""
    source_limit: Annotated[float, Ge(0), Lt(1)] = 0.02
    """A source is contaminated where its rows overlap more than this share of a benchmark's prompts."""
    short_prompts: ShortPrompts = "anywhere"
    """Where a prompt of fewer tokens than an n-gram must stand: anywhere in a turn, or alone (a turn, line, sentence)."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows overlap which prompts. Raises ConfigError and DataError where a benchmark can't be read."""
        prompts = load_all(self.benchmarks, run.resolve)
        finder, owners = matcher(
            prompts, n=self.ngram, limit=self.limit, fields=self.fields, short_prompts=self.short_prompts
        )
        hits = find(finder, rows, run)
        table = pl.read_parquet(rows, columns=["id", "source"]).with_row_index("row")
        matches = _matches(self, hits.filter(pl.col("overlap") > self.limit), prompts, owners, table)
        below = _matches(self, hits.filter(pl.col("overlap") <= self.limit), prompts, owners, table)
        benchmarks = _benchmarks(self, matches, prompts, table)
        rejects = _rejects(self, matches, benchmarks, table)
        return Decisions(
            rejects=rejects,
            verdicts=_verdicts(self, hits, len(table)),
            tables={
                "matches": matches.select(list(MATCHES)),
                "nearest": below.select(list(MATCHES)),
                "benchmarks": _with_removed(benchmarks, matches, rejects),
            },
            facts=_facts(self, prompts, matches, rejects, content_digests(self.benchmarks, run.resolve)),
            notes={} if self.action != "report" else {"contaminated": matches["row"].n_unique()},
        )


def load_all(benchmarks: Sequence[Benchmark], resolve: Resolve) -> list[Prompt]:
    """The prompts of all benchmarks. ConfigError where two have one name."""
    twice = [name for name, count in Counter(b.name for b in benchmarks).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two benchmarks are called {twice[0]!r}",
            where="decontaminate.benchmarks",
            fix="give each a name of its own, or put the files of one benchmark into one folder",
        )
    return [prompt for benchmark in benchmarks for prompt in load(benchmark, resolve)]


def find(finder: Matcher, rows: Path, run: StepRun) -> pl.DataFrame:
    """[HITS] over a whole file of rows, in order."""
    total = count_rows(rows)
    found = [pl.DataFrame(schema=HITS)]
    for begin, hits in map_blocks(finder, rows, ("messages",), run.workers):
        found.append(hits.with_columns(pl.col("row") + pl.lit(begin, pl.UInt32)))
        run.progress("decontaminate", begin, total)
    run.progress("decontaminate", total, total)
    return pl.concat(found)


# ---- tables --------------------------------------------------------------------------------------------------------


def _matches(
    step: DecontaminateStep,
    hits: pl.DataFrame,
    prompts: Sequence[Prompt],
    owners: Sequence[tuple[int, int]],
    table: pl.DataFrame,
) -> pl.DataFrame:
    """[MATCHES] and the number of the prompt: for every row and prompt, the turn that overlaps most (the first of equals)."""
    texts = pl.DataFrame(
        {
            "text": range(len(owners)),
            "number": [number for number, _ in owners],
            "turn": [turn + 1 for _, turn in owners],
            "short": [len(tokens(prompts[number].turns[turn])) < step.ngram for number, turn in owners],
            "shown": [prompts[number].turns[turn][:_SHOWN] for number, turn in owners],
            "benchmark": [prompts[number].benchmark for number, _ in owners],
            "prompt": [prompts[number].id for number, _ in owners],
        },
        schema_overrides={"text": pl.UInt32},
    )
    best = hits.join(texts, on="text", how="left").sort("row", "number", -pl.col("overlap"), "turn")
    best = best.unique(["row", "number"], keep="first", maintain_order=True).join(table, on="row", how="left")
    return best.sort("row", -pl.col("overlap"), "number").select(
        "number",
        pl.col("row").cast(pl.UInt32),
        "id",
        "source",
        "benchmark",
        "prompt",
        pl.col("turn").cast(pl.UInt32),
        "overlap",
        pl.lit(step.limit).alias("limit"),
        pl.when("short").then(pl.lit("exact")).otherwise(pl.lit(f"{step.ngram}-gram")).alias("found_by"),
        pl.col("shown").alias("text"),
    )


def _benchmarks(
    step: DecontaminateStep, matches: pl.DataFrame, prompts: Sequence[Prompt], table: pl.DataFrame
) -> pl.DataFrame:
    """[BENCHMARKS] without the removed rows: every source against every benchmark, by name."""
    sizes = Counter(prompt.benchmark for prompt in prompts)
    sources = table.group_by("source").agg(pl.len().alias("rows")).sort("source")
    pairs = sources.join(pl.DataFrame({"benchmark": list(sizes), "prompts": list(sizes.values())}), how="cross")
    found = matches.group_by("source", "benchmark").agg(
        pl.col("number").n_unique().alias("contaminated_prompts"), pl.col("row").n_unique().alias("matching_rows")
    )
    joined = pairs.join(found, on=["source", "benchmark"], how="left", maintain_order="left")
    counted = joined.with_columns(pl.col("contaminated_prompts", "matching_rows").fill_null(0))
    return counted.with_columns(
        share=pl.col("contaminated_prompts") / pl.col("prompts"), limit=pl.lit(step.source_limit)
    ).with_columns(contaminated=pl.col("share") > step.source_limit)


def _rejects(
    step: DecontaminateStep, matches: pl.DataFrame, benchmarks: pl.DataFrame, table: pl.DataFrame
) -> pl.DataFrame:
    """[REJECTS]: matching rows by their highest overlap, then the other rows of contaminated sources."""
    if step.action == "report":
        return pl.DataFrame(schema=REJECTS)
    first = matches.unique("row", keep="first", maintain_order=True)
    share = (pl.col("overlap") * 100).floor().cast(pl.Int64).cast(pl.String)
    detail = pl.format("{} of {} {}", share + "%", "benchmark", "prompt")
    rows = first.select("row", reason=pl.lit("contaminated"), detail=detail, twin=pl.lit(None, pl.String))
    if step.action == "drop_sources":
        worst = benchmarks.filter("contaminated").sort("source", -pl.col("share"), maintain_order=True)
        worst = worst.unique("source", keep="first", maintain_order=True)
        why = pl.format("{}: {} of {} prompts of {}", "source", "contaminated_prompts", "prompts", "benchmark")
        others = table.join(first, on="row", how="anti").join(worst, on="source", how="inner").sort("row")
        whole = others.select(
            pl.col("row").cast(pl.UInt32),
            reason=pl.lit("contaminated_source"),
            detail=why,
            twin=pl.lit(None, pl.String),
        )
        rows = pl.concat([rows, whole])
    return rows


def _with_removed(benchmarks: pl.DataFrame, matches: pl.DataFrame, rejects: pl.DataFrame) -> pl.DataFrame:
    """[BENCHMARKS] with the rows that were removed because they match."""
    gone = matches.join(rejects, on="row", how="semi").group_by("source", "benchmark")
    counts = gone.agg(pl.col("row").n_unique().alias("removed_rows"))
    joined = benchmarks.join(counts, on=["source", "benchmark"], how="left", maintain_order="left")
    return joined.with_columns(pl.col("removed_rows").fill_null(0)).select(
        [pl.col(name).cast(kind) for name, kind in BENCHMARKS.items()]
    )


def _verdicts(step: DecontaminateStep, hits: pl.DataFrame, total: int) -> pl.DataFrame:
    """[VERDICTS]: the highest overlap of every row with any prompt; 0 where it shares no n-gram with one."""
    highest = hits.group_by("row").agg(pl.col("overlap").max())
    rows = pl.DataFrame({"row": pl.Series(range(total), dtype=pl.UInt32)})
    value = pl.col("overlap").fill_null(0.0)
    return (
        rows.join(highest, on="row", how="left", maintain_order="left")
        .select(
            "row",
            check=pl.lit("overlap"),
            value=value,
            limit=pl.lit(f"<= {step.limit:g}"),
            passed=value <= step.limit,
        )
        .select([pl.col(name).cast(kind) for name, kind in VERDICTS.items()])
    )


def _facts(
    step: DecontaminateStep,
    prompts: Sequence[Prompt],
    matches: pl.DataFrame,
    rejects: pl.DataFrame,
    digests: dict[str, str],
) -> dict[str, Any]:
    """Settings, and for every benchmark what is known of it and found of it in all sources together."""
    told = []
    for benchmark in step.benchmarks:
        own = [prompt for prompt in prompts if prompt.benchmark == benchmark.name]
        found = matches.filter(pl.col("benchmark") == benchmark.name)
        told.append(
            {
                "name": benchmark.name,
                "path": benchmark.path,
                "digest": digests[benchmark.name],
                "prompts": len(own),
                "turns": sum(len(prompt.turns) for prompt in own),
                "short_turns": sum(len(tokens(turn)) < step.ngram for prompt in own for turn in prompt.turns),
                "prompts_without_words": wordless(own),
                "note": size_note(benchmark.name, len(own)),
                "contaminated_prompts": found["number"].n_unique(),
                "matching_rows": found["row"].n_unique(),
            }
        )
    return {
        "ngram": step.ngram,
        "limit": step.limit,
        "source_limit": step.source_limit,
        "fields": step.fields,
        "short_prompts": step.short_prompts,
        "action": step.action,
        "matching_rows": matches["row"].n_unique(),
        "removed_rows": len(rejects),
        "benchmarks": told,
    }
