"""OpenAI messages: ``messages`` with role and content; content may be text, null or typed parts."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, objects, sft_row
from posttrain.data.formats.turns import parse_turn
from posttrain.types import Origin, SftRow


def _detect(record: Foreign) -> bool:
    return "messages" in record


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    return sft_row(record, {"messages"}, map(parse_turn, objects(record, "messages")), origin, source)


MESSAGES = Format(
    "messages",
    _detect,
    _parse,
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
)
