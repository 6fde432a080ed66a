"""Glaive's function calling: under ``chat`` a text with ``USER:``, ``ASSISTANT:`` and ``FUNCTION RESPONSE:``, under ``system`` the tools.

A call stands behind ``<functioncall>``, its arguments as JSON in single quotes. The definitions of the tools follow upon the system
prompt, one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from posttrain.data.formats.base import Foreign, Format, RowError, optional_text
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.turns import calls_of
from posttrain.types import Message, Origin, SftRow, ToolCall

_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_CALL = "<functioncall>"
_QUOTED = re.compile(r"""\s*\{\s*"name":\s*"([^"]+)"\s*,\s*"arguments":\s*'(.*)'\s*\}\s*""", re.DOTALL)
_END = "<|endoftext|>"


def _detect(record: Foreign) -> bool:
    chat = record.get("chat")
    return isinstance(chat, str) and _TURN.match(chat) is not None and "ASSISTANT:" in chat


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    before, *parts = _TURN.split(optional_text(record, "chat"))
    if before.strip() or not parts:
        raise RowError("wrong_shape", f"not a chat of USER and ASSISTANT: {before[:80]!r}")
    system, tools = _system(optional_text(record, "system"))
    turns = [message for name, said in zip(parts[::2], parts[1::2], strict=True) for message in _said(name, said)]
    beside = {"tools": tools} if tools else {}
    return sft_row({**record, **beside, "system": system}, {"chat"}, turns, origin, source)


def _said(name: str, said: str) -> Iterator[Message]:
    text = said.replace(_END, "").strip()
    if name == "ASSISTANT":
        text, _, call = text.partition(_CALL)
        yield Message("assistant", text.strip(), tool_calls=_call(call) if call else ())
    else:
        yield Message("user" if name == "USER" else "tool", text)


def _call(text: str) -> tuple[ToolCall, ...]:
    quoted = _QUOTED.fullmatch(text)
    return calls_of(text if quoted is None else {"name": quoted[1], "arguments": quoted[2]})


def _system(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(the system prompt, the tools whose definitions follow upon it); the whole text where these can't be read."""
    text = text.strip().removeprefix("SYSTEM:").strip()
    tools: list[dict[str, Any]] = []
    prompt, at = text, text.find("{")
    while 0 <= at < len(text):
        try:
            tool, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return text, []
        prompt = prompt if tools else text[:at].strip()
        tools.append(tool)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return prompt, tools


GLAIVE = Format("glaive", _detect, _parse, r'{"chat": "USER: Name a bird.\n\n\nASSISTANT: A wren. <|endoftext|>"}')
