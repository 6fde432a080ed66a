"""Exact comparison of proposed rows: their similarity, and what tells look-alikes apart (:mod:`posttrain.data.marks`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.greedy import Ranks, Settled
from posttrain.data.dedup.jaccard import Sets, distinct, jaccards, joined
from posttrain.data.dedup.passages import Compared
from posttrain.data.engine import map_rows
from posttrain.data.marks import letters, marks, unicode_form
from posttrain.data.rows import compared_texts
from posttrain.data.shingles import U64, hash_tokens, skeletons, text_hash
from posttrain.data.steps import StepRun
from posttrain.data.text import Fields

Hashes = TypeVar("Hashes", "Details", "Marks")


@dataclass(frozen=True)
class Details:
    """What is known of N texts once they are proposed."""

    skeletons_N: U64
    """Equal where the folded tokens are, but for numbers."""
    letters_N: U64
    """Equal where the words are, and in a few places besides (:func:`posttrain.data.marks.letters`)."""
    texts_N: U64
    """Equal where the texts are, but for Unicode form and white space."""
    tools_N: U64
    """Equal where the tools that are offered with the texts are, in whatever order."""


@dataclass(frozen=True)
class Marks:
    """The marks of N texts as hashes: equal where they are (:class:`posttrain.data.marks.Marks`)."""

    words_N: U64
    signs_N: U64
    case_N: U64
    amounts_N: U64
    shouted_N: NDArray[np.bool_]


def read_details(
    wanted_R: NDArray[np.bool_], compared: Compared, rows_file: Path, run: StepRun, *, with_sets: bool
) -> tuple[Details, Sets]:
    """The details of the wanted rows of a file, in their order, and the sets of their shingles (empty without ``with_sets``)."""
    work = partial(_details_of, compared, with_sets)
    parts = [part for _, part in map_rows(work, rows_file, ["messages", "tools"], run, "comparing", only=wanted_R)]
    known = [details for details, _ in parts] or [Details(*[np.empty(0, np.uint64)] * 4)]
    return _stacked(known), joined([sets for _, sets in parts])


def _details_of(compared: Compared, with_sets: bool, block: pl.DataFrame) -> tuple[Details, Sets]:
    texts = compared_texts(block, compared.fields)
    words = hash_tokens(texts)
    sets = distinct(compared.shingles(words, texts)) if with_sets else joined([])
    forms = [unicode_form(text) for text in texts]
    whole = _hashes([" ".join(form.split()) for form in forms])
    return Details(skeletons(words), _hashes([letters(form) for form in forms]), whole, tool_hashes(block)), sets


def read_marks(wanted_R: NDArray[np.bool_], compared: Fields, rows_file: Path, run: StepRun) -> Marks:
    """The marks of the wanted rows of a file, in their order."""
    work = partial(_marks_of, compared)
    parts = [part for _, part in map_rows(work, rows_file, ["messages"], run, "comparing", only=wanted_R)]
    return _stacked(parts or [_marks_of_texts([])])


def _marks_of(compared: Fields, block: pl.DataFrame) -> Marks:
    return _marks_of_texts(compared_texts(block, compared))


def _marks_of_texts(texts: Sequence[str]) -> Marks:
    found = [marks(text) for text in texts]
    return Marks(
        _hashes([each.words for each in found]),
        _hashes([each.signs for each in found]),
        _hashes([each.case for each in found]),
        _hashes([each.amounts for each in found]),
        np.fromiter((each.shouted for each in found), np.bool_, len(found)),
    )


def spread(known: Marks, places: NDArray[np.int64], count: int) -> Marks:
    """Marks of ``count`` texts, of which the known ones stand at ``places``; 0 for the others."""

    def wide(values: NDArray[Any]) -> NDArray[Any]:
        found = np.zeros(count, values.dtype)
        found[places] = values
        return found

    return Marks(*(wide(getattr(known, field.name)) for field in fields(Marks)))


def _stacked(parts: Sequence[Hashes]) -> Hashes:
    """The hashes of several blocks of texts, one after another."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(kind)))


