"""n-grams that many rows share: a passage or the description of a tool that stands in front of many prompts.

Two tasks under one description are alike by the description alone. A passage that stands in more than ``common_share`` of the rows (and in
:data:`LEAST` of them) says nothing about which of them are duplicates, so its n-grams are left out of every row that has others. A
passage is a run of :data:`PASSAGE` n-grams: common phrases change no decision and stay. The share is taken over distinct texts, in a
sample that the content ids choose: it depends on neither the order of the rows nor the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.greedy import Order
from posttrain.data.engine import map_rows
from posttrain.data.marks import plain
from posttrain.data.rows import compared_texts
from posttrain.data.shingles import U64, Shingles, TokenHashes, hash_shingles, hash_tokens, offsets_of, text_hash
from posttrain.data.steps import StepRun
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
    edges = np.flatnonzero(np.diff(~covered_T, prepend=False, append=False)).reshape(-1, 2)
    ends = [begin for begin, _ in spans[1:]] + [len(written)]
    return " ".join(written[spans[first][0] : ends[last - 1]].strip() for first, last in edges.tolist())


@dataclass(frozen=True)
class Sample:
    """The rows in which n-grams are counted: those with the smallest content ids."""

    fields: Fields
    n: int
    last: str
    """The largest of these ids."""

    def places(self, block: pl.DataFrame, texts: Sequence[str]) -> list[int]:
        """Which rows of a block (its column ``id``) are in the sample, without blank ones; ``texts``: those that are compared."""
        chosen = (block["id"] <= self.last).arg_true().to_list()
        return [place for place in chosen if texts[place] and not texts[place].isspace()]

    def texts(self, block: pl.DataFrame) -> list[str]:
        """The compared texts of the sample that are in a block (``id``, ``messages``)."""
        chosen = block.filter(pl.col("id") <= self.last)
        texts = compared_texts(chosen, self.fields)
        return [texts[place] for place in self.places(chosen, texts)]

    def ngrams(self, block: pl.DataFrame) -> dict[int, U64]:
        """Hash of a text -> its n-grams, in order."""
        texts = self.texts(block)
        return self.among(range(len(texts)), texts, hash_shingles(hash_tokens(texts), texts, self.n))

    def among(self, places: Iterable[int], texts: Sequence[str], shingles: Shingles) -> dict[int, U64]:
        """The same for some of the texts whose shingles are known."""
        bounds = shingles.offsets_N.tolist()
        return {  # copies, so that the others are not kept
            text_hash(plain(texts[place])): shingles.hashes_S[bounds[place] : bounds[place + 1]].copy()
            for place in places
        }


def sample_of(order: Order, fields: Fields, n: int, share: float) -> Sample | None:
    """The sample of a file; None where no n-gram can be common."""
    if share >= 1 or len(order.ids) < LEAST:
        return None
    ids = order.ids.sort()
    return Sample(fields, n, ids[min(SAMPLE, len(ids)) - 1])


def common_of(seen: Mapping[int, U64], share: float, sample: Sample, rows_file: Path, run: StepRun) -> Common:
    """What more than ``share`` of the seen texts have, and :data:`LEAST` of them."""
    hashes_S = np.concatenate([np.empty(0, np.uint64), *seen.values()])
    text_S = np.repeat(np.arange(len(seen)), [len(each) for each in seen.values()])
    grams, counts = _texts_with(hashes_S, text_S, max(LEAST, share * len(seen)))
    found = _runs(Common(grams, sample.n).among(hashes_S), hashes_S, text_S)
    if not found:
        return Common()
    hashes_G = np.unique(np.concatenate(found))
    shares = (counts[np.searchsorted(grams, hashes_G)] / len(seen)).tolist()
    common = Common(hashes_G, sample.n)
    runs = [
        each
        for _, part in map_rows(partial(_longest, sample, common), rows_file, ["id", "messages"], run, "passages")
        for each in part
    ]
    greater = len({each.text_key for each in runs if each.greater}) / len(seen)
    return Common(hashes_G, sample.n, _passages(runs, dict(zip(hashes_G.tolist(), shares, strict=True))), greater)


def _texts_with(hashes_S: U64, text_S: NDArray[np.int64], least: float) -> tuple[U64, NDArray[np.int64]]:
    """(the n-grams that so many texts have, sorted; how many have each)."""
    grams, times = np.unique(hashes_S, return_counts=True)
    near = Common(grams[times >= least]).among(hashes_S)  # few, of which a text may have one several times
    order = np.lexsort((text_S[near], hashes_S[near]))
    hashes, text = hashes_S[near][order], text_S[near][order]
    once = np.ones(len(hashes), np.bool_)
    once[1:] = (hashes[1:] != hashes[:-1]) | (text[1:] != text[:-1])
    grams, counts = np.unique(hashes[once], return_counts=True)
    return grams[counts >= least], counts[counts >= least]


def _runs(common_S: NDArray[np.bool_], hashes_S: U64, text_S: NDArray[np.int64]) -> list[U64]:
    """The n-grams of every passage of some texts, given all of their n-grams in order."""
    place_S = np.arange(len(hashes_S)) + text_S  # apart from those of the next text
    first, last = (
        np.flatnonzero(np.diff(np.bincount(place_S, common_S) > 0, prepend=False, append=False)).reshape(-1, 2).T
    )
    long = last - first >= PASSAGE
    return [hashes_S[begin:end] for begin, end in np.searchsorted(place_S, np.stack((first, last), 1)[long]).tolist()]


@dataclass(frozen=True)
class _Run:
    """The longest run of common n-grams of a text."""

    grams: U64
    text: str
    text_key: int
    """Hash of the text it stands in."""
    greater: bool
    """Whether common n-grams are the greater part of the text."""


def _longest(sample: Sample, common: Common, block: pl.DataFrame) -> list[_Run]:
    found = []
    texts = sample.texts(block)
    shingles = hash_shingles(hash_tokens(texts), texts, common.n)
    bounds = shingles.offsets_N.tolist()
    common_S = common.among(shingles.hashes_S)
    for text, begin, end in zip(texts, bounds, bounds[1:], strict=False):
        edges = np.flatnonzero(np.diff(common_S[begin:end], prepend=False, append=False)).reshape(-1, 2)
        if len(edges):
            first, last = edges[np.diff(edges, axis=1).argmax()].tolist()
            written, spans = token_spans(text)
            passage = written[spans[first][0] : spans[min(last + common.n - 2, len(spans) - 1)][1]] if spans else text
            grams = shingles.hashes_S[begin + first : begin + last]
            found.append(
                _Run(grams, passage, text_hash(plain(text)), bool(2 * common_S[begin:end].sum() > end - begin))
            )
    return found


def _passages(runs: Sequence[_Run], frequency: dict[int, float]) -> tuple[Passage, ...]:
    """Of the runs those that weigh most (n-grams times rows), each with n-grams of its own."""
    weighed: dict[tuple[int, ...], tuple[float, str]] = {}
    for run in runs:
        grams = tuple(run.grams.tolist())
        weighed[grams] = max(weighed.get(grams, (0.0, "")), (sum(map(frequency.__getitem__, grams)), run.text))
    listed: set[int] = set()
    found: list[Passage] = []
    for grams, (_, text) in sorted(weighed.items(), key=lambda item: (-item[1][0], item[1][1])):
        if len(found) < SHOWN_PASSAGES and len(listed.intersection(grams)) < len(grams) / 2:
            listed.update(grams)
            share = float(np.median([frequency[gram] for gram in grams]))
            found.append(Passage(" ".join(text.split())[:_SHOWN_CHARACTERS], round(share, 4)))
    return tuple(found)
