"""The checked conversation (or prompt) of a record, with everything that stands beside it: what every format ends in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, is_unicode, meta_of
from posttrain.data.formats.beside import MEANING, QUESTIONS, beside, placeholder
from posttrain.data.formats.turns import plain_turn, role_of, text_of, turns_under
from posttrain.types import Message, Origin, PromptRow, SftRow

_TOOLS = frozenset(keys.TOOLS)
_LOOKED_AT = MEANING | {"chosen", "rejected"}
_BESIDE_TALK = _LOOKED_AT - set(QUESTIONS)
"""Beside turns a prompt is only a repetition of the first (UltraChat)."""
_OTHER_BYTES = "bytes that are not UTF-8 (Windows text: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW)"


def sft_row(record: Foreign, used: Set[str], messages: Iterable[Message], origin: Origin, source: str) -> SftRow:
    """The checked conversation of a record. ``used`` are the keys it was made from; what else changes its meaning is read here.

    Reasons: ``empty_conversation``, ``no_assistant_turn``, ``empty_assistant_turn``, ``invalid_unicode``, ``wrong_shape``, and
    those of :mod:`posttrain.data.formats.beside`.
    """
    turns = tuple(messages)
    if not turns:
        raise RowError("empty_conversation", "no turns")
    looked_at = _LOOKED_AT if used.isdisjoint(keys.TALKS) else _BESIDE_TALK
    if _is_plain_talk(turns) and (record.keys() - used).isdisjoint(looked_at) and not _with_more(record, used):
        return SftRow(turns, origin, source, (), meta_of(record, used))  # nearly every row passes all that follows
    if all(turn.role != "assistant" for turn in turns):
        raise RowError("no_assistant_turn", f"roles: {', '.join(turn.role for turn in turns)}"[:200])
    _check_replies(turns)
    found = beside(record, frozenset(used), turns)
    _check_replies(found.turns)
    _check_unicode(found.turns, found.tools)
    return SftRow(found.turns, origin, source, found.tools, meta_of(record, used | found.used))


def prompt_row(record: Foreign, used: Set[str], messages: Iterable[Message], origin: Origin, source: str) -> PromptRow:
    """The checked prompt of a record, as :func:`sft_row`. Reasons: also ``empty_prompt``, and ``has_reply`` where the last turn is a reply."""
    turns = tuple(messages)
    if not any(turn.content.strip() for turn in turns if turn.role != "system"):
        raise RowError("empty_prompt", "the prompt is blank or missing")
    if turns[-1].role == "assistant":
        raise RowError("has_reply", "the last turn is a reply, and a prompt waits for one")
    found = beside(record, frozenset(used), turns)
    _check_replies(found.turns)
    _check_unicode(found.turns, found.tools)
    return PromptRow(found.turns, origin, source, found.tools, meta_of(record, used | found.used))


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


def _with_more(record: Foreign, used: Set[str]) -> bool:
    """Whether tools may stand in one of the turns."""
    for key, value in record.items():
        if key not in used:
            continue
        if isinstance(value, str):
            if value.lstrip()[:1] == "[":
                return True
        elif isinstance(value, list):
            for turn in value:
                if isinstance(turn, dict) and not _TOOLS.isdisjoint(turn):
                    return True
        elif isinstance(value, dict) and plain_turn(value) is None:
            return True
    return False


def _check_replies(turns: tuple[Message, ...]) -> None:
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            raise RowError("empty_assistant_turn", f"turn {number} has neither text nor tool calls")


def _check_unicode(turns: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...]) -> None:
    for number, turn in enumerate(turns, 1):
        names = (turn.name or "", turn.tool_call_id or "")
        calls = (part for call in turn.tool_calls for part in (call.name, call.arguments, call.id or ""))
        if not all(map(is_unicode, (turn.content, turn.reasoning or "", *names, *calls))):
            raise RowError("invalid_unicode", f"turn {number} holds a lone surrogate or {_OTHER_BYTES}")
    if tools and not is_unicode(json.dumps(tools, ensure_ascii=False)):
        raise RowError("invalid_unicode", f"the tools hold a lone surrogate or {_OTHER_BYTES}")


def _is_plain_talk(turns: tuple[Message, ...]) -> bool:
    """Whether these turns surely are a good conversation: without calls, nothing empty, no broken characters, no images."""
    answered = False
    for turn in turns:
        text = turn.content
        if turn.tool_calls or turn.reasoning is not None or not (text.isascii() or is_unicode(text)):
            return False
        if "<" in text and placeholder(text) is not None:
            return False
        if turn.role == "assistant":
            answered = True
            if not text or text.isspace():
                return False
        elif turn.role == "tool":
            return False
    return answered
