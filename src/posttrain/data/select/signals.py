"""Numbers about rows that selection goes by: scores they carry, keys of their meta, the length of the answers.

A signal is named in a recipe as text:

    loss, ifd, judge, ...    a score of the lineage column ``scores``
    meta.KEY                 a number or a label under a key of the row's meta
    length                   comparison tokens of all assistant turns

Several scores of one name by one model (a judge asked twice) count as their mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from posttrain.data.engine import map_rows
from posttrain.data.rows import compared_texts
from posttrain.data.steps import StepRun, blocks, count_rows, score_names
from posttrain.data.text import tokens
from posttrain.errors import ConfigError, DataError
from posttrain.table import did_you_mean

LENGTH = "length"
META = "meta."
BY_MODEL = ("loss", "mean_logp", "loss_alone", "ifd")
"""Scores that ``posttrain score`` writes."""
PRODUCT = "complexity_x_quality"
VALUES: dict[str, Any] = {"row": pl.UInt32, "turn": pl.UInt32, "value": pl.Float64}
"""One value of a signal: the row's place in the file, the turn it is about (0: the whole row)."""


RESERVED = {"row", "id", "source", "place", "kept", "low", "high", "rank", "best", "winner", "candidates"}
RESERVED |= {"value", "order", "near", "taken", "looked_at", "instruction"}
"""Names of columns of a method's tables that no signal may have."""


@dataclass(frozen=True)
class Context:
    """What every method is given."""

    rows_file: Path
    labels: Sequence[str]
    """Texts that count as signals, from low to high."""
    scored_by: str | None
    unscored: Literal["drop", "keep"]
    seed: int
    run: StepRun

    def signal(self, name: str) -> pl.Series:
        """A signal for every row, in the order of the file. Raises DataError where no row has it."""
        values = self.read(name)
        if len(values) and values.null_count() == len(values):
            raise _missing(name, self.rows_file)
        return values

    def read(self, name: str) -> pl.Series:
        """A signal for every row, in the order of the file; null where a row has none."""
        if name in RESERVED:
            raise ConfigError(f"a signal can't be called {name!r}", where="select", fix="give the score another name")
        return _for_every_row(signal_values(name, self), self.rows_file).rename(name)


def signal_values(name: str, context: Context, *, turns: bool = False) -> pl.DataFrame:
    """The values [VALUES] of a signal, as far as the rows of a file have it; with ``turns`` those of single turns as well.

    Turns count from 1: the scores ``NAME.1``, ``NAME.2``, or the entries of a list under ``meta.KEY``. Where a row has
    values of its turns, they stand for the row. Raises DataError where several models gave the score.
    """
    if name == LENGTH:
        return _lengths(context)
    found = _meta_values(name.removeprefix(META), context) if name.startswith(META) else _scores(name, context)
    if not turns:
        return found.filter(pl.col("turn") == 0)
    return found.filter((pl.col("turn") > 0) | (pl.col("turn").max().over("row") == 0))


def turn_products(first: str, second: str, context: Context) -> pl.Series:
    """The sum over the turns of one signal times another, for every row.

    Null where one of them is missing, or they are not about the same turns. Raises DataError where that is so everywhere.
    """
    left, right = (signal_values(name, context, turns=True) for name in (first, second))
    for name, found in ((first, left), (second, right)):
        if not len(found) and count_rows(context.rows_file):
            raise _missing(name, context.rows_file)
    both = left.join(right, on=["row", "turn"], how="full", coalesce=True, suffix="_right")
    complete = pl.col("value").is_not_null().all() & pl.col("value_right").is_not_null().all()
    product = pl.col("value") * pl.col("value_right")
    summed = both.group_by("row").agg(value=pl.when(complete).then(product.sort_by("turn").sum()))
    if len(summed) and summed["value"].null_count() == len(summed):
        raise DataError(
            f"no row has {first!r} and {second!r} for the same turns",
            where="select.rule",
            fix=f"give both for the whole row, or both for every turn ({first}.1, {second}.1, ...)",
        )
    return _for_every_row(summed, context.rows_file).rename(PRODUCT)


