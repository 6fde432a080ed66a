"""How much of each source goes into the training set (Tulu 3, arXiv 2411.15124, section 4.1.2).

Rows of the splits ``validation`` and ``test`` are never touched, so mixes made after the split are judged on the same held-out rows.

The rows of a source are laid end to end in the order of a seeded hash of their content id, each as long as it counts (its
weight, times its tokens where the mix is by tokens). A row stays where its middle lies inside the target: a smaller
target keeps a part of what a larger one keeps, whatever order the rows came in. More than there is comes from repetition, only
when asked for: then no row is added, but the lineage column ``weight`` says how many times a row counts, and training
repeats it that many times in an epoch (:func:`row_repeats`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import Ge, Gt, Le

from posttrain.data.rows import LINEAGE, conversations, rejected_sides
from posttrain.data.steps import Decisions, StepRun, blocks, rejects_of, verdicts_of
from posttrain.data.text import compared_text, tokens
from posttrain.errors import DataError
from posttrain.table import did_you_mean
from posttrain.types import Message

HELD_OUT_SPLITS = ("validation", "test")
"""Splits whose rows no mix touches."""


@dataclass(frozen=True, kw_only=True)
class MixStep:
    """Decide how much of each source is trained on: weights, counts, caps, sub-samples."""

    kind: Literal["mix"]
    by: Literal["rows", "tokens"] = "rows"
    """What amounts are counted in; tokens are those of the comparison tokenizer, over the whole conversation; of pairs also the rejected reply."""
    weights: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Source -> its part of the mix, relative to the other weights. Without ``total``: the largest mix of these proportions."""
    counts: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Source -> how much of it: a share of what it has below 1, otherwise a number of rows (or tokens)."""
    total: Annotated[float, Gt(0)] | None = None
    """Size of the whole mix; what ``counts`` and sources that are not named leave of it goes to ``weights``."""
    cap: Annotated[float, Gt(0)] | None = None
    """No source gives more than this (down-sampling of very large sets)."""
    caps: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Source -> the most it gives, in place of ``cap``."""
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Keep this share of every source's target: a sub-sample stratified by source."""
    leave_out: tuple[str, ...] = ()
    """Sources that give nothing."""
    upsample: bool = False
    """Whether a target above what a source has is met by repeating its rows; otherwise it is an error."""
    max_repeats: Annotated[int, Ge(1)] = 4
    """The most times one row may count when repeated (beyond four epochs repeated rows teach little)."""

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows stay and how many times each counts. Raises DataError where the targets can't be met."""
        table = _measured(rows_file, self.by, seed, run)
        mixed = table.filter(~pl.col("held_out"))
        available = dict(mixed.group_by("source").agg(pl.col("amount").sum()).sort("source").iter_rows())
        wanted = targets(self, available)
        placed = _placed(mixed, wanted, available)
        decided = placed.filter(pl.col("target") < pl.col("available"))
        details = {
            name: f"{wanted[name]:,.0f} of {amount:,.0f} {self.by} of {name} are wanted"
            for name, amount in available.items()
        }
        limits = {name: f"<= {target:.10g}" for name, target in wanted.items()}
        return Decisions(
            rejects=rejects_of(decided.filter(pl.col("times") == 0), pl.lit("mix_quota"), _of_source(details)),
            verdicts=verdicts_of(decided, "mix_position", pl.col("position"), _of_source(limits), pl.col("times") > 0),
            columns=_weights(table, placed) if any(wanted[name] > available[name] for name in wanted) else None,
            facts={
                "by": self.by,
                "share": self.share,
                "untouched_rows": len(table) - len(mixed),
                "sources": _source_facts(placed),
            },
        )


def targets(step: MixStep, available: Mapping[str, float]) -> dict[str, float]:
    """Source -> amount wanted of it, given the amounts there are. Whole numbers where the mix is by rows.

    Raises DataError for an unknown source, and where a target is more than there is and may not be repeated.
    """
    _check_names(step, available)
    room = {name: min(amount, _cap(step, name)) for name, amount in available.items()}
    counted = {name: count * room[name] if count < 1 else count for name, count in step.counts.items()}
    whole = {name: room[name] for name in available if name not in step.weights and name not in counted}
    wanted = {**whole, **counted, **_by_weight(step, room, sum(whole.values()) + sum(counted.values()))}
    for name, amount in wanted.items():
        _check_amount(step, name, amount, available[name])
    final = {name: 0.0 if name in step.leave_out else wanted[name] * step.share for name in available}
    return _rounded(final) if step.by == "rows" else final


