"""The texts that are there already, and which of them a new one is like: ROUGE-L against all, exactly, in any language.

ROUGE-L is that of `posttrain.tasks.ngrams`, F = 2 l / (m + n) of texts of m and n tokens with l in common, but for ``_``, which is a blank here: so on ASCII
tokens are those of the reference implementation (rouge-score), by which Self-Instruct's 0.7 was set. Benchmarks read ``_`` as every other comparison of texts
here does, as part of its word. A CJK character is a token, where the reference drops it. Every distinct token is a code point, so a text is a string for rapidfuzz's LCS.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from posttrain.data.text import tokens
from posttrain.tasks.ngrams import rouge_l_of

MOST_SIMILAR = 10
"""Texts of the pool that are kept with a new one, as Self-Instruct does."""
FIRST_LOOK = 64
"""Texts with the largest bounds that are compared first."""
_SURROGATES = range(0xD800, 0xE000)


class Similar(NamedTuple):
    """A text of the pool, and its ROUGE-L with a new one."""

    id: str
    score: float


class Entry(NamedTuple):
    """A text of the pool. ``made``: it was not there at the start."""

    id: str
    text: str
    made: bool


@dataclass
class Pool:
    """Texts that new ones are compared with. Mutable: it grows."""

    entries: list[Entry] = field(default_factory=list)
    _codes: dict[str, str] = field(default_factory=dict)
    _coded: list[str] = field(default_factory=list)
    _lengths: array[int] = field(default_factory=lambda: array("I"))
    _places: dict[tuple[str, int], array[int]] = field(default_factory=dict)
    """(token, how many of it stand before in its text) -> the texts that have it."""

    def add(self, entry_id: str, text: str, *, made: bool) -> None:
        """Let a text stand in the pool."""
        coded = self._code(text)
        for key in _numbered_tokens(coded):
            self._places.setdefault(key, array("I")).append(len(self.entries))
        self.entries.append(Entry(entry_id, text, made))
        self._coded.append(coded)
        self._lengths.append(len(coded))

    def similar(self, text: str, but: frozenset[str] = frozenset(), most: int = MOST_SIMILAR) -> list[Similar]:
        """The texts of the pool most like this one, ``but`` some, best first; of equal ones the older first. Exact.

        A common subsequence is at most as long as what two texts have in common as bags of tokens, which the index knows of all of them: only
        texts whose bound reaches the score of the last of the best are compared.
        """
        if not self.entries:
            return []
        coded = self._code(text)
        bounds_P = self._bounds(coded)
        if but:
            bounds_P[[place for place, entry in enumerate(self.entries) if entry.text in but]] = 0.0
        scores_P = np.zeros(len(bounds_P))
        first = np.argpartition(-bounds_P, min(FIRST_LOOK, len(bounds_P)) - 1)[:FIRST_LOOK]
        self._compare(coded, first, bounds_P, scores_P)
        least = np.sort(scores_P[first])[-most] if len(first) >= most else 0.0
        rest_P = bounds_P >= max(least, np.finfo(np.float64).tiny)
        rest_P[first] = False
        self._compare(coded, np.flatnonzero(rest_P), bounds_P, scores_P)
        found = np.flatnonzero(scores_P > 0)
        others = np.flatnonzero(scores_P[: most + len(found)] == 0)[:most]
        places = np.concatenate([found, others])
        order = places[np.lexsort((places, -scores_P[places]))][:most]
        return [Similar(self.entries[place].id, float(scores_P[place])) for place in order.tolist()]

    def _bounds(self, coded: str) -> NDArray[np.float64]:
        """[P] upper bound of ROUGE-L with every text of the pool."""
        known = [np.frombuffer(self._places[key], np.uint32) for key in _numbered_tokens(coded) if key in self._places]
        if not known:
            return np.zeros(len(self._coded))
        common_P = np.bincount(np.concatenate(known), minlength=len(self._coded))
        bounds_P: NDArray[np.float64] = 2.0 * common_P / (len(coded) + np.frombuffer(self._lengths, np.uint32))
        return bounds_P

    def _compare(
        self, coded: str, places: NDArray[np.int64], bounds_P: NDArray[np.float64], scores_P: NDArray[np.float64]
    ) -> None:
        """Write the scores of these places, as far as their bounds are not 0."""
        places = places[bounds_P[places] > 0]
        if len(places):
            texts = [self._coded[place] for place in places.tolist()]
            common = process.cdist([coded], texts, scorer=LCSseq.similarity, dtype=np.int32)[0]
            scores_P[places] = 2.0 * common / (len(coded) + np.array([len(text) for text in texts]))

    def scores(self, text: str) -> NDArray[np.float64]:
        """[P] ROUGE-L of a text with every text of the pool; 0 where one of the two has no tokens."""
        coded = self._code(text)
        if not self._coded or not coded:
            return np.zeros(len(self._coded))
        common_P = process.cdist([coded], self._coded, scorer=LCSseq.similarity, dtype=np.int32)[0]
        scores_P: NDArray[np.float64] = 2.0 * common_P / (len(coded) + np.frombuffer(self._lengths, np.uint32))
        return scores_P

    def made(self) -> Iterable[Entry]:
        """What was not there at the start."""
        return (entry for entry in self.entries if entry.made)

    def _code(self, text: str) -> str:
        return "".join([self._codes.get(token) or self._new(token) for token in _tokens(text)])

    def _new(self, token: str) -> str:
        point = 0x100 + len(self._codes)
        if point >= _SURROGATES.start:
            point += len(_SURROGATES)
        return self._codes.setdefault(token, chr(point))


def _numbered_tokens(coded: str) -> Iterator[tuple[str, int]]:
    """Every token with the number of equal ones before it."""
    seen: dict[str, int] = {}
    for token in coded:
        seen[token] = seen.get(token, -1) + 1
        yield token, seen[token]


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L of two texts.

    >>> rouge_l("police kill the gunman", "Police killed the gunman.")
    0.75
    """
    return rouge_l_of(_tokens(first), _tokens(second))


def _tokens(text: str) -> list[str]:
    return tokens(text.replace("_", " "))
