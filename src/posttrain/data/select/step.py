"""The select step: what each method keeps, with a verdict for every row it judged.

All methods work on one table of the rows in a canonical order (a seeded hash of the content id), so no result depends on
the order in which the rows came.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.data.encoders import ENCODERS, Vectors
from posttrain.data.engine import map_rows
from posttrain.data.filters.garbled import Garbled
from posttrain.data.filters.length import Length
from posttrain.data.filters.refusal import Refusal
from posttrain.data.filters.repetition import Repetition
from posttrain.data.filters.step import FilterStep
from posttrain.data.filters.step import decide as decide_filters
from posttrain.data.filters.structure import Structure
from posttrain.data.filters.template import Template
from posttrain.data.rows import conversations, refuse_prompts
from posttrain.data.select.agreement import agreement
from posttrain.data.select.config import (
    Deita,
    Distance,
    Diversity,
    FewButGood,
    Gates,
    Grape,
    Ifd,
    Medium,
    NgramNovelty,
    SelectStep,
    StrictGates,
)
from posttrain.data.select.greedy import Walk, ngram_hashes, walk_embeddings, walk_ngrams
from posttrain.data.select.signals import PRODUCT, row_signal, turn_products
from posttrain.data.select.signals import missing as missing_signal
from posttrain.data.select.texts import Texts, compared_texts
from posttrain.data.split import prompt_key
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun
from posttrain.errors import ConfigError

QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
NO_SCORE = "no_score"
RESERVED = {"row", "id", "source", "place", "kept", "low", "high", "rank", "best", "winner", "candidates"}
RESERVED |= {"value", "order", "near", "taken", "looked_at", "instruction"}
"""Names of columns in here that no signal may have."""
_ENCODED_ROWS = 256
"""Texts embedded at once."""


@dataclass(frozen=True)
class Context:
    """What every method is given."""

    step: SelectStep
    rows: Path
    seed: int
    run: StepRun

    def signal(self, name: str) -> pl.Series:
        """A signal for every row, in the order of the file. Raises DataError where no row has it."""
        values = self.read(name)
        if len(values) and values.null_count() == len(values):
            raise missing_signal(name, self.rows)
        return values

    def read(self, name: str) -> pl.Series:
        """A signal for every row, in the order of the file; null where a row has none."""
        if name in RESERVED:
            raise ConfigError(f"a signal can't be called {name!r}", where="select", fix="give the score another name")
        return row_signal(name, self.rows, self.step.labels, self.step.scored_by, self.run)


@dataclass
class Outcome:
    """What a method decides. ``table``: the rows in canonical order with the signals that were used."""

    table: pl.DataFrame
    signals: list[str]
    rejects: list[pl.DataFrame] = field(default_factory=list)
    verdicts: list[pl.DataFrame] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def judge(self, rows: pl.DataFrame, check: str, value: pl.Expr, limit: pl.Expr, passed: pl.Expr) -> None:
        """Add a verdict for some rows."""
        verdict = {"row": pl.col("row"), "check": pl.lit(check), "value": value, "limit": limit, "passed": passed}
        self.verdicts.append(rows.select([verdict[name].cast(kind).alias(name) for name, kind in VERDICTS.items()]))

    def drop(self, rows: pl.DataFrame, reason: str, detail: pl.Expr, twin: pl.Expr | None = None) -> None:
        """Drop some rows."""
        reject = {"row": pl.col("row"), "reason": pl.lit(reason), "detail": detail}
        reject["twin"] = pl.lit(None) if twin is None else twin
        self.rejects.append(rows.select([reject[name].cast(kind).alias(name) for name, kind in REJECTS.items()]))


def select(step: SelectStep, rows: Path, seed: int, run: StepRun) -> Decisions:
    """Choose rows by the rule of a step."""
    if not isinstance(step.rule, Diversity):
        refuse_prompts(rows)
    context = Context(step, rows, seed, run)
    match step.rule:
        case Medium() as rule:
            outcome = _medium(rule, context)
        case Ifd() as rule:
            outcome = _ifd(rule, context)
        case Grape() as rule:
            outcome = _grape(rule, context)
        case Diversity() as rule:
            outcome = _diversity(rule, context)
        case Deita() as rule:
            outcome = _deita(rule, context)
        case FewButGood() as rule:
            outcome = _few_but_good(rule, context)
    rejects = pl.concat([pl.DataFrame(schema=REJECTS), *outcome.rejects])
    table, signals = _compared(outcome.table, outcome.signals, context)
    told = table.with_columns(kept=~pl.col("row").is_in(rejects["row"].to_list()))
    return Decisions(
        rejects=rejects,
        verdicts=pl.concat([pl.DataFrame(schema=VERDICTS), *outcome.verdicts]),
        tables={"signals": told.sort("row").select("id", "source", "kept", *signals)},
        facts={
            "rule": dataclasses.asdict(step.rule),
            "rows": len(told),
            "kept": int(told["kept"].sum()),
            "dropped": dict(rejects.group_by("reason").len().sort("reason").iter_rows()),
            "sources": _source_facts(told, signals),
            **outcome.facts,
            "agreement": agreement(told, signals),
        },
        notes=outcome.notes,
    )


# ---- what the methods share ------------------------------------------------------------------------------------------


def _table(context: Context, columns: Sequence[pl.Series]) -> pl.DataFrame:
    """Every row with its place, id, source and the columns (in the order of the file), in canonical order.

    ``place``: the rank of the row in that order, which settles ties.
    """
    frame = pl.scan_parquet(context.rows, row_index_name="row").select("row", "id", "source", "file", "line").collect()
    seed = context.seed
    hashed = [hashlib.sha256(f"{seed}:{row_id}".encode()).digest() for row_id in frame["id"]]
    return (
        frame.with_columns(pl.Series("hash", hashed, dtype=pl.Binary), *columns)
        .sort("hash", "id", "file", "line", "row")
        .drop("hash", "file", "line")
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("place"))
    )


def _scored(table: pl.DataFrame, name: str, context: Context, outcome: Outcome) -> pl.DataFrame:
    """The rows that have a signal; the others are dropped or stay, as the step says."""
    without = table.filter(pl.col(name).is_null())
    if len(without) and context.step.unscored == "drop":
        outcome.judge(without, name, pl.lit(None), pl.lit("a value"), pl.lit(False))
        outcome.drop(without, NO_SCORE, pl.lit(f"the row has no {name}"))
    elif len(without):
        outcome.notes[NO_SCORE] = len(without)
    return table.filter(pl.col(name).is_not_null())


def _passing(gates: Gates | StrictGates, table: pl.DataFrame, context: Context, outcome: Outcome) -> pl.DataFrame:
    """The rows that pass the gates; the others are dropped."""
    decided = decide_filters(gate_filters(gates), context.rows, context.run, rejected=False)
    outcome.rejects.append(decided.rejects.select(list(REJECTS)))
    outcome.verdicts.append(decided.verdicts.select(list(VERDICTS)))
    outcome.facts["gates"] = {key: decided.facts[key] for key in ("rows", "kept", "reasons", "checks")}
    return table.join(decided.rejects.select("row"), on="row", how="anti", maintain_order="left")


def gate_filters(gates: Gates | StrictGates) -> FilterStep:
    """The filter step that measures the gates."""
    return FilterStep(
        kind="filter",
        structure=Structure(),
        length=Length(
            min_user_tokens=gates.min_user_tokens,
            max_user_tokens=None,
            min_assistant_tokens=gates.min_assistant_tokens,
            max_assistant_tokens=gates.max_assistant_tokens,
        ),
        garbled=Garbled(),
        language=None,
        repetition=Repetition(max_line_share=gates.max_line_share, max_ngram_share=gates.max_ngram_share),
        template=Template(max_boilerplate_share=gates.max_boilerplate_share, min_sentences=gates.min_sentences),
        refusal=Refusal() if gates.refusals == "drop" else None,
        harmful=None,
    )


def _amount(asked: float, rows: int, where: str) -> int:
    """A number of rows: a share below 1 (halves up, at least one row), otherwise a whole number."""
    if asked < 1:
        return max(1, int(asked * rows + 0.5))
    if asked != int(asked):
        raise ConfigError(
            f"{asked} is neither a share below 1 nor a number of rows", where=where, fix="give 0.1 or 500"
        )
    return int(asked)


def _compared(table: pl.DataFrame, used: Sequence[str], context: Context) -> tuple[pl.DataFrame, list[str]]:
    """The table with the signals whose agreement is asked for, as far as any row has them, and the names of all."""
    names = list(used)
    for name in context.step.compare:
        if name in names or (name == "loss" and "mean_logp" in names):  # the same number with the other sign
            continue
        values = context.read(name)
        if values.null_count() < len(values):
            table = table.with_columns(values.gather(table["row"]).alias(name))
            names.append(name)
    return table, names


def _source_facts(table: pl.DataFrame, signals: Sequence[str]) -> dict[str, Any]:
    """Source -> rows, kept, and the quantiles of every signal over all its rows."""
    facts: dict[str, Any] = {}
    for part in table.sort("source", maintain_order=True).partition_by("source", maintain_order=True):
        told: dict[str, Any] = {"rows": len(part), "kept": int(part["kept"].sum())}
        for name in signals:
            values = part[name].drop_nulls()
            quantiles = {label: values.quantile(q, "linear") for label, q in QUANTILES.items()}
            told[name] = {"rows": len(values)} | (quantiles if len(values) else {})
        facts[str(part["source"][0])] = told
    return facts


# ---- a band of difficulty --------------------------------------------------------------------------------------------


def _medium(rule: Medium, context: Context) -> Outcome:
    if rule.low >= rule.high:
        raise ConfigError(
            f"the band is empty: low {rule.low} is not below high {rule.high}",
            where="select.rule",
            fix="for example low: 0.25, high: 0.75",
        )
    name, value = rule.signal, pl.col(rule.signal)
    table = _table(context, [context.signal(name)])
    outcome = Outcome(table, [name])
    scored = _scored(table, name, context, outcome).with_columns(
        low=value.quantile(rule.low, "linear").over("source"), high=value.quantile(rule.high, "linear").over("source")
    )
    inside = value.is_between("low", "high")
    ends = pl.format("{} to {}", _short(pl.col("low")), _short(pl.col("high")))
    outcome.judge(scored, name, value, ends, inside)
    band = f"{rule.low:.4g} to {rule.high:.4g} of the source's rows"
    told = pl.format("{} {} is outside {} ({})", pl.lit(name), _short(value), ends, pl.lit(band))
    outcome.drop(scored.filter(value < pl.col("low")), "below_band", told)
    outcome.drop(scored.filter(value > pl.col("high")), "above_band", told)
    edges = scored.group_by("source").agg(pl.len().alias("rows"), pl.col("low").first(), pl.col("high").first())
    outcome.facts["edges"] = {
        source: {"rows": rows, "low": low, "high": high} for source, rows, low, high in edges.sort("source").iter_rows()
    }
    return outcome


def _short(number: pl.Expr) -> pl.Expr:
    return number.round_sig_figs(6).cast(pl.String)


# ---- IFD -------------------------------------------------------------------------------------------------------------


def _ifd(rule: Ifd, context: Context) -> Outcome:
    table = _table(context, [context.signal("ifd")])
    outcome = Outcome(table, ["ifd"])
    scored = _scored(table, "ifd", context, outcome)
    value = pl.col("ifd")
    outcome.judge(scored, "ifd", value, pl.lit(f"<= {rule.limit:g}"), value <= rule.limit)
    outcome.drop(
        scored.filter(value > rule.limit),
        "prompt_does_not_help",
        pl.format("IFD {} is above {}", _short(value), pl.lit(f"{rule.limit:g}")),
    )
    tops: dict[str, Any] = {}
    for part in scored.partition_by("source", maintain_order=True):
        source, helped = str(part["source"][0]), part.filter(value <= rule.limit).sort(-value, "place")
        wanted = len(helped) if rule.top is None else _amount(rule.top, len(part), "select.rule.top")
        ranked = helped.with_columns(rank=pl.int_range(1, pl.len() + 1))
        limit = f"<= {wanted} (of {len(part)} rows of {source})"
        outcome.judge(ranked, "ifd_rank", pl.col("rank"), pl.lit(limit), pl.col("rank") <= wanted)
        outcome.drop(
            ranked.filter(pl.col("rank") > wanted),
            "not_among_the_highest",
            pl.format("rank {} by IFD, {}", "rank", pl.lit(limit)),
        )
        chosen = helped["ifd"].head(wanted)
        tops[source] = {
            "rows": len(part),
            "above_limit": len(part) - len(helped),
            "kept": len(chosen),
            "lowest_kept": chosen.min(),
        }
    outcome.facts["tops"] = dict(sorted(tops.items()))
    return outcome


# ---- GRAPE -----------------------------------------------------------------------------------------------------------


def _grape(rule: Grape, context: Context) -> Outcome:
    keys = [
        key
        for _, found in map_rows(_instruction_keys, context.rows, ["messages", "tools"], context.run, "instructions")
        for key in found
    ]
    table = _table(context, [context.signal("mean_logp"), pl.Series("instruction", keys, dtype=pl.String)])
    outcome = Outcome(table, ["mean_logp"])
    value = pl.col("mean_logp")
    passing = _passing(rule.gates, table, context, outcome)
    candidates = (
        _scored(passing, "mean_logp", context, outcome)
        .sort(-value, "place")
        .with_columns(
            candidates=pl.len().over("instruction"),
            best=value.first().over("instruction"),
            winner=pl.col("id").first().over("instruction"),
            rank=pl.int_range(1, pl.len() + 1).over("instruction"),
        )
    )
    enough = pl.col("candidates") >= rule.min_candidates
    few, many = candidates.filter(~enough), candidates.filter(enough)
    must = f">= {rule.min_candidates}" if rule.alone == "drop" else "any"
    outcome.judge(candidates, "candidates", pl.col("candidates"), pl.lit(must), enough | pl.lit(rule.alone == "keep"))
    if rule.alone == "drop":
        outcome.drop(
            few,
            "alone",
            pl.format(
                "{} candidates for this instruction, at least {} are needed", "candidates", pl.lit(rule.min_candidates)
            ),
        )
    first = pl.col("rank") == 1
    outcome.judge(
        many, "mean_logp", value, pl.format("highest of {} ({})", "candidates", _short(pl.col("best"))), first
    )
    outcome.drop(
        many.filter(~first),
        "less_likely",
        pl.format("mean log-prob {}, the likeliest of {} has {}", _short(value), "candidates", _short(pl.col("best"))),
        pl.col("winner"),
    )
    sizes = candidates.filter(pl.col("rank") == 1)["candidates"].value_counts().sort("candidates")
    outcome.facts["groups"] = {
        "instructions": int(table["instruction"].n_unique()),
        "with_a_choice": int(many["instruction"].n_unique()),
        "alone": len(few),
        "candidates": {str(size): count for size, count in sizes.iter_rows()},
    }
    return outcome


def _instruction_keys(block: pl.DataFrame) -> list[str]:
    """Equal for rows that differ in nothing but the assistant's turns: the same turns of others, the same tools."""
    return [
        prompt_key([message for message in messages if message.role != "assistant"]) + tools
        for messages, tools in zip(conversations(block), block["tools"].to_list(), strict=True)
    ]


