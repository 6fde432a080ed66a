"""Preference rows as training units: a pair is two sequences with a common prompt, feedback is one with a label.

Every side is encoded like any conversation (see tokens.py) with its prompt as context: only the turns of the reply are
supervised, each with its stop. A side is never cut: a pair with an over-length side is dropped whole, because a reply
without its end has another log-probability than the reply.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from posttrain.artifacts import Ledger
from posttrain.encode.template import ChatTemplate, RowRejected
from posttrain.encode.tokens import ASSISTANT, Encoded, EncodedRows, OverLength, encode_rows, encode_units
from posttrain.types import Message, PairRow, RowKind, SftRow, Tokens, UnpairedRow


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
Sides = Mapping[str, Encoded[Tokens]]
"""What became of the conversations of a row, by the kind of their reply."""


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

    def made(row: PairRow, encoded: Sides) -> Encoded[PairTokens]:
        return _unit(row.id, encoded, lambda chosen, rejected: _pair(row, chosen, rejected))

    return encode_units(rows, sides_of, made, ("chosen", "rejected"), template, max_length, "drop", ledger, progress)


def _pair(row: PairRow, chosen: Tokens, rejected: Tokens) -> PairTokens | RowRejected:
    if np.array_equal(chosen.ids_T, rejected.ids_T):
        return RowRejected("equal_tokens", "both replies are the same tokens")
    begins = {reply_start(chosen), reply_start(rejected)}
    if len(begins) > 1 or not np.array_equal(chosen.ids_T[: min(begins)], rejected.ids_T[: min(begins)]):
        return RowRejected("prompt_differs", "the template shows the prompt differently before the two replies")
    margin = row.meta.get("margin", 0.0)
    return PairTokens(chosen, rejected, row.id, float(margin) if isinstance(margin, int | float) else 0.0)


def encode_feedback(
    rows: Sequence[UnpairedRow],
    template: ChatTemplate,
    max_length: int,
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedRows[FeedbackTokens]:
    """Encode labelled replies in order; drops go to step ``encode`` of the ledger, with the reasons of `encode_pairs`."""

    def made(row: UnpairedRow, encoded: Sides) -> Encoded[FeedbackTokens]:
        return _unit(row.id, encoded, lambda tokens: FeedbackTokens(tokens, row.desirable))

    kinds = ("desirable", "undesirable")
    return encode_units(rows, sides_of, made, kinds, template, max_length, "drop", ledger, progress)


def encode_kind(
    kind: RowKind,
    rows: Sequence[Any],
    template: ChatTemplate,
    max_length: int,
    over_length: OverLength,
    ledger: Ledger,
    progress: Callable[[int], None] | None = None,
) -> EncodedRows[Any]:
    """Encode rows of a kind in order. ``over_length``: of conversations; replies that are compared or judged are never cut."""
    if kind not in ("pairs", "feedback"):
        return encode_rows(rows, template, max_length, over_length, ledger, progress)
    encode: Callable[..., EncodedRows[Any]] = encode_pairs if kind == "pairs" else encode_feedback
    return encode(rows, template, max_length, ledger, progress)


def _unit(row_id: str, sides: Sides, unit: Callable[..., Unit | RowRejected]) -> Encoded[Unit]:
    """What a row becomes: ``unit`` of the sequences of all its sides, or why it can't be used."""
    for kind, side in sides.items():
        if side.dropped:
            return Encoded((), (RowRejected(side.dropped[0].reason, f"{kind}: {side.dropped[0].detail}"),))
        if len(side.examples) != 1:
            problem = f"{kind}: the template rewrites earlier turns of this reply"
            return Encoded((), (RowRejected("reply_rewritten", problem),))
    found = unit(*(replace(side.examples[0], row_id=row_id) for side in sides.values()))
    if isinstance(found, RowRejected):
        return Encoded((), (found,))
    return Encoded((found,), notes={note for side in sides.values() for note in side.notes})


def sides_of(row: SftRow | PairRow | UnpairedRow) -> dict[str, SftRow]:
    """The conversations of a row, each with its kind of reply."""
    match row:
        case PairRow():
            return {"chosen": as_conversation(row, row.chosen), "rejected": as_conversation(row, row.rejected)}
        case UnpairedRow():
            return {"desirable" if row.desirable else "undesirable": as_conversation(row, row.completion)}
        case SftRow():
            return {ASSISTANT: row}


def as_conversation(row: PairRow | UnpairedRow, reply: tuple[Message, ...]) -> SftRow:
    """Prompt and reply as a conversation of which the turns of the reply are supervised."""
    prompt = tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in row.prompt)
    supervised = tuple(replace(m, weight=None) if m.role == "assistant" else m for m in reply)
    return SftRow(prompt + supervised, row.origin, row.source, row.tools)


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
