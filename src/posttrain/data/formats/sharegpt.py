"""ShareGPT: ``conversations`` with from and value (or role and content), optionally ``system`` and ``tools``.

Also ``conversation``, ``dialogue`` and their like; an entry may be an exchange (``human`` and ``assistant``, ``input`` and
``output``), or the entries texts in turn, as in UltraChat's ``data``.
"""

from __future__ import annotations

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, items
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.prompts import has_reply
from posttrain.data.formats.turns import messages_in, talk
from posttrain.types import Origin, SftRow

CONVERSATION_KEYS = tuple(key for key in keys.TALKS if key != "messages")
_SURE = ("conversations", "conversation")
_OF_TEXTS = ("conversations", "conversation", "dialogue", "dialog", "data")
"""Keys under which plain texts are turns of the user and the assistant; ``turns`` of a benchmark are the user's alone."""


def _detect(record: Foreign) -> bool:
    key = _key(record)
    if key is None:
        return False
    value = record[key]
    texts = isinstance(value, list) and any(isinstance(turn, str) for turn in value)
    if texts and key not in _OF_TEXTS:
        return False
    listed = isinstance(value, list) or (isinstance(value, str) and messages_in(value) is not None)
    if key == "data" and not (isinstance(value, list) and all(isinstance(turn, str) for turn in value)):
        return False
    return (listed or key in _SURE) and has_reply(value)


def _key(record: Foreign) -> str | None:
    return keys.first(record, (*CONVERSATION_KEYS, "data"))


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    key = _key(record) or "conversations"
    return sft_row(record, {key}, talk(items(record, key)), origin, source)


SHAREGPT = Format(
    "sharegpt",
    _detect,
    _parse,
    '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
)