# ---- apart from each other -------------------------------------------------------------------------------------------


def _diversity(rule: Diversity, context: Context) -> Outcome:
    if rule.order_by is None:
        table = _table(context, [])
        outcome, ordered = Outcome(table, []), table
    else:
        table = _table(context, [context.signal(rule.order_by)])
        outcome = Outcome(table, [rule.order_by])
        scored = _scored(table, rule.order_by, context, outcome)
        ordered = _ordered(scored, rule.order_by, rule.prefer == "high", rule.within_source)
    budget = None if rule.budget is None else _amount(rule.budget, len(table), "select.rule.budget")
    _take_apart(ordered, rule.distance, budget, context, outcome)
    return outcome


def _deita(rule: Deita, context: Context) -> Outcome:
    product = turn_products(
        rule.complexity, rule.quality, context.rows, context.step.labels, context.step.scored_by, context.run
    )
    table = _table(context, [product])
    outcome = Outcome(table, [PRODUCT])
    ordered = _ordered(_scored(table, PRODUCT, context, outcome), PRODUCT, True, False)
    _take_apart(ordered, rule.distance, _amount(rule.budget, len(table), "select.rule.budget"), context, outcome)
    return outcome


def _few_but_good(rule: FewButGood, context: Context) -> Outcome:
    table = _table(context, [context.signal(rule.order_by)])
    outcome = Outcome(table, [rule.order_by])
    passing = _passing(rule.gates, table, context, outcome)
    ordered = _ordered(_scored(passing, rule.order_by, context, outcome), rule.order_by, True, rule.within_source)
    _take_apart(ordered, rule.distance, _amount(rule.budget, len(table), "select.rule.budget"), context, outcome)
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
    ordered: pl.DataFrame, distance: Distance, budget: int | None, context: Context, outcome: Outcome
) -> None:
    """Walk the rows in their order and keep those that are far enough from all kept before, up to the budget."""
    rows = ordered["row"].to_list()
    with compared_texts(context.rows, distance.fields) as texts:
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
        told = pl.format("{} of the {}-grams are new ({})", _short(value), pl.lit(distance.n), pl.lit(limit))
    else:
        check, limit, reason = "cosine", f"<= {distance.max_cosine:g}", "too_near"
        told = pl.format("cosine {} to a kept row ({})", _short(value), pl.lit(limit))
    outcome.judge(looked_at, check, value, pl.lit(limit), pl.col("taken"))
    outcome.drop(looked_at.filter(~pl.col("taken")), reason, told, pl.col("near"))
    if budget is not None:
        full = f"<= {walk.seen} (where {budget} rows are taken)" if walk.seen < len(walked) else "any"
        outcome.judge(walked, "order", pl.col("order"), pl.lit(full), pl.col("looked_at"))
        outcome.drop(
            walked.filter(~pl.col("looked_at")),
            "over_budget",
            pl.format("place {} in the order, {}", "order", pl.lit(full)),
        )
    outcome.facts["walk"] = {
        "rows": len(walked),
        "looked_at": walk.seen,
        "taken": int(walk.kept.sum()),
        "budget": budget,
    }


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
