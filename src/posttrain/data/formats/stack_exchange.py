"""StackExchange paired: a ``question`` with ``response_j``, the answer with more votes, and ``response_k``."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, optional_text
from posttrain.data.formats.sides import pair_row
from posttrain.types import Message, Origin, PairRow

_KEYS = ("question", "response_j", "response_k")


def _detect(record: Foreign) -> bool:
    return record.keys() >= set(_KEYS)


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    question, better, worse = (optional_text(record, key) for key in _KEYS)
    turns = (Message("user", question),), (Message("assistant", better),), (Message("assistant", worse),)
    return pair_row(record, set(_KEYS), *turns, origin, source)


STACK_EXCHANGE = Format(
    "stack_exchange",
    _detect,
    _parse,
    '{"question": "How do I undo?", "response_j": "Press Ctrl+Z.", "response_k": "You can not."}',
    "pairs",
)
