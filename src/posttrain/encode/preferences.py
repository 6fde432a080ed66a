"""Preference rows as training units: a pair is two sequences with a common prompt, feedback is one with a label.

Every side is encoded like any conversation (see tokens.py) with its prompt as context: only the turns of the reply are
supervised, each with its stop. A side is never cut: a pair with an over-length side is dropped whole, because a reply
without its end has another log-probability than the reply.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from posttrain.artifacts import Ledger
from posttrain.encode.template import ChatTemplate, RowRejected
from posttrain.encode.tokens import ROWS_AT_ONCE, Encoded, EncodedRows, encode_batch
from posttrain.types import Message, PairRow, SftRow, Tokens, UnpairedRow


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A pair: each side is prompt and reply, of which the reply is supervised."""

    chosen: Tokens
    rejected: Tokens
    row_id: str
    margin: float = 0.0
    """By how much the chosen reply was rated better, where the source says so (``meta.margin``)."""


@dataclass(frozen=True, slots=True)
class FeedbackTokens:
    """A prompt and a reply somebody found good or bad."""

    tokens: Tokens
    desirable: bool

    @property
    def row_id(self) -> str:
        """The row it came from."""
        return self.tokens.row_id


def sequences_of(unit: Tokens | PairTokens | FeedbackTokens) -> tuple[Tokens, ...]:
    """The sequences of a unit of any kind."""
    match unit:
        case PairTokens():
            return unit.chosen, unit.rejected
        case FeedbackTokens():
            return (unit.tokens,)
        case Tokens():
            return (unit,)


Unit = TypeVar("Unit", PairTokens, FeedbackTokens)


