"""Which rows of a block hold which evaluation prompts, and how much of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from posttrain.data.decontaminate.benchmarks import Prompt
from posttrain.data.decontaminate.index import Hits, Index, build, covers, find
from posttrain.data.marks import marks
from posttrain.data.shingles import hash_tokens
from posttrain.data.text import CJK, COMPARED_ROLES, Fields, token_spans, tokens

ShortPrompts = Literal["anywhere", "alone"]

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
        words = hash_tokens([text for _, text in turns])
        row_T = np.array([row for row, _ in turns], np.int64)
        found = [pl.DataFrame(schema=HITS)]
        for hits in find(self.index, words):
            if hits.postings.n == self.index.n:
                cover = covers(hits.postings, row_T[hits.text], hits.gram)
                overlap = cover["covered"] / self.index.length_X[cover["text"]]
                found.append(cover.select("row", "text", overlap.alias("overlap")))
            else:
                first = hits.at - words.offsets_N[hits.text]
                records = [(row, text, 1.0) for row, text in sorted(self._short(hits, first, turns))]
                found.append(pl.DataFrame(records, schema=HITS, orient="row"))
        every = pl.concat(found).sort("row", "text")
        best = pl.col("overlap") == pl.col("overlap").max().over("row")
        return every.filter((pl.col("overlap") > self.limit) | best)

    def _short(self, hits: Hits, first: NDArray[np.int64], turns: Sequence[tuple[int, str]]) -> set[tuple[int, int]]:
        """(row, text) of the short texts that stand in a row, with their numbers and operators; ``first``: token of the turn."""
        stand = pl.DataFrame({"turn": hits.text, "first": first, "gram": hits.gram}).join(
            hits.postings.places, on="gram"
        )
        pairs = set()
        for turn, begin, text in stand.select("turn", "first", "text").iter_rows():
            row, content = turns[turn]
            if _amounts(content, begin, hits.postings.n) != self.amounts[text]:
                continue
            if text not in self.alone or stands_alone(content, self.alone[text]):
                pairs.add((row, text))
        return pairs


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
