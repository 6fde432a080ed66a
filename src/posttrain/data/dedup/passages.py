"""n-grams that many rows share: a passage or the description of a tool that stands in front of many prompts.

Two tasks under one description are alike by the description alone. A passage that stands in more than ``common_share`` of the rows (and in
:data:`LEAST` of them) says nothing about which of them are duplicates, so its n-grams are left out of every row that has others. A
passage is a run of :data:`PASSAGE` n-grams: common phrases change no decision and stay. The share is taken over distinct texts, in a
sample that the content ids choose: it depends on neither the order of the rows nor the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.greedy import firsts
from posttrain.data.marks import plain
from posttrain.data.rows import compared_texts, scan_rows
from posttrain.data.shingles import U64, Shingles, TokenHashes, hash_shingles, hash_tokens, offsets_of
from posttrain.data.text import Fields, token_spans

SAMPLE = 2048
"""Texts in which n-grams are counted."""
LEAST = 10
"""Texts that share an n-gram before it may be common."""
PASSAGE = 10
"""n-grams in a row that make a passage."""
SHOWN_PASSAGES, _SHOWN_CHARACTERS = 3, 200
_TABLE_BITS = 20


@dataclass(frozen=True)
class Passage:
    """A run of common n-grams: its text, and the share of the texts that have it."""

    text: str
    share: float


@dataclass(frozen=True)
class Common:
    """What is left out."""

    hashes_G: U64 = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hashes of the n-grams, sorted."""
    n: int = 1
    """Tokens of an n-gram."""
    passages: tuple[Passage, ...] = ()
    """The passages they make, the weightiest first."""
    rows: float = 0.0
    """Share of the texts that are made of them for the greater part."""

    def among(self, hashes_S: U64) -> NDArray[np.bool_]:
        """Which of some n-grams are common."""
        found = np.zeros(len(hashes_S), np.bool_)
        if len(self.hashes_G):
            shift = np.uint64(64 - _TABLE_BITS)
            table = np.zeros(1 << _TABLE_BITS, np.bool_)
            table[self.hashes_G >> shift] = True
            near = np.flatnonzero(table[hashes_S >> shift])
            place = np.minimum(np.searchsorted(self.hashes_G, hashes_S[near]), len(self.hashes_G) - 1)
            found[near] = self.hashes_G[place] == hashes_S[near]
        return found

    def without(self, shingles: Shingles) -> Shingles:
        """The n-grams of every text that are not common; all of them where nothing else is left."""
        sizes_N = np.diff(shingles.offsets_N)
        if not len(self.hashes_G) or not len(sizes_N):
            return shingles
        own_S = ~self.among(shingles.hashes_S)
        own_N = np.add.reduceat(own_S, shingles.offsets_N[:-1], dtype=np.int64)
        own_S |= np.repeat(own_N == 0, sizes_N)
        return Shingles(shingles.hashes_S[own_S], offsets_of(np.where(own_N == 0, sizes_N, own_N)))

    def cut(self, texts: Sequence[str]) -> list[str]:
        """The texts without the tokens that common n-grams cover; a text of nothing else stays as it is."""
        if not len(self.hashes_G):
            return list(texts)
        words = hash_tokens(texts)
        shingles = hash_shingles(words, texts, self.n)
        bounds = shingles.offsets_N.tolist()
        common_S = self.among(shingles.hashes_S)
        return [
            _rest(text, common_S[begin:end], self.n) if common_S[begin:end].any() else text
            for text, begin, end in zip(texts, bounds, bounds[1:], strict=False)
        ]


@dataclass(frozen=True)
class Compared:
    """What of a row is compared: the n-grams of its turns, without the common ones."""

    fields: Fields
    n: int
    common: Common = field(default_factory=Common)

    def shingles(self, words: TokenHashes, texts: Sequence[str]) -> Shingles:
        """Those of some texts, given their tokens."""
        return self.common.without(hash_shingles(words, texts, self.n))


def _rest(text: str, common_S: NDArray[np.bool_], n: int) -> str:
    written, spans = token_spans(text)
    covered_T = np.zeros(len(spans), np.bool_)
    for first in np.flatnonzero(common_S).tolist():
        covered_T[first : first + n] = True
    if covered_T.all():
        return text
    ends = [begin for begin, _ in spans[1:]] + [len(written)]
    rest = _stretches(~covered_T).tolist()
    return " ".join(written[spans[first][0] : ends[last - 1]].strip() for first, last in rest)


