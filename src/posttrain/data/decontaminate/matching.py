"""Which rows of a block hold which evaluation prompts, and how much of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.decontaminate.benchmarks import Prompt
from posttrain.data.decontaminate.config import ShortPrompts
from posttrain.data.decontaminate.index import Index, Postings, Turns, build, covers, encode, windows
from posttrain.data.decontaminate.sieve import passing
from posttrain.data.marks import marks
from posttrain.data.text import CJK, COMPARED_ROLES, Fields, token_spans, tokens

ALONE_BELOW = 4
"""A short prompt of fewer words must stand alone; two CJK characters count as one word."""

_PIECE = re.compile(r'[\n\r]+|[.!?:;]+(?=[\s"\'”’)\]]|$)|[。！？：；…]+|["“”«»「」『』]')
"""Where a sentence, a line or a quotation ends."""
_ONE_CJK = re.compile(rf"[{CJK}]")

HITS = {"row": pl.UInt32, "text": pl.UInt32, "overlap": pl.Float64}
"""One evaluation text in one row: the row's place, the text's number, the share of its tokens that stand in the row."""


@dataclass(frozen=True)
class Matcher:
    """Finds evaluation texts in rows: the index, and what is compared."""

    index: Index
    fields: Fields
    limit: float
    alone: Mapping[int, tuple[str, ...]]
    """Short texts that count only where they stand alone, and their tokens."""
    amounts: Mapping[int, str]
    """The numbers and operators of the short texts."""

    def __call__(self, block: pl.DataFrame) -> pl.DataFrame:
        """All [HITS] of a block over the limit, and the highest of each row, of rows by their place in the block."""
        turns = turns_of(block, self.fields)
        near = passing(self.index.sieve, [turn for _, turn in turns])
        turns = [turns[number] for number in near.tolist()]
        encoded = encode(self.index, turns)
        found = [self._hits(postings, encoded, turns) for postings in self.index.postings]
        hits = pl.concat([pl.DataFrame(schema=HITS), *found]).sort("row", "text")
        best = pl.col("overlap") == pl.col("overlap").max().over("row")
        return hits.filter((pl.col("overlap") > self.limit) | best)

    def _hits(self, postings: Postings, encoded: Turns, turns: Sequence[tuple[int, str]]) -> pl.DataFrame:
        if postings.n == self.index.n:
            cover = covers(postings, encoded)
            overlap = cover.covered / self.index.length_X[cover.text]
            return pl.DataFrame({"row": cover.row, "text": cover.text, "overlap": overlap}, schema=HITS)
        row, text = self._short(postings, encoded, turns)
        return pl.DataFrame({"row": row, "text": text, "overlap": np.ones(len(row))}, schema=HITS)

    def _short(
        self, postings: Postings, encoded: Turns, turns: Sequence[tuple[int, str]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, text) of the short texts that stand in a row, with their numbers and operators."""
        at, gram = windows(postings, encoded.ids_N)
        begins = np.searchsorted(encoded.turn_N, encoded.turn_N[at])
        pairs: set[tuple[int, int]] = set()
        for turn, found, first in zip(encoded.turn_N[at].tolist(), gram.tolist(), (at - begins).tolist(), strict=True):
            texts = postings.text_P[postings.offsets_U1[found] : postings.offsets_U1[found + 1]].tolist()
            row, content = turns[turn]
            written = _amounts(content, first, postings.n)
            held = [
                text
                for text in texts
                if written == self.amounts[text] and (text not in self.alone or stands_alone(content, self.alone[text]))
            ]
            pairs.update((row, text) for text in held)
        rows_texts = np.array(sorted(pairs), np.int64).reshape(-1, 2)
        return rows_texts[:, 0], rows_texts[:, 1]


@lru_cache(1 << 12)
def _amounts(text: str, first: int, count: int) -> str:
    """The numbers and operators of some tokens of a text as they are written: tokens alone take 2³ for 23."""
    written, spans = token_spans(text)
    return marks(written[spans[first][0] : spans[first + count - 1][1]]).amounts if count else ""


def matcher(
    prompts: Sequence[Prompt], *, n: int, limit: float, fields: Fields, short_prompts: ShortPrompts
) -> tuple[Matcher, list[tuple[int, int]]]:
    """The matcher of all turns of all prompts, and for each of its texts (number of the prompt, number of the turn)."""
    owners = [(number, turn) for number, prompt in enumerate(prompts) for turn in range(len(prompt.turns))]
    texts = [prompts[number].turns[turn] for number, turn in owners]
    found = [tuple(tokens(text)) for text in texts]
    bound = {
        text: its
        for text, its in enumerate(found)
        if len(its) < n and (short_prompts == "alone" or words(its) < ALONE_BELOW)
    }
    amounts = {text: _amounts(texts[text], 0, len(its)) for text, its in enumerate(found) if len(its) < n}
    return Matcher(build(texts, n), fields, limit, bound, amounts), owners


def turns_of(block: pl.DataFrame, fields: Fields) -> list[tuple[int, str]]:
    """(row by its place in the block, text) of every turn that is compared."""
    turns = block.select("messages").with_row_index("row").explode("messages").unnest("messages")
    return turns.filter(pl.col("role").is_in(COMPARED_ROLES[fields])).select("row", "content").rows()


def words(found: Sequence[str]) -> float:
    """Length in words: two CJK characters count as one."""
    return sum(0.5 if _ONE_CJK.fullmatch(token) else 1.0 for token in found)


def stands_alone(turn: str, wanted: Sequence[str]) -> bool:
    """Whether a turn, or whole sentences, lines or quotations of it that follow one another, have just these tokens."""
    pieces = [tokens(piece) for piece in _PIECE.split(turn)]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = {0, *ends.tolist()}
    everything = [token for piece in pieces for token in piece]
    size = len(wanted)
    return any(
        start + size in starts and everything[start : start + size] == list(wanted)
        for start in starts
        if start + size <= len(everything)
    )
