"""One turn of a conversation, in any of the usual spellings, as a Message. Shared by all formats with messages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.base import Foreign, RowError, json_value, kind_of, objects
from posttrain.types import Message, Role, ToolCall

ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""Every role name that is understood, and the role it stands for."""

_PLAIN_ROLES: Mapping[Any, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_CALL_ROLES = ("function_call", "tool_call")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")


def parse_turn(turn: Foreign) -> Message:
    """The message of one turn: role under ``role`` or ``from``, text under ``content`` or ``value``.

    The content is text, null, or a list of typed parts (text, reasoning, tool call). The text of a turn in the role
    ``function_call`` is the JSON of the call. ``weight`` or ``loss_weight`` is kept for assistant turns.
    Raises RowError with ``unknown_role`` or ``wrong_shape``.
    """
    content = turn.get("content")
    if len(turn) == 2 and isinstance(content, str) and (plain := _PLAIN_ROLES.get(turn.get("role"))) is not None:
        return Message(plain, content)  # nearly every turn; what follows would give the same
    name = turn.get("role", turn.get("from"))
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise RowError("unknown_role", f"role {name!r}" if name is not None else f"no role; keys: {', '.join(turn)}")
    content = turn.get("content", turn.get("value"))
    if str(name).strip().lower() in _CALL_ROLES:
        return Message(role, "", tool_calls=_calls(content), weight=_weight(turn))
    text, reasoning, calls = _content(content)
    if role != "assistant":
        return Message(role, text)
    for key in ("reasoning_content", "reasoning", "thinking"):
        value = turn.get(key)
        if isinstance(value, str) and value:
            reasoning = (reasoning or "") + value
            break
    calls += _calls(turn.get("tool_calls")) + _calls(turn.get("function_call"))
    return Message(role, text, reasoning, calls, _weight(turn))


def turns_under(record: Foreign, key: str, role: Role) -> tuple[Message, ...]:
    """The turns under a key that holds text (one turn of ``role``), a message, or a list of messages."""
    value = record.get(key)
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return (parse_turn(value),)
    if not isinstance(value, list):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected text or messages")
    return tuple(map(parse_turn, objects(record, key)))


def _content(content: Any) -> tuple[str, str | None, tuple[ToolCall, ...]]:
    """(text, reasoning, tool calls) of a content; several parts of a kind are joined as they are."""
    if content is None or isinstance(content, str):
        return content or "", None, ()
    if not isinstance(content, list):
        raise RowError("wrong_shape", f"the content of a turn is {kind_of(content)}, expected text or parts")
    text, reasoning, calls = "", None, ()  # type: tuple[str, str | None, tuple[ToolCall, ...]]
    for part in content:
        if isinstance(part, str):
            text += part
            continue
        if not isinstance(part, Mapping):
            raise RowError("wrong_shape", f"a content part is {kind_of(part)}, expected an object")
        kind = part.get("type", "text")
        value = next((part[key] for key in ("text", "value", "content", kind) if part.get(key) is not None), None)
        if kind == "tool_call":
            calls += _calls(value)
        elif kind not in _TEXT_PARTS + _REASONING_PARTS:
            raise RowError("unsupported_content", f"a part of type {kind!r}; only text can be trained on")
        elif not isinstance(value, str):
            raise RowError("wrong_shape", f"a part of type {kind!r} holds {kind_of(value)}, expected text")
        elif kind in _REASONING_PARTS:
            reasoning = (reasoning or "") + value
        else:
            text += value
    return text, reasoning, calls


def _calls(value: Any) -> tuple[ToolCall, ...]:
    """The calls of ``tool_calls``, of a legacy ``function_call``, or of JSON text that holds one call or a list."""
    if value is None or value == []:
        return ()
    if isinstance(value, str):
        value = json_value(value, "tool call")
    return tuple(_call(item) for item in (value if isinstance(value, list) else [value]))


def _call(item: Any) -> ToolCall:
    inner = item.get("function") if isinstance(item, Mapping) and item.get("function") is not None else item
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise RowError("wrong_shape", f"a tool call without a function name: {str(item)[:80]}")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        parsed = json_value(arguments, f"arguments of {name}")
    else:
        parsed = {} if arguments is None or isinstance(arguments, str) else arguments
        arguments = json.dumps(parsed, ensure_ascii=False)
    if not isinstance(parsed, Mapping):
        raise RowError("wrong_shape", f"the arguments of {name} are {kind_of(parsed)}, expected an object")
    return ToolCall(name, arguments)


def _weight(turn: Foreign) -> float | None:
    value = turn.get("weight", turn.get("loss_weight"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise RowError("wrong_shape", f"the weight of a turn is {value!r}, expected a number of at least 0")
    return float(value)
