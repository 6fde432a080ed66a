"""Apart from each other: rows are taken in an order, and none that is too near to what is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import polars as pl
from annotated_types import Ge, Gt, Le
from pydantic import Discriminator

from posttrain.data.encoders import ENCODERS, Vectors
from posttrain.data.select.gates import Share, StrictGates, passing
from posttrain.data.select.greedy import Walk, ngram_hashes, walk_embeddings, walk_ngrams
from posttrain.data.select.outcome import Outcome, num_wanted, row_table, scored_rows, short
from posttrain.data.select.signals import PRODUCT, Context, turn_products
from posttrain.data.steps import StepRun, Texts, stored_texts
from posttrain.data.text import Fields

_ENCODED_ROWS = 256
"""Texts embedded at once."""


@dataclass(frozen=True, kw_only=True)
class NgramNovelty:
    """How much of a text is new: the share of its n-grams that no row kept before it has."""

    measure: Literal["ngram"]
    fields: Fields = "user"
    """The turns that are compared."""
    n: Annotated[int, Ge(1)] = 3
    """Length of the n-grams in comparison tokens; shorter texts are one n-gram."""
    min_novelty: Share = 0.5
    """A row with a smaller share of new n-grams is dropped."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingDistance:
    """How near a text is to what is kept: the largest cosine between its embedding and those of the rows kept before it."""

    measure: Literal["embedding"]
    fields: Fields = "user"
    """The turns that are embedded."""
    encoder: str = "use-multilingual"
    """Name of the sentence encoder (extra ``embed``)."""
    max_cosine: Annotated[float, Ge(-1), Le(1)] = 0.9
    """A row with a larger cosine is dropped. What counts as near differs from encoder to encoder."""


Distance = Annotated[NgramNovelty | EmbeddingDistance, Discriminator("measure")]


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Take rows in an order, and none that is too near to what is taken."""

    method: Literal["diversity"]
    order_by: str | None = None
    """Signal by which rows are ordered (a score, ``length`` or ``meta.KEY``); null: by a seeded hash of the content."""
    prefer: Literal["high", "low"] = "high"
    """Which end of the signal comes first."""
    within_source: bool = True
    """Order by the rank among the rows of the same source, so that sources of different scale or language come evenly."""
    distance: Distance = field(default_factory=lambda: NgramNovelty(measure="ngram"))
    """What too near means."""
    budget: Annotated[float, Gt(0)] | None = None
    """Most rows kept: a share of all rows below 1, otherwise a number; null: all that are apart."""

    def choose(self, context: Context) -> Outcome:
        """What the rule keeps of the rows."""
        if self.order_by is None:
            table = row_table(context, [])
            outcome, ordered = Outcome(table, []), table
        else:
            table = row_table(context, [context.signal(self.order_by)])
            outcome = Outcome(table, [self.order_by])
            scored = scored_rows(table, self.order_by, context, outcome)
            ordered = _ordered(scored, self.order_by, self.prefer == "high", self.within_source)
        _take_apart(ordered, self.distance, self.budget, context, outcome)
        return outcome


@dataclass(frozen=True, kw_only=True)
class Deita:
    """Complexity times quality, summed over the turns, then only what is apart (Liu et al. 2024, arXiv 2312.15685)."""

    method: Literal["deita"]
    complexity: str = "complexity"
    """Signal of a row, or of each turn: scores ``complexity.1``, ``complexity.2``, ..., or a list under ``meta.KEY``."""
    quality: str = "quality"
    """The same for the quality of the answers."""
    distance: Distance = field(default_factory=lambda: EmbeddingDistance(measure="embedding", fields="conversation"))
    """What too near means; the paper takes a cosine of 0.9."""
    budget: Annotated[float, Gt(0)] = 6000
    """Most rows kept: a share of all rows below 1, otherwise a number. The paper takes 6,000 and 10,000."""

    def choose(self, context: Context) -> Outcome:
        """What the rule keeps of the rows."""
        table = row_table(context, [turn_products(self.complexity, self.quality, context)])
        outcome = Outcome(table, [PRODUCT])
        ordered = _ordered(scored_rows(table, PRODUCT, context, outcome), PRODUCT, True, False)
        _take_apart(ordered, self.distance, self.budget, context, outcome)
        return outcome


@dataclass(frozen=True, kw_only=True)
class FewButGood:
    """A small, clean, varied set (LIMA: Zhou et al. 2023, arXiv 2305.11206): strict gates, then only what is apart."""

    method: Literal["few_but_good"]
    gates: StrictGates = field(default_factory=StrictGates)
    """What a row must pass; far stricter than the defaults of the filter step."""
    order_by: str = "length"
    """Signal by which rows are ordered, the highest first. Long answers first is hard to beat where nothing better is
    known (Zhao et al. 2024, arXiv 2402.04833); name a judge's score where there is one."""
    within_source: bool = True
    """Order by the rank among the rows of the same source."""
    distance: Distance = field(default_factory=lambda: NgramNovelty(measure="ngram"))
    """What too near means."""
    budget: Annotated[float, Gt(0)] = 1000
    """Most rows kept: a share of all rows below 1, otherwise a number. LIMA has 1,000."""

    def choose(self, context: Context) -> Outcome:
        """What the rule keeps of the rows."""
        table = row_table(context, [context.signal(self.order_by)])
        outcome = Outcome(table, [self.order_by])
        passed = passing(self.gates, table, context, outcome)
        scored = scored_rows(passed, self.order_by, context, outcome)
        ordered = _ordered(scored, self.order_by, True, self.within_source)
        _take_apart(ordered, self.distance, self.budget, context, outcome)
        return outcome


