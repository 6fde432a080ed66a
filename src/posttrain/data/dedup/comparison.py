"""Exact comparison of proposed rows: their similarity, and what tells look-alikes apart (:mod:`posttrain.data.marks`)."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path

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

Hashes = NDArray[np.void]
"""Records of hashes, one for every text."""
DETAILS = np.dtype([("skeleton", np.uint64), ("letters", np.uint64), ("text", np.uint64), ("tools", np.uint64)])
"""What is known of texts once they are proposed. Equal where: the folded tokens are, but for numbers; the words are, and in a few
places besides (:func:`posttrain.data.marks.letters`); the texts are, but for Unicode form and white space; the tools that are offered
are, in whatever order."""
MARKS = np.dtype([*((name, np.uint64) for name in ("words", "signs", "case", "amounts")), ("shouted", np.bool_)])
"""The marks of texts as hashes: equal where they are (:class:`posttrain.data.marks.Marks`)."""


def read_details(
    wanted_R: NDArray[np.bool_], compared: Compared, rows_file: Path, run: StepRun, *, with_sets: bool
) -> tuple[Hashes, Sets]:
    """The [DETAILS] of the wanted rows of a file, in their order, and the sets of their shingles (empty without ``with_sets``)."""
    work = partial(_details_of, compared, with_sets)
    parts = [part for _, part in map_rows(work, rows_file, ["messages", "tools"], run, "comparing", only=wanted_R)]
    known = np.concatenate([np.empty(0, DETAILS), *(details for details, _ in parts)])
    return known, joined([sets for _, sets in parts])


def _details_of(compared: Compared, with_sets: bool, block: pl.DataFrame) -> tuple[Hashes, Sets]:
    texts = compared_texts(block, compared.fields)
    words = hash_tokens(texts)
    found = np.empty(len(texts), DETAILS)
    forms = [unicode_form(text) for text in texts]
    found["skeleton"], found["tools"] = skeletons(words), tool_hashes(block)
    found["letters"] = [text_hash(letters(form)) for form in forms]
    found["text"] = [text_hash(" ".join(form.split())) for form in forms]
    return found, distinct(compared.shingles(words, texts)) if with_sets else joined([])


def read_marks(wanted_R: NDArray[np.bool_], compared: Fields, rows_file: Path, run: StepRun) -> Hashes:
    """The [MARKS] of the wanted rows of a file, in their order."""
    work = partial(_marks_of, compared)
    parts = (part for _, part in map_rows(work, rows_file, ["messages"], run, "comparing", only=wanted_R))
    return np.concatenate([np.empty(0, MARKS), *parts])


def _marks_of(compared: Fields, block: pl.DataFrame) -> Hashes:
    found = [marks(text) for text in compared_texts(block, compared)]
    hashed = np.empty(len(found), MARKS)
    for name in ("words", "signs", "case", "amounts"):
        hashed[name] = [text_hash(getattr(each, name)) for each in found]
    hashed["shouted"] = [each.shouted for each in found]
    return hashed


def tool_hashes(block: pl.DataFrame) -> U64:
    """[N]: hash of the tools of every row of a block (its column ``tools``): the same request with other tools wants another reply."""
    return np.fromiter(map(_tools_hash, block["tools"]), np.uint64, len(block))


@lru_cache(maxsize=4096)
def _tools_hash(tools: str) -> int:
    return text_hash("\n".join(sorted(json.dumps(tool, sort_keys=True) for tool in json.loads(tools))))


def lookalikes(known: Hashes) -> NDArray[np.bool_]:
    """Bool [N]: texts that have the letters, or the tokens but for numbers, of another text and are not equal to it."""
    found = np.zeros(len(known), np.bool_)
    for key_N in (known["letters"], known["skeleton"]):
        order = np.lexsort((known["text"], key_N))
        key, text = key_N[order], known["text"][order]
        found |= np.isin(key_N, key[1:][(key[1:] == key[:-1]) & (text[1:] != text[:-1])])
    return found


class Comparison:
    """Exact similarities by rank, with what was told apart by numbers and symbols remembered."""

    def __init__(
        self,
        place_N: NDArray[np.int64],
        known: Hashes,
        known_marks: Hashes | None,
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
        a, b = self._place_N[left[near]], self._place_N[right[near]]
        apart = self._known["tools"][a] != self._known["tools"][b]
        if self._marks is not None:
            apart |= self._marked_apart(self._known[a], self._known[b], self._marks[a], self._marks[b])
        apart_P = near[apart]
        np.maximum.at(self.numbers_N, right[apart_P], values[apart_P])
        counted = values.copy()
        counted[apart_P] = 0.0
        return counted

    def _marked_apart(self, one: Hashes, other: Hashes, its: Hashes, others: Hashes) -> NDArray[np.bool_]:
        other_words = (one["letters"] != other["letters"]) | (its["words"] != others["words"])
        other_case = (its["case"] != others["case"]) & ~its["shouted"] & ~others["shouted"]
        differ = other_words | (its["signs"] != others["signs"]) | other_case
        apart: NDArray[np.bool_] = differ & (~other_words | (one["skeleton"] == other["skeleton"]))
        return apart | (its["amounts"] != others["amounts"]) if self._by_meaning else apart

    def exact(self, settled: Settled) -> NDArray[np.bool_]:
        """By rank: dropped rows whose text equals their representative's."""
        dropped = np.flatnonzero(settled.dropped)
        text, place_N = self._known["text"], self._place_N
        exact_N = np.zeros(len(place_N), np.bool_)
        exact_N[dropped] = text[place_N[dropped]] == text[place_N[settled.representative_N[dropped]]]
        return exact_N
