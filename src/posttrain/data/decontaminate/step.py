"""The decontamination step: rows that hold evaluation prompts are found, told apart by benchmark, and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import Ge, Lt, MinLen
from polars import selectors

from posttrain.data.decontaminate.benchmarks import Benchmark, Prompt, load, size_note, wordless
from posttrain.data.decontaminate.matching import HITS, ShortPrompts, matcher
from posttrain.data.decontaminate.proposals import EmbeddingTier, proposer, threshold_of
from posttrain.data.engine import map_rows
from posttrain.data.places import Resolve
from posttrain.data.sources import content_of
from posttrain.data.steps import REJECTS, Decisions, StepRun, rejects_of, verdicts_of
from posttrain.data.text import Fields, tokens
from posttrain.errors import ConfigError

MATCHES = ("row", "id", "source", "benchmark", "prompt", "turn", "overlap", "limit", "found_by", "text")
"""One prompt in one row: the row's place, id and source; the prompt's benchmark, id, turn (from 1) and beginning; the share
of that turn's tokens that stand in the row; how it was found (``8-gram``, ``exact``)."""
PROPOSALS = tuple("cosine" if name == "overlap" else name for name in MATCHES)
"""The same for the nearest prompt of a proposed row, by the cosine of their vectors; ``found_by`` names the encoder."""
BENCHMARKS = (
    *("source", "benchmark", "prompts", "contaminated_prompts", "share", "limit", "contaminated"),
    *("rows", "matching_rows", "removed_rows"),
)
"""One benchmark against one source: its prompts, those that a row of the source overlaps, their share and the verdict; the
rows of the source, those that match this benchmark, and those of them that were removed."""

_SETTINGS = ("ngram", "limit", "source_limit", "fields", "short_prompts", "action")
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
    embedding: EmbeddingTier | None = None
    """Also propose rows that hold a prompt in other words or another language; default: no."""

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows overlap which prompts. Raises ConfigError and DataError where a benchmark can't be read."""
        _check(self)
        prompts = [prompt for benchmark in self.benchmarks for prompt in load(benchmark, run.resolve)]
        find, owners = matcher(
            prompts, n=self.ngram, limit=self.limit, fields=self.fields, short_prompts=self.short_prompts
        )
        texts = _text_table(prompts, owners, self.ngram)
        table = pl.read_parquet(rows_file, columns=["id", "source"]).with_row_index("row")

        hits = _over_rows(find, rows_file, run, "decontaminate")
        matches = _found_prompts(hits.filter(pl.col("overlap") > self.limit), texts, table, self.limit)
        nearest = _found_prompts(hits.filter(pl.col("overlap") <= self.limit), texts, table, self.limit)
        verdicts = [_verdict_table("overlap", hits, len(table), pl.col("value") <= self.limit, f"<= {self.limit:g}")]
        tables = {"matches": matches.select(MATCHES), "nearest": nearest.select(MATCHES)}

        proposals = matches.clear()
        if self.embedding is not None:
            threshold = threshold_of(self.embedding)
            propose = proposer(self.embedding, self.fields, [prompts[x].turns[turn] for x, turn in owners])
            cosines = _over_rows(propose, rows_file, run, "decontaminate by meaning")
            near = _found_prompts(cosines.filter(pl.col("overlap") >= threshold), texts, table, threshold)
            proposals = near.join(matches, on="row", how="anti", maintain_order="left")
            named = proposals.with_columns(found_by=pl.lit(self.embedding.encoder)).rename({"overlap": "cosine"})
            tables["proposals"] = named.select(PROPOSALS)
            if self.embedding.drop:
                passed = pl.col("value") < threshold
                verdicts.append(_verdict_table("cosine", cosines, len(table), passed, f"< {threshold:g}"))

        benchmarks = _benchmark_table(matches, prompts, table, self.source_limit)
        rejects = _rejects(self, matches, proposals, benchmarks, table)
        tables["benchmarks"] = _with_removed(benchmarks, matches, rejects)
        return Decisions(
            rejects=rejects,
            verdicts=pl.concat(verdicts),
            tables=tables,
            facts={
                **_settings(self, proposals),
                "matching_rows": matches["row"].n_unique(),
                "removed_rows": len(rejects),
                "benchmarks": _benchmark_facts(self, prompts, matches, run.resolve),
            },
            notes=_notes(matches, proposals, rejects),
        )


def _check(step: DecontaminateStep) -> None:
    """ConfigError where two benchmarks have one name, or what is asked for contradicts itself."""
    twice = [name for name, count in Counter(b.name for b in step.benchmarks).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two benchmarks are called {twice[0]!r}",
            where="decontaminate.benchmarks",
            fix="give each a name of its own, or put the files of one benchmark into one folder",
        )
    if step.action == "report" and step.embedding is not None and step.embedding.drop:
        raise ConfigError(
            "action: report drops nothing, and embedding.drop asks to drop proposed rows",
            where="decontaminate.embedding.drop",
            fix="leave drop out, or choose action: drop_rows",
        )


def _over_rows(find: Callable[[pl.DataFrame], pl.DataFrame], rows_file: Path, run: StepRun, what: str) -> pl.DataFrame:
    """[HITS] over a whole file of rows, in order."""
    found = [pl.DataFrame(schema=HITS)]
    for begin, hits in map_rows(find, rows_file, ("messages",), run, what):
        found.append(hits.with_columns(pl.col("row") + pl.lit(begin, pl.UInt32)))
    return pl.concat(found)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _text_table(prompts: Sequence[Prompt], owners: Sequence[tuple[int, int]], ngram: int) -> pl.DataFrame:
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