def _ordered(table: pl.DataFrame, name: str, highest_first: bool, within_source: bool) -> pl.DataFrame:
    """The rows in the order of a signal, ties by place; within_source: by the relative rank in their source."""
    value = -pl.col(name) if highest_first else pl.col(name)
    ordered = table.sort(value, "place")
    if not within_source:
        return ordered
    rank = (pl.int_range(pl.len()).over("source") + 0.5) / pl.len().over("source")
    return ordered.with_columns(rank=rank).sort("rank", "place").drop("rank")


def _take_apart(
    ordered: pl.DataFrame, distance: Distance, wanted: float | None, context: Context, outcome: Outcome
) -> None:
    """Walk the rows in their order and keep those that are far enough from all kept before, up to the budget."""
    rows, total = ordered["row"].to_list(), len(outcome.table)
    budget = None if wanted is None else num_wanted(wanted, total, "select.rule.budget")
    with stored_texts(context.rows_file, distance.fields) as texts:
        walk = _walk(texts, rows, distance, budget, context.run)
    ids = ordered["id"]
    near = pl.Series("near", [ids[at] if at >= 0 else None for at in walk.nearest.tolist()], dtype=pl.String)
    walked = ordered.with_columns(
        near,
        order=pl.int_range(1, pl.len() + 1),
        taken=pl.Series(walk.kept),
        value=pl.Series(walk.values),
        looked_at=pl.int_range(pl.len()) < walk.seen,
    )
    looked_at = walked.filter("looked_at")
    value = pl.when(pl.col("value").is_finite()).then("value")
    if isinstance(distance, NgramNovelty):
        check, limit, reason = "novelty", f">= {distance.min_novelty:g}", "not_new"
        detail = pl.format("{} of the {}-grams are new ({})", short(value), pl.lit(distance.n), pl.lit(limit))
    else:
        check, limit, reason = "cosine", f"<= {distance.max_cosine:g}", "too_near"
        detail = pl.format("cosine {} to a kept row ({})", short(value), pl.lit(limit))
    outcome.check(looked_at, check, value, limit, pl.col("taken"), reason, detail, pl.col("near"))
    if budget is not None:
        full = f"<= {walk.seen} (where {budget} rows are taken)" if walk.seen < len(walked) else "any"
        detail = pl.format("place {} in the order, {}", "order", pl.lit(full))
        outcome.check(walked, "order", pl.col("order"), full, pl.col("looked_at"), "over_budget", detail)
    counts = {"rows": len(walked), "looked_at": walk.seen, "taken": int(walk.kept.sum())}
    outcome.facts["walk"] = {**counts, "budget": budget}


def _walk(texts: Texts, rows: Sequence[int], distance: Distance, budget: int | None, run: StepRun) -> Walk:
    label = "comparing with what is kept"

    def parts() -> Iterator[list[str]]:
        for begin in range(0, len(rows), _ENCODED_ROWS):
            yield [texts[row] for row in rows[begin : begin + _ENCODED_ROWS]]
            run.progress(label, min(begin + _ENCODED_ROWS, len(rows)), len(rows))

    if isinstance(distance, NgramNovelty):
        hashes = (found for part in parts() for found in ngram_hashes(part, distance.n))
        return walk_ngrams(hashes, len(rows), distance.min_novelty, budget)
    encoder = ENCODERS[distance.encoder]()
    vectors: Iterator[Vectors] = map(encoder.encode, parts())
    return walk_embeddings(vectors, len(rows), distance.max_cosine, budget)
