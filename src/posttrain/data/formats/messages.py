"""OpenAI messages: ``messages`` with role and content; content may be text, null or typed parts."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, items
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.prompts import has_reply
from posttrain.data.formats.turns import talk
from posttrain.types import Origin, SftRow


def _detect(record: Foreign) -> bool:
    return "messages" in record and has_reply(record["messages"])


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    return sft_row(record, {"messages"}, talk(items(record, "messages")), origin, source)


MESSAGES = Format(
    "messages",
    _detect,
    _parse,
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
)
