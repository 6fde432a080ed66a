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
from numpy.typing import NDArray

from posttrain.data.shingles import U64, TokenHashes, hash_tokens, spans

_CHUNK = 1 << 22
"""Postings expanded at once."""
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
    offsets_U1: NDArray[np.int64]
    """The places of n-gram ``u`` are ``offsets[u]:offsets[u + 1]``."""
    text_P: Ids
    place_P: Ids


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


class Cover(NamedTuple):
    """How much of an evaluation text stands in a row, for every pair that shares an n-gram; sorted by row, then text."""

    row: Ids
    text: Ids
    covered: Ids
    """Matched tokens of the text."""


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
        begin = begin[np.argsort(keys_T[begin], kind="stable")]
        keys_P = keys_T[begin]
        heads = np.flatnonzero(np.diff(keys_P, prepend=~keys_P[:1]))
        places = np.append(heads, len(keys_P)), text_T[begin].astype(np.int32), place_T[begin].astype(np.int32)
        postings.append(Postings(size, keys_P[heads], _beginnings(keys_P[heads]), *places))
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


def covers(postings: Postings, row: NDArray[np.integer], gram: NDArray[np.int64]) -> Cover:
    """The matched tokens of every (row, evaluation text), given the n-grams that stand in each row."""
    pairs = np.unique(np.stack([row.astype(np.int64), gram], axis=1), axis=0)
    found = [_covered(postings, rows, grams) for rows, grams in _chunks(postings, pairs)]
    empty = np.empty(0, np.int32)
    return Cover(*(np.concatenate(column) for column in zip((empty, empty, empty), *found, strict=True)))


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


def _chunks(postings: Postings, pairs: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(row, n-gram) pairs in groups of whole rows with a bounded number of postings each (one row at least)."""
    if not len(pairs):
        return
    counts = np.diff(postings.offsets_U1)[pairs[:, 1]]
    before = np.concatenate([[0], np.cumsum(counts)])
    starts = np.concatenate([np.flatnonzero(np.diff(pairs[:, 0], prepend=-1)), [len(pairs)]])
    begin = 0
    while begin < len(starts) - 1:
        limit = before[starts[begin]] + _CHUNK
        end = max(begin + 1, int(np.searchsorted(before[starts], limit, side="right")) - 1)
        group = pairs[starts[begin] : starts[end]]
        yield group[:, 0], group[:, 1]
        begin = end


def _covered(postings: Postings, rows: NDArray[np.int64], grams: NDArray[np.int64]) -> Cover:
    """The union of the n-grams' spans in each text."""
    begins = postings.offsets_U1[grams]
    counts = postings.offsets_U1[grams + 1] - begins
    at = spans(begins, counts)
    row, text, place = np.repeat(rows, counts), postings.text_P[at], postings.place_P[at]
    order = np.lexsort((place, text, row))
    row, text, place = row[order], text[order], place[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (text[1:] != text[:-1])
    # each span adds its tokens that lie before the next span of the same text; the last one adds all n
    added = np.full(len(row), postings.n, np.int64)
    added[:-1] = np.where(first[1:], postings.n, np.minimum(place[1:] - place[:-1], postings.n))
    heads = np.flatnonzero(first)
    return Cover(row[heads].astype(np.int32), text[heads], np.add.reduceat(added, heads).astype(np.int32))