def tool_hashes(block: pl.DataFrame) -> U64:
    """[N]: hash of the tools of every row of a block (its column ``tools``): the same request with other tools wants another reply."""
    return np.fromiter(map(_tools_hash, block["tools"]), np.uint64, len(block))


@lru_cache(maxsize=4096)
def _tools_hash(tools: str) -> int:
    return text_hash("\n".join(sorted(json.dumps(tool, sort_keys=True) for tool in json.loads(tools))))


def _hashes(texts: list[str]) -> U64:
    return np.fromiter(map(text_hash, texts), np.uint64, len(texts))


def lookalikes(known: Details) -> NDArray[np.bool_]:
    """Bool [N]: texts that have the letters, or the tokens but for numbers, of another text and are not equal to it."""
    found = np.zeros(len(known.texts_N), np.bool_)
    for key_N in (known.letters_N, known.skeletons_N):
        order = np.lexsort((known.texts_N, key_N))
        key, text = key_N[order], known.texts_N[order]
        found |= np.isin(key_N, key[1:][(key[1:] == key[:-1]) & (text[1:] != text[:-1])])
    return found


class Comparison:
    """Exact similarities by rank, with what was told apart by numbers and symbols remembered."""

    def __init__(
        self,
        place_N: NDArray[np.int64],
        known: Details,
        known_marks: Marks | None,
        threshold: float,
        *,
        by_meaning: bool = False,
    ) -> None:
        self._place_N, self._known, self._marks = place_N, known, known_marks
        self._threshold, self._by_meaning = threshold, by_meaning
        self.numbers_N = np.zeros(len(place_N))

    def jaccard(self, sets: Sets, left: Ranks, right: Ranks) -> NDArray[np.float64]:
        """The Jaccard similarity of every pair; 0 where two similar texts are told apart."""
        return self.tell_apart(left, right, jaccards(sets, self._place_N[left], self._place_N[right]))

    def tell_apart(self, left: Ranks, right: Ranks, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The similarities, with 0 where two similar texts have the same words and other numbers, symbols or case of code.

        Texts that are similar by their meaning need not have the same words: there the amounts must be the same. Texts with other
        tools beside them are always told apart.
        """
        near = np.flatnonzero(values >= self._threshold)
        known, a, b = self._known, self._place_N[left[near]], self._place_N[right[near]]
        apart = known.tools_N[a] != known.tools_N[b]
        if self._marks is not None:
            apart |= self._marked_apart(self._marks, a, b)
        apart_P = near[apart]
        np.maximum.at(self.numbers_N, right[apart_P], values[apart_P])
        counted = values.copy()
        counted[apart_P] = 0.0
        return counted

    def _marked_apart(self, known_marks: Marks, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        known, its = self._known, known_marks
        other_words = (known.letters_N[a] != known.letters_N[b]) | (its.words_N[a] != its.words_N[b])
        other_case = (its.case_N[a] != its.case_N[b]) & ~its.shouted_N[a] & ~its.shouted_N[b]
        other = other_words | (its.signs_N[a] != its.signs_N[b]) | other_case
        apart: NDArray[np.bool_] = other & (~other_words | (known.skeletons_N[a] == known.skeletons_N[b]))
        if self._by_meaning:
            apart |= its.amounts_N[a] != its.amounts_N[b]
        return apart

    def exact(self, settled: Settled) -> NDArray[np.bool_]:
        """By rank: dropped rows whose text equals their representative's."""
        dropped = np.flatnonzero(settled.dropped)
        texts, place = self._known.texts_N, self._place_N
        exact_N = np.zeros(len(place), np.bool_)
        exact_N[dropped] = texts[place[dropped]] == texts[place[settled.representative_N[dropped]]]
        return exact_N
