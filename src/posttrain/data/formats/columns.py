"""Columns by name: ``columns: {user: question, assistant: meta.reply}`` says which field of a record is what.

The record is written anew under the names that the formats know; what follows is the same as for any other record. A name
that is given wins over columns of the record that would say the same: with ``user`` named, a column ``messages`` or ``prompt``
is no longer read. What stands beside (system, history, context, tools, labels, ...) still counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign
from posttrain.errors import ConfigError, DataError
from posttrain.table import did_you_mean

Columns = Mapping[str, str]
"""What a field is -> the field: its key, or the keys on the way to it with dots between (numbers count list entries)."""

_ALIASES = {"user": "prompt", "assistant": "completion"}
_OF_TURNS = ("role", "content")
"""Named once for all turns of a conversation."""
_MAIN: Mapping[str, tuple[str, ...]] = {
    "talk": keys.TALKS,
    "prompt": keys.PROMPTS,
    "reply": keys.REPLIES,
    "sides": keys.SIDES,
}
_REPLACED = {
    "talk": ("talk", "prompt", "reply", "sides"),
    "prompt": ("talk", "prompt"),
    "reply": ("talk", "reply", "sides"),
    "sides": ("reply", "sides"),
}
"""What is named -> what is no longer read of the record's own columns."""
_BESIDE = (
    *(*keys.BESIDE, *keys.LABELS, *keys.ALL_MEDIA),
    *keys.names_of("input score_chosen score_rejected winner response_0 response_1 better scores"),
)
KNOWN = tuple(dict.fromkeys((*_ALIASES, *(key for group in _MAIN.values() for key in group), *_BESIDE, *_OF_TURNS)))
"""Every name a column can be given."""


def check_columns(columns: Columns, where: str) -> None:
    """Raises ConfigError for a name that nothing reads, or no path."""
    for name, path in columns.items():
        if name not in KNOWN:
            raise ConfigError(
                f"unknown name of a column {name!r}{did_you_mean(name, KNOWN)}",
                where=f"{where}: columns",
                fix="known: user, assistant, system, prompt, messages, role, content, chosen, rejected, label, tools, history, "
                "context, ...; see docs/data-formats.md",
            )
        if not path:
            raise ConfigError(f"no column is given for {name!r}", where=f"{where}: columns", fix="give its key")


def check_paths(records: Sequence[Foreign], columns: Columns, where: str) -> None:
    """Raises DataError where a path leads nowhere in any of these records."""
    for name, path in columns.items():
        if name not in _OF_TURNS and not any(keys.is_present(at(record, path)) for record in records):
            found = list(dict.fromkeys(field for record in records for field, _ in _fields(record)))
            raise DataError(
                f"no row has the column {path!r} that columns name for {name!r}{did_you_mean(path, found)}",
                where=where,
                fix=f"name one of: {', '.join(found[:20])}",
            )


def renamed(record: Foreign, columns: Columns) -> Foreign:
    """The record under the names that formats know. A path that leads nowhere is null: absent."""
    if not columns:
        return record
    named = {_ALIASES.get(name, name): at(record, path) for name, path in columns.items() if name not in _OF_TURNS}
    groups = {group for group, members in _MAIN.items() if not named.keys().isdisjoint(members)}
    hidden = {key for group in groups for other in _REPLACED[group] for key in _MAIN[other]}
    moved = {path if path in record else path.split(".")[0] for path in columns.values()}
    hidden |= named.keys()
    beside = {key: value for key, value in record.items() if key not in moved and keys.name_of(key) not in hidden}
    of_turns = {name: columns[name] for name in _OF_TURNS if name in columns}
    if of_turns:
        named = {key: _turns_renamed(value, of_turns) for key, value in named.items()}
        beside = {key: _turns_renamed(value, of_turns) for key, value in beside.items()}
    return beside | named


def at(record: Any, path: str) -> Any:
    """What stands at a path; a key that holds dots itself goes first. None where there is nothing."""
    if isinstance(record, str) and record[:1] in ("{", "["):  # JSON text, as in a CSV cell
        try:
            record = json.loads(record)
        except (ValueError, RecursionError):
            return None
    if isinstance(record, Mapping) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    inner: Any = None
    if isinstance(record, Mapping):
        inner = record.get(head)
    elif isinstance(record, list) and head.isascii() and head.isdigit() and int(head) < len(record):
        inner = record[int(head)]
    return at(inner, rest) if dot else inner


def _turns_renamed(value: Any, of_turns: Columns) -> Any:
    """A list of turns with their role and content under these names; anything else as it is."""
    if not (isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value)):
        return value
    return [
        {key: part for key, part in turn.items() if key not in of_turns.values()}
        | {name: at(turn, path) for name, path in of_turns.items()}
        for turn in value
    ]


