"""ShareGPT: ``conversations`` with from and value (or role and content), optionally ``system`` and ``tools``."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, objects, sft_row
from posttrain.data.formats.turns import parse_turn
from posttrain.types import Origin, SftRow

CONVERSATION_KEYS = ("conversations", "conversation")


def _detect(record: Foreign) -> bool:
    return _key(record) is not None


def _key(record: Foreign) -> str | None:
    return next((key for key in CONVERSATION_KEYS if key in record), None)


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    key = _key(record) or "conversations"
    return sft_row(record, {key}, map(parse_turn, objects(record, key)), origin, source)


SHAREGPT = Format(
    "sharegpt",
    _detect,
    _parse,
    '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
)