# ---- targets -------------------------------------------------------------------------------------------------------


def _check_names(step: MixStep, available: Mapping[str, float]) -> None:
    for key in ("weights", "counts", "caps", "leave_out"):
        for name in getattr(step, key):
            if name not in available:
                raise DataError(
                    f"there is no source {name!r} among the rows{did_you_mean(name, available)}",
                    where=f"mix.{key}",
                    fix=f"sources here: {', '.join(available) or 'none'}",
                )
    for name in step.weights:
        if name in step.counts:
            raise DataError(f"{name!r} has a weight and a count", where="mix.counts", fix="keep one of the two")
    if step.weights and not any(step.weights.values()):
        raise DataError("all weights are 0", where="mix.weights", fix="give at least one source a weight above 0")
    if len(step.weights) == 1 and step.total is None and len(available) > 1:
        (name,) = step.weights
        raise DataError(
            f"weights are relative to each other, and {name!r} alone has one: it would have no effect",
            where="mix.weights",
            fix=f"give other sources weights, too, or give total, or say how much of it with counts: {{{name}: 0.5}}",
        )
    if step.total is not None and not step.weights:
        raise DataError("total is shared out by weights, and there are none", where="mix.total", fix="give weights")


def _cap(step: MixStep, name: str) -> float:
    cap = step.caps.get(name, step.cap)
    return math.inf if cap is None else cap


def _by_weight(step: MixStep, room: Mapping[str, float], taken: float) -> dict[str, float]:
    """The amounts of the sources that have a weight."""
    if not step.weights:
        return {}
    if step.total is not None:
        if step.total <= taken:
            raise DataError(
                f"counts and sources without a weight already make {taken:,.0f} of {step.total:,.0f} {step.by}",
                where="mix.total",
                fix="raise total, or give those sources a weight or a smaller count",
            )
        one = (step.total - taken) / sum(step.weights.values())
    else:
        ratios = [room[name] / weight for name, weight in step.weights.items() if weight > 0]
        one = max(ratios) if step.upsample else min(ratios)
    return {name: weight * one for name, weight in step.weights.items()}


def _check_amount(step: MixStep, name: str, amount: float, available: float) -> None:
    cap = _cap(step, name)
    if amount > cap * (1 + 1e-9):
        raise DataError(
            f"{name!r} should give {amount:,.0f} {step.by}, more than its cap of {cap:,.0f}",
            where="mix.caps" if name in step.caps else "mix.cap",
            fix="raise the cap, or ask for less",
        )
    if amount <= available * (1 + 1e-9):
        return
    if not step.upsample:
        raise DataError(
            f"{name!r} should give {amount:,.0f} {step.by}, but has {available:,.0f}",
            where="mix.weights" if name in step.weights else "mix.counts",
            fix="ask for less, or repeat its rows with upsample: true",
        )
    if amount > available * step.max_repeats:
        raise DataError(
            f"{amount:,.0f} {step.by} of {name!r} would repeat its {available:,.0f} more than {step.max_repeats} times",
            where="mix.max_repeats",
            fix="ask for less, or raise max_repeats",
        )


def _rounded(amounts: Mapping[str, float]) -> dict[str, float]:
    """Whole numbers with the rounded sum: the largest remainders are rounded up (ties by name)."""
    floors = {name: math.floor(amount + 1e-9) for name, amount in amounts.items()}
    left = math.floor(sum(amounts.values()) + 0.5 + 1e-9) - sum(floors.values())
    order = sorted(amounts, key=lambda name: (round(floors[name] - amounts[name], 9), name))
    raised = set(order[:left])
    return {name: float(floors[name] + (name in raised)) for name in amounts}


# ---- rows ----------------------------------------------------------------------------------------------------------


