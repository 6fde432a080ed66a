"""The dedup step: propose, compare exactly, decide in a total order, and say what was done.

Pass 1 hashes every row to keys (:mod:`minhash`, :mod:`simhash`, :mod:`ngram`); rows that share one are proposed. Pass 2 reads only
the proposed rows again, for their exact sets of shingles. Memory holds the keys of all rows and the shingles of proposed
ones, never text.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup import minhash, ngram, simhash
from posttrain.data.dedup.buckets import Buckets, group
from posttrain.data.dedup.config import DedupStep
from posttrain.data.dedup.greedy import Ranks, Settled, settle
from posttrain.data.dedup.jaccard import distinct, jaccards
from posttrain.data.dedup.order import Order, total_order
from posttrain.data.dedup.passages import Common, Sample, common_of, sample_of
from posttrain.data.dedup.texts import (
    Details,
    MarkHashes,
    compared_texts,
    details,
    joined_details,
    joined_marks,
    lookalikes,
    mark_hashes,
    tool_hashes,
)
from posttrain.data.engine import map_rows
from posttrain.data.marks import plain
from posttrain.data.rows import LINEAGE
from posttrain.data.shingles import U64, Shingles, TokenHashes, hash_shingles, hash_tokens, text_hash
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun
from posttrain.data.text import Fields
from posttrain.errors import ConfigError

Result = TypeVar("Result")

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
"""A cluster of more than this share of the rows, and of so many, is told; so is a share of rows that are mostly shared passages."""


@dataclass(frozen=True)
class _Found:
    """What a method found, with what is to be told about it."""

    settled: Settled
    exact_N: NDArray[np.bool_]
    """By rank: dropped rows whose text equals their representative's."""
    numbers_N: NDArray[np.float64]
    """By rank: largest similarity to a kept row from which numbers or symbols tell it apart; 0 where there is none."""
    threshold: float
    measure: str
    facts: dict[str, Any]
    common: Common = field(default_factory=Common)
    probability: Callable[[float], float] | None = None
    """P(similarity) that a pair is proposed; None where every pair is."""


def decide(step: DedupStep, rows: Path, seed: int, run: StepRun) -> Decisions:
    """See :class:`DedupStep`."""
    _check(step)
    order = total_order(rows, step.prefer)
    if step.method == "exact":
        blank_N, found = _exact(step, rows, order, run)
    elif step.method == "embedding":
        blank_N, found = _by_cosine(step, rows, order, run)
    else:
        blank_N, found = _by_jaccard(step, rows, order, seed, run)
    return _decisions(step, rows, order, blank_N, found)


def _check(step: DedupStep) -> None:
    for option, methods in _READ_BY.items():
        if getattr(step, option) is not None and step.method not in methods:
            raise ConfigError(
                f"the method {step.method!r} has no use for {option!r}",
                where=f"dedup.{option}",
                fix=f"leave it out, or choose a method that reads it: {', '.join(methods)}",
            )


# ---- exact ---------------------------------------------------------------------------------------------------------


def _exact(step: DedupStep, rows: Path, order: Order, run: StepRun) -> tuple[NDArray[np.bool_], _Found]:
    """Rows of equal text: the first of each group stays."""
    work = partial(_text_keys, step.fields)
    keys_R = np.concatenate(
        [
            np.empty((0, 3), np.uint64),
            *(part for _, part in map_rows(work, rows, ["messages", "tools"], run, "hashing")),
        ]
    )
    blank_N = keys_R[order.row_of_rank, 1] == 0
    ranks = np.flatnonzero(~blank_N)
    keys = keys_R[order.row_of_rank[ranks]]
    _, first, group_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    representative_N = np.full(len(blank_N), -1, np.int64)
    representative_N[ranks] = ranks[first[group_of]]
    representative_N[representative_N == np.arange(len(blank_N))] = -1
    dropped_N = representative_N >= 0
    settled = Settled(representative_N, dropped_N.astype(np.float64), int(dropped_N.sum()))
    return blank_N, _Found(settled, dropped_N, np.zeros(len(blank_N)), 1.0, "equal text", {})