def common_of(rows_file: Path, ids: pl.Series, fields: Fields, n: int, share: float) -> Common:
    """What more than ``share`` of the rows have, and :data:`LEAST` of them, in the sample of those with the smallest content ids."""
    if share >= 1 or len(ids) < LEAST:
        return Common()
    last = ids.sort()[min(SAMPLE, len(ids)) - 1]
    block = scan_rows(rows_file).select("id", "messages").filter(pl.col("id") <= last).collect()
    texts = [text for text in compared_texts(block, fields) if text and not text.isspace()]
    shingles = hash_shingles(hash_tokens(texts), texts, n)
    grams = np.split(shingles.hashes_S, shingles.offsets_N[1:-1])
    distinct = dict(zip(map(plain, texts), grams, strict=False))
    hashes_S = np.concatenate([np.empty(0, np.uint64), *distinct.values()])
    text_S = np.repeat(np.arange(len(distinct)), [len(each) for each in distinct.values()])
    often, counts = _texts_with(hashes_S, text_S, max(LEAST, share * len(distinct)))
    found = _passages_in(Common(often, n).among(hashes_S), hashes_S, text_S)
    if not found:
        return Common()
    hashes_G = np.unique(np.concatenate(found))
    shares = (counts[np.searchsorted(often, hashes_G)] / len(distinct)).tolist()
    common_S = np.split(Common(hashes_G).among(shingles.hashes_S), shingles.offsets_N[1:-1])
    runs = [run for each in zip(texts, grams, common_S, strict=True) if (run := _longest(*each, n)) is not None]
    greater = len({run.key for run in runs if run.greater}) / len(distinct)
    return Common(hashes_G, n, _weightiest(runs, dict(zip(hashes_G.tolist(), shares, strict=True))), greater)


def _texts_with(hashes_S: U64, text_S: NDArray[np.int64], least: float) -> tuple[U64, NDArray[np.int64]]:
    """(the n-grams that so many texts have, sorted; how many have each)."""
    grams, times = np.unique(hashes_S, return_counts=True)
    near = Common(grams[times >= least]).among(hashes_S)  # few, of which a text may have one several times
    order = np.lexsort((text_S[near], hashes_S[near]))
    hashes, text = hashes_S[near][order], text_S[near][order]
    grams, counts = np.unique(hashes[firsts(hashes) | firsts(text)], return_counts=True)
    return grams[counts >= least], counts[counts >= least]


def _passages_in(common_S: NDArray[np.bool_], hashes_S: U64, text_S: NDArray[np.int64]) -> list[U64]:
    """The n-grams of every passage of some texts, given all of their n-grams in order."""
    place_S = np.arange(len(hashes_S)) + text_S  # apart from those of the next text
    ends = _stretches(np.bincount(place_S, common_S) > 0)
    long = ends[np.diff(ends, axis=1)[:, 0] >= PASSAGE]
    return [hashes_S[begin:end] for begin, end in np.searchsorted(place_S, long).tolist()]


def _stretches(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[stretches, 2]: where every stretch of set flags begins and ends."""
    return np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2)


class _Run(NamedTuple):
    """The longest run of common n-grams of a text."""

    grams: tuple[int, ...]
    text: str
    key: str
    """Equal for equal texts."""
    greater: bool
    """Whether common n-grams are the greater part of the text."""


def _longest(text: str, grams: U64, common_S: NDArray[np.bool_], n: int) -> _Run | None:
    stretches = _stretches(common_S)
    if not len(stretches):
        return None
    first, last = stretches[np.diff(stretches, axis=1).argmax()].tolist()
    written, spans = token_spans(text)
    passage = written[spans[first][0] : spans[min(last + n - 2, len(spans) - 1)][1]] if spans else text
    return _Run(tuple(grams[first:last].tolist()), passage, plain(text), bool(2 * common_S.sum() > len(common_S)))


def _weightiest(runs: Sequence[_Run], frequency: dict[int, float]) -> tuple[Passage, ...]:
    """Of the runs those that weigh most (n-grams times rows), each with n-grams of its own."""
    weighed: dict[tuple[int, ...], tuple[float, str]] = {}
    for run in runs:
        weight = sum(map(frequency.__getitem__, run.grams))
        weighed[run.grams] = max(weighed.get(run.grams, (0.0, "")), (weight, run.text))
    listed: set[int] = set()
    found: list[Passage] = []
    for grams, (_, text) in sorted(weighed.items(), key=lambda item: (-item[1][0], item[1][1])):
        if len(found) < SHOWN_PASSAGES and len(listed.intersection(grams)) < len(grams) / 2:
            listed.update(grams)
            share = float(np.median([frequency[gram] for gram in grams]))
            found.append(Passage(" ".join(text.split())[:_SHOWN_CHARACTERS], round(share, 4)))
    return tuple(found)