def row_repeats(rows_file: Path) -> dict[str, int]:
    """Content id -> how many times the row is trained on in an epoch, of a rows file; only ids that count more than once.

    Raises DataError for a weight that is not a whole number: training repeats rows, it does not scale them.
    """
    if "weight" not in pl.scan_parquet(rows_file, glob=False).collect_schema():
        return {}  # written before rows carried a weight
    counted = pl.scan_parquet(rows_file, glob=False).select("id", pl.col("weight").fill_null(1.0))
    odd = counted.filter((pl.col("weight") < 1) | (pl.col("weight") != pl.col("weight").round())).head(1).collect()
    if len(odd):
        row_id, weight = odd.row(0)
        raise DataError(
            f"row {row_id} has the weight {weight:g}, and training repeats rows a whole number of times",
            where=str(rows_file),
            fix="weights come from a mix step with upsample: true; leave rows out with counts, weights or share",
        )
    repeated = counted.group_by("id").agg(pl.col("weight").sum()).filter(pl.col("weight") > 1).collect()
    return {row_id: int(weight) for row_id, weight in repeated.iter_rows()}


def _measured(rows_file: Path, by: Literal["rows", "tokens"], seed: int, run: StepRun) -> pl.DataFrame:
    """One line a row: place, source, whether it is held out, hash, weight so far, and how much it counts."""
    columns = ["id", "source", "file", "line", "split", "weight", *(["messages", "rejected"] if by == "tokens" else [])]
    parts = []
    for begin, block in blocks(rows_file, columns, partial(run.progress, "mix")):
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
    return pl.concat(parts)


def _lengths(block: pl.DataFrame) -> list[int]:
    """Tokens of every row as it is trained on: of a pair the prompt once and both replies."""
    lengths = [_tokens_of(turns) for turns in conversations(block)]
    if block["rejected"].null_count():
        return lengths
    return [one + _tokens_of(other) for one, other in zip(lengths, rejected_sides(block), strict=True)]


def _tokens_of(turns: Sequence[Message]) -> int:
    return len(tokens(compared_text(turns, "conversation")))


def _of_source(values: Mapping[str, Any], kind: Any = pl.String) -> pl.Expr:
    """The value of the source of every row."""
    return pl.col("source").replace_strict(values).cast(kind)  # without rows or values it stays text


def _placed(mixed: pl.DataFrame, wanted: Mapping[str, float], available: Mapping[str, float]) -> pl.DataFrame:
    """The rows of every source in the order of their hash, with their position, the source's target, and how many times they count."""
    amount, target, there, position = map(pl.col, ("amount", "target", "available", "position"))
    placed = mixed.sort("hash", "file", "line").with_columns(
        position=amount.cum_sum().over("source") - amount / 2,
        target=_of_source(wanted, pl.Float64),
        available=_of_source(available, pl.Float64),
    )
    whole = pl.when(there > 0).then((target / there + 1e-9).floor()).otherwise(target > 0).cast(pl.Int64)
    rest = target - pl.col("times") * there
    # Rows without any token have a middle at 0; a source that gives nothing gives none of them either.
    more = (position <= rest) & (rest > 1e-9)
    return placed.with_columns(times=whole).with_columns(times=pl.col("times") + more.cast(pl.Int64))


def _weights(table: pl.DataFrame, placed: pl.DataFrame) -> pl.DataFrame:
    """The lineage column ``weight`` of every row of the file: what it was, times how often the mix repeats it."""
    counted = table.select("row", "weight").join(
        placed.select("row", "times"), on="row", how="left", maintain_order="left"
    )
    times = pl.col("times").fill_null(1).clip(lower_bound=1)  # dropped and held-out rows keep theirs
    return counted.select((pl.col("weight") * times).cast(LINEAGE["weight"]).alias("weight"))


def _source_facts(placed: pl.DataFrame) -> list[dict[str, Any]]:
    sources = placed.group_by("source").agg(
        rows_before=pl.len(),
        rows=(pl.col("times") > 0).sum(),
        available=pl.col("available").first(),
        target=pl.col("target").first(),
        amount=(pl.col("amount") * pl.col("times")).sum(),
        most_repeats=pl.col("times").max(),
    )
    before, after = sources["available"].sum(), sources["amount"].sum()
    facts = []
    for source in sources.sort("source").iter_rows(named=True):
        most = source.pop("most_repeats")
        share_before = source["available"] / before if before else None
        share = source["amount"] / after if after else None
        facts.append({**source, "share_before": share_before, "share": share, "most_repeats": most})
    return facts