def _found_prompts(hits: pl.DataFrame, texts: pl.DataFrame, table: pl.DataFrame, limit: float) -> pl.DataFrame:
    """[MATCHES] and the number of the prompt: for every row and prompt, the turn that overlaps most (the first of equals)."""
    named = hits.rename({"text": "which"}).join(texts.with_row_index("which"), on="which", how="left")
    best = named.sort("row", "number", -pl.col("overlap"), "turn").unique(["row", "number"], keep="first")
    known = best.join(table, on="row", how="left").with_columns(limit=pl.lit(limit, pl.Float64))
    return known.sort("row", -pl.col("overlap"), "number").select("number", *MATCHES)


def _benchmark_table(
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
    shared = counted.with_columns(
        share=pl.col("contaminated_prompts") / pl.col("prompts"), limit=pl.lit(limit, pl.Float64)
    )
    return shared.with_columns(contaminated=pl.col("share") > limit)


def _with_removed(benchmarks: pl.DataFrame, matches: pl.DataFrame, rejects: pl.DataFrame) -> pl.DataFrame:
    """[BENCHMARKS] with the matching rows that were removed."""
    gone = matches.join(rejects, on="row", how="semi").group_by("source", "benchmark")
    counts = gone.agg(pl.col("row").n_unique().alias("removed_rows"))
    joined = benchmarks.join(counts, on=["source", "benchmark"], how="left", maintain_order="left")
    counted = joined.with_columns(pl.col("removed_rows").fill_null(0))
    return counted.with_columns(selectors.integer().cast(pl.UInt32)).select(BENCHMARKS)


def _verdict_table(check: str, hits: pl.DataFrame, total: int, passed: pl.Expr, limit: str) -> pl.DataFrame:
    """[VERDICTS]: the highest value of every row; 0 where it has none."""
    highest = hits.group_by("row").agg(value=pl.col("overlap").max())
    rows = pl.DataFrame({"row": pl.Series(range(total), dtype=pl.UInt32)})
    valued = rows.join(highest, on="row", how="left", maintain_order="left").with_columns(
        pl.col("value").fill_null(0.0)
    )
    return verdicts_of(valued, check, pl.col("value"), pl.lit(limit), passed)


# ---- what goes -----------------------------------------------------------------------------------------------------


def _rejects(
    step: DecontaminateStep,
    matches: pl.DataFrame,
    proposals: pl.DataFrame,
    benchmarks: pl.DataFrame,
    table: pl.DataFrame,
) -> pl.DataFrame:
    """[REJECTS]: matching rows by their highest overlap, proposed rows where asked for, the rest of contaminated sources."""
    if step.action == "report":
        return pl.DataFrame(schema=REJECTS)
    share = (pl.col("overlap") * 100).floor().cast(pl.Int64)
    first = matches.unique("row", keep="first", maintain_order=True)
    parts = [rejects_of(first, pl.lit("contaminated"), pl.format("{}% of {} {}", share, "benchmark", "prompt"))]
    if step.embedding is not None and step.embedding.drop:
        why = pl.format("cosine {} with {} {}", pl.col("overlap").round(2), "benchmark", "prompt")
        parts.append(rejects_of(proposals, pl.lit("proposed_contamination"), why))
    if step.action == "drop_sources":
        worst = benchmarks.filter("contaminated").sort("source", -pl.col("share"), maintain_order=True)
        worst = worst.unique("source", keep="first", maintain_order=True)
        rest = table.join(pl.concat(parts), on="row", how="anti").join(worst, on="source", how="inner").sort("row")
        why = pl.format("{}: {} of {} prompts of {}", "source", "contaminated_prompts", "prompts", "benchmark")
        parts.append(rejects_of(rest, pl.lit("contaminated_source"), why))
    return pl.concat(parts)


def _notes(matches: pl.DataFrame, proposals: pl.DataFrame, rejects: pl.DataFrame) -> dict[str, int]:
    """Rows that match or are proposed and stay all the same."""
    stay = {"contaminated": matches, "proposed_contamination": proposals}
    counts = {name: frame.join(rejects, on="row", how="anti")["row"].n_unique() for name, frame in stay.items()}
    return {name: count for name, count in counts.items() if count}


# ---- facts ---------------------------------------------------------------------------------------------------------


def _settings(step: DecontaminateStep, proposals: pl.DataFrame) -> dict[str, Any]:
    tier = step.embedding
    own = {name: getattr(step, name) for name in _SETTINGS}
    if tier is None:
        return own | {"embedding": None}
    settings = {"encoder": tier.encoder, "threshold": threshold_of(tier), "drop": tier.drop}
    return own | {"embedding": settings | {"proposed_rows": len(proposals)}}


def _benchmark_facts(
    step: DecontaminateStep, prompts: Sequence[Prompt], matches: pl.DataFrame, resolve: Resolve
) -> list[dict[str, Any]]:
    """Of every benchmark what it is, and what was found of it in all sources together."""
    facts = []
    for benchmark in step.benchmarks:
        own = [prompt for prompt in prompts if prompt.benchmark == benchmark.name]
        found = matches.filter(pl.col("benchmark") == benchmark.name)
        facts.append(
            {
                "name": benchmark.name,
                "path": benchmark.path,
                "digest": content_of(benchmark.parts(resolve)),
                "prompts": len(own),
                "turns": sum(len(prompt.turns) for prompt in own),
                "short_turns": sum(len(tokens(turn)) < step.ngram for prompt in own for turn in prompt.turns),
                "prompts_without_words": wordless(own),
                "note": size_note(benchmark.name, len(own)),
                "contaminated_prompts": found["number"].n_unique(),
                "matching_rows": found["row"].n_unique(),
            }
        )
    return facts
