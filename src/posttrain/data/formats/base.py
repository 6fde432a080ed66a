"""What a row format is, and the checks every conversation passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from posttrain.types import Message, Origin, RowKind, SftRow

Parsed = TypeVar("Parsed", covariant=True)
Foreign = Mapping[str, Any]
"""A record as its author wrote it."""

_LONGEST_META = 200
_SIDE_KEYS = frozenset(("system", "tools"))


class RowError(Exception):
    """A record can't become a row: ``reason`` is one of the fixed short reasons of docs/data-formats.md."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True)
class Format(Generic[Parsed]):
    """A foreign row format: how it is recognised, and how a record becomes a typed row.

    ``detect`` looks at the keys of one record. ``parse(record, origin, source)`` returns the row (of rated answers a
    ``ranked.Ranked``) or raises :class:`RowError`. ``example`` is one record in JSON, for error messages, docs and the
    contract tests.
    """

    name: str
    detect: Callable[[Foreign], bool]
    parse: Callable[[Foreign, Origin, str], Parsed]
    example: str
    kind: RowKind = "conversations"
    """What its rows say."""
    rated: bool = False
    """Whether its records are rated or ranked answers, of which a ``PairRule`` makes pairs."""


def sft_row(record: Foreign, used: Set[str], messages: Iterable[Message], origin: Origin, source: str) -> SftRow:
    """The checked conversation of a record. ``used`` are the keys it was made from; ``system`` and ``tools`` are read here.

    A ``system`` key becomes the first turn, unless the conversation has a system turn of its own.
    Reasons: ``empty_conversation``, ``no_assistant_turn``, ``empty_assistant_turn``, ``invalid_unicode``, ``wrong_shape``.
    """
    turns = tuple(messages)
    if not turns:
        raise RowError("empty_conversation", "no turns")
    if record.keys().isdisjoint(_SIDE_KEYS) and _is_plain_talk(turns):
        return SftRow(turns, origin, source, (), _meta(record, used))  # nearly every row passes all that follows
    if (system := optional_text(record, "system")) and all(turn.role != "system" for turn in turns):
        turns = (Message("system", system), *turns)
    if all(turn.role != "assistant" for turn in turns):
        raise RowError("no_assistant_turn", f"roles: {', '.join(turn.role for turn in turns)}"[:200])
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            raise RowError("empty_assistant_turn", f"turn {number} has neither text nor tool calls")
    tools = tuple(objects(record, "tools"))
    for number, turn in enumerate(turns, 1):
        calls = (part for call in turn.tool_calls for part in (call.name, call.arguments))
        if not all(map(_is_unicode, (turn.content, turn.reasoning or "", *calls))):
            raise RowError("invalid_unicode", f"turn {number} holds a lone surrogate or bytes that are not UTF-8")
    if tools and not _is_unicode(json.dumps(tools, ensure_ascii=False)):
        raise RowError("invalid_unicode", "the tools hold a lone surrogate or bytes that are not UTF-8")
    return SftRow(turns, origin, source, tools, _meta(record, used | _SIDE_KEYS))


def _is_plain_talk(turns: tuple[Message, ...]) -> bool:
    """Whether these turns surely are a good conversation: without calls, nothing empty, no broken characters."""
    answered = False
    for turn in turns:
        if turn.tool_calls or turn.reasoning is not None or not (turn.content.isascii() or _is_unicode(turn.content)):
            return False
        if turn.role == "assistant":
            answered = True
            if not turn.content or turn.content.isspace():
                return False
    return answered


def exchange(prompt: str, reply: str) -> tuple[Message, Message]:
    """One question and its answer; a blank question is rejected as ``empty_prompt``."""
    if not prompt.strip():
        raise RowError("empty_prompt", "the prompt is blank")
    return Message("user", prompt), Message("assistant", reply)


def optional_text(record: Foreign, key: str) -> str:
    """The text under a key, verbatim; a missing or null one is the empty string."""
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected text")
    return value


def items(record: Foreign, key: str) -> list[Any]:
    """The list under a key; JSON text (as in a CSV cell) is parsed; a missing, null or blank one is empty."""
    value = record.get(key)
    if isinstance(value, str):
        value = json_value(value, key) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected a list")
    return value


def objects(record: Foreign, key: str) -> list[Foreign]:
    """The list under a key, as :func:`items`, where every item must be an object."""
    found = items(record, key)
    for item in found:
        if not isinstance(item, Mapping):
            raise RowError("wrong_shape", f"{key!r} holds {kind_of(item)}, expected objects")
    return found


def finite(value: Any) -> float | None:
    """A number, or a number written as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def json_value(text: str, what: str) -> Any:
    """The value of JSON text inside a record, or a ``wrong_shape`` that says what it should have been."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError("wrong_shape", f"{what!r} is not JSON: {text[:80]!r}") from None


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _meta(record: Foreign, used: Set[str]) -> dict[str, Any]:
    """The other keys with short plain values (identifiers, categories, scores), for later tables and filters."""
    return {key: value for key, value in record.items() if key not in used and _is_unicode(key) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_META and _is_unicode(value)
    return isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