def _text_keys(fields: Fields, block: pl.DataFrame) -> U64:
    """Uint64 [N, 3]: hash of the text of every row as equality sees it, whether there is any, and hash of its tools."""
    texts = [plain(text) for text in compared_texts(block, fields)]
    hashes = np.array([[text_hash(text), bool(text)] for text in texts], np.uint64).reshape(-1, 2)
    return np.column_stack([hashes, tool_hashes(block)])


# ---- by Jaccard similarity -----------------------------------------------------------------------------------------


def _by_jaccard(step: DedupStep, rows: Path, order: Order, seed: int, run: StepRun) -> tuple[NDArray[np.bool_], _Found]:
    threshold, n = step.threshold or _THRESHOLD, step.ngram or _NGRAM
    share = step.common_share or _COMMON_SHARE
    sample = sample_of(order, step.fields, n, share)
    cut = _Cut(step.fields, n, Common())
    passes = _Passes(cut, rows, run, sample)
    blank_N, buckets, facts, probability = _propose(step, threshold, passes, order, seed)
    if sample is not None:
        common = common_of(passes.seen, share, sample, rows, run)
        if len(common.hashes_G):
            cut = _Cut(step.fields, n, common)
            blank_N, buckets, facts, probability = _propose(step, threshold, _Passes(cut, rows, run), order, seed)
    proposed_R = np.zeros(len(blank_N), np.bool_)
    proposed_R[order.row_of_rank[buckets.ranks]] = True
    known = _details(proposed_R, step.fields, cut, rows, run)
    place_R = np.cumsum(proposed_R) - 1
    told_R = np.zeros(len(blank_N), np.bool_)
    if step.distinct_numbers:
        told_R[np.flatnonzero(proposed_R)[lookalikes(known)]] = True
    told = _marks(told_R, step.fields, rows, run).at(place_R[told_R], len(known.texts_N))
    compare = _Comparison(place_R[order.row_of_rank], known, told if step.distinct_numbers else None, threshold)
    settled = settle(buckets, len(blank_N), threshold, compare.jaccard)
    facts = {"ngram": n, **facts, "proposed_rows": int(proposed_R.sum()), "compared_pairs": settled.pairs}
    found = _Found(
        settled, compare.exact(settled), compare.numbers_N, threshold, "Jaccard", facts, cut.common, probability
    )
    return blank_N, found


def _propose(
    step: DedupStep, threshold: float, passes: _Passes, order: Order, seed: int
) -> tuple[NDArray[np.bool_], Buckets, dict[str, Any], Callable[[float], float] | None]:
    """(blank rows, what is proposed, facts, chance that a pair is proposed: None where every pair is)."""
    if step.method == "minhash":
        shape = _bands(step, threshold)
        blank_N, buckets = _propose_by_minhash(shape, passes, order, seed)
        facts = {"bands": shape.bands, "rows_per_band": shape.rows, "num_perm": shape.bands * shape.rows}
        return blank_N, buckets, facts, shape.probability
    if step.method == "simhash":
        distance = _DISTANCE if step.distance is None else step.distance
        blank_N, buckets = _propose_by_simhash(distance, passes, order)
        probability = partial(simhash.probability, distance=distance)
        return blank_N, buckets, {"bits": simhash.BITS, "distance": distance}, probability
    blank_N, buckets = _propose_by_prefix(threshold, passes, order)
    return blank_N, buckets, {}, None


def _bands(step: DedupStep, threshold: float) -> minhash.Bands:
    recall, num_perm = step.recall or _RECALL, step.num_perm or _NUM_PERM
    shape = minhash.choose_bands(threshold, recall, num_perm)
    if shape is None:
        raise ConfigError(
            f"{num_perm} permutations can't propose {recall:.4g} of the pairs at a similarity of {threshold:g}",
            where="dedup.num_perm",
            fix="raise num_perm or threshold, lower recall, or use the method ngram, which misses none",
        )
    return shape


@dataclass(frozen=True)
class _Cut:
    """What of a row is compared: the n-grams of its turns, without the common ones."""

    fields: Fields
    n: int
    common: Common

    def shingles(self, words: TokenHashes, texts: list[str]) -> Shingles:
        """Those of some texts."""
        return self.common.without(hash_shingles(words, texts, self.n))


