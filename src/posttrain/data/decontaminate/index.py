"""An inverted index of all n-grams of the evaluation prompts, in memory and without a cap on hits.

Tulu 3 (arXiv 2411.15124, section 3.2): a token of an evaluation text is matched by a training row where an 8-gram that
holds it stands in both; the overlap is the share of matched tokens. A text of fewer than n tokens is one n-gram of its
own length, as everywhere in posttrain. n-grams never reach over the end of a turn.

Tokens are numbered by the vocabulary of the prompts (0: not in it, so no n-gram with it can match). n-grams are found by a
64-bit key and then compared token by token: the keys of an index are distinct, so what is found is what stands there.

Shapes: ``N`` tokens of a block of rows, ``U`` distinct n-grams of the index, ``P`` their places in the evaluation texts,
``X`` evaluation texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.data.decontaminate.sieve import Sieve, sieve
from posttrain.data.text import tokens

_CHUNK = 1 << 22
"""Postings expanded at once."""

Ids = NDArray[np.int32]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Postings:
    """All n-grams of one length, sorted by key, and where each stands."""

    n: int
    keys_U: Keys
    grams_Un: Ids
    offsets_U1: NDArray[np.int64]
    """The places of n-gram ``u`` are ``offsets[u]:offsets[u + 1]``."""
    text_P: Ids
    place_P: Ids
    salt: int
    """What makes the keys distinct."""


@dataclass(frozen=True)
class Index:
    """Evaluation texts, ready to be looked for."""

    vocabulary: dict[str, int]
    length_X: Ids
    postings: tuple[Postings, ...]
    """One for every length of n-gram in use: n, and the lengths of shorter texts."""
    n: int
    """Tokens of an n-gram (8 in Tulu 3)."""
    sieve: Sieve
    """What tells quickly that a turn shares no n-gram."""


@dataclass(frozen=True)
class Turns:
    """The turns of a block of rows as one run of token numbers, each turn followed by a 0."""

    ids_N: Ids
    turn_N: Ids
    row_T: Ids
    """The row (its place in the block) of every turn."""


@dataclass(frozen=True)
class Cover:
    """How much of an evaluation text stands in a row, for every pair that shares an n-gram; sorted by row, then text."""

    row: Ids
    text: Ids
    covered: Ids
    """Matched tokens of the text."""


def build(texts: Sequence[str], n: int) -> Index:
    """The index of evaluation texts (a turn of a prompt each) by their n-grams."""
    vocabulary: dict[str, int] = {}
    numbered = [[vocabulary.setdefault(token, len(vocabulary) + 1) for token in tokens(text)] for text in texts]
    sizes = [min(len(ids), n) for ids in numbered]
    lengths = sorted({*sizes} - {0})
    return Index(
        vocabulary=vocabulary,
        length_X=np.array([len(ids) for ids in numbered], np.int32),
        postings=tuple(_postings(numbered, size, longer=size == n) for size in lengths),
        n=n,
        sieve=sieve({k: [text for text, size in zip(texts, sizes, strict=True) if size == k] for k in lengths}),
    )


def encode(index: Index, turns: Sequence[tuple[int, str]]) -> Turns:
    """Number the tokens of (row, text of a turn)."""
    known = index.vocabulary.get
    ids: list[int] = []
    sizes = []
    for _, text in turns:
        words = tokens(text)
        ids.extend([known(word, 0) for word in words])
        ids.append(0)
        sizes.append(len(words) + 1)
    return Turns(
        ids_N=np.array(ids, np.int32),
        turn_N=np.repeat(np.arange(len(turns), dtype=np.int32), np.array(sizes, np.int64)),
        row_T=np.array([row for row, _ in turns], np.int32),
    )


def covers(postings: Postings, turns: Turns) -> Cover:
    """The matched tokens of every (row, text) that share an n-gram of this length."""
    at, gram = windows(postings, turns.ids_N)
    pairs = np.unique(np.stack([turns.row_T[turns.turn_N[at]].astype(np.int64), gram], axis=1), axis=0)
    found = [_covered(postings, rows, grams) for rows, grams in _chunks(postings, pairs)]
    if not found:
        empty = np.empty(0, np.int32)
        return Cover(empty, empty, empty)
    return Cover(*(np.concatenate(column) for column in zip(*found, strict=True)))


def windows(postings: Postings, ids_N: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first token, n-gram) of every window of the tokens that is an n-gram of the index."""
    keys_W = _keys(ids_N, postings.n, postings.salt)
    gram_W = np.searchsorted(postings.keys_U, keys_W)
    gram_W[gram_W == len(postings.keys_U)] = 0
    at = np.flatnonzero(postings.keys_U[gram_W] == keys_W)
    gram = gram_W[at]
    same = (_window_tokens(ids_N, at, postings.n) == postings.grams_Un[gram]).all(axis=1)
    return at[same], gram[same]