def _missing(name: str, rows_file: Path) -> DataError:
    """The error of a signal that no row has, with the command that makes it."""
    if name.startswith(META):
        return DataError(
            f"no row has a number or one of the labels under {name.removeprefix(META)!r} in its meta",
            where="select.rule",
            fix="name a key that the rows' meta has; give its texts in order as labels",
        )
    known = score_names(rows_file)
    found = f"they carry: {', '.join(sorted(known))}" if known else "they carry no scores"
    if name in BY_MODEL:
        fix = "score them first: posttrain score FILES --model MODEL -o scored, then select from the folder scored (longer rows than --max-length have none)"
    else:
        fix = f"name a score they carry, {LENGTH}, or a key of their meta as {META}KEY"
    return DataError(
        f"no row carries the score {name!r}{did_you_mean(name, known)} ({found})", where=str(rows_file), fix=fix
    )


def _for_every_row(values: pl.DataFrame, rows_file: Path) -> pl.Series:
    every = pl.DataFrame({"row": pl.int_range(count_rows(rows_file), dtype=pl.UInt32, eager=True)})
    return every.join(values.select("row", "value"), on="row", how="left", maintain_order="left")["value"]


def _scores(name: str, context: Context) -> pl.DataFrame:
    pattern = rf"^{re.escape(name)}(\.[1-9][0-9]*)?$"
    frames = [pl.DataFrame(schema=VALUES | {"by": pl.String})]
    models: set[str | None] = set()
    for begin, block in blocks(context.rows_file, ["scores"]):
        entries = (
            block.with_row_index("row", begin)
            .explode("scores")
            .select("row", score="scores")
            .unnest("score")
            .filter(pl.col("name").str.contains(pattern) & pl.col("value").is_finite())
        )
        if context.scored_by is not None:
            entries = entries.filter(pl.col("by").str.starts_with(context.scored_by))
        models.update(entries["by"].unique())
        turn = pl.col("name").str.extract(r"\.([1-9][0-9]*)$").cast(pl.UInt32).fill_null(0)
        frames.append(entries.select(pl.col("row").cast(pl.UInt32), turn.alias("turn"), "value", "by"))
    if len(models) > 1:
        raise DataError(
            f"the score {name!r} was given by {len(models)} models: {', '.join(sorted(map(str, models)))}",
            where="select.scored_by",
            fix="name the one to use, for example scored_by: " + sorted(map(str, models))[0],
        )
    return pl.concat(frames).group_by("row", "turn", maintain_order=True).agg(pl.col("value").mean())


def _meta_values(key: str, context: Context) -> pl.DataFrame:
    ranks = {label.casefold(): float(rank) for rank, label in enumerate(context.labels, 1)}
    found: list[tuple[int, int, float]] = []
    for begin, block in blocks(context.rows_file, ["meta"]):
        for row, text in enumerate(block["meta"].to_list(), begin):
            if text == "{}":
                continue
            value = json.loads(text).get(key)
            if isinstance(value, list):
                numbers = [_number(entry, ranks) for entry in value]
                found += [(row, turn, n) for turn, n in enumerate(numbers, 1) if n is not None]
            elif (number := _number(value, ranks)) is not None:
                found.append((row, 0, number))
    return pl.DataFrame(found, schema=VALUES, orient="row")


def _number(value: Any, ranks: dict[str, float]) -> float | None:
    """A number as it is, a label as its rank, text that is a number (a CSV cell) as that; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        text = value.strip().casefold()
        return ranks.get(text, float(text) if re.fullmatch(r"[-+]?\d+(\.\d+)?", text, re.ASCII) else None)
    return None


def _lengths(context: Context) -> pl.DataFrame:
    found = map_rows(_answer_lengths, context.rows_file, ["messages"], context.run, "length of answers")
    lengths = pl.Series("value", [length for _, part in found for length in part], dtype=pl.Float64)
    return lengths.to_frame().select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"), turn=pl.lit(0, pl.UInt32), value="value"
    )


def _answer_lengths(block: pl.DataFrame) -> list[float]:
    return [float(len(tokens(text))) for text in compared_texts(block, "assistant")]
