"""An inverted index of all n-grams of the evaluation prompts, in memory and without a cap on hits.

Tulu 3 (arXiv 2411.15124, section 3.2): a token of an evaluation text is matched by a training row where an 8-gram that
holds it stands in both; the overlap is the share of matched tokens. A text of fewer than n tokens is one n-gram of its
own length, as everywhere in posttrain. n-grams never reach over the end of a turn.

Tokens are 64-bit hashes (:mod:`posttrain.data.shingles`), and so are n-grams: two different ones are taken for one with probability
2**-64. Most rows share no n-gram: a table of leading bits says so before anything is searched for.

Shapes: ``T`` tokens of a block of rows, ``U`` distinct n-grams of the index, ``P`` their places in the evaluation texts,
``X`` evaluation texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.shingles import U64, TokenHashes, hash_tokens

_CHUNK, _ROWS = 1 << 22, 256
"""From so many places on, n-grams are looked up for so many rows at once."""
_MOST_BITS = 21
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Postings:
    """All n-grams of one length, sorted by key, and where each stands."""

    n: int
    keys_U: U64
    begins: NDArray[np.bool_]
    """Which leading bits the keys have: few enough bits that most strange keys begin otherwise."""
    places: pl.DataFrame
    """[gram, text, place]: where every n-gram stands."""
    most: int
    """The most places of one n-gram."""


@dataclass(frozen=True)
class Index:
    """Evaluation texts, ready to be looked for."""

    length_X: Ids
    postings: tuple[Postings, ...]
    """One for every length of n-gram in use: n, and the lengths of shorter texts."""
    n: int
    """Tokens of an n-gram (8 in Tulu 3)."""


class Hits(NamedTuple):
    """The n-grams of one length that stand in some texts: the first token, the text and the n-gram of each."""

    postings: Postings
    at: NDArray[np.int64]
    text: NDArray[np.int64]
    gram: NDArray[np.int64]


def build(texts: Sequence[str], n: int) -> Index:
    """The index of evaluation texts (a turn of a prompt each) by their n-grams."""
    words = hash_tokens(texts)
    length_X = np.diff(words.offsets_N)
    size_X = np.minimum(length_X, n)
    text_T = np.repeat(np.arange(len(texts)), length_X)
    place_T = np.arange(len(text_T)) - words.offsets_N[text_T]
    postings = []
    for size, keys_T in _run_keys(words.hashes_T, np.unique(size_X[size_X > 0]).tolist()):
        begin = np.flatnonzero((size_X[text_T] == size) & (place_T + size <= length_X[text_T]))
        keys_U, gram_P, count_U = np.unique(keys_T[begin], return_inverse=True, return_counts=True)
        columns = {"gram": gram_P.astype(np.int64), "text": text_T[begin].astype(np.uint32), "place": place_T[begin]}
        most = int(count_U.max(initial=0))
        postings.append(Postings(size, keys_U, _beginnings(keys_U), pl.DataFrame(columns), most))
    return Index(length_X.astype(np.int32), tuple(postings), n)


def find(index: Index, words: TokenHashes) -> Iterator[Hits]:
    """The n-grams of the index in some texts, by length."""
    by_size = {postings.n: postings for postings in index.postings}
    for size, keys_T in _run_keys(words.hashes_T, list(by_size)):
        postings = by_size[size]
        at = np.flatnonzero(postings.begins.take(_leading(keys_T, postings.begins)))
        gram = np.minimum(np.searchsorted(postings.keys_U, keys_T[at]), len(postings.keys_U) - 1)
        text = np.searchsorted(words.offsets_N, at, side="right") - 1
        same = (postings.keys_U[gram] == keys_T[at]) & (at + size <= words.offsets_N[text + 1])
        yield Hits(postings, at[same], text[same], gram[same])


def covers(postings: Postings, row: NDArray[np.integer], gram: NDArray[np.int64]) -> pl.DataFrame:
    """[row, text, covered]: the matched tokens of every (row, evaluation text), given the n-grams that stand in each row."""
    pairs = pl.DataFrame({"row": row.astype(np.uint32), "gram": gram}).unique()
    parts = [pairs]
    if len(pairs) * postings.most > _CHUNK:
        parts = pairs.with_columns(part=pl.col("row") // _ROWS).partition_by("part", include_key=False)
    return pl.concat([_covered(postings, part) for part in parts]).sort("row", "text")


# ---- how it is done ------------------------------------------------------------------------------------------------


def _run_keys(hashes_T: U64, sizes: Sequence[int]) -> Iterator[tuple[int, U64]]:
    """(size, key of every run of so many tokens), ascending, whether or not a run reaches over the end of a text."""
    keys_T = np.zeros(len(hashes_T), np.uint64)
    for size in range(1, max(sizes, default=0) + 1):
        width = len(hashes_T) - size + 1
        if width <= 0:
            return
        keys_T = keys_T[:width] * _FACTOR + hashes_T[size - 1 : size - 1 + width]  # Horner's rule, modulo 2**64
        if size in sizes:
            yield size, keys_T


def _beginnings(keys_U: U64) -> NDArray[np.bool_]:
    table = np.zeros(1 << min(_MOST_BITS, (64 * len(keys_U)).bit_length()), np.bool_)
    table[_leading(keys_U, table)] = True
    return table


def _leading(keys: U64, table: NDArray[np.bool_]) -> U64:
    return keys >> np.uint64(65 - len(table).bit_length())


def _covered(postings: Postings, pairs: pl.DataFrame) -> pl.DataFrame:
    """The union of the n-grams' spans in each text: every span adds what lies before the next one, the last one all of itself."""
    n = pl.lit(postings.n)
    to_next = (pl.col("place").sort().diff(null_behavior="drop")).clip(upper_bound=n)
    places = pairs.join(postings.places, on="gram")
    return places.group_by("row", "text").agg(covered=to_next.sum() + n)