# ---- how it is done ------------------------------------------------------------------------------------------------


def _postings(numbered: Sequence[Sequence[int]], n: int, *, longer: bool) -> Postings:
    """The n-grams of the texts of n tokens, and of those that are longer."""
    chosen = [x for x, ids in enumerate(numbered) if len(ids) == n or (longer and len(ids) > n)]
    ids_N = np.array([token for x in chosen for token in (*numbered[x], 0)], np.int32)
    sizes = np.array([len(numbered[x]) + 1 for x in chosen])
    text_N = np.repeat(np.array(chosen, np.int32), sizes)
    place_N = np.arange(len(ids_N)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    begin = np.flatnonzero(place_N + n < np.repeat(sizes, sizes))  # windows that end before their text does
    salt, keys_P, order = _distinct_keys(ids_N, begin, n)
    heads = np.flatnonzero(np.diff(keys_P[order], prepend=~keys_P[order[:1]]))
    return Postings(
        n=n,
        keys_U=keys_P[order[heads]],
        grams_Un=_window_tokens(ids_N, begin[order[heads]], n),
        offsets_U1=np.append(heads, len(order)),
        text_P=text_N[begin[order]],
        place_P=place_N[begin[order]].astype(np.int32),
        salt=salt,
    )


def _distinct_keys(ids_N: Ids, begin: NDArray[np.int64], n: int) -> tuple[int, Keys, NDArray[np.int64]]:
    """The first salt under which equal keys mean equal n-grams, the keys of the windows, and their order by key."""
    salt = 0
    while True:
        keys_P = _keys(ids_N, n, salt)[begin]
        order = np.argsort(keys_P, kind="stable")
        twins = np.flatnonzero(keys_P[order[1:]] == keys_P[order[:-1]])
        left, right = (_window_tokens(ids_N, begin[order[twins + shift]], n) for shift in (0, 1))
        if (left == right).all():
            return salt, keys_P, order
        salt += 1


def _keys(ids_N: Ids, n: int, salt: int) -> Keys:
    """A 64-bit key of every window of n tokens; windows that hold a 0 share the key of no n-gram but by chance."""
    mixed = _mix(ids_N.astype(np.uint64) + np.uint64((salt << 32) & 0xFFFFFFFFFFFFFFFF))
    width = len(ids_N) - n + 1
    if width <= 0:
        return np.empty(0, np.uint64)
    keys = np.zeros(width, np.uint64)
    for step in range(n):  # Horner's rule, modulo 2**64
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys += mixed[step : step + width]
    return keys


def _mix(values: Keys) -> Keys:
    """The finaliser of splitmix64: near numbers become far ones."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _window_tokens(ids_N: Ids, begin: NDArray[np.int64], n: int) -> Ids:
    tokens_Wn: Ids = ids_N[begin[:, None] + np.arange(n)]
    return tokens_Wn


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


def _covered(postings: Postings, rows: NDArray[np.int64], grams: NDArray[np.int64]) -> tuple[Ids, Ids, Ids]:
    """(row, text, matched tokens): the union of the n-grams' spans in each text."""
    begins = postings.offsets_U1[grams]
    counts = postings.offsets_U1[grams + 1] - begins
    at = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    row, text, place = np.repeat(rows, counts), postings.text_P[at], postings.place_P[at]
    order = np.lexsort((place, text, row))
    row, text, place = row[order], text[order], place[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (text[1:] != text[:-1])
    # each span adds its tokens that lie before the next span of the same text; the last one adds all n
    added = np.full(len(row), postings.n, np.int64)
    added[:-1] = np.where(first[1:], postings.n, np.minimum(place[1:] - place[:-1], postings.n))
    heads = np.flatnonzero(first)
    return row[heads].astype(np.int32), text[heads], np.add.reduceat(added, heads).astype(np.int32)
