"""Prompt and completion: each is text, or a list of messages (a completion also a single message)."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, Format, RowError, is_preference, kind_of, objects, sft_row
from posttrain.data.formats.turns import parse_turn
from posttrain.types import Message, Origin, Role, SftRow


def _detect(record: Foreign) -> bool:
    return {"prompt", "completion"} <= record.keys() and not is_preference(record)


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    prompt, completion = _side(record, "prompt", "user"), _side(record, "completion", "assistant")
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the prompt is blank")
    if any(turn.role == "user" for turn in completion):
        raise RowError("wrong_shape", "the completion holds a user turn")
    return sft_row(record, {"prompt", "completion"}, prompt + completion, origin, source)


def _side(record: Foreign, key: str, role: Role) -> tuple[Message, ...]:
    value = record.get(key)
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return (parse_turn(value),)
    if not isinstance(value, list):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected text or messages")
    return tuple(map(parse_turn, objects(record, key)))


PROMPT_COMPLETION = Format(
    "prompt_completion",
    _detect,
    _parse,
    '{"prompt": "The sky is", "completion": " blue."}',
)
