"""n-grams that rows share with held-out rows: for every row the held-out row of which it holds the largest share.

An n-gram that many held-out rows have is a template and no match.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from posttrain.data.rows import compared_texts
from posttrain.data.shingles import hash_shingles, hash_tokens
from posttrain.data.steps import StepRun, blocks
from posttrain.data.streams import Tick
from posttrain.data.text import Fields

TEMPLATE_LEAST, TEMPLATE_SHARE = 20, 0.001
"""An n-gram in more held-out groups than both of these allow is a template that prompts share, not a match."""
OVERLAPS = pl.Schema({"row": pl.UInt32, "overlap": pl.Float64, "held_out": pl.UInt32})
"""A row, the largest share of the n-grams of a held-out row that it holds, and the place of that row (null: it shares none)."""


def overlaps(
    rows_file: Path, places: pl.Series, held_out: pl.DataFrame, fields: Fields, n: int, run: StepRun, what: str
) -> pl.DataFrame:
    """[OVERLAPS] of the rows at some places (ascending) with the held-out rows [row, id, group].

    Compared are the n-grams of these fields; ``what`` names it to the progress bar.
    """
    ordered = held_out.sort("id", "row").with_row_index(
        "order"
    )  # of equal overlaps the first, in any order of the rows
    grams = pl.concat(list(_row_grams(rows_file, held_out["row"].sort(), fields, n)))
    most = max(TEMPLATE_LEAST, TEMPLATE_SHARE * held_out["group"].n_unique())
    index = (
        grams.join(ordered.select("row", "order", "group"), on="row")
        .filter(pl.col("group").n_unique().over("gram") <= most)
        .select("gram", "order", held_out="row", size=pl.len().over("row"))
    )
    found = [pl.DataFrame(schema=OVERLAPS)]
    for grams in _row_grams(rows_file, places, fields, n, partial(run.progress, what)):
        shared = grams.join(index, on="gram").group_by("row", "order", "held_out", "size").len()
        shares = shared.with_columns(overlap=pl.col("len") / pl.col("size"))
        highest = shares.sort(["overlap", "order"], descending=[True, False]).unique("row", keep="first")
        found.append(highest.select(*OVERLAPS).cast(OVERLAPS))
    rows = places.cast(pl.UInt32).to_frame("row")
    joined = rows.join(pl.concat(found), on="row", how="left", maintain_order="left")
    return joined.with_columns(pl.col("overlap").fill_null(0.0))


def _row_grams(
    rows_file: Path, places: pl.Series, fields: Fields, n: int, tick: Tick = lambda done, total: None
) -> Iterator[pl.DataFrame]:
    """Block by block the distinct n-grams of the rows at ``places`` [row, gram]."""
    for begin, block in blocks(rows_file, ["messages"], tick):
        wanted = places.filter(places.is_between(begin, begin + len(block) - 1))
        if len(wanted):
            grams = distinct_ngrams(compared_texts(block[(wanted - begin).to_list()], fields), n)
            yield grams.select("gram", row=wanted[grams["text"]].cast(pl.UInt32))


def distinct_ngrams(texts: Sequence[str], n: int) -> pl.DataFrame:
    """The hashes of the distinct n-grams of each text, and the number of the text [gram, text].

    A text of fewer than n tokens is one n-gram, one without tokens has none.
    """
    words = hash_tokens(texts)
    shingles = hash_shingles(words, texts, n)
    numbers = np.repeat(np.arange(len(texts)), np.diff(shingles.offsets_N))
    spoken = (np.diff(words.offsets_N) > 0)[numbers]
    pairs = pl.DataFrame({"gram": shingles.hashes_S[spoken], "text": numbers[spoken]})
    return pairs.unique(maintain_order=True)
