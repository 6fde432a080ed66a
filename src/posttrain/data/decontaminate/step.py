"""The decontamination step: rows that hold evaluation prompts are found, told apart by benchmark, and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import Ge, Lt, MinLen

from posttrain.data.decontaminate.benchmarks import Benchmark, Prompt, load, size_note, wordless
from posttrain.data.decontaminate.matching import HITS, ShortPrompts, matcher
from posttrain.data.decontaminate.proposals import EmbeddingTier, proposer, threshold_of
from posttrain.data.decontaminate.tables import (
    MATCHES,
    PROPOSALS,
    benchmark_table,
    found_prompts,
    text_table,
    verdict_table,
    with_removed,
)
from posttrain.data.engine import map_rows
from posttrain.data.places import Resolve
from posttrain.data.sources import content_of
from posttrain.data.steps import REJECTS, Decisions, StepRun, rejects_of
from posttrain.data.text import Fields, tokens
from posttrain.errors import ConfigError


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
        texts = text_table(prompts, owners, self.ngram)
        table = pl.read_parquet(rows_file, columns=["id", "source"]).with_row_index("row")

        hits = _over_rows(find, rows_file, run, "decontaminate")
        matches = found_prompts(hits.filter(pl.col("overlap") > self.limit), texts, table, self.limit)
        nearest = found_prompts(hits.filter(pl.col("overlap") <= self.limit), texts, table, self.limit)
        verdicts = [verdict_table("overlap", hits, len(table), pl.col("value") <= self.limit, f"<= {self.limit:g}")]
        tables = {"matches": matches.select(list(MATCHES)), "nearest": nearest.select(list(MATCHES))}

        proposals = matches.clear()
        if self.embedding is not None:
            threshold = threshold_of(self.embedding)
            propose = proposer(self.embedding, self.fields, [prompts[x].turns[turn] for x, turn in owners])
            cosines = _over_rows(propose, rows_file, run, "decontaminate by meaning")
            near = found_prompts(cosines.filter(pl.col("overlap") >= threshold), texts, table, threshold)
            proposals = near.join(matches, on="row", how="anti", maintain_order="left")
            named = proposals.with_columns(found_by=pl.lit(self.embedding.encoder)).rename({"overlap": "cosine"})
            tables["proposals"] = named.select(list(PROPOSALS))
            if self.embedding.drop:
                passed = pl.col("value") < threshold
                verdicts.append(verdict_table("cosine", cosines, len(table), passed, f"< {threshold:g}"))

        benchmarks = benchmark_table(matches, prompts, table, self.source_limit)
        rejects = _rejects(self, matches, proposals, benchmarks, table)
        tables["benchmarks"] = with_removed(benchmarks, matches, rejects)
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
    return {
        "ngram": step.ngram,
        "limit": step.limit,
        "source_limit": step.source_limit,
        "fields": step.fields,
        "short_prompts": step.short_prompts,
        "action": step.action,
        "embedding": None
        if tier is None
        else {
            "encoder": tier.encoder,
            "threshold": threshold_of(tier),
            "drop": tier.drop,
            "proposed_rows": len(proposals),
        },
    }


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
