"""The dedup step: propose, compare exactly, decide in a total order, and say what was done.

Pass 1 hashes every row to keys (:mod:`proposals`); rows that share one are proposed. Pass 2 reads only the proposed rows again,
for their exact sets of shingles (:mod:`comparison`). Memory holds the keys of all rows and the shingles of proposed ones, never text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from posttrain.data.dedup import minhash, proposals
from posttrain.data.dedup.comparison import MARKS, Comparison, lookalikes, read_details, read_marks, tool_hashes
from posttrain.data.dedup.greedy import Order, Settled, settle, total_order
from posttrain.data.dedup.passages import Common, Compared, common_of
from posttrain.data.engine import map_rows
from posttrain.data.marks import plain
from posttrain.data.rows import LINEAGE, compared_texts
from posttrain.data.shingles import U64, text_hash
from posttrain.data.steps import Decisions, StepRun, rejects_of, verdicts_of
from posttrain.data.text import Fields
from posttrain.errors import ConfigError

TOKENIZER = "NFKC, casefold; CJK characters one by one, other runs of letters and digits whole; no punctuation"
_READ_BY = {
    "threshold": ("ngram", "minhash", "simhash", "embedding"),
    "ngram": ("ngram", "minhash", "simhash"),
    "num_perm": ("minhash",),
    "recall": ("minhash",),
    "distance": ("simhash",),
    "encoder": ("embedding",),
    "common_share": ("ngram", "minhash", "simhash", "embedding"),
}
_THRESHOLD, _NGRAM, _NUM_PERM, _RECALL, _DISTANCE, _ENCODER = 0.7, 5, 128, 0.99, 8, "use-multilingual"
_CURVE = tuple(round(0.05 * step, 2) for step in range(1, 21))
_LARGEST_SHOWN = 5
_COMMON_SHARE = 0.01
_LARGE_SHARE, _LARGE_LEAST = 0.05, 5
"""A cluster of more than this share of the rows, and of so many, is a warning; so is a share of rows that are mostly shared passages."""


Method = Literal["exact", "ngram", "minhash", "simhash", "embedding"]


@dataclass(frozen=True, kw_only=True)
class DedupStep:
    """Drop duplicates and near-duplicates: of each group of like rows, the first in a total order stays."""

    kind: Literal["dedup"]
    method: Method = "minhash"
    """How duplicates are found: equal texts, all pairs by n-grams, MinHash LSH, SimHash, or sentence embeddings."""
    threshold: Annotated[float, Gt(0), Le(1)] | None = None
    """Similarity from which a row is dropped: Jaccard of the n-gram sets (default 0.7), or cosine (default: the encoder's)."""
    fields: Fields = "user"
    """The turns that are compared: ``user`` keeps one answer to a prompt, ``assistant`` every different one."""
    ngram: Annotated[int, Ge(1), Le(64)] | None = None
    """Tokens of a shingle (default 5); a shorter text is one shingle. Not for ``exact`` and ``embedding``."""
    num_perm: Annotated[int, Ge(1), Le(4096)] | None = None
    """``minhash``: the most hash functions, of which bands are made (default 128)."""
    recall: Annotated[float, Gt(0), Lt(1)] | None = None
    """``minhash``: share of the pairs exactly at the threshold that must be proposed (default 0.99)."""
    distance: Annotated[int, Ge(0), Le(12)] | None = None
    """``simhash``: the most bits of 64 in which the fingerprints of a proposed pair differ (default 8)."""
    encoder: str | None = None
    """``embedding``: a known encoder (default use-multilingual), or the folder of a static embedding model."""
    distinct_numbers: bool = True
    """Whether texts with the same words and other numbers, symbols, negations or case of code are different (exercises), and for
    ``embedding`` all texts with other numbers. Without it the similarity alone decides. Not for ``exact``, where they are."""
    common_share: Annotated[float, Gt(0), Le(1)] | None = None
    """n-grams that stand in more than this share of the rows, and in 10, are not compared (default 0.01; 1: all are compared):
    the description of a tool, or a passage, makes no duplicates. Not for ``exact``."""
    prefer: str = "quality"
    """Of like rows, the one with the highest score of this name stays; then the one with the smallest content id."""

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows stay. Raises ConfigError for an option that the method does not read."""
        _check(self)
        order = total_order(rows_file, self.prefer)
        find = {"exact": _exact, "embedding": _by_cosine}.get(self.method, _by_jaccard)
        return _decisions(self, rows_file, order, find(self, rows_file, order, seed, run))


@dataclass(frozen=True)
class _Found:
    """What a method found, with what is to be said about it."""

    settled: Settled
    blank_N: NDArray[np.bool_]
    """By rank: rows with nothing to compare."""
    exact_N: NDArray[np.bool_]
    """By rank: dropped rows whose text equals their representative's."""
    numbers_N: NDArray[np.float64]
    """By rank: largest similarity to a kept row from which numbers or symbols tell it apart; 0 where there is none."""
    threshold: float
    measure: str
    facts: dict[str, Any] = field(default_factory=dict)
    common: Common = field(default_factory=Common)
    probability: Callable[[float], float] | None = None
    """P(similarity) that a pair is proposed; None where every pair is."""


def _check(step: DedupStep) -> None:
    for option, methods in _READ_BY.items():
        if getattr(step, option) is not None and step.method not in methods:
            raise ConfigError(
                f"the method {step.method!r} has no use for {option!r}",
                where=f"dedup.{option}",
                fix=f"leave it out, or choose a method that reads it: {', '.join(methods)}",
            )


# ---- the methods ---------------------------------------------------------------------------------------------------


def _exact(step: DedupStep, rows_file: Path, order: Order, seed: int, run: StepRun) -> _Found:
    """Rows of equal text: the first of each group stays."""
    found = map_rows(partial(_text_keys, step.fields), rows_file, ["messages", "tools"], run, "hashing")
    keys_R = np.concatenate([np.empty((0, 3), np.uint64), *(part for _, part in found)])
    blank_N = keys_R[order.row_of_rank, 1] == 0
    ranks = np.flatnonzero(~blank_N)
    _, first, group_of = np.unique(keys_R[order.row_of_rank[ranks]], axis=0, return_index=True, return_inverse=True)
    representative_N = np.full(len(blank_N), -1, np.int64)
    representative_N[ranks] = ranks[first[group_of]]
    representative_N[representative_N == np.arange(len(blank_N))] = -1
    dropped_N = representative_N >= 0
    settled = Settled(representative_N, dropped_N.astype(np.float64), int(dropped_N.sum()))
    return _Found(settled, blank_N, dropped_N, np.zeros(len(blank_N)), 1.0, "equal text")


def _text_keys(fields: Fields, block: pl.DataFrame) -> U64:
    """Uint64 [N, 3]: hash of the text of every row as equality sees it, whether there is any, and hash of its tools."""
    texts = [plain(text) for text in compared_texts(block, fields)]
    hashes = np.array([[text_hash(text), bool(text)] for text in texts], np.uint64).reshape(-1, 2)
    return np.column_stack([hashes, tool_hashes(block)])


def _by_jaccard(step: DedupStep, rows_file: Path, order: Order, seed: int, run: StepRun) -> _Found:
    threshold, n = step.threshold or _THRESHOLD, step.ngram or _NGRAM
    common = common_of(rows_file, order.ids, step.fields, n, step.common_share or _COMMON_SHARE)
    compared = Compared(step.fields, n, common)
    proposed = _propose(step, threshold, proposals.Passes(compared, rows_file, run), order, seed)
    total = len(proposed.blank_N)
    wanted_R = np.zeros(total, np.bool_)
    wanted_R[order.row_of_rank[proposed.buckets.ranks]] = True
    known, sets = read_details(wanted_R, compared, rows_file, run, with_sets=True)
    place_R = np.cumsum(wanted_R) - 1
    known_marks = None
    if step.distinct_numbers:
        marked_R = np.zeros(total, np.bool_)
        marked_R[np.flatnonzero(wanted_R)[lookalikes(known)]] = True
        known_marks = np.zeros(len(known), MARKS)
        known_marks[place_R[marked_R]] = read_marks(marked_R, step.fields, rows_file, run)
    comparison = Comparison(place_R[order.row_of_rank], known, known_marks, threshold)
    settled = settle(proposed.buckets, total, threshold, partial(comparison.jaccard, sets))
    counts = {"proposed_rows": int(wanted_R.sum()), "compared_pairs": settled.pairs}
    return _Found(
        settled,
        proposed.blank_N,
        comparison.exact(settled),
        comparison.numbers_N,
        threshold,
        "Jaccard",
        {"ngram": compared.n, **proposed.facts, **counts},
        compared.common,
        proposed.probability,
    )


def _propose(
    step: DedupStep, threshold: float, passes: proposals.Passes, order: Order, seed: int
) -> proposals.Proposed:
    if step.method == "ngram":
        return proposals.by_prefix(threshold, passes, order)
    if step.method == "simhash":
        return proposals.by_simhash(_DISTANCE if step.distance is None else step.distance, passes, order)
    recall, num_perm = step.recall or _RECALL, step.num_perm or _NUM_PERM
    shape = minhash.choose_bands(threshold, recall, num_perm)
    if shape is None:
        raise ConfigError(
            f"{num_perm} permutations can't propose {recall:.4g} of the pairs at a similarity of {threshold:g}",
            where="dedup.num_perm",
            fix="raise num_perm or threshold, lower recall, or use the method ngram, which misses none",
        )
    return proposals.by_minhash(shape, passes, order, seed)


def _by_cosine(step: DedupStep, rows_file: Path, order: Order, seed: int, run: StepRun) -> _Found:
    from posttrain.data.dedup.embedding import default_threshold, settle_by_cosine  # other workers do without it

    name = step.encoder or _ENCODER
    threshold = step.threshold or default_threshold(name)
    everything_R = np.ones(len(order.row_of_rank), np.bool_)
    common = common_of(rows_file, order.ids, step.fields, _NGRAM, step.common_share or _COMMON_SHARE)
    known, _ = read_details(everything_R, Compared(step.fields, _NGRAM), rows_file, run, with_sets=False)
    blank_N = known["text"][order.row_of_rank] == np.uint64(text_hash(""))
    known_marks = read_marks(everything_R, step.fields, rows_file, run) if step.distinct_numbers else None
    comparison = Comparison(order.row_of_rank, known, known_marks, threshold, by_meaning=True)
    settled = settle_by_cosine(
        rows_file, step.fields, order.row_of_rank, blank_N, name, threshold, common, comparison.tell_apart, run
    )
    facts = {"encoder": name, "compared_pairs": settled.pairs}
    exact_N = comparison.exact(settled)
    return _Found(settled, blank_N, exact_N, comparison.numbers_N, threshold, "cosine", facts, common)


# ---- what follows --------------------------------------------------------------------------------------------------


def _decisions(step: DedupStep, rows_file: Path, order: Order, found: _Found) -> Decisions:
    settled, ranks = found.settled, np.arange(len(found.blank_N))
    head_N = np.where(settled.dropped, settled.representative_N, ranks)
    by_rank = pl.DataFrame(
        {
            "rank": ranks,
            "row": order.row_of_rank.astype(np.uint32),
            "head": head_N,
            "twin": order.row_of_rank[head_N],
            "kept": ~settled.dropped,
            "similarity": settled.similarity_N,
            "numbers": found.numbers_N,
            "blank": found.blank_N,
            "exact": found.exact_N,
        }
    )
    places = pl.scan_parquet(rows_file, glob=False).select("file", "line").collect()
    clusters = _clusters(by_rank, order.ids)
    large = _large_clusters(clusters, len(by_rank))
    facts = _facts(step, order, found, by_rank, clusters)
    notes = {name: facts[name] for name in ("nothing_to_compare", "told_apart_by_numbers")}
    notes["rows_in_large_clusters"] = int(large["len"].sum())
    return Decisions(
        rejects=_rejects(by_rank, order.ids, places, found.measure),
        verdicts=_verdicts(step, by_rank, found.threshold),
        columns=_cluster_column(rows_file, clusters),
        tables={"clusters": clusters},
        facts=facts | {"warnings": _warnings(places, large, found.common)},
        notes={name: count for name, count in notes.items() if count},
    )


def _rejects(by_rank: pl.DataFrame, ids: pl.Series, places: pl.DataFrame, measure: str) -> pl.DataFrame:
    dropped = by_rank.filter(~pl.col("kept"))
    table = dropped.with_columns(places[dropped["twin"]], id=ids[dropped["twin"]])
    reason = pl.when("exact").then(pl.lit("exact_duplicate")).otherwise(pl.lit("near_duplicate"))
    detail = pl.format("{} {} with {}:{}", pl.lit(measure), pl.col("similarity").round(4), "file", "line")
    return rejects_of(table, reason, detail, pl.col("id"))


def _verdicts(step: DedupStep, by_rank: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """The largest similarity to a kept row, of every row that was compared; and where numbers or symbols told two apart."""
    similar = by_rank.filter(~pl.col("blank")).sort("row")
    apart = by_rank.filter((pl.col("numbers") > 0) & pl.col("kept"))
    check, limit = f"{step.method}_similarity", pl.lit(f"< {threshold:.10g}")
    return pl.concat(
        [
            verdicts_of(similar, check, pl.col("similarity"), limit, pl.col("kept")),
            verdicts_of(apart, f"{check}_but_numbers", pl.col("numbers"), pl.lit("any"), pl.lit(True)),
        ]
    )


def _clusters(by_rank: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """Rows with duplicates and their duplicates: cluster by cluster, the kept row first, then by similarity."""
    heads = by_rank.filter(~pl.col("kept")).select(pl.col("head").unique())
    members = by_rank.join(heads, on="head", how="semi")
    similarity = pl.when("kept").then(1.0).otherwise("similarity")
    members = members.sort("head", ~pl.col("kept"), -similarity, "rank")
    return members.select(
        (pl.col("head").rank("dense") - 1).cast(pl.UInt32).alias("cluster"),
        "row",
        ids[members["row"]].alias("id"),
        ids[members["twin"]].alias("representative"),
        similarity.alias("similarity"),
        "kept",
    )


def _large_clusters(clusters: pl.DataFrame, num_rows: int) -> pl.DataFrame:
    """[row: the kept one, len]: clusters of more than a twentieth of the rows, the largest first."""
    sizes = clusters.group_by("cluster", maintain_order=True).agg(pl.col("row").first(), pl.len())
    return sizes.filter(pl.col("len") > max(_LARGE_LEAST, _LARGE_SHARE * num_rows)).sort(
        "len", "row", descending=[True, False]
    )


def _warnings(places: pl.DataFrame, large: pl.DataFrame, common: Common) -> list[str]:
    """What a person should look at before the rows are used."""
    warnings, total = [], len(places)
    for row, size in large.select("row", "len").iter_rows():
        file, line = places.row(row)
        warnings.append(
            f"one cluster holds {size:,} of {total:,} rows ({size / total:.1%}), like {file}:{line}: see clusters.parquet"
        )
    if common.rows > _LARGE_SHARE:
        passages = "; ".join(f"{passage.text!r} in {passage.share:.1%}" for passage in common.passages)
        warnings.append(
            f"{common.rows:.0%} of the rows are for the greater part passages that others share; n-grams of more than common_share of "
            f"the rows are not compared: {passages}"
        )
    return warnings


def _cluster_column(rows_file: Path, clusters: pl.DataFrame) -> pl.DataFrame | None:
    """The lineage column ``cluster``: the representative's id for rows of a cluster, otherwise what it was."""
    if clusters.is_empty():
        return None
    before = pl.scan_parquet(rows_file, glob=False).select("cluster").with_row_index("row").collect()
    fresh = clusters.select("row", fresh="representative")
    joined = before.join(fresh, on="row", how="left", maintain_order="left")
    return joined.select(cluster=pl.coalesce("fresh", "cluster").cast(LINEAGE["cluster"]))


def _facts(
    step: DedupStep, order: Order, found: _Found, by_rank: pl.DataFrame, clusters: pl.DataFrame
) -> dict[str, Any]:
    sizes = clusters.group_by("cluster").len()["len"]
    dropped = by_rank.filter(~pl.col("kept"))
    exact = int(dropped["exact"].sum())
    facts: dict[str, Any] = {
        "method": step.method,
        "measure": found.measure,
        "threshold": found.threshold,
        "fields": step.fields,
        "tokenizer": TOKENIZER,
        **found.facts,
        "distinct_numbers": step.distinct_numbers,
        "prefer": step.prefer,
        **({} if step.method == "exact" else {"common_share": step.common_share or _COMMON_SHARE}),
        "common_ngrams": len(found.common.hashes_G),
        "shared_passages": [{"text": passage.text, "share": passage.share} for passage in found.common.passages],
        "rows": len(by_rank),
        "rows_with_score": order.scored,
        "nothing_to_compare": int(by_rank["blank"].sum()),
        "told_apart_by_numbers": len(by_rank.filter("kept", pl.col("numbers") > 0)),
        "exact_duplicates": exact,
        "near_duplicates": len(dropped) - exact,
        "clusters": len(sizes),
        "largest_clusters": sizes.sort(descending=True).head(_LARGEST_SHOWN).to_list(),
    }
    if found.probability is None:
        return facts
    probability = found.probability
    similar = dropped["similarity"].to_numpy()
    chances = np.array([probability(value) for value in np.unique(similar)])
    missed = (1 / chances - 1)[np.searchsorted(np.unique(similar), similar)]
    at = [round(min(1.0, found.threshold + 0.05 * step), 4) for step in range(5)]
    return facts | {
        "probability": [[value, probability(value)] for value in _CURVE],
        "missed_at": [[value, 1 - probability(value)] for value in dict.fromkeys(at)],
        "expected_missed_rows": float(missed.sum()),
    }
