"""The compared text of every row of a block, and what of it tells look-alikes apart (:mod:`posttrain.data.marks`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.jaccard import Sets, distinct, joined
from posttrain.data.marks import marks, plain
from posttrain.data.shingles import U64, hash_shingles, hash_tokens, skeletons, text_hash
from posttrain.data.text import COMPARED_ROLES, Fields


@dataclass(frozen=True)
class Details:
    """What decides about N texts once they are proposed."""

    sets: Sets | None
    """Their shingles (none where cosines decide)."""
    skeletons_N: U64
    """Equal where the folded tokens are, but for numbers."""
    words_N: U64
    """Equal where the words are; this and what follows: see :class:`posttrain.data.marks.Marks`."""
    signs_N: U64
    case_N: U64
    amounts_N: U64
    shouted_N: NDArray[np.bool_]
    texts_N: U64
    """Equal where the texts are, but for Unicode form and white space."""


def compared_texts(block: pl.DataFrame, fields: Fields) -> list[str]:
    """:func:`posttrain.data.text.compared_text` of every row of a block (its column ``messages``)."""
    turn = pl.element().struct
    chosen = pl.element().filter(turn.field("role").is_in(COMPARED_ROLES[fields])).struct.field("content")
    return block.select(pl.col("messages").list.eval(chosen).list.join("\n")).to_series().to_list()


def details(texts: list[str], ngram: int | None) -> Details:
    """Everything exact comparison needs to know about some texts; shingles of ``ngram`` tokens where that is given."""
    words = hash_tokens(texts)
    found = [marks(text) for text in texts]
    return Details(
        None if ngram is None else distinct(hash_shingles(words, texts, ngram)),
        skeletons(words),
        _hashes([each.words for each in found]),
        _hashes([each.signs for each in found]),
        _hashes([each.case for each in found]),
        _hashes([each.amounts for each in found]),
        np.fromiter((each.shouted for each in found), np.bool_, len(texts)),
        _hashes([plain(text) for text in texts]),
    )


def joined_details(parts: list[Details]) -> Details:
    """The details of several blocks of texts, one after another."""
    sets = [part.sets for part in parts if part.sets is not None]
    empty: U64 = np.empty(0, np.uint64)
    return Details(
        joined(sets) if len(sets) == len(parts) else None,
        np.concatenate([empty, *(part.skeletons_N for part in parts)]),
        np.concatenate([empty, *(part.words_N for part in parts)]),
        np.concatenate([empty, *(part.signs_N for part in parts)]),
        np.concatenate([empty, *(part.case_N for part in parts)]),
        np.concatenate([empty, *(part.amounts_N for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.shouted_N for part in parts)]),
        np.concatenate([empty, *(part.texts_N for part in parts)]),
    )


def _hashes(texts: list[str]) -> U64:
    return np.fromiter(map(text_hash, texts), np.uint64, len(texts))