def encode_pairs(
    rows: Sequence[PairRow],
    template: ChatTemplate,
    max_length: int,
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedRows[PairTokens]:
    """Encode pairs in order; drops go to step ``encode`` of the ledger.

    Reasons, besides those of conversations: ``too_long`` (either side), ``equal_tokens`` (both sides read the same),
    ``prompt_differs``, ``reply_rewritten`` (the template shows a reply of several turns in a form inference never sees).
    """

    def unit(row: PairRow, sides: Sequence[Tokens]) -> PairTokens | RowRejected:
        chosen, rejected = sides
        if np.array_equal(chosen.ids_T, rejected.ids_T):
            return RowRejected("equal_tokens", "both replies are the same tokens")
        begins = {reply_start(chosen), reply_start(rejected)}
        if len(begins) > 1 or not np.array_equal(chosen.ids_T[: min(begins)], rejected.ids_T[: min(begins)]):
            return RowRejected("prompt_differs", "the template shows the prompt differently before the two replies")
        margin = row.meta.get("margin", 0.0)
        return PairTokens(chosen, rejected, row.id, float(margin) if isinstance(margin, int | float) else 0.0)

    def replies(row: PairRow) -> Replies:
        return {"chosen": row.chosen, "rejected": row.rejected}

    return _encode(rows, replies, unit, ("chosen", "rejected"), template, max_length, ledger, progress)


def encode_feedback(
    rows: Sequence[UnpairedRow],
    template: ChatTemplate,
    max_length: int,
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedRows[FeedbackTokens]:
    """Encode labelled replies in order; drops go to step ``encode`` of the ledger, with the reasons of `encode_pairs`."""

    def replies(row: UnpairedRow) -> Replies:
        return {"desirable" if row.desirable else "undesirable": row.completion}

    def unit(row: UnpairedRow, sides: Sequence[Tokens]) -> FeedbackTokens:
        return FeedbackTokens(sides[0], row.desirable)

    return _encode(rows, replies, unit, ("desirable", "undesirable"), template, max_length, ledger, progress)


Row = TypeVar("Row", PairRow, UnpairedRow)
Replies = Mapping[str, tuple[Message, ...]]
"""The replies of a row by name, in the order of its sequences."""


def _encode(
    rows: Sequence[Row],
    replies: Callable[[Row], Replies],
    unit: Callable[[Row, Sequence[Tokens]], Unit | RowRejected],
    names: tuple[str, ...],
    template: ChatTemplate,
    max_length: int,
    ledger: Ledger | None,
    progress: Callable[[int], None] | None,
) -> EncodedRows[Unit]:
    ledger = Ledger() if ledger is None else ledger
    step = ledger.step("encode", rows_in=len(rows))
    examples: list[Unit] = []
    notes: Counter[str] = Counter()
    conversation_lengths: list[int] = []
    reply_lengths: dict[str, list[int]] = {name: [] for name in names}
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[begin : begin + ROWS_AT_ONCE]
        sides = [as_conversation(row, reply) for row in batch for reply in replies(row).values()]
        encoded = iter(encode_batch(sides, template, max_length, "drop"))
        for row in batch:
            found = {name: next(encoded) for name in replies(row)}
            made = _whole(row.id, found)
            for name, side in found.items():
                if isinstance(side, Encoded):
                    conversation_lengths.append(side.conversation_tokens)
                    reply_lengths[name].append(sum(side.assistant_tokens))
            result = made if isinstance(made, RowRejected) else unit(row, made)
            if isinstance(result, RowRejected):
                ledger.drop(step, row.origin, result.reason, result.detail)
                continue
            examples.append(result)
            notes.update({note for side in found.values() if isinstance(side, Encoded) for note in side.notes})
        if progress is not None:
            progress(begin + len(batch))
    step.rows_out = len(examples)
    step.notes.update(sorted(notes.items()))
    lengths = {name: np.array(values, np.int64) for name, values in reply_lengths.items()}
    return EncodedRows(examples, np.array(conversation_lengths, np.int64), lengths)


def as_conversation(row: PairRow | UnpairedRow, reply: tuple[Message, ...]) -> SftRow:
    """Prompt and reply as a conversation of which the turns of the reply are supervised."""
    prompt = tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in row.prompt)
    supervised = tuple(replace(m, weight=None) if m.role == "assistant" else m for m in reply)
    return SftRow(prompt + supervised, row.origin, row.source, row.tools)


def _whole(row_id: str, sides: Mapping[str, Encoded | RowRejected]) -> list[Tokens] | RowRejected:
    """The sequence of every side, or why the row can't be used."""
    made = []
    for name, side in sides.items():
        if isinstance(side, RowRejected):
            return RowRejected(side.reason, f"{name}: {side.detail}")
        if side.dropped:
            return RowRejected(side.dropped[0].reason, f"{name}: {side.dropped[0].detail}")
        if len(side.examples) != 1:
            return RowRejected("reply_rewritten", f"{name}: the template rewrites earlier turns of this reply")
        made.append(replace(side.examples[0], row_id=row_id))
    return made


def reply_start(tokens: Tokens) -> int:
    """Where the supervised tokens begin: the length of the prompt."""
    return int(np.argmax(tokens.weights_T != 0))


def mismatched(units: Sequence[FeedbackTokens], others: Sequence[FeedbackTokens] = ()) -> list[Tokens]:
    """Every prompt with the reply of the next row: the sequences from which KTO estimates its reference point.

    "Next" is by row id, the last one is followed by the first; so the sequences depend on the set of units alone. A row never gets its own
    reply: where the units are one row (the last step of an epoch), the next row of ``others`` lends its reply; without one there are none.
    """
    ordered = sorted((unit.tokens for unit in units), key=lambda tokens: tokens.row_id)
    rows = {tokens.row_id: tokens for tokens in ordered}
    lenders = rows
    if len(rows) == 1:
        lenders = {unit.tokens.row_id: unit.tokens for unit in others if unit.tokens.row_id not in rows}
    names = sorted(lenders)
    following = [bisect_right(names, tokens.row_id) % len(names) for tokens in ordered] if names else []
    return [with_reply_of(tokens, lenders[names[k]]) for tokens, k in zip(ordered, following, strict=bool(names))]


def with_reply_of(prompt: Tokens, reply: Tokens) -> Tokens:
    """The prompt of one sequence with the reply of another."""
    parts = [(prompt, slice(0, reply_start(prompt))), (reply, slice(reply_start(reply), None))]
    return Tokens(
        np.concatenate([tokens.ids_T[part] for tokens, part in parts]),
        np.concatenate([tokens.weights_T[part] for tokens, part in parts]),
        f"{prompt.row_id}+{reply.row_id}",
    )


def with_prompt_supervised(tokens: Tokens) -> Tokens:
    """The same sequence with every token but the first supervised."""
    weights_T = np.ones_like(tokens.weights_T)
    weights_T[:1] = 0.0
    return Tokens(tokens.ids_T, weights_T, tokens.row_id)


def scored_at_end(tokens: Tokens, pad_id: int | None) -> Tokens:
    """The sequence as a reward model scores it: one target, "predicted" by the last token that is no padding.

    Which token that is follows HF's sequence-classification models, so that a saved reward model gives the same
    score there; the target itself stands for nothing.
    """
    real = np.flatnonzero(tokens.ids_T != pad_id) if pad_id is not None else np.arange(len(tokens))
    end = int(real[-1]) + 1
    weights_T = np.zeros(end + 1, np.float32)
    weights_T[end] = 1.0
    return Tokens(np.append(tokens.ids_T[:end], np.int32(0)), weights_T, tokens.row_id)
