"""The decontamination step: rows that hold evaluation prompts are found, told apart by benchmark, and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.data.decontaminate.benchmarks import Prompt, load, size_note, wordless
from posttrain.data.decontaminate.config import DecontaminateStep
from posttrain.data.decontaminate.matching import HITS, matcher
from posttrain.data.decontaminate.proposals import proposer, threshold_of
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
from posttrain.data.steps import REJECTS, Decisions, StepRun
from posttrain.data.text import tokens
from posttrain.errors import ConfigError


def decide(step: DecontaminateStep, rows: Path, run: StepRun) -> Decisions:
    """What :meth:`DecontaminateStep.decide` says."""
    _check(step)
    prompts = [prompt for benchmark in step.benchmarks for prompt in load(benchmark, run.resolve)]
    find, owners = matcher(
        prompts, n=step.ngram, limit=step.limit, fields=step.fields, short_prompts=step.short_prompts
    )
    texts = text_table(prompts, owners, step.ngram)
    table = pl.read_parquet(rows, columns=["id", "source"]).with_row_index("row")

    hits = _over_rows(find, rows, run, "decontaminate")
    matches = found_prompts(hits.filter(pl.col("overlap") > step.limit), texts, table, step.limit)
    nearest = found_prompts(hits.filter(pl.col("overlap") <= step.limit), texts, table, step.limit)
    verdicts = [verdict_table("overlap", hits, len(table), pl.col("value") <= step.limit, f"<= {step.limit:g}")]
    tables = {"matches": matches.select(list(MATCHES)), "nearest": nearest.select(list(MATCHES))}

    proposals = matches.clear()
    if step.embedding is not None:
        threshold = threshold_of(step.embedding)
        propose = proposer(step.embedding, step.fields, [prompts[x].turns[turn] for x, turn in owners])
        cosines = _over_rows(propose, rows, run, "decontaminate by meaning")
        near = found_prompts(cosines.filter(pl.col("overlap") >= threshold), texts, table, threshold)
        proposals = near.join(matches, on="row", how="anti", maintain_order="left")
        named = proposals.with_columns(found_by=pl.lit(step.embedding.encoder)).rename({"overlap": "cosine"})
        tables["proposals"] = named.select(list(PROPOSALS))
        if step.embedding.drop:
            passed = pl.col("value") < threshold
            verdicts.append(verdict_table("cosine", cosines, len(table), passed, f"< {threshold:g}"))

    benchmarks = benchmark_table(matches, prompts, table, step.source_limit)
    rejects = _rejects(step, matches, proposals, benchmarks, table)
    tables["benchmarks"] = with_removed(benchmarks, matches, rejects)
    return Decisions(
        rejects=rejects,
        verdicts=pl.concat(verdicts),
        tables=tables,
        facts={
            **_settings(step, proposals),
            "matching_rows": matches["row"].n_unique(),
            "removed_rows": len(rejects),
            "benchmarks": _benchmark_facts(step, prompts, matches, run.resolve),
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


def _over_rows(find: Callable[[pl.DataFrame], pl.DataFrame], rows: Path, run: StepRun, what: str) -> pl.DataFrame:
    """[HITS] over a whole file of rows, in order."""
    found = [pl.DataFrame(schema=HITS)]
    for begin, hits in map_rows(find, rows, ("messages",), run, what):
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
    parts = [_reject(first, "contaminated", pl.format("{}% of {} {}", share, "benchmark", "prompt"))]
    if step.embedding is not None and step.embedding.drop:
        why = pl.format("cosine {} with {} {}", pl.col("overlap").round(2), "benchmark", "prompt")
        parts.append(_reject(proposals, "proposed_contamination", why))
    if step.action == "drop_sources":
        worst = benchmarks.filter("contaminated").sort("source", -pl.col("share"), maintain_order=True)
        worst = worst.unique("source", keep="first", maintain_order=True)
        rest = table.join(pl.concat(parts), on="row", how="anti").join(worst, on="source", how="inner").sort("row")
        why = pl.format("{}: {} of {} prompts of {}", "source", "contaminated_prompts", "prompts", "benchmark")
        parts.append(_reject(rest, "contaminated_source", why))
    return pl.concat(parts)


def _reject(rows: pl.DataFrame, reason: str, detail: pl.Expr) -> pl.DataFrame:
    """[REJECTS] of one reason."""
    return rows.select("row", reason=pl.lit(reason), detail=detail, twin=pl.lit(None, pl.String))


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
    digests = step.inputs(resolve)
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
    return told