class _Passes:
    """Walks over the shingles of a file of rows that gather a sample on their way."""

    def __init__(self, cut: _Cut, rows: Path, run: StepRun, sample: Sample | None = None) -> None:
        self._cut, self._rows, self._run, self._sample = cut, rows, run, sample
        self.seen: dict[int, U64] = {}

    def over(self, work: Callable[[Shingles], Result], what: str) -> Iterator[tuple[int, NDArray[np.bool_], Result]]:
        """(place of the first row, which rows have nothing to compare, result) for every block."""
        block_work = partial(_work_on_shingles, work, self._cut, self._sample)
        for begin, (blank, result, part) in map_rows(block_work, self._rows, ["id", "messages"], self._run, what):
            self.seen.update(part)
            yield begin, blank, result


def _work_on_shingles(
    work: Callable[[Shingles], Result], cut: _Cut, sample: Sample | None, block: pl.DataFrame
) -> tuple[NDArray[np.bool_], Result, dict[int, U64]]:
    texts = compared_texts(block, cut.fields)
    blank = np.fromiter((not text or text.isspace() for text in texts), np.bool_, len(texts))
    shingles = cut.shingles(hash_tokens(texts), texts)
    seen = {} if sample is None else sample.among(sample.places(block, texts), texts, shingles)
    return blank, work(shingles), seen


def _propose_by_minhash(
    shape: minhash.Bands, passes: _Passes, order: Order, seed: int
) -> tuple[NDArray[np.bool_], Buckets]:
    total = len(order.row_of_rank)
    blank_R, keys_BR = np.empty(total, np.bool_), np.empty((shape.bands, total), np.uint64)
    factors = minhash.multipliers(shape.bands * shape.rows, seed)
    for begin, blank, keys in passes.over(partial(minhash.band_keys, shape=shape, factors=factors), "hashing"):
        blank_R[begin : begin + len(blank)], keys_BR[:, begin : begin + len(blank)] = blank, keys
    compared = np.flatnonzero(~blank_R)
    ranks = order.rank_of_row[compared]
    return blank_R[order.row_of_rank], group((keys[compared], ranks) for keys in keys_BR)


def _propose_by_simhash(distance: int, passes: _Passes, order: Order) -> tuple[NDArray[np.bool_], Buckets]:
    total = len(order.row_of_rank)
    blank_R, prints_R = np.empty(total, np.bool_), np.empty(total, np.uint64)
    for begin, blank, prints in passes.over(simhash.fingerprints, "hashing"):
        blank_R[begin : begin + len(blank)], prints_R[begin : begin + len(blank)] = blank, prints
    compared = np.flatnonzero(~blank_R)
    buckets = simhash.propose(prints_R[compared], order.rank_of_row[compared], distance)
    return blank_R[order.row_of_rank], buckets


def _counts(shingles: Shingles) -> NDArray[np.uint32]:
    return ngram.slot_counts(distinct(shingles))


def _prefixes(threshold: float, counts: NDArray[np.uint32], shingles: Shingles) -> tuple[U64, NDArray[np.int64]]:
    first = ngram.prefixes(distinct(shingles), counts, threshold)
    return first.values, np.diff(first.offsets_N)


def _propose_by_prefix(threshold: float, passes: _Passes, order: Order) -> tuple[NDArray[np.bool_], Buckets]:
    counts = np.zeros(ngram.SLOTS, np.uint32)
    blanks = []
    for _, blank, found in passes.over(_counts, "counting"):
        counts += found
        blanks.append(blank)
    blank_R = np.concatenate([np.empty(0, np.bool_), *blanks])
    keys, ranks = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for begin, blank, (values, sizes) in passes.over(partial(_prefixes, threshold, counts), "hashing"):
        block_ranks = np.repeat(order.rank_of_row[begin : begin + len(sizes)], sizes)
        there = ~np.repeat(blank, sizes)
        # the hash's lower bits are the fuller ones once it is cut
        keys.append(values[there] << np.uint64(12))
        ranks.append(block_ranks[there])
    return blank_R[order.row_of_rank], group([(np.concatenate(keys), np.concatenate(ranks))])


# ---- by cosine -----------------------------------------------------------------------------------------------------


