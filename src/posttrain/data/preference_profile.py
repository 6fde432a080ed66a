"""What a profile says of pairs and feedback: how long the replies are that are compared, and how many were found good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from posttrain.data.profile_records import RepliesCompared, ReplyLengths
from posttrain.data.rows import conversations, rejected_sides
from posttrain.types import Message, RowKind

if TYPE_CHECKING:
    from posttrain.data.profile import TokenCounter

_COLUMNS: dict[str, Any] = {"reply": pl.UInt32, "rejected_reply": pl.UInt32}
_QUANTILES = [0.5, 0.9, 0.95, 1.0]


def reply_columns(block: pl.DataFrame, counter: TokenCounter) -> list[pl.Series]:
    """Of every row of a block the tokens of its reply (the chosen one, the judged one) and of the rejected one; null elsewhere.

    Only the assistant's turns count.
    """
    prompts = block["prompt_turns"].to_list()
    if None in prompts:
        return [pl.Series(name, [None], dtype=kind).new_from_index(0, len(block)) for name, kind in _COLUMNS.items()]
    replies = [turns[begin:] for turns, begin in zip(conversations(block), prompts, strict=True)]
    rejected = [] if block["rejected"].null_count() else list(rejected_sides(block))
    lengths: tuple[list[int], list[int] | list[None]]
    lengths = _lengths(replies, counter), _lengths(rejected, counter) if rejected else [None] * len(block)
    return [pl.Series(name, values, dtype=_COLUMNS[name]) for name, values in zip(_COLUMNS, lengths, strict=True)]


def preference_summary(table: pl.DataFrame, kind: RowKind | None) -> RepliesCompared | None:
    """The numbers of a table with the columns of :func:`reply_columns` and ``desirable``; None for conversations."""
    if kind not in ("pairs", "feedback"):
        return None
    judged = table["desirable"]
    if kind == "pairs":
        replies = {"chosen": table["reply"], "rejected": table["rejected_reply"]}
    else:
        replies = {"desirable": table["reply"].filter(judged), "undesirable": table["reply"].filter(~judged)}
    return RepliesCompared(
        kind=kind,
        rows=len(table),
        replies={name: _quantiles(lengths) for name, lengths in replies.items() if len(lengths)},
        chosen_longer=_share(table["reply"] > table["rejected_reply"]) if kind == "pairs" else None,
        desirable=_share(judged) if kind == "feedback" else None,
    )


def _lengths(replies: Iterable[Sequence[Message]], counter: TokenCounter) -> list[int]:
    return [count.assistant for count in counter.count([(tuple(turns), ()) for turns in replies])]


def _quantiles(lengths: pl.Series) -> ReplyLengths:
    """The smallest lengths that so many of the replies stay within."""
    found = np.quantile(lengths.to_numpy(), _QUANTILES, method="inverted_cdf")
    return ReplyLengths(len(lengths), *(int(length) for length in found))


def _share(true: pl.Series) -> float:
    return int(true.sum()) / len(true)
