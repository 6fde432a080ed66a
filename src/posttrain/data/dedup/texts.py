"""The compared text of every row of a block, and what of it tells look-alikes apart (:mod:`posttrain.data.marks`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.jaccard import Sets, distinct, joined
from posttrain.data.marks import letters, marks, unicode_form
from posttrain.data.shingles import U64, Shingles, TokenHashes, hash_tokens, skeletons, text_hash
from posttrain.data.text import COMPARED_ROLES, Fields


@dataclass(frozen=True)
class Details:
    """What is known of N texts once they are proposed."""

    sets: Sets | None
    """Their shingles (none where cosines decide)."""
    skeletons_N: U64
    """Equal where the folded tokens are, but for numbers."""
    letters_N: U64
    """Equal where the words are, and in a few places besides (:func:`posttrain.data.marks.letters`)."""
    texts_N: U64
    """Equal where the texts are, but for Unicode form and white space."""
    tools_N: U64
    """Equal where the tools that are offered with the texts are, in whatever order."""


@dataclass(frozen=True)
class MarkHashes:
    """The marks of N texts: equal where they are (:class:`posttrain.data.marks.Marks`)."""

    words_N: U64
    signs_N: U64
    case_N: U64
    amounts_N: U64
    shouted_N: NDArray[np.bool_]

    def at(self, places: NDArray[np.int64], count: int) -> MarkHashes:
        """These as the marks of ``count`` texts, of which they are those at ``places``; 0 for the others."""

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            wide = np.zeros(count, values.dtype)
            wide[places] = values
            return wide

        return MarkHashes(*map(spread, (self.words_N, self.signs_N, self.case_N, self.amounts_N, self.shouted_N)))


def compared_texts(block: pl.DataFrame, fields: Fields) -> list[str]:
    """:func:`posttrain.data.text.compared_text` of every row of a block (its column ``messages``)."""
    turn = pl.element().struct
    chosen = pl.element().filter(turn.field("role").is_in(COMPARED_ROLES[fields])).struct.field("content")
    return block.select(pl.col("messages").list.eval(chosen).list.join("\n")).to_series().to_list()


def tool_hashes(block: pl.DataFrame) -> U64:
    """[N]: hash of the tools of every row of a block (its column ``tools``): the same request with other tools wants another reply."""
    return np.fromiter(map(_tools_hash, block["tools"]), np.uint64, len(block))


@lru_cache(maxsize=4096)
def _tools_hash(tools: str) -> int:
    return text_hash("\n".join(sorted(json.dumps(tool, sort_keys=True) for tool in json.loads(tools))))


def details(texts: list[str], tools_N: U64, own: Callable[[TokenHashes], Shingles] | None) -> Details:
    """Everything exact comparison needs to know about some texts; ``own`` gives the shingles that are compared."""
    tokens = hash_tokens(texts)
    forms = [unicode_form(text) for text in texts]
    return Details(
        None if own is None else distinct(own(tokens)),
        skeletons(tokens),
        _hashes([letters(form) for form in forms]),
        _hashes([" ".join(form.split()) for form in forms]),
        tools_N,
    )


def mark_hashes(texts: list[str]) -> MarkHashes:
    """The marks of some texts."""
    found = [marks(text) for text in texts]
    return MarkHashes(
        _hashes([each.words for each in found]),
        _hashes([each.signs for each in found]),
        _hashes([each.case for each in found]),
        _hashes([each.amounts for each in found]),
        np.fromiter((each.shouted for each in found), np.bool_, len(texts)),
    )


def lookalikes(known: Details) -> NDArray[np.bool_]:
    """Bool [N]: texts that have the letters, or the tokens but for numbers, of another text and are not equal to it."""
    found = np.zeros(len(known.texts_N), np.bool_)
    for key_N in (known.letters_N, known.skeletons_N):
        order = np.lexsort((known.texts_N, key_N))
        key, text = key_N[order], known.texts_N[order]
        found |= np.isin(key_N, key[1:][(key[1:] == key[:-1]) & (text[1:] != text[:-1])])
    return found


def joined_details(parts: list[Details]) -> Details:
    """The details of several blocks of texts, one after another."""
    sets = [part.sets for part in parts if part.sets is not None]
    empty: U64 = np.empty(0, np.uint64)
    return Details(
        joined(sets) if len(sets) == len(parts) else None,
        np.concatenate([empty, *(part.skeletons_N for part in parts)]),
        np.concatenate([empty, *(part.letters_N for part in parts)]),
        np.concatenate([empty, *(part.texts_N for part in parts)]),
        np.concatenate([empty, *(part.tools_N for part in parts)]),
    )


def joined_marks(parts: list[MarkHashes]) -> MarkHashes:
    """The marks of several blocks of texts, one after another."""
    empty: U64 = np.empty(0, np.uint64)
    return MarkHashes(
        np.concatenate([empty, *(part.words_N for part in parts)]),
        np.concatenate([empty, *(part.signs_N for part in parts)]),
        np.concatenate([empty, *(part.case_N for part in parts)]),
        np.concatenate([empty, *(part.amounts_N for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.shouted_N for part in parts)]),
    )


def _hashes(texts: list[str]) -> U64:
    return np.fromiter(map(text_hash, texts), np.uint64, len(texts))
