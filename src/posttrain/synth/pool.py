"""The texts that are there already, and which of them a new one is like: ROUGE-L against all, exactly, in any language.

ROUGE-L of two texts of m and n tokens with a longest common subsequence of l is F = 2 l / (m + n) (Lin 2004, eq. 2 to 4, beta 1). Tokens are those of
`posttrain.data.text` with ``_`` as a blank, which on ASCII are those of the reference implementation (rouge-score); a CJK character is a token,
where the reference drops it. Every distinct token is a code point, so a text is a string and rapidfuzz's bit-parallel LCS compares millions a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from posttrain.data.text import tokens

MOST_SIMILAR = 10
"""Texts of the pool that are kept with a new one, as Self-Instruct does."""
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
    _lengths: list[int] = field(default_factory=list)

    def add(self, entry_id: str, text: str, *, made: bool) -> None:
        """Let a text stand in the pool."""
        coded = self._code(text)
        self.entries.append(Entry(entry_id, text, made))
        self._coded.append(coded)
        self._lengths.append(len(coded))

    def similar(self, text: str, but: frozenset[str] = frozenset(), most: int = MOST_SIMILAR) -> list[Similar]:
        """The texts of the pool most like this one, ``but`` some, best first; of equal ones the older first."""
        scores_P = self.scores(text)
        if but:
            scores_P[[entry.text in but for entry in self.entries]] = 0.0
        order = np.lexsort((np.arange(len(scores_P)), -scores_P))[:most]
        return [Similar(self.entries[place].id, float(scores_P[place])) for place in order.tolist()]

    def scores(self, text: str) -> NDArray[np.float64]:
        """[P] ROUGE-L of a text with every text of the pool; 0 where one of the two has no tokens."""
        coded = self._code(text)
        if not self._coded or not coded:
            return np.zeros(len(self._coded))
        common_P = process.cdist([coded], self._coded, scorer=LCSseq.similarity, dtype=np.int32)[0]
        scores_P: NDArray[np.float64] = 2.0 * common_P / (len(coded) + np.array(self._lengths))
        return scores_P

    def made(self) -> Iterable[Entry]:
        """What was not there at the start."""
        return (entry for entry in self.entries if entry.made)

    def _code(self, text: str) -> str:
        return "".join([self._codes.get(token) or self._new(token) for token in tokens(text.replace("_", " "))])

    def _new(self, token: str) -> str:
        point = 0x100 + len(self._codes)
        if point >= _SURROGATES.start:
            point += len(_SURROGATES)
        return self._codes.setdefault(token, chr(point))


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L of two texts.

    >>> rouge_l("police kill the gunman", "Police killed the gunman.")
    0.75
    """
    pool = Pool()
    pool.add("", second, made=False)
    return float(pool.scores(first)[0])