def _by_cosine(step: DedupStep, rows: Path, order: Order, run: StepRun) -> tuple[NDArray[np.bool_], _Found]:
    from posttrain.data.dedup.embedding import default_threshold, settle_by_cosine  # other workers do without it

    name = step.encoder or _ENCODER
    threshold = step.threshold or default_threshold(name)
    total = len(order.row_of_rank)
    common, share = Common(), step.common_share or _COMMON_SHARE
    sample = sample_of(order, step.fields, _NGRAM, share)
    if sample is not None:
        seen = [part for _, part in map_rows(sample.ngrams, rows, ["id", "messages"], run, "sampling")]
        common = common_of(dict(ChainMap(*seen)), share, sample, rows, run)
    known = _details(np.ones(total, np.bool_), step.fields, None, rows, run)
    blank_N = known.texts_N[order.row_of_rank] == np.uint64(text_hash(""))
    told = _marks(np.ones(total, np.bool_), step.fields, rows, run) if step.distinct_numbers else None
    compare = _Comparison(order.row_of_rank, known, told, threshold, by_meaning=True)
    settled = settle_by_cosine(
        rows, step.fields, order.row_of_rank, blank_N, name, threshold, common, compare.tell_apart, run
    )
    facts = {"encoder": name, "compared_pairs": settled.pairs}
    return blank_N, _Found(settled, compare.exact(settled), compare.numbers_N, threshold, "cosine", facts, common)


# ---- exact comparison ----------------------------------------------------------------------------------------------


def _details(wanted_R: NDArray[np.bool_], fields: Fields, cut: _Cut | None, rows: Path, run: StepRun) -> Details:
    """The details of the wanted rows, in the order of the file."""
    work = partial(_details_block, fields, cut)
    columns = ["messages", "tools"]
    return joined_details([part for _, part in map_rows(work, rows, columns, run, "comparing", only=wanted_R)])


def _marks(wanted_R: NDArray[np.bool_], fields: Fields, rows: Path, run: StepRun) -> MarkHashes:
    """The marks of the wanted rows, in the order of the file."""
    work = partial(_marks_block, fields)
    return joined_marks([part for _, part in map_rows(work, rows, ["messages"], run, "comparing", only=wanted_R)])


def _marks_block(fields: Fields, block: pl.DataFrame) -> MarkHashes:
    return mark_hashes(compared_texts(block, fields))


def _details_block(fields: Fields, cut: _Cut | None, block: pl.DataFrame) -> Details:
    texts = compared_texts(block, fields)
    return details(texts, tool_hashes(block), None if cut is None else lambda words: cut.shingles(words, texts))


