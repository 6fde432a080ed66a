"""The compared text of every row of a block, and what of it tells look-alikes apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.dedup.jaccard import Sets, distinct, joined
from posttrain.data.shingles import CHINESE_NUMERALS, U64, hash_shingles, hash_tokens, skeletons, text_hash
from posttrain.data.text import COMPARED_ROLES, Fields, normalised

_DIGITS = rf"\d{CHINESE_NUMERALS}"
_OPERATORS = r"\-+*/×÷^%=<>≤≥≠±√"
_BLANKS = r"[^\S\n]*"
_QUANTITY = re.compile(
    rf"([{_DIGITS}{_OPERATORS}](?:(?<=[{_DIGITS}])[{_DIGITS}]*|(?<=[{_OPERATORS}])(?={_BLANKS}\d)))"
    rf"(?:(?<=\d){_BLANKS}([{_OPERATORS}]))?"
)
"""A number, or an operator before a digit; then an operator behind a digit. One set of characters begins every match: the
search runs over all others three times as fast as over alternatives."""


@dataclass(frozen=True)
class Details:
    """What decides about N texts once they are proposed."""

    sets: Sets | None
    """Their shingles (none where cosines decide)."""
    skeletons_N: U64
    """Equal where texts differ in nothing but numbers."""
    quantities_N: U64
    """Equal where the numbers, and the operators beside them, are the same."""
    texts_N: U64
    """Equal where the texts are, but for case, width and white space."""


def compared_texts(block: pl.DataFrame, fields: Fields) -> list[str]:
    """:func:`posttrain.data.text.compared_text` of every row of a block (its column ``messages``)."""
    turn = pl.element().struct
    chosen = pl.element().filter(turn.field("role").is_in(COMPARED_ROLES[fields])).struct.field("content")
    return block.select(pl.col("messages").list.eval(chosen).list.join("\n")).to_series().to_list()


def plain(text: str) -> str:
    """The text as exact comparison sees it: NFKC, casefold, runs of white space as one blank."""
    return " ".join(normalised(text).split())


def details(texts: list[str], ngram: int | None) -> Details:
    """Everything exact comparison needs to know about some texts; shingles of ``ngram`` tokens where that is given."""
    words = hash_tokens(texts)
    normal = [normalised(text) for text in texts]
    return Details(
        None if ngram is None else distinct(hash_shingles(words, texts, ngram)),
        skeletons(words),
        _hashes([_quantities(text) for text in normal]),
        _hashes([" ".join(text.split()) for text in normal]),
    )


def _quantities(normal: str) -> str:
    """The numbers of a normalised text and the operators directly beside one, in order."""
    return " ".join([part for pair in _QUANTITY.findall(normal) for part in pair if part])


def joined_details(parts: list[Details]) -> Details:
    """The details of several blocks of texts, one after another."""
    sets = [part.sets for part in parts if part.sets is not None]
    empty: NDArray[np.uint64] = np.empty(0, np.uint64)
    return Details(
        joined(sets) if len(sets) == len(parts) else None,
        np.concatenate([empty, *(part.skeletons_N for part in parts)]),
        np.concatenate([empty, *(part.quantities_N for part in parts)]),
        np.concatenate([empty, *(part.texts_N for part in parts)]),
    )


def _hashes(texts: list[str]) -> U64:
    return np.fromiter(map(text_hash, texts), np.uint64, len(texts))