def rows_of_columns(record: Any, *, alone: bool = False) -> list[Foreign] | None:
    """The rows of a table that is written column by column in one object; None for anything else.

    Either every value is an object with the same numbers as keys (as pandas writes it), or lists of one length under the keys of
    a prompt and a reply (as ``datasets`` does), of texts and numbers under any keys where the object is ``alone`` in its file.
    """
    values = list(record.values()) if isinstance(record, Mapping) else []
    if len(values) > 1 and all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values):
        numbers = [str(key) for key in values[0]]
        if numbers and all(number.isdecimal() for number in numbers):
            return [{key: column[number] for key, column in record.items()} for number in sorted(numbers, key=int)]
    listed = len(values) > 1 and all(isinstance(value, list) and len(value) == len(values[0]) for value in values)
    if not listed or not values[0]:
        return None
    named = all(not record.keys().isdisjoint(names) for names in (keys.PROMPTS, keys.REPLIES))
    plain = alone and all(cell is None or isinstance(cell, str | int | float) for value in values for cell in value)
    return [dict(zip(record, row, strict=True)) for row in zip(*values, strict=True)] if named or plain else None


# ---- what the columns of an unknown record could be ----------------------------------------------------------------

_ASKS = keys.names_of(
    "question prompt instruct query input user human request ask task problem title q 问题 提问 指令 输入 题目 用户 问"
)
_ANSWERS = keys.names_of(
    "answer reply response output completion assistant gpt bot solution target body a 答案 回答 回复 输出 答复 解答 助手 答"
)
_REFERENCE = re.compile("expected|reference|gold|ground|truth|grade", re.IGNORECASE)
_END = re.compile(r"[_ ]?(?:\d|[a-dA-D])$")
_ROLES = ("role", "from", "speaker", "sender", "author", "type", "name", "who")
_NO_TEXTS = ("id", "uuid", "source", "category", "domain", "lang", "language")


def proposed(records: Sequence[Foreign]) -> Columns:
    """Which fields are likely the question and the answer, or the turns, by their names and texts; empty where none is."""
    record = max(records, key=len, default={})
    for path, value in _fields(record):
        if isinstance(value, list) and len(value) > 1 and all(isinstance(turn, Mapping) for turn in value):
            texts = [key for key in value[0] if all(isinstance(turn.get(key), str) for turn in value)]
            role = next((key for key in _ROLES if key in texts), None)
            content = max((key for key in texts if key != role), key=lambda key: len(str(value[0][key])), default=None)
            if role is not None and content is not None:
                return {"messages": path, "role": role, "content": content}
    texts = [path for path, value in _fields(record) if isinstance(value, str) and _may_be_said(path, value)]
    user = _named_like(texts, _ASKS)
    answers = [path for path in texts if path != user]
    assistant = _named_like([path for path in answers if not _REFERENCE.search(path)], _ANSWERS)
    assistant = assistant or _named_like(answers, _ANSWERS)
    if assistant is not None and sum(_END.sub("", path) == _END.sub("", assistant) for path in answers) > 1:
        return {}  # response_a and response_b: two replies to compare, or alternatives
    left = [path for path in texts if path not in (user, assistant)]
    longest = max(left, key=lambda path: len(str(at(record, path))), default=None)
    if user is None:
        user = longest if assistant is not None else None
    elif assistant is None:
        assistant = longest
    if user is None:
        return {}
    if assistant is None:
        return {} if any(key in record for key in (*keys.SIDES, *keys.REPLIES)) else {"user": user}
    return {"user": user, "assistant": assistant}


def _may_be_said(path: str, value: str) -> bool:
    """Whether a text may be the question or the answer: not a name, id, number, passage or system prompt."""
    last = path.rpartition(".")[2]
    beside = last in _BESIDE and last not in keys.PROMPTS
    named = last.lower().endswith("_id") or last.lower() in _NO_TEXTS
    return keys.is_present(value) and not beside and not named


def _fields(record: Any, before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in record.items():
        yield before + str(key), value
        if isinstance(value, Mapping):
            yield from _fields(value, f"{before}{key}.")


def _named_like(paths: Sequence[str], words: Sequence[str]) -> str | None:
    for word in words:
        for path in paths:
            last = path.rpartition(".")[2].lower()
            if last == word or ((len(word) > 2 or not word.isascii()) and word in last):
                return path
    return None


def as_option(columns: Columns) -> str:
    """The mapping as it is given on the command line."""
    return "--columns '" + json.dumps(dict(columns), ensure_ascii=False).replace("'", "'\\''") + "'"
