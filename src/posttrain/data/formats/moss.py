"""MOSS: under ``chat`` an object of turns (``turn_1``, ...) with what the human and the model said, in MOSS's own marks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError, kind_of
from posttrain.data.formats.conversation import sft_row
from posttrain.types import Message, Origin, SftRow

_MARKS = re.compile(r"^\s*<\|[\w ]+\|>:?\s?|\s*<eo[a-z]>\s*$")
_OTHERS = ("Commands", "Tool Responses")


def _detect(record: Foreign) -> bool:
    chat = record.get("chat")
    return isinstance(chat, Mapping) and any(str(key).startswith("turn_") for key in chat)


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    chat = record.get("chat")
    if not isinstance(chat, Mapping):
        raise RowError("wrong_shape", f"'chat' is {kind_of(chat)}, expected an object of turns")
    ordered = sorted(keys.present(chat).items(), key=lambda item: (len(str(item[0])), str(item[0])))
    used = {"chat", "num_turns", "conversation_id"}
    return sft_row(record, used, [part for _, turn in ordered for part in _turn(turn)], origin, source)


def _turn(turn: object) -> Iterator[Message]:
    if not isinstance(turn, Mapping):
        raise RowError("wrong_shape", f"a turn is {kind_of(turn)}, expected an object")
    said = {str(key): _said(key, value) for key, value in turn.items()}
    for key in _OTHERS:
        if said.get(key, "None") not in ("", "None"):
            raise RowError("unsupported_content", f"{key!r} of MOSS's plug-ins: {said[key][:80]}")
    yield Message("user", said.get("Human", ""))
    thoughts = said.get("Inner Thoughts", "None")
    yield Message("assistant", said.get("MOSS", ""), thoughts if thoughts not in ("", "None") else None)


def _said(key: object, value: object) -> str:
    if not keys.is_present(value):
        return ""
    if not isinstance(value, str):
        raise RowError("wrong_shape", f"{key!r} of a turn is {kind_of(value)}, expected text")
    return _MARKS.sub("", value)


MOSS = Format(
    "moss",
    _detect,
    _parse,
    '{"chat": {"turn_1": {"Human": "<|Human|>: Name a bird.<eoh>", "MOSS": "<|MOSS|>: A wren.<eom>"}}}',
)