class _Comparison:
    """Exact similarities by rank, with what was told apart by numbers and symbols remembered."""

    def __init__(
        self,
        place_N: NDArray[np.int64],
        known: Details,
        told: MarkHashes | None,
        threshold: float,
        *,
        by_meaning: bool = False,
    ) -> None:
        self._place_N, self._known, self._told = place_N, known, told
        self._threshold, self._by_meaning = threshold, by_meaning
        self.numbers_N = np.zeros(len(place_N))

    def jaccard(self, left: Ranks, right: Ranks) -> NDArray[np.float64]:
        """The Jaccard similarity of every pair; 0 where two similar texts are told apart."""
        assert self._known.sets is not None
        values = jaccards(self._known.sets, self._place_N[left], self._place_N[right])
        return self.tell_apart(left, right, values)

    def tell_apart(self, left: Ranks, right: Ranks, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The similarities, with 0 where two similar texts have the same words and other numbers, symbols or case of code.

        Texts that are similar by their meaning need not have the same words: there the amounts must be the same. Texts with other
        tools beside them are always told apart.
        """
        near = np.flatnonzero(values >= self._threshold)
        known, a, b = self._known, self._place_N[left[near]], self._place_N[right[near]]
        apart = known.tools_N[a] != known.tools_N[b]
        if self._told is not None:
            apart |= self._marked_apart(self._told, a, b)
        apart_P = near[apart]
        np.maximum.at(self.numbers_N, right[apart_P], values[apart_P])
        counted = values.copy()
        counted[apart_P] = 0.0
        return counted

    def _marked_apart(self, told: MarkHashes, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        known = self._known
        other_words = (known.letters_N[a] != known.letters_N[b]) | (told.words_N[a] != told.words_N[b])
        other_case = (told.case_N[a] != told.case_N[b]) & ~told.shouted_N[a] & ~told.shouted_N[b]
        other = other_words | (told.signs_N[a] != told.signs_N[b]) | other_case
        apart: NDArray[np.bool_] = other & (~other_words | (known.skeletons_N[a] == known.skeletons_N[b]))
        if self._by_meaning:
            apart |= told.amounts_N[a] != told.amounts_N[b]
        return apart

    def exact(self, settled: Settled) -> NDArray[np.bool_]:
        """By rank: dropped rows whose text equals their representative's."""
        dropped = np.flatnonzero(settled.dropped)
        texts, place = self._known.texts_N, self._place_N
        exact_N = np.zeros(len(place), np.bool_)
        exact_N[dropped] = texts[place[dropped]] == texts[place[settled.representative_N[dropped]]]
        return exact_N


# ---- what follows --------------------------------------------------------------------------------------------------


def _decisions(step: DedupStep, rows: Path, order: Order, blank_N: NDArray[np.bool_], found: _Found) -> Decisions:
    clusters = _clusters(order, found.settled)
    numbered = int(((found.numbers_N > 0) & ~found.settled.dropped).sum())
    large = _large_clusters(clusters, len(blank_N))
    notes = {"nothing_to_compare": int(blank_N.sum()), "told_apart_by_numbers": numbered, "scored": order.scored}
    notes["rows_in_large_clusters"] = int(large["len"].sum())
    return Decisions(
        rejects=_rejects(rows, order, found),
        verdicts=_verdicts(step, order, blank_N, found),
        columns=_cluster_column(rows, clusters),
        tables={"clusters": clusters},
        facts=_facts(step, order, blank_N, found, clusters)
        | {"warnings": _warnings(rows, large, found.common, len(blank_N))},
        notes={name: count for name, count in notes.items() if count and name != "scored"},
    )


def _rejects(rows: Path, order: Order, found: _Found) -> pl.DataFrame:
    dropped = np.flatnonzero(found.settled.dropped)
    twins = order.row_of_rank[found.settled.representative_N[dropped]]
    places = pl.scan_parquet(rows, glob=False).select("file", "line").collect()[twins]
    reasons = np.where(found.exact_N[dropped], "exact_duplicate", "near_duplicate")
    return (
        pl.DataFrame(
            {
                "row": order.row_of_rank[dropped],
                "reason": reasons.astype(object),
                "similarity": found.settled.similarity_N[dropped],
                "twin": order.ids[twins],
                "file": places["file"],
                "line": places["line"],
            },
            schema_overrides={"reason": pl.String},
        )
        .select(
            pl.col("row").cast(pl.UInt32),
            "reason",
            pl.format("{} {} with {}:{}", pl.lit(found.measure), pl.col("similarity").round(4), "file", "line").alias(
                "detail"
            ),
            "twin",
        )
        .select(list(REJECTS))
    )


def _verdicts(step: DedupStep, order: Order, blank_N: NDArray[np.bool_], found: _Found) -> pl.DataFrame:
    """The largest similarity to a kept row, of every row that was compared; and where numbers or symbols told two apart."""
    compared = np.flatnonzero(~blank_N)
    kept = ~found.settled.dropped
    numbered = np.flatnonzero((found.numbers_N > 0) & kept)
    similar = pl.DataFrame(
        {
            "row": order.row_of_rank[compared],
            "check": pl.Series([f"{step.method}_similarity"]).new_from_index(0, len(compared)),
            "value": found.settled.similarity_N[compared],
            "limit": pl.Series([f"< {found.threshold:.10g}"]).new_from_index(0, len(compared)),
            "passed": kept[compared],
        }
    ).sort("row")
    apart = pl.DataFrame(
        {
            "row": order.row_of_rank[numbered],
            "check": pl.Series([f"{step.method}_similarity_but_numbers"]).new_from_index(0, len(numbered)),
            "value": found.numbers_N[numbered],
            "limit": pl.Series(["any"]).new_from_index(0, len(numbered)),
            "passed": np.ones(len(numbered), np.bool_),
        }
    )
    return pl.concat([frame.select([pl.col(c).cast(t) for c, t in VERDICTS.items()]) for frame in (similar, apart)])


def _clusters(order: Order, settled: Settled) -> pl.DataFrame:
    """Rows with duplicates and their duplicates: cluster by cluster, the kept row first, then by similarity."""
    dropped = np.flatnonzero(settled.dropped)
    kept = np.unique(settled.representative_N[dropped])
    ranks = np.concatenate([kept, dropped])
    heads = np.concatenate([kept, settled.representative_N[dropped]])
    similarity = np.concatenate([np.ones(len(kept)), settled.similarity_N[dropped]])
    inside = np.lexsort((ranks, -similarity, ranks != heads, heads))
    ranks, heads, similarity = ranks[inside], heads[inside], similarity[inside]
    numbers = np.searchsorted(np.unique(heads), heads)
    return pl.DataFrame(
        {
            "cluster": numbers.astype(np.uint32),
            "row": order.row_of_rank[ranks].astype(np.uint32),
            "id": order.ids[order.row_of_rank[ranks]],
            "representative": order.ids[order.row_of_rank[heads]],
            "similarity": similarity,
            "kept": ranks == heads,
        }
    )


def _large_clusters(clusters: pl.DataFrame, rows: int) -> pl.DataFrame:
    """[row: the kept one, len]: clusters of more than a twentieth of the rows, the largest first."""
    sizes = clusters.group_by("cluster", maintain_order=True).agg(pl.col("row").first(), pl.len())
    return sizes.filter(pl.col("len") > max(_LARGE_LEAST, _LARGE_SHARE * rows)).sort(
        "len", "row", descending=[True, False]
    )


def _warnings(rows: Path, large: pl.DataFrame, common: Common, total: int) -> list[str]:
    """What a person should look at before the rows are used."""
    told = []
    places = pl.scan_parquet(rows, glob=False).select("file", "line").collect()
    for row, size in large.select("row", "len").iter_rows():
        file, line = places.row(row)
        told.append(
            f"one cluster holds {size:,} of {total:,} rows ({size / total:.1%}), like {file}:{line}: see clusters.parquet"
        )
    if common.rows > _LARGE_SHARE:
        passages = "; ".join(f"{passage.text!r} in {passage.share:.1%}" for passage in common.passages)
        told.append(
            f"{common.rows:.0%} of the rows are for the greater part passages that others share; n-grams of more than common_share of "
            f"the rows are not compared: {passages}"
        )
    return told


def _cluster_column(rows: Path, clusters: pl.DataFrame) -> pl.DataFrame | None:
    """The lineage column ``cluster``: the representative's id for rows of a cluster, otherwise what it was."""
    if clusters.is_empty():
        return None
    before = pl.scan_parquet(rows, glob=False).select("cluster").with_row_index("row").collect()
    fresh = clusters.select("row", fresh="representative")
    joined = before.join(fresh, on="row", how="left", maintain_order="left")
    return joined.select(cluster=pl.coalesce("fresh", "cluster").cast(LINEAGE["cluster"]))


def _facts(
    step: DedupStep, order: Order, blank_N: NDArray[np.bool_], found: _Found, clusters: pl.DataFrame
) -> dict[str, Any]:
    dropped_N = found.settled.dropped
    sizes = clusters.group_by("cluster").len()["len"]
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
        "rows": len(blank_N),
        "rows_with_score": order.scored,
        "nothing_to_compare": int(blank_N.sum()),
        "told_apart_by_numbers": int(((found.numbers_N > 0) & ~dropped_N).sum()),
        "exact_duplicates": int(found.exact_N.sum()),
        "near_duplicates": int((dropped_N & ~found.exact_N).sum()),
        "clusters": len(sizes),
        "largest_clusters": sizes.sort(descending=True).head(_LARGEST_SHOWN).to_list(),
    }
    if found.probability is None:
        return facts
    probability = found.probability
    similar = found.settled.similarity_N[dropped_N]
    chances = np.array([probability(value) for value in np.unique(similar)])
    missed = (1 / chances - 1)[np.searchsorted(np.unique(similar), similar)]
    at = [round(min(1.0, found.threshold + 0.05 * step), 4) for step in range(5)]
    return facts | {
        "probability": [[value, probability(value)] for value in _CURVE],
        "missed_at": [[value, 1 - probability(value)] for value in dict.fromkeys(at)],
        "expected_missed_rows": float(missed.sum()),
    }
