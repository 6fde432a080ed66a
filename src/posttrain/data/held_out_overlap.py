"""n-grams that rows share with held-out rows: for every row the held-out row of which it holds the largest share.

An n-gram that many held-out rows have is a template and no match.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.rows import compared_texts
from posttrain.data.shingles import hash_shingles, hash_tokens
from posttrain.data.steps import StepRun, blocks, count_rows
from posttrain.data.text import Fields

TEMPLATE_LEAST, TEMPLATE_SHARE = 20, 0.001
"""An n-gram in more held-out groups than both of these allow is a template that prompts share, not a match."""
OVERLAPS = {"row": pl.UInt32, "overlap": pl.Float64, "held_out": pl.UInt32}
"""A row, the largest share of the n-grams of a held-out row that it holds, and the place of that row (null: it shares none)."""


@dataclass(frozen=True)
class Compared:
    """What of a row is compared."""

    fields: Fields
    n: int
    """Tokens of an n-gram."""


def overlaps(
    rows_file: Path, places: NDArray[np.int64], held_out: pl.DataFrame, compared: Compared, run: StepRun, what: str
) -> pl.DataFrame:
    """[OVERLAPS] of the rows at some places with the held-out rows [row, id, group]; ``what`` names it to the progress bar."""
    index = _Index.of(rows_file, held_out, compared)
    parts, total = [pl.DataFrame(schema=OVERLAPS)], count_rows(rows_file)
    for begin, grams, owners in _row_grams(rows_file, places, compared):
        run.progress(what, begin, total)
        parts.append(index.highest(grams, owners))
    run.progress(what, total, total)
    rows = pl.DataFrame({"row": places}, schema={"row": pl.UInt32})
    found = rows.join(pl.concat(parts), on="row", how="left", maintain_order="left")
    return found.with_columns(pl.col("overlap").fill_null(0.0))


@dataclass(frozen=True)
class _Index:
    """The n-grams of the held-out rows, sorted, each with the number of its row; templates are left out."""

    grams: NDArray[np.uint64]
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """N-grams of each held-out row."""
    places: NDArray[np.int64]
    """Where each held-out row stands in the file; ordered by id, so that the first of equal ones is the same in any order."""

    @staticmethod
    def of(rows_file: Path, held_out: pl.DataFrame, compared: Compared) -> _Index:
        ordered = held_out.sort("id", "row")
        places = ordered["row"].to_numpy().astype(np.int64)
        groups = ordered["group"].rank("dense").to_numpy().astype(np.int64)
        by_place = np.argsort(places)
        found = [
            (grams, by_place[np.searchsorted(places[by_place], owners)])
            for _, grams, owners in _row_grams(rows_file, places[by_place], compared)
        ]
        grams = np.concatenate([g for g, _ in found]) if found else np.empty(0, np.uint64)
        owners = np.concatenate([o for _, o in found]) if found else np.empty(0, np.int64)
        most = max(TEMPLATE_LEAST, TEMPLATE_SHARE * len(np.unique(groups)))
        spread = pl.DataFrame({"gram": grams, "group": groups[owners]}).unique().group_by("gram").len()
        templates = spread.filter(pl.col("len") > most)["gram"].to_numpy()
        own = ~np.isin(grams, templates)
        grams, owners = grams[own], owners[own]
        order = np.argsort(grams, kind="stable")
        return _Index(grams[order], owners[order], np.bincount(owners, minlength=len(places)), places)

    def highest(self, grams: NDArray[np.uint64], owners: NDArray[np.int64]) -> pl.DataFrame:
        """For each owner of n-grams that stand here: the highest share of a held-out row's n-grams, and that row."""
        low = np.searchsorted(self.grams, grams, "left")
        hits = np.searchsorted(self.grams, grams, "right") - low
        row = np.repeat(owners, hits)
        within = np.arange(len(row)) - np.repeat(np.cumsum(hits) - hits, hits)
        held = self.owners[np.repeat(low, hits) + within]
        pairs, counts = np.unique(row * len(self.places) + held, return_counts=True)
        row, held = np.divmod(pairs, max(len(self.places), 1))
        overlap = counts / self.sizes[held]
        # Within a row the pairs stand in the order of ``held``: of equal overlaps the first one counts.
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        highest = np.maximum.reduceat(overlap, starts) if len(starts) else overlap
        best = np.flatnonzero(overlap == np.repeat(highest, np.diff(starts, append=len(row))))
        _, first = np.unique(row[best], return_index=True)
        chosen = best[first]
        return pl.DataFrame(
            {"row": row[chosen], "overlap": overlap[chosen], "held_out": self.places[held[chosen]]}, schema=OVERLAPS
        )


def _row_grams(
    rows_file: Path, places: NDArray[np.int64], compared: Compared
) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]:
    """Block by block: place of its first row, hashes of the distinct n-grams of the rows at ``places``, and their places."""
    for begin, block in blocks(rows_file, ["messages"]):
        wanted = places[(places >= begin) & (places < begin + len(block))] - begin
        if len(wanted):
            grams, owners = distinct_ngrams(compared_texts(block[wanted.tolist()], compared.fields), compared.n)
            yield begin, grams, wanted[owners] + begin


def distinct_ngrams(texts: Sequence[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the distinct n-grams of each text, and the number of the text each belongs to.

    The sets of ``text.ngrams``: a text of fewer than n tokens is one n-gram, one without tokens has none.
    """
    words = hash_tokens(texts)
    shingles = hash_shingles(words, texts, n)
    owners = np.repeat(np.arange(len(texts)), np.diff(shingles.offsets_N))
    spoken = (np.diff(words.offsets_N) > 0)[owners]
    pairs = pl.DataFrame({"gram": shingles.hashes_S[spoken], "owner": owners[spoken]}).unique(maintain_order=True)
    return pairs["gram"].to_numpy(), pairs["owner"].to_numpy()
