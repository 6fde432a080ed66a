"""The reply of a record under a key: text, numbers and objects as JSON, a message, messages. Shared by the single exchanges."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, RowError
from posttrain.data.formats.turns import role_of, text_of, turns_under
from posttrain.types import Message


def reply_under(record: Foreign, key: str) -> tuple[Message, ...]:
    """The turns of a reply; one blank turn where there is none.

    A list of several texts is refused as ``several_replies``: they may be alternatives, a ranking, or one answer.
    """
    value = record.get(key)
    if isinstance(value, str):
        return turns_under(record, key, "assistant")
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and "answer_start" in value:
        value = list(dict.fromkeys(text for text in value["text"] if isinstance(text, str)))  # SQuAD's alternatives
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            raise RowError(
                "several_replies", f"{key!r} holds {len(value)} texts; give one reply, or a format of ranked ones"
            )
        value = value[0]
    messages = value if isinstance(value, list) else [value]
    if isinstance(value, str) or all(isinstance(item, Mapping) and role_of(item) is not None for item in messages):
        return turns_under({key: value}, key, "assistant") or (Message("assistant", ""),)
    if any(isinstance(item, Mapping) and "content" in item for item in messages):
        raise RowError("unknown_role", f"{key!r} holds a message without a role")
    return (Message("assistant", text_of(value, repr(key))),)
